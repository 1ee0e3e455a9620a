"""Study folders with invented numbers, for tests of the report: finished, failed, interrupted and missing runs."""

from __future__ import annotations

import csv
import hashlib
import itertools
import json
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

COST = {"none": 1.0, 1.0: 1.0, 0.7: 0.64, 0.5: 0.49, 0.25: 0.36, 0.1: 0.32}
LIFT = {"none": 0.13, "evit": 0.17, "topk": 0.15, "tome": 0.10, "ats": 0.12, "dpcknn": 0.14, "dynamicvit": 0.16,
        "patchmerger": 0.20, "sit": -0.01}  # fmt: skip
ARMS = {"base": (False, False), "cla": (True, False), "clc": (False, True), "clca": (True, True)}
TEXT = ("run", "name", "state", "error", "data", "split", "backbone", "reduction", "arm", "device", "precision", "host",
        "clca", "torch", "timm", "finished_at")  # fmt: skip


def make_study(
    folder: Path,
    *,
    data: Sequence[str] = ("leaves",),
    backbones: Sequence[str] = ("deit_tiny_patch16_224",),
    reductions: Sequence[str] = ("none", "evit", "tome"),
    keep_rates: Sequence[float] = (0.7, 0.5, 0.25, 0.1),
    arms: Sequence[str] = ("base", "clca"),
    sizes: Sequence[int] = (64, 96),
    seeds: Sequence[int] = (0, 1, 2),
    failed: Sequence[int] = (),
    interrupted: Sequence[int] = (),
    missing: Sequence[int] = (),
    error: str = "the loss is not finite at step 12 (epoch 2)",
    versions: Sequence[str] = ("0.1",),
    metrics: bool = True,
    steps: int = 40,
    name: str = "made-up",
) -> Path:
    """Write a study whose runs in the order of the grid are finished but for the given places.

    Args:
        folder: Made anew.
        failed, interrupted, missing: Places in the grid (negative ones from its end).
        versions: Of clca, in turn.
        metrics: Write each run's metrics.jsonl too.
    """
    grid = [
        labels
        for labels in itertools.product(data, backbones, reductions, keep_rates, arms, sizes, seeds)
        if labels[2] != "none" or labels[3] == keep_rates[0]
    ]
    axes = {"data": data, "model": backbones, "reduction": reductions, "keep_rate": keep_rates, "arm": arms,
            "img_size": sizes}  # fmt: skip
    folder.mkdir(parents=True)
    (folder / "study.json").write_text(
        json.dumps(
            {"format": "clca-study-1", "name": name, "about": "Invented numbers.", "seeds": list(seeds),
             "axes": {key: [str(label) for label in labels] for key, labels in axes.items()}, "total": len(grid)}
        )
    )  # fmt: skip
    (folder / "runs").mkdir()
    places = {kind: {place % max(1, len(grid)) for place in given}
              for kind, given in (("failed", failed), ("interrupted", interrupted), ("missing", missing))}  # fmt: skip
    rows = []
    for place, (dataset, backbone, reduction, rate, arm, size, seed) in enumerate(grid):
        if place in places["missing"]:
            continue
        state = next((kind for kind in ("failed", "interrupted") if place in places[kind]), "finished")
        rate = 1.0 if reduction == "none" else rate
        row = _row(dataset, backbone, reduction, rate, arm, size, seed)
        row |= {"state": state, "error": error if state == "failed" else None, "clca": versions[place % len(versions)]}
        row |= {f"axis.{key}": str(label) for key, label in zip(axes, grid[place], strict=False)}
        if state != "finished":
            row |= {key: None if key == "finished_at" else math.nan for key in (*_MEASURED, "finished_at")}
        rows.append(row)
        _write_run(folder / "runs" / row["name"], row, steps if metrics else 0)
    frame = pd.DataFrame(rows, columns=list(rows[0]) if rows else list(_row("a", "b", "none", 1.0, "base", 64, 0)))
    frame.to_parquet(folder / "results.parquet")
    return folder


