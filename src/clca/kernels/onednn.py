"""Linear and feed-forward layers of a float32 training step on a CPU through oneDNN, in slices that stay in the cache.

PyTorch multiplies float32 by MKL, which uses AVX2 kernels on AMD's processors; oneDNN, which PyTorch ships too, uses
whatever instructions the processor has. Where AVX-512 runs at full width (from Zen 5 on) that is twice as fast; Zen 4
and Zen 5 in laptops split its instructions, and gain memory alone. The hidden activation of a feed-forward layer, four
times as wide as the tokens, is computed a few rows at a time, so that it is still in the cache when it is read again;
GELU is recomputed in the backward pass instead of being stored. The numbers agree to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import wraps
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

MAX_HIDDEN = 2**19
"""The most entries of a hidden activation that are computed at once: 2 MiB."""
HAS_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
"""Whether this PyTorch has oneDNN's linear layers."""


def matmul(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """a [M, K] times b [K, N], plus a bias [N]; either may be the transpose of a contiguous tensor."""
    if not (b.is_contiguous() or b.mT.is_contiguous()):  # otherwise oneDNN is a thousand times slower
        b = b.contiguous()
    return torch.ops.mkldnn._linear_pointwise(a, b.mT, dense(bias), "none", [], "")


def dense(bias: Tensor | None) -> Tensor | None:
    """A contiguous bias [N]: oneDNN ignores strides."""
    return None if bias is None else bias.contiguous()


_Backward = Callable[..., tuple[Tensor | None, ...]]


def first_order(backward: _Backward) -> _Backward:
    """Decorate a backward pass that supports first-order gradients alone; it runs without autocast.

    PyTorch's `once_differentiable` raises too late: `torch.autograd.grad(..., inputs)` then takes the second
    derivative for zero.
    """

    @wraps(backward)
    def checked(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        batched = torch._C._functorch.maybe_current_level() is not None
        if torch.is_grad_enabled() or batched:
            what = "batched gradients" if batched else "gradients of gradients (create_graph=True)"
            raise RuntimeError(
                f"clca's fast kernels do not support {what}: run the forward pass inside clca.fast_kernels(False)"
            )
        with torch.autocast("cpu", enabled=False):  # also where backward() is called inside autocast
            return backward(ctx, *grads)

    return checked


class Norm(NamedTuple):
    """Layer norm over the last dimension; the identity where eps is None."""

    weight: Tensor | None
    bias: Tensor | None
    eps: float | None

    def __call__(self, x: Tensor) -> Tensor:
        return self.both(x)[0]

    def both(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
        """Normalised rows x [M, C], and the statistics that `backward` needs."""
        if self.eps is None:
            return x, None
        out, mean, rstd = torch.native_layer_norm(x, x.shape[-1:], self.weight, self.bias, self.eps)
        return out, (mean, rstd)

    def backward(
        self,
        grad: Tensor,
        x: Tensor,
        statistics: tuple[Tensor, Tensor] | None,
        sums: GradientSums,
        residual_grad: Tensor | None,
        grad_x: Tensor,
    ) -> None:
        """Write the gradient of x plus `residual_grad` to `grad_x`; add those of the norm to "gamma" and "beta".

        Args:
            grad: Gradient of the normalised rows, [M, C].
            x: Rows before the norm, [M, C].
            statistics: From `both`.
            sums: Collects the gradients of the norm's parameters.
            residual_grad: The residual's gradient, [M, C], or None.
            grad_x: Written, [M, C].
        """
        if statistics is not None:
            grad, gamma, beta = torch.ops.aten.native_layer_norm_backward(
                grad, x, x.shape[-1:], *statistics, self.weight, self.bias, [True, True, True]
            )
            sums.add("gamma", lambda: gamma)
            sums.add("beta", lambda: beta)
        write_sum(grad, residual_grad, grad_x)


NO_NORM = Norm(None, None, None)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x [..., K] times weightᵀ [K, N], plus bias [N]."""
    return _Linear.apply(x.reshape(-1, x.shape[-1]), weight, bias).view(*x.shape[:-1], -1)


def feed_forward(
    x: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    norm: Norm = NO_NORM,
    residual: bool = False,
) -> Tensor:
    """linear(gelu(linear(norm(x), w1, b1)), w2, b2) with the exact GELU, plus x for a residual; x [..., C]."""
    rows = x.reshape(-1, x.shape[-1])
    return _FeedForward.apply(rows, *norm, w1, b1, w2, b2, residual).view(*x.shape[:-1], -1)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return matmul(x, weight.mT, bias)

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        for_x, for_weight, for_bias = ctx.needs_input_grad
        return (
            matmul(grad, weight) if for_x else None,
            transposed_matmul(grad, x) if for_weight else None,
            grad.sum(0) if for_bias else None,
        )


class _FeedForward(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        gamma: Tensor | None,
        beta: Tensor | None,
        eps: float | None,
        w1: Tensor,
        b1: Tensor | None,
        w2: Tensor,
        b2: Tensor | None,
        residual: bool,
    ) -> Tensor:
        norm = Norm(gamma, beta, eps)
        out = x.new_empty(len(x), len(w2))
        hidden = []
        for rows in row_slices(len(x), MAX_HIDDEN // len(w1)):
            hidden.append(matmul(norm(x[rows]), w1.mT, b1))
            write_sum(matmul(F.gelu(hidden[-1]), w2.mT, b2), x[rows] if residual else None, out[rows])
        ctx.save_for_backward(x, gamma, beta, w1, w2, *hidden)
        ctx.eps, ctx.residual = eps, residual
        return out

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, gamma, beta, w1, w2, *hidden = ctx.saved_tensors
        norm = Norm(gamma, beta, ctx.eps)
        sums = GradientSums(_FEED_FORWARD, ctx.needs_input_grad)
        grad_x = torch.empty_like(x)
        for rows, before in zip(row_slices(len(x), MAX_HIDDEN // len(w1)), hidden, strict=True):
            sums.add("w2", lambda: transposed_matmul(grad[rows], F.gelu(before)))  # noqa: B023  (called at once)
            if not sums.needs("x", "gamma", "beta", "w1", "b1"):
                continue
            inner = matmul(grad[rows], w2)
            torch.ops.aten.gelu_backward.grad_input(inner, before, grad_input=inner)
            normed, statistics = norm.both(x[rows])
            sums.add("w1", lambda: transposed_matmul(inner, normed))  # noqa: B023
            sums.add("b1", lambda: inner.sum(0))  # noqa: B023
            if sums.needs("x", "gamma", "beta"):
                residual_grad = grad[rows] if ctx.residual else None
                norm.backward(matmul(inner, w1), x[rows], statistics, sums, residual_grad, grad_x[rows])
        sums.add("b2", lambda: grad.sum(0))
        return grad_x if sums.needs("x") else None, *(sums.get(name) for name in _FEED_FORWARD[1:]), None


_FEED_FORWARD = "x", "gamma", "beta", "eps", "w1", "b1", "w2", "b2"


def transposed_matmul(a: Tensor, b: Tensor) -> Tensor:
    """aᵀ b of a [M, N] and b [M, K]: [N, K]. oneDNN is best where the result has fewer rows than columns."""
    return matmul(a.mT, b) if a.shape[1] <= b.shape[1] else matmul(b.mT, a).mT


class GradientSums:
    """Sums of gradient terms, by the name of the input.

    Args:
        names: Names of the inputs.
        needed: Which of them need a gradient; terms of the others are not computed.
    """

    def __init__(self, names: Iterable[str], needed: Iterable[bool]) -> None:
        self._needed = {name for name, is_needed in zip(names, needed, strict=False) if is_needed}
        self._totals: dict[str, Tensor] = {}

    def needs(self, *names: str) -> bool:
        """Whether one of these inputs needs a gradient."""
        return not self._needed.isdisjoint(names)

    def add(self, name: str, term: Callable[[], Tensor]) -> None:
        """Add the tensor that `term` returns, which may be changed in place afterwards."""
        if not self.needs(name):
            return
        if name in self._totals:
            self._totals[name] += term()
        else:
            self._totals[name] = term()

    def get(self, name: str) -> Tensor | None:
        """The sum; None if no gradient is needed."""
        return self._totals.get(name)


def write_sum(x: Tensor, other: Tensor | None, out: Tensor) -> None:
    """Write x, plus `other` if given, to `out`."""
    if other is None:
        out.copy_(x)
    else:
        torch.add(x, other, out=out)


def row_slices(rows: int, most: int) -> Iterator[slice]:
    """Slices of `rows` rows of about equal size, at most `most` rows each and at least one."""
    count = -(-rows // max(1, most))
    for i in range(count):
        yield slice(rows * i // count, rows * (i + 1) // count)
