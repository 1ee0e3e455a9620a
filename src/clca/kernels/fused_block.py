"""The two residual branches of a block, fused, in float32 on a CPU, for inference and training.

For processors on which `onednn` pays. Norm, projections, attention and residual run for one image, or a few rows, at a
time, while their operands are still in the cache. The backward pass recomputes norms and attention weights instead of
storing them, and sums the weights' gradients over the images in place. Tokens that a reduction fuses are fused from
their attention weights, before the product with the values: all that follows is linear in them. The numbers agree to
rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from clca.kernels import dispatch, onednn
from clca.kernels.linear import linear
from clca.kernels.onednn import (
    NO_NORM,
    GradientSums,
    Norm,
    first_order,
    matmul,
    row_slices,
    transposed_matmul,
    write_sum,
)
from clca.kernels.selection import Selection
from clca.kernels.tiled_attention import (
    accumulate,
    attend,
    attend_backward,
    query_scale,
    query_slices,
    scaled_bias,
    transposed_weights,
    unnormalised_weights,
)

MAX_HIDDEN_IN_INFERENCE = 4 * onednn.MAX_HIDDEN
"""As `onednn.MAX_HIDDEN` where nothing is stored: so large that one image of 448 px is not split, which is slower."""


def attention_branch(block: Any, x: Tensor, key_bias: Tensor | None = None) -> Tensor:
    """x + attention(norm1(x)) as timm's block runs it; call it where `dispatch.use_fused_attention_branch` holds.

    Args:
        block: The block.
        x: Tokens, [B, N, C].
        key_bias: Added to the logits of each key, without gradient, [B, 1, 1, N].
    """
    if not torch.is_grad_enabled():
        return _attention_branch_inference(block, x, key_bias)
    attn = block.attn

    def branch(normed: Tensor, norm: Norm, out: Tensor, out_bias: Tensor | None, adds: bool) -> Tensor:
        qkv = attn.qkv.weight, attn.qkv.bias
        return _AttentionBranch.apply(normed, *norm, *qkv, attn.num_heads, out, out_bias, key_bias, adds)

    return _residual_branch(x, block.norm1, attn.proj, block.ls1, block.drop_path1, branch)


def mlp_branch(block: Any, x: Tensor) -> Tensor:
    """x + mlp(norm2(x)) as timm's block runs it, where `dispatch.use_fused_mlp_branch` holds; x [B, N, C]."""
    if not torch.is_grad_enabled():
        return _mlp_branch_inference(block, x)
    fc1 = block.mlp.fc1

    def branch(normed: Tensor, norm: Norm, out: Tensor, out_bias: Tensor | None, adds: bool) -> Tensor:
        return onednn.feed_forward(normed, fc1.weight, fc1.bias, out, out_bias, norm, adds)

    return _residual_branch(x, block.norm2, block.mlp.fc2, block.ls2, block.drop_path2, branch)


def _residual_branch(
    x: Tensor, norm: Any, last: nn.Linear, scale: nn.Module, drop_path: nn.Module, branch: Callable[..., Tensor]
) -> Tensor:
    """x + drop_path(scale(branch(norm(x)))), fused into the branch as far as possible; its last layer is `last`."""
    normed, kernel_norm = _split_norm(norm, x)
    weight, bias, outside = _scaled_layer(last, scale)
    adds = kernel_norm is not NO_NORM and outside is None and dispatch.is_identity(drop_path)
    after = branch(normed, kernel_norm, weight, bias, adds)
    return after if adds else x + drop_path(after if outside is None else outside(after))


def _attention_branch_inference(block: Any, x: Tensor, key_bias: Tensor | None) -> Tensor:
    attn, out = block.attn, torch.empty_like(x)
    parts = x.new_empty(3, attn.num_heads, x.shape[1], attn.head_dim)
    attended = x.new_empty(x.shape[1], attn.attn_dim)
    log_sums = x.new_empty(parts.shape[1:3])
    by_head = _by_head(attended, attn.num_heads)
    for i in range(len(x)):
        parts.copy_(_split_qkv(linear(attn.qkv, block.norm1(x[i])), attn.num_heads))
        parts[0].mul_(query_scale(attn.head_dim))
        q, k, v = parts
        attend(q, k, v, scaled_bias(key_bias, i), by_head, log_sums)
        torch.add(x[i], block.ls1(linear(attn.proj, attended)), out=out[i])
    return out


