"""Compares precisions: one run in PyTorch in float32 and bfloat16, and in ONNX Runtime in float32 and int8.

    python benchmarks/precisions.py RUN [DATA] --out precisions.json

exports the run twice, evaluates all four on the same images (those of the run, or of DATA), and times them alternately
on one batch. It prints a table; the JSON file also contains machine, versions and command.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from rich.console import Console
from rich.table import Table
from torch.utils.data import ConcatDataset, DataLoader

import clca
from clca import data
from clca.data.transforms import from_preprocess
from clca.export import load_exported
from clca.export.onnx_file import build_onnx, save_onnx
from clca.kernels.prepack import prepacked
from clca.system.timing import Spread, command, interleaved, machine, versions
from clca.training.preflight import same_classes
from clca.training.run_folder import RunFolder


@dataclass
class Comparison:
    """Run, images and timing."""

    run: tyro.conf.Positional[str]
    """Run folder."""
    data: tyro.conf.Positional[str | None] = None
    """Images of the same classes to use instead of the run's own."""
    splits: tuple[str, ...] = ("test",)
    """Splits of the images; with `train val test`, predictions are compared on all images."""
    batches: tuple[int, ...] = (1, 8)
    """Batch sizes to time."""
    rounds: int = 15
    """Number of timings of each."""
    threads: int | None = None
    """Number of threads; by default one per core."""
    out: Path | None = None
    """JSON file to write."""


def main(args: Comparison) -> None:
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    model = clca.from_pretrained(args.run)
    own = RunFolder(args.run).config.data
    sets = []
    for split in args.splits:
        images = data.open(args.data or own.root, split, source=own.source if args.data is None else None)
        same_classes(model.classes or [], images.classes, f"{args.data or own.root}: {split}", "the run")
        images.transform = from_preprocess(model.preprocess or {})
        sets.append(images)
    with prepacked(model), tempfile.TemporaryDirectory() as folder:
        proto = build_onnx(model)
        files = {name: Path(folder, f"{name}.onnx") for name in ("ONNX float32", "ONNX int8")}
        for name, file in files.items():
            save_onnx(model, proto, file, int8="int8" in name)
        sizes = {name: file.stat().st_size for name, file in files.items()}
        candidates: dict[str, Any] = {"PyTorch float32": torch.inference_mode()(model)}
        candidates["PyTorch bfloat16"] = torch.autocast("cpu", torch.bfloat16)(candidates["PyTorch float32"])
        candidates |= {name: load_exported(file, threads=torch.get_num_threads()) for name, file in files.items()}
        answers, labels = classify(candidates, sets, model.classes or [])
        speed = {batch: time(candidates, sets[-1], batch, args.rounds) for batch in args.batches}
    reference = answers["PyTorch float32"]
    rows = [
        {
            "name": name,
            "top1": (answers[name] == labels).float().mean().item(),
            "same_class": (answers[name] == reference).float().mean().item(),
            "bytes": sizes.get(name),
            "images_per_second": {batch: asdict(speed[batch][name]) for batch in args.batches},
        }
        for name in candidates
    ]
    show(
        rows,
        f"{len(labels)} images ({', '.join(args.splits)}), {model.config.reduction} at {model.keep_rate}",
        args.batches,
    )
    if args.out is not None:
        found = {"images": len(labels), "config": json.loads(model.config.model_dump_json()), "rows": rows}
        about = {"machine": machine(), "versions": versions(), "command": command()}
        args.out.write_text(json.dumps(found | about, indent=2) + "\n")


def classify(
    candidates: dict[str, Any], sets: list[Any], classes: list[str]
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """The class that each candidate predicts for every image, and the true class, as indices into `classes`."""
    found: dict[str, list[torch.Tensor]] = {name: [] for name in candidates}
    for batch, _ in DataLoader(ConcatDataset(sets), 16):
        for name, compute in candidates.items():
            found[name].append(compute(batch).argmax(dim=1))
    labels = torch.tensor([classes.index(images.classes[label]) for images in sets for label in images.labels])
    return {name: torch.cat(parts) for name, parts in found.items()}, labels


def time(candidates: dict[str, Any], images: Any, batch: int, rounds: int) -> dict[str, Spread]:
    """Images per second of each candidate."""
    x = torch.stack([images[i % len(images)][0] for i in range(batch)])
    times = interleaved({name: lambda f=compute: f(x) for name, compute in candidates.items()}, rounds, warmup=2)
    return {name: Spread.of([batch / seconds for seconds in each]) for name, each in times.items()}


def show(rows: list[dict[str, Any]], title: str, batches: tuple[int, ...]) -> None:
    table = Table(title=title, title_justify="left")
    for heading in ("", "top-1", "same class", "MB", *(f"images/s, batch {batch} (p10–p90)" for batch in batches)):
        table.add_column(heading, justify="right" if heading else "left")
    for row in rows:
        size = "" if row["bytes"] is None else f"{row['bytes'] / 1e6:.1f}"
        speeds = [row["images_per_second"][batch] for batch in batches]
        rates = [f"{s['median']:.1f} ({s['p10']:.1f}–{s['p90']:.1f})" for s in speeds]
        table.add_row(row["name"], f"{row['top1']:.1%}", f"{row['same_class']:.1%}", size, *rates)
    Console().print(table)


if __name__ == "__main__":
    main(tyro.cli(Comparison, description=__doc__))
