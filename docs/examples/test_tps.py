"""Tests of tps.py: pytest test_tps.py"""

import math

import torch
import tps
from torch import Tensor
from torch.nn import functional as F

from clca.reductions.checking import check_reduction


# --8<-- [start:promises]
def test_it_keeps_what_every_reduction_promises() -> None:
    check_reduction("tps")


# --8<-- [end:promises]


# --8<-- [start:formula]
def plainly(kept: Tensor, pruned: Tensor) -> tuple[Tensor, list[int]]:
    """The formula for one image, one token after the other."""
    hosts = []
    for guest in pruned:
        similarity = [F.cosine_similarity(guest, host, dim=0) for host in kept]
        hosts.append(max(range(len(kept)), key=lambda j: similarity[j]))
    squeezed = []
    for j, host in enumerate(kept):
        tokens, weights = [host], [math.e]
        for i, guest in enumerate(pruned):
            if hosts[i] == j:
                tokens.append(guest)
                weights.append(math.exp(F.cosine_similarity(guest, host, dim=0)))
        total = sum(weight * token for weight, token in zip(weights, tokens, strict=True))
        squeezed.append(total / sum(weights))
    return torch.stack(squeezed), hosts


def test_it_is_the_formula() -> None:
    kept, pruned = torch.randn(3, 5, 24).double(), torch.randn(3, 11, 24).double()
    squeezed, host = tps.squeeze(kept, pruned)
    for b in range(3):
        expected, expected_host = plainly(kept[b], pruned[b])
        torch.testing.assert_close(squeezed[b], expected)
        assert host[b].tolist() == expected_host


# --8<-- [end:formula]
