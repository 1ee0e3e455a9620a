"""One run as a page: settings, curves, gradients, evaluation, confusions, cost, versions."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clca.errors import ClcaError
from clca.report.page import shown, write_page
from clca.report.run import figures as run_figures
from clca.study.results.folder import Failure, read_failure
from clca.system.files import file_objects, make_writable, part, read_bounded, read_csv, read_json, replacing
from clca.system.numbers import decimal_number, integer, is_whole_number, number, whole_number
from clca.training.run_folder import RunFolder

if TYPE_CHECKING:
    from clca.plots.figure import Picture
    from clca.report.table import ReportTable

HARDEST, CONFUSED, SUSPECTED = 20, 15, 50
_LARGEST_PICTURE = 16 << 20
_MISTAKES = "mistakes.jpg"
_MOST_LINES = 500_000  # of metrics.jsonl
_LONGEST_NAME = 200  # of a class, as it is shown
_LONGEST_VALUE = 2000  # of a setting
_MOST_SETTINGS = 1000


@dataclass(frozen=True)
class _Run:
    """The content of a run's folder; empty where files are missing or cannot be read."""

    name: str
    config: dict[str, Any]
    steps: list[dict[str, Any]]
    epochs: list[dict[str, Any]]
    summary: dict[str, Any]
    evaluation: dict[str, Any]
    classes: list[dict[str, str]]
    names: list[str]
    confusion: list[list[int]]
    label_errors: list[list[str]]
    mistakes: bytes
    failure: Failure | None

    @property
    def state(self) -> str:
        return "failed" if self.failure else "finished" if self.summary else "not finished"


def is_run(folder: Path) -> bool:
    """Whether the folder is from `clca train`, or that of one run in a study."""
    return (folder / "config.json").is_file() or (folder / "run.json").is_file()


def run_report(folder: Path, out: Path) -> tuple[Path, list[str], int, int]:
    """Write index.html, figures/ and tables/ of one run.

    Returns:
        The page, its first sentences, and the numbers of figures and tables.

    Raises:
        ClcaError: `out` cannot be written.
        WorkError: A file could not be written.
    """
    from clca.report.table import write_tables

    run = read_run(folder)
    for place in (out, out / "figures", out / "tables"):
        make_writable(place)
    tables = _tables(run)
    write_tables(out / "tables", tables)
    figures = _write(run, out / "index.html", tables, out / "figures", None)
    return out / "index.html", _answer(run), figures, len(tables)


def write_run_page(folder: Path, page: Path, back: str | None = None) -> None:
    """Write only the page, as part of a study's report.

    Args:
        folder: The run's folder, from `clca train` or in a study.
        page: The file.
        back: A link to the study's page.

    Raises:
        WorkError: It could not be written.
    """
    run = read_run(folder)
    _write(run, page, _tables(run), None, back)


def read_run(folder: Path) -> _Run:
    """Read the files of a run, finished or not."""
    run = RunFolder(folder / "run" if (folder / "run.json").is_file() else folder)
    lines = list(islice(map(_logged, file_objects(run.metrics)), _MOST_LINES))
    evaluations = sorted(run.path.glob("evaluation/*/evaluation.json"))
    chosen = next((path for path in evaluations if path.parent.name == "test"), evaluations[0] if evaluations else None)
    known = read_csv(chosen.parent / "confusion.csv") if chosen is not None else []
    counts = [[int(cell) for cell in row[1:]] for row in known[1:]] if _are_counts(known) else []
    square = all(len(row) == len(counts) for row in counts)
    classes = read_csv(chosen.parent / "classes.csv") if chosen is not None else []
    named = str(_json(folder / "run.json").get("name") or "")[:_LONGEST_NAME] or folder.resolve().name
    failed = read_failure(folder) if not (folder / "result.json").is_file() else None
    return _Run(
        name=named,
        config=_config(run),
        steps=[line for line in lines if "train" not in line and "step" in line],
        epochs=[line for line in lines if "train" in line and "step" in line],
        summary=_summary(_json(run.summary)),
        evaluation=_evaluation(_json(chosen)) if chosen is not None else {},
        classes=[dict(zip(classes[0], row, strict=False)) for row in classes[1:]] if classes else [],
        names=[row[0][:_LONGEST_NAME] for row in known[1:]] if counts and square else [],
        confusion=counts if square else [],
        label_errors=read_csv(chosen.parent / "label_errors.csv") if chosen is not None else [],
        mistakes=_picture(chosen.parent / "mistakes.jpg") if chosen is not None else b"",
        failure=failed,
    )


