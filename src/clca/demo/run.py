"""`clca demo`: one small encoder used four ways on synthetic leaves, one table, one picture; nothing downloaded.

The demo calls what a user calls (`write_leaves`, `train`, `evaluate`), and leaves ordinary run folders. As on real
images, the four start from a pretrained encoder: `clca_leaf_tiny`, which comes with the library and was pretrained on
leaves of other cultivars. Each is the recipe quick: a linear head on the features of the frozen encoder.
"""

from __future__ import annotations

import json
import logging
import os
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median, quantiles
from time import perf_counter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from torch import Tensor

from clca import data
from clca.data.datasets import Leaves
from clca.data.synthetic.leaves import write_leaves
from clca.data.transforms import from_preprocess
from clca.demo.parallel import RelayedDisplay, StepSender, Task, run_tasks
from clca.demo.recipe import METHODS, DemoSettings, method_config
from clca.errors import ClcaError, reason
from clca.evaluation import evaluate
from clca.explain.survivors import trace_survivors
from clca.models.config import ModelConfig
from clca.models.cost import cost
from clca.models.pretrained import from_pretrained
from clca.models.token_reduced_vit import TokenReducedViT
from clca.plots.survivors import draw_survivors
from clca.system.files import make_writable, read_json, replacing, write_json
from clca.system.numbers import integer, number, share
from clca.system.paths import expanded
from clca.system.processes import usable_cores
from clca.system.tables import Column, Table, words
from clca.system.worker_pool import Send
from clca.training import TrainConfig, train
from clca.training.run_folder import SUMMARY

_log = logging.getLogger(__name__)

SETTINGS, RESULTS, TABLE, PICTURE, LEAVES = "settings.json", "demo.json", "demo.md", "survivors.png", "leaves"
_FORMAT = "clca-demo-2"
_ZOOM = 2
_MOST_BLOCKS = 1000
_MOST_PROCESSES = 2  # each needs a core, and part of another to read its leaves


@dataclass(frozen=True)
class Row:
    """The results of one method.

    Attributes:
        name, run: The method's name and its run folder.
        top1: Top-1 accuracy on the test images, 0 to 1.
        gmacs: Multiply-accumulates of one image in 10⁹.
        ms, ms_low, ms_high: Milliseconds per image: median over the rounds, and quartiles.
        tokens: Number of output tokens of each block.
    """

    name: str
    run: str
    top1: float
    gmacs: float
    ms: float
    ms_low: float
    ms_high: float
    tokens: tuple[float, ...]


@dataclass(frozen=True)
class DemoResult:
    """The result of `run`.

    Attributes:
        folder: Of the demo.
        rows: One for each method.
        test_images: Number of images that `top1` is measured on.
        settings: Sizes that the demo was run with.
    """

    folder: Path
    rows: list[Row]
    test_images: int
    settings: DemoSettings

    @property
    def picture(self) -> Path:
        return self.folder / PICTURE

    def render(self, console: Console) -> None:
        """Print the table, and commands to continue with."""
        self.table().render(console)
        console.print(_next_steps(self), highlight=False, markup=False, soft_wrap=True)

    def table(self) -> Table:
        return Table(
            _COLUMNS,
            [_cells(row) for row in self.rows],
            title=f"One small encoder, four ways, keep rate {self.settings.keep_rate:.0%}",
            caption=_caption(self),
        )


