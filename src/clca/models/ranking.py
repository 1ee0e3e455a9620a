"""The most likely classes, in one order everywhere."""

from torch import Tensor


def most_likely(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The `k` best of `scores` [..., C] and their indices, [..., min(k, C)] each, best first.

    Of equal scores, frequent in half precision, the lower index comes first, as in `argmax`; `topk` gives any order.
    """
    values, indices = scores.sort(dim=-1, descending=True, stable=True)
    return values[..., :k], indices[..., :k]
