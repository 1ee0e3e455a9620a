"""Linear layers of a training step in float32 on a CPU: both ways through oneDNN, in pieces that stay in the cache.

PyTorch multiplies float32 by MKL, which gives AMD's processors AVX2 kernels; oneDNN, which PyTorch brings too, goes by
what the processor says it can do. Where AVX-512 is 512 bits wide in silicon (from Zen 5 on) that is twice as fast; Zen
4 and Zen 5 in laptops split it into halves, and there is nothing in it but less memory. And what a feed-forward part
writes, four times the width of the tokens, is made a few rows at a time, so that it is still in the cache when it is
read again; its activation is computed anew in the backward pass instead of being kept. The numbers agree to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import wraps
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from clca.system.cpu_info import Cpu, this_cpu

WIDE = 2**19
"""The most entries of a wide activation that are made at once: 2 MiB of them."""
FEWEST = 2**25
"""Products of fewer multiplications are left to PyTorch: what a call costs here counts there."""
ZEN_5 = 26
"""The family of AMD's processors that is the first to multiply 512 bits at once."""
ZEN_5_IN_HALVES = frozenset([*range(0x20, 0x30), *range(0x60, 0x70)])
"""Its models that do not: Strix Point and Krackan Point, for laptops."""
ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
"""Whether this PyTorch has oneDNN's linear layers."""


def _mkl_is_held_back() -> bool:
    """Whether this is a processor on which MKL does not use the instructions that oneDNN uses."""
    told: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return (
        ONEDNN
        and torch.backends.mkl.is_available()
        and "AMD" in str(told.get("cpu_name", ""))
        and bool(told.get("avx512_f"))
    )


def is_wide(cpu: Cpu) -> bool:
    """Whether a processor of AMD's multiplies 512 bits at once; those to come are taken to."""
    family = cpu.family or 0
    return family > ZEN_5 or (family == ZEN_5 and cpu.model not in ZEN_5_IN_HALVES)


BY_ONEDNN = _mkl_is_held_back()
"""Whether linear layers of a float32 training step go through oneDNN; at least an MLP in pieces takes less memory."""
TWICE_AS_FAST = BY_ONEDNN and is_wide(this_cpu())
"""Whether that is so much faster than MKL that attention gains by it too, and halves of blocks in inference."""