_MEASURED = ("top1", "top5", "macro", "loss", "train_loss", "train_top1", "gmacs", "computed_gmacs", "params",
             "images_per_second", "train_seconds", "seconds", "epochs", "steps", "grad_max", "grad_median")  # fmt: skip


def _row(dataset: str, backbone: str, reduction: str, rate: float, arm: str, size: int, seed: int) -> dict[str, Any]:
    identity = hashlib.sha256(repr((dataset, backbone, reduction, rate, arm, size, seed)).encode()).hexdigest()[:16]
    dice = random.Random(identity)
    steady = random.Random(repr((dataset, backbone)))
    hard = {"cotton80": 0.42, "soygene": 0.55, "soylocal": 0.30}.get(dataset, 0.6) + steady.uniform(-0.06, 0.06)
    cla, clc = ARMS[arm]
    lift = LIFT[reduction] * (0.8 * cla + 0.2 * cla * clc - 0.1 * (clc and not cla))
    top1 = hard - 0.07 * (1 - rate) ** 2 + lift + 0.02 * math.log2(size / 64) + dice.gauss(0, 0.012)
    top1 = min(0.99, max(0.01, round(top1 * 240) / 240))
    gmacs = 78.5 * (size / 448) ** 2 * COST[rate] * (1.03 if clc else 1.0) * (1 + 0.02 * (LIFT[reduction]))
    spike = {"base": 6.0, "cla": 2.0, "clc": 3.0, "clca": 1.0}[arm] * dice.lognormvariate(0, 0.3)
    return {
        "run": identity,
        "name": f"{dataset}-{backbone}-{reduction}-{rate:g}-{arm}-{size}px-s{seed}-{identity[:8]}".replace("/", "_"),
        "state": "finished", "error": None, "data": dataset, "split": "test", "backbone": backbone,
        "reduction": reduction, "keep_rate": rate, "img_size": size, "arm": arm, "num_clr": 1 if clc else 0,
        "clc_gap": clc, "clc_recover_at_last": clc, "cla_width": 2, "seed": seed, "top1": top1,
        "top5": min(1.0, top1 + 0.2), "macro": top1 * 0.98, "loss": 2.4 * (1 - top1), "train_loss": 0.3,
        "train_top1": 0.95, "gmacs": gmacs, "computed_gmacs": gmacs, "params": 5.5e6,
        "images_per_second": 9000 / gmacs**0.8 * dice.uniform(0.9, 1.1), "train_seconds": 31.0, "seconds": 40.0,
        "epochs": 20.0, "steps": 400.0, "grad_max": 2 * spike, "grad_median": spike, "device": "cpu",
        "precision": "no", "threads": 1, "host": "a", "clca": "0.1", "torch": "2.9.0", "timm": "1.0.31",
        "finished_at": f"2025-11-22T12:{dice.randrange(60):02d}:00+00:00",
    }  # fmt: skip


def _described(row: dict[str, Any]) -> dict[str, Any]:
    left_out = {*_MEASURED, "finished_at", "state", "error", "name"}
    return {key: value for key, value in row.items() if key not in left_out}


def _write_run(folder: Path, row: dict[str, Any], steps: int) -> None:
    folder.mkdir()
    kept = {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in row.items()}
    (folder / "run.json").write_text(json.dumps({"format": "clca-run-1", "name": row["name"], "row": _described(row)}))
    (folder / "log.txt").write_text("began\n")
    if row["state"] == "finished":
        (folder / "result.json").write_text(json.dumps(kept))
    if row["state"] == "failed":
        (folder / "failure.json").write_text(
            json.dumps({"error": row["error"], "traceback": f"Traceback …\nWorkError: {row['error']}", "attempt": 1,
                        "host": "a", "time": "2025-11-22T12:00:00+00:00"})
        )  # fmt: skip
    if steps:
        make_run(folder / "run", row, steps=steps, finished=row["state"] == "finished")