def _picture(path: Path) -> bytes:
    """The content of a JPEG file as an evaluation leaves it; nothing if it is another file."""
    try:
        content = read_bounded(path, _LARGEST_PICTURE)
    except (OSError, ClcaError):
        return b""
    return content if content.startswith(b"\xff\xd8\xff") else b""


def _config(run: RunFolder) -> dict[str, Any]:
    """What `config.json` holds; nothing if it cannot be read."""
    try:
        return run.content
    except ClcaError:
        return {}


def _json(path: Path) -> dict[str, Any]:
    return read_json(path) or {}


def _logged(line: dict[str, Any]) -> dict[str, Any]:
    """The values of a line of metrics.jsonl that the page shows, without those of the wrong type."""
    if (step := integer(line.get("step"))) is None:
        return {}
    found: dict[str, Any] = {"step": step}
    found.update(_numbers_of(line, ("loss", "accuracy", "lr", "grad_max")))
    for split in ("train", "val", "test"):
        scores = _numbers_of(part(line, split), ("loss", "top1"))
        if len(scores) == 2 or (split == "train" and scores):
            found[split] = scores
    return found


def _numbers_of(content: dict[str, Any], names: Iterable[str]) -> dict[str, float]:
    found = {name: number(content.get(name)) for name in names}
    return {name: value for name, value in found.items() if value is not None}


def _are_counts(table: Sequence[Sequence[str]]) -> bool:
    """Whether all cells but the headings are whole numbers of images."""
    return all(is_whole_number(cell) and len(cell) <= 15 for row in table[1:] for cell in row[1:])


def _evaluation(content: dict[str, Any]) -> dict[str, Any]:
    """The values of evaluation.json that the page shows."""
    measured = ("top1", "top5", "macro", "loss", "gmacs", "params", "images_per_second", "images", "trained_on")
    found: dict[str, Any] = _numbers_of(content, measured)
    for name in ("known", "new"):
        found[name] = _numbers_of(part(content, name), ("top1", "images", "classes"))
    for name in ("split", "data", "device", "precision", "judged"):
        if isinstance(text := content.get(name), str):
            found[name] = text[:_LONGEST_VALUE]
    tokens = content.get("tokens_per_block")
    if isinstance(tokens, list) and len(tokens) <= 1000 and all(number(count) is not None for count in tokens):
        found["tokens_per_block"] = tokens
    return found


def _summary(content: dict[str, Any]) -> dict[str, Any]:
    """The values of summary.json that the page shows."""
    found: dict[str, Any] = _numbers_of(content, ("epochs", "steps", "kept_epoch", "seconds"))
    found["kept"] = str(content.get("kept"))[:_LONGEST_NAME]
    for name in ("train", "watched"):
        found[name] = _numbers_of(part(content, name), ("loss", "top1", "top5", "macro"))
    return found if content else {}


def _write(run: _Run, page: Path, tables: dict[str, ReportTable], folder: Path | None, back: str | None) -> int:
    pictures: Sequence[tuple[str, Picture | None]] = (
        ("Curves and gradients", run_figures.curves(run.steps, run.epochs)),
        ("", run_figures.gradient(run.steps)),
        ("Confusion matrix", run_figures.confusion(run.confusion, run.names)),
    )
    sheet = bool(run.mistakes) and folder is not None
    if folder is not None and sheet:
        with replacing(folder / _MISTAKES) as temporary:
            temporary.write_bytes(run.mistakes)
    figures = [shown(picture, folder) for _, picture in pictures if picture is not None]
    reasons = {"Curves and gradients": "no step was logged", "Confusion matrix": "the run has no confusion.csv"}
    write_page(
        page,
        "run/run.html.jinja",
        name=run.name,
        back=back,
        answer=_answer(run),
        warnings=_warnings(run),
        traceback=run.failure.traceback if run.failure else "",
        figures=figures,
        absent=[f"{title}: left out, because {reasons[title]}." for title, picture in pictures
                if picture is None and title],
        tables=tables,
        links=folder is not None,
        mistakes=base64.b64encode(run.mistakes).decode() if sheet else "",
    )  # fmt: skip
    return len(figures) + sheet


