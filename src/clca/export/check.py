"""Whether an exported file gives the answers of the model it came from."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from clca.errors import WorkError
from clca.export.load import Exported
from clca.export.program import plain_copy
from clca.models.token_reduced_vit import TokenReducedViT

TOLERANCE = 1e-3
"""Largest difference of an image's logits, as a share of the largest logit, that rounding explains: a hundred times
what is seen without a change of tokens. Where two tokens rank nearly equal, another order of the same sums can keep
the other one, and the logits then differ by more; so one image in twenty may."""

BATCHES = (1, 3, 16)
"""Batch sizes tried, the last one over and over."""


@dataclass(frozen=True)
class Agreement:
    """What came out beside PyTorch.

    Attributes:
        images: How many.
        batches: Batch sizes tried.
        largest: Largest difference of a logit.
        scale: Largest logit of PyTorch.
        outside: Images whose logits differ by more than `TOLERANCE` × `scale`.
        top1: Share of images whose most likely class is the same.
        accuracy, reference_accuracy: Share of the labelled images that the file and PyTorch get right; NaN without.
    """

    images: int
    batches: tuple[int, ...]
    largest: float
    scale: float
    outside: int
    top1: float
    accuracy: float
    reference_accuracy: float

    @property
    def holds(self) -> bool:
        """Whether the file computes what the model does, up to rounding."""
        allowed = max(self.images // 20, 1 if self.images >= 10 else 0)
        return math.isfinite(self.largest) and self.outside <= allowed

    def require(self, what: str) -> None:
        """Raise a WorkError that says by how much if it does not hold."""
        if not self.holds:
            raise WorkError(
                f"{what} does not agree with PyTorch on {self.outside} of {self.images} images (logits differ by up to "
                f"{self.largest:.2g}, the largest is {self.scale:.2g}), so it was not kept"
            )


def check_exported(
    model: TokenReducedViT, files: Sequence[Exported], images: Iterable[tuple[Tensor, int | None]]
) -> list[Agreement]:
    """Run model and files on the same images.

    Args:
        model: What was exported.
        files: What to compare with it.
        images: Preprocessed images [3, H, W] and their labels, None where unknown.

    Returns:
        One result a file.
    """
    reference = plain_copy(model)
    wanted, found, labels, sizes = [], [[] for _ in files], [], []  # type: ignore[var-annotated]
    for batch, known in _batches(images):
        with torch.inference_mode():
            wanted.append(reference(batch))
        for logits, file in zip(found, files, strict=True):
            logits.append(file(batch))
        labels += known
        sizes.append(len(batch))
    expected = torch.cat(wanted)
    return [_compare(torch.cat(logits), expected, labels, sizes) for logits in found]


def _batches(images: Iterable[tuple[Tensor, int | None]]) -> Iterable[tuple[Tensor, list[int | None]]]:
    sizes, waiting = list(BATCHES), list[tuple[Tensor, int | None]]()
    for image in images:
        waiting.append(image)
        if len(waiting) == sizes[0]:
            yield torch.stack([x for x, _ in waiting]), [label for _, label in waiting]
            waiting, sizes = [], sizes[1:] or sizes
    if waiting:
        yield torch.stack([x for x, _ in waiting]), [label for _, label in waiting]


def _compare(logits: Tensor, expected: Tensor, labels: list[int | None], sizes: list[int]) -> Agreement:
    scale = expected.abs().max().item()
    difference = (logits - expected).abs().amax(dim=1)
    same = logits.argmax(dim=1) == expected.argmax(dim=1)
    known = [i for i, label in enumerate(labels) if label is not None]
    truth = torch.tensor([labels[i] for i in known], dtype=torch.long)

    def accuracy(answers: Tensor) -> float:
        return (answers[known].argmax(dim=1) == truth).double().mean().item() if known else math.nan

    return Agreement(
        images=len(expected),
        batches=tuple(sorted(set(sizes))),
        # Not a number counts as the largest difference there is.
        largest=difference.nan_to_num(nan=math.inf).max().item(),
        scale=scale,
        outside=int((~(difference <= TOLERANCE * scale)).sum()),
        top1=same.double().mean().item(),
        accuracy=accuracy(logits),
        reference_accuracy=accuracy(expected),
    )
