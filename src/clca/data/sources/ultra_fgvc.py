"""The five ultra-fine-grained leaf sets of Yu et al. (ICCV 2021): Cotton80, SoyLocal, SoyGlobal, SoyGene, SoyAgeing.

They are distributed in several layouts, which are tried in this order: `anno/train.txt` and `test.txt` (lines
`name label`, labels from 1, images in `images/`), CSV files `train.csv`, `val.csv`, `train_val.csv`, `test.csv`
(columns class_id, from 0, and dir), and, for the three sets with numeric names, the file names alone. SoyAgeing has the
layout in one folder per stage.
"""

import csv
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from clca.data import image_formats
from clca.data.sources.csv_text import SAVE_AS, open_csv, read_table
from clca.data.sources.listing import Listing, check_classes, first_few
from clca.data.sources.splits import Samples
from clca.errors import ClcaError
from clca.system.numbers import is_whole_number


@dataclass(frozen=True)
class Published:
    """Numbers of classes and images of a published set."""

    classes: int
    train: int
    test: int


STAGES = ("R1", "R3", "R4", "R5", "R6")

ULTRA_FGVC: Mapping[str, Published] = {
    "cotton80": Published(80, 240, 240),
    "soylocal": Published(200, 600, 600),
    "soyglobal": Published(1938, 5814, 5814),
    "soygene": Published(1110, 12763, 11143),
    "soyageing": Published(198, 4950, 4950),
    **{f"soyageing-{stage}": Published(198, 990, 990) for stage in STAGES},
}
"""Names of the sources, with the published counts."""

NUMERIC = ("cotton80", "soylocal", "soyglobal")
IMAGE_FOLDERS = (
    "images", "COTTON/images", "cotton_square_new", "soybean200_square", "soybean200", "soybean2000", "images_pytorch",
)  # fmt: skip
_IMAGE_NAME = re.compile(r"(?P<cultivar>.+?)(?:_(?P<stage>R\d))?_(?P<number>[0-9]{1,9})_(?P<split>train|test)")
_NUMERIC_NAME = re.compile(r"0*(?P<cultivar>[1-9][0-9]{0,4})_0*(?P<number>[1-9][0-9]{0,8})_(?P<split>train|test)")
_COLUMNS = ("class_id", "dir")
_MOST_CLASSES = 100_000  # far more than in any set
_FOLDER_HINTS = {
    "cotton": "cotton80", "local": "soylocal", "soybean2000": "soyglobal", "soybean200": "soylocal",
    "global": "soyglobal", "gene": "soygene", "age": "soyageing",
}  # fmt: skip


def looks_like_ultra_fgvc(root: Path) -> bool:
    """Return whether `root` has a layout of these sets."""
    parts = [root, *(root / stage for stage in STAGES)]
    if any(_annotations(part) or _csv_files(part) for part in parts):
        return True
    return any(_NUMERIC_NAME.fullmatch(Path(name).stem) for name in _Images(root).names)


def sets_in_subfolders(root: Path, names: Sequence[str]) -> list[str]:
    """The subfolders that contain a set, detected by its annotations or, if there is one subfolder, by its layout."""
    if len(names) == 1:
        return [name for name in names if looks_like_ultra_fgvc(root / name)]
    return [name for name in names if any(os.path.isfile(root / name / part / "anno/train.txt") for part in ("", "R1"))]


def identify_set(root: Path) -> str:
    """Identify the set at `root` by its stage folders, by its number of classes, or by the name of the folder.

    Raises:
        ClcaError: None of these identifies a set.
    """
    if any((root / stage).is_dir() for stage in STAGES):
        return "soyageing"
    stage = next((stage for stage in STAGES if root.name == stage), None)
    if stage is not None:
        return f"soyageing-{stage}"
    labels, _ = _labelled(root, numeric=True)
    classes = len({label for part in labels.values() for _, label in part})
    for name, published in ULTRA_FGVC.items():
        if published.classes == classes:
            return name
    for hint, name in _FOLDER_HINTS.items():
        if hint in root.resolve().name.lower():
            return name
    raise ClcaError(
        f"{root}: laid out like an Ultra-FGVC set, but no set has {classes} classes: name the set with source="
    )