def run(out: str | Path = Path("clca-demo"), seed: int = 0, *, settings: DemoSettings | None = None) -> DemoResult:
    """Draw leaves, teach one small encoder their cultivars in four ways, compare them, and draw which tokens survive.

    An interrupted demo resumes where it stopped, and a finished one is only read again. Two runs train at a time, in
    processes of their own, so a script calls this under `if __name__ == "__main__":`.

    Args:
        out: Folder for leaves, runs, table and picture: new, empty, or of a demo with the same seed.
        seed: Of the leaves and of the training.
        settings: Sizes.

    Raises:
        ClcaError: The folder cannot be written, or holds something else.
        WorkError: A file could not be written, or a training process died.
        Stopped: By SIGINT or SIGTERM, once all runs are saved.
    """
    out, settings = expanded(out), settings or DemoSettings()
    for method in METHODS:  # rejects what is invalid before the folder is made, which would then refuse anything else
        method_config(method, out, out / LEAVES, seed, settings)
    Leaves(settings.cultivars, settings.images, settings.leaf_size, seed, settings.difficulty, split="all")
    _prepare_folder(out, seed, settings)
    result = _stored_result(out, settings)
    if result is not None:
        _log.info("This demo has been run before; %s holds the runs. Remove the folder to run it again.", out)
        return result
    with _one_thread():
        return _make(out, seed, settings)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Evaluate and measure as in training: for tensors this small a second core gains nothing."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# -- the folder ------------------------------------------------------------------------------------------------


def _prepare_folder(out: Path, seed: int, settings: DemoSettings) -> None:
    """Make the folder and store the settings in it.

    Raises:
        ClcaError: It cannot be written, or holds something other than a demo with these settings.
    """
    content = json.loads(json.dumps({"format": _FORMAT, "seed": seed, **asdict(settings)}))
    if out.exists() and not out.is_dir():
        raise ClcaError(f"{out}: is a file; give a folder")
    try:
        empty = not out.is_dir() or all(entry.name.startswith(".") for entry in out.iterdir())
    except OSError as error:
        raise ClcaError(f"{out}: cannot be read ({reason(error)})") from None
    if not empty:
        stored = read_json(out / SETTINGS)
        if stored is None or stored.get("format") != _FORMAT:
            raise ClcaError(f"{out}: is not empty and holds no demo; give a new folder")
        for name, value in content.items():
            if stored.get(name) != value:
                raise ClcaError(f"{out}: holds a demo with {name} {stored.get(name)}, not {value}; give a new folder")
    make_writable(out)
    write_json(out / SETTINGS, content)


def _stored_result(out: Path, settings: DemoSettings) -> DemoResult | None:
    """The result of an earlier call; None unless all its files are still there."""
    stored = read_json(out / RESULTS) or {}
    files = [out / method.folder / SUMMARY for method in METHODS] + [out / PICTURE]
    rows, test_images = _stored_rows(stored.get("rows")), integer(stored.get("test_images"), low=1)
    if rows is None or test_images is None or not all(file.is_file() for file in files):
        return None
    return DemoResult(out, rows, test_images, settings)


def _stored_rows(stored: Any) -> list[Row] | None:
    """The rows of `demo.json`, one for each method; None if a value is missing or of the wrong type."""
    if not isinstance(stored, list) or len(stored) != len(METHODS):
        return None
    rows = [_stored_row(row, method.name, method.folder) for row, method in zip(stored, METHODS, strict=True)]
    return rows if all(rows) else None  # type: ignore[return-value]


def _stored_row(row: Any, name: str, run: str) -> Row | None:
    if not isinstance(row, dict) or (row.get("name"), row.get("run")) != (name, run):
        return None
    top1, tokens = share(row.get("top1")), row.get("tokens")
    measured = [number(row.get(field), low=0) for field in ("gmacs", "ms", "ms_low", "ms_high")]
    if top1 is None or None in measured or not isinstance(tokens, list) or not 0 < len(tokens) <= _MOST_BLOCKS:
        return None
    if any(number(count, low=0) is None for count in tokens):
        return None
    gmacs, ms, low, high = measured
    return Row(name, run, top1, gmacs, ms, low, high, tuple(tokens))  # type: ignore[arg-type]


# -- the runs --------------------------------------------------------------------------------------------------


