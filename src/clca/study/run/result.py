"""The outcome of `run_study`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass
class StudyResult:
    """The outcome of `run_study`.

    Attributes:
        folder: The study's folder.
        total: Number of requested runs.
        finished, failed: Of these, including runs that other processes made, now or earlier.
        made: Of the finished ones, those made by this call.
        full: The error if the disk was full, else empty; unfinished runs can be resumed later.
        interrupted: Whether Ctrl-C or a signal ended the call.
        signal: Number of that signal.
        seconds: Duration of the call.
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
