"""What timm's own tools ask of a model, and what they find in a `TokenReducedViT`."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from clca.backbones import has_fc_norm
from clca.config import ModelConfig, validated
from clca.cross_layer import CrossLayerAggregationHead
from clca.errors import ClcaError

PREFIX_TOKENS = ("cls_token", "dist_token", "reg_token")  # in the order of the sequence


class TimmContract(nn.Module):
    """The part of a `TokenReducedViT` that timm's scripts, optimisers and schedulers know by name."""

    config: ModelConfig
    locations: tuple[int, ...]
    classes: list[str] | None
    embed_dim: int
    num_classes: int
    global_pool: str
    pretrained_cfg: Any
    patch_embed: Any
    head: nn.Module
    attn_pool: nn.Module | None
    cla_head: CrossLayerAggregationHead | None
    grad_checkpointing: bool

    @property
    def _like(self) -> Tensor:
        """A parameter whose device and type new ones take."""
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
        """A new classifier for `num_classes` classes; 0 leaves it out, and the model then puts out features."""
        self.config = validated(**self.config.model_dump() | {"num_classes": num_classes})
        self.num_classes = self.config.num_classes
        self.classes = None
        if self.cla_head is not None:
            if global_pool not in (None, self.global_pool):
                raise ClcaError("the aggregation head does not pool: global_pool cannot be set with cla=True")
            self.cla_head.reset(num_classes)
            return
        if global_pool is not None and global_pool != self.global_pool:
            known = ("", "token", "avg", "avgmax", "max")
            if global_pool not in known or self.attn_pool is not None or hasattr(self, "head_dist"):
                raise ClcaError(f"global_pool={global_pool!r}: this backbone pools by {self.global_pool!r}")
            self.global_pool = global_pool
            # Which of the two norms there is depends on the pool when a model is made, and does not change here.
            kwargs = self.config.backbone_kwargs | {"global_pool": global_pool, "fc_norm": has_fc_norm(self)}
            self.config = self.config.model_copy(update={"backbone_kwargs": kwargs})
        for name in ("head", "head_dist"):
            if hasattr(self, name):
                new = nn.Linear(self.embed_dim, num_classes) if num_classes > 0 else nn.Identity()
                setattr(self, name, new.to(device=self._like.device, dtype=self._like.dtype))

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