def _mlp_branch_inference(block: Any, x: Tensor) -> Tensor:
    mlp, rows = block.mlp, x.reshape(-1, x.shape[-1])
    out = torch.empty_like(rows)
    for part in row_slices(len(rows), MAX_HIDDEN_IN_INFERENCE // mlp.fc1.out_features):
        after = linear(mlp.fc2, linear(mlp.fc1, block.norm2(rows[part]), gelu=True))
        torch.add(rows[part], block.ls2(after), out=out[part])
    return out.view_as(x)


class QKV(NamedTuple):
    """Queries, keys and values of a block.

    Attributes:
        all: The three in one tensor, queries scaled for `tiled_attention.attend`, [B, 3, H, N, d].
        cls_attention: The CLS token's attention weights, [B, H, N].
    """

    all: Tensor
    cls_attention: Tensor

    def queries(self) -> Tensor:
        """Unscaled queries, [B, H, N, d]."""
        return self.all[:, 0] / query_scale(self.all.shape[-1])


def project(block: Any, x: Tensor, key_bias: Tensor | None = None) -> QKV:
    """Queries, keys and values of norm1(x); conditions and arguments as for `attention_branch`."""
    x, norm = _split_norm(block.norm1, x)
    attn = block.attn
    return QKV(*_Projection.apply(x, *norm, attn.qkv.weight, attn.qkv.bias, attn.num_heads, key_bias))


def attend_fused(parts: QKV, selection: Selection, key_bias: Tensor | None = None) -> Tensor:
    """`selection.of` the output of attention, before the output projection: [B, M + 1, H · d].

    Args:
        parts: From `project`.
        selection: Which tokens stay, and the weights of the fused token.
        key_bias: As for `project`.
    """
    return _AttendFused.apply(parts.all, selection.kept, selection.fused, key_bias)


def select(x: Tensor, selection: Selection) -> Tensor:
    """`selection.of(x)` with a fused token, with a fused backward pass; x [B, N, C] to [B, M + 1, C]."""
    return _Select.apply(x, selection.kept, selection.fused)


def _split_norm(norm: Any, x: Tensor) -> tuple[Tensor, Norm]:
    """x and a plain norm that the kernel applies; norm(x) and `NO_NORM` where the norm is not plain."""
    return (x, Norm(norm.weight, norm.bias, norm.eps)) if dispatch.is_plain_norm(norm, x) else (norm(x), NO_NORM)


def _scaled_layer(layer: nn.Linear, scale: nn.Module) -> tuple[Tensor, Tensor | None, nn.Module | None]:
    """Weight and bias of the layer with the scale that follows folded in; the scale itself where it cannot be."""
    if dispatch.is_identity(scale):
        return layer.weight, layer.bias, None
    if not dispatch.is_plain_scale(scale):
        return layer.weight, layer.bias, scale
    gamma = scale.gamma
    return gamma.unsqueeze(1) * layer.weight, None if layer.bias is None else gamma * layer.bias, None


class _HeadProjection:
    """Norm and projection of one image after another to scaled queries, keys and values."""

    def __init__(self, norm: Norm, qkv: Tensor, qkv_bias: Tensor | None, heads: int) -> None:
        self.norm, self.heads = norm, heads
        self.weight = self._scaled(qkv.clone())
        self.bias = None if qkv_bias is None else self._scaled(qkv_bias.clone())

    def _scaled(self, qkv: Tensor) -> Tensor:
        """Scale the rows of the queries in a weight or bias of qkv, or in its gradient, in place."""
        queries = qkv[: len(qkv) // 3]
        queries *= query_scale(len(queries) // self.heads)
        return qkv

    def empty(self, x: Tensor) -> Tensor:
        """Memory for queries, keys and values of images x [B, N, C]: [B, 3, H, N, d]."""
        return x.new_empty(len(x), 3, self.heads, x.shape[1], len(self.weight) // 3 // self.heads)

    def __call__(self, x: Tensor) -> Tensor:
        """One image's tokens [N, C] to [3, H, N, d]."""
        return _split_qkv(matmul(self.norm(x), self.weight.mT, self.bias), self.heads)

    def backward(
        self, grads: Tensor, x: Tensor, sums: GradientSums, residual_grad: Tensor | None, grad_x: Tensor
    ) -> None:
        """Propagate the gradients [N, 3 · H · d] of one image to its tokens, and to "qkv" and "qkv_bias"."""
        normed, statistics = self.norm.both(x)
        sums.add("qkv", lambda: transposed_matmul(grads, normed))
        sums.add("qkv_bias", lambda: grads.sum(0))
        if sums.needs("x", "gamma", "beta"):
            self.norm.backward(matmul(grads, self.weight), x, statistics, sums, residual_grad, grad_x)

    def gradients(self, grad_x: Tensor, sums: GradientSums) -> tuple[Tensor | None, ...]:
        """Gradients of `_PROJECTION_INPUTS`, after the last image."""
        for name in ("qkv", "qkv_bias"):
            if sums.needs(name):
                self._scaled(cast(Tensor, sums.get(name)))
        return grad_x if sums.needs("x") else None, *(sums.get(name) for name in _PROJECTION_INPUTS[1:])


_PROJECTION_INPUTS = "x", "gamma", "beta", "eps", "qkv", "qkv_bias", "heads"


class _AttentionBranch(torch.autograd.Function):
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
        projection = _HeadProjection(Norm(gamma, beta, eps), qkv, qkv_bias, heads)
        parts = projection.empty(x)
        attended = x.new_empty(*x.shape[:2], len(qkv) // 3)
        log_sums = x.new_empty(len(x), heads, x.shape[1])
        result = x.new_empty(*x.shape[:2], len(out))
        for i in range(len(x)):
            parts[i] = projection(x[i])
            q, k, v = parts[i]
            attend(q, k, v, scaled_bias(key_bias, i), _by_head(attended[i], heads), log_sums[i])
            write_sum(matmul(attended[i], out.mT, out_bias), x[i] if residual else None, result[i])
        ctx.save_for_backward(x, gamma, beta, qkv, out, key_bias, parts, attended, log_sums)
        ctx.eps, ctx.residual = eps, residual
        return result

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, gamma, beta, qkv, out, key_bias, parts, attended, log_sums = ctx.saved_tensors
        heads, grad = parts.shape[2], grad.contiguous()
        projection = _HeadProjection(Norm(gamma, beta, ctx.eps), qkv, None, heads)
        sums = GradientSums((*_PROJECTION_INPUTS, "out", "out_bias"), ctx.needs_input_grad)
        grad_x = torch.empty_like(x)
        grads = x.new_empty(x.shape[1], len(qkv))
        for i in range(len(x)):
            sums.add("out", lambda: transposed_matmul(grad[i], attended[i]))  # noqa: B023  (called at once)
            if not sums.needs("x", "gamma", "beta", "qkv", "qkv_bias"):
                continue
            grad_heads = _by_head(matmul(grad[i], out), heads)
            bias, before = scaled_bias(key_bias, i), _by_head(attended[i], heads)
            attend_backward(parts[i].unbind(), bias, before, log_sums[i], grad_heads, _split_qkv(grads, heads).unbind())
            projection.backward(grads, x[i], sums, grad[i] if ctx.residual else None, grad_x[i])
        sums.add("out_bias", lambda: grad.sum((0, 1)))
        return *projection.gradients(grad_x, sums), sums.get("out"), sums.get("out_bias"), None, None


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
        projection = _HeadProjection(Norm(gamma, beta, eps), qkv, qkv_bias, heads)
        parts = projection.empty(x)
        for i in range(len(x)):
            parts[i] = projection(x[i])
        logits = (parts[:, 0, :, :1] @ parts[:, 1].mT) * math.log(2)  # [B, H, 1, N]
        cls_attention = (logits if key_bias is None else logits + key_bias).softmax(-1).squeeze(2)
        ctx.save_for_backward(x, gamma, beta, qkv, parts, cls_attention)
        ctx.eps = eps
        return parts, cls_attention

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor, grad_cls: Tensor) -> tuple[Tensor | None, ...]:
        x, gamma, beta, qkv, parts, cls_attention = ctx.saved_tensors
        projection = _HeadProjection(Norm(gamma, beta, ctx.eps), qkv, None, parts.shape[2])
        sums = GradientSums(_PROJECTION_INPUTS, ctx.needs_input_grad)
        grad_x = torch.empty_like(x)
        grads = x.new_empty(x.shape[1], len(qkv))
        for_q, for_k, _ = _split_qkv(grads, parts.shape[2])
        for_logits = torch._softmax_backward_data(grad_cls, cls_attention, -1, x.dtype) * math.log(2)
        for i in range(len(x)):
            grads.copy_(_merge_qkv(grad[i]))
            q, k, _ = parts[i]
            for_q[:, 0] += (for_logits[i].unsqueeze(1) @ k).squeeze(1)
            for_k.addcmul_(for_logits[i].unsqueeze(2), q[:, :1])
            projection.backward(grads, x[i], sums, None, grad_x[i])
        return *projection.gradients(grad_x, sums), None


class _AttendFused(torch.autograd.Function):
    """Queries are reordered: those of the tokens that stay first, then all others."""

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
            bias = scaled_bias(key_bias, i)
            for j in range(heads):
                for rows in _kept_and_others(count, tokens):
                    weights, total = unnormalised_weights(q[j, rows], k[j], bias, log_sums[i, j, rows])
                    pooled[i, j].addmv_(weights.mT, shares[rows] / total.squeeze(1))
                    if rows.stop <= count:
                        torch.div(matmul(weights, v[j]), total, out=out[i, rows, j])
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
            bias = scaled_bias(key_bias, i)
            grad_heads = grad[i].unflatten(1, (heads, width)).transpose(0, 1).contiguous()
            delta = (out[i].transpose(0, 1) * grad_heads).sum(-1).mul_(-math.log(2))
            k_transposed, negative = k.mT.contiguous(), -log_sums[i]
            for_q, (in_order, for_k, for_v) = torch.empty_like(q), _split_qkv(grads[i], heads)
            total = torch.zeros_like(shares)
            for j in range(heads):
                of_fused = (v[j] @ grad_heads[j, count]).unsqueeze(1)  # [N, 1]
                for rows in _kept_and_others(count, tokens):
                    weights = transposed_weights(q[j, rows], k[j], bias, negative[j, rows])
                    moment = weights.mT @ of_fused
                    total[rows] += moment
                    values, before = of_fused, shares[rows]
                    off = (before * moment).squeeze(1) * -math.log(2)
                    if rows.stop <= count:
                        accumulate(for_v[j], matmul(weights, grad_heads[j, rows]), rows)
                        values, before = torch.cat([v[j], values], 1), torch.cat([grad_heads[j, rows], before], 1)
                        off += delta[j, rows]
                    scores = matmul(values * math.log(2), before.mT, off).mul_(weights)
                    accumulate(for_k[j], matmul(scores, q[j, rows]), rows)
                    for_q[j, rows] = matmul(k_transposed[j], scores).mT
                for_v[j].addcmul_(pooled[i, j].unsqueeze(1), grad_heads[j, count])
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


def _split_qkv(qkv: Tensor, heads: int) -> Tensor:
    """[N, 3 · H · d] to [3, H, N, d]."""
    return qkv.unflatten(1, (3, heads, -1)).permute(1, 2, 0, 3)


def _by_head(x: Tensor, heads: int) -> Tensor:
    """[N, H · d] to [H, N, d]."""
    return x.unflatten(1, (heads, -1)).transpose(0, 1)


def _merge_qkv(parts: Tensor) -> Tensor:
    """[3, H, N, d] to [N, 3 · H · d]."""
    return parts.permute(2, 0, 1, 3).flatten(1)


def _kept_first(kept: Tensor, tokens: int) -> Tensor:
    """All positions, [B, N], those of `kept` [B, M] first."""
    others = torch.ones(len(kept), tokens, dtype=torch.bool, device=kept.device).scatter_(1, kept, False)
    return torch.cat([kept, others.nonzero()[:, 1].view(len(kept), -1)], dim=1)


def _kept_and_others(count: int, tokens: int) -> Iterator[slice]:
    """Slices of queries of the first `count` tokens, then of all others."""
    yield from query_slices(count, tokens)
    for rows in query_slices(tokens - count, tokens):
        yield slice(rows.start + count, rows.stop + count)
