"""The two halves of a plain block in float32 on a CPU, both ways, an image or a few rows at a time.

For processors that `products` is for. Norm, projections, attention and residual of one image follow one another while
what they pass on is still in the cache; norms and attention weights are made anew in the backward pass instead of being
kept, and of the weights' gradients only the sum over the images is held. Tokens that a reduction fuses are fused from
their attention weights, before any product with the values: all that follows is linear in them. The numbers agree to
rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeGuard, cast

import torch
from timm.layers import Attention, LayerNorm, LayerScale
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from clca.kernels import onednn as products
from clca.kernels import tiled_attention as pieces
from clca.kernels.linear import (
    does_nothing,
    fuses,
    is_one,
    is_plain,
    linear,
    trains_by_products,
)
from clca.kernels.module_hooks import has_hooks
from clca.kernels.onednn import NO_NORM, Norm, Sums, first_order, outer, product, write
from clca.kernels.tiled_attention import in_pieces
from clca.reductions.base import Selection

WIDE_IN_INFERENCE = 4 * products.WIDE
"""As `products.WIDE` where nothing is kept: one image of 448 px stays whole, or one image alone would be slower."""


def suits_attention(block: Any, x: Tensor) -> bool:
    """Whether `attention_half` or `project` may stand for the first half of the block on x [B, N, C], and it pays."""
    if type(block) is not Block or type(block.attn) is not Attention or has_hooks(block.attn):
        return False
    attn = block.attn
    nothing = attn.q_norm, attn.k_norm, attn.norm, attn.attn_drop, attn.proj_drop
    return (
        (trains_by_products(x) or (_infers(x) and _is_plain_around(block.norm1, block.ls1, block.drop_path1, x)))
        and in_pieces(x, x.shape[1])
        and x.numel() * len(attn.qkv.weight) >= products.FEWEST
        and attn.gate is None
        and is_plain(attn.qkv)
        and is_plain(attn.proj)
        and all(map(does_nothing, nothing))
    )


def suits_mlp(block: Any, x: Tensor) -> bool:
    """Whether `mlp_half` may stand for the second half of the block on x [B, N, C], and it pays."""
    return (
        type(block) is Block
        and (trains_by_products(x) or (_infers(x) and _is_plain_around(block.norm2, block.ls2, block.drop_path2, x)))
        and is_one(block.mlp, x)
    )


def _infers(x: Tensor) -> bool:
    """Whether layers that read x are in inference, in float32, on a CPU that this is for."""
    return products.TWICE_AS_FAST and fuses(x) and not torch.is_autocast_enabled("cpu")


def _is_plain_around(norm: Any, scale: nn.Module, drop_path: nn.Module, x: Tensor) -> bool:
    """Whether what is around a half may be called for a few rows at a time."""
    return _is_plain_norm(norm, x) and (does_nothing(scale) or _is_plain_scale(scale)) and does_nothing(drop_path)


def _is_plain_norm(norm: Any, x: Tensor) -> bool:
    return (
        type(norm) in (nn.LayerNorm, LayerNorm)
        and norm.normalized_shape == x.shape[-1:]
        and norm.weight is not None
        and norm.bias is not None
        and norm.weight.dtype == norm.bias.dtype == x.dtype
        and not has_hooks(norm)
    )


def _is_plain_scale(scale: nn.Module) -> TypeGuard[LayerScale]:
    return type(scale) is LayerScale and not has_hooks(scale)


def attention_half(block: Any, x: Tensor, key_bias: Tensor | None = None) -> Tensor:
    """x + attention(norm1(x)) as timm's block runs it, for a block that `suits_attention`.

    Args:
        block: The block.
        x: Tokens, [B, N, C].
        key_bias: Added to the logits of each key, without gradient, [B, 1, 1, N].
    """
    if not torch.is_grad_enabled():
        return _attention_half_in_inference(block, x, key_bias)
    attn = block.attn

    def branch(normed: Tensor, norm: Norm, out: Tensor, out_bias: Tensor | None, adds: bool) -> Tensor:
        qkv = attn.qkv.weight, attn.qkv.bias
        return _AttentionHalf.apply(normed, *norm, *qkv, attn.num_heads, out, out_bias, key_bias, adds)

    return _half(x, block.norm1, attn.proj, block.ls1, block.drop_path1, branch)


def mlp_half(block: Any, x: Tensor) -> Tensor:
    """x + mlp(norm2(x)) as timm's block runs it, for a block that `suits_mlp`; x [B, N, C]."""
    if not torch.is_grad_enabled():
        return _mlp_half_in_inference(block, x)
    fc1 = block.mlp.fc1

    def branch(normed: Tensor, norm: Norm, out: Tensor, out_bias: Tensor | None, adds: bool) -> Tensor:
        return products.feed_forward(normed, fc1.weight, fc1.bias, out, out_bias, norm, adds)

    return _half(x, block.norm2, block.mlp.fc2, block.ls2, block.drop_path2, branch)


