"""Image folders and CSV files, and the registry of everything that `clca.data.open` can read."""

import csv
import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import TextIO

from clca.data.images import EXTENSIONS
from clca.data.sources.listing import Listing, check_classes, with_validation
from clca.data.sources.skipped import NOT_READ, describe_empty_class, describe_unused, is_set_aside
from clca.data.sources.splits import Samples, split_by_rule
from clca.data.sources.ultra_fgvc import ULTRA_FGVC, looks_like_ultra_fgvc, read_ultra_fgvc, recognise, sets_below
from clca.data.sources.walk import Identity, enclosing, identity, is_hidden, visible_files
from clca.errors import ClcaError, brief, reason
from clca.system.numbers import is_whole_number
from clca.system.paths import expanded, shown

SPLIT_NAMES = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
"""Names of split folders (and values of a CSV's split column), in lower case, and the split each means."""

# Limits of a CSV file, far beyond those of any list of images that one process reads.
MOST_BYTES = 256 << 20
MOST_ROWS = 1_000_000
LONGEST_LINE = 1 << 16
MOST_COLUMNS = 1_000
LONGEST_LABEL = 1_000
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")

_PHOTOGRAPH = re.compile(rb"\xff\xd8\xff|\x89PNG\r\n|II\*\0|MM\0\*|RIFF....WEBP", re.DOTALL)


def read_listing(root: str | Path, source: str | None = None) -> Listing:
    """List the images under `root` with the named source, or with the one whose layout it has.

    Raises:
        ClcaError: For a path that does not exist or cannot be read, an unknown source, or a layout that is none of
            those known.
    """
    root = expanded(root)
    if source is not None and source not in SOURCES:
        raise ClcaError(f"unknown source {source!r}: choose from {', '.join([*SOURCES, 'leaves'])}")
    try:
        if not root.exists():
            raise ClcaError(f"{root}: no such file or folder")
        return SOURCES[source or find_source(root)](root)
    except OSError as error:
        raise ClcaError(f"{error.filename or root}: cannot be read ({reason(error)})") from None


def find_source(root: Path) -> str:
    """The name of the source whose layout `root` has."""
    if root.is_file():
        if root.suffix.lower() == ".csv":
            return "csv"
        raise ClcaError(f"{root}: is a file; give a folder of images or a .csv file")
    if _split_folders(root):
        return "folder"
    if looks_like_ultra_fgvc(root):
        return recognise(root)
    return "csv" if _csv_in(root) is not None and not _folders(root) else "folder"


def read_folder(root: Path) -> Listing:
    """`root/{train,val,test}/class/*`, or `root/class/*` with the splits made by rule.

    Classes are the folder names in plain sorted order, as torchvision has them; images lie at any depth below. Split
    folders may also be called training, valid, validation, dev or testing. Without a validation folder, validation is
    one training image in five of each class, by rule.
    """
    if not root.is_dir():
        raise ClcaError(f"{root}: is not a folder")
    split_folders = _split_folders(root)
    problems: list[str] = []
    if not split_folders:
        classes = _class_folders(root)
        apart = _apart(root, {root: classes})
        unused = list(_images_beside(root, classes))
        splits = split_by_rule(_images_of(root, classes, apart, unused, problems))
    else:
        names = {split: _class_folders(folder) for split, folder in split_folders.items()}
        classes = sorted(set().union(*names.values()))
        apart = _apart(root, {folder: names[split] for split, folder in split_folders.items()})
        index = {name: label for label, name in enumerate(classes)}
        splits = {}
        unused = list(_images_beside(root, [folder.name for folder in split_folders.values()]))
        for split, folder in split_folders.items():
            unused.extend(_images_beside(folder, names[split]))
            found = _images_of(folder, names[split], apart, unused, problems, may_be_empty=split != "train")
            splits[split] = [(path, index[names[split][label]]) for path, label in found]
    if unused and not any(splits.values()):
        raise ClcaError(f"{root}: no images to use: {'; '.join(describe_unused(root, unused))}")
    if problems and not any(splits.values()):
        raise ClcaError(problems[0])
    problems += check_classes(root, classes, splits)
    return Listing(root, "folder", classes, with_validation(splits), problems, unused)


