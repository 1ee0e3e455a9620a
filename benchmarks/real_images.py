"""Fine-tunes one backbone on real leaves and grains: dense, EViT at 25 % and 10 %, each with and without CLCA.

    python benchmarks/real_images.py DATA_FOLDER --weights FILE --out runs/real

makes the runs that docs/real-images.md reports: two sets × three keep rates × base and CLCA × three seeds, at 448 px
with the published recipe. This takes minutes on one large GPU and days on two CPU cores, so select fewer there
(`--sets`, `--keep-rates`, `--seeds`, `--epochs`, `--img-size`). It can be stopped at any time and resumed: finished
runs are not repeated, interrupted ones continue. After every run the table is printed, and written to OUT as JSON and
Markdown. With `--known FILE`, the JSON of an earlier table, its runs are not repeated but included in the new table, so
that the study can be split over several machines. One run does not fill a large GPU: `--jobs` trains several at once.
"""

from __future__ import annotations

import json
import multiprocessing
import platform
import statistics
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
import torch
import tyro
from rich.console import Console
from rich.table import Table

from clca.cli.messages import logging_to_stderr
from clca.evaluation.evaluator import evaluate
from clca.models.config import ModelConfig
from clca.training import TrainConfig, train
from clca.training.config import DataConfig
from clca.training.run_folder import read_config


@dataclass
class Study:
    """Runs and settings."""

    data: tyro.conf.Positional[Path]
    """Folder of the sets, each as {train,val,test}/class/*.jpg."""
    weights: Path
    """Weights of the backbone, with timm's parameter names."""
    out: Path = Path("runs/real")
    """Folder for the run folders and the table."""
    backbone: str = "vit_small_patch14_dinov2"
    label: str = "DINOv2-S, saliency-tuned"
    """Name of the weights in the table."""
    sets: list[str] = field(default_factory=lambda: ["grapevine_leaves5", "rice_bd8"])
    keep_rates: list[float] = field(default_factory=lambda: [1.0, 0.25, 0.1])
    arms: list[str] = field(default_factory=lambda: ["base", "clca"])
    """base, cla, clc or clca."""
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    img_size: int = 448
    epochs: int = 52
    precision: str = "bf16"
    jobs: int = 1
    """Number of runs at once, each in a separate process."""
    workers: int | None = None
    """Reader processes per run."""
    known: Path | None = None
    """JSON of an earlier table of the same image size and epochs."""
    plan: bool = False
    """Only print the number of runs."""
    table: bool = False
    """Only print the table of finished runs."""

    @property
    def identity(self) -> dict[str, object]:
        """Settings that two tables must share to be merged."""
        return {"label": self.label, "img_size": self.img_size, "epochs": self.epochs}

    def known_rows(self) -> list[dict[str, Any]]:
        """Rows of the earlier table.

        Raises:
            SystemExit: If it belongs to another study.
        """
        if self.known is None:
            return []
        found = json.loads(self.known.read_text())
        if found["study"] != self.identity:
            raise SystemExit(f"{self.known}: the table belongs to {found['study']}, not to {self.identity}")
        return found["rows"]


@dataclass(frozen=True)
class Arm:
    """One run of the study."""

    set: str
    keep_rate: float
    name: str
    seed: int

    def config(self, study: Study) -> TrainConfig:
        dense = self.keep_rate == 1.0
        return TrainConfig(
            model=ModelConfig(
                backbone=study.backbone,
                img_size=study.img_size,
                reduction="none" if dense else "evit",
                keep_rate=self.keep_rate,
                cla=self.name in ("cla", "clca"),
                clc=self.name in ("clc", "clca"),
            ),
            data=DataConfig(root=str(study.data / self.set), val_split="none"),
            weights=str(study.weights),
            out=self.folder(study),
            epochs=study.epochs,
            precision=study.precision,  # type: ignore[arg-type]
            seed=self.seed,
            workers=study.workers,
            log_every=1,
        )

    @property
    def key(self) -> tuple[str, float, str, int]:
        """Identifies the run among the rows of a table."""
        return self.set, self.keep_rate, self.name, self.seed

    def folder(self, study: Study) -> Path:
        name = f"{self.set}-{study.img_size}px-{study.epochs}ep-{self.keep_rate:g}-{self.name}-s{self.seed}"
        return study.out / name


def main() -> None:
    study = tyro.cli(Study, description=__doc__)
    console = Console()
    arms = [
        Arm(name, rate, arm, seed)
        for seed in study.seeds
        for name in study.sets
        for rate in sorted(study.keep_rates)
        for arm in study.arms
    ]
    known = [_key(row) for row in study.known_rows()]
    todo = [arm for arm in arms if arm.key not in known]
    if study.plan or study.table:
        console.print(f"{len(todo)} runs to do of {len(arms)}, unless they are in {study.out}")
        if study.table:
            report(study, arms, console)
        return
    if study.jobs > 1:
        several_at_once(study, arms, todo, console)
        return
    for number, arm in enumerate(todo, 1):
        console.rule(f"{number} of {len(todo)}: {arm.folder(study).name}")
        with logging_to_stderr():
            run(study, arm)
        report(study, arms, console)