def _answer(run: _Run) -> list[str]:
    found = run.evaluation
    if "top1" in found:
        text = f"Top-1 {100 * found['top1']:.1f} % on {found.get('split', 'test')} of {_set_name(found)}"
        text += f" ({found['images']} images)" if found.get("images") else ""
        cost = f", at {found['gmacs']:.3g} GMACs an image" if found.get("gmacs") else ""
        return [f"{text}{cost}."]
    if run.summary:
        watched = run.summary["watched"]
        watched_text = f"; top-1 {100 * watched['top1']:.1f} % on the watched images" if "top1" in watched else ""
        return [f"Trained, but not evaluated{watched_text}."]
    done = run.steps[-1]["step"] if run.steps else 0
    return [f"The run {'failed' if run.failure else 'is not finished'}: {done} steps are logged."]


def _set_name(found: dict[str, Any]) -> str:
    """The name of the data set, without its parent folders."""
    return Path(str(found.get("data") or "its images")).name


def _warnings(run: _Run) -> list[str]:
    if not run.failure:
        return []
    return [f"It failed (attempt {run.failure.attempt}): {run.failure.error or 'no error was recorded'}"]


def _tables(run: _Run) -> dict[str, ReportTable]:
    tables = {
        "numbers": _pairs("Numbers", "", _numbers(run)),
        "hardest": _hardest(run),
        "confused": _confused(run),
        "label_errors": _label_errors(run),
        "settings": _pairs("Settings", "", _flat(part(run.config, "train") or part(run.config, "model"))),
        "versions": _pairs("Versions", "", _flat(part(run.config, "versions"))),
    }
    return {name: table for name, table in tables.items() if table is not None and table.rows}


def _pairs(title: str, caption: str, pairs: Iterable[tuple[str, str]]) -> ReportTable:
    from clca.system.tables import Column

    return _table(title, caption, (Column("name", align="left"), Column("value", align="left")), list(pairs))


def _table(title: str, caption: str, columns: Any, rows: Sequence[Sequence[str]], left_out: int = 0) -> ReportTable:
    import pandas as pd

    from clca.report.table import ReportTable

    frame = pd.DataFrame([list(row) for row in rows], columns=[column.title for column in columns])
    return ReportTable(title, caption, tuple(columns), tuple(tuple(row) for row in rows), frame, left_out)


