"""What every source of images produces: the class names, and which file with which label is in which split."""

import os
import shlex
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from clca.data.sources.splits import Samples, take_every_fifth
from clca.errors import ClcaError

SPLITS = ("train", "val", "train_val", "test")


@dataclass(frozen=True)
class Listing:
    """All images of a data set, without decoding one.

    Attributes:
        root: Where it was read from.
        source: Name of the source that read it.
        classes: Class names; a label is an index into them.
        splits: Image files and labels of "train", "val" and "test" (whichever there are); no image is in two of them
            unless `problems` says so.
        problems: What keeps it from being used as it is, a line each: files missing, counts that do not fit.
        unused: Images that lie there and are in no split: of formats that are not read, without an ending, outside the
            class folders, or in folders whose names begin with _.
    """

    root: Path
    source: str
    classes: list[str]
    splits: dict[str, Samples]
    problems: list[str] = field(default_factory=list)
    unused: list[Path] = field(default_factory=list)

    def leaked(self) -> list[Path]:
        """Test images that are learned from or validated with too: no accuracy on them means anything."""
        tested = {path for path, _ in self.splits.get("test", [])}
        return sorted({path for name in ("train", "val") for path, _ in self.splits.get(name, [])} & tested)

    def samples(self, split: str) -> Samples:
        """The images of a split; "train_val" is train and val together.

        Raises:
            ClcaError: For a split that does not exist, or one without images.
        """
        if split not in SPLITS:
            raise ClcaError(f"unknown split {split!r}: choose from {', '.join(SPLITS)}")
        parts = ("train", "val") if split == "train_val" else (split,)
        found = [sample for part in parts for sample in self.splits.get(part, [])]
        if not found:
            there = ", ".join(f"{name} ({len(part)} images)" for name, part in self.splits.items() if part)
            raise ClcaError(f"{self.root}: no images in split {split!r}; there are: {there or 'none'}")
        return found


def with_validation(splits: dict[str, Samples]) -> dict[str, Samples]:
    """Take validation images from training by rule where a set names none."""
    if splits.get("val") or not splits.get("train"):
        return splits
    train, val = take_every_fifth(splits["train"])
    return {**splits, "train": train, "val": val}


def check_classes(root: Path, classes: Sequence[str], splits: dict[str, Samples]) -> list[str]:
    """Refuse what no classifier can be trained on.

    Returns:
        A line for each of val and test that holds classes which training lacks.

    Raises:
        ClcaError: For no images at all, a single class, a class whose name no file of a run could hold, or two whose
            names differ in the form of Unicode only.
    """
    if not any(splits.values()):
        raise ClcaError(f"{root}: no images found")
    if len(classes) < 2:
        raise ClcaError(f"{root}: only one class ({classes[0]!r}): a classifier needs at least two")
    for name in classes:
        try:
            name.encode()
        except UnicodeEncodeError:
            all_at_once = f"convmv -f latin1 -t utf8 -r --notest {shlex.quote(str(root))}"
            raise ClcaError(
                f"{root}: the name of the class {os.fsencode(name)!r} is not UTF-8: rename it, or all names of an old "
                f"disk at once: {all_at_once}"
            ) from None
    spelled: dict[str, str] = {}
    for name in classes:
        if spelled.setdefault(unicodedata.normalize("NFC", name), name) != name:
            how = f"convmv -f utf8 -t utf8 --nfc -r --notest {shlex.quote(str(root))}"
            raise ClcaError(
                f"{root}: two classes look the same, {name!r}: one has its accents as letters of their own, as macOS "
                f"writes names; {'write it in one way' if root.is_file() else f'rename all at once: {how}'}"
            )
    problems = []
    trained = {label for _, label in splits.get("train", [])}
    for name in ("val", "test"):
        unknown = sorted({label for _, label in splits.get(name, [])} - trained)
        if unknown and trained:
            names = ", ".join(repr(classes[label]) for label in unknown[:5]) + (" …" if len(unknown) > 5 else "")
            problems.append(f"{root}: {name} holds {len(unknown)} class(es) that train lacks: {names}")
    return problems
