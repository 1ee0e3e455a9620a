"""`clca data check`: a report on a data set, to read before training on it."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict
from rich.console import Console

from clca.data.checks.decode import BadImage, Inspection, inspect_images, verify_images
from clca.data.checks.duplicates import exact_duplicates, near_duplicates
from clca.data.sources.folder_csv import read_listing
from clca.data.sources.grouping import suspected_groups
from clca.data.sources.listing import Listing, first_few
from clca.data.sources.skipped import describe_unused
from clca.system.paths import shown
from clca.system.tables import Column, Table, words

__all__ = ["CheckReport", "Duplicates", "check", "verify_images"]

FEW_IMAGES = 3
"""Classes with fewer training and validation images cause a warning (the smallest published sets have 3)."""
IMBALANCE = 10
"""A larger ratio between the image counts of the largest and the smallest class causes a warning."""

_SHOWN = 20  # rows of a table of files
_SHOWN_COPIES = 6  # files of a group of duplicates on a terminal
_UNREADABLE, _DUPLICATES = "Unreadable files", "Same image more than once"
_EMPTY = "almost all pixels are equal"
_NO_PROFILE = "sRGB or none"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True)


class Duplicates(_Frozen):
    """Files that show the same image.

    Attributes:
        paths: The files, relative to the folder of the set if they are in it.
        exact: Whether the files are identical, rather than the same image saved differently.
        splits: The splits they are in. If there are several, evaluation is not on unseen images.
        classes: The classes they are in. If there are several, at least one label is wrong.
    """

    paths: list[str]
    exact: bool
    splits: list[str]
    classes: list[str]


class CheckReport(_Frozen):
    """The result of `check`.

    Attributes:
        root: The set's folder or file.
        source: Name of the source with which it was read.
        classes: Class names.
        counts: For each split, the number of images of each class.
        sizes: Smallest, median and largest width and height in pixels.
        kinds: Number of files by format and mode.
        unreadable: Files that cannot be decoded, with the reason.
        profiles: Number of files by colour profile; sRGB and no profile are the same. Pixels are converted to sRGB.
        bad_profiles: Files whose colour profile is ignored because it cannot be used, with the reason.
        left_out: Files of which some bands are not read, with the reason.
        dark: Files that are almost black because they use few of 16 bits, with what to do.
        near_empty: Files in which almost all pixels are equal.
        duplicates: Groups of files that show the same image.
        errors: Problems that prevent training, one line each.
        warnings: Further problems, one line each.
    """

    root: str
    source: str
    classes: list[str]
    counts: dict[str, list[int]]
    sizes: dict[str, tuple[int, int]]
    kinds: dict[str, int]
    profiles: dict[str, int]
    bad_profiles: dict[str, str]
    unreadable: dict[str, str]
    left_out: dict[str, str]
    dark: dict[str, str]
    near_empty: list[str]
    duplicates: list[Duplicates]
    errors: list[str]
    warnings: list[str]

    def to_dict(self) -> dict[str, Any]:
        """The report as plain JSON values."""
        return self.model_dump(mode="json")

    def render(self, console: Console) -> None:
        """Print the report as tables; in a file or pipe, all unreadable and duplicate files are listed."""
        _print(console, f"{self.root} ({self.source})", _overview(self))
        _print(console, *_class_table(self))
        whole = () if console.is_terminal else (_UNREADABLE, _DUPLICATES)
        for title, rows in (
            (_UNREADABLE, list(self.unreadable.items())),
            ("Near-empty images", [(path, self.dark.get(path, _EMPTY)) for path in self.near_empty]),
            ("Dark images", [(path, why) for path, why in self.dark.items() if path not in set(self.near_empty)]),
            ("Bands that are not read", list(self.left_out.items())),
            ("Colour profiles that cannot be used", [(path, f"it {why}") for path, why in self.bad_profiles.items()]),
            (_DUPLICATES, [_duplicate_row(group, console) for group in self.duplicates]),
        ):
            if rows:
                _print(console, *_file_table(title, rows, None if title in whole else _SHOWN))
        for line in self.errors:
            console.print(shown(f"error: {line}"), style="red", markup=False, highlight=False, soft_wrap=True)
        for line in self.warnings:
            console.print(shown(f"warning: {line}"), style="yellow", markup=False, highlight=False, soft_wrap=True)
        if not self.errors and not self.warnings:
            console.print("No problems found.", style="green")


def check(
    root: str | Path, source: str | None = None, *, workers: int | None = None, progress: bool = True
) -> CheckReport:
    """Read every image of a data set and report its contents and problems.

    Args:
        root: As for `clca.data.open`.
        source: As for `clca.data.open`.
        workers: Number of images decoded in parallel; None: one per processor, at most 16.
        progress: Show a progress bar on a terminal if it takes longer than two seconds.

    Raises:
        ClcaError: `root` is not a data set. Problems within a data set are in `errors` of the report.
    """
    listing = read_listing(root, source)
    base = listing.root if listing.root.is_dir() else listing.root.parent
    place = {path: (split, label) for split, samples in listing.splits.items() for path, label in samples}
    results = inspect_images(list(place), workers, progress=progress)
    readable = [image for image in results if isinstance(image, Inspection)]
    bad = [image for image in results if isinstance(image, BadImage)]

    def name(path: Path) -> str:
        return shown(path.relative_to(base) if path.is_relative_to(base) else path)

    duplicates = [
        Duplicates(
            paths=[name(readable[i].path) for i in group],
            exact=exact,
            splits=sorted({place[readable[i].path][0] for i in group}),
            classes=sorted({listing.classes[place[readable[i].path][1]] for i in group}),
        )
        for exact, groups in ((True, exact_duplicates(readable)), (False, near_duplicates(readable)))
        for group in groups
    ]
    counts = {
        split: np.bincount([label for _, label in samples], minlength=len(listing.classes)).tolist()
        for split, samples in listing.splits.items()
    }
    near_empty = [name(image.path) for image in readable if image.near_empty]
    usable = [image for image in readable if image.profile_problem is None]
    profiles = dict(Counter(shown(image.profile or _NO_PROFILE) for image in usable).most_common())
    bad_profiles = {name(image.path): image.profile_problem for image in readable if image.profile_problem}
    left_out = {name(image.path): image.left_out for image in readable if image.left_out}
    dark = {name(image.path): image.dark for image in readable if image.dark}
    errors = list(listing.problems)
    if not any(counts.get("train", [])):
        errors.append(
            "no images in split train, so there is nothing to train on: add them, in a folder called train or, in a "
            "CSV file, in rows with split train"
        )
    if bad:
        errors.append(f"{len(bad)} file(s) cannot be read: {first_few([name(image.path) for image in bad])}")
    return CheckReport(
        root=str(listing.root),
        source=listing.source,
        classes=listing.classes,
        counts=counts,
        sizes=_sizes(readable),
        kinds=dict(Counter(image.kind for image in readable).most_common()),
        profiles=profiles,
        bad_profiles=bad_profiles,
        unreadable={name(image.path): image.reason for image in bad},
        left_out=left_out,
        dark=dark,
        near_empty=near_empty,
        duplicates=duplicates,
        errors=errors,
        warnings=[
            *describe_unused(listing.root, listing.unused),
            *listing.warnings,
            *_class_warnings(listing, counts),
            *_group_warnings(listing),
            *_reading_warnings(profiles, bad_profiles, left_out, dark),
            *_image_warnings(near_empty, duplicates),
        ],
    )


def _sizes(images: Sequence[Inspection]) -> dict[str, tuple[int, int]]:
    if not images:
        return {}
    sizes = np.array([image.size for image in images])
    return {
        label: (int(width), int(height))
        for label, (width, height) in (
            ("min", sizes.min(axis=0)), ("median", np.median(sizes, axis=0)), ("max", sizes.max(axis=0)),
        )
    }  # fmt: skip


def _class_warnings(listing: Listing, counts: Mapping[str, Sequence[int]]) -> list[str]:
    zero = [0] * len(listing.classes)
    learned = np.add(counts.get("train", zero), counts.get("val", zero))
    warnings = []
    few = [name for name, count in zip(listing.classes, learned, strict=True) if 0 < count < FEW_IMAGES]
    if few:
        warnings.append(f"{len(few)} class(es) with fewer than {FEW_IMAGES} training images: {first_few(few)}")
    if learned.any() and learned.max() > IMBALANCE * max(1, learned[learned > 0].min()):
        most, least = int(learned.max()), int(learned[learned > 0].min())
        warnings.append(f"classes are uneven: {most} training images in the largest, {least} in the smallest")
    for split in ("train", "test"):
        if not any(counts.get(split, [])):
            if split == "test":  # no training images is an error, reported elsewhere
                warnings.append("no images in split test")
            continue
        lacking = [name for name, count in zip(listing.classes, counts[split], strict=True) if count == 0]
        if lacking:
            warnings.append(f"{len(lacking)} class(es) without images in {split}: {first_few(lacking)}")
    return warnings


def _reading_warnings(
    profiles: Mapping[str, int], bad_profiles: Mapping[str, str], left_out: Mapping[str, str], dark: Mapping[str, str]
) -> list[str]:
    """Warnings about images whose pixels were converted, or not read as their file means them."""
    warnings = []
    if len(profiles) > 1:
        warnings.append(
            f"the images have {len(profiles)} colour profiles ({_counted(profiles)}): all are converted to sRGB, but "
            "if each class has its own, the model may learn the camera"
        )
    if bad_profiles:
        reasons = _counted(dict(Counter(bad_profiles.values()).most_common()))
        warnings.append(
            f"{len(bad_profiles)} image(s) have a colour profile that cannot be used and is ignored (it {reasons}): "
            f"{first_few(list(bad_profiles))}"
        )
    if left_out:
        warnings.append(f"{len(left_out)} image(s) have bands that are not read: {first_few(list(left_out))}")
    if dark:
        reasons = _counted(dict(Counter(dark.values()).most_common()))
        warnings.append(f"{len(dark)} image(s) are too dark ({reasons}): {first_few(list(dark))}")
    return warnings


def _counted(numbers: Mapping[str, int]) -> str:
    return ", ".join(f"{what} {number}" for what, number in numbers.items())


def _group_warnings(listing: Listing) -> list[str]:
    """Names such as plant12_1 and plant12_2 in two splits: the model would be tested on plants that it has seen."""
    found = suspected_groups(listing.splits)
    if not found:
        return []
    plants = f"{len(found)} plants (or pots, or sessions)" if len(found) > 1 else "a plant (or a pot, or a session)"
    return [
        f"by their file names, photographs of {plants} are in more than one split: "
        f"{first_few(list(map(shown, found)))}; if so, keep them together with clca train --group-by, such as "
        "--group-by '(.*)_[0-9]+'"
    ]


def _image_warnings(near_empty: Sequence[str], duplicates: Sequence[Duplicates]) -> list[str]:
    warnings = []
    if near_empty:
        warnings.append(f"{len(near_empty)} image(s) are nearly empty: {first_few(near_empty)}")
    across = [group for group in duplicates if len(group.splits) > 1]
    if across:
        warnings.append(f"{len(across)} image(s) occur in more than one split: test results are too optimistic")
    mislabelled = [group for group in duplicates if len(group.classes) > 1]
    if mislabelled:
        warnings.append(f"{len(mislabelled)} image(s) occur in more than one class: a label is wrong")
    if len(duplicates) > len(across):
        warnings.append(f"{len(duplicates) - len(across)} image(s) occur more than once within a split")
    return warnings


# --- tables -----------------------------------------------------------------------------------------------------------


def _print(console: Console, title: str, table: Table) -> None:
    console.print(shown(title), style="bold", markup=False, highlight=False, soft_wrap=True)
    table.render(console)


def _overview(report: CheckReport) -> Table:
    images = ", ".join(f"{split} {sum(counts)}" for split, counts in report.counts.items())
    sizes = ", ".join(f"{label} {width}×{height}" for label, (width, height) in report.sizes.items())
    formats = ", ".join(f"{kind} {count}" for kind, count in report.kinds.items()) or "–"
    across = sum(len(group.splits) > 1 for group in report.duplicates)
    rows = [
        ["classes", str(len(report.classes))],
        ["images", images],
        ["width × height", sizes or "none could be read"],
        ["formats", formats],
        ["colour profiles", _counted(report.profiles) or "–"],
        ["unreadable", str(len(report.unreadable))],
        ["near-empty", str(len(report.near_empty))],
        ["same image twice", f"{len(report.duplicates)} ({across} across splits)"],
    ]
    return Table([words("")] * 2, rows, headings=False)


def _class_table(report: CheckReport) -> tuple[str, Table]:
    """Number of images per class; if there are many classes, only of the smallest and the largest."""
    totals = np.sum(list(report.counts.values()), axis=0)
    order = list(range(len(report.classes)))
    title = "Images of each class"
    if len(order) > 60:
        by_size = sorted(order, key=lambda label: (totals[label], label))
        order = by_size[:10] + by_size[-10:]
        title += " (the ten smallest and the ten largest)"
    rows = [
        [shown(report.classes[label]), *(str(counts[label]) for counts in report.counts.values())] for label in order
    ]
    return title, Table([words("class"), *map(Column, report.counts)], rows)


def _duplicate_row(group: Duplicates, console: Console) -> tuple[str, str]:
    kind = "same bytes" if group.exact else "same image"
    across = f", across {' and '.join(group.splits)}" if len(group.splits) > 1 else ""
    mixed = f", labelled {' and '.join(map(shown, group.classes))}" if len(group.classes) > 1 else ""
    most = _SHOWN_COPIES if console.is_terminal else len(group.paths)
    more = [f"… and {len(group.paths) - most} more"] if len(group.paths) > most else []
    return "\n".join([*group.paths[:most], *more]), kind + across + mixed


def _file_table(title: str, rows: Sequence[tuple[str, str]], most: int | None) -> tuple[str, Table]:
    hidden = f" (the first {most} of {len(rows)})" if most is not None and len(rows) > most else ""
    lines = [["\n".join(map(shown, cell.split("\n"))) for cell in row] for row in rows[:most]]
    return title + hidden, Table([words("")] * 2, lines, headings=False)
