"""The two halves of a timm block, with fused attention and, beside it, the evidence that a reduction asks for."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass
from typing import Any, cast

import torch
from timm.layers import Attention
from timm.models.vision_transformer import Block, ResPostBlock
from torch import Tensor, nn
from torch.nn import functional as F

from clca.kernels import fused_block as halves
from clca.kernels.linear import does_nothing, feed_forward, fuses, linear, trains_by_products
from clca.kernels.module_hooks import has_hooks, is_hooked, with_hooks
from clca.kernels.tiled_attention import attention, in_pieces, packed_attention
from clca.reductions.base import Evidence, Selection, exact, take


def splits(block: nn.Module) -> bool:
    """Whether this module understands the block, so that a reduction can act between attention and MLP."""
    # By the forward, not the class: fully_shard makes a class of its own of every block that it shards.
    return type(block).forward in (Block.forward, ResPostBlock.forward) and type(block.attn) is Attention


def faster_here(block: Any, x: Tensor) -> bool:
    """Whether a block that reads x [B, N, C] is faster by this module than by timm's own forward, and nobody minds."""
    if not splits(block) or has_hooks(block) or has_hooks(block.attn):
        return False
    return fuses(x) or trains_by_products(x) or in_pieces(x, x.shape[1])


def attention_half(
    block: Any,
    x: Tensor,
    key_bias: Tensor | None = None,
    policy: Tensor | None = None,
    needs: Set[str] = frozenset(),
) -> tuple[Tensor, Evidence]:
    """x + attention(norm1(x)) as timm's block runs it, layer scale and stochastic depth included.

    Args:
        block: A block for which `splits` holds.
        x: Tokens, [B, N, C].
        key_bias: Added to the logits of each key, [B, 1, 1, N].
        policy: Masks the softmax as DynamicViT trains with (METHOD section 4), [B, N].
        needs: Names of the `Evidence` fields to compute.

    Returns:
        Tokens [B, N, C], and the evidence.
    """
    if policy is None and not needs and halves.suits_attention(block, x):
        return halves.attention_half(block, x, key_bias), Evidence()
    if isinstance(block, ResPostBlock):
        attended, evidence = attend(cast(Attention, block.attn), x, key_bias, policy, needs)
        return x + block.drop_path1(block.norm1(attended)), evidence
    attended, evidence = attend(block.attn, block.norm1(x), key_bias, policy, needs)
    return x + block.drop_path1(block.ls1(attended)), evidence


@dataclass
class Projected:
    """Keys and values of every token of a block, for which the queries may not be known yet.

    Attributes:
        x: What attention reads, after the norm, [B, N, C].
        q: Queries [B, H, N, d]; None where they wait for the selection, and where they are in `parts`.
        k, v: Keys and values, [B, H, N, d].
        evidence: What was asked for.
        parts: The three of every token in one, where `halves` made them.
    """

    x: Tensor
    q: Tensor | None
    k: Tensor
    v: Tensor
    evidence: Evidence
    parts: halves.Parts | None = None


def selects_rows(block: nn.Module, fuses: bool) -> bool:
    """Whether `project` and `attend_selected` may stand for `attention_half` and a selection behind it.

    The projections must be plain linear layers, and nobody may wait for what is not computed; to fuse tokens before the
    output projection it must be the next thing that happens to them, without dropout of single entries.
    """
    if type(block) is not Block or type(block.attn) is not Attention:
        return False
    attn = block.attn
    if attn.gate is not None or type(attn.qkv) is not nn.Linear or type(attn.proj) is not nn.Linear:
        return False
    if any(map(has_hooks, (block, attn, attn.qkv, attn.proj))):
        return False
    return not fuses or (isinstance(attn.norm, nn.Identity) and does_nothing(attn.proj_drop))