def make_run(
    folder: Path, row: dict[str, Any] | None = None, *, steps: int = 40, finished: bool = True, classes: int = 0
) -> Path:
    """Write the folder of one run, as `clca train` and `clca evaluate` do.

    Args:
        folder: Made anew.
        row: Its row of a study's table; invented if omitted.
        steps: Lines of metrics.jsonl.
        finished: With a summary and an evaluation.
        classes: With that many in classes.csv and confusion.csv.
    """
    row = row or _row("leaves", "deit_tiny_patch16_224", "evit", 0.5, "clca", 64, 0)
    dice = random.Random(row["run"])
    folder.mkdir(parents=True)
    model = {"backbone": row["backbone"], "reduction": row["reduction"], "keep_rate": row["keep_rate"],
             "img_size": row["img_size"], "cla": "cla" in row["arm"], "clc": row["arm"] in ("clc", "clca"),
             "num_classes": max(2, classes)}  # fmt: skip
    train = {"model": model, "data": {"root": row["data"], "source": None}, "seed": row["seed"], "epochs": 4,
             "lr": 1e-3, "batch_size": 32}  # fmt: skip
    versions = {"clca": row["clca"], "torch": row["torch"], "timm": row["timm"]}
    (folder / "config.json").write_text(json.dumps({"format": "clca-1", "train": train, "versions": versions}))
    lines: list[dict[str, Any]] = []
    high = {"base": 6.0, "cla": 2.0, "clc": 3.0, "clca": 1.0}[row["arm"]]
    for step in range(1, steps + 1):
        share = step / steps
        lines.append(
            {"step": step, "epoch": 1 + int(3.999 * (step - 1) / steps), "loss": 3 * math.exp(-2 * share) + 0.1,
             "lr": 1e-3 * math.sin(math.pi * share) + 1e-6, "accuracy": share * 0.9, "images_per_second": 100.0,
             "grad_max": None if step == 3 else high * dice.lognormvariate(0, 0.5) * (0.3 + math.exp(-3 * share))}
        )  # fmt: skip
        if step % max(1, steps // 4) == 0:
            numbers = {"loss": 3 * math.exp(-2 * share) + 0.3, "top1": 0.8 * share}
            lines.append({"epoch": len([line for line in lines if "train" in line]) + 1, "step": step,
                          "train": numbers, "val": numbers | {"top5": 0.9, "macro": 0.7}})  # fmt: skip
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if not finished:
        return folder
    (folder / "summary.json").write_text(
        json.dumps({"epochs": 4, "steps": steps, "kept": "best on val", "kept_epoch": 4, "seconds": 31.5,
                    "train": {"loss": 0.3, "top1": 0.95}, "watched": {"loss": 0.9, "top1": 0.8, "top5": 0.9}})
    )  # fmt: skip
    evaluation = folder / "evaluation" / "test"
    evaluation.mkdir(parents=True)
    numbers = {key: row[key] for key in ("data", "split", "top1", "top5", "macro", "loss", "gmacs", "params",
                                         "keep_rate", "images_per_second", "device", "precision")}  # fmt: skip
    numbers |= {"images": 10 * classes, "tokens_per_block": [17, 17, 17, 9, 9, 9, 5, 5, 5, 3, 3, 3]}
    (evaluation / "evaluation.json").write_text(json.dumps(numbers))
    if classes:
        _write_classes(evaluation, classes, dice)
    return folder


def _write_classes(folder: Path, classes: int, dice: random.Random) -> None:
    names = ["a <b> & 'c'", *(f"cultivar {k:02d}" for k in range(2, classes + 1))]
    confusion = [[0] * classes for _ in names]
    for true in range(classes):
        for _ in range(10):
            confusion[true][true if dice.random() < 0.7 else dice.randrange(classes)] += 1
    with open(folder / "classes.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["class", "images", "precision", "recall", "f1"])
        for place, label in enumerate(names):
            right = confusion[place][place] / 10
            precision = confusion[place][place] / max(1, sum(line[place] for line in confusion))
            f1 = 2 * right * precision / max(1e-9, right + precision)
            writer.writerow([label, 10, f"{precision:.6f}", f"{right:.6f}", f"{f1:.6f}"])
    with open(folder / "confusion.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["true \\ predicted", *names])
        writer.writerows([label, *line] for label, line in zip(names, confusion, strict=True))
