"""Softmax attention on CPUs for which PyTorch's fused kernel multiplies by the wrong means.

In bfloat16 it is written for tiles (AMX): on a CPU that multiplies bfloat16 without them (AVX-512 BF16) its products
run at less than the rate of plain ones. In float32 it multiplies by MKL, which uses half of some processors
(`products`). So there heads are attended to a few at a time by plain products, into two buffers that stay in the cache
and are never larger than `PIECE`, whatever the number of tokens. The backward pass makes the weights anew instead of
keeping them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from clca.kernels import onednn as products
from clca.kernels.linear import unobserved
from clca.kernels.onednn import first_order, product

PIECE = 2**21
"""The most attention weights that are held at once: 4 MiB of them in bfloat16; of float32 half as many."""
FEWEST = 32
"""Queries below which the fused kernel is left alone in bfloat16: there is nothing to win."""
FEWEST_IN_FLOAT32 = 256
"""The same in float32, where every head is a call of its own."""
_SUITS = torch.cpu._is_avx512_bf16_supported() and not torch.cpu._is_amx_tile_supported()


def in_pieces(x: Tensor, queries: int) -> bool:
    """Whether attention of `queries` tokens, computed from x, is better done here than by PyTorch's fused kernel."""
    if queries < FEWEST or not unobserved(x):
        return False
    if not torch.is_autocast_enabled("cpu"):
        return products.TWICE_AS_FAST and queries >= FEWEST_IN_FLOAT32 and x.dtype == torch.float32
    return _SUITS and torch.get_autocast_dtype("cpu") == torch.bfloat16 and x.dtype in (torch.float32, torch.bfloat16)


def attention(q: Tensor, k: Tensor, v: Tensor, key_bias: Tensor | None = None) -> Tensor:
    """softmax(q kᵀ / √d + key_bias) v: outside of autocast in float32; in it with scores rounded to bfloat16.

    What all keys have in common adds the same to all scores of a query, which changes no weight but would cost the
    scores their last digits (in a DINOv2 ViT-S they reach 288, where bfloat16 counts in steps of 2). So the mean of the
    keys is taken off first, as SageAttention does before it quantises them (Zhang et al., ICLR 2025).

    Args:
        q: Queries, [B, H, M, d].
        k, v: Keys and values, [B, H, N, d].
        key_bias: Without gradient, [B, 1, 1, N].

    Returns:
        [B, H, M, d], in bfloat16 in autocast.
    """
    return _Apart.apply(q, k, v, key_bias)


def packed_attention(qkv: Tensor, key_bias: Tensor | None = None) -> Tensor:
    """`attention` of what one layer gives, [B, N, 3, H, d]: [B, H, N, d]. Its gradient need not be put together."""
    return _Packed.apply(qkv, key_bias)


class _Apart(torch.autograd.Function):
    """On q [B, H, M, d], k and v [B, H, N, d] and bias [B, 1, 1, N]."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
        ctx.rounds = _rounds(q)
        out, *kept = _attended(q, k, v, bias, ctx.rounds)
        ctx.save_for_backward(q, k, v, bias, *kept)
        return out

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, *others = ctx.saved_tensors
        grads = [torch.empty_like(x) for x in (q, k, v)]
        _write_gradients(ctx.rounds)(q, k, v, *others, grad, *grads)
        return *grads, None


class _Packed(torch.autograd.Function):
    """On [B, N, 3, H, d] and bias [B, 1, 1, N]."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, bias: Tensor | None) -> Tensor:
        ctx.rounds = _rounds(qkv)
        out, *kept = _attended(*_parts(qkv), bias, ctx.rounds)
        ctx.save_for_backward(qkv, bias, *kept)
        return out

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        qkv, *others = ctx.saved_tensors
        grads = torch.empty_like(qkv)
        _write_gradients(ctx.rounds)(*_parts(qkv), *others, grad, *_parts(grads))
        return grads, None


def _rounds(x: Tensor) -> bool:
    return x.dtype != torch.float32 or torch.is_autocast_enabled("cpu")