def project(block: Any, x: Tensor, key_bias: Tensor | None, needs: Set[str], every_query: bool) -> Projected:
    """The part of attention that comes before a selection, for a block for which `selects_rows` holds.

    Args:
        block: The block.
        x: Tokens, [B, N, C].
        key_bias: Added to the logits of each key, [B, 1, 1, N].
        needs: Names of the `Evidence` fields to compute.
        every_query: Whether all queries are needed; else only that of the CLS token is computed here, for evidence.
    """
    if every_query and needs <= {"cls_attention"} and halves.suits_attention(block, x):
        parts = halves.project(block, x, key_bias)
        _, k, v = parts.all.unbind(1)
        return Projected(x, None, k, v, Evidence(cls_attention=parts.cls_attention), parts)
    attn, x = block.attn, block.norm1(x)
    if every_query:
        q, k, v = _heads(attn, linear(attn.qkv, x), 3)
        q, k = attn.q_norm(q), attn.k_norm(k)
        return Projected(x, q, k, v, _evidence(q, k, v, attn.scale, key_bias, needs))
    k, v = _heads(attn, linear(attn.qkv, x, slice(attn.attn_dim, None)), 2)
    k = attn.k_norm(k)
    # Of the CLS token as a matrix [B, C]: the compiler would treat one row of a sequence apart for a batch of one.
    q = _queries(attn, x[:, 0]).unsqueeze(2) if "cls_attention" in needs else k[:, :, :0]
    return Projected(x, None, k, v, _evidence(q, k, v, attn.scale, key_bias, needs))


def attend_selected(
    block: Any, x: Tensor, projected: Projected, selection: Selection, key_bias: Tensor | None = None
) -> Tensor:
    """`selection.of(attention_half(block, x))` without computing what is not selected.

    Attention rows are computed for the selected tokens alone. Tokens that are fused must attend, but as all that
    follows is linear in them they are fused before the output projection instead of behind it.

    Args:
        block: The block.
        x: Tokens before the block, [B, N, C].
        projected: From `project`.
        selection: What stays; a fused token needs every query in `projected`.
        key_bias: The same as in `project`.

    Returns:
        Tokens [B, M, C].
    """
    attn = block.attn
    parts = projected.parts
    if parts is not None and selection.fused is not None:
        attended, x = halves.attend_fused(parts, selection, key_bias), halves.select(x, selection)
    else:
        every = projected.q if parts is None else parts.queries()
        q = every if every is not None else _queries(attn, take(projected.x, selection.kept))
        attended = _attention(attn, q, projected.k, projected.v, key_bias)
        attended = attended.transpose(1, 2).flatten(2)  # [B, M or N, C]
        if every is not None:
            attended = selection.of(attended)
        x = selection.of(x)
    attended = linear(attn.proj, attn.norm(attended))
    if selection.fused is not None and attn.proj.bias is not None:
        # A token fused from weights of sum s has s biases.
        more = (selection.fused.sum(dim=1) - 1)[:, None, None] * attn.proj.bias
        attended = torch.cat([attended[:, :-1], attended[:, -1:] + more.to(attended.dtype)], dim=1)
    return x + block.drop_path1(block.ls1(attn.proj_drop(attended)))


def _queries(attn: Attention, x: Tensor) -> Tensor:
    """Queries [B, H, M, d] of the tokens x [B, M, C]; [B, H, d] of x [B, C]."""
    q = linear(attn.qkv, x, slice(attn.attn_dim))
    q = q.unflatten(-1, (attn.num_heads, attn.head_dim))
    return attn.q_norm(q.transpose(1, 2) if q.ndim == 4 else q)


def _heads(attn: Attention, x: Tensor, parts: int) -> tuple[Tensor, ...]:
    """[B, N, parts · H · d] to `parts` tensors [B, H, N, d]."""
    return x.unflatten(2, (parts, attn.num_heads, attn.head_dim)).permute(2, 0, 3, 1, 4).unbind(0)


def mlp_half(block: Any, x: Tensor) -> Tensor:
    """x + mlp(norm2(x)) as timm's block runs it. x: [B, N, C]"""
    if halves.suits_mlp(block, x):
        return halves.mlp_half(block, x)
    if isinstance(block, ResPostBlock):
        return x + block.drop_path2(block.norm2(feed_forward(block.mlp, x)))
    return x + block.drop_path2(block.ls2(feed_forward(block.mlp, block.norm2(x))))


def attend(
    attn: Attention,
    x: Tensor,
    key_bias: Tensor | None = None,
    policy: Tensor | None = None,
    needs: Set[str] = frozenset(),
) -> tuple[Tensor, Evidence]:
    """timm's `Attention.forward` with a key bias, and evidence that never needs [B, H, N, N]; see `attention_half`."""
    if not is_hooked(attn):
        return _attend(attn, x, key_bias, policy, needs)
    found: list[Evidence] = []

    def forward(x: Tensor) -> Tensor:
        x, evidence = _attend(attn, x, key_bias, policy, needs)
        found.append(evidence)
        return x

    return with_hooks(attn, forward, x), found[-1]


