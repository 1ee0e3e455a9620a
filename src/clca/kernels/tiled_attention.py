"""Tiled attention for CPUs on which PyTorch's fused kernel is slow.

In bfloat16 that kernel is written for AMX: on a CPU that multiplies bfloat16 without it (AVX-512 BF16) it is slower
than plain matrix products. In float32 it multiplies by MKL, which uses half the width of some processors (see
`onednn`). There attention is computed for a few heads and queries at a time by plain matrix products, in two buffers
that stay in the cache and hold at most `TILE_SIZE` entries, whatever the number of tokens. The backward pass recomputes
the weights instead of storing them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from clca.kernels.onednn import first_order, matmul, row_slices

TILE_SIZE = 2**21
"""The most attention weights that are held at once in bfloat16, 4 MiB; in float32 half as many."""


def attention(q: Tensor, k: Tensor, v: Tensor, key_bias: Tensor | None = None) -> Tensor:
    """softmax(q kᵀ / √d + key_bias) v: outside of autocast in float32; in it with scores rounded to bfloat16.

    A component shared by all keys adds a constant to all scores of a query. It changes no weight, but costs precision:
    in a DINOv2 ViT-S scores reach 288, where bfloat16 has steps of 2. So the mean of the keys is subtracted first, as
    SageAttention does before quantisation (Zhang et al., ICLR 2025).

    Args:
        q: Queries, [B, H, M, d].
        k, v: Keys and values, [B, H, N, d].
        key_bias: Without gradient, [B, 1, 1, N].

    Returns:
        [B, H, M, d], in bfloat16 in autocast.
    """
    return _SeparateAttention.apply(q, k, v, key_bias)


def packed_attention(qkv: Tensor, key_bias: Tensor | None = None) -> Tensor:
    """`attention` of queries, keys and values in one tensor [B, N, 3, H, d], as its gradient is: [B, H, N, d]."""
    return _PackedAttention.apply(qkv, key_bias)


class _SeparateAttention(torch.autograd.Function):
    """On q [B, H, M, d], k and v [B, H, N, d] and bias [B, 1, 1, N]."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
        ctx.bfloat16 = _is_bfloat16(q)
        out, *saved = _forward(q, k, v, bias, ctx.bfloat16)
        ctx.save_for_backward(q, k, v, bias, *saved)
        return out

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, *others = ctx.saved_tensors
        grads = [torch.empty_like(x) for x in (q, k, v)]
        _backward(ctx.bfloat16)(q, k, v, *others, grad, *grads)
        return *grads, None


class _PackedAttention(torch.autograd.Function):
    """On [B, N, 3, H, d] and bias [B, 1, 1, N]."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, bias: Tensor | None) -> Tensor:
        ctx.bfloat16 = _is_bfloat16(qkv)
        out, *saved = _forward(*_unpack(qkv), bias, ctx.bfloat16)
        ctx.save_for_backward(qkv, bias, *saved)
        return out

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        qkv, *others = ctx.saved_tensors
        grads = torch.empty_like(qkv)
        _backward(ctx.bfloat16)(*_unpack(qkv), *others, grad, *_unpack(grads))
        return grads, None


def _is_bfloat16(x: Tensor) -> bool:
    return x.dtype != torch.float32 or torch.is_autocast_enabled("cpu")


def _forward(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, bfloat16: bool) -> tuple[Tensor, ...]:
    """The output of attention, and what else the backward pass needs."""
    if bfloat16:
        return (_forward_bfloat16(q, k, v, bias),)
    out, log_sums = _forward_float32(q, k, v, bias)
    return out, out, log_sums


def _backward(bfloat16: bool) -> Callable[..., None]:
    return _backward_bfloat16 if bfloat16 else _backward_float32


def _unpack(qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    return q, k, v


# -- in bfloat16 -------------------------------------------------------------------------------------------------------


def _to_bfloat16(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Queries [G, M, d], keys without their mean and values [G, N, d], bias [G, 1, N]; all in bfloat16."""
    heads = q.shape[:2]
    if bias is not None:
        bias = bias.to(torch.bfloat16).expand(*heads, 1, -1).flatten(0, 1)
    q, k, v = (x.flatten(0, 1) for x in (q, k, v))
    mean_key = k.mean(dim=1, keepdim=True, dtype=torch.float32)  # has no gradient: those of the keys sum to zero
    return q.to(torch.bfloat16), (k - mean_key).to(torch.bfloat16), v.to(torch.bfloat16), bias


