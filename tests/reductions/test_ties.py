"""Ties go to the lower index: each reduction alone, on tokens whose scores are equal, against the plain reference."""

from typing import Any

import pytest
import torch
from plain_reductions import PlainReductions, Settings, Token
from torch import Tensor

from clca.reductions import Evidence, KeepSchedule, Reduction, TokenState, reduction_class

WIDTH, HEADS = 16, 2


def reduce_both(
    name: str,
    vectors: Tensor,
    *,
    prefix: int = 1,
    keep_rate: float = 0.5,
    attention: Tensor | None = None,
    keys: Tensor | None = None,
    num_patches: int | None = None,
) -> tuple[list[int], list[int], float]:
    """One reduction on one image.

    Args:
        name: The reduction.
        vectors: Tokens [N, C], the prefix first, all others patches.
        prefix: T.
        keep_rate: k.
        attention: CLS row, [H, N]; values are vectors of length 1.
        keys: Keys averaged over heads, [N, d].
        num_patches: P; by default all but the prefix.

    Returns:
        Owner of each patch by the package and by the reference, and the largest difference of the reduced tokens.
    """
    n = len(vectors) - prefix
    patches = n if num_patches is None else num_patches
    torch.manual_seed(0)
    schedule = KeepSchedule(keep_rate, 2)
    cls = reduction_class(name)
    assert cls is not None
    reduction: Reduction = cls(vectors.shape[1], 0, 2, patches, schedule).to(vectors.dtype)
    state = TokenState(prefix=prefix, num_patches=patches, schedule=schedule)
    state.owner = torch.arange(prefix, prefix + n)[None]
    evidence = Evidence(
        cls_attention=None if attention is None else attention[None],
        mean_keys=None if keys is None else keys[None],
        value_norms=torch.ones(1, HEADS, len(vectors), dtype=vectors.dtype),
    )
    with torch.no_grad():
        reduction.begin(vectors[None], state)
        reduced = reduction.reduce(vectors[None], evidence, state)[0]

        names = {"dynamicvit": "score_predictor", "dpcknn": "cluster_layers"}
        weights = {f"{names.get(name)}.0.{key}": tensor for key, tensor in reduction.state_dict().items()}
        plain = PlainReductions(
            weights, Settings(HEADS, reduction=name, keep_rate=keep_rate, locations=(0, 1), clc=False)
        )
        plain.num_prefix, plain.num_patches = prefix, patches
        tokens = [
            Token(row, "patch", [i - prefix]) if i >= prefix else Token(row, "prefix") for i, row in enumerate(vectors)
        ]
        arguments: tuple[Any, ...] = ()
        if attention is not None:
            matrices = [row.expand(len(vectors), -1) for row in attention]
            arguments = (matrices, torch.ones(HEADS, len(vectors), 1, dtype=vectors.dtype))
        elif keys is not None:
            arguments = (keys[None],)
        elif name == "dynamicvit":
            arguments = (len(vectors),)
        result = getattr(plain, name)(0, tokens, *arguments)
    wanted = [-1] * n
    for place, token in enumerate(result):
        for patch in token.patches:
            wanted[patch] = place
    expected = torch.stack([token.vector for token in result])
    return state.owner[0].tolist(), wanted, float((reduced[: len(expected)] - expected).abs().max())


def random_tokens(n: int, distinct: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """n tokens that take only `distinct` different values, not in order. [n, WIDTH]"""
    generator = torch.Generator().manual_seed(seed)
    values = 3 * torch.randn(distinct, WIDTH, generator=generator, dtype=dtype)
    return values[torch.randint(distinct, (n,), generator=generator)]


@pytest.mark.parametrize("prefix", [1, 2, 5])
@pytest.mark.parametrize("name", ["topk", "evit"])
@pytest.mark.parametrize("levels", [1, 3])
def test_equal_attention(name: str, levels: int, prefix: int) -> None:
    n = prefix + 21
    attention = (
        torch.randint(1, levels + 1, (n,), generator=torch.Generator().manual_seed(1)).double().expand(HEADS, -1) / 64
    )
    got, wanted, difference = reduce_both(name, random_tokens(n, n), prefix=prefix, attention=attention)
    assert got == wanted
    assert difference < 1e-12
    if levels == 1:
        assert got[:11] == list(range(prefix, prefix + 11))


@pytest.mark.parametrize("prefix", [1, 2, 3, 5])
@pytest.mark.parametrize("distinct", [1, 2, 4])
@pytest.mark.parametrize("keep_rate", [0.9, 0.5, 0.1])
def test_equal_keys(prefix: int, distinct: int, keep_rate: float) -> None:
    """Keys along different axes, so that similarities are exactly 0 or 1."""
    n = prefix + 17
    which = torch.randint(distinct, (n,), generator=torch.Generator().manual_seed(2))
    keys = torch.eye(WIDTH, dtype=torch.float64)[which]
    got, wanted, difference = reduce_both("tome", random_tokens(n, n), prefix=prefix, keep_rate=keep_rate, keys=keys)
    assert got == wanted
    assert difference < 1e-12


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("n", "distinct"), [(6, 1), (12, 4), (40, 1), (40, 8), (60, 45)])
def test_equal_patches_in_clusters(n: int, distinct: int, dtype: torch.dtype) -> None:
    """Of equal densities the lower index is the denser, of equal products the lower index comes first."""
    for seed in range(4):
        got, wanted, difference = reduce_both("dpcknn", random_tokens(n + 1, distinct, seed, dtype), keep_rate=0.4)
        assert got == wanted, f"seed {seed}"
        assert difference < (1e-10 if dtype == torch.float64 else 1e-4)


def test_equal_patches_for_a_predictor() -> None:
    got, wanted, _ = reduce_both("dynamicvit", random_tokens(22, 1))
    assert got == wanted
    assert got[:10] == list(range(1, 11))


@pytest.mark.parametrize("prefix", [1, 4])
def test_candidates_without_significance(prefix: int) -> None:
    """Where the cumulative sum stands still, the first of the equal values is sampled."""
    for seed in range(6):
        generator = torch.Generator().manual_seed(seed)
        weight = torch.randint(0, 3, (prefix + 20,), generator=generator).double()
        attention = (weight / weight.sum()).expand(HEADS, -1)
        got, wanted, difference = reduce_both("ats", random_tokens(prefix + 20, 20), prefix=prefix, attention=attention)
        assert got == wanted, f"seed {seed}"
        assert difference < 1e-12


@pytest.mark.parametrize("grid", range(2, 40))
def test_sample_points_of_ats(grid: int) -> None:
    """Equally significant candidates, eight a point: S-1 are sampled, or S where rounding lifts the quotient."""
    n = 8 * grid
    attention = torch.full((HEADS, n + 1), 1 / n, dtype=torch.float64)
    got, wanted, _ = reduce_both(
        "ats", random_tokens(n + 1, n), keep_rate=1.0, attention=attention, num_patches=grid - 1
    )
    assert got == wanted
    points = len(torch.arange(1 / (2 * grid), (2 * grid - 1) / (2 * grid), 1 / grid))
    assert sum(owner >= 0 for owner in got) == points
    if grid < 20:
        assert points == (grid if grid in (3, 7, 12, 14, 19) else grid - 1)
