"""Runs `clca demo` for several seeds, each with other cultivars, and prints the mean and spread of each method.

    python benchmarks/demo_seeds.py OUT --seeds 0 1 2

It writes OUT/demo_seeds.json; a seed that has been run is only read again.
"""

from __future__ import annotations

import json
import platform
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

import timm
import torch
import tyro
from rich.console import Console
from rich.table import Table

from clca.demo.recipe import METHODS
from clca.demo.run import run


@dataclass
class Settings:
    """Seeds to run."""

    out: tyro.conf.Positional[Path]
    """Folder for the demos, one each."""
    seeds: tuple[int, ...] = (0, 1, 2)


def main(settings: Settings) -> None:
    print(f"{platform.machine()}, torch {torch.__version__}, timm {timm.__version__}")
    results, seconds = [], []
    for seed in settings.seeds:
        began = time.monotonic()
        results.append(run(settings.out / f"seed-{seed}", seed))
        seconds.append(time.monotonic() - began)
    table = Table("top-1, %", *(f"seed {seed}" for seed in settings.seeds), "mean ± standard deviation", "minus dense")
    numbers = {}
    for place, method in enumerate(METHODS):
        found = [100 * result.rows[place].top1 for result in results]
        less = mean(100 * (result.rows[place].top1 - result.rows[0].top1) for result in results)
        spread = stdev(found) if len(found) > 1 else 0.0
        table.add_row(method.name, *(f"{v:.1f}" for v in found), f"{mean(found):.1f} ± {spread:.1f}", f"{less:+.1f}")
        numbers[method.name] = found
    Console().print(table)
    print("seconds:", *(f"{value:.0f}" for value in seconds))
    written = {"seeds": settings.seeds, "top1": numbers, "seconds": seconds}
    (settings.out / "demo_seeds.json").write_text(json.dumps(written, indent=2) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
