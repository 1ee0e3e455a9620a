"""Which images of a data set a model is judged on, and which not, in one line."""

import filecmp
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clca import data as datasets
from clca.data.datasets import ImageDataset, Leaves
from clca.data.sources.listing import Grouping, Listing, first_few
from clca.errors import ClcaError
from clca.system.paths import shown
from clca.training.image_list import known_among, listed, read_images
from clca.training.preflight import image_digest, same_classes
from clca.training.run_folder import RunFolder

_COMPARED = 16  # files
_OF_TRAINING = ("train", "train_val")


@dataclass(frozen=True)
class Judged:
    """The images that a model is judged on.

    Attributes:
        images: The data set, of classes that the model knows.
        split: The split that they are: "all" for all images of a set without splits.
        text: What is judged, and what not.
        trained_on: How many of them the model was trained on, as far as is known.
    """

    images: Any
    split: str
    text: str
    trained_on: int


def choose_images(
    run: RunFolder, known: Sequence[str], data: str | None, split: str | None, *, default: str = "test"
) -> Judged:
    """The images of a run's own set, or of another one, that the run is to be judged on.

    Args:
        run: The run, whose own images are used if no others are named.
        known: Classes of its model.
        data: Another set, or None.
        split: As for `evaluate`; None for `default`, or for all images of another set without splits.
        default: The split that is meant where none is named.

    Raises:
        ClcaError: The images do not exist, cannot be read, or are all of classes that the model does not know.
    """
    own = run.images
    if data is None and own is None:
        raise ClcaError(f"{run}: its training data is not known; pass the images too: clca evaluate RUN DATA")
    if data is None:
        assert own is not None
        root, source = own.root, own.source
        if not datasets.is_leaves(root, source) and not Path(root).expanduser().exists():
            raise ClcaError(
                f"{run}: its training images are no longer at {root}: no such file or folder; pass their new location "
                "too: clca evaluate RUN DATA"
            )
    else:
        root, source = data, None
    if datasets.is_leaves(root, source):
        return _leaves(
            run, known, root, split or default, is_own=data is None or (own is not None and root == own.root)
        )
    grouping = own.grouping if own is not None else Grouping()
    listing = datasets.list_images(root, source, to_train=False, grouping=grouping if data is None else None)
    is_own = data is None or _is_own(run, listing)
    if data is not None and grouping:
        with suppress(ClcaError):  # other images have no such groups
            divided = datasets.list_images(root, source, to_train=False, grouping=grouping)
            if _is_own(run, divided):
                listing, is_own = divided, True
    if split is None:
        split = datasets.ALL if listing.made_splits and not is_own else default
    whole = datasets.open_listing(listing, split)
    images = _of_known_classes(whole, known, f"{root}: {split}")
    trained_on = _trained_on(run, images, split, is_own)
    return Judged(images, split, _text(listing, whole, images, known, split, trained_on, root), trained_on)


def _leaves(run: RunFolder, known: Sequence[str], root: str, split: str, *, is_own: bool) -> Judged:
    images = Leaves.from_text(root, split=split)
    same_classes(known, images.classes, f"{root}: {split}", "the run's training images")
    others = len(Leaves.from_text(root, split=datasets.ALL)) - len(images)
    count = len(images)
    trained_on = count if is_own and _trained_splits(run, split) else 0
    parts = [f"judging {_named(count, split)} of {shown(root)}", _classes(images, known)]
    parts += [_too_good(trained_on, count)] if trained_on else []
    parts += [f"not judged: {others} images of other splits"] if others else []
    return Judged(images, split, "; ".join(parts), trained_on)


def _is_own(run: RunFolder, listing: Listing) -> bool:
    """Whether a listed set is the one that a run was trained on, there or moved."""
    own = run.images
    if own is None:
        return False
    with suppress(OSError):
        if Path(own.root).expanduser().resolve() == listing.root.resolve():
            return True
    digest = run.resolved.get("train_digest")
    if not isinstance(digest, str) or not listing.splits.get("train"):
        return False
    return image_digest(datasets.open_listing(listing, own.train_split, strict=False)) == digest


