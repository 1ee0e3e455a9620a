"""Image folders and CSV files, and the registry of all sources that `clca.data.open` can read."""

import csv
import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import TextIO

from clca.data.sources.csv_text import SAVE_AS, open_csv, read_table
from clca.data.sources.leftovers import is_leftover
from clca.data.sources.listing import Listing, check_classes, check_training_classes, first_few, with_validation
from clca.data.sources.skipped import (
    describe_empty_class,
    describe_unused,
    images_in_leftovers,
    in_underscore_folder,
    is_image,
    is_read,
)
from clca.data.sources.splits import Samples, split_by_rule
from clca.data.sources.ultra_fgvc import (
    ULTRA_FGVC,
    identify_set,
    looks_like_ultra_fgvc,
    read_ultra_fgvc,
    sets_in_subfolders,
)
from clca.data.sources.walk import FolderId, folder_id, is_hidden, visible_files, with_parents
from clca.errors import ClcaError, brief, reason
from clca.system.files import original_cell
from clca.system.numbers import is_whole_number
from clca.system.paths import as_path, as_text, expanded, shown

SPLIT_NAMES = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
"""Names of split folders, and values of the split column of a CSV file, in lower case → split."""

# Limits of a CSV file, far beyond any real list of images.
MOST_BYTES = 256 << 20
MOST_ROWS = 1_000_000
LONGEST_LINE = 1 << 16
MOST_COLUMNS = 1_000
LONGEST_LABEL = 1_000
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")


def read_listing(root: str | Path, source: str | None = None, *, to_train: bool = True) -> Listing:
    """List the images under `root` with the named source, or with the source that matches its layout.

    Args:
        root: The folder or CSV file.
        source: A key of `SOURCES`; None detects it.
        to_train: False for images that a trained model is applied to, which may be of one class, or of classes that
            their own training split lacks.

    Raises:
        ClcaError: The path does not exist or cannot be read, or the source or layout is unknown.
    """
    root = expanded(root)
    if source is not None and source not in SOURCES:
        raise ClcaError(f"unknown source {source!r}: choose from {', '.join([*SOURCES, 'leaves'])}")
    try:
        if not root.exists():
            raise ClcaError(f"{root}: no such file or folder")
        listing = SOURCES[source or find_source(root)](root)
    except OSError as error:
        raise ClcaError(f"{error.filename or root}: cannot be read ({reason(error)})") from None
    if to_train:
        listing.problems.extend(check_training_classes(listing.root, listing.classes, listing.splits))
    return listing


def find_source(root: Path) -> str:
    """The name of the source that matches the layout of `root`."""
    if root.is_file():
        if root.suffix.lower() in (".csv", ".tsv", ".txt"):  # Excel's "Unicode Text" is a .txt
            return "csv"
        raise ClcaError(f"{root}: is a file; choose a folder of images or a .csv file")
    if _split_folders(root):
        return "folder"
    if looks_like_ultra_fgvc(root):
        return identify_set(root)
    return "csv" if csv_in(root) is not None and not _folders(root) else "folder"


