"""Checks before the first step: images, classes, model settings."""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch

from clca import data
from clca.data.cache.fill import cacheable_resize, use_cache
from clca.data.checks.decode import BadImage, decode_all
from clca.data.sources.listing import first_few
from clca.data.transforms import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Augmentation,
    eval_transform,
    preprocess_dict,
    train_transform,
)
from clca.errors import ClcaError, brief
from clca.models.backbones import resolve
from clca.models.config import ModelConfig
from clca.models.factory import build
from clca.models.stored_model import check_class_names, check_classes
from clca.models.token_reduced_vit import TokenReducedViT
from clca.system.paths import shown
from clca.training.config import TrainConfig
from clca.training.image_list import ImageChanges, ListedImage, changes, listed, read_images
from clca.training.run_folder import RunFolder
from clca.training.start_from import check_untrained, classes_of, load_origin

_log = logging.getLogger(__name__)

Images = Any  # a torch Dataset with .classes, .paths, .labels and a settable .transform


@dataclass
class Splits:
    """The training images and, if any, the images to validate on after every epoch.

    Attributes:
        train, watched: The images.
        cache: Whether resized images are cached on disk.
        cache_gb: Limit of that cache, in 10⁹ bytes; None for the default.
        rest: The images of the set that are in neither, such as those for testing; None if there are none.
        known: Classes of the run that the run starts from; empty without one.
    """

    train: Images
    watched: Images | None
    cache: bool = False
    cache_gb: float | None = None
    rest: Images | None = None
    known: Sequence[str] = ()

    @property
    def classes(self) -> list[str]:
        return self.train.classes

    def listed(self) -> dict[str, list[ListedImage]]:
        """All images of the set, by what the run uses them for."""
        parts = (("train", self.train), ("watched", self.watched), ("unused", self.rest))
        return {name: list(listed(images)) for name, images in parts if images is not None}


def open_splits(config: TrainConfig, root: str | None = None, known: Sequence[str] | None = None) -> Splits:
    """Open both splits, with transforms for the model's image size if it is known yet.

    Args:
        config: The run.
        root: Location of the images, if it differs from the settings.
        known: Classes of the run that this one starts from, if they have been read. Its classes are those of the
            images, and then those of it that have none.

    Raises:
        ClcaError: A split is missing, there is only one class, or training lacks a class of the validation split.
    """
    settings, name = config.data, config.watched_split
    root = root or settings.root
    if settings.folds is not None and settings.fold is None:
        raise ClcaError("--folds: a single run is one of them: give --fold too, or use clca.cross_validate")
    if known is None:
        known = classes_of(config.start_from) if config.start_from is not None else ()
    if data.is_leaves(root, settings.source):
        train = data.open(root, settings.train_split, source=settings.source, grouping=settings.grouping)
        watched = data.open(root, name, source=settings.source) if name != "none" else None
        rest = None
    else:
        listing = data.list_images(root, settings.source, to_train=not known, grouping=settings.grouping)
        train = data.open_listing(listing, settings.train_split)
        watched = data.open_listing(listing, name) if name != "none" else None
        rest = _without(data.open_listing(listing, data.ALL, strict=False), train, watched)
    without_images = [each for each in known if each not in set(train.classes)]
    for images in (train, watched, rest):
        if images is not None:
            images.classes = [*images.classes, *without_images]
    if len(train.classes) < 2:
        raise ClcaError(f"{root}: only one class ({train.classes[0]!r}); a classifier needs two or more")
    check_class_names(train.classes, str(root))  # the model could not be saved
    if len(set(train.labels)) < 2 and not known:
        raise ClcaError(
            f"{root}: the {settings.train_split} images are all of one class; a classifier needs two or more"
        )
    if watched is not None:
        same_classes(train.classes, watched.classes, f"{root}: {name}", "the training images")
        seen = {*train.labels, *(train.classes.index(each) for each in known)}
        unseen = sorted(set(watched.labels) - seen)
        if unseen:
            raise ClcaError(
                f"{root}: {name} has images of {_some([train.classes[label] for label in unseen])} "
                "and training has none"
            )
    splits = Splits(train, watched, config.cache, config.cache_gb, rest, known)
    size = _expected_size(config.model)
    if size is not None:
        _assign_transforms(splits, size, config.augmentation)
    return splits


def _without(images: Images, *others: Images | None) -> Images | None:
    """The files of a set that are in none of the others; None if there are none."""
    used = {path for other in others if other is not None for path in other.paths}
    samples = [each for each in zip(images.paths, images.labels, strict=True) if each[0] not in used]
    return data.ImageDataset(images.classes, samples, None, images.root) if samples else None


def image_changes(run: RunFolder, splits: Splits) -> ImageChanges | None:
    """How images differ from those that a run was started with; None for a run of a version that did not list them."""
    then = read_images(run.image_list)
    return changes(then, splits.listed()) if then is not None else None


