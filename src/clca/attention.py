"""The two halves of a timm block, with fused attention and, beside it, the evidence that a reduction asks for."""

from __future__ import annotations

from collections.abc import Set
from typing import Any, cast

import torch
from timm.layers import Attention
from timm.models.vision_transformer import Block, ResPostBlock
from torch import Tensor, nn
from torch.nn import functional as F

from clca.reductions.base import Evidence, exact


def splits(block: nn.Module) -> bool:
    """Whether this module understands the block, so that a reduction can act between attention and MLP."""
    return type(block) in (Block, ResPostBlock) and type(block.attn) is Attention


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
    if type(block) is ResPostBlock:
        attended, evidence = attend(cast(Attention, block.attn), x, key_bias, policy, needs)
        return x + block.drop_path1(block.norm1(attended)), evidence
    attended, evidence = attend(block.attn, block.norm1(x), key_bias, policy, needs)
    return x + block.drop_path1(block.ls1(attended)), evidence


def mlp_half(block: Any, x: Tensor) -> Tensor:
    """x + mlp(norm2(x)) as timm's block runs it. x: [B, N, C]"""
    if type(block) is ResPostBlock:
        return x + block.drop_path2(block.norm2(block.mlp(x)))
    return x + block.drop_path2(block.ls2(block.mlp(block.norm2(x))))


def attend(
    attn: Attention,
    x: Tensor,
    key_bias: Tensor | None = None,
    policy: Tensor | None = None,
    needs: Set[str] = frozenset(),
) -> tuple[Tensor, Evidence]:
    """timm's `Attention.forward` with a key bias, and evidence that never needs [B, H, N, N]; see `attention_half`."""
    B, N, _ = x.shape
    gate = attn.gate(x).sigmoid() if attn.gate is not None else None
    qkv = attn.qkv(x).reshape(B, N, 3, attn.num_heads, attn.head_dim).permute(2, 0, 3, 1, 4)
    q, k, v = qkv.unbind(0)  # [B, H, N, d]
    q, k = attn.q_norm(q), attn.k_norm(k)
    evidence = _evidence(q, k, v, attn.scale, key_bias, needs)
    if policy is not None:
        weights = _policy_softmax(q, k, attn.scale, key_bias, policy)
        x = attn.attn_drop(weights.to(v.dtype)) @ v
    else:
        x = F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=None if key_bias is None else key_bias.to(q.dtype),
            dropout_p=attn.attn_drop.p if attn.training else 0.0,
        )
    x = attn.norm(x.transpose(1, 2).reshape(B, N, attn.attn_dim))
    if gate is not None:
        x = x * gate
    return attn.proj_drop(attn.proj(x)), evidence


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
