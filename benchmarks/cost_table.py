"""GMACs of ViT-B/16 with 80 classes by keep rate, image size and modules: the table of the README.

python benchmarks/cost_table.py [--reduction evit] [--backbone deit_base_patch16_224]
"""

from dataclasses import dataclass

import tyro
from rich.console import Console
from rich.table import Table

import clca

RATES = (1.0, 0.7, 0.5, 0.25, 0.1)


@dataclass
class Settings:
    """The model whose operations are counted."""

    backbone: str = "deit_base_patch16_224"
    reduction: str = "evit"
    num_classes: int = 80


def main() -> None:
    settings = tyro.cli(Settings, description=__doc__)
    table = Table("", *(f"{rate:g}" for rate in RATES), title=f"GMACs, {settings.backbone}, {settings.reduction}")
    for size in (448, 224):
        for arm, on in (("base", False), ("CLCA", True)):
            models = (
                clca.create_model(
                    settings.backbone,
                    num_classes=settings.num_classes,
                    img_size=size,
                    reduction=settings.reduction,
                    keep_rate=rate,
                    cla=on,
                    clc=on,
                )
                for rate in RATES
            )
            table.add_row(f"{arm}, {size} px", *(f"{clca.cost(model).gmacs:.2f}" for model in models))
    Console().print(table)


if __name__ == "__main__":
    main()