def _numbers(run: _Run) -> list[tuple[str, str]]:
    found, summary = run.evaluation, run.summary
    pairs: list[tuple[str, str]] = [("state", run.state)]
    where = f" on {found.get('split', 'test')}"
    if found.get("judged"):
        pairs.append(("evaluation", str(found["judged"])))
    for key in ("known", "new"):
        group = found.get(key) or {}
        if "top1" in group:
            pairs.append(
                (f"top-1 on {key} classes", f"{100 * group['top1']:.2f} % ({group.get('images', 0):.0f} images)")
            )
    for key, name in (("top1", "top-1"), ("top5", "top-5"), ("macro", "macro accuracy")):
        if _is_number(found.get(key)):
            pairs.append((name + where, f"{100 * found[key]:.2f} %"))
    if _is_number(found.get("loss")):
        pairs.append(("loss" + where, f"{found['loss']:.4f}"))
    if _is_number(part(summary, "train").get("top1")):
        pairs.append(("top-1 in the last epoch of training", f"{100 * summary['train']['top1']:.2f} %"))
    if _is_number(found.get("gmacs")):
        pairs.append(("GMACs an image", f"{found['gmacs']:.4g}"))
    if _is_number(found.get("params")):
        pairs.append(("parameters", f"{found['params'] / 1e6:.2f} million"))
    if found.get("tokens_per_block"):
        pairs.append(("tokens by block", " ".join(f"{count:g}" for count in found["tokens_per_block"])))
    if _is_number(found.get("images_per_second")):
        where = f"{found.get('device', '?')}, mixed precision {found.get('precision', '?')}"
        pairs.append(("images a second in evaluation", f"{found['images_per_second']:.1f} ({where})"))
    if summary:
        pairs.append(("epochs, steps", f"{summary.get('epochs')}, {summary.get('steps')}"))
        pairs.append(("weights kept", f"{summary.get('kept')} (epoch {summary.get('kept_epoch')})"))
        if _is_number(summary.get("seconds")):
            pairs.append(("training took", f"{summary['seconds']:.0f} s"))
    peak = max((line for line in run.steps if _is_number(line.get("grad_max"))), key=lambda line: line["grad_max"],
               default=None)  # fmt: skip
    if peak is not None:
        pairs.append(("largest gradient", f"{peak['grad_max']:.3g} (step {peak['step']})"))
    return pairs


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _hardest(run: _Run) -> ReportTable | None:
    from clca.system.tables import Column

    try:
        present = [row for row in run.classes if whole_number(row["images"])]
        order = sorted(present, key=lambda row: decimal_number(row["f1"]))
        measures = ("precision", "recall", "f1")
        shares = [
            (
                row["class"][:_LONGEST_NAME],
                row["images"][:20],
                *(f"{100 * decimal_number(row[name]):.1f}" for name in measures),
            )
            for row in order[:HARDEST]
        ]
    except (KeyError, ValueError):
        return None
    columns = (Column("class", align="left"), Column("images"), Column("precision", "%"), Column("recall", "%"),
               Column("F1", "%"))  # fmt: skip
    caption = f"The {len(shares)} classes with the lowest F1 of {len(present)}." if len(present) > HARDEST else ""
    return _table("Hardest classes" if caption else "Classes", caption, columns, shares)


def _confused(run: _Run) -> ReportTable | None:
    import numpy as np

    from clca.plots.confusion import most_confused
    from clca.system.tables import Column

    if not run.confusion:
        return None
    pairs = most_confused(np.array(run.confusion), run.names, CONFUSED)
    columns = (Column("true class", align="left"), Column("taken for", align="left"), Column("images"))
    return _table("Most confused", "", columns, [(true, taken, str(count)) for true, taken, count in pairs])


def _label_errors(run: _Run) -> ReportTable | None:
    """Images whose label is probably wrong, if the table is one that an evaluation leaves."""
    from clca.system.tables import Column

    heads, rows = (run.label_errors[0] if run.label_errors else []), run.label_errors[1:]
    wanted = ("path", "given_class", "suggested_class", "margin")
    if not set(wanted) <= set(heads) or any(len(row) != len(heads) for row in rows):
        return None
    places = [heads.index(name) for name in wanted]
    cells = [[row[place][:_LONGEST_NAME] for place in places] for row in rows[:SUSPECTED]]
    columns = (Column("image", align="left"), Column("label", align="left"), Column("probably", align="left"),
               Column("margin"))  # fmt: skip
    caption = (
        f"By confident learning (Northcutt et al., 2021), {len(rows)} in all, the most probable first: an image that "
        "the model finds at least as typical of another class as the images labelled with that class are on average. "
        "Margin: probability of the label minus that of the most likely other class."
    )
    if run.evaluation.get("trained_on"):
        caption += (
            " The model was trained on some of these images and has learned their labels: do not rely on the list."
        )
    if len(rows) > SUSPECTED:
        caption += f" The first {SUSPECTED} are shown; label_errors.csv of the evaluation has all."
    return _table("Probable label errors", caption, columns, cells)


def _flat(settings: dict[str, Any], before: str = "") -> list[tuple[str, str]]:
    """Nested settings as pairs (`model.reduction`, `evit`), without unset ones."""
    pairs: list[tuple[str, str]] = []
    for name, value in settings.items():
        if isinstance(value, dict):
            pairs += _flat(value, f"{before}{name}.")
        elif value is not None:
            text = "on" if value is True else "off" if value is False else str(value)[:_LONGEST_VALUE]
            pairs.append((f"{before}{name}"[:_LONGEST_VALUE], text))
    return pairs[:_MOST_SETTINGS]
