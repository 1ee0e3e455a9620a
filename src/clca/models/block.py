"""One timm block with a reduction inside, and the evidence that the reduction needs of its attention."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Set
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from timm.layers import Attention
from timm.models.vision_transformer import ResPostBlock
from torch import Tensor, nn
from torch.nn import functional as F

from clca.errors import ClcaError
from clca.kernels import dispatch, fused_block
from clca.kernels.linear import feed_forward, linear
from clca.kernels.module_hooks import is_hooked, is_replaced, with_hooks
from clca.kernels.selection import Selection, exact, take
from clca.kernels.tiled_attention import attention, packed_attention
from clca.reductions.base import Evidence, Reduction, TokenState

_NOTHING: frozenset[str] = frozenset()


class BlockOptions(NamedTuple):
    """How a block may be run.

    Attributes:
        number: Position of the block, for messages.
        only_cls: Whether only the CLS token is read after it.
        economical: Whether what is not read after it may be left out.
        must_match_timm: Whether its output must be that of timm's forward to the last bit.
        call: Calls a function with its arguments, with gradient checkpointing where that is on.
    """

    number: int
    only_cls: bool
    economical: bool
    must_match_timm: bool
    call: Callable[..., Any]


def run_block(
    block: nn.Module, x: Tensor, state: TokenState, reduction: Reduction | None, options: BlockOptions
) -> Tensor:
    """Attention, reduction, MLP; without a reduction timm's block as it is.

    Args:
        block: A block of timm.
        x: Tokens, [B, N, C].
        state: What follows the tokens; the reduction updates it.
        reduction: Reduces between attention and MLP; None for none.
        options: How the block may be run.

    Returns:
        Tokens [B, M, C].

    Raises:
        ClcaError: If the block was replaced by one inside which no tokens can be reduced.
    """
    policy = state.policy if state.masked else None
    if options.economical and policy is None:
        if reduction is not None and reduction.selects and dispatch.use_row_selection(block, reduction.fuses):
            return _run_selected(block, x, state, reduction, options.call)
        if options.only_cls and dispatch.use_row_selection(block, fuses=False):
            return _run_selected(block, x, state, None, options.call)
    unchanged = reduction is None and state.key_bias is None and policy is None
    if unchanged and (options.must_match_timm or not dispatch.use_fast_path(block, x)):
        return options.call(block, x)
    _check_can_split(block, options.number)
    needs = reduction.needs if reduction is not None else _NOTHING

    def branches(x: Tensor) -> Tensor:
        x, evidence = options.call(attention_branch, block, x, state.key_bias, policy, needs)
        if reduction is not None:
            x = reduction.reduce(x, evidence, state)
        return options.call(mlp_branch, block, x)

    return with_hooks(block, branches, x)


def _check_can_split(block: Any, index: int) -> None:
    if not dispatch.can_split(block):
        raise ClcaError(
            f"block {index} has become a {type(block).__name__}, inside which no tokens can be reduced: wrap the "
            "whole model, or shard by torch.distributed.fsdp.fully_shard, which leaves a block what it is"
        )
    if is_replaced(block) or is_replaced(block.attn):
        warnings.warn(
            f"a new forward of block {index} or of its attention is not called: it is reduced inside", stacklevel=2
        )


def _run_selected(
    block: nn.Module, x: Tensor, state: TokenState, reduction: Reduction | None, call: Callable[..., Any]
) -> Tensor:
    """A block whose output is a selection of its tokens: that of the reduction, or CLS alone without one."""
    key_bias = state.key_bias  # of the tokens before the selection, which changes it
    needs, every_query = (_NOTHING, False) if reduction is None else (reduction.needs, reduction.fuses)
    projected = call(project, block, x, key_bias, needs, every_query)
    if reduction is None:
        selection = Selection(torch.zeros(x.shape[0], 1, dtype=torch.long, device=x.device))
    else:
        selection = reduction.select(x.shape[1], projected.evidence, state)
        state.note(selection)
    x = call(attend_selected, block, x, projected, selection, key_bias)
    return call(mlp_branch, block, x)


def attention_branch(
    block: Any,
    x: Tensor,
    key_bias: Tensor | None = None,
    policy: Tensor | None = None,
    needs: Set[str] = frozenset(),
) -> tuple[Tensor, Evidence]:
    """x + attention(norm1(x)) as timm's block runs it, layer scale and stochastic depth included.

    Args:
        block: A block for which `dispatch.can_split` holds.
        x: Tokens, [B, N, C].
        key_bias: Added to the logits of each key, [B, 1, 1, N].
        policy: Masks the softmax as DynamicViT trains with (Rao et al., NeurIPS 2021), [B, N].
        needs: Names of the `Evidence` fields to compute.

    Returns:
        Tokens [B, N, C], and the evidence.
    """
    if policy is None and not needs and dispatch.use_fused_attention_branch(block, x):
        return fused_block.attention_branch(block, x, key_bias), Evidence()
    if isinstance(block, ResPostBlock):
        attended, evidence = attend(cast(Attention, block.attn), x, key_bias, policy, needs)
        return x + block.drop_path1(block.norm1(attended)), evidence
    attended, evidence = attend(block.attn, block.norm1(x), key_bias, policy, needs)
    return x + block.drop_path1(block.ls1(attended)), evidence


@dataclass
class Projected:
    """Keys and values of every token of a block, and the queries where they are known before the selection.

    Attributes:
        x: The input of attention, after the norm, [B, N, C].
        q: Queries [B, H, N, d]; None where they are computed after the selection, or are in `qkv`.
        k, v: Keys and values, [B, H, N, d].
        evidence: What the reduction needs.
        qkv: All three in one tensor, where `fused_block` computed them.
    """

    x: Tensor
    q: Tensor | None
    k: Tensor
    v: Tensor
    evidence: Evidence
    qkv: fused_block.QKV | None = None


def project(block: Any, x: Tensor, key_bias: Tensor | None, needs: Set[str], every_query: bool) -> Projected:
    """The part of attention that comes before a selection, for a block for which `dispatch.use_row_selection` holds.

    Args:
        block: The block.
        x: Tokens, [B, N, C].
        key_bias: Added to the logits of each key, [B, 1, 1, N].
        needs: Names of the `Evidence` fields to compute.
        every_query: Whether all queries are needed; otherwise only that of CLS is computed here, for the evidence.
    """
    if every_query and needs <= {"cls_attention"} and dispatch.use_fused_attention_branch(block, x):
        qkv = fused_block.project(block, x, key_bias)
        _, k, v = qkv.all.unbind(1)
        return Projected(x, None, k, v, Evidence(cls_attention=qkv.cls_attention), qkv)
    attn, x = block.attn, block.norm1(x)
    if every_query:
        q, k, v = _heads(attn, linear(attn.qkv, x), 3)
        q, k = attn.q_norm(q), attn.k_norm(k)
        return Projected(x, q, k, v, _evidence(q, k, v, attn.scale, key_bias, needs))
    k, v = _heads(attn, linear(attn.qkv, x, slice(attn.attn_dim, None)), 2)
    k = attn.k_norm(k)
    # Of the CLS token as a matrix [B, C]: the compiler would specialise one row of a sequence for a batch of one.
    q = _queries(attn, x[:, 0]).unsqueeze(2) if "cls_attention" in needs else k[:, :, :0]
    return Projected(x, None, k, v, _evidence(q, k, v, attn.scale, key_bias, needs))


def attend_selected(
    block: Any, x: Tensor, projected: Projected, selection: Selection, key_bias: Tensor | None = None
) -> Tensor:
    """`selection.of(attention_branch(block, x))` without computing what is not selected.

    Attention rows are computed for the selected tokens alone. Tokens that are fused need theirs too, but as all that
    follows is linear they are fused before the output projection instead of after it.

    Args:
        block: The block.
        x: Tokens before the block, [B, N, C].
        projected: From `project`.
        selection: The tokens that stay; a fused token needs every query in `projected`.
        key_bias: The same as in `project`.

    Returns:
        Tokens [B, M, C].
    """
    attn = block.attn
    qkv = projected.qkv
    if qkv is not None and selection.fused is not None:
        attended, x = fused_block.attend_fused(qkv, selection, key_bias), fused_block.select(x, selection)
    else:
        every = projected.q if qkv is None else qkv.queries()
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


def mlp_branch(block: Any, x: Tensor) -> Tensor:
    """x + mlp(norm2(x)) as timm's block runs it. x: [B, N, C]"""
    if dispatch.use_fused_mlp_branch(block, x):
        return fused_block.mlp_branch(block, x)
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
    """timm's `Attention.forward` with a key bias and evidence, never [B, H, N, N]; see `attention_branch`."""
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
    """Whether tiled attention reads the output of qkv as it is: without norms of queries and keys."""
    return isinstance(attn.q_norm, nn.Identity) and isinstance(attn.k_norm, nn.Identity) and _use_tiles(attn, q)


def _use_tiles(attn: Attention, q: Tensor) -> bool:
    dropout = attn.training and attn.attn_drop.p > 0
    return not dropout and dispatch.use_tiled_attention(q, q.shape[2])


def _attention(attn: Attention, q: Tensor, k: Tensor, v: Tensor, key_bias: Tensor | None) -> Tensor:
    """Attention of queries [B, H, M, d] over keys and values [B, H, N, d]: [B, H, M, d]."""
    if _use_tiles(attn, q):
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
    # Ranks decide which tokens stay: half precision would make ties of tokens that differ.
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