def _forward_bfloat16(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    shape = q.shape[:2]
    with torch.autocast("cpu", enabled=False):
        q, k, v, bias = _to_bfloat16(q, k, v, bias)
        out = torch.empty_like(q)
        for heads, rows, weights, _ in _tiles(q, k, bias):
            out[heads, rows] = weights @ v[heads]
    return out.unflatten(0, shape)


def _backward_bfloat16(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, grad: Tensor, grad_q: Tensor, grad_k: Tensor, grad_v: Tensor
) -> None:
    shape, scale = q.shape[:2], q.shape[-1] ** -0.5
    with torch.autocast("cpu", enabled=False):
        q, k, v, bias = _to_bfloat16(q, k, v, bias)
        grad = grad.flatten(0, 1).to(torch.bfloat16)
        for_q = torch.empty_like(q)
        # The queries of a head can span several tiles, whose sums would lose precision in bfloat16.
        for_k, for_v = (torch.zeros(x.shape, dtype=torch.float32) for x in (k, v))
        for heads, rows, weights, scores in _tiles(q, k, bias):
            for_v[heads] += weights.mT @ grad[heads, rows]
            torch.bmm(grad[heads, rows], v[heads].mT, out=scores)
            torch.ops.aten._softmax_backward_data.out(scores, weights, -1, scores.dtype, grad_input=scores)
            for_q[heads, rows] = scores @ k[heads]
            for_k[heads] += scores.mT @ q[heads, rows]
        torch.mul(for_q.unflatten(0, shape), scale, out=grad_q)
        torch.mul(for_k.unflatten(0, shape), scale, out=grad_k)
        grad_v.copy_(for_v.unflatten(0, shape))


def _tiles(q: Tensor, k: Tensor, bias: Tensor | None) -> Iterator[tuple[slice, slice, Tensor, Tensor]]:
    """Tiles: slices of heads and queries, their attention weights [heads, queries, N], and a buffer as large."""
    count, queries, width = q.shape
    keys, scale = k.shape[1], width**-0.5
    rows = min(queries, max(1, TILE_SIZE // keys))
    heads = min(count, max(1, TILE_SIZE // (keys * rows)))
    weights, scratch = (q.new_empty(heads * rows * keys) for _ in range(2))
    for i in range(0, count, heads):
        some_heads = slice(i, min(i + heads, count))
        for j in range(0, queries, rows):
            some_rows = slice(j, min(j + rows, queries))
            shape = some_heads.stop - some_heads.start, some_rows.stop - some_rows.start, keys
            size = shape[0] * shape[1] * shape[2]
            scores, buffer = weights[:size].view(shape), scratch[:size].view(shape)
            if bias is not None:
                scores.copy_(bias[some_heads])
            torch.baddbmm(
                scores, q[some_heads, some_rows], k[some_heads].mT, beta=bias is not None, alpha=scale, out=scores
            )
            torch.softmax(scores, -1, out=scores)
            yield some_heads, some_rows, scores, buffer


# -- in float32 --------------------------------------------------------------------------------------------------------
#
# Scores are to base 2: PyTorch's exp2 is faster than its exp, which MKL computes. The logarithm of each query's sum
# is saved for the backward pass. There keys are rows and queries columns, so that this logarithm is the bias of a
# product, as is the term that softmax's gradient subtracts, and no product has transposed weights as its first
# operand, for which oneDNN is slow.

LOG2_E = 1 / math.log(2)


def query_scale(width: int) -> float:
    """The factor for queries of `width` channels that gives scores to base 2."""
    return width**-0.5 * LOG2_E


def scaled_bias(key_bias: Tensor | None, image: int) -> Tensor | None:
    """The key bias [B, 1, 1, N] of one image, for scores to base 2: [N]."""
    return None if key_bias is None else key_bias[image].flatten().to(torch.float32) * LOG2_E


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, out: Tensor, log_sums: Tensor) -> None:
    """Attention of one image.

    Args:
        q: Queries times `query_scale`, [H, M, d].
        k, v: Keys and values, [H, N, d], each head contiguous.
        bias: From `scaled_bias`.
        out: Written, [H, M, d].
        log_sums: Written for `attend_backward`, [H, M].
    """
    for j in range(len(q)):
        for rows in query_slices(q.shape[1], k.shape[1]):
            weights, total = unnormalised_weights(q[j, rows], k[j], bias, log_sums[j, rows])
            torch.div(matmul(weights, v[j]), total, out=out[j, rows])


def unnormalised_weights(q: Tensor, k: Tensor, bias: Tensor | None, log_sums: Tensor) -> tuple[Tensor, Tensor]:
    """Attention weights of queries [M, d] over keys [N, d] and their sums [M, 1]; writes `log_sums` [M]."""
    weights = matmul(q, k.mT, bias)
    largest = weights.amax(-1, keepdim=True)
    weights.sub_(largest).exp2_()
    total = weights.sum(-1, keepdim=True)
    torch.add(largest, total.log2(), out=log_sums.unsqueeze(1))
    return weights, total


def attend_backward(
    parts: tuple[Tensor, ...],
    bias: Tensor | None,
    out: Tensor,
    log_sums: Tensor,
    grad: Tensor,
    grads: tuple[Tensor, ...],
) -> None:
    """Gradients of `attend`.

    Args:
        parts: q [H, M, d], k and v [H, N, d], as there.
        bias, out, log_sums: As there.
        grad: Gradient of `out`, [H, M, d].
        grads: Written, shaped as `parts`.
    """
    (q, k, v), (grad_q, grad_k, grad_v) = parts, grads
    delta = (out * grad).sum(-1).mul_(-math.log(2))
    k_transposed, scaled_v = k.mT.contiguous(), v * math.log(2)
    log_sums = -log_sums
    for j in range(len(q)):
        for rows in query_slices(q.shape[1], k.shape[1]):
            queries, grad_rows = q[j, rows].contiguous(), grad[j, rows].contiguous()
            weights = transposed_weights(queries, k[j], bias, log_sums[j, rows])
            accumulate(grad_v[j], matmul(weights, grad_rows), rows)
            scores = matmul(scaled_v[j], grad_rows.mT, delta[j, rows]).mul_(weights)
            accumulate(grad_k[j], matmul(scores, queries), rows)
            grad_q[j, rows] = matmul(k_transposed[j], scores).mT


def transposed_weights(q: Tensor, k: Tensor, bias: Tensor | None, negative_log_sums: Tensor) -> Tensor:
    """Attention weights of queries [M, d] over keys [N, d], from the sums that `attend` wrote: [N, M]."""
    scores = matmul(k, q.mT, negative_log_sums)
    return (scores if bias is None else scores.add_(bias.unsqueeze(1))).exp2_()


def query_slices(queries: int, keys: int) -> Iterator[slice]:
    """Slices of queries whose weights over all keys are computed at once."""
    return row_slices(queries, TILE_SIZE // 2 // keys)


def accumulate(total: Tensor, part: Tensor, rows: slice) -> None:
    """Add the part of these rows to the total; the first rows initialise it."""
    if rows.start:
        total += part
    else:
        total.copy_(part)


def _forward_float32(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    batch, heads, queries, width = q.shape
    out = q.new_empty(batch, queries, heads, width).transpose(1, 2)
    log_sums = q.new_empty(batch, heads, queries)
    for i in range(batch):
        dense_q, dense_k, dense_v = _dense(q[i], query_scale(width)), _dense(k[i]), _dense(v[i])
        attend(dense_q, dense_k, dense_v, scaled_bias(bias, i), out[i], log_sums[i])
    return out, log_sums


def _backward_float32(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    out: Tensor,
    log_sums: Tensor,
    grad: Tensor,
    grad_q: Tensor,
    grad_k: Tensor,
    grad_v: Tensor,
) -> None:
    factor = query_scale(q.shape[-1])
    for i in range(len(q)):
        dense = _dense(q[i], factor), _dense(k[i]), _dense(v[i])
        grads = grad_q[i], grad_k[i], grad_v[i]
        attend_backward(dense, scaled_bias(bias, i), out[i], log_sums[i], grad[i], grads)
        grad_q[i] *= factor


def _dense(x: Tensor, factor: float = 1.0) -> Tensor:
    """x times a factor, contiguous."""
    return torch.mul(x, factor, out=torch.empty(x.shape, dtype=x.dtype))
