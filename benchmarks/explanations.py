"""Validates explanations: evidence on the details that distinguish the classes, and deletion and insertion scores.

    clca demo demo
    python benchmarks/explanations.py demo/dense demo/evit demo/evit-clca demo/tome-clca

For every run and map (the evidence of `clca.explain`, the CLS attention summed over its depths, random) it prints

- on detail: the share of the map on the veins and margin of synthetic leaves, the share of the area that these cover,
  and their difference with a 95 % bootstrap interval over the images. A map that merely finds the leaf would also
  exceed chance, so "in the leaf" compares only patches that contain some detail;
- deletion, insertion: areas under the curves of the predicted probability (Petsiuk et al., 2018) as patches are deleted
  or inserted in the order of the map; lower and higher are better. A deleted patch gets the mean colour, which is also
  the baseline of the evidence. New random orders are drawn for every image; intervals are of the difference from them.

The map "shuffled" is the evidence of the same model with the entries of every weight in random order (Adebayo et al.,
NeurIPS 2018): its gain comes from the contrast of the image, not from what the model has learned.

The images have the size and difficulty of the run's own set, or those of `--leaves`.
"""

from __future__ import annotations

import copy
import json
import platform
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import timm
import torch
import tyro
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

import clca
from clca.data.synthetic.leaves import DrawnLeaves
from clca.errors import ClcaError
from clca.explain import curves, detail_share, explain
from clca.explain.explaining import integrated_gradients, to_input

_RANDOM_ORDERS = 4
_BOOTSTRAPS = 2000


@dataclass
class Settings:
    """Runs and images to measure."""

    runs: tyro.conf.Positional[list[Path]]
    """Run folders trained on synthetic leaves."""
    leaves: str = ""
    """Leaves to explain, as "leaves:cultivars=8,images=180,size=73"; by default those that the run was trained on."""
    images: int = 100
    """Number of images, drawn at random from the test split."""
    seed: int = 0
    out: Path | None = None
    """JSON file for the results."""


@dataclass(frozen=True)
class Measured:
    """Scores of one map of one image."""

    on_detail: float
    chance: float
    inside: float
    inside_chance: float
    deletion: float
    insertion: float


def main() -> None:
    settings = tyro.cli(Settings, description=__doc__)
    console = Console(width=190)
    print(f"{platform.machine()}, torch {torch.__version__}, timm {timm.__version__}, clca {clca.__version__}")
    table = Table("run", "images", "map", "on detail", "area", "− area", "in the leaf", "deletion",
                  "− random", "insertion", "− random")  # fmt: skip
    results = []
    for run in settings.runs:
        found = _measure(run, settings)
        random = found["random"]
        for name, rows in found.items():
            on, area = _mean(rows, "on_detail"), _mean(rows, "chance")
            numbers = {
                "on_detail": on,
                "area": area,
                "difference": _interval([row.on_detail - row.chance for row in rows]),
                "inside_difference": _interval([row.inside - row.inside_chance for row in rows]),
                "deletion": _mean(rows, "deletion"),
                "deletion_difference": _interval(_paired(rows, random, "deletion")),
                "insertion": _mean(rows, "insertion"),
                "insertion_difference": _interval(_paired(rows, random, "insertion")),
            }
            results.append({"run": run.name, "images": len(rows), "map": name, **numbers})
            table.add_row(
                run.name, str(len(rows)), name, f"{on:.1%}", f"{area:.1%}", _with_interval(numbers["difference"], 100),
                _with_interval(numbers["inside_difference"], 100), f"{numbers['deletion']:.3f}",
                _with_interval(numbers["deletion_difference"]), f"{numbers['insertion']:.3f}",
                _with_interval(numbers["insertion_difference"]),
            )  # fmt: skip
    console.print(table)
    if settings.out is not None:
        settings.out.write_text(json.dumps(results, indent=2) + "\n")


def _measure(run: Path, settings: Settings) -> dict[str, list[Measured]]:
    model = clca.from_pretrained(run).eval()
    leaves = DrawnLeaves.from_text(settings.leaves or _leaves_of(run), split="test")
    if leaves.classes != model.classes:
        raise ClcaError(f"{run}: its classes differ from those of the leaves: pass the --leaves it was trained on")
    draw = np.random.default_rng(settings.seed)
    found: dict[str, list[Measured]] = {"evidence": [], "shuffled": [], "attention": [], "random": []}
    shuffled = _shuffled(model, settings.seed)
    for index in draw.permutation(len(leaves))[: settings.images].tolist():
        image = leaves.image(index)
        explanation = explain(model, image)
        pixels, detail = to_input(model, image), explanation.view.share_of(leaves.detail_mask(index))
        target = (model.classes or []).index(explanation.target)

        def measure(
            values: NDArray[np.float64],
            pixels: torch.Tensor = pixels,
            detail: NDArray[np.float64] = detail,
            target: int = target,
        ) -> Measured:
            leaf = detail > 0
            curve = curves(model, pixels, np.argsort(-values, kind="stable"), target)
            return Measured(
                *detail_share(values, detail),
                *detail_share(np.where(leaf, values, 0)[leaf], detail[leaf]),
                curve.deletion,
                curve.insertion,
            )

        found["evidence"].append(measure(explanation.evidence))
        found["shuffled"].append(measure(integrated_gradients(shuffled, pixels, target)))
        found["attention"].append(measure(sum(depth.patches for depth in explanation.attention)))
        drawn = [measure(draw.random(len(detail))) for _ in range(_RANDOM_ORDERS)]
        fields = Measured.__dataclass_fields__
        found["random"].append(Measured(*(float(np.mean([getattr(row, name) for row in drawn])) for name in fields)))
    return found


@torch.no_grad()
def _shuffled(model: clca.TokenReducedViT, seed: int) -> clca.TokenReducedViT:
    """The model with the entries of each of its weights in random order."""
    other, draw = copy.deepcopy(model), torch.Generator().manual_seed(seed)
    for parameter in other.parameters():
        order = torch.randperm(parameter.numel(), generator=draw)
        parameter.copy_(parameter.flatten()[order].view_as(parameter))
    return other


def _leaves_of(run: Path) -> str:
    """The leaves that a run was trained on, from its settings."""
    root = json.loads((run / "config.json").read_text())["train"]["data"]["root"]
    if root.startswith("leaves"):
        return root
    try:
        made = json.loads((Path(root) / "leaves.json").read_text())
    except OSError:
        raise ClcaError(f"{run}: its synthetic training leaves are not available: pass --leaves") from None
    return "leaves:" + ",".join(f"{name}={value}" for name, value in made.items() if name != "format")


def _mean(rows: list[Measured], name: str) -> float:
    return float(np.nanmean([getattr(row, name) for row in rows]))


def _paired(rows: list[Measured], others: list[Measured], name: str) -> list[float]:
    return [getattr(row, name) - getattr(other, name) for row, other in zip(rows, others, strict=True)]


def _interval(values: list[float]) -> tuple[float, float, float]:
    """Mean, and the 95 % bootstrap interval of it."""
    known = np.array([value for value in values if not np.isnan(value)])
    draws = np.random.default_rng(0).choice(known, (_BOOTSTRAPS, len(known))).mean(axis=1)
    low, high = np.quantile(draws, [0.025, 0.975])
    return float(known.mean()), float(low), float(high)


def _with_interval(interval: tuple[float, float, float], times: float = 1) -> str:
    mean, low, high = (times * value for value in interval)
    digits = 1 if times > 1 else 3
    return f"{mean:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"


if __name__ == "__main__":
    main()
