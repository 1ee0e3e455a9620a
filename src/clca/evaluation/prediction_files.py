"""Predictions as a table, CSV or JSON lines."""

import io
import json
import sys
from collections.abc import Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import IO, Any, Literal

from rich.console import Console

from clca.errors import ClcaError, reason
from clca.evaluation.predictor import Prediction
from clca.system.files import csv_encoding, csv_writer, replacing
from clca.system.paths import as_text, shown
from clca.system.tables import Column, Table, words


def write_predictions(
    predictions: Iterable[Prediction], form: Literal["table", "csv", "jsonl"], out: Path | None
) -> None:
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
    # File names that are not UTF-8: CSV keeps their bytes, and JSON uses the escapes that Python decodes.
    writer, errors = {
        "table": (_table, "backslashreplace"), "csv": (_csv, "surrogateescape"), "jsonl": (_jsonl, "backslashreplace"),
    }[form]  # fmt: skip
    if out is None:
        if isinstance(sys.stdout, io.TextIOWrapper):  # programs read UTF-8, whatever the terminal shows
            sys.stdout.reconfigure(encoding=None if form == "table" else "utf-8", errors=errors)
        writer(predictions, sys.stdout)
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
            writer(predictions, file)


NONE_OF_THESE = "none of these"


def _table(predictions: Iterable[Prediction], file: IO[str]) -> None:
    rows, judged = [], False
    for one in predictions:
        lines = [shown(name) for name in one.classes] if one.error is None else [f"({shown(one.error)})"]
        shares = [f"{probability:.1%}" for probability in one.probabilities]
        if one.is_unfamiliar:  # the classes are what it resembles most
            lines, shares = [NONE_OF_THESE, *(f"({line})" for line in lines)], ["", *shares]
        judged = judged or one.unfamiliarity is not None
        distance = "" if one.unfamiliarity is None else f"{one.unfamiliarity:.2f}"
        rows.append([shown(as_text(one.path)), "\n".join(lines), "\n".join(shares), distance])
    if rows:
        columns = [words("image"), words("class"), Column("probability"), Column("unfamiliarity")]
        if not judged:
            columns, rows = columns[:3], [row[:3] for row in rows]
        Table(columns, rows, sections=range(len(rows))).render(Console(file=file))


def _csv(predictions: Iterable[Prediction], file: IO[str]) -> None:
    writer = csv_writer(file)
    writer.writerow(["path", "rank", "class", "probability", "unfamiliarity", "none_of_these", "error"])
    for prediction in predictions:
        path, distance, none = as_text(prediction.path), None, None
        if prediction.unfamiliarity is not None:
            distance, none = f"{prediction.unfamiliarity:.4f}", "yes" if prediction.is_unfamiliar else "no"
        pairs = zip(prediction.classes, prediction.probabilities, strict=True)
        writer.writerows(
            [path, rank, name, f"{p:.6f}", distance, none, None] for rank, (name, p) in enumerate(pairs, 1)
        )
        if prediction.error is not None:
            writer.writerow([path, None, None, None, None, None, prediction.error])


def _jsonl(predictions: Iterable[Prediction], file: IO[str]) -> None:
    for prediction in predictions:
        pairs = zip(prediction.classes, prediction.probabilities, strict=True)
        top = [{"class": name, "probability": round(p, 6)} for name, p in pairs]
        line: dict[str, Any] = {"path": as_text(prediction.path), "top": top, "error": prediction.error}
        if prediction.unfamiliarity is not None:
            line |= {"unfamiliarity": round(prediction.unfamiliarity, 4), "none_of_these": prediction.is_unfamiliar}
        file.write(json.dumps(line, ensure_ascii=False) + "\n")
        file.flush()