def read_ultra_fgvc(root: Path, name: str, published: Published | None = None) -> Listing:
    """List one of the sets, in any of its layouts.

    There is no official validation split. Unless `val.csv` defines one, validation is: for Cotton80, SoyLocal and
    SoyGlobal, the last training image of each class (one of three); for SoyGene, every fifth training image of a class,
    at least one; for SoyAgeing, image 5 of each stage. No image is taken from a class with a single training image.

    Args:
        root: The folder of the set; for one stage of SoyAgeing, that of the set or of the stage.
        name: A key of `ULTRA_FGVC`.
        published: Expected counts; None uses those of `ULTRA_FGVC`.

    Returns:
        The listing, with a line in `problems` for missing files and for wrong counts.

    Raises:
        ClcaError: No layout matches, or labels do not have the format of the layout.
    """
    published = published or ULTRA_FGVC[name]
    family, _, stage = name.partition("-")
    parts = _stage_folders(root, stage) if family == "soyageing" else [root]
    names: dict[str, list[tuple[str, int]]] = defaultdict(list)
    samples: dict[str, Samples] = defaultdict(list)
    missing: list[str] = []
    for part in parts:
        labelled, images = _labelled(part, numeric=name in NUMERIC)
        for split, entries in labelled.items():
            for file_name, label in entries:
                if stage and f"_{stage}_" not in Path(file_name).name:
                    continue
                names[split].append((file_name, label))
                path = images.find(file_name)
                if path is None:
                    missing.append(file_name)
                else:
                    samples[split].append((path, label))
        if not labelled:
            layouts = "anno/train.txt and test.txt, or train.csv and test.csv" + (
                ", or images named as 1_1_train.png" if name in NUMERIC else ""
            )
            raise ClcaError(f"{part}: does not have the layout of {name}: expected {layouts}")
    if missing and not any(samples.values()):
        place = parts[0] / IMAGE_FOLDERS[0]
        raise ClcaError(f"{root}: none of the {len(missing)} images of {name} exists: put {missing[0]} … into {place}")
    classes = _class_names(entry for entries in names.values() for entry in entries)
    splits = _split(samples, family)
    problems = _count_problems(root, name, published, classes, samples, missing)
    check_classes(root, classes, splits)
    listing = Listing(root, name, classes, splits, problems)
    if leaked := [path.name for path in listing.leaked()]:
        problems.append(
            f"{root}: {len(leaked)} image(s) are listed for both training and test: {first_few(leaked)}; remove them "
            "from one list"
        )
    return listing


def _stage_folders(root: Path, stage: str) -> list[Path]:
    """The folders of SoyAgeing with the images of one stage or, if `stage` is empty, of all stages."""
    wanted = [stage] if stage else list(STAGES)
    found = [root / one for one in wanted if _annotations(root / one) or _csv_files(root / one)]
    return found or [root]  # CSV files over all stages, or one stage's own folder


def _labelled(root: Path, *, numeric: bool) -> tuple[dict[str, list[tuple[str, int]]], "_Images"]:
    """File names with labels from 0 of "train", "test" and, if there are CSV files for them, "val" and "train_val"."""
    images = _Images(root)
    if annotations := _annotations(root):
        return {split: _read_annotation(file) for split, file in annotations.items()}, images
    if files := _csv_files(root):
        return {split: _read_csv(file) for split, file in files.items()}, images
    return _from_names(root, images) if numeric else {}, images


def _annotations(root: Path) -> dict[str, Path]:
    files = {split: root / "anno" / f"{split}.txt" for split in ("train", "test")}
    if not files["train"].is_file() and (root / "COTTON" / "anno").is_dir():
        files = {split: root / "COTTON" / "anno" / f"{split}.txt" for split in ("train", "test")}
    return {split: file for split, file in files.items() if file.is_file()}


