"""The outcome of `run_study`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass
class StudyResult:
    """The outcome of `run_study`.

    Attributes:
        folder: The study's.
        total: Runs that were asked for.
        finished, failed: Of these, including those that other processes made, now or before.
        made: Of the finished ones, those made by this call.
        full: Why the disk was full, if it was; unfinished runs can be resumed later.
        interrupted: Whether Ctrl-C or a signal ended it; `signal` is its number.
    """

    folder: Path
    total: int
    finished: int = 0
    failed: int = 0
    made: int = 0
    full: str = ""
    interrupted: bool = False
    signal: int = 0
    seconds: float = 0.0

    @property
    def complete(self) -> bool:
        return self.finished == self.total