def _attended(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, rounds: bool) -> tuple[Tensor, ...]:
    """What was attended to, and what else its gradients are made of."""
    if rounds:
        return (_attended_in_bfloat16(q, k, v, bias),)
    out, log_sums = _attended_in_float32(q, k, v, bias)
    return out, out, log_sums


def _write_gradients(rounds: bool) -> Callable[..., None]:
    return _write_gradients_in_bfloat16 if rounds else _write_gradients_in_float32


def _parts(qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    return q, k, v


# -- in bfloat16 -------------------------------------------------------------------------------------------------------


def _rounded(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Queries [G, M, d], keys without their mean and values [G, N, d], bias [G, 1, N]; all in bfloat16."""
    heads = q.shape[:2]
    if bias is not None:
        bias = bias.to(torch.bfloat16).expand(*heads, 1, -1).flatten(0, 1)
    q, k, v = (x.flatten(0, 1) for x in (q, k, v))
    middle = k.mean(dim=1, keepdim=True, dtype=torch.float32)  # its gradient is none: those of the keys sum to zero
    return q.to(torch.bfloat16), (k - middle).to(torch.bfloat16), v.to(torch.bfloat16), bias


def _attended_in_bfloat16(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    shape = q.shape[:2]
    with torch.autocast("cpu", enabled=False):
        q, k, v, bias = _rounded(q, k, v, bias)
        out = torch.empty_like(q)
        for heads, rows, weights, _ in _pieces(q, k, bias):
            out[heads, rows] = weights @ v[heads]
    return out.unflatten(0, shape)


def _write_gradients_in_bfloat16(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, grad: Tensor, grad_q: Tensor, grad_k: Tensor, grad_v: Tensor
) -> None:
    shape, scale = q.shape[:2], q.shape[-1] ** -0.5
    with torch.autocast("cpu", enabled=False):
        q, k, v, bias = _rounded(q, k, v, bias)
        grad = grad.flatten(0, 1).to(torch.bfloat16)
        for_q = torch.empty_like(q)
        # Rows of one head can come in several pieces, whose sums would suffer from rounding.
        for_k, for_v = (torch.zeros(x.shape, dtype=torch.float32) for x in (k, v))
        for heads, rows, weights, scores in _pieces(q, k, bias):
            for_v[heads] += weights.mT @ grad[heads, rows]
            torch.bmm(grad[heads, rows], v[heads].mT, out=scores)
            torch.ops.aten._softmax_backward_data.out(scores, weights, -1, scores.dtype, grad_input=scores)
            for_q[heads, rows] = scores @ k[heads]
            for_k[heads] += scores.mT @ q[heads, rows]
        torch.mul(for_q.unflatten(0, shape), scale, out=grad_q)
        torch.mul(for_k.unflatten(0, shape), scale, out=grad_k)
        grad_v.copy_(for_v.unflatten(0, shape))


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


# -- in float32 --------------------------------------------------------------------------------------------------------
#
# Scores are counted in powers of two: PyTorch's exp2 is faster than its exp, which MKL computes. For the
# backward pass the logarithm of each query's sum is kept. With keys as rows and queries as columns it is then the
# bias of a product, as is what softmax's gradient takes off, and no product has the transpose of weights in front, at
# which oneDNN is slow.

LOG2_E = 1 / math.log(2)


def base_2(width: int) -> float:
    """What queries of `width` channels are multiplied by, for scores that are powers of two."""
    return width**-0.5 * LOG2_E


def bias_of(key_bias: Tensor | None, image: int) -> Tensor | None:
    """What scores in powers of two of one image's keys are raised by, [N], of [B, 1, 1, N]."""
    return None if key_bias is None else key_bias[image].flatten().to(torch.float32) * LOG2_E


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, out: Tensor, log_sums: Tensor) -> None:
    """Attention of one image.

    Args:
        q: Queries times `base_2`, [H, M, d].
        k, v: Keys and values, [H, N, d], each head contiguous.
        bias: From `bias_of`.
        out: What is written, [H, M, d].
        log_sums: Written for `write_gradients`, [H, M].
    """
    for j in range(len(q)):
        for rows in row_pieces(q.shape[1], k.shape[1]):
            weights, total = unnormalised(q[j, rows], k[j], bias, log_sums[j, rows])
            torch.div(product(weights, v[j]), total, out=out[j, rows])


def unnormalised(q: Tensor, k: Tensor, bias: Tensor | None, log_sums: Tensor) -> tuple[Tensor, Tensor]:
    """Attention weights of queries [M, d] over keys [N, d] and their sums [M, 1]; writes `log_sums` [M]."""
    weights = product(q, k.mT, bias)
    largest = weights.amax(-1, keepdim=True)
    weights.sub_(largest).exp2_()
    total = weights.sum(-1, keepdim=True)
    torch.add(largest, total.log2(), out=log_sums.unsqueeze(1))
    return weights, total


def write_gradients(
    parts: tuple[Tensor, ...],
    bias: Tensor | None,
    out: Tensor,
    log_sums: Tensor,
    grad: Tensor,
    grads: tuple[Tensor, ...],
) -> None:
    """The gradients of `attend`.

    Args:
        parts: q [H, M, d], k and v [H, N, d], as there.
        bias, out, log_sums: As there.
        grad: Gradient of `out`, [H, M, d].
        grads: What is written, shaped as `parts`.
    """
    (q, k, v), (grad_q, grad_k, grad_v) = parts, grads
    taken_off = (out * grad).sum(-1).mul_(-math.log(2))
    turned_k, scaled_v = k.mT.contiguous(), v * math.log(2)
    log_sums = -log_sums
    for j in range(len(q)):
        for rows in row_pieces(q.shape[1], k.shape[1]):
            queries, given = q[j, rows].contiguous(), grad[j, rows].contiguous()
            weights = transposed_weights(queries, k[j], bias, log_sums[j, rows])
            put(grad_v[j], product(weights, given), rows)
            scores = product(scaled_v[j], given.mT, taken_off[j, rows]).mul_(weights)
            put(grad_k[j], product(scores, queries), rows)
            grad_q[j, rows] = product(turned_k[j], scores).mT


def transposed_weights(q: Tensor, k: Tensor, bias: Tensor | None, negative_log_sums: Tensor) -> Tensor:
    """Attention weights of queries [M, d] over keys [N, d], from the sums that `attend` wrote: [N, M]."""
    scores = product(k, q.mT, negative_log_sums)
    return (scores if bias is None else scores.add_(bias.unsqueeze(1))).exp2_()


def row_pieces(queries: int, keys: int) -> Iterator[slice]:
    """Slices of queries, whose weights over all keys are made at once."""
    return products.pieces(queries, PIECE // 2 // keys)


def put(total: Tensor, part: Tensor, rows: slice) -> None:
    """Add to the total what these rows give; the first rows begin it."""
    if rows.start:
        total += part
    else:
        total.copy_(part)


def _attended_in_float32(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    batch, heads, queries, width = q.shape
    out = q.new_empty(batch, queries, heads, width).transpose(1, 2)
    log_sums = q.new_empty(batch, heads, queries)
    for i in range(batch):
        dense_q, dense_k, dense_v = _dense(q[i], base_2(width)), _dense(k[i]), _dense(v[i])
        attend(dense_q, dense_k, dense_v, bias_of(bias, i), out[i], log_sums[i])
    return out, log_sums


def _write_gradients_in_float32(
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
    factor = base_2(q.shape[-1])
    for i in range(len(q)):
        dense = _dense(q[i], factor), _dense(k[i]), _dense(v[i])
        grads = grad_q[i], grad_k[i], grad_v[i]
        write_gradients(dense, bias_of(bias, i), out[i], log_sums[i], grad[i], grads)
        grad_q[i] *= factor


def _dense(x: Tensor, factor: float = 1.0) -> Tensor:
    """x times a factor, contiguous."""
    return torch.mul(x, factor, out=torch.empty(x.shape, dtype=x.dtype))