def read_csv(root: Path) -> Listing:
    r"""A CSV file (or a folder with exactly one) with columns path, label and, if there are splits, split.

    Paths are relative to the CSV file or absolute. Labels may be any text; classes are in sorted order, by value where
    every label is a whole number. Semicolons between columns, as spreadsheets write them where the comma is a decimal
    point, and Windows' \ in paths are understood too. Without a split column, or without validation rows, the rule of
    folders holds.

    Raises:
        ClcaError: It is no such file, or exceeds a limit: 256 MiB, a million rows, 65,536 characters a line, 1,000
            columns, 1,000 characters a label.
    """
    file = _csv_in(root) if root.is_dir() else root
    if file is None:
        raise ClcaError(f"{root}: holds no or several .csv files: name the one with columns path,label[,split]")
    if not file.is_file():
        raise ClcaError(f"{file}: is not a regular file")
    rows, missing = [], 0
    first_missing: list[str] = []
    for line, row in _rows(file, required=("path", "label")):
        path = file.parent / row["path"]
        if "\\" in row["path"] and not os.path.isfile(path):  # as Windows writes it
            path = file.parent / row["path"].replace("\\", "/")
        if not os.path.isfile(path):  # of a name that is too long, Path's own would raise an error
            missing += 1
            if len(first_missing) < 5:
                first_missing.append(brief(shown(row["path"])))
            continue
        given = (row.get("split") or "").lower()
        if given and given not in SPLIT_NAMES:
            raise ClcaError(f"{file}, line {line}: unknown split {brief(repr(given), 60)}: use train, val or test")
        rows.append((path, row["label"], SPLIT_NAMES.get(given, "")))
    problems = []
    if missing:
        problems.append(f"{file}: {missing} file(s) missing, relative to the CSV file: {', '.join(first_missing)}")
    twice = [str(path) for path, times in Counter(path for path, _, _ in rows).items() if times > 1]
    if twice:
        problems.append(f"{file}: {len(twice)} file(s) listed more than once: {', '.join(twice[:5])}")
    labels = {label for _, label, _ in rows}
    numeric = all(map(is_whole_number, labels))
    classes = sorted(labels, key=(lambda label: (int(label), label)) if numeric else None)
    index = {name: label for label, name in enumerate(classes)}
    if any(split for _, _, split in rows):
        splits: dict[str, Samples] = {"train": [], "val": [], "test": []}
        for path, label, split in rows:
            splits[split or "train"].append((path, index[label]))
    else:
        splits = split_by_rule([(path, index[label]) for path, label, _ in rows])
    if not rows and problems:
        raise ClcaError(problems[0])
    problems += check_classes(file, classes, splits)
    return Listing(root, "csv", classes, with_validation(splits), problems)


def _rows(file: Path, required: tuple[str, ...]) -> Iterator[tuple[int, dict[str, str]]]:
    """Line numbers and stripped values of a CSV file, after a check that the required columns are there and filled."""
    try:
        with file.open(newline="", encoding="utf-8-sig") as stream:
            head = stream.readline(LONGEST_LINE)
            stream.seek(0)
            delimiter = ";" if head.count(";") > head.count(",") else ","
            reader = csv.DictReader(_lines(stream, file), delimiter=delimiter)
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
                if not all(values.get(name) for name in required):
                    raise ClcaError(f"{file}, line {reader.line_num}: {' or '.join(required)} is empty")
                _check_label(values.get("label", ""), f"{file}, line {reader.line_num}")
                yield reader.line_num, values
    except (UnicodeDecodeError, csv.Error) as error:
        raise ClcaError(f"{file}: is not a CSV file in UTF-8 ({error}): save it as that") from None


def _check_label(label: str, where: str) -> None:
    if len(label) > LONGEST_LABEL:
        raise ClcaError(f"{where}: a label of {len(label):,} characters; at most {LONGEST_LABEL:,} are read")
    if _CONTROL.search(label):
        raise ClcaError(f"{where}: the label {shown(label[:60])!r} has a control character: rename the class")


