"""Predictions as a table, CSV or JSON lines."""

import csv
import json
import sys
from collections.abc import Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import IO, Literal

from rich.console import Console
from rich.table import Table

from clca.errors import ClcaError, reason
from clca.training.prediction import Prediction
from clca.training.run_folder import replacing


def write_answers(answers: Iterable[Prediction], form: Literal["table", "csv", "jsonl"], out: Path | None) -> None:
    """Write predictions, each as soon as it is there (a table once all are).

    Args:
        answers: Without errors.
        form: "table" is for reading; "csv" has a row for each class of each image; "jsonl" an object for each image.
        out: File, written whole or not at all; None for standard output.

    Raises:
        ClcaError: The folder of `out` is missing or cannot be written to.
        WorkError: The file could not be written.
    """
    writer = {"table": _table, "csv": _csv, "jsonl": _jsonl}[form]
    if out is None:
        writer(answers, sys.stdout)
        return
    if not out.parent.is_dir() or out.is_dir():
        raise ClcaError(f"--out {out}: {'is a folder' if out.is_dir() else 'there is no such folder'}")
    with replacing(out) as temporary:
        try:
            file = open(temporary, "w", encoding="utf-8", newline="")  # noqa: SIM115 (closed below)
        except OSError as error:
            raise ClcaError(f"--out {out}: cannot be written ({reason(error)})") from None
        with file if file is not None else nullcontext():
            writer(answers, file)


def _table(answers: Iterable[Prediction], file: IO[str]) -> None:
    table = Table("image", "class", title_justify="left")
    table.add_column("probability", justify="right")
    for answer in answers:
        names = "\n".join(answer.classes)
        table.add_row(str(answer.path), names, "\n".join(f"{p:.1%}" for p in answer.probabilities), end_section=True)
    if table.row_count:
        Console(file=file, width=None if file.isatty() else 160).print(table)


def _csv(answers: Iterable[Prediction], file: IO[str]) -> None:
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["path", "rank", "class", "probability"])
    for answer in answers:
        pairs = zip(answer.classes, answer.probabilities, strict=True)
        writer.writerows([answer.path, rank, name, f"{p:.6f}"] for rank, (name, p) in enumerate(pairs, 1))


def _jsonl(answers: Iterable[Prediction], file: IO[str]) -> None:
    for answer in answers:
        pairs = zip(answer.classes, answer.probabilities, strict=True)
        top = [{"class": name, "probability": round(p, 6)} for name, p in pairs]
        file.write(json.dumps({"path": str(answer.path), "top": top}, ensure_ascii=False) + "\n")
        file.flush()