def _make(out: Path, seed: int, settings: DemoSettings) -> DemoResult:
    _log.info(
        "Drawing %d leaves of %d synthetic cultivars that the small encoder has never seen, then fitting a head to it "
        "in four ways to distinguish them.",
        settings.cultivars * settings.images,
        settings.cultivars,
    )
    _log.info(
        "Nothing is downloaded; one to two minutes on two cores; Ctrl-C stops, the same command continues. All files "
        "go to %s",
        out,
    )
    leaves = (out / LEAVES).resolve()
    _run_tasks([Task("drawing leaves", partial(_draw_leaves, leaves, seed, settings))])
    configs = [method_config(method, out / method.folder, leaves, seed, settings) for method in METHODS]
    _run_tasks(
        [
            Task(method.name, partial(_train, config), _macs(config.model))
            for method, config in zip(METHODS, configs, strict=True)
            if not (out / method.folder / SUMMARY).is_file()
        ]
    )
    evaluations = [evaluate(config.out, workers=0, precision="no") for config in configs if config.out is not None]
    models = [from_pretrained(str(out / method.folder)) for method in METHODS]
    images, paths = _test_images(leaves, models[0], settings)
    times = _measure(models, images[: settings.timed_images], settings.timed_rounds)
    rows = [
        Row(
            method.name, method.folder, evaluation.top1, evaluation.gmacs, median(ms), *_quartiles(ms),
            tokens=evaluation.tokens_per_block,
        )
        for method, evaluation, ms in zip(METHODS, evaluations, times, strict=True)
    ]  # fmt: skip
    result = DemoResult(out, rows, evaluations[0].images, settings)
    _draw_picture(result.picture, models, images, paths, seed, settings)
    _write_table(result)
    write_json(out / RESULTS, {"test_images": result.test_images, "rows": [asdict(row) for row in rows]})
    return result


def _run_tasks(tasks: Sequence[Task]) -> None:
    if tasks:
        run_tasks(tasks, min(_MOST_PROCESSES, usable_cores()), preload=["clca.demo.run"])


def _draw_leaves(out: Path, seed: int, settings: DemoSettings, send: Send) -> None:
    size, difficulty = settings.leaf_size, settings.difficulty
    write_leaves(out, settings.cultivars, settings.images, size, seed, difficulty, progress=StepSender(send))


def _train(config: TrainConfig, send: Send) -> None:
    train(config, display=partial(RelayedDisplay, send))


def _macs(model: ModelConfig) -> float:
    from clca.models.factory import build

    return cost(build(model)).gmacs


def _test_images(leaves: Path, model: TokenReducedViT, settings: DemoSettings) -> tuple[Tensor, list[Path]]:
    """Test images [B, 3, S, S] from every cultivar in turn, enough to measure speed with, and their files."""
    assert model.preprocess is not None
    test = data.open(leaves, "test", transform=from_preprocess(model.preprocess))
    by_class: dict[int, list[int]] = {}
    for index, label in enumerate(test.labels):
        by_class.setdefault(label, []).append(index)
    depth = max(len(indices) for indices in by_class.values())
    order = [indices[turn] for turn in range(depth) for indices in by_class.values() if turn < len(indices)]
    chosen = order[: max(settings.timed_images, settings.pictured)]
    return torch.stack([test[index][0] for index in chosen]), [Path(test.paths[index]) for index in chosen]


@torch.inference_mode()
def _measure(models: Sequence[TokenReducedViT], images: Tensor, rounds: int) -> list[list[float]]:
    """Milliseconds per image of each model in each round; interleaved, so that other load slows all models alike."""
    times: list[list[float]] = [[] for _ in models]
    for model in models:  # warm up
        model.eval()(images)
    for _ in track(range(rounds), "measuring speed", console=Console(stderr=True), transient=True):
        for model, durations in zip(models, times, strict=True):
            begin = perf_counter()
            model(images)
            durations.append((perf_counter() - begin) / len(images) * 1e3)
    return times


