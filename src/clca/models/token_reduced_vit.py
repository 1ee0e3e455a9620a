"""One model for every backbone, reduction, cache and head setting: embed → blocks (reduce, cache) → head."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, cast

import torch
from timm.layers import PatchEmbed, resample_abs_pos_embed
from timm.layers.patch_dropout import PatchDropout, patch_dropout_forward
from timm.models import VisionTransformer
from timm.models._manipulate import checkpoint
from timm.models.vision_transformer import global_pool_nlc
from torch import Tensor, nn

from clca.errors import ClcaError
from clca.kernels.dispatch import can_split
from clca.kernels.linear import embed_patches
from clca.models.backbones import check_fits, check_img_size
from clca.models.block import BlockOptions, run_block
from clca.models.confidence import Confidences
from clca.models.config import ModelConfig, validated
from clca.models.cross_layer import AggregationHead, CrossLayerAggregationHead, CrossLayerCache, LinearAggregationHead
from clca.models.pooling import pool_padded
from clca.models.rate_statistics import RateStatistics, apply_loaded
from clca.models.saving import SavingMixin
from clca.models.timm_interface import PREFIX_TOKENS, TimmInterface
from clca.models.trace import Trace, first_owner
from clca.reductions import Evidence, KeepSchedule, Reduction, TokenState, reduction_class


class TokenReducedViT(SavingMixin, TimmInterface):
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
        opaque_block = next((_describe(block) for block in vit.blocks if not can_split(block)), None)
        self.depth = len(vit.blocks)
        resolved = config.resolved(self.depth, global_pool=vit.global_pool, opaque_block=opaque_block)
        self.config = config.model_copy(update={"locations": resolved.locations})
        self.locations, self.recover_at = resolved.locations, resolved.recover_at
        self.aggregate_at: tuple[int, ...] = (*self.locations, self.depth - 1) if config.cla else ()
        self.average_before = self.locations[0] if config.cla and config.cla_average else None
        self.classes: list[str] | None = None
        self.preprocess: dict[str, Any] | None = None
        self.confidence: Confidences | None = None  # set it to None if you change weights
        self.auxiliary_loss: Tensor = torch.zeros(())
        self.grad_checkpointing = False
        self.economical = True  # False: also compute what is never read, as the published program does
        self.bit_exact = True  # timm's bits where nothing is reduced and no module is on; False: fast kernels there too
        self.num_clr = resolved.num_clr
        self._init_embedding(vit, config.img_size)
        self.blocks = vit.blocks
        self._init_clr()
        self._init_reductions()
        self._init_head(vit)
        self.rate_statistics: RateStatistics | None = None
        if self.cla_head is not None and config.keep_rates is not None:
            self.rate_statistics = RateStatistics(config.keep_rates, self.cla_head)
            self.register_load_state_dict_post_hook(apply_loaded)

    # -- construction ------------------------------------------------------------------------------------------

    def _init_embedding(self, vit: VisionTransformer, img_size: int | tuple[int, int] | None) -> None:
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

    def _init_clr(self) -> None:
        self.clr: nn.Parameter | None = None
        self.clr_pos_embed: nn.Parameter | None = None
        if not self.num_clr:
            return
        cls_token = cast(Tensor, self.cls_token)
        self.clr = nn.Parameter(cls_token.detach().clone().repeat(1, self.num_clr, 1))  # each starts as a copy of CLS
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

    def _init_head(self, vit: VisionTransformer) -> None:
        config = self.config
        self.num_classes = config.num_classes
        self.global_pool: str = vit.global_pool
        self.cla_head: AggregationHead | None = None
        if config.cla:
            if dropped := getattr(vit.head_drop, "p", 0.0):
                warnings.warn(
                    f"the aggregation head has no dropout, as published: drop_rate={dropped} has no effect",
                    stacklevel=3,
                )
            depths = len(self.aggregate_at) + (self.average_before is not None)
            head = (
                LinearAggregationHead(self.embed_dim, depths, config.num_classes)
                if config.cla_head == "linear"
                else CrossLayerAggregationHead(self.embed_dim, depths, config.num_classes, config.cla_width)
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
        """The keep rate, or one a location; can be set for every reduction whose parameters do not depend on it.

        In a model with `keep_rates` the aggregation head then has the statistics of that rate; in training mode a
        forward pass at one of `keep_rates` updates those.
        """
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
        self._schedule = KeepSchedule(config.keep_rate, len(config.resolved(self.depth).locations))
        self.config = config
        self.use_rate_statistics()

    def use_rate_statistics(self) -> None:
        """Let the aggregation head normalise by the stored statistics of the keep rate in use.

        Setting `keep_rate`, `eval()` and `load_state_dict` do this. Only a model with `keep_rates` has statistics for
        several rates; nothing happens for any other.
        """
        if self.rate_statistics is not None:
            self.rate_statistics.apply_to(cast(nn.Module, self.cla_head), self.keep_rate)

    def train(self, mode: bool = True) -> TokenReducedViT:
        """Set training or evaluation mode; in evaluation the head has the statistics of the keep rate in use."""
        super().train(mode)
        if not mode:
            self.use_rate_statistics()
        return self

    @property
    def pads(self) -> bool:
        """Whether the reduction pads a batch (ATS): how many tokens are left then depends on the image."""
        return any(cast(Reduction, reduction).pads for reduction in self.reductions)

    # -- forward -----------------------------------------------------------------------------------------------

    def forward(self, x: Tensor) -> Tensor:
        """Images [B, 3, H, W] to logits [B, K]; sets `auxiliary_loss`, which training adds to the loss."""
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """Images to the input of the head.

        Args:
            x: Images, [B, 3, H, W].

        Returns:
            With CLA the CLS tokens after every location and the last block, [B, G, C], with `cla_average` after the
            average of the patches; without it the tokens after the final norm, [B, N, C], where the padding of ATS is
            zero.
        """
        return self._features(x, None)

    def forward_trace(self, x: Tensor) -> tuple[Tensor, Trace]:
        """Like `forward`, and also returns which token holds each patch after each block. Images: [B, 3, H, W]."""
        trace = Trace()
        return self.forward_head(self._features(x, trace)), trace

    def _features(self, x: Tensor, trace: Trace | None) -> Tensor:
        """Embedding, blocks with reduction and cache, and from them what the head reads."""
        x, state = self._embed(x, tracing=trace is not None)
        cache = None
        if self.recover_at:
            cache = CrossLayerCache(
                recover_at=self.recover_at, num_clr=self.num_clr, gap=self.config.clc_gap, num_tokens=x.shape[1]
            )
        if len(self.reductions):
            # Once per forward pass: it prepares the state, which the reductions of all locations share.
            cast(Reduction, self.reductions[0]).begin(x, state)
        read_by_head = []
        for i, block in enumerate(self.blocks):
            num_tokens = x.shape[1]
            if i == self.average_before:
                read_by_head.append(x[:, self.num_prefix_tokens : num_tokens - self.num_clr].mean(dim=1))
            x = self._run_block(i, block, x, state)  # the block and its reduction
            if trace is not None:
                # With CLA the last block may put out CLS alone: record the length of its input.
                trace.record(num_tokens if self._only_cls_is_read_after(i) else x.shape[1], state)
            if cache is not None:
                x = cache.recover_and_store(i, x, state)
            if i in self.aggregate_at:
                read_by_head.append(x[:, 0])
        self.auxiliary_loss = torch.stack(state.losses).mean() if state.losses else x.new_zeros(())
        if self.cla_head is not None:
            return torch.stack(read_by_head, dim=1)
        x = self.norm(x)
        return x if state.valid is None else torch.where(state.valid.unsqueeze(-1), x, x.new_zeros(()))

    def _embed(self, x: Tensor, *, tracing: bool) -> tuple[Tensor, TokenState]:
        """Prefix, patches and carriers (CLR) with their position embedding, [B, N, C], and the state of the tokens."""
        self._check_images(x)
        x = self.patch_embed(x) if self._must_match_timm else embed_patches(self.patch_embed, x)
        pos_embed = self._position_table(x)
        if self.dynamic_img_size:
            x = x.flatten(1, 2)
        batch, num_patches = x.shape[:2]
        if pos_embed is not None and self.no_embed_class:  # a table of patches only
            x, pos_embed = x + pos_embed, None
        prefix = [getattr(self, name).expand(batch, -1, -1) for name in PREFIX_TOKENS if hasattr(self, name)]
        clr = [] if self.clr is None else [self.clr.expand(batch, -1, -1)]
        x = torch.cat([*prefix, x, *clr], dim=1)  # once: it is the longest sequence of all
        if pos_embed is not None:
            x = x + pos_embed
        if self.pos_embed is not None:
            x = self.pos_drop(x)
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

    def _check_images(self, x: Tensor) -> None:
        if x.ndim != 4:
            raise ClcaError(
                f"expected images [B, {self.in_chans}, H, W], got {list(x.shape)}; "
                f"{'add a batch dimension' if x.ndim == 3 else 'pass a batch of images'}"
            )
        if self.dynamic_img_size:
            if type(self.patch_embed) is PatchEmbed and not self.patch_embed.dynamic_img_pad:
                check_img_size(self.config.backbone, (x.shape[-2], x.shape[-1]), self.patch_embed)
        elif tuple(x.shape[-2:]) != tuple(self.patch_embed.img_size):
            raise ClcaError(
                f"images of {x.shape[-2]}×{x.shape[-1]} pixels given to a model for "
                f"{self.patch_embed.img_size[0]}×{self.patch_embed.img_size[1]}: resize them, or call set_input_size"
            )

    def _position_table(self, patches: Tensor) -> Tensor | None:
        """The position table for patches [B, N, C] or [B, H, W, C], with the carriers' rows; None without one."""
        table: Tensor | None = self.pos_embed
        if table is None:
            return None
        if self.dynamic_img_size:
            table = resample_abs_pos_embed(
                table,
                new_size=list(patches.shape[1:3]),
                old_size=self.patch_embed.grid_size,
                num_prefix_tokens=0 if self.no_embed_class else self.num_prefix_tokens,
            )
        return table if self.clr_pos_embed is None else torch.cat([table, self.clr_pos_embed], dim=1)

    def _drop_patches(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """timm's patch dropout over the patch tokens only; also the patches kept, [B, M]."""
        drop = self.patch_drop
        if not isinstance(drop, PatchDropout):
            return x, None
        end = x.shape[1] - self.num_clr
        kept_x, kept = patch_dropout_forward(x[:, :end], drop.prob, drop.num_prefix_tokens, drop.ordered, self.training)
        return torch.cat([kept_x, x[:, end:]], dim=1), kept

    def _run_block(self, index: int, block: nn.Module, x: Tensor, state: TokenState) -> Tensor:
        """A block and its reduction, before the block or inside it. [B, N, C] to [B, M, C]"""
        reduction = self._reduction_at(index)
        if reduction is not None and reduction.place == "before":
            x = reduction.reduce(x, Evidence(), state)
            reduction = None  # it is done: nothing is left to reduce inside the block
        elif reduction is not None and reduction.keeps_all(x.shape[1], state):
            reduction = None
        options = BlockOptions(
            number=index,
            only_cls=self._only_cls_is_read_after(index),
            economical=self.economical,
            must_match_timm=self._must_match_timm,
            call=self._checkpointed,
        )
        return run_block(block, x, state, reduction, options)

    def _reduction_at(self, index: int) -> Reduction | None:
        if index not in self.locations or not len(self.reductions):
            return None
        return cast(Reduction, self.reductions[self.locations.index(index)])

    @property
    def _must_match_timm(self) -> bool:
        """Whether the output must be timm's to the last bit: without head, cache and reduction, if `bit_exact` asks it.

        Also where the model is not `economical`: timm's own modules then run wherever they can.
        """
        reduces = len(self.reductions) > 0 and any(rate < 1 for rate in self._schedule.rates)
        changes = self.cla_head is not None or bool(self.recover_at) or reduces
        return not self.economical or (self.bit_exact and not changes)

    def _only_cls_is_read_after(self, index: int) -> bool:
        return self.cla_head is not None and index == self.depth - 1

    def _checkpointed(self, function: Callable[..., Any], *args: Any) -> Any:
        """`function(*args)`, with gradient checkpointing where that is on."""
        if self.grad_checkpointing and self.training and torch.is_grad_enabled():
            # Reentrant checkpointing would lose the gradient of tensors that are returned inside another object.
            return checkpoint(function, *args, use_reentrant=False)
        return function(*args)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Features as `forward_features` returns them to logits [B, K], or to what the classifier reads."""
        if self.cla_head is not None:
            x = self.cla_head(x, pre_logits=pre_logits)
            if self.rate_statistics is not None and self.cla_head.training:
                self.rate_statistics.update(self.cla_head, self.keep_rate)
            return x
        if hasattr(self, "head_dist"):
            cls, dist = self.head_drop(x[:, 0]), self.head_drop(x[:, 1])
            return (cls + dist) / 2 if pre_logits else (self.head(cls) + self.head_dist(dist)) / 2
        x = self.head_drop(self.fc_norm(self._pool(x)))
        return x if pre_logits else self.head(x)

    def _pool(self, x: Tensor) -> Tensor:
        if self.pads and self.global_pool not in ("", "token"):
            x = x if self.pool_include_prefix else x[:, self.num_prefix_tokens :]
            return pool_padded(x, self.global_pool, self.attn_pool)
        if self.attn_pool is not None:
            return self.attn_pool(x if self.pool_include_prefix else x[:, self.num_prefix_tokens :])
        return global_pool_nlc(x, self.global_pool, self.num_prefix_tokens, self.pool_include_prefix)

    # -- compilation and storage -----------------------------------------------------------------------------

    @torch.jit.ignore
    def compile(self, **options: Any) -> None:
        """Compile this model in place, without graph breaks and for every batch size; the first call takes long.

        Args:
            options: Passed to `torch.compile`, such as `mode="reduce-overhead"`.
        """
        from clca.models.compile import compiled_call

        self._compiled_call_impl = compiled_call(self, **options)

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