def _attend(
    attn: Attention, x: Tensor, key_bias: Tensor | None, policy: Tensor | None, needs: Set[str]
) -> tuple[Tensor, Evidence]:
    B, N, _ = x.shape
    gate = attn.gate(x).sigmoid() if attn.gate is not None else None
    qkv = linear(attn.qkv, x)
    q, k, v = _heads(attn, qkv, 3)
    q, k = attn.q_norm(q), attn.k_norm(k)
    evidence = _evidence(q, k, v, attn.scale, key_bias, needs)
    if policy is not None:
        weights = _policy_softmax(q, k, attn.scale, key_bias, policy)
        x = attn.attn_drop(weights.to(v.dtype)) @ v
    elif _stays_packed(attn, q):
        x = packed_attention(qkv.unflatten(2, (3, attn.num_heads, attn.head_dim)), key_bias)
    else:
        x = _attention(attn, q, k, v, key_bias)
    x = attn.norm(x.transpose(1, 2).reshape(B, N, attn.attn_dim))
    if gate is not None:
        x = x * gate
    return attn.proj_drop(linear(attn.proj, x)), evidence


def _stays_packed(attn: Attention, q: Tensor) -> bool:
    """Whether attention is in pieces, and nothing happens to queries and keys before it."""
    return isinstance(attn.q_norm, nn.Identity) and isinstance(attn.k_norm, nn.Identity) and _in_pieces(attn, q)


def _in_pieces(attn: Attention, q: Tensor) -> bool:
    dropout = attn.training and attn.attn_drop.p > 0
    return not dropout and in_pieces(q, q.shape[2])


def _attention(attn: Attention, q: Tensor, k: Tensor, v: Tensor, key_bias: Tensor | None) -> Tensor:
    """Of queries [B, H, M, d] over keys and values [B, H, N, d]: [B, H, M, d]."""
    if _in_pieces(attn, q):
        return attention(q, k, v, key_bias)
    dropout = attn.attn_drop.p if attn.training else 0.0
    mask = None if key_bias is None else key_bias.to(q.dtype)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)


def _evidence(q: Tensor, k: Tensor, v: Tensor, scale: float, key_bias: Tensor | None, needs: Set[str]) -> Evidence:
    if not needs:
        return Evidence()
    unknown = needs - set(Evidence.__dataclass_fields__)
    if unknown:
        raise TypeError(f"no such evidence: {', '.join(sorted(unknown))}")
    evidence = Evidence()
    # Ranks decide what is kept: half precision would make ties of tokens that differ.
    precise = torch.promote_types(q.dtype, torch.float32)
    with exact(q):
        if "cls_attention" in needs:
            logits = (q[:, :, :1].to(precise) * scale) @ k.to(precise).transpose(-2, -1)  # [B, H, 1, N]
            if key_bias is not None:
                logits = logits + key_bias.to(precise)
            evidence.cls_attention = logits.softmax(dim=-1).squeeze(2)
        if "mean_keys" in needs:
            evidence.mean_keys = k.to(precise).mean(dim=1)
        if "value_norms" in needs:
            evidence.value_norms = v.to(precise).norm(dim=-1)
    return evidence


def _policy_softmax(q: Tensor, k: Tensor, scale: float, key_bias: Tensor | None, policy: Tensor) -> Tensor:
    """Softmax over the keys that the policy [B, N] keeps, and each token's own key. [B, H, N, N]"""
    precise = torch.promote_types(q.dtype, torch.float32)
    with exact(q):
        logits = (q.to(precise) * scale) @ k.to(precise).transpose(-2, -1)
        if key_bias is not None:
            logits = logits + key_bias.to(precise)
        n = policy.shape[1]
        own = torch.eye(n, dtype=precise, device=policy.device)
        keep = policy.to(precise)[:, None, None]
        keep = keep + (1 - keep) * own
        weights = (logits - logits.amax(dim=-1, keepdim=True)).exp() * keep
        return (weights + 1e-6 / n) / (weights.sum(dim=-1, keepdim=True) + 1e-6)