def _csv_files(root: Path) -> dict[str, Path]:
    """The CSV files of the published layout in `root`; files of the same name with other columns do not count."""
    files = {split: root / f"{split}.csv" for split in ("train", "val", "train_val", "test")}
    found = {split: file for split, file in files.items() if file.is_file()}
    return {split: file for split, file in found.items() if set(_COLUMNS) <= set(_header(file))}


def _header(file: Path) -> list[str]:
    try:
        with open_csv(file, errors="replace") as stream:
            reader, _ = read_table(stream, _COLUMNS)
            return [column.strip() for column in reader.fieldnames or []]
    except (ClcaError, csv.Error):  # not a CSV file
        return []


def _read_annotation(file: Path) -> list[tuple[str, int]]:
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ClcaError(f"{file}: is not UTF-8 text ({error})") from None
    entries = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        name, *label = line.strip().rsplit(maxsplit=1)
        if not label or not is_whole_number(label[0]) or not 1 <= int(label[0]) <= _MOST_CLASSES:
            raise ClcaError(f"{file}, line {number}: expected `name label` with a label from 1, got {line.strip()!r}")
        entries.append((name, int(label[0]) - 1))
    return entries


def _read_csv(file: Path) -> list[tuple[str, int]]:
    entries = []
    try:
        with open_csv(file) as stream:
            reader, skipped = read_table(stream, _COLUMNS)
            reader.fieldnames = [column.strip() for column in reader.fieldnames or []]
            for row in reader:
                label, name = (row["class_id"] or "").strip(), (row["dir"] or "").strip()
                if not is_whole_number(label) or int(label) >= _MOST_CLASSES or not name:
                    raise ClcaError(f"{file}, line {reader.line_num + skipped}: expected a class_id from 0 and a dir")
                entries.append((name, int(label)))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ClcaError(f"{file}: is not a CSV file in UTF-8 ({error}): {SAVE_AS}") from None
    return entries


def _from_names(root: Path, images: "_Images") -> dict[str, list[tuple[str, int]]]:
    entries: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for name in images.names:
        if match := _NUMERIC_NAME.fullmatch(Path(name).stem):
            if (int(match["number"]) % 2 == 1) != (match["split"] == "train"):
                raise ClcaError(f"{root}: {name}: odd numbers must be training images, and even ones test images")
            entries[match["split"]].append((name, int(match["cultivar"]) - 1))
    order = lambda entry: (entry[1], _number(entry[0]))  # noqa: E731
    return {split: sorted(entries[split], key=order) for split in ("train", "test") if entries[split]}


class _Images:
    """The image folder of a set: searched under its known names, and listed once."""

    def __init__(self, root: Path) -> None:
        self.folders = [folder for name in IMAGE_FOLDERS if (folder := root / name).is_dir()] + [root]
        self.listed: dict[Path, set[str]] = {}
        self.by_stem: dict[Path, dict[str, str]] = {}

    def _files(self, folder: Path) -> set[str]:
        if folder not in self.listed:
            entries = os.scandir(folder) if folder.is_dir() else ()
            self.listed[folder] = {entry.name for entry in entries if entry.is_file()}
        return self.listed[folder]

    def _by_stem(self, folder: Path) -> dict[str, str]:
        """Names of the image files in a folder by their stem in lower case."""
        if folder not in self.by_stem:
            names = sorted(filter(_is_read, self._files(folder)))
            self.by_stem[folder] = {Path(name).stem.lower(): name for name in reversed(names)}
        return self.by_stem[folder]

    @property
    def names(self) -> list[str]:
        """Names of the image files in the first folder that has any."""
        for folder in self.folders:
            if found := sorted(filter(_is_read, self._files(folder))):
                return found
        return []

    def find(self, name: str) -> Path | None:
        """Find the file of a list entry: by its path, else by its name, else with another image extension.

        Lists come from other machines: they contain paths there, and images may have been converted or renamed.
        """
        slashed = name.replace("\\", "/")
        paths = [folder / entry for entry in (name, slashed, Path(slashed).name) for folder in self.folders]
        for path in paths:
            if path.name in self._files(path.parent):
                return path
        for path in paths:
            if found := self._by_stem(path.parent).get(path.stem.lower()):
                return path.with_name(found)
        return None