def read_folder(root: Path) -> Listing:
    """Read `root/{train,val,test}/class/*`, or `root/class/*` with splits made by a fixed rule.

    Classes are the sorted folder names, as in torchvision; images may be at any depth below. Split folders may also be
    named training, valid, validation, dev or testing. Without a validation folder, one training image in five of each
    class is held out for validation by a fixed rule.
    """
    if not root.is_dir():
        raise ClcaError(f"{root}: is not a folder")
    split_folders = _split_folders(root)
    problems: list[str] = []
    if not split_folders:
        classes = _class_folders(root)
        excluded = _excluded_folders(root, {root: classes})
        unused = list(_images_beside(root, classes))
        splits = split_by_rule(_images_of(root, classes, excluded, unused, problems))
    else:
        names = {split: _class_folders(folder) for split, folder in split_folders.items()}
        classes = sorted(set().union(*names.values()), key=as_text)
        excluded = _excluded_folders(root, {folder: names[split] for split, folder in split_folders.items()})
        index = {name: label for label, name in enumerate(classes)}
        splits = {}
        unused = list(_images_beside(root, [folder.name for folder in split_folders.values()]))
        for split, folder in split_folders.items():
            unused.extend(_images_beside(folder, names[split]))
            found = _images_of(folder, names[split], excluded, unused, problems, may_be_empty=split != "train")
            splits[split] = [(path, index[names[split][label]]) for path, label in found]
    if unused and not any(splits.values()):
        raise ClcaError(f"{root}: no usable images: {'; '.join(describe_unused(root, unused))}")
    if problems and not any(splits.values()):
        raise ClcaError(problems[0])
    classes = [as_text(name) for name in classes]
    check_classes(root, classes, splits)
    made, made_val = not split_folders, not splits.get("val")
    splits = with_validation(splits)
    return Listing(root, "folder", classes, splits, problems, unused, made_splits=made, made_val=made_val)


def read_csv(root: Path) -> Listing:
    r"""Read a CSV file (or a folder with exactly one) with columns path, label and, optionally, split.

    Paths are relative to the CSV file or absolute. Labels may be any text; classes are sorted, numerically if all
    labels are integers. Semicolons or tabs as separators, a first line `sep=;` and UTF-16, as spreadsheets write them,
    and \ in paths, as on Windows, are accepted too; so is the apostrophe that our own tables put before `=` and `-`.
    Without a split column, or without validation rows, the same rules hold as for folders.

    Raises:
        ClcaError: It is not such a file, or exceeds a limit: 256 MiB, a million rows, 65,536 characters per line, 1,000
            columns, 1,000 characters per label.
    """
    file = csv_in(root) if root.is_dir() else root
    if file is None:
        raise ClcaError(f"{root}: contains no .csv file or several: choose the one with columns path,label[,split]")
    if not file.is_file():
        raise ClcaError(f"{file}: is not a regular file")
    rows, missing = [], 0
    first_missing: list[str] = []
    for line, row in _rows(file, required=("path", "label")):
        path = _listed_file(file.parent, row["path"])
        if path is None:
            missing += 1
            if len(first_missing) < 5:
                first_missing.append(brief(shown(row["path"])))
            continue
        split_name = (row.get("split") or "").lower()
        if split_name and split_name not in SPLIT_NAMES:
            raise ClcaError(f"{file}, line {line}: unknown split {brief(repr(split_name), 60)}: use train, val or test")
        rows.append((path, original_cell(row["label"]), SPLIT_NAMES.get(split_name, "")))
    problems = []
    if missing:
        problems.append(f"{file}: {missing} file(s) missing, relative to the CSV file: {', '.join(first_missing)}")
    repeated = [str(path) for path, times in Counter(path for path, _, _ in rows).items() if times > 1]
    if repeated:
        problems.append(f"{file}: {len(repeated)} file(s) listed more than once: {first_few(repeated)}")
    labels = {label for _, label, _ in rows}
    numeric = all(map(is_whole_number, labels))
    classes = sorted(labels, key=(lambda label: (int(label), label)) if numeric else None)
    index = {name: label for label, name in enumerate(classes)}
    made = not any(split for _, _, split in rows)
    if not made:
        splits: dict[str, Samples] = {"train": [], "val": [], "test": []}
        for path, label, split in rows:
            splits[split or "train"].append((path, index[label]))
    else:
        splits = split_by_rule([(path, index[label]) for path, label, _ in rows])
    if not rows and problems:
        raise ClcaError(problems[0])
    check_classes(file, classes, splits)
    made_val = not splits.get("val")
    return Listing(root, "csv", classes, with_validation(splits), problems, made_splits=made, made_val=made_val)


