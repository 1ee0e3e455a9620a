"""Measures images per second when reading for training: from the image files, and from the cache of resized images.

Both do everything up to the input of the model: decode, resize, crop, flip and normalise; the cache saves the first
two. Passes over the same images alternate in shuffled rounds; the cache is filled before the first, as it is from the
second epoch or run on. "alone" reads one image at a time; the others read training batches, collated in this process or
in workers and normalised in this process, on the CPU. One thread per process. The cache is a temporary folder.

python benchmarks/reading.py DATA [--size 448] [--workers 2] [--out reading.json]
"""

import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any

import torch
import tyro
from PIL import __version__ as pillow
from rich.console import Console
from rich.table import Table
from torchvision import __version__ as torchvision

from clca import data
from clca.data.cache.limits import cached_sets
from clca.data.datasets import ImageDataset
from clca.data.transforms import Normalization, preprocess_dict, train_transform
from clca.errors import ClcaError
from clca.system import timing as measure
from clca.training.loaders import BatchPlan, SeededImages, reading_processes, train_loader

CPU = torch.device("cpu")
PREPROCESS = preprocess_dict(1)  # mean and std, the same at every size


@dataclass
class Settings:
    """Images and timing.

    Args:
        data: Folder or CSV file of images, as for clca train.
        size: Side of the model's input in pixels; images are resized to size/0.875.
        split: Split to read.
        images: Images per pass, rounded to whole batches; a larger set is subsampled, a smaller set is read several
            times, with epochs following each other without a break as in training.
        batch_size: Images per batch.
        workers: Reader processes of the last pair; None: one per core, at most 8.
        rounds: Passes of each kind.
        out: JSON file for the results.
    """

    data: Annotated[str, tyro.conf.Positional]
    size: int = 448
    split: str = "train"
    images: int = 1000
    batch_size: int = 32
    workers: int | None = None
    rounds: int = 7
    out: Path | None = None


def open_images(settings: Settings) -> ImageDataset:
    images = data.open(settings.data, settings.split, transform=train_transform(settings.size, normalize=False))
    if not isinstance(images, ImageDataset):
        raise ClcaError(f"{settings.data}: these images are drawn in memory: pass image files")
    count = min(settings.images, len(images))
    chosen = [index * len(images) // count for index in range(count)]  # of all classes, not of the first few
    return ImageDataset(
        images.classes,
        [(images.paths[index], images.labels[index]) for index in chosen],
        images.transform,
        images.root,
    )


def one_by_one(images: ImageDataset, plan: BatchPlan, steps: int) -> Callable[[], None]:
    """A pass over images as batches of one."""
    seeded, normalize = SeededImages(images, seed=0), Normalization(PREPROCESS)

    def read() -> None:
        for number in range(steps * plan.batch_size):
            normalize(seeded[divmod(number, len(images))][0][None], CPU)

    return read


def in_batches(images: ImageDataset, plan: BatchPlan, steps: int, workers: int) -> Callable[[], None]:
    """A pass over training batches, read by persistent processes."""
    normalize, loader = Normalization(PREPROCESS), train_loader(images, plan, 0, 0, steps, workers, CPU)

    def read() -> None:
        for batch, _ in loader:
            normalize(batch, CPU)

    return read


def measured(settings: Settings) -> dict[str, Any]:
    workers = reading_processes(settings.workers)
    from_files, from_cache = open_images(settings), open_images(settings)
    begin = perf_counter()
    outcome = data.use_cache([from_cache])
    filling = perf_counter() - begin
    if outcome.problem or outcome.bad:
        raise ClcaError(outcome.problem or f"{outcome.bad[0].path}: {outcome.bad[0].reason}")
    assert from_cache.resized is not None
    torch.manual_seed(0)
    one = from_files[0][0]
    torch.manual_seed(0)
    assert torch.equal(one, from_cache[0][0])  # both give the same result
    plan = BatchPlan.create(len(from_files), settings.batch_size, 1, 1, seed=0)
    steps = max(1, settings.images // plan.batch_size)
    kinds: dict[str, Callable[[ImageDataset], Callable[[], None]]] = {
        "alone": partial(one_by_one, plan=plan, steps=steps)
    }
    for count in dict.fromkeys((0, workers)):
        kinds[f"batches, {count} workers"] = partial(in_batches, plan=plan, steps=steps, workers=count)
    table = {}
    for kind, make in kinds.items():
        passes = {"files": make(from_files), "cache": make(from_cache)}
        times = measure.interleaved(passes, settings.rounds)
        faster = measure.speed_ups(times, "files")["cache"]
        rates = {
            name: asdict(measure.Spread.of([steps * plan.batch_size / seconds for seconds in taken]))
            for name, taken in times.items()
        }
        table[kind] = {"images_per_second": rates, "speed_up": asdict(faster)}
    return {
        "command": measure.command(),
        "machine": measure.machine(),
        "versions": {**measure.versions(), "pillow": pillow, "torchvision": torchvision},
        "images": len(from_files),
        "images_a_pass": steps * plan.batch_size,
        "batch_size": plan.batch_size,
        "size": settings.size,
        "resized_to": from_cache.resized.resize.size,
        "file_bytes": sum(os.path.getsize(path) for path in from_files.paths),
        "cache_bytes": sum(one.bytes for one in cached_sets()),
        "filling_images_per_second": len(from_files) / filling,
        "table": table,
    }


def render(found: dict[str, Any], console: Console) -> None:
    console.print(
        f"{found['images']} images, {found['file_bytes'] / 1e6:.0f} MB in files, {found['cache_bytes'] / 1e6:.0f} MB "
        f"resized to {found['resized_to']} px; filled at {found['filling_images_per_second']:.0f} images/s"
    )
    table = Table(title=f"images/s at {found['size']} px, median (p10–p90)", title_justify="left")
    table.add_column("images")
    for name in ("from files", "from the cache", "times faster"):
        table.add_column(name, justify="right")
    for kind, row in found["table"].items():
        rates = row["images_per_second"]
        cells = (spread(rates["files"], 0), spread(rates["cache"], 0), spread(row["speed_up"], 2))
        table.add_row(kind, *cells)
    console.print(table)


def spread(of: dict[str, float], digits: int) -> str:
    return f"{of['median']:.{digits}f} ({of['p10']:.{digits}f}–{of['p90']:.{digits}f})"


def main() -> None:
    settings = tyro.cli(Settings, description=__doc__)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["CLCA_CACHE"] = folder
        try:
            with measure.using_threads(1):
                found = measured(settings)
        except ClcaError as error:
            raise SystemExit(f"reading.py: {error}") from None
    render(found, Console())
    if settings.out is not None:
        settings.out.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
