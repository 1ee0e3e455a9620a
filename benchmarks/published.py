"""Compares the speed with the authors' published program: EViT + CLCA with the same weights and images.

    git clone https://github.com/arkel23/CLCA PROGRAM
    pip install einops
    python benchmarks/published.py PROGRAM --out published.json

loads `models/evit.py` from the folder of the program, copies its weights to this library with `clca.load_published`,
checks that the outputs of both agree, and times forward passes and training steps of both, and of timm's dense model,
alternately. Weights and images are random; neither changes the amount of work.

Each of the three runs in a separate process, as in practice: how much memory the C library returns and allocates again
in every training step depends on what else the process holds, and affects the time. `--one-process` times all three in
one process, which favours none but is not how they are used; `--keep-freed-memory` makes every process keep freed
memory, as `clca train` does.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import runpy
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import timm
import torch
import tyro
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F

import clca
from clca.system.processes import keep_freed_memory
from clca.system.timing import Spread, command, interleaved, machine, speed_ups, versions

LOCATIONS = [3, 6, 9]
OURS, THEIRS, DENSE = "clca", "published program", "timm, dense"


@dataclass
class Settings:
    """Program, model and timing."""

    program: tyro.conf.Positional[Path]
    """Folder of the published program."""
    model: str = "vit_small_patch16_224"
    """A plain ViT of timm: patches of 16 px, no layer scale."""
    img_size: int = 448
    keep_rates: tuple[float, ...] = (0.1,)
    batch_size: int = 8
    precisions: tuple[str, ...] = ("fp32",)
    """fp32, bf16."""
    rounds: int = 5
    one_process: bool = False
    """Time all in one process."""
    keep_freed_memory: bool = False
    """Keep freed memory in every process."""
    out: Path | None = None
    """JSON file for the results."""


def main() -> None:
    settings = tyro.cli(Settings, description=__doc__)
    _program(settings.program)  # fail here if it is missing, and not in every process
    console, rows = Console(), []
    for precision in settings.precisions:
        for rate in settings.keep_rates:
            for what in ("forward", "training step"):
                times = _times(settings, rate, precision, what)
                faster = speed_ups(times, THEIRS)
                for name in times:
                    milliseconds = Spread.of([1000 * seconds for seconds in times[name]])
                    rows.append(
                        {
                            "work": what,
                            "precision": precision,
                            "keep_rate": rate,
                            "model": name,
                            "milliseconds": asdict(milliseconds),
                            "times_faster": asdict(faster[name]),
                        }
                    )
    table = Table(title=f"{settings.model}, {settings.img_size} px, batch {settings.batch_size}, EViT + CLCA")
    for column in ("work", "precision", "keep", "model", "ms (p10–p90)", "× published (p10–p90)"):
        table.add_column(column, overflow="fold")
    for row in rows:
        cells = [f"{row[key]}" for key in ("work", "precision", "keep_rate", "model")]
        table.add_row(*cells, _spread(row["milliseconds"], 0), _spread(row["times_faster"], 2))
    console.print(table)
    results = {"machine": machine(), "versions": versions(), "command": command(), "rows": rows}
    console.print(results["machine"], results["versions"])
    if settings.out is not None:
        settings.out.write_text(json.dumps(results, indent=2) + "\n")


def _times(settings: Settings, rate: float, precision: str, what: str) -> dict[str, list[float]]:
    """Seconds of each program in each round."""
    with ExitStack() as stack:
        calls: dict[str, Callable[[], Any]]
        if settings.one_process:
            if settings.keep_freed_memory:
                keep_freed_memory()
            models = _models(settings, rate)
            calls = {name: _work(model, settings, precision, what) for name, model in models.items()}
        else:
            job = settings, rate, precision, what
            calls = {name: stack.enter_context(_in_separate_process(name, *job)) for name in (THEIRS, OURS, DENSE)}
        return interleaved(calls, settings.rounds, warmup=2)


@contextmanager
def _in_separate_process(name: str, *job: Any) -> Iterator[Callable[[], Any]]:
    """A function that makes a separate process do the work once, and waits for it."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(there, name, *job), daemon=True)
    process.start()
    there.close()

    def once() -> None:
        here.send("once")
        here.recv()

    try:
        here.recv()
        yield once
    except EOFError:
        raise SystemExit(f"the process of {name} ended before it had finished") from None
    finally:
        here.close()
        process.join(5)
        process.kill()


def _serve(pipe: Any, name: str, settings: Settings, rate: float, precision: str, what: str) -> None:
    if settings.keep_freed_memory:
        keep_freed_memory()
    work = _work(_models(settings, rate)[name], settings, precision, what)
    pipe.send("ready")
    with suppress(EOFError):
        while pipe.recv():
            work()
            pipe.send("done")


def _models(settings: Settings, rate: float) -> dict[str, nn.Module]:
    """Both programs with the same weights, and timm's dense model.

    Raises:
        SystemExit: If their outputs differ.
    """
    torch.manual_seed(0)
    dense = timm.create_model(settings.model, img_size=settings.img_size, num_classes=100)
    published = _program(settings.program)(
        img_size=settings.img_size,
        patch_size=dense.patch_embed.patch_size[0],
        embed_dim=dense.embed_dim,
        depth=len(dense.blocks),
        num_heads=dense.blocks[0].attn.num_heads,
        num_classes=100,
        args=argparse.Namespace(
            keep_rate=[rate],
            reduction_loc=list(LOCATIONS),
            clc=True,
            clc_include_gap=True,
            clc_recover_at_last=True,
            num_clr=1,
            ifa_head=True,
            ifa_dws_conv_groups=2,
        ),
    )
    published.add_clr(1)
    published.reset_classifier(100)
    ours = clca.create_model(
        settings.model,
        img_size=settings.img_size,
        num_classes=100,
        reduction="evit",
        keep_rate=rate,
        locations=LOCATIONS,
    )
    clca.load_published(ours, published.state_dict())
    with torch.no_grad():
        images = _images(settings)[:2]
        expected, found = published.eval()(images), ours.eval()(images)
    difference = ((found - expected).abs().max() / expected.abs().max()).item()
    if not difference < 1e-4:
        raise SystemExit(f"the two programs differ by {difference:.1e} of the largest logit")
    return {THEIRS: published, OURS: ours, DENSE: dense}


def _program(folder: Path) -> Any:
    """The published model's class."""
    file = folder / "models" / "evit.py"
    if not file.is_file():
        raise SystemExit(f"{file} not found: clone the published program and pass its folder")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return runpy.run_path(str(file))["EViT"]


def _images(settings: Settings) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(settings.batch_size, 3, settings.img_size, settings.img_size, generator=generator)


def _work(model: nn.Module, settings: Settings, precision: str, what: str) -> Callable[[], Any]:
    images, labels = _images(settings), torch.arange(settings.batch_size) % 100

    def rounding() -> AbstractContextManager[Any]:
        return torch.autocast("cpu", torch.bfloat16) if precision == "bf16" else nullcontext()

    def forward() -> None:
        with torch.no_grad(), rounding():
            model.eval()(images)

    if what == "forward":
        return forward
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)  # the weights stay what they are

    def step() -> None:
        with rounding():
            loss = F.cross_entropy(model.train()(images).float(), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def _spread(spread: dict[str, float], digits: int) -> str:
    return f"{spread['median']:.{digits}f} ({spread['p10']:.{digits}f}–{spread['p90']:.{digits}f})"


if __name__ == "__main__":
    main()