def read_columns(file: Path, required: tuple[str, ...]) -> list[dict[str, str]]:
    """The rows of a CSV file whose columns `path` and others must exist and not be empty; its paths are made absolute.

    Raises:
        ClcaError: It is no such file, or exceeds a limit, as for `read_csv`.
    """
    try:
        return [
            row | {"path": str(_listed_file(file.parent, row["path"]) or file.parent / as_path(row["path"]))}
            for _, row in _rows(file, required)
        ]
    except OSError as error:
        raise ClcaError(f"{file}: cannot be read ({reason(error)})") from None


def _listed_file(folder: Path, name: str) -> Path | None:
    """The file that a list names, as it is, as on Windows, or as our own tables write it; None if there is none."""
    original = original_cell(name)
    for spelling in dict.fromkeys((name, name.replace("\\", "/"), original, original.replace("\\", "/"))):
        path = folder / as_path(spelling)
        if os.path.isfile(path):  # Path.is_file raises an error for names that are too long
            return path
    return None


def _rows(file: Path, required: tuple[str, ...]) -> Iterator[tuple[int, dict[str, str]]]:
    """Line numbers and stripped values of a CSV file whose required columns must exist and not be empty."""
    try:
        with open_csv(file) as stream:
            reader, skipped = read_table(_lines(stream, file), required)
            columns = [(name or "").strip() for name in reader.fieldnames or []]
            if len(columns) > MOST_COLUMNS:
                raise ClcaError(f"{file}: has {len(columns):,} columns; at most {MOST_COLUMNS:,} are read")
            if not set(required) <= set(columns):
                found = brief(shown(", ".join(columns))) or "none"
                raise ClcaError(f"{file}: needs the columns {', '.join(required)}; has {found}")
            reader.fieldnames = columns
            for number, row in enumerate(reader, start=1):
                if number > MOST_ROWS:
                    raise ClcaError(f"{file}: has more than {MOST_ROWS:,} rows; split it")
                values = {name: (row[name] or "").strip() for name in columns if isinstance(row.get(name), str)}
                line = reader.line_num + skipped
                if not all(values.get(name) for name in required):
                    raise ClcaError(f"{file}, line {line}: {' or '.join(required)} is empty")
                _check_label(values.get("label", ""), f"{file}, line {line}")
                yield line, values
    except (UnicodeDecodeError, csv.Error) as error:
        raise ClcaError(f"{file}: is not a CSV file in UTF-8 ({error}): {SAVE_AS}") from None


def _check_label(label: str, where: str) -> None:
    if len(label) > LONGEST_LABEL:
        raise ClcaError(f"{where}: a label of {len(label):,} characters; at most {LONGEST_LABEL:,} are read")
    if _CONTROL.search(label):
        raise ClcaError(f"{where}: the label {shown(label[:60])!r} has a control character: rename the class")


def _lines(stream: TextIO, file: Path) -> Iterator[str]:
    """The lines of a file, within the limits of line length and file size."""
    read = 0
    while line := stream.readline(LONGEST_LINE + 1):
        read += len(line)
        if len(line) > LONGEST_LINE:
            raise ClcaError(
                f"{file}: has a line of more than {LONGEST_LINE:,} characters, so it is not a list of images"
            )
        if read > MOST_BYTES:
            raise ClcaError(f"{file}: is larger than {MOST_BYTES >> 20} MiB; split it")
        yield line


def csv_in(folder: Path) -> Path | None:
    files = [path for path in folder.iterdir() if path.suffix.lower() == ".csv" and path.is_file()]
    return files[0] if len(files) == 1 else None


def _folders(parent: Path) -> list[Path]:
    """Sorted subfolders that may be classes or splits: not hidden, of no system, and without _ at the beginning."""
    return [path for path in _visible_folders(parent) if not path.name.startswith("_")]