def _is_read(name: str) -> bool:
    return Path(name).suffix.lower() in image_formats.EXTENSIONS


def _number(name: str) -> int:
    match = _IMAGE_NAME.fullmatch(Path(name).stem)
    return int(match["number"]) if match else 0


def _class_names(entries: Iterable[tuple[str, int]]) -> list[str]:
    """Cultivars from the file names if these agree with the labels, else the published labels (from 1)."""
    seen: dict[int, set[str]] = defaultdict(set)
    for name, label in entries:
        match = _IMAGE_NAME.fullmatch(Path(name).stem)
        seen[label].add(match["cultivar"].lstrip("0") or "0" if match else "")
    numbers = [str(label + 1) for label in range(max(seen, default=-1) + 1)]
    names = [next(iter(seen[label])) for label in sorted(seen) if len(seen[label]) == 1 and "" not in seen[label]]
    return names if len(set(names)) == len(numbers) == len(seen) else numbers


def _split(samples: Mapping[str, Samples], family: str) -> dict[str, Samples]:
    """Train, val and test without overlap; val is chosen by the rule if the layout has none."""
    val = samples.get("val", [])
    everything = {**dict(samples.get("train", [])), **dict(val), **dict(samples.get("train_val", []))}
    ordered = sorted(everything.items(), key=lambda sample: (sample[1], _sort_key(sample[0])))
    held_out = {path for path, _ in val} or _validation_by_rule(ordered, family)
    return {
        "train": [sample for sample in ordered if sample[0] not in held_out],
        "val": [sample for sample in ordered if sample[0] in held_out],
        "test": list(samples.get("test", [])),
    }


def _sort_key(path: Path) -> tuple[str, int, str]:
    match = _IMAGE_NAME.fullmatch(path.stem)
    return (match["stage"] or "" if match else "", _number(path.name), path.name)


def _validation_by_rule(ordered: Samples, family: str) -> set[Path]:
    groups: dict[tuple[int, str], list[Path]] = defaultdict(list)
    for path, label in ordered:
        groups[label, _sort_key(path)[0] if family == "soyageing" else ""].append(path)
    held_out: set[Path] = set()
    for paths in groups.values():
        if family == "soyageing":
            held_out.update(path for path in paths if _number(path.name) == 5)
        elif len(paths) >= 2:
            held_out.update((family == "soygene" and paths[4::5]) or paths[-1:])
    return held_out


def _count_problems(
    root: Path, name: str, published: Published, classes: list[str], samples: Mapping[str, Samples], missing: list[str]
) -> list[str]:
    trained = {path for split in ("train", "val", "train_val") for path, _ in samples.get(split, [])}
    tested = {path for path, _ in samples.get("test", [])}
    counts = Published(len(classes), len(trained), len(tested))
    problems = []
    if name in NUMERIC and not missing:  # missing images can be named without annotations, as the file names are known
        existing = {path.stem for path in trained | tested}
        expected = (
            f"{cultivar}_{number}_{'train' if number % 2 else 'test'}"
            for cultivar in range(1, published.classes + 1)
            for number in range(1, 2 * published.train // published.classes + 1)
        )
        missing = [f"{stem}.png" for stem in expected if stem not in existing] if counts != published else []
    if missing:
        unique = sorted(set(missing))
        problems.append(f"{root}: {len(unique)} image(s) of {name} missing: {first_few(unique)}")
    if counts != published:
        problems.insert(
            0,
            f"{root}: {name} has {published.classes} classes, {published.train} training and {published.test} test "
            f"images, but found {counts.classes}, {counts.train} and {counts.test}"
            + (f"; missing: {first_few(sorted(set(missing)))}" if missing else "")
            + "; complete it (or, in Python, open it with strict=False)",
        )
    return problems
