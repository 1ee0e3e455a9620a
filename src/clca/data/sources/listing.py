"""`Listing`, the common result of all sources: class names, and the files and labels of each split."""

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from clca.data.sources.class_names import describe_similar, refuse_lookalikes
from clca.data.sources.leftovers import leftover_above
from clca.data.sources.splits import Samples, take_every_fifth
from clca.errors import ClcaError
from clca.system.paths import shown

SPLITS = ("train", "val", "train_val", "test")
ALL = "all"
"""Every image of a set, whatever its split; no split of its own."""


@dataclass(frozen=True)
class Grouping:
    """How a set is split beyond its own splits.

    Attributes:
        column: Of the CSV file: images with the same value stay together; None for none.
        pattern: A regular expression for paths: images in which it finds the same stay together; None for none.
        folds: Into how many parts all images are divided, whatever split they are in; None to keep the splits.
        fold: The part that is the test split, 1 … folds.
    """

    column: str | None = None
    pattern: str | None = None
    folds: int | None = None
    fold: int | None = None

    def __bool__(self) -> bool:
        return self != Grouping()


@dataclass(frozen=True)
class Listing:
    """All images of a data set, not decoded.

    Attributes:
        root: Where it was read from.
        source: Name of the source with which it was read.
        classes: Class names; a label is an index into them.
        splits: Image files and labels of those of "train", "val" and "test" that exist. They do not overlap, except as
            `leaked` reports.
        problems: Reasons why the set cannot be used as it is, one line each: missing files, wrong counts.
        unused: Images in the folder that are in no split: with a format that is not read, without an extension, outside
            the class folders, in folders whose names begin with _, or left by a system, program or cloud client. A
            folder that a system made stands for further images in it, which were not counted.
        made_splits: Whether the set has no splits of its own, so that a fixed rule chose all of them.
        made_val: Whether a fixed rule took the validation images from training.
        groups: The group of each image, where groups were asked for, else None.
    """

    root: Path
    source: str
    classes: list[str]
    splits: dict[str, Samples]
    problems: list[str] = field(default_factory=list)
    unused: list[Path] = field(default_factory=list)
    made_splits: bool = False
    made_val: bool = False
    groups: Mapping[Path, str] | None = None

    @property
    def warnings(self) -> list[str]:
        """What may be a mistake but does not prevent training, one line each.

        Classes that differ by case alone; and images of a list that are in folders of a system, such as thumbnails.
        """
        return [*describe_similar(self.root, self.classes), *(self._listed_leftovers() if self.source == "csv" else ())]

    def _listed_leftovers(self) -> list[str]:
        base = self.root if self.root.is_dir() else self.root.parent
        images = Counter(path.parent for samples in self.splits.values() for path, _ in samples)
        count, names = 0, set()
        for folder, number in images.items():
            top = base if folder.is_relative_to(base) else Path(folder.anchor)
            leftover = leftover_above(folder / "*", top)
            if leftover is not None:
                count += number
                names.add(shown(leftover.name))
        if not count:
            return []
        made = f"folders that a system or program made ({first_few(sorted(names))})"
        return [
            f"{self.root}: {count} listed image(s) are in {made}: remove their rows if they are thumbnails or deleted"
        ]

    def leaked(self) -> list[Path]:
        """Test images that are also in training or validation, which makes test results invalid."""
        tested = {path for path, _ in self.splits.get("test", [])}
        return sorted({path for name in ("train", "val") for path, _ in self.splits.get(name, [])} & tested)

    def samples(self, split: str) -> Samples:
        """The images of a split; "train_val" is train and val together, "all" every image once.

        Raises:
            ClcaError: The split does not exist or has no images.
        """
        if split not in (*SPLITS, ALL):
            raise ClcaError(f"unknown split {split!r}: choose from {', '.join((*SPLITS, ALL))}")
        parts = {"train_val": ("train", "val"), ALL: ("train", "val", "test")}.get(split, (split,))
        found = list(dict.fromkeys(sample for part in parts for sample in self.splits.get(part, [])))
        if split == ALL:  # in the order of their names, which a rule that chooses splits would break up
            found.sort(key=lambda sample: (sample[1], sample[0]))
        if not found:
            available = ", ".join(f"{name} ({len(part)} images)" for name, part in self.splits.items() if part)
            raise ClcaError(f"{self.root}: no images in split {split!r}; available: {available or 'none'}")
        return found


def first_few(names: Sequence[str]) -> str:
    """Format a list for a message: the first five names, and how many more there are."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def with_validation(splits: dict[str, Samples]) -> dict[str, Samples]:
    """If a set has no validation images, take some from training by a fixed rule."""
    if splits.get("val") or not splits.get("train"):
        return splits
    train, val = take_every_fifth(splits["train"])
    return {**splits, "train": train, "val": val}


def check_classes(root: Path, classes: Sequence[str], splits: dict[str, Samples]) -> None:
    """Refuse a set without images, and names of classes that cannot be told apart or stored.

    Raises:
        ClcaError: There are no images, a class name is not valid UTF-8, or two names look the same.
    """
    if not any(splits.values()):
        raise ClcaError(f"{root}: no images found")
    for name in classes:
        try:
            name.encode()
        except UnicodeEncodeError:
            raw = name.encode(errors="surrogateescape")
            command = f"convmv -f latin1 -t utf8 -r --notest {shlex.quote(str(root))}"
            raise ClcaError(
                f"{root}: the name of the class {raw!r} is not UTF-8: rename it, or, if it should be "
                f"{shown(raw.decode('latin-1'))!r}, all names of an old disk at once: {command}"
            ) from None
    refuse_lookalikes(root, classes)


def check_training_classes(root: Path, classes: Sequence[str], splits: dict[str, Samples]) -> list[str]:
    """Refuse classes on which no classifier can be trained; a trained one can be evaluated on them.

    Returns:
        A line for val and for test if they contain classes that training lacks.

    Raises:
        ClcaError: There is a single class.
    """
    if len(classes) < 2:
        raise ClcaError(f"{root}: only one class ({classes[0]!r}): a classifier needs at least two")
    problems = []
    trained = {label for _, label in splits.get("train", [])}
    for name in ("val", "test"):
        unknown = sorted({label for _, label in splits.get(name, [])} - trained)
        if unknown and trained:
            names = first_few([repr(classes[label]) for label in unknown])
            problems.append(f"{root}: {name} contains {len(unknown)} class(es) that train lacks: {names}")
    return problems
