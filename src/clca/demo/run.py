"""`clca demo`: one small ViT trained four ways on synthetic leaves, one table, one picture; nothing downloaded.

Everything goes through what a user calls: `write_leaves`, `train`, `evaluate`. The runs it leaves are runs like any
other. As on real images, the four start from a pretrained backbone, here from leaves of other cultivars: from random
weights the two without the aggregation head do not leave chance in the time there is.
"""

from __future__ import annotations

import json
import os
import shlex
import warnings
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
from safetensors.torch import load_file, save_file
from torch import Tensor

from clca import data
from clca.data.datasets import Leaves
from clca.data.synthetic.leaves import write_leaves
from clca.data.transforms import from_preprocess
from clca.demo.parallel import Piece, RelayedDisplay, Steps, Tell, side_by_side
from clca.demo.recipe import METHODS, DemoSettings, method_config, pretraining_config
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
from clca.training import TrainConfig, train
from clca.training.run_folder import SUMMARY, WEIGHTS

SETTINGS, RESULTS, TABLE, PICTURE, LEAVES = "settings.json", "demo.json", "demo.md", "survivors.png", "leaves"
_FORMAT = "clca-demo-1"
_ZOOM = 4
_MOST_BLOCKS = 1000
PRETRAINING, BACKBONE = "pretraining", "backbone.safetensors"