def _half(
    x: Tensor, norm: Any, last: nn.Linear, scale: nn.Module, drop_path: nn.Module, branch: Callable[..., Tensor]
) -> Tensor:
    """x + drop_path(scale(branch(norm(x)))), as much of it as may be in the branch, whose last layer is `last`."""
    normed, inside = _normed(norm, x)
    weight, bias, outside = _scaled_layer(last, scale)
    adds = inside is not NO_NORM and outside is None and does_nothing(drop_path)
    after = branch(normed, inside, weight, bias, adds)
    return after if adds else x + drop_path(after if outside is None else outside(after))


def _attention_half_in_inference(block: Any, x: Tensor, key_bias: Tensor | None) -> Tensor:
    attn, out = block.attn, torch.empty_like(x)
    parts = x.new_empty(3, attn.num_heads, x.shape[1], attn.head_dim)
    attended = x.new_empty(x.shape[1], attn.attn_dim)
    log_sums = x.new_empty(parts.shape[1:3])
    by_head = _by_head(attended, attn.num_heads)
    for i in range(len(x)):
        parts.copy_(_apart(linear(attn.qkv, block.norm1(x[i])), attn.num_heads))
        parts[0].mul_(pieces.base_2(attn.head_dim))
        q, k, v = parts
        pieces.attend(q, k, v, pieces.bias_of(key_bias, i), by_head, log_sums)
        torch.add(x[i], block.ls1(linear(attn.proj, attended)), out=out[i])
    return out