def product(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """a [M, K] times b [K, N], plus a bias [N]; either may be the transpose of a contiguous tensor."""
    if not (b.is_contiguous() or b.mT.is_contiguous()):  # oneDNN would take a thousand times as long
        b = b.contiguous()
    return torch.ops.mkldnn._linear_pointwise(a, b.mT, dense(bias), "none", [], "")


def dense(bias: Tensor | None) -> Tensor | None:
    """A bias [N] as oneDNN reads it: one entry behind the other, whatever its strides say."""
    return None if bias is None else bias.contiguous()


_Backward = Callable[..., tuple[Tensor | None, ...]]


def first_order(backward: _Backward) -> _Backward:
    """A backward pass that computes a gradient, in the precision of its operands, but no gradient of it.

    PyTorch's `once_differentiable` refuses too late: with `torch.autograd.grad(..., inputs)` it counts the second
    derivative as zero.
    """

    @wraps(backward)
    def checked(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        batched = torch._C._functorch.maybe_current_level() is not None
        if torch.is_grad_enabled() or batched:
            what = "batched gradients" if batched else "gradients of gradients (create_graph=True)"
            raise RuntimeError(
                f"clca's own layers compute no {what}: run the forward pass inside "
                "torch.backends.mkldnn.flags(enabled=False), and PyTorch's layers are used instead"
            )
        with torch.autocast("cpu", enabled=False):  # a backward pass inside of autocast is still that of its forward
            return backward(ctx, *grads)

    return checked


class Norm(NamedTuple):
    """Layer norm over the last dimension; with no eps, none at all."""

    weight: Tensor | None
    bias: Tensor | None
    eps: float | None

    def __call__(self, x: Tensor) -> Tensor:
        return self.both(x)[0]

    def both(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
        """Rows x [M, C], normed, and what `backward` wants to know of them."""
        if self.eps is None:
            return x, None
        out, mean, rstd = torch.native_layer_norm(x, x.shape[-1:], self.weight, self.bias, self.eps)
        return out, (mean, rstd)

    def backward(
        self,
        grad: Tensor,
        x: Tensor,
        statistics: tuple[Tensor, Tensor] | None,
        sums: Sums,
        more: Tensor | None,
        grad_x: Tensor,
    ) -> None:
        """Write the gradient of x into `grad_x`, with `more` on it, and add those of the norm to "gamma" and "beta".

        Args:
            grad: Gradient of the normed rows, [M, C].
            x: Rows before, [M, C].
            statistics: From `both`.
            sums: Where the norm's own gradients go.
            more: The residual's gradient, [M, C], or None.
            grad_x: What is written, [M, C].
        """
        if statistics is not None:
            grad, gamma, beta = torch.ops.aten.native_layer_norm_backward(
                grad, x, x.shape[-1:], *statistics, self.weight, self.bias, [True, True, True]
            )
            sums.add("gamma", lambda: gamma)
            sums.add("beta", lambda: beta)
        write(grad, more, grad_x)


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
    """linear(gelu(linear(norm(x), w1, b1)), w2, b2) with the exact GELU, and x on it if asked for; x [..., C]."""
    rows = x.reshape(-1, x.shape[-1])
    return _FeedForward.apply(rows, *norm, w1, b1, w2, b2, residual).view(*x.shape[:-1], -1)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return product(x, weight.mT, bias)

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        for_x, for_weight, for_bias = ctx.needs_input_grad
        return (
            product(grad, weight) if for_x else None,
            outer(grad, x) if for_weight else None,
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
        wide = []
        for rows in pieces(len(x), WIDE // len(w1)):
            wide.append(product(norm(x[rows]), w1.mT, b1))
            write(product(F.gelu(wide[-1]), w2.mT, b2), x[rows] if residual else None, out[rows])
        ctx.save_for_backward(x, gamma, beta, w1, w2, *wide)
        ctx.eps, ctx.residual = eps, residual
        return out

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, gamma, beta, w1, w2, *wide = ctx.saved_tensors
        norm = Norm(gamma, beta, ctx.eps)
        sums = Sums(_FEED_FORWARD, ctx.needs_input_grad)
        grad_x = torch.empty_like(x)
        for rows, before in zip(pieces(len(x), WIDE // len(w1)), wide, strict=True):
            sums.add("w2", lambda: outer(grad[rows], F.gelu(before)))  # noqa: B023  (called at once)
            if not sums.wants("x", "gamma", "beta", "w1", "b1"):
                continue
            inner = product(grad[rows], w2)
            torch.ops.aten.gelu_backward.grad_input(inner, before, grad_input=inner)
            normed, statistics = norm.both(x[rows])
            sums.add("w1", lambda: outer(inner, normed))  # noqa: B023
            sums.add("b1", lambda: inner.sum(0))  # noqa: B023
            if sums.wants("x", "gamma", "beta"):
                more = grad[rows] if ctx.residual else None
                norm.backward(product(inner, w1), x[rows], statistics, sums, more, grad_x[rows])
        sums.add("b2", lambda: grad.sum(0))
        return grad_x if sums.wants("x") else None, *(sums.get(name) for name in _FEED_FORWARD[1:]), None


_FEED_FORWARD = "x", "gamma", "beta", "eps", "w1", "b1", "w2", "b2"


def outer(a: Tensor, b: Tensor) -> Tensor:
    """aᵀ b of a [M, N] and b [M, K]: [N, K]. oneDNN is best where the result has fewer rows than columns."""
    return product(a.mT, b) if a.shape[1] <= b.shape[1] else product(b.mT, a).mT


class Sums:
    """Sums of terms, by name.

    Args:
        names: Of what may get a gradient.
        wanted: Which of them does; a term of any other is not even computed.
    """

    def __init__(self, names: Iterable[str], wanted: Iterable[bool]) -> None:
        self._wanted = {name for name, needed in zip(names, wanted, strict=False) if needed}
        self._totals: dict[str, Tensor] = {}

    def wants(self, *names: str) -> bool:
        """Whether one of them is wanted."""
        return not self._wanted.isdisjoint(names)

    def add(self, name: str, term: Callable[[], Tensor]) -> None:
        """What `term` gives, which becomes this object's own."""
        if not self.wants(name):
            return
        if name in self._totals:
            self._totals[name] += term()
        else:
            self._totals[name] = term()

    def get(self, name: str) -> Tensor | None:
        """The sum; None if it was not wanted."""
        return self._totals.get(name)


def write(x: Tensor, more: Tensor | None, out: Tensor) -> None:
    """x, with `more` on it if there is any, into `out`."""
    if more is None:
        out.copy_(x)
    else:
        torch.add(x, more, out=out)


def pieces(rows: int, most: int) -> Iterator[slice]:
    """Slices of `rows` rows, each of at most `most`, about equal; of one row where `most` is less."""
    count = -(-rows // max(1, most))
    for i in range(count):
        yield slice(rows * i // count, rows * (i + 1) // count)
