"""What the demo trains: its sizes, its four methods, and the settings of each run, with the pretraining."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clca.training import TrainConfig

_BACKBONE = "vit_tiny_patch16_224"  # the name of the family; every size is set below


@dataclass(frozen=True)
class Method:
    """One way to train the ViT: name, run folder, token reduction, and whether CLCA is on."""

    name: str
    folder: str
    reduction: str
    clca: bool


METHODS = (
    Method("dense", "dense", "none", False),
    Method("EViT", "evit", "evit", False),
    Method("EViT + CLCA", "evit-clca", "evit", True),
    Method("ToMe + CLCA", "tome-clca", "tome", True),
)


@dataclass(frozen=True)
class DemoSettings:
    """Sizes of the demo. The defaults take one to three minutes on two cores.

    Attributes:
        cultivars, images, difficulty: Of the leaves, as for `clca.data.synthetic.leaves`; a fifth of the images
            is the test split.
        img_size, patch_size, embed_dim, depth, num_heads: Of the ViT.
        keep_rate: Of the three methods that reduce tokens.
        pretraining_images, pretraining_epochs, pretraining_lr: Images per class, epochs and learning rate of the
            dense pretraining, on as many other cultivars.
        epochs, batch_size, lr: Of the four runs; the batch size also of the pretraining.
        timed_images, timed_rounds: Batch size and number of the speed measurements of each model.
        pictured: Number of leaves in the picture.
    """

    cultivars: int = 8
    images: int = 180
    difficulty: float = 0.0
    img_size: int = 64
    patch_size: int = 8
    embed_dim: int = 64
    depth: int = 6
    num_heads: int = 4
    keep_rate: float = 0.25
    pretraining_images: int = 150
    pretraining_epochs: int = 8
    pretraining_lr: float = 2e-3
    epochs: int = 6
    batch_size: int = 16
    lr: float = 1e-3
    timed_images: int = 32
    timed_rounds: int = 15
    pictured: int = 5

    @property
    def leaf_size(self) -> int:
        """Side of the drawn leaves in pixels: the size that the recipe resizes to, so that it need not resize."""
        return round(self.img_size / 0.875)


def pretraining_config(out: Path, seed: int, settings: DemoSettings) -> TrainConfig:
    """The run that pretrains the backbone: dense, with the aggregation head, on leaves of other cultivars."""
    others = (
        f"leaves:cultivars={settings.cultivars},images={settings.pretraining_images},size={settings.leaf_size},"
        f"seed={seed + 1},difficulty={settings.difficulty}"
    )
    return TrainConfig.model_validate(
        {
            **_recipe(seed, settings, settings.pretraining_epochs, settings.pretraining_lr),
            "model": _model(Method("", "", "none", True), settings) | {"clc": False},
            "data": {"root": others, "train_split": "train_val", "val_split": "none"},
            "pretrained": False,
            "out": out,
        }
    )


def method_config(
    method: Method, out: Path, leaves: Path, backbone: Path, seed: int, settings: DemoSettings
) -> TrainConfig:
    """The run of one method; the training settings are the same for all."""
    return TrainConfig.model_validate(
        {
            **_recipe(seed, settings, settings.epochs, settings.lr),
            "model": _model(method, settings),
            "data": {"root": str(leaves), "train_split": "train_val", "val_split": "none"},
            "pretrained": False,
            "weights": str(backbone),
            "out": out,
        }
    )


def _recipe(seed: int, settings: DemoSettings, epochs: int, lr: float) -> dict[str, Any]:
    return {
        "seed": seed,
        "epochs": epochs,
        "warmup_epochs": min(1.0, epochs / 4),
        "cooldown_epochs": 0,
        "lr": lr,
        "batch_size": settings.batch_size,
        "precision": "no",  # bf16 saves nothing at this size
        "device": "cpu",
        "workers": 1,
    }


def _model(method: Method, settings: DemoSettings) -> dict[str, Any]:
    return {
        "backbone": _BACKBONE,
        "img_size": settings.img_size,
        "reduction": method.reduction,
        "keep_rate": settings.keep_rate if method.reduction != "none" else 1.0,
        "cla": method.clca,
        "clc": method.clca,
        "backbone_kwargs": {
            "patch_size": settings.patch_size,
            "embed_dim": settings.embed_dim,
            "depth": settings.depth,
            "num_heads": settings.num_heads,
            "weight_init": "jax",  # timm's default is scaled for wider models
        },
    }