def _mlp_half_in_inference(block: Any, x: Tensor) -> Tensor:
    mlp, rows = block.mlp, x.reshape(-1, x.shape[-1])
    out = torch.empty_like(rows)
    for some in products.pieces(len(rows), WIDE_IN_INFERENCE // mlp.fc1.out_features):
        after = linear(mlp.fc2, linear(mlp.fc1, block.norm2(rows[some]), gelu=True))
        torch.add(rows[some], block.ls2(after), out=out[some])
    return out.view_as(x)


class Parts(NamedTuple):
    """Queries, keys and values of a block.

    Attributes:
        all: The three, queries as `pieces.attend` wants them, [B, 3, H, N, d].
        cls_attention: The CLS token's attention weights, [B, H, N].
    """

    all: Tensor
    cls_attention: Tensor

    def queries(self) -> Tensor:
        """Queries as any attention wants them, [B, H, N, d]."""
        return self.all[:, 0] / pieces.base_2(self.all.shape[-1])


def project(block: Any, x: Tensor, key_bias: Tensor | None = None) -> Parts:
    """Queries, keys and values of norm1(x), for a block that `suits_attention`; arguments as for `attention_half`."""
    x, norm = _normed(block.norm1, x)
    attn = block.attn
    return Parts(*_Projection.apply(x, *norm, attn.qkv.weight, attn.qkv.bias, attn.num_heads, key_bias))


def attend_fused(parts: Parts, selection: Selection, key_bias: Tensor | None = None) -> Tensor:
    """`selection.of` what the tokens attend to, before the output projection: [B, M + 1, H · d].

    Args:
        parts: From `project`.
        selection: Which tokens stay, and of what weights one more is fused.
        key_bias: The same as for `project`.
    """
    return _AttendFused.apply(parts.all, selection.kept, selection.fused, key_bias)


def select(x: Tensor, selection: Selection) -> Tensor:
    """`selection.of(x)` with a fused token, whose gradient is written in one go; x [B, N, C] to [B, M + 1, C]."""
    return _Select.apply(x, selection.kept, selection.fused)


def _normed(norm: Any, x: Tensor) -> tuple[Tensor, Norm]:
    """x and the norm that is still to come; where that is not a plain one, norm(x) and none."""
    return (x, Norm(norm.weight, norm.bias, norm.eps)) if _is_plain_norm(norm, x) else (norm(x), NO_NORM)


def _scaled_layer(layer: nn.Linear, scale: nn.Module) -> tuple[Tensor, Tensor | None, nn.Module | None]:
    """Weight and bias of the layer and the scale behind it, in one where they may be; else the scale itself."""
    if does_nothing(scale):
        return layer.weight, layer.bias, None
    if not _is_plain_scale(scale):
        return layer.weight, layer.bias, scale
    gamma = scale.gamma
    return gamma.unsqueeze(1) * layer.weight, None if layer.bias is None else gamma * layer.bias, None


class _IntoHeads:
    """Norm and projection of one image after another to queries, as `pieces` wants them, keys and values."""

    def __init__(self, norm: Norm, qkv: Tensor, qkv_bias: Tensor | None, heads: int) -> None:
        self.norm, self.heads = norm, heads
        self.weight = self._scaled(qkv.clone())
        self.bias = None if qkv_bias is None else self._scaled(qkv_bias.clone())

    def _scaled(self, qkv: Tensor) -> Tensor:
        """qkv's weight or bias, or a gradient of it, the part of the queries scaled in place."""
        queries = qkv[: len(qkv) // 3]
        queries *= pieces.base_2(len(queries) // self.heads)
        return qkv

    def room(self, x: Tensor) -> Tensor:
        """For the parts of all images x [B, N, C]: [B, 3, H, N, d]."""
        return x.new_empty(len(x), 3, self.heads, x.shape[1], len(self.weight) // 3 // self.heads)

    def __call__(self, x: Tensor) -> Tensor:
        """One image's tokens [N, C] to [3, H, N, d]."""
        return _apart(product(self.norm(x), self.weight.mT, self.bias), self.heads)

    def backward(self, grads: Tensor, x: Tensor, sums: Sums, more: Tensor | None, grad_x: Tensor) -> None:
        """From the gradients of one image's parts [N, 3 · H · d] on, to its tokens and to "qkv" and "qkv_bias"."""
        normed, statistics = self.norm.both(x)
        sums.add("qkv", lambda: outer(grads, normed))
        sums.add("qkv_bias", lambda: grads.sum(0))
        if sums.wants("x", "gamma", "beta"):
            self.norm.backward(product(grads, self.weight), x, statistics, sums, more, grad_x)

    def gradients(self, grad_x: Tensor, sums: Sums) -> tuple[Tensor | None, ...]:
        """Those of `_INTO_HEADS`, after the last image."""
        for name in ("qkv", "qkv_bias"):
            if sums.wants(name):
                self._scaled(cast(Tensor, sums.get(name)))
        return grad_x if sums.wants("x") else None, *(sums.get(name) for name in _INTO_HEADS[1:])


_INTO_HEADS = "x", "gamma", "beta", "eps", "qkv", "qkv_bias", "heads"


class _AttentionHalf(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        gamma: Tensor | None,
        beta: Tensor | None,
        eps: float | None,
        qkv: Tensor,
        qkv_bias: Tensor | None,
        heads: int,
        out: Tensor,
        out_bias: Tensor | None,
        key_bias: Tensor | None,
        residual: bool,
    ) -> Tensor:
        into_heads = _IntoHeads(Norm(gamma, beta, eps), qkv, qkv_bias, heads)
        parts = into_heads.room(x)
        attended = x.new_empty(*x.shape[:2], len(qkv) // 3)
        log_sums = x.new_empty(len(x), heads, x.shape[1])
        result = x.new_empty(*x.shape[:2], len(out))
        for i in range(len(x)):
            parts[i] = into_heads(x[i])
            q, k, v = parts[i]
            pieces.attend(q, k, v, pieces.bias_of(key_bias, i), _by_head(attended[i], heads), log_sums[i])
            write(product(attended[i], out.mT, out_bias), x[i] if residual else None, result[i])
        ctx.save_for_backward(x, gamma, beta, qkv, out, key_bias, parts, attended, log_sums)
        ctx.eps, ctx.residual = eps, residual
        return result

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, gamma, beta, qkv, out, key_bias, parts, attended, log_sums = ctx.saved_tensors
        heads, grad = parts.shape[2], grad.contiguous()
        into_heads = _IntoHeads(Norm(gamma, beta, ctx.eps), qkv, None, heads)
        sums = Sums((*_INTO_HEADS, "out", "out_bias"), ctx.needs_input_grad)
        grad_x = torch.empty_like(x)
        grads = x.new_empty(x.shape[1], len(qkv))
        for i in range(len(x)):
            sums.add("out", lambda: outer(grad[i], attended[i]))  # noqa: B023  (called at once)
            if not sums.wants("x", "gamma", "beta", "qkv", "qkv_bias"):
                continue
            given = _by_head(product(grad[i], out), heads)
            bias, before = pieces.bias_of(key_bias, i), _by_head(attended[i], heads)
            pieces.write_gradients(parts[i].unbind(), bias, before, log_sums[i], given, _apart(grads, heads).unbind())
            into_heads.backward(grads, x[i], sums, grad[i] if ctx.residual else None, grad_x[i])
        sums.add("out_bias", lambda: grad.sum((0, 1)))
        return *into_heads.gradients(grad_x, sums), sums.get("out"), sums.get("out_bias"), None, None


class _Projection(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        gamma: Tensor | None,
        beta: Tensor | None,
        eps: float | None,
        qkv: Tensor,
        qkv_bias: Tensor | None,
        heads: int,
        key_bias: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        into_heads = _IntoHeads(Norm(gamma, beta, eps), qkv, qkv_bias, heads)
        parts = into_heads.room(x)
        for i in range(len(x)):
            parts[i] = into_heads(x[i])
        logits = (parts[:, 0, :, :1] @ parts[:, 1].mT) * math.log(2)  # [B, H, 1, N]
        cls_attention = (logits if key_bias is None else logits + key_bias).softmax(-1).squeeze(2)
        ctx.save_for_backward(x, gamma, beta, qkv, parts, cls_attention)
        ctx.eps = eps
        return parts, cls_attention

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor, grad_cls: Tensor) -> tuple[Tensor | None, ...]:
        x, gamma, beta, qkv, parts, cls_attention = ctx.saved_tensors
        into_heads = _IntoHeads(Norm(gamma, beta, ctx.eps), qkv, None, parts.shape[2])
        sums = Sums(_INTO_HEADS, ctx.needs_input_grad)
        grad_x = torch.empty_like(x)
        grads = x.new_empty(x.shape[1], len(qkv))
        for_q, for_k, _ = _apart(grads, parts.shape[2])
        for_logits = torch._softmax_backward_data(grad_cls, cls_attention, -1, x.dtype) * math.log(2)
        for i in range(len(x)):
            grads.copy_(_together(grad[i]))
            q, k, _ = parts[i]
            for_q[:, 0] += (for_logits[i].unsqueeze(1) @ k).squeeze(1)
            for_k.addcmul_(for_logits[i].unsqueeze(2), q[:, :1])
            into_heads.backward(grads, x[i], sums, None, grad_x[i])
        return *into_heads.gradients(grad_x, sums), None


class _AttendFused(torch.autograd.Function):
    """Queries are taken in another order: of the tokens that stay first, then all others."""

    @staticmethod
    def forward(ctx: Any, parts: Tensor, kept: Tensor, fused: Tensor, key_bias: Tensor | None) -> Tensor:
        batch, _, heads, tokens, width = parts.shape
        count = kept.shape[1]
        order = _kept_first(kept, tokens)
        out = parts.new_empty(batch, count + 1, heads, width)
        log_sums = parts.new_empty(batch, heads, tokens)
        pooled = parts.new_zeros(batch, heads, tokens)  # the fused token's attention weights
        for i in range(batch):
            q, k, v = parts[i]
            q, shares = q.index_select(1, order[i]), fused[i, order[i]]
            bias = pieces.bias_of(key_bias, i)
            for j in range(heads):
                for rows in _kept_and_others(count, tokens):
                    weights, total = pieces.unnormalised(q[j, rows], k[j], bias, log_sums[i, j, rows])
                    pooled[i, j].addmv_(weights.mT, shares[rows] / total.squeeze(1))
                    if rows.stop <= count:
                        torch.div(product(weights, v[j]), total, out=out[i, rows, j])
                torch.mv(v[j].mT, pooled[i, j], out=out[i, count, j])
        ctx.save_for_backward(parts, order, fused, key_bias, out, log_sums, pooled)
        return out.flatten(2)

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        parts, order, fused, key_bias, out, log_sums, pooled = ctx.saved_tensors
        batch, _, heads, tokens, width = parts.shape
        count = out.shape[1] - 1
        grads = parts.new_empty(batch, tokens, 3 * heads * width)
        grad_fused = torch.empty_like(fused)
        for i in range(batch):
            q, k, v = parts[i]
            q, shares = q.index_select(1, order[i]), fused[i, order[i]].unsqueeze(1)
            bias = pieces.bias_of(key_bias, i)
            given = grad[i].unflatten(1, (heads, width)).transpose(0, 1).contiguous()
            taken_off = (out[i].transpose(0, 1) * given).sum(-1).mul_(-math.log(2))
            turned_k, negative = k.mT.contiguous(), -log_sums[i]
            for_q, (in_order, for_k, for_v) = torch.empty_like(q), _apart(grads[i], heads)
            total = torch.zeros_like(shares)
            for j in range(heads):
                of_fused = (v[j] @ given[j, count]).unsqueeze(1)  # [N, 1]
                for rows in _kept_and_others(count, tokens):
                    weights = pieces.transposed_weights(q[j, rows], k[j], bias, negative[j, rows])
                    moment = weights.mT @ of_fused
                    total[rows] += moment
                    values, before = of_fused, shares[rows]
                    off = (before * moment).squeeze(1) * -math.log(2)
                    if rows.stop <= count:
                        pieces.put(for_v[j], product(weights, given[j, rows]), rows)
                        values, before = torch.cat([v[j], values], 1), torch.cat([given[j, rows], before], 1)
                        off += taken_off[j, rows]
                    scores = product(values * math.log(2), before.mT, off).mul_(weights)
                    pieces.put(for_k[j], product(scores, q[j, rows]), rows)
                    for_q[j, rows] = product(turned_k[j], scores).mT
                for_v[j].addcmul_(pooled[i, j].unsqueeze(1), given[j, count])
            in_order[:, order[i]] = for_q
            grad_fused[i, order[i]] = total.squeeze(1)
        return grads.unflatten(2, (3, heads, width)).permute(0, 2, 3, 1, 4), None, grad_fused, None


class _Select(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, kept: Tensor, fused: Tensor) -> Tensor:
        ctx.save_for_backward(x, kept, fused)
        return Selection(kept, fused).of(x)

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, kept, fused = ctx.saved_tensors
        last = grad[:, -1:]
        grad_x = fused.unsqueeze(2) * last
        grad_x.scatter_add_(1, kept.unsqueeze(-1).expand(-1, -1, x.shape[-1]), grad[:, :-1])
        return grad_x, None, (x @ last.mT).squeeze(2)


def _apart(qkv: Tensor, heads: int) -> Tensor:
    """[N, 3 · H · d] to [3, H, N, d]."""
    return qkv.unflatten(1, (3, heads, -1)).permute(1, 2, 0, 3)


def _by_head(x: Tensor, heads: int) -> Tensor:
    """[N, H · d] to [H, N, d]."""
    return x.unflatten(1, (heads, -1)).transpose(0, 1)


def _together(parts: Tensor) -> Tensor:
    """[3, H, N, d] to [N, 3 · H · d]."""
    return parts.permute(2, 0, 1, 3).flatten(1)


def _kept_first(kept: Tensor, tokens: int) -> Tensor:
    """All positions, [B, N], those of `kept` [B, M] first."""
    others = torch.ones(len(kept), tokens, dtype=torch.bool, device=kept.device).scatter_(1, kept, False)
    return torch.cat([kept, others.nonzero()[:, 1].view(len(kept), -1)], dim=1)


def _kept_and_others(count: int, tokens: int) -> Iterator[slice]:
    """Slices of queries of the first `count` tokens, then of all others."""
    yield from pieces.row_pieces(count, tokens)
    for rows in pieces.row_pieces(tokens - count, tokens):
        yield slice(rows.start + count, rows.stop + count)
