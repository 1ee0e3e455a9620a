"""Softmax attention in bfloat16 on a CPU that multiplies bfloat16 but has no tiles for it (AVX-512 BF16 without AMX).

PyTorch's fused kernel is written for tiles there: without them its products run at less than the rate of plain ones. So
heads are attended to a few at a time by plain products, into two buffers that stay in the cache and are never larger
than `PIECE`, whatever the number of tokens. The backward pass makes the weights anew instead of keeping them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from clca.linear import unobserved

PIECE = 2**21
"""The most attention weights that are held at once: 4 MiB of them."""
FEWEST = 32
"""Queries below which the fused kernel is left alone: there is nothing to win."""
_SUITS = torch.cpu._is_avx512_bf16_supported() and not torch.cpu._is_amx_tile_supported()


def in_pieces(x: Tensor, queries: int) -> bool:
    """Whether attention of `queries` tokens, computed from x, is better done here than by PyTorch's fused kernel."""
    return bool(
        _SUITS
        and queries >= FEWEST
        and torch.is_autocast_enabled("cpu")
        and torch.get_autocast_dtype("cpu") == torch.bfloat16
        and x.dtype in (torch.float32, torch.bfloat16)
        and unobserved(x)
    )


def attention(q: Tensor, k: Tensor, v: Tensor, key_bias: Tensor | None = None) -> Tensor:
    """softmax(q kᵀ / √d + key_bias) v, the scores rounded to bfloat16, softmax in float32.

    What all keys have in common adds the same to all scores of a query, which changes no weight but would cost the
    scores their last digits (in a DINOv2 ViT-S they reach 288, where bfloat16 counts in steps of 2). So the mean of the
    keys is taken off first, as SageAttention does before it quantises them (Zhang et al., ICLR 2025).

    Args:
        q: Queries, [B, H, M, d].
        k, v: Keys and values, [B, H, N, d].
        key_bias: Without gradient, [B, 1, 1, N].

    Returns:
        [B, H, M, d] in bfloat16.
    """
    heads = q.shape[:2]
    bias = None
    if key_bias is not None:
        bias = key_bias.to(torch.bfloat16).expand(*heads, 1, -1).flatten(0, 1)
    q, k, v = (x.flatten(0, 1) for x in (q, k, v))
    # Away from the graph: the gradients of the keys sum to zero by themselves.
    middle = k.detach().mean(dim=1, keepdim=True, dtype=torch.float32)
    return _Attention.apply(*(x.to(torch.bfloat16) for x in (q, k - middle, v)), bias).unflatten(0, heads)


class _Attention(torch.autograd.Function):
    """On q [G, M, d], k and v [G, N, d] and bias [G, 1, N]."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(q, k, v, bias)
        out = torch.empty_like(q)
        with torch.autocast("cpu", enabled=False):
            for heads, rows, weights, _ in _pieces(q, k, bias):
                out[heads, rows] = weights @ v[heads]
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, bias = ctx.saved_tensors
        grad_q = torch.empty_like(q)
        # Rows of one head can come in several pieces, whose sums would suffer from rounding.
        grad_k, grad_v = (torch.zeros(x.shape, dtype=torch.float32) for x in (k, v))
        with torch.autocast("cpu", enabled=False):
            for heads, rows, weights, scores in _pieces(q, k, bias):
                grad_v[heads] += weights.mT @ grad[heads, rows]
                torch.bmm(grad[heads, rows], v[heads].mT, out=scores)
                torch.ops.aten._softmax_backward_data.out(scores, weights, -1, scores.dtype, grad_input=scores)
                grad_q[heads, rows] = scores @ k[heads]
                grad_k[heads] += scores.mT @ q[heads, rows]
        scale = q.shape[-1] ** -0.5
        return grad_q * scale, (grad_k * scale).to(k.dtype), grad_v.to(v.dtype), None


def _pieces(q: Tensor, k: Tensor, bias: Tensor | None) -> Iterator[tuple[slice, slice, Tensor, Tensor]]:
    """Some heads, some of their queries, the attention weights [heads, queries, N] of those, and a buffer as large."""
    count, queries, width = q.shape
    keys, scale = k.shape[1], width**-0.5
    rows = min(queries, max(1, PIECE // keys))
    heads = min(count, max(1, PIECE // (keys * rows)))
    weights, spare = (q.new_empty(heads * rows * keys) for _ in range(2))
    for i in range(0, count, heads):
        these = slice(i, min(i + heads, count))
        for j in range(0, queries, rows):
            those = slice(j, min(j + rows, queries))
            shape = these.stop - these.start, those.stop - those.start, keys
            size = shape[0] * shape[1] * shape[2]
            scores, buffer = weights[:size].view(shape), spare[:size].view(shape)
            if bias is not None:
                scores.copy_(bias[these])
            torch.baddbmm(scores, q[these, those], k[these].mT, beta=bias is not None, alpha=scale, out=scores)
            torch.softmax(scores, -1, out=scores)
            yield these, those, scores, buffer