def _visible_folders(parent: Path) -> list[Path]:
    found = (path for path in parent.iterdir() if path.is_dir())
    return sorted(
        (path for path in found if not is_hidden(path.name) and not is_leftover(path)),
        key=lambda path: as_text(path.name),
    )


def _split_folders(root: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for folder in _folders(root):
        split = SPLIT_NAMES.get(folder.name.lower())
        if split in found:
            raise ClcaError(f"{root}: {found[split].name} and {folder.name} both mean {split!r}: keep one of them")
        if split is not None:
            found[split] = folder
    return {split: found[split] for split in ("train", "val", "test") if split in found}


def _class_folders(folder: Path) -> list[str]:
    names = [path.name for path in _folders(folder)]
    if not names:
        raise ClcaError(f"{folder}: no class folders with images: expected one folder a class")
    if len(names) == 1 and _split_folders(folder / names[0]):
        raise ClcaError(f"{folder}: contains the data set one level down: use {folder / names[0]}")
    if sets := sets_in_subfolders(folder, names):
        these = "the data set" if len(sets) == 1 else f"the data sets {', '.join(sets)}"
        raise ClcaError(f"{folder}: contains {these} one level down: use {folder / sets[0]}")
    return names


def _excluded_folders(root: Path, classes: dict[Path, list[str]]) -> set[FolderId]:
    """Folders that links in a class folder must not enter: all class folders, and all folders above them."""
    folders = [path for parent, names in classes.items() for path in (parent, *(parent / name for name in names))]
    return with_parents(root) | {found for path in folders if (found := folder_id(path)) is not None}


def _images_of(
    folder: Path,
    classes: list[str],
    excluded: Collection[FolderId],
    unused: list[Path],
    problems: list[str],
    *,
    may_be_empty: bool = False,
) -> Samples:
    """List the images of each class.

    Args:
        folder: The parent of the class folders.
        classes: Names of the class folders.
        excluded: Folders that links must not enter.
        unused: Images that are left out are appended to it.
        problems: A line is appended for each folder that cannot be listed and each class without images.
        may_be_empty: Whether classes without images are accepted.
    """

    def on_error(error: OSError) -> None:
        problems.append(
            f"{error.filename}: this folder cannot be read ({reason(error)}): change its permissions, or move it away"
        )

    samples: Samples = []
    for label, name in enumerate(classes):
        before, leftovers = len(problems), list[Path]()
        files = visible_files(
            folder / name, followlinks=True, excluded=excluded, on_error=on_error, leftovers=leftovers
        )
        images = sorted(path for path in files if is_image(path))
        left_out = [
            path for path in images if not is_read(path) or in_underscore_folder(path.relative_to(folder / name))
        ]
        skipped = set(left_out)
        found = [(path, label) for path in images if path not in skipped]
        left_out += images_in_leftovers(leftovers)
        unused += left_out
        if not found and len(problems) == before and not may_be_empty:
            problems.append(describe_empty_class(folder / name, left_out))
        samples += found
    return samples


def _images_beside(folder: Path, known: Iterable[str]) -> Iterator[Path]:
    """The images in `folder` that are not in one of the known subfolders."""
    beside = (path for path in sorted(folder.iterdir()) if not is_hidden(path.name))
    yield from (path for path in beside if path.is_file() and is_image(path))
    leftovers = sorted(path for path in folder.iterdir() if path.is_dir() and is_leftover(path))
    for other in _visible_folders(folder):
        if other.name not in known and not other.is_symlink():  # a link may lead anywhere
            files = visible_files(other, followlinks=False, leftovers=leftovers)
            yield from sorted(path for path in files if is_image(path))
    yield from images_in_leftovers(leftovers)


SOURCES: dict[str, Callable[[Path], Listing]] = {"folder": read_folder, "csv": read_csv}
"""All sources of image files by name; each lists the images under a path."""
for _name in ULTRA_FGVC:
    SOURCES[_name] = lambda root, name=_name: read_ultra_fgvc(root, name)  # type: ignore[misc]
