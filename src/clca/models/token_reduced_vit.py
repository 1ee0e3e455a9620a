"""One model for every backbone, reduction, cache and head setting: embed → blocks (reduce, cache) → head."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from timm.layers import PatchEmbed, resample_abs_pos_embed
from timm.layers.patch_dropout import PatchDropout, patch_dropout_forward
from timm.models import VisionTransformer
from timm.models._manipulate import checkpoint
from timm.models.vision_transformer import global_pool_nlc
from torch import Tensor, nn

from clca.errors import ClcaError
from clca.kernels.linear import embed_patches
from clca.kernels.module_hooks import is_replaced, with_hooks
from clca.models.backbones import check_fits, check_img_size
from clca.models.block import attend_selected, attention_half, faster_here, mlp_half, project, selects_rows, splits
from clca.models.config import ModelConfig, validated
from clca.models.cross_layer import CrossLayerAggregationHead, CrossLayerCache
from clca.models.pooling import pool_padded
from clca.models.timm_interface import PREFIX_TOKENS, TimmContract
from clca.models.trace import Trace, first_owner
from clca.reductions import Evidence, KeepSchedule, Reduction, Selection, TokenState, reduction_class

_NOTHING: frozenset[str] = frozenset()


class TokenReducedViT(TimmContract):
    """A timm VisionTransformer with token reduction and Cross-Layer Cache Aggregation.

    Parameters and modules of the backbone are shared with it under timm's own names; the backbone itself is not
    changed. With CLA its final norm and head are left out. Source of the method: Rios et al., ICASSP 2025.

    Args:
        vit: The backbone.
        config: Settings; `locations=None` becomes a quarter, half and three quarters of the depth.

    Raises:
        ClcaError: If the backbone does not fit, or the settings do not fit the backbone.
    """

    def __init__(self, vit: VisionTransformer, config: ModelConfig) -> None:
        super().__init__()
        check_fits(vit, config.backbone)
        opaque = next((_describe(block) for block in vit.blocks if not splits(block)), None)
        self.depth = len(vit.blocks)
        resolved = config.resolved(self.depth, global_pool=vit.global_pool, opaque_block=opaque)
        self.config = config.model_copy(update={"locations": resolved.locations})
        self.locations, self.recover_at = resolved.locations, resolved.recover_at
        self.classes: list[str] | None = None
        self.preprocess: dict[str, Any] | None = None
        self.auxiliary_loss: Tensor = torch.zeros(())
        self.grad_checkpointing = False
        self.economical = True  # False computes also what nothing reads, as the published program does
        self.num_clr = resolved.num_clr
        self._adopt_embedding(vit, config.img_size)
        self.blocks = vit.blocks
        self._init_carriers()
        self._init_reductions()
        self._adopt_head(vit)

    # -- construction ------------------------------------------------------------------------------------------

    def _adopt_embedding(self, vit: VisionTransformer, img_size: int | tuple[int, int] | None) -> None:
        self.embed_dim: int = vit.embed_dim
        self.num_prefix_tokens: int = vit.num_prefix_tokens
        self.no_embed_class: bool = vit.no_embed_class
        self.dynamic_img_size: bool = vit.dynamic_img_size
        self.pool_include_prefix: bool = vit.pool_include_prefix
        self.in_chans: int = vit.in_chans
        self.feature_info = vit.feature_info
        self.pretrained_cfg = getattr(vit, "pretrained_cfg", {})
        self._traits = dict(getattr(vit, "_traits", {}))
        for name in PREFIX_TOKENS:
            if getattr(vit, name, None) is not None:
                setattr(self, name, getattr(vit, name))
        self.pos_embed = vit.pos_embed
        self.patch_embed, self.pos_drop = vit.patch_embed, vit.pos_drop
        self.patch_drop, self.norm_pre = vit.patch_drop, vit.norm_pre
        size = (img_size, img_size) if isinstance(img_size, int) else img_size
        if size is not None and tuple(size) != tuple(vit.patch_embed.img_size):
            check_img_size(self.config.backbone, size, vit.patch_embed)
            self._resize_embedding(size)
        self._traits["img_size"] = tuple(self.patch_embed.img_size)

    def _init_carriers(self) -> None:
        self.clr: nn.Parameter | None = None
        self.clr_pos_embed: nn.Parameter | None = None
        if not self.num_clr:
            return
        self.clr = nn.Parameter(self._like.detach().clone().repeat(1, self.num_clr, 1))
        if self.pos_embed is not None and not self.no_embed_class:
            self.clr_pos_embed = nn.Parameter(torch.randn_like(self.clr) * 0.02)

    def _init_reductions(self) -> None:
        config, cls = self.config, reduction_class(self.config.reduction)
        count = len(self.locations)
        self._schedule = KeepSchedule(config.keep_rate, count)
        if cls is None:
            self.reductions = nn.ModuleList()
            _warn_if_ignored(config.keep_rate)
            return
        self.reductions = nn.ModuleList(
            cls(self.embed_dim, j, count, self.patch_embed.num_patches, self._schedule) for j in range(count)
        ).to(device=self._like.device, dtype=self._like.dtype)

    def _adopt_head(self, vit: VisionTransformer) -> None:
        config = self.config
        self.num_classes = config.num_classes
        self.global_pool: str = vit.global_pool
        self.cla_head: CrossLayerAggregationHead | None = None
        if config.cla:
            if dropped := getattr(vit.head_drop, "p", 0.0):
                warnings.warn(
                    f"the aggregation head has no dropout, as published: drop_rate={dropped} has no effect",
                    stacklevel=3,
                )
            head = CrossLayerAggregationHead(
                self.embed_dim, len(self.locations) + 1, config.num_classes, config.cla_width
            )
            self.cla_head = head.to(device=self._like.device, dtype=self._like.dtype)
            self.num_features = self.head_hidden_size = head.num_features
            return
        self.num_features = self.head_hidden_size = self.embed_dim
        self.norm, self.fc_norm, self.head_drop = vit.norm, vit.fc_norm, vit.head_drop
        self.attn_pool: nn.Module | None = vit.attn_pool
        self.head = vit.head
        if getattr(vit, "distilled_training", False):
            raise ClcaError(f"{config.backbone}: distilled training needs two outputs, and this model gives their mean")
        if hasattr(vit, "head_dist"):
            self.head_dist = cast(nn.Module, vit.head_dist)
        if config.num_classes != vit.num_classes:
            self.reset_classifier(config.num_classes)

    # -- settings at run time ----------------------------------------------------------------------------------

    @property
    def keep_rate(self) -> float | tuple[float, ...]:
        """The keep rate, or one a location; can be set for every reduction whose parameters do not depend on it."""
        return self.config.keep_rate

    @keep_rate.setter
    def keep_rate(self, rate: float | tuple[float, ...] | list[float]) -> None:
        fields = self.config.model_dump() | {"keep_rate": tuple(rate) if isinstance(rate, list) else rate}
        config = validated(**fields)
        if config.keep_rate == self.config.keep_rate:
            return
        cls = reduction_class(config.reduction)
        if cls is None:
            _warn_if_ignored(config.keep_rate)
        elif cls.fixed_counts:
            raise ClcaError(
                f"the parameters of {config.reduction} depend on the keep rate: make a new model for {rate} "
                "(topk, evit, tome, ats, dynamicvit and dpcknn can change it at run time)"
            )
        locations = config.resolved(self.depth).locations
        self._schedule = KeepSchedule(config.keep_rate, len(locations))
        self.config = config

    @property
    def _pads(self) -> bool:
        return any(cast(Reduction, reduction).pads for reduction in self.reductions)

    # -- forward -----------------------------------------------------------------------------------------------

    def forward(self, x: Tensor) -> Tensor:
        """Images [B, 3, H, W] to logits [B, K]; what the reduction adds to the loss is then `auxiliary_loss`."""
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """Images to what the head reads.

        Args:
            x: Images, [B, 3, H, W].

        Returns:
            With CLA the CLS tokens after every location and the last block, [B, G, C]; without it the tokens after
            the final norm, [B, N, C], where the padding of ATS is zero.
        """
        return self._features(x, None)

    def forward_trace(self, x: Tensor) -> tuple[Tensor, Trace]:
        """Like `forward`, and says which token holds each patch after each block. Images: [B, 3, H, W]."""
        trace = Trace()
        return self.forward_head(self._features(x, trace)), trace

    def _features(self, x: Tensor, trace: Trace | None) -> Tensor:
        x, state = self._embed(x, trace is not None)
        cache = CrossLayerCache(self.recover_at, self.num_clr, self.config.clc_gap, x.shape[1])
        if len(self.reductions):
            cast(Reduction, self.reductions[0]).begin(x, state)
        cls_tokens = []
        for i, block in enumerate(self.blocks):
            tokens = x.shape[1]
            x = self._run_block(i, block, x, state)
            if trace is not None:
                trace.record(tokens if self._only_cls_is_read_after(i) else x.shape[1], state)
            if self.recover_at:
                x = cache.after_block(i, x, state)
            if self.cla_head is not None and (i in self.locations or i == len(self.blocks) - 1):
                cls_tokens.append(x[:, 0])
        self.auxiliary_loss = torch.stack(state.losses).mean() if state.losses else x.new_zeros(())
        if self.cla_head is not None:
            return torch.stack(cls_tokens, dim=1)
        x = self.norm(x)
        return x if state.valid is None else torch.where(state.valid.unsqueeze(-1), x, x.new_zeros(()))

    def _embed(self, x: Tensor, tracing: bool) -> tuple[Tensor, TokenState]:
        """Patch and position embedding, prefix and carriers (METHOD section 1). [B, N, C]"""
        if x.ndim != 4:
            raise ClcaError(f"images are [B, {self.in_chans}, H, W], and these {list(x.shape)}: give a batch")
        if self.dynamic_img_size:
            if type(self.patch_embed) is PatchEmbed and not self.patch_embed.dynamic_img_pad:
                check_img_size(self.config.backbone, (x.shape[-2], x.shape[-1]), self.patch_embed)
        elif tuple(x.shape[-2:]) != tuple(self.patch_embed.img_size):
            raise ClcaError(
                f"images of {x.shape[-2]}×{x.shape[-1]} pixels given to a model for "
                f"{self.patch_embed.img_size[0]}×{self.patch_embed.img_size[1]}: resize them, or call set_input_size"
            )
        x = embed_patches(self.patch_embed, x) if self._has_own_rounding else self.patch_embed(x)
        pos_embed: Tensor | None = self.pos_embed
        if self.dynamic_img_size:
            _, height, width, _ = x.shape
            if pos_embed is not None:
                pos_embed = resample_abs_pos_embed(
                    pos_embed,
                    new_size=[height, width],
                    old_size=self.patch_embed.grid_size,
                    num_prefix_tokens=0 if self.no_embed_class else self.num_prefix_tokens,
                )
            x = x.flatten(1, 2)
        batch, num_patches = x.shape[:2]
        prefix = [getattr(self, name).expand(batch, -1, -1) for name in PREFIX_TOKENS if hasattr(self, name)]
        suffix: list[Tensor] = []
        if pos_embed is not None and self.no_embed_class:
            x = x + pos_embed
        if self.clr is not None:
            suffix = [self.clr.expand(batch, -1, -1)]
            if self.clr_pos_embed is not None:
                pos_embed = torch.cat([cast(Tensor, pos_embed), self.clr_pos_embed], dim=1)
        x = torch.cat([*prefix, x, *suffix], dim=1)  # once: it is the longest sequence of all
        if pos_embed is not None:
            x = self.pos_drop(x if self.no_embed_class else x + pos_embed)
        x, kept = self._drop_patches(x)
        state = TokenState(
            prefix=self.num_prefix_tokens,
            num_patches=num_patches,
            schedule=self._schedule,
            appended=self.num_clr,
            cache_on=self.config.clc,
            training=self.training,
        )
        if tracing:
            state.owner = first_owner(batch, num_patches, kept, self.num_prefix_tokens, x.device)
        return self.norm_pre(x), state

    def _drop_patches(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """timm's patch dropout over the patch tokens only; also the patches kept, [B, M]."""
        drop = self.patch_drop
        if not isinstance(drop, PatchDropout):
            return x, None
        end = x.shape[1] - self.num_clr
        kept_x, kept = patch_dropout_forward(x[:, :end], drop.prob, drop.num_prefix_tokens, drop.ordered, self.training)
        return torch.cat([kept_x, x[:, end:]], dim=1), kept

    def _run_block(self, index: int, block: nn.Module, x: Tensor, state: TokenState) -> Tensor:
        reduction: Reduction | None = None
        if index in self.locations and len(self.reductions):
            reduction = cast(Reduction, self.reductions[self.locations.index(index)])
            if reduction.place == "before":
                x = reduction.reduce(x, Evidence(), state)
                reduction = None
            elif reduction.keeps_all(x.shape[1], state):
                reduction = None
        policy = state.policy if state.masked else None
        if self.economical and policy is None:
            if reduction is not None and reduction.selects and selects_rows(block, reduction.fuses):
                return self._select(block, x, reduction, state)
            if self._only_cls_is_read_after(index) and selects_rows(block, fuses=False):
                return self._select(block, x, None, state)
        plain = reduction is None and state.key_bias is None and policy is None
        if plain and not (self._has_own_rounding and faster_here(block, x)):
            return self._call(block, x)
        if not splits(block):
            raise ClcaError(
                f"block {index} has become a {type(block).__name__}, inside which no tokens can be reduced: wrap the "
                "whole model, or shard by torch.distributed.fsdp.fully_shard, which leaves a block what it is"
            )
        if is_replaced(block) or is_replaced(cast(Any, block).attn):
            warnings.warn(
                f"a new forward of block {index} or of its attention is not called: it is reduced inside", stacklevel=2
            )
        needs = reduction.needs if reduction is not None else _NOTHING

        def halves(x: Tensor) -> Tensor:
            x, evidence = self._call(attention_half, block, x, state.key_bias, policy, needs)
            if reduction is not None:
                x = reduction.reduce(x, evidence, state)
            return self._call(mlp_half, block, x)

        return with_hooks(block, halves, x)

    def _select(self, block: nn.Module, x: Tensor, reduction: Reduction | None, state: TokenState) -> Tensor:
        """A block that puts out a selection of its tokens, by the reduction or without one CLS alone."""
        key_bias = state.key_bias  # of the tokens before the selection, which changes it
        needs, every_query = (_NOTHING, False) if reduction is None else (reduction.needs, reduction.fuses)
        projected = self._call(project, block, x, key_bias, needs, every_query)
        if reduction is None:
            selection = Selection(torch.zeros(x.shape[0], 1, dtype=torch.long, device=x.device))
        else:
            selection = reduction.select(x.shape[1], projected.evidence, state)
            state.note(selection)
        x = self._call(attend_selected, block, x, projected, selection, key_bias)
        return self._call(mlp_half, block, x)

    @property
    def _has_own_rounding(self) -> bool:
        """False where the output must be timm's to the last bit: no module, and nothing reduced."""
        reduces = len(self.reductions) > 0 and any(rate < 1 for rate in self._schedule.rates)
        return self.economical and (self.cla_head is not None or bool(self.recover_at) or reduces)

    def _only_cls_is_read_after(self, index: int) -> bool:
        return self.cla_head is not None and index == len(self.blocks) - 1

    def _call(self, function: Callable[..., Any], *args: Any) -> Any:
        if self.grad_checkpointing and self.training and torch.is_grad_enabled():
            # The reentrant way would cut the gradient of whatever is returned inside of another object.
            return checkpoint(function, *args, use_reentrant=False)
        return function(*args)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Features as `forward_features` returns them to logits [B, K], or to what the classifier reads."""
        if self.cla_head is not None:
            return self.cla_head(x, pre_logits=pre_logits)
        if hasattr(self, "head_dist"):
            cls, dist = self.head_drop(x[:, 0]), self.head_drop(x[:, 1])
            return (cls + dist) / 2 if pre_logits else (self.head(cls) + self.head_dist(dist)) / 2
        x = self.head_drop(self.fc_norm(self._pool(x)))
        return x if pre_logits else self.head(x)

    def _pool(self, x: Tensor) -> Tensor:
        if self._pads and self.global_pool not in ("", "token"):
            x = x if self.pool_include_prefix else x[:, self.num_prefix_tokens :]
            return pool_padded(x, self.global_pool, self.attn_pool)
        if self.attn_pool is not None:
            return self.attn_pool(x if self.pool_include_prefix else x[:, self.num_prefix_tokens :])
        return global_pool_nlc(x, self.global_pool, self.num_prefix_tokens, self.pool_include_prefix)

    # -- compilation and storage -----------------------------------------------------------------------------

    @torch.jit.ignore
    def compile(self, **options: Any) -> None:
        """Compile this model in place, without graph breaks and for every batch size; the first call then takes long.

        Args:
            options: For `torch.compile`, as `mode="reduce-overhead"`.
        """
        from clca.models.compile import compiled_call

        self._compiled_call_impl = compiled_call(self, **options)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `config.json` and `model.safetensors` into the folder; see `clca.from_pretrained`."""
        from clca.models.pretrained import save_pretrained

        save_pretrained(self, folder)

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> str:
        """Upload to the Hugging Face hub what `save_pretrained` writes; returns the address."""
        from clca.models.pretrained import push_to_hub

        return push_to_hub(self, repo_id, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        # A loss that still holds its graph can be neither copied nor sent to another process.
        return super().__getstate__() | {"auxiliary_loss": self.auxiliary_loss.detach()}


def _warn_if_ignored(keep_rate: float | tuple[float, ...]) -> None:
    if keep_rate != 1.0:
        warnings.warn(f"reduction 'none' keeps every token: keep_rate={keep_rate} has no effect", stacklevel=3)


def _describe(block: nn.Module) -> str:
    name = type(block).__name__
    attn = getattr(block, "attn", None)
    return f"a {name} with {type(attn).__name__}" if attn is not None else f"a {name}"
