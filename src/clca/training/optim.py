"""AdamW's parameter groups and the learning rate of every step."""

from typing import Literal

import torch
from timm.optim import create_optimizer_v2, param_groups_layer_decay, param_groups_weight_decay
from timm.scheduler import CosineLRScheduler

from clca.errors import ClcaError
from clca.models.token_reduced_vit import TokenReducedViT
from clca.training.config import TrainConfig

HEAD = ("head.", "head_dist.", "cla_head.")
NEW = (*HEAD, "clr", "reductions.")
_AFTER_THE_BLOCKS = ("norm", "fc_norm", "attn_pool", "head", "head_dist", "cla_head", "reductions")


def freeze_backbone(model: TokenReducedViT) -> None:
    """Freeze all parameters but those without pretrained weights: head, carrier tokens, modules of the reductions."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(NEW))


def freeze_blocks(model: TokenReducedViT, blocks: int | Literal["unreduced"]) -> None:
    """Freeze the embedding with its tokens, carriers included, and the first blocks; only the rest has a backward pass.

    Args:
        model: The model.
        blocks: How many; "unreduced" for those before the first reduction location.

    Raises:
        ClcaError: The model has no more blocks than that.
    """
    count = min(model.locations, default=0) if blocks == "unreduced" else blocks
    if count >= model.depth:
        raise ClcaError(f"--freeze-blocks {count}: {model.config.backbone} has {model.depth} blocks, and none is left")
    for name, parameter in model.named_parameters():
        part, number, *_ = [*name.split("."), ""]
        if int(number) < count if part == "blocks" else part not in _AFTER_THE_BLOCKS:
            parameter.requires_grad_(False)


def parameter_groups(model: TokenReducedViT, config: TrainConfig) -> list[dict]:
    """timm's parameter groups, with layer decay if set; the head in separate groups if its learning rate differs."""
    no_decay = model.no_weight_decay()
    if config.layer_decay is not None:
        groups = param_groups_layer_decay(
            model, config.weight_decay, no_weight_decay_list=no_decay, layer_decay=config.layer_decay
        )
    else:
        groups = param_groups_weight_decay(model, config.weight_decay, no_weight_decay_list=no_decay)
    if config.head_lr_scale == 1.0:
        return groups
    head = {id(parameter) for name, parameter in model.named_parameters() if name.startswith(HEAD)}
    split = []
    for group in groups:
        for inside in (False, True):
            chosen = [parameter for parameter in group["params"] if (id(parameter) in head) is inside]
            if chosen:
                scale = group.get("lr_scale", 1.0) * (config.head_lr_scale if inside else 1.0)
                split.append({**group, "params": chosen, "lr_scale": scale})
    return split


def make_optimizer(model: TokenReducedViT, config: TrainConfig) -> torch.optim.Optimizer:
    return create_optimizer_v2(
        parameter_groups(model, config), opt="adamw", lr=config.lr, weight_decay=config.weight_decay
    )


def make_schedule(optimizer: torch.optim.Optimizer, config: TrainConfig, steps_per_epoch: int) -> CosineLRScheduler:
    """The learning rate as a function of the update: warm-up, then the whole cosine, then `min_lr`.

    The published recipe has 2 epochs of warm-up, then a cosine over 45, then 5 epochs of cooldown: 52 in all. The rate
    changes with every update; once per epoch would make the warm-up two steps.
    """
    total = config.epochs * steps_per_epoch
    warmup = round(config.warmup * steps_per_epoch)
    cosine = max(1, total - warmup - round(config.cooldown * steps_per_epoch))
    return CosineLRScheduler(
        optimizer,
        t_initial=cosine,
        lr_min=config.min_lr,
        warmup_t=warmup,
        warmup_lr_init=config.warmup_lr,
        warmup_prefix=True,
        t_in_epochs=False,
    )