def require_same_images(run: RunFolder, splits: Splits) -> None:
    """Refuse to resume a run with other images than it was started with.

    The number of images determines the steps, their order the epochs, and their classes the head: other images would
    silently resume at the wrong position or with exchanged class names.

    Raises:
        ClcaError: The images have changed; the message lists how.
    """
    then, now = run.resolved, described_images(splits)
    changed = [
        f"{brief(str(then[name]), 40)} {name.replace('_', ' ')} then and {now[name]} now"
        for name in ("train_images", "watched_images")
        if then.get(name, now[name]) != now[name]
    ]
    classes = splits.classes if run.content.get("classes") is None else run.content["classes"]
    check_classes(classes, len(classes) if isinstance(classes, list) else 0, str(run.config_file))
    if classes != splits.classes:
        differing = ((classes, splits.classes, "without"), (splits.classes, classes, "with"))
        lists = [f"{how} {_some(sorted(set(a) - set(b)))}" for a, b, how in differing if set(a) - set(b)]
        changed.append(f"classes now {' and '.join(lists) or 'in another order'}")
    changed = changed or [
        f"as many {name} images, with other names, sizes or classes"
        for name in ("train", "watched")
        if then.get(f"{name}_digest", now[f"{name}_digest"]) != now[f"{name}_digest"]  # older runs have none
    ]
    if changed:
        found = image_changes(run, splits)
        named = f": {found.named()}" if found else ""
        raise ClcaError(
            f"--out {run}: its images have changed since it was started ({'; '.join(changed)}); "
            f"restore them to resume, or choose another --out to start again{named}"
        )


def changes_since_finished(run: RunFolder, splits: Splits) -> str:
    """What has changed in the images of a finished run, in words and numbers; empty if nothing has."""
    found = image_changes(run, splits)
    if found is not None:
        return found.counted()
    try:
        require_same_images(run, splits)
    except ClcaError as error:  # of a version that recorded only how many there are
        return str(error).partition("(")[2].partition("); restore")[0]
    return ""


def described_images(splits: Splits) -> dict[str, Any]:
    """Number and digest of the images of each split, as stored in `config.json`."""
    described: dict[str, Any] = {}
    for name, images in (("train", splits.train), ("watched", splits.watched)):
        described[f"{name}_images"] = len(images) if images is not None else 0
        described[f"{name}_digest"] = image_digest(images) if images is not None else None
    return described


def image_digest(images: Images) -> str:
    """Digest of the relative path, the size in bytes and the class of each image, in order; no image is opened.

    It does not depend on the location of the set or the times of its files.
    """
    digest = hashlib.sha256()
    for image, label in zip(listed(images), images.labels, strict=True):
        digest.update(f"{image.path}\t{image.size}\t{label}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()[:16]


def _expected_size(config: ModelConfig) -> int | None:
    """Image size of a model before it is created, in pixels; None if it is not known in advance."""
    size: Any = config.img_size or config.backbone_kwargs.get("img_size")
    if size is None:
        try:
            default = timm.get_pretrained_cfg_value(resolve(config.backbone).architecture, "input_size")
        except (ClcaError, RuntimeError):  # an unknown name is rejected when the model is created
            return None
        size = default[1:] if default else (0, 1)
    height, width = size if isinstance(size, (tuple, list)) else (size, size)
    return height if height == width else None


def same_classes(known: Sequence[str], found: Sequence[str], where: str, whose: str) -> None:
    """Refuse images of classes that a model does not know.

    Args:
        known, found: Classes of the model and of the images.
        where: The images, for the error.
        whose: Origin of the known classes, for the error.

    Raises:
        ClcaError: There are unknown classes.
    """
    unknown = [name for name in found if name not in set(known)]
    if unknown:
        raise ClcaError(f"{where} has classes that {whose} lack: {_some(unknown)} (known: {_some(known)})")


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:5])
    return f"{shown} and {len(names) - 5} more" if len(names) > 5 else shown


def verify_images(splits: Splits, progress: bool) -> None:
    """Decode every image file once, so that no error comes up later; render synthetic leaves before workers share them.

    Resized images are written to the cache on the way; cached images that have not changed need no check. A warning is
    logged if images are nearly empty.

    Args:
        splits: The images.
        progress: Show a bar on a terminal if it takes long, and log if the cache cannot be used.

    Raises:
        ClcaError: There are unreadable files; up to three are listed, with their number.
    """
    files, undecoded, bad, near_empty = [], [], [], []
    for images in (splits.train, splits.watched):
        if isinstance(images, data.Leaves):
            for index in range(len(images)):
                images.image(index)
        elif images is not None:
            files += images.paths
            if not splits.cache or cacheable_resize(images) is None:
                undecoded += images.paths
    if splits.cache:
        outcome = use_cache(_both(splits), gigabytes=splits.cache_gb, progress=progress)
        bad, undecoded, near_empty = outcome.bad, undecoded + outcome.unread, outcome.near_empty
        warn_of_cache(outcome.problem if progress else None)
        splits.cache = outcome.problem is None
    decoded = decode_all(undecoded, progress=progress)
    refuse_unreadable(bad + decoded.bad, files)
    warn_of_near_empty([*near_empty, *decoded.near_empty], len(dict.fromkeys(files)))


