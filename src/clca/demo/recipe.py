"""What the demo trains: its sizes, its four methods, and the settings of each run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from clca.models.leaf_encoder import clca_leaf_tiny
from clca.training import TrainConfig


@dataclass(frozen=True)
class Method:
    """One way to use the encoder: name, run folder, token reduction, and whether CLCA is on."""

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
    """Sizes of the demo. The defaults take one to two minutes on two cores.

    Attributes:
        cultivars, images, difficulty: Of the leaves, as for `clca.data.synthetic.leaves`; a fifth of the images
            is the test split.
        img_size: Pixels that the models see.
        keep_rate: Of the three methods that reduce tokens.
        batch_size: Of the pass through the frozen model.
        timed_images, timed_rounds: Batch size and number of the speed measurements of each model.
        pictured: Number of leaves in the picture.
    """

    cultivars: int = 12
    images: int = 75
    difficulty: float = 0.7
    img_size: int = 160
    keep_rate: float = 0.1
    batch_size: int = 32
    timed_images: int = 16
    timed_rounds: int = 9
    pictured: int = 5

    @property
    def leaf_size(self) -> int:
        """Side of the drawn leaves in pixels: the size that the recipe resizes to, so that it need not resize."""
        return round(self.img_size / 0.875)


def method_config(method: Method, out: Path, leaves: Path, seed: int, settings: DemoSettings) -> TrainConfig:
    """The run of one method: the recipe quick, from the encoder that comes with the library."""
    return TrainConfig.model_validate(
        {
            "recipe": "quick",
            "model": {
                "backbone": clca_leaf_tiny.__name__,
                "img_size": settings.img_size,
                "reduction": method.reduction,
                "keep_rate": settings.keep_rate if method.reduction != "none" else 1.0,
                "cla": method.clca,
                "clc": method.clca,
                "cla_average": False,  # CLCA as published
            },
            "data": {"root": str(leaves), "train_split": "train_val", "val_split": "none"},
            "batch_size": settings.batch_size,
            "probe_views": 1,  # for time
            "seed": seed,
            "precision": "no",  # so that the figures do not depend on the processor's fast types
            "device": "cpu",
            "workers": 1,
            "out": out,
        }
    )
