"""Predictions as a table, CSV or JSON lines."""

import io
import json
import sys
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import IO, Any, Literal

from rich.console import Console

from clca.errors import ClcaError, reason
from clca.evaluation.predictor import Prediction
from clca.evaluation.together import GroupPrediction
from clca.system.files import csv_encoding, csv_writer, replacing
from clca.system.paths import as_text, shown
from clca.system.tables import Column, Table, words

Form = Literal["table", "csv", "jsonl"]
NONE_OF_THESE = "none of these"


def write_predictions(predictions: Iterable[Prediction], form: Form, out: Path | None) -> None:
    """Write predictions, each as soon as it is available (a table at the end).

    Args:
        predictions: With classes, or with an error, which gets a row of its own.
        form: "table" for reading; "csv" with a row per class and image, and one per image that could not be read;
            "jsonl" with an object per image.
        out: File, written atomically; None for standard output.

    Raises:
        ClcaError: The folder of `out` is missing or cannot be written to.
        WorkError: The file could not be written.
    """
    _write(lambda file: {"table": _table, "csv": _csv, "jsonl": _jsonl}[form](predictions, file), form, out)


def write_groups(groups: Iterable[GroupPrediction], form: Form, out: Path | None) -> None:
    """Write the predictions of groups; arguments and errors as of `write_predictions`."""
    writer = {"table": _group_table, "csv": _group_csv, "jsonl": _group_jsonl}[form]
    _write(lambda file: writer(groups, file), form, out)


def _write(writer: Callable[[IO[str]], None], form: Form, out: Path | None) -> None:
    # File names that are not UTF-8: CSV keeps their bytes, and JSON uses the escapes that Python decodes.
    errors = "surrogateescape" if form == "csv" else "backslashreplace"
    if out is None:
        if isinstance(sys.stdout, io.TextIOWrapper):  # programs read UTF-8, whatever the terminal shows
            sys.stdout.reconfigure(encoding=None if form == "table" else "utf-8", errors=errors)
        writer(sys.stdout)
        return
    if not out.parent.is_dir() or out.is_dir():
        raise ClcaError(f"--out {out}: {'is a folder' if out.is_dir() else 'there is no such folder'}")
    with replacing(out) as temporary:
        try:
            encoding = csv_encoding(out) if form == "csv" else "utf-8"
            file = open(temporary, "w", encoding=encoding, errors=errors, newline="")  # noqa: SIM115 (closed below)
        except OSError as error:
            raise ClcaError(f"--out {out}: cannot be written ({reason(error)})") from None
        with file if file is not None else nullcontext():
            writer(file)


def _answer_lines(one: Prediction | GroupPrediction) -> list[str]:
    """Cells of a table: the most likely classes, their probabilities, and unfamiliarity."""
    lines = [shown(name) for name in one.classes]
    shares = [f"{probability:.1%}" for probability in one.probabilities]
    if one.is_unfamiliar:  # the classes are what it resembles most
        lines, shares = [NONE_OF_THESE, *(f"({line})" for line in lines)], ["", *shares]
    distance = "" if one.unfamiliarity is None else f"{one.unfamiliarity:.2f}"
    return ["\n".join(lines), "\n".join(shares), distance]


def _render(heads: list[Column], rows: list[list[str]], file: IO[str]) -> None:
    """A table whose last column, unfamiliarity, is left out where no row has one."""
    if rows:
        if not any(row[-1] for row in rows):
            heads, rows = heads[:-1], [row[:-1] for row in rows]
        Table(heads, rows, sections=range(len(rows))).render(Console(file=file))


def _table(predictions: Iterable[Prediction], file: IO[str]) -> None:
    rows = [
        [shown(as_text(one.path)), *(_answer_lines(one) if one.error is None else [f"({shown(one.error)})", "", ""])]
        for one in predictions
    ]
    _render([words("image"), words("class"), Column("probability"), Column("unfamiliarity")], rows, file)


def _group_table(groups: Iterable[GroupPrediction], file: IO[str]) -> None:
    rows = []
    for one in groups:
        unread = f" ({len(one.errors)} not read)" if one.errors else ""
        rows.append([shown(as_text(one.name)), f"{len(one.paths)}{unread}", *_answer_lines(one)])
    heads = [words("group"), Column("photographs"), words("class"), Column("probability"), Column("unfamiliarity")]
    _render(heads, rows, file)


def _judgement(one: Prediction | GroupPrediction) -> tuple[str | None, str | None]:
    """Unfamiliarity, and whether it is none of the classes, as cells of CSV."""
    if one.unfamiliarity is None:
        return None, None
    return f"{one.unfamiliarity:.4f}", "yes" if one.is_unfamiliar else "no"


def _csv(predictions: Iterable[Prediction], file: IO[str]) -> None:
    writer = csv_writer(file)
    writer.writerow(["path", "rank", "class", "probability", "unfamiliarity", "none_of_these", "error"])
    for one in predictions:
        path = as_text(one.path)
        for rank, (name, share) in enumerate(zip(one.classes, one.probabilities, strict=True), 1):
            writer.writerow([path, rank, name, f"{share:.6f}", *_judgement(one), None])
        if one.error is not None:
            writer.writerow([path, None, None, None, None, None, one.error])


def _group_csv(groups: Iterable[GroupPrediction], file: IO[str]) -> None:
    writer = csv_writer(file)
    columns = [
        "group",
        "photographs",
        "rank",
        "class",
        "probability",
        "unfamiliarity",
        "none_of_these",
        "path",
        "error",
    ]
    writer.writerow(columns)
    for one in groups:
        start = [as_text(one.name), len(one.paths)]
        for rank, (name, share) in enumerate(zip(one.classes, one.probabilities, strict=True), 1):
            writer.writerow([*start, rank, name, f"{share:.6f}", *_judgement(one), None, None])
        for path, error in one.errors:
            writer.writerow([*start, None, None, None, None, None, as_text(path), error])


def _top(one: Prediction | GroupPrediction) -> dict[str, Any]:
    pairs = zip(one.classes, one.probabilities, strict=True)
    found: dict[str, Any] = {"top": [{"class": name, "probability": round(p, 6)} for name, p in pairs]}
    if one.unfamiliarity is not None:
        found |= {"unfamiliarity": round(one.unfamiliarity, 4), "none_of_these": one.is_unfamiliar}
    return found


def _jsonl(predictions: Iterable[Prediction], file: IO[str]) -> None:
    for one in predictions:
        line = {"path": as_text(one.path), **_top(one), "error": one.error}
        file.write(json.dumps(line, ensure_ascii=False) + "\n")
        file.flush()


def _group_jsonl(groups: Iterable[GroupPrediction], file: IO[str]) -> None:
    for one in groups:
        errors = [{"path": as_text(path), "error": error} for path, error in one.errors]
        line = {"group": as_text(one.name), "paths": list(map(as_text, one.paths)), **_top(one), "errors": errors}
        file.write(json.dumps(line, ensure_ascii=False) + "\n")