def refuse_unreadable(bad: Sequence[BadImage], files: Sequence[Path]) -> None:
    """Refuse images that cannot be read.

    Args:
        bad: The images that cannot be read, in any order.
        files: All files that were checked.

    Raises:
        ClcaError: There are any; up to three are listed, in the order of the files, with their number.
    """
    if not bad:
        return
    order = {path: number for number, path in enumerate(files)}
    bad = sorted(bad, key=lambda image: order[image.path])
    listed = "; ".join(f"{image.path}: {image.reason}" for image in bad[:3])
    more = f"; and {len(bad) - 3} more (clca data check lists them)" if len(bad) > 3 else ""
    raise ClcaError(f"{len(bad)} of {len(files)} images cannot be used: {listed}{more}")


def warn_of_near_empty(near_empty: Sequence[Path], count: int) -> None:
    """Log how many of `count` images are nearly empty, such as photographs that became black or white when converted.

    They are not refused: an empty tray may be a class of its own.
    """
    paths = list(dict.fromkeys(near_empty))
    if paths:
        names = first_few([shown(path) for path in paths])
        why = "almost all of their pixels are equal; clca data check says more"
        _log.warning("%d of %d images are nearly empty (%s): %s", len(paths), count, why, names)


def warn_of_cache(problem: str | None) -> None:
    """Log that the cache could not be used; training and evaluation work without it."""
    if problem is not None:
        _log.warning("%s; the images are read from their original files", problem)


def _both(splits: Splits) -> list[Images]:
    return [images for images in (splits.train, splits.watched) if images is not None]


def check_start(config: TrainConfig, splits: Splits) -> None:
    """Check that a run which starts from another one can keep, or fit anew, what that one knows.

    Raises:
        ClcaError: The head is fitted anew, and there are no images of a known class; or of a new one.
    """
    if config.start_from is None:
        return
    trained = [splits.classes[label] for label in sorted(set(splits.train.labels))]
    new = [name for name in splits.classes if name not in {*trained, *splits.known}]
    if new:
        raise ClcaError(f"{config.data.root}: no training images of {_some(new)}: add some, or remove the class")
    check_untrained(splits.known, trained, config.start_from, config.data.root, probes=config.probe != "none")


def build_model(config: TrainConfig, classes: Sequence[str], start: bool = True) -> TokenReducedViT:
    """The model of a run, its new parameters initialised from the run's seed.

    Args:
        config: The run.
        classes: Class names.
        start: False if a checkpoint is loaded next, so that the initial weights are not needed.

    Raises:
        ClcaError: As for `clca.create_model`.
    """
    torch.manual_seed(config.seed)
    extra = dict(config.model.backbone_kwargs)
    if config.drop_path_rate:
        extra.setdefault("drop_path_rate", config.drop_path_rate)
    settings = config.model.model_copy(update={"num_classes": len(classes), "backbone_kwargs": extra})
    weights = config.weights if start else None
    published = start and config.pretrained and weights is None and config.start_from is None
    model = build(settings, pretrained=published, weights=weights)
    model.classes = list(classes)
    model.preprocess = preprocess_dict(image_size(model))
    if config.start_from is not None and start:
        load_origin(model, config.start_from)
    if config.grad_checkpointing:
        model.set_grad_checkpointing(True)
    return model


def image_size(model: TokenReducedViT) -> int:
    """Size in pixels of the square images of a model.

    Raises:
        ClcaError: Its images are not square, which the published recipe does not support.
    """
    height, width = model.patch_embed.img_size
    if height != width:
        raise ClcaError(f"--img-size {height} {width}: training uses square images; give one number")
    return height


def set_transforms(splits: Splits, size: int, augmentation: Augmentation) -> tuple[Images, Images | None]:
    """Assign each split its transform, with augmentation for training and without for validation; and the cache.

    Raises:
        ClcaError: An image cannot be read that `verify_images` has not checked on this machine.
    """
    _assign_transforms(splits, size, augmentation)
    if splits.cache:
        outcome = use_cache(_both(splits), gigabytes=splits.cache_gb, progress=False)
        refuse_unreadable(outcome.bad, [path for images in _both(splits) for path in images.paths])
    return splits.train, splits.watched


def _assign_transforms(splits: Splits, size: int, augmentation: Augmentation) -> None:
    splits.train.transform = train_transform(size, augmentation, IMAGENET_MEAN, IMAGENET_STD, normalize=False)
    if splits.watched is not None:
        splits.watched.transform = eval_transform(size, IMAGENET_MEAN, IMAGENET_STD, normalize=False)
