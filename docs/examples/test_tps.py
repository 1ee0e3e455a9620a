# --8<-- [start:promises]
"""Tests of tps.py: pytest test_tps.py"""

import math

import torch
import tps
from torch import Tensor
from torch.nn import functional as F

from clca.testing import check_reduction


def test_keeps_the_promises_of_every_reduction() -> None:
    check_reduction("tps")


# --8<-- [end:promises]


# --8<-- [start:formula]
def plain_squeeze(kept: Tensor, pruned: Tensor) -> tuple[Tensor, list[int]]:
    """The formula for one image, token by token."""
    hosts = []
    for guest in pruned:
        similarity = [float(F.cosine_similarity(guest, x, dim=0)) for x in kept]
        hosts.append(similarity.index(max(similarity)))
    squeezed = []
    for j, host in enumerate(kept):
        tokens, weights = [host], [math.e]
        for i, guest in enumerate(pruned):
            if hosts[i] == j:
                tokens.append(guest)
                weights.append(math.exp(F.cosine_similarity(guest, host, dim=0)))
        total = sum(w * x for w, x in zip(weights, tokens, strict=True))
        squeezed.append(total / sum(weights))
    return torch.stack(squeezed), hosts


def test_matches_the_formula() -> None:
    kept = torch.randn(3, 5, 24, dtype=torch.float64)
    pruned = torch.randn(3, 11, 24, dtype=torch.float64)
    squeezed, host = tps.squeeze(kept, pruned)
    for b in range(3):
        expected, expected_host = plain_squeeze(kept[b], pruned[b])
        torch.testing.assert_close(squeezed[b], expected)
        assert host[b].tolist() == expected_host


# --8<-- [end:formula]