@dataclass(frozen=True)
class Row:
    """What came out for one method.

    Attributes:
        name, run: Heading and run folder.
        top1: Share of test images right, 0 … 1.
        gmacs: Multiply-accumulates of one image in 10⁹.
        ms, ms_low, ms_high: Milliseconds an image: median over the rounds, and its quartiles.
        tokens: Tokens that each block puts out.
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
    """What `run` leaves: its rows, and the picture."""

    folder: Path
    rows: list[Row]
    test_images: int
    picture: Path


def run(
    out: str | Path = Path("clca-demo"),
    seed: int = 0,
    *,
    settings: DemoSettings | None = None,
    console: Console | None = None,
) -> DemoResult:
    """Draw leaves, train one small ViT four ways, print a table, and draw which tokens survive.

    The same call goes on where an interrupted one stopped; a finished one is only printed again. Two runs train at a
    time, in processes of their own, so a script calls this under `if __name__ == "__main__":`.

    Args:
        out: Folder for leaves, runs, table and picture: new, empty, or of a demo with the same seed.
        seed: Of the leaves and of the training.
        settings: Sizes.
        console: Where the table goes; stdout if omitted. Progress goes to stderr.

    Raises:
        ClcaError: The folder cannot be written, or holds something else.
        WorkError: A file could not be written, or a process that trained died.
        Stopped: By SIGINT or SIGTERM, once all runs are saved.
    """
    out, settings, console = expanded(out), settings or DemoSettings(), console or Console()
    pretraining_config(out / PRETRAINING, seed, settings)  # refuses a seed that no run takes, before there is a folder
    _claim(out, seed, settings)
    result = _finished(out)
    if result is None:
        with _one_thread():
            result = _make(out, seed, settings, console)
    else:
        _say(console, f"This demo has been run before; {out} holds the runs. Remove the folder to see it again.")
    _table(result, settings).render(console)
    _say(console, _farewell(result))
    return result


def _say(console: Console, text: str) -> None:
    console.print(text, highlight=False, markup=False, soft_wrap=True)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Judge and measure as the models were trained: tensors this small gain nothing from a second core."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# -- the folder ------------------------------------------------------------------------------------------------


def _claim(out: Path, seed: int, settings: DemoSettings) -> None:
    """Make the folder ours, or refuse it."""
    mine = json.loads(json.dumps({"format": _FORMAT, "seed": seed, **asdict(settings)}))
    if out.exists() and not out.is_dir():
        raise ClcaError(f"{out}: is a file; give a folder")
    try:
        empty = not out.is_dir() or all(entry.name.startswith(".") for entry in out.iterdir())
    except OSError as error:
        raise ClcaError(f"{out}: cannot be read ({reason(error)})") from None
    if not empty:
        there = read_json(out / SETTINGS)
        if there is None or there.get("format") != _FORMAT:
            raise ClcaError(f"{out}: is not empty and holds no demo; give a new folder")
        for name, value in mine.items():
            if there.get(name) != value:
                raise ClcaError(f"{out}: holds a demo with {name} {there.get(name)}, not {value}; give a new folder")
    make_writable(out)
    write_json(out / SETTINGS, mine)


def _finished(out: Path) -> DemoResult | None:
    """The result of an earlier call, if everything that it left is still there."""
    stored = read_json(out / RESULTS) or {}
    files = [out / method.folder / SUMMARY for method in METHODS] + [out / PICTURE]
    rows, test_images = _stored_rows(stored.get("rows")), integer(stored.get("test_images"), low=1)
    if rows is None or test_images is None or not all(file.is_file() for file in files):
        return None
    return DemoResult(out, rows, test_images, out / PICTURE)


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


# -- the work --------------------------------------------------------------------------------------------------


def _make(out: Path, seed: int, settings: DemoSettings, console: Console) -> DemoResult:
    _say(
        console,
        f"Drawing {settings.cultivars * settings.images} leaves of {settings.cultivars} made-up cultivars, "
        f"pretraining a small ViT on other ones, then training it four ways to tell the cultivars apart.\n"
        f"Nothing is downloaded; one to three minutes on two cores; Ctrl-C stops, the same command goes on. "
        f"All goes to {out}",
    )
    leaves, backbone = (out / LEAVES).resolve(), (out / BACKBONE).resolve()
    _at_once(
        [
            Piece("drawing leaves", partial(_draw_leaves, leaves, seed, settings)),
            *([] if backbone.is_file() else [Piece("pretraining", partial(_pretrain, backbone, out, seed, settings))]),
        ]
    )
    configs = [method_config(method, out / method.folder, leaves, backbone, seed, settings) for method in METHODS]
    _at_once(
        [
            Piece(method.name, partial(_train, config), _macs(config.model))
            for method, config in zip(METHODS, configs, strict=True)
            if not (out / method.folder / SUMMARY).is_file()
        ]
    )
    evaluations = [evaluate(config.out, workers=0, precision="no") for config in configs if config.out is not None]
    models = [from_pretrained(str(out / method.folder)) for method in METHODS]
    images, paths = _test_images(leaves, models[0], settings)
    times = _interleaved(models, images[: settings.timed_images], settings.timed_rounds)
    rows = [
        Row(
            method.name, method.folder, evaluation.top1, evaluation.gmacs, median(ms), *_quartiles(ms),
            tokens=evaluation.tokens_per_block,
        )
        for method, evaluation, ms in zip(METHODS, evaluations, times, strict=True)
    ]  # fmt: skip
    result = DemoResult(out, rows, evaluations[0].images, out / PICTURE)
    _draw(result.picture, models, images, paths, seed, settings)
    _write_table(result, settings)
    write_json(out / RESULTS, {"test_images": result.test_images, "rows": [asdict(row) for row in rows]})
    return result


def _at_once(pieces: Sequence[Piece]) -> None:
    """As many at a time as there are cores, up to two: each needs a core, and some of another to read its leaves."""
    if pieces:
        side_by_side(pieces, min(2, usable_cores()), Console(stderr=True), preload=["clca.demo.run"])


def _draw_leaves(out: Path, seed: int, settings: DemoSettings, tell: Tell) -> None:
    size, difficulty = settings.leaf_size, settings.difficulty
    write_leaves(out, settings.cultivars, settings.images, size, seed, difficulty, progress=Steps(tell))


def _pretrain(file: Path, out: Path, seed: int, settings: DemoSettings, tell: Tell) -> None:
    """Weights to start from: a dense ViT with the aggregation head, on leaves of other cultivars; the head is left."""
    config = pretraining_config(out / PRETRAINING, seed, settings)
    train(config, display=partial(RelayedDisplay, tell))
    state = load_file(out / PRETRAINING / WEIGHTS)
    tensors = {name: tensor for name, tensor in state.items() if not name.startswith("cla_head.")}
    width = settings.embed_dim  # the norm before a plain head, which the aggregation head does without
    tensors |= {"norm.weight": torch.ones(width), "norm.bias": torch.zeros(width)}
    with replacing(file) as temporary:
        save_file(tensors, temporary)


def _train(config: TrainConfig, tell: Tell) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*starts anew")  # as it should: the backbone has no head
        train(config, display=partial(RelayedDisplay, tell))


def _macs(model: ModelConfig) -> float:
    from clca.models.factory import build

    return cost(build(model)).gmacs


def _test_images(leaves: Path, model: TokenReducedViT, settings: DemoSettings) -> tuple[Tensor, list[Path]]:
    """Test images [B, 3, S, S] in turn from every cultivar, enough to measure speed with, and their files."""
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
def _interleaved(models: Sequence[TokenReducedViT], images: Tensor, rounds: int) -> list[list[float]]:
    """Milliseconds an image of every model in every round; in turns, so that what slows the machine slows all."""
    times: list[list[float]] = [[] for _ in models]
    for model in models:  # warm up
        model.eval()(images)
    for _ in track(range(rounds), "measuring speed", console=Console(stderr=True), transient=True):
        for model, mine in zip(models, times, strict=True):
            begin = perf_counter()
            model(images)
            mine.append((perf_counter() - begin) / len(images) * 1e3)
    return times


def _quartiles(values: Sequence[float]) -> tuple[float, float]:
    if len(values) < 2:
        return values[0], values[0]
    low, _, high = quantiles(values, n=4, method="inclusive")
    return low, high


# -- what is shown ---------------------------------------------------------------------------------------------


def _draw(
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
    """What the model sees of a test leaf, drawn four times as large for the eye. Values in 0 … 1, [4S, 4S, 3]"""
    size = _ZOOM * settings.leaf_size
    leaves = Leaves(settings.cultivars, settings.images, size, seed, settings.difficulty, split="test", cache=False)
    names = [path.parts[-2:] for path in leaves.paths]
    leaf = np.asarray(leaves.image(names.index(file.parts[-2:])), dtype=np.float64) / 255
    begin, side = _ZOOM * round((settings.leaf_size - settings.img_size) / 2), _ZOOM * settings.img_size
    return leaf[begin : begin + side, begin : begin + side]


def _caption(result: DemoResult, settings: DemoSettings) -> str:
    error = 100 * (0.25 / result.test_images) ** 0.5
    return (
        f"top-1: on {result.test_images} test leaves of {settings.cultivars} cultivars; chance is "
        f"{1 / settings.cultivars:.1%}, one standard error at most {error:.1f} points, one seed. All four start from "
        "one backbone, pretrained briefly, dense with the aggregation head, on leaves of other cultivars. ms an "
        f"image: median of {settings.timed_rounds} rounds taken in turns, batches of {settings.timed_images}, with "
        "quartiles. Tokens: what each block puts out, CLS and carriers included."
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


def _table(result: DemoResult, settings: DemoSettings) -> Table:
    return Table(
        _COLUMNS,
        [_cells(row) for row in result.rows],
        title=f"One small ViT, four ways, keep rate {settings.keep_rate:.0%}",
        caption=_caption(result, settings),
    )


def _write_table(result: DemoResult, settings: DemoSettings) -> None:
    table = _table(result, settings)
    with replacing(result.folder / TABLE) as temporary:
        temporary.write_text(f"{table.markdown()}\n\n{table.caption}\n\n![]({PICTURE})\n", encoding="utf-8")


def _farewell(result: DemoResult) -> str:
    clca = "uv run clca" if os.environ.get("UV") else "clca"  # uv tells the programs that it runs
    run, leaves = (shlex.quote(str(result.folder / name)) for name in ("evit-clca", f"{LEAVES}/test"))
    return f"""
The picture of the tokens: {result.picture}      The table: {result.folder / TABLE}
These are runs like any other:
  {clca} evaluate {run}
  {clca} predict {run} {leaves}/cultivar-001

On your own photographs, in one folder a class (pretrained weights are fetched once; a GPU is used if there is one):
  {clca} train PHOTOS --model deit3_small_patch16_224.fb_in1k --reduction evit --keep-rate 0.25 --out runs/photos
  {clca} evaluate runs/photos
  {clca} predict runs/photos NEW.jpg"""
