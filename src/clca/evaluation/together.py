"""`predict_together(model, images, by)`: one answer for all photographs of a plant, pot or session."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from clca.data.sources.folder_csv import read_columns
from clca.data.sources.grouping import group_of_path
from clca.data.sources.photographs import Photographs, find_photographs
from clca.errors import ClcaError
from clca.evaluation.predictor import ImageAnswer, answers, found_photographs, ready_model
from clca.models.ranking import most_likely
from clca.models.token_reduced_vit import TokenReducedViT

FOLDER = "folder"
"""Groups by folder."""

_LEAST = 1e-12  # of a probability, so that one image cannot rule a class out for all others


@dataclass(frozen=True)
class GroupPrediction:
    """The prediction for several photographs of one thing.

    Attributes:
        name: Of the group.
        paths: The files that were read.
        classes, probabilities: The most likely classes, best first, and their probabilities; empty if no file could be
            read.
        unfamiliarity: The median of the photographs'; None where the model has no confidence at its keep rate.
        errors: Files that could not be read, and why.
    """

    name: str
    paths: tuple[Path, ...]
    classes: tuple[str, ...] = ()
    probabilities: tuple[float, ...] = ()
    unfamiliarity: float | None = None
    errors: tuple[tuple[Path, str], ...] = ()

    @property
    def is_unfamiliar(self) -> bool:
        """Whether it is taken for none of the classes."""
        return self.unfamiliarity is not None and self.unfamiliarity > 1


def predict_together(
    model: TokenReducedViT | str | Path,
    paths: str | Path | Iterable[str | Path] | Photographs,
    by: str,
    top_k: int = 5,
    *,
    keep_rate: float | tuple[float, ...] | None = None,
    batch_size: int = 32,
    device: str = "auto",
    precision: str = "auto",
    compile: bool = False,
) -> list[GroupPrediction]:
    """Classify groups of photographs, in the order in which the groups first occur.

    The answer is that of the mean of the photographs' log-probabilities, which are calibrated where the model's
    confidence allows: as if each were evidence of its own, weighed so that ten photographs of one plant, which resemble
    one another, do not make it ten times as sure.

    Args:
        model, paths, top_k, keep_rate, batch_size, device, precision, compile: As for `predict`.
        by: "folder"; a column of the CSV file that names the photographs; or a regular expression, what its
            parentheses match in the path being the group.

    Raises:
        ClcaError: As for `predict`; or a photograph is in no group.
    """
    ready = ready_model(model, keep_rate)
    found, group_of = grouped_photographs(paths, by)
    members: dict[str, list[ImageAnswer]] = {}
    for path in found.files:
        members.setdefault(group_of(path), [])
    for one in answers(ready, found, batch_size=batch_size, device=device, precision=precision, compile=compile):
        members[group_of(one.path)].append(one)
    classes = ready.classes or []
    return [_together(name, each, classes, top_k) for name, each in members.items()]


def grouped_photographs(
    paths: str | Path | Iterable[str | Path] | Photographs, by: str
) -> tuple[Photographs, Callable[[Path], str]]:
    """The photographs, and the group of each, as for `predict_together`."""
    names = [paths] if isinstance(paths, (str, Path)) else paths
    tables = [] if isinstance(names, Photographs) else [Path(name) for name in names]
    if tables and all(name.suffix.lower() == ".csv" and name.is_file() for name in tables):
        groups: dict[Path, str] = {}
        for table in tables:
            for row in read_columns(table, ("path", by)):
                groups[Path(row["path"])] = row[by]
        return found_photographs(list(groups)), groups.__getitem__
    found = found_photographs(names if isinstance(names, Photographs) else find_photographs(tables))
    if by == FOLDER:
        return found, lambda path: group_of(path, by)
    chosen = {path: group_of_path(path.as_posix(), by, "--together") for path in found.files}
    without = [path for path, name in chosen.items() if not name]
    if without:
        raise ClcaError(
            f"--together {by!r}: is not found in {len(without)} of {len(chosen)} file names, such as {without[0]}; "
            f'give a regular expression, "{FOLDER}", or a CSV file with the columns path and {by}'
        )
    return found, chosen.__getitem__


def group_of(path: Path, by: str) -> str:
    """The group of a photograph, by its folder or by a regular expression.

    Raises:
        ClcaError: The expression is none, or is not found in the path.
    """
    if by == FOLDER:
        return str(path.parent)
    found = group_of_path(path.as_posix(), by, "--together")
    if not found:
        raise ClcaError(f"--together {by!r}: is not found in {path}")
    return found


def _together(name: str, each: list[ImageAnswer], classes: list[str], top_k: int) -> GroupPrediction:
    read = [one for one in each if one.probabilities is not None]
    errors = tuple((one.path, one.error or "") for one in each if one.probabilities is None)
    if not read:
        return GroupPrediction(name, (), errors=errors)
    shares, indices = most_likely(combined([one.probabilities for one in read if one.probabilities is not None]), top_k)
    distances = [one.unfamiliarity for one in read if one.unfamiliarity is not None]
    return GroupPrediction(
        name,
        tuple(one.path for one in read),
        tuple(classes[k] for k in indices.tolist()),
        tuple(shares.tolist()),
        statistics.median(distances) if distances else None,
        errors,
    )


def combined(probabilities: Iterable[Tensor]) -> Tensor:
    """The probabilities of a group, [K], from those of its photographs: their geometric mean, summing to 1."""
    return torch.stack(list(probabilities)).float().clamp(min=_LEAST).log().mean(dim=0).softmax(dim=0)