def _of_known_classes(images: ImageDataset, known: Sequence[str], where: str) -> ImageDataset:
    names = set(known)
    if not any(images.classes[label] in names for label in set(images.labels)):
        same_classes(known, [images.classes[label] for label in sorted(set(images.labels))], where,
                     "the run's training images")  # fmt: skip
    if names.issuperset(images.classes):
        return images
    classes = [name for name in images.classes if name in names]
    label_of = {old: classes.index(name) for old, name in enumerate(images.classes) if name in names}
    samples = [
        (path, label_of[label]) for path, label in zip(images.paths, images.labels, strict=True) if label in label_of
    ]
    return ImageDataset(classes, samples, images.transform, images.root)


def _trained_on(run: RunFolder, images: ImageDataset, split: str, is_own: bool) -> int:
    then = read_images(run.image_list) if run.exists else None
    if then is not None:
        found = known_among(then.get("train", []), listed(images))
        own = run.images
        if is_own or own is None or images.root is None or _are_the_same(found, Path(own.root), images.root):
            return len(found)
        return 0
    return len(images) if is_own and _trained_splits(run, split) else 0


def _are_the_same(names: Sequence[str], trained: Path, here: Path) -> bool:
    """Whether a sample of files has the content of those of the same names that were trained on, as far as those exist.

    Photographs of two fields may have the same names and, uncompressed, the same sizes.
    """
    trained, here = (root if root.is_dir() else root.parent for root in (trained.expanduser(), here))
    compared = 0
    for name in names[:: max(1, len(names) // _COMPARED)]:
        with suppress(OSError):
            if filecmp.cmp(trained / name, here / name, shallow=False):
                return True
            compared += 1
    return compared == 0


def _trained_splits(run: RunFolder, split: str) -> bool:
    own = run.images
    trained = ("train", "val") if own is not None and own.train_split == "train_val" else ("train",)
    return split in (*_OF_TRAINING, datasets.ALL) or split in trained


def _text(
    listing: Listing, whole: ImageDataset, images: ImageDataset, known: Sequence[str], split: str, trained_on: int,
    root: str,
) -> str:  # fmt: skip
    count = len(images)
    how = ""
    if listing.made_splits:
        how = ", which has no splits" if split == datasets.ALL else ", chosen by a fixed rule, as the set has no splits"
    parts = [f"judging {_named(count, split)} of {shown(root)}{how}", _classes(images, known)]
    if trained_on:
        parts.append(_too_good(trained_on, count))
    unjudged = []
    unknown = Counter(whole.classes[label] for label in whole.labels) if count < len(whole) else Counter()
    for name in images.classes:
        unknown.pop(name, None)
    if unknown:
        names = first_few([repr(shown(name)) for name in unknown])
        which = f"{len(unknown)} classes that the run does" if len(unknown) > 1 else "a class that the run does"
        unjudged.append(f"{_images(unknown.total())} of {which} not know ({names})")
    used = set(whole.paths)
    others = {name: sum(path not in used for path, _ in samples) for name, samples in listing.splits.items() if samples}
    if any(others.values()):
        listed_splits = ", ".join(f"{name} {number}" for name, number in others.items() if number)
        unjudged.append(f"{_images(sum(others.values()))} of other splits ({listed_splits})")
    if listing.unused:
        unjudged.append(f"{len(listing.unused)} files of formats that are not read or outside the class folders")
    if unjudged:
        parts.append(f"not judged: {', '.join(unjudged)}")
    return "; ".join(parts)


def _named(count: int, split: str) -> str:
    if split == datasets.ALL:
        return f"all {_images(count)}"
    return f"{count} {split} image{'s' if count > 1 else ''}"


def _classes(images: Any, known: Sequence[str]) -> str:
    present = {images.classes[label] for label in set(images.labels)}
    missing = [name for name in known if name not in present]
    if not missing:
        return f"of all {len(known)} classes of the run"
    names = first_few([repr(shown(name)) for name in missing])
    return f"of {len(present)} of the run's {len(known)} classes (none of {names})"


def _too_good(trained_on: int, count: int) -> str:
    which = "all of them were" if trained_on == count else f"{trained_on} of them {'were' if trained_on > 1 else 'was'}"
    return f"{which} trained on, so the accuracy is too good and label errors stay hidden"


def _images(count: int) -> str:
    return f"{count} image{'s' if count != 1 else ''}"
