"""The methods and attributes that timm's tools expect of a model, for `TokenReducedViT`."""

from __future__ import annotations

import copy
from typing import Any, NoReturn, cast

import torch
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from clca.errors import ClcaError
from clca.models.backbones import check_img_size, has_fc_norm
from clca.models.config import ModelConfig, validated
from clca.models.cross_layer import AggregationHead
from clca.reductions import reduction_class

_POOLS = ("", "token", "avg", "avgmax", "max")
_NO_MAPS = (
    "{} is not supported: reduced tokens form no feature map; forward_trace(images) returns which token holds each "
    "patch, and a forward hook on model.blocks[i] gets the tokens of that block"
)
PREFIX_TOKENS = ("cls_token", "dist_token", "reg_token")  # in the order of the sequence


class TimmInterface(nn.Module):
    """The part of a `TokenReducedViT` that timm's scripts, optimizers and schedulers use by name."""

    config: ModelConfig
    locations: tuple[int, ...]
    classes: list[str] | None
    preprocess: dict[str, Any] | None
    embed_dim: int
    num_prefix_tokens: int
    no_embed_class: bool
    num_clr: int
    clr: nn.Parameter | None
    num_classes: int
    global_pool: str
    pretrained_cfg: Any
    patch_embed: Any
    pos_embed: nn.Parameter | None
    _traits: dict[str, Any]
    head: nn.Module
    attn_pool: nn.Module | None
    cla_head: AggregationHead | None
    average_before: int | None
    aggregate_at: tuple[int, ...]
    confidence: Any
    grad_checkpointing: bool

    @property
    def _like(self) -> Tensor:
        """A parameter whose device and dtype new ones copy."""
        return cast(Tensor, self.cls_token)

    @property
    def default_cfg(self) -> Any:
        """timm's description of the pretrained weights: input size, mean, deviation."""
        return self.pretrained_cfg

    def get_classifier(self) -> nn.Module | tuple[nn.Module, nn.Module]:
        """The last layer; for distilled DeiT without CLA both heads."""
        if self.cla_head is not None:
            return self.cla_head.classifier
        return cast(Any, (self.head, self.head_dist)) if hasattr(self, "head_dist") else self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new classifier for `num_classes` classes; 0 for none, so that the model returns features."""
        config = validated(**self.config.model_dump() | {"num_classes": num_classes})
        another = global_pool is not None and global_pool != self.global_pool
        if another and self.cla_head is not None:
            raise ClcaError("the aggregation head does not pool: global_pool cannot be set with cla=True")
        if another and (global_pool not in _POOLS or self.attn_pool is not None or hasattr(self, "head_dist")):
            raise ClcaError(f"global_pool={global_pool!r}: this backbone pools by {self.global_pool!r}")
        self.config, self.num_classes, self.classes = config, config.num_classes, None
        self.confidence = None
        if self.cla_head is not None:
            self.cla_head.reset(num_classes)
            return
        if global_pool is not None and another:
            self.global_pool = global_pool
            # Which of the two norms there is depends on the pool when a model is made, and does not change here.
            kwargs = self.config.backbone_kwargs | {"global_pool": global_pool, "fc_norm": has_fc_norm(self)}
            self.config = self.config.model_copy(update={"backbone_kwargs": kwargs})
        for name in ("head", "head_dist"):
            if hasattr(self, name):
                new = nn.Linear(self.embed_dim, num_classes) if num_classes > 0 else nn.Identity()
                setattr(self, name, new.to(device=self._like.device, dtype=self._like.dtype))

    def set_input_size(self, img_size: int | tuple[int, int]) -> None:
        """Take images of another size from now on. The position table is resampled, nothing is trained.

        This replaces the parameter of the table: create the optimizer afterwards. A square `preprocess` is updated.

        Args:
            img_size: Height and width in pixels, or one number for both.

        Raises:
            ClcaError: If patches do not tile such images, or the reduction has parameters for the patches of one size.
        """
        config = validated(**self.config.model_dump() | {"img_size": img_size})
        height, width = _sides(config.img_size)
        if (height, width) == tuple(self.patch_embed.img_size):
            return
        check_img_size(config.backbone, (height, width), self.patch_embed)
        cls = reduction_class(config.reduction)
        if cls is not None and cls.fixed_counts:
            raise ClcaError(
                f"the parameters of {config.reduction} are for the patches of {self.patch_embed.img_size[0]}×"
                f"{self.patch_embed.img_size[1]} pixels: make and train a new model with img_size={img_size}"
            )
        self._resize_embedding((height, width))
        self.config, self.confidence = config, None
        if self.preprocess is not None and height == width and {"img_size", "resize"} <= set(self.preprocess):
            resize = round(self.preprocess["resize"] * height / self.preprocess["img_size"])
            self.preprocess = self.preprocess | {"img_size": height, "resize": resize}

    def _resize_embedding(self, size: tuple[int, int]) -> None:
        """New patch embedding and position table for another image size; the backbone keeps the old ones."""
        old_grid = self.patch_embed.grid_size
        self.patch_embed = copy.copy(self.patch_embed)  # shares the projection, has its own sizes
        self.patch_embed.set_input_size(img_size=size)
        self._traits["img_size"] = tuple(self.patch_embed.img_size)
        if self.pos_embed is None:
            return
        table = resample_abs_pos_embed(
            self.pos_embed.detach(),
            new_size=list(self.patch_embed.grid_size),
            old_size=list(old_grid),
            num_prefix_tokens=0 if self.no_embed_class else self.num_prefix_tokens,
        )
        self.pos_embed = nn.Parameter(table, requires_grad=self.pos_embed.requires_grad)

    def forward_intermediates(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Not supported: raises `ClcaError` with an alternative, as reduced tokens form no feature map."""
        raise ClcaError(_NO_MAPS.format("forward_intermediates()"))

    def get_intermediate_layers(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Not supported: raises `ClcaError` with an alternative, as reduced tokens form no feature map."""
        raise ClcaError(_NO_MAPS.format("get_intermediate_layers()"))

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Names of parameters of more than one dimension that weight decay leaves alone."""
        return {"pos_embed", "clr", "clr_pos_embed", *PREFIX_TOKENS}

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns that group parameters by depth, for layer-wise learning rates."""
        at_location = [(rf"^reductions\.{j}\.", (block,)) for j, block in enumerate(self.locations)]
        return {
            "stem": r"^cls_token|dist_token|reg_token|clr|pos_embed|patch_embed|norm_pre",
            "blocks": [(r"^blocks\.(\d+)", None), *at_location, (r"^norm|attn_pool|fc_norm", (99999,))],
        }

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute activations in the backward pass instead of keeping them."""
        self.grad_checkpointing = enable
        if hasattr(self.patch_embed, "set_grad_checkpointing"):
            self.patch_embed.set_grad_checkpointing(enable)


def _sides(img_size: int | tuple[int, int] | None) -> tuple[int, int]:
    if img_size is None:
        raise ClcaError("img_size = None: give the height and width in pixels, or one number for both")
    return (img_size, img_size) if isinstance(img_size, int) else img_size
