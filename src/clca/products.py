"""Linear layers of a training step in float32 on a CPU: both ways through oneDNN, in pieces that stay in the cache.

PyTorch multiplies float32 by MKL, which gives AMD's processors kernels that use half of their vector width; oneDNN,
which PyTorch brings too, goes by what the processor says it can do. And what a feed-forward part writes, four times the
width of the tokens, is made a few rows at a time, so that it is still in the cache when it is read again; its
activation is computed anew in the backward pass instead of being kept. The numbers agree to rounding.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

WIDE = 2**19
"""The most entries of a wide activation that are made at once: 2 MiB of them."""
FEWEST = 2**25
"""Products of fewer multiplications are left to PyTorch: what a call costs here counts there."""


ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
"""Whether this PyTorch has oneDNN's linear layers."""


def _mkl_is_held_back() -> bool:
    """Whether this is a processor on which MKL does not use what oneDNN uses."""
    told: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return (
        ONEDNN
        and torch.backends.mkl.is_available()
        and "AMD" in str(told.get("cpu_name", ""))
        and bool(told.get("avx512_f"))
    )


BY_ONEDNN = _mkl_is_held_back()
"""Whether products in float32 go through oneDNN."""


def product(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """a [M, K] times b [K, N], plus a bias [N]; either may be the transpose of a contiguous tensor."""
    if not (b.is_contiguous() or b.mT.is_contiguous()):  # oneDNN would take a thousand times as long
        b = b.contiguous()
    return torch.ops.mkldnn._linear_pointwise(a, b.mT, bias, "none", [], "")


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x [..., K] times weightᵀ [K, N], plus bias [N]."""
    return _Linear.apply(x.reshape(-1, x.shape[-1]), weight, bias).view(*x.shape[:-1], -1)


def feed_forward(x: Tensor, w1: Tensor, b1: Tensor | None, w2: Tensor, b2: Tensor | None) -> Tensor:
    """linear(gelu(linear(x, w1, b1)), w2, b2) with the exact GELU; x [..., C]."""
    return _FeedForward.apply(x.reshape(-1, x.shape[-1]), w1, b1, w2, b2).view(*x.shape[:-1], -1)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return product(x, weight.mT, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        for_x, for_weight, for_bias = ctx.needs_input_grad
        return (
            product(grad, weight) if for_x else None,
            _outer(grad, x) if for_weight else None,
            grad.sum(0) if for_bias else None,
        )


class _FeedForward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, w1: Tensor, b1: Tensor | None, w2: Tensor, b2: Tensor | None) -> Tensor:
        out = x.new_empty(len(x), len(w2))
        wide = []
        for rows in pieces(len(x), WIDE // len(w1)):
            wide.append(product(x[rows], w1.mT, b1))
            out[rows] = product(F.gelu(wide[-1]), w2.mT, b2)
        ctx.save_for_backward(x, w1, w2, *wide)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, w1, w2, *wide = ctx.saved_tensors
        for_x, for_w1, for_b1, for_w2, for_b2 = ctx.needs_input_grad
        grad_x = torch.empty_like(x) if for_x else None
        sums = _Sums()
        for rows, before in zip(pieces(len(x), WIDE // len(w1)), wide, strict=True):
            if for_w2:
                sums.add("w2", _outer(grad[rows], F.gelu(before)))
            if not (for_x or for_w1 or for_b1):
                continue
            inner = product(grad[rows], w2)
            torch.ops.aten.gelu_backward.grad_input(inner, before, grad_input=inner)
            if for_w1:
                sums.add("w1", _outer(inner, x[rows]))
            if for_b1:
                sums.add("b1", inner.sum(0))
            if grad_x is not None:
                grad_x[rows] = product(inner, w1)
        return grad_x, sums.get("w1"), sums.get("b1"), sums.get("w2"), grad.sum(0) if for_b2 else None


def _outer(a: Tensor, b: Tensor) -> Tensor:
    """aᵀ b of a [M, N] and b [M, K]: [N, K]. oneDNN is best where the result has fewer rows than columns."""
    return product(a.mT, b) if a.shape[1] <= b.shape[1] else product(b.mT, a).mT


class _Sums:
    """Sums by name."""

    def __init__(self) -> None:
        self._totals: dict[str, Tensor] = {}

    def add(self, name: str, term: Tensor) -> None:
        if name in self._totals:
            self._totals[name] += term
        else:
            self._totals[name] = term

    def get(self, name: str) -> Tensor | None:
        return self._totals.get(name)


def pieces(rows: int, most: int) -> Iterator[slice]:
    """Slices of `rows` rows, each of at most `most`, about equal; of one row where `most` is less."""
    count = -(-rows // max(1, most))
    for i in range(count):
        yield slice(rows * i // count, rows * (i + 1) // count)
