"""Softmax attention on CPUs for which PyTorch's fused kernel multiplies by the wrong means.

In bfloat16 it is written for tiles (AMX): on a CPU that multiplies bfloat16 without them (AVX-512 BF16) its products
run at less than the rate of plain ones. In float32 it multiplies by MKL, which does not use all of some processors
(`products`). So there heads are attended to a few at a time by plain products, into two buffers that stay in the cache
and are never larger than `PIECE`, whatever the number of tokens. The backward pass makes the weights anew instead of
keeping them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from clca import products
from clca.linear import unobserved
from clca.products import product

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
        return products.BY_ONEDNN and queries >= FEWEST_IN_FLOAT32 and x.dtype == torch.float32
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
        ctx.save_for_backward(q, k, v, bias)
        ctx.rounds = _rounds(q)
        return _attended(q, k, v, bias, ctx.rounds)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, bias = ctx.saved_tensors
        grads = [torch.empty_like(x) for x in (q, k, v)]
        _write_gradients(ctx.rounds)(q, k, v, bias, grad, *grads)
        return *grads, None


class _Packed(torch.autograd.Function):
    """On [B, N, 3, H, d] and bias [B, 1, 1, N]."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(qkv, bias)
        ctx.rounds = _rounds(qkv)
        q, k, v = _parts(qkv)
        return _attended(q, k, v, bias, ctx.rounds)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        qkv, bias = ctx.saved_tensors
        grads = torch.empty_like(qkv)
        q, k, v = _parts(qkv)
        grad_q, grad_k, grad_v = _parts(grads)
        _write_gradients(ctx.rounds)(q, k, v, bias, grad, grad_q, grad_k, grad_v)
        return grads, None


def _rounds(x: Tensor) -> bool:
    return x.dtype != torch.float32 or torch.is_autocast_enabled("cpu")


def _attended(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, rounds: bool) -> Tensor:
    return (_attended_in_bfloat16 if rounds else _attended_in_float32)(q, k, v, bias)


def _write_gradients(rounds: bool) -> Callable[..., None]:
    return _write_gradients_in_bfloat16 if rounds else _write_gradients_in_float32


def _parts(qkv: Tensor) -> tuple[Tensor, ...]:
    return qkv.permute(2, 0, 3, 1, 4).unbind(0)


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


def _attended_in_float32(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    batch, heads, queries, width = q.shape
    out = q.new_empty(batch, queries, heads, width)
    for i in range(batch):
        keys, values = _dense(k[i], width**-0.5), _dense(v[i])
        for j in range(heads):
            for rows in products.pieces(queries, PIECE // 2 // len(keys[j])):
                out[i, rows, j] = product(_weights(q[i, j, rows], keys[j], bias, i), values[j])
    return out.transpose(1, 2)


def _write_gradients_in_float32(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, grad: Tensor, grad_q: Tensor, grad_k: Tensor, grad_v: Tensor
) -> None:
    batch, heads, queries, width = q.shape
    for i in range(batch):
        keys, values = _dense(k[i], width**-0.5), _dense(v[i])
        turned_q, turned_grad = _dense(q[i].mT, width**-0.5), _dense(grad[i].mT)
        for j in range(heads):
            for rows in products.pieces(queries, PIECE // 2 // len(keys[j])):
                weights = _weights(q[i, j, rows], keys[j], bias, i)
                # Sums over queries as rows times weights: oneDNN is slow at weightsᵀ times anything.
                _put(grad_v[i, j], product(turned_grad[j][:, rows], weights).mT, rows)
                scores = product(turned_grad[j][:, rows].mT, values[j].mT)
                torch.ops.aten._softmax_backward_data.out(scores, weights, -1, scores.dtype, grad_input=scores)
                grad_q[i, j, rows] = product(scores, keys[j])
                _put(grad_k[i, j], product(turned_q[j][:, rows], scores).mT, rows)


def _dense(x: Tensor, factor: float = 1.0) -> Tensor:
    """x times a factor, contiguous: oneDNN's second operand must be."""
    return torch.mul(x, factor, out=torch.empty(x.shape, dtype=x.dtype))


def _put(total: Tensor, part: Tensor, rows: slice) -> None:
    if rows.start:
        total += part
    else:
        total.copy_(part)


def _weights(q: Tensor, scaled_keys: Tensor, bias: Tensor | None, image: int) -> Tensor:
    """Attention weights of queries [M, d] over keys [N, d]: [M, N]."""
    scores = product(q, scaled_keys.mT, None if bias is None else bias[image].flatten().to(q.dtype))
    return torch.softmax(scores, -1, out=scores)