def _lines(stream: TextIO, file: Path) -> Iterator[str]:
    """The lines of a file, each of which, and all together, stay within the limits."""
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


def _csv_in(folder: Path) -> Path | None:
    files = [path for path in folder.iterdir() if path.suffix.lower() == ".csv" and path.is_file()]
    return files[0] if len(files) == 1 else None


def _folders(parent: Path) -> list[Path]:
    """Sub-folders that may be classes or splits, in sorted order: none that is hidden or set aside by a leading _."""
    return [path for path in _visible_folders(parent) if not path.name.startswith("_")]


def _visible_folders(parent: Path) -> list[Path]:
    found = (path for path in parent.iterdir() if path.is_dir())
    return sorted((path for path in found if not is_hidden(path.name)), key=lambda path: path.name)


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
        raise ClcaError(f"{folder}: holds the data set one level further down: give {folder / names[0]}")
    if sets := sets_below(folder, names):
        these = "the data set" if len(sets) == 1 else f"the data sets {', '.join(sets)}"
        raise ClcaError(f"{folder}: holds {these} one level further down: give {folder / sets[0]}")
    return names


def _apart(root: Path, classes: dict[Path, list[str]]) -> set[Identity]:
    """What no link in a class folder leads into: the class folders, all that they lie in, and what that lies in."""
    folders = [path for parent, names in classes.items() for path in (parent, *(parent / name for name in names))]
    return enclosing(root) | {found for path in folders if (found := identity(path)) is not None}


def _images_of(
    folder: Path,
    classes: list[str],
    apart: Collection[Identity],
    unused: list[Path],
    problems: list[str],
    *,
    may_be_empty: bool = False,
) -> Samples:
    """The images of each class.

    Args:
        folder: Holds the class folders.
        classes: Their names.
        apart: Folders that no link in them leads into.
        unused: Is given the images that are left out.
        problems: Is given a line for each folder that cannot be listed and each class without images.
        may_be_empty: A class without images is no problem.
    """

    def failed(error: OSError) -> None:
        problems.append(f"{error.filename}: this folder cannot be read ({reason(error)}): allow it, or move it away")

    samples: Samples = []
    for label, name in enumerate(classes):
        before = len(problems)
        files = visible_files(folder / name, followlinks=True, apart=apart, failed=failed)
        images = sorted(path for path in files if _is_image(path))
        left = [path for path in images if not _is_read(path) or is_set_aside(path.relative_to(folder / name))]
        unused += left
        if len(left) == len(images) and len(problems) == before and not may_be_empty:
            problems.append(describe_empty_class(folder / name, left))
        out = set(left)
        samples.extend((path, label) for path in images if path not in out)
    return samples


def _images_beside(folder: Path, known: Iterable[str]) -> Iterator[Path]:
    """The images in `folder` that lie in none of the known sub-folders."""
    beside = (path for path in sorted(folder.iterdir()) if not is_hidden(path.name))
    yield from (path for path in beside if path.is_file() and _is_image(path))
    for other in _visible_folders(folder):
        if other.name not in known and not other.is_symlink():  # which may lead anywhere
            yield from sorted(path for path in visible_files(other, followlinks=False) if _is_image(path))


def _is_read(path: Path) -> bool:
    return os.path.splitext(path.name)[1].lower() in EXTENSIONS


def _is_image(path: Path) -> bool:
    """Whether a file is an image by its name, of a format that is read or not; without an ending, by its content."""
    ending = os.path.splitext(path.name)[1].lower()
    return ending in EXTENSIONS or ending in NOT_READ or (not ending and _begins_as_a_photograph(path))


def _begins_as_a_photograph(path: Path) -> bool:
    try:
        if not path.is_file():  # a FIFO would be waited for
            return False
        with path.open("rb") as file:
            return _PHOTOGRAPH.match(file.read(12)) is not None
    except OSError:
        return False


SOURCES: dict[str, Callable[[Path], Listing]] = {"folder": read_folder, "csv": read_csv}
"""Every source of image files by name; each lists the images under a path."""
for _name in ULTRA_FGVC:
    SOURCES[_name] = lambda root, name=_name: read_ultra_fgvc(root, name)  # type: ignore[misc]