def _quartiles(values: Sequence[float]) -> tuple[float, float]:
    if len(values) < 2:
        return values[0], values[0]
    low, _, high = quantiles(values, n=4, method="inclusive")
    return low, high


# -- the output ---------------------------------------------------------------------------------------------


def _draw_picture(
    path: Path,
    models: Sequence[TokenReducedViT],
    images: Tensor,
    paths: Sequence[Path],
    seed: int,
    settings: DemoSettings,
) -> None:
    shown, files = images[: settings.pictured], paths[: settings.pictured]
    traced = [trace_survivors(model, method.name, shown) for method, model in zip(METHODS, models, strict=True)]
    pixels = [_enlarged(file, seed, settings) for file in files]
    title = f"The tokens that survive each stage, at a keep rate of {settings.keep_rate:.0%}"
    with replacing(path) as temporary:
        draw_survivors(temporary, pixels, [file.parent.name for file in files], traced, title)


def _enlarged(file: Path, seed: int, settings: DemoSettings) -> NDArray[np.float64]:
    """The part of a test leaf that the model sees, drawn at four times the size: [4S, 4S, 3], values 0 to 1."""
    size = _ZOOM * settings.leaf_size
    leaves = Leaves(settings.cultivars, settings.images, size, seed, settings.difficulty, split="test", cache=False)
    names = [path.parts[-2:] for path in leaves.paths]
    leaf = np.asarray(leaves.image(names.index(file.parts[-2:])), dtype=np.float64) / 255
    begin, side = _ZOOM * round((settings.leaf_size - settings.img_size) / 2), _ZOOM * settings.img_size
    return leaf[begin : begin + side, begin : begin + side]


def _caption(result: DemoResult) -> str:
    settings = result.settings
    error = 100 * (0.25 / result.test_images) ** 0.5
    return (
        f"top-1: on {result.test_images} test leaves of {settings.cultivars} cultivars; chance is "
        f"{1 / settings.cultivars:.1%}, one standard error at most {error:.1f} points, one seed. All four are one "
        "frozen encoder, pretrained on leaves of other cultivars; only a linear head was fitted to each (recipe "
        f"quick). ms an image: median of {settings.timed_rounds} rounds taken in turns, batches of "
        f"{settings.timed_images}, with quartiles. Tokens: what each block puts out, CLS and carriers included."
    )


def _cells(row: Row) -> tuple[str, ...]:
    tokens = " ".join(f"{count:g}" for count in row.tokens)
    return (
        row.name,
        f"{row.top1:.1%}",
        f"{row.gmacs:.4f}",
        f"{row.ms:.2f} ({row.ms_low:.2f}–{row.ms_high:.2f})",
        tokens,
    )


_COLUMNS = (words("model"), *map(Column, ("top-1", "GMACs", "ms an image")), words("tokens by block"))


def _write_table(result: DemoResult) -> None:
    table = result.table()
    with replacing(result.folder / TABLE) as temporary:
        temporary.write_text(f"{table.markdown()}\n\n{table.caption}\n\n![]({PICTURE})\n", encoding="utf-8")


def _next_steps(result: DemoResult) -> str:
    clca = "uv run clca" if os.environ.get("UV") else "clca"  # uv sets it for the programs that it runs
    run, leaves = (shlex.quote(str(result.folder / name)) for name in ("evit-clca", f"{LEAVES}/test"))
    return f"""
The picture of the tokens: {result.picture}      The table: {result.folder / TABLE}
These are ordinary run folders:
  {clca} evaluate {run}
  {clca} predict {run} {leaves}/cultivar-001

On your own photographs, in one folder a class (pretrained weights are fetched once; a GPU is used if there is one):
  {clca} train PHOTOS --model deit3_small_patch16_224.fb_in1k --reduction evit --keep-rate 0.25 --out runs/photos
  {clca} evaluate runs/photos
  {clca} predict runs/photos NEW.jpg"""