def run(study: Study, arm: Arm, quiet: bool = False) -> None:
    """Train and evaluate one arm, or resume it."""
    train(arm.config(study), quiet=quiet)
    if not (arm.folder(study) / "evaluation" / "test" / "evaluation.json").is_file():
        evaluate(arm.folder(study), split="test", workers=study.workers)


def several_at_once(study: Study, arms: list[Arm], todo: list[Arm], console: Console) -> None:
    """Run `todo` in separate processes, seed by seed, the longest runs of each seed first."""
    todo = sorted(todo, key=lambda arm: (arm.seed, -arm.keep_rate))
    done = 0
    fresh: Any = multiprocessing.get_context("forkserver")
    fresh.set_forkserver_preload(["timm", "clca.training.trainer", "clca.evaluation.evaluator"])  # loaded once for all
    with ProcessPoolExecutor(study.jobs, fresh, _fork_readers) as pool:
        running = {pool.submit(run, study, arm, True): arm for arm in todo}
        try:
            for finished in as_completed(running):
                finished.result()
                done += 1
                console.print(f"{done} of {len(todo)}: {running[finished].folder(study).name}", soft_wrap=True)
                report(study, arms, console if done == len(todo) else None)
        except BaseException:  # running ones save a checkpoint, or end
            pool.shutdown(cancel_futures=True)
            raise


def _fork_readers() -> None:
    # Otherwise a process of the fork server starts its readers from there too, and each imports all libraries.
    multiprocessing.set_start_method("fork", force=True)


def report(study: Study, arms: list[Arm], console: Console | None) -> None:
    """Print the finished runs, if there is a console, and write them as JSON and Markdown."""
    rows = study.known_rows()
    known = [_key(row) for row in rows]
    for arm in arms:
        summary = arm.folder(study) / "summary.json"
        result = arm.folder(study) / "evaluation" / "test" / "evaluation.json"
        if arm.key not in known and summary.is_file() and result.is_file():
            numbers, trained = json.loads(result.read_text()), json.loads(summary.read_text())
            rows.append(
                {
                    "set": arm.set,
                    "keep_rate": arm.keep_rate,
                    "arm": arm.name,
                    "seed": arm.seed,
                    "precision": read_config(arm.folder(study))["resolved"]["precision"],
                    "top1": 100 * numbers["top1"],
                    "last_train_loss": trained["train"]["loss"],
                    "gmacs": numbers["gmacs"],
                    "minutes": trained["seconds"] / 60,
                }
            )
    rows.sort(key=_key)
    machine = {
        "torch": torch.__version__,
        "timm": timm.__version__,
        "processor": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine(),
        "threads": torch.get_num_threads(),
        "command": " ".join(["python", *sys.argv]),
    }
    table = Table(title=f"{study.label}, {study.img_size} px, {study.epochs} epochs: top-1 % on test")
    lines = ["| set | keep | arm | top-1 % (seeds) | mean ± s.d. | last training loss | GMACs |", "|" + " --- |" * 7]
    for column in ("set", "keep", "arm", "top-1 % by seed", "mean ± s.d.", "train loss", "GMACs"):
        table.add_column(column)
    for key in dict.fromkeys((row["set"], row["keep_rate"], row["arm"]) for row in rows):
        group = [row for row in rows if (row["set"], row["keep_rate"], row["arm"]) == key]
        scores = [row["top1"] for row in group]
        spread = f" ± {statistics.stdev(scores):.1f}" if len(scores) > 1 else ""
        cells = [
            key[0],
            f"{key[1]:g}",
            key[2],
            ", ".join(f"{score:.1f} (s{row['seed']})" for score, row in zip(scores, group, strict=True)),
            f"{statistics.mean(scores):.1f}{spread}",
            f"{statistics.mean(row['last_train_loss'] for row in group):.3f}",
            f"{group[0]['gmacs']:.2f}",
        ]
        table.add_row(*cells)
        lines.append("| " + " | ".join(cells) + " |")
    if console is not None:
        console.print(table)
    study.out.mkdir(parents=True, exist_ok=True)
    stem = study.out / f"table-{study.img_size}px-{study.epochs}ep"
    stem.with_suffix(".md").write_text("\n".join(lines) + "\n")
    stem.with_suffix(".json").write_text(
        json.dumps({"study": study.identity, "machine": machine, "rows": rows}, indent=2) + "\n"
    )


def _key(row: dict[str, Any]) -> tuple[str, float, str, int]:
    return row["set"], row["keep_rate"], row["arm"], row["seed"]


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        raise SystemExit("stopped; run the same command to resume") from None
