"""Everything that can go wrong before the first step, found before the first step."""

import hashlib
import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch

from clca import data
from clca.data.cache.fill import cacheable_resize, use_cache
from clca.data.checks.decode import BadImage
from clca.data.checks.decode import verify_images as decode_images
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
from clca.system.files import part
from clca.training.config import TrainConfig
from clca.training.run_folder import CONFIG, read_config

_log = logging.getLogger(__name__)

Images = Any  # a torch Dataset with .classes, .paths, .labels and a settable .transform


@dataclass
class Splits:
    """The images learned from and, where there are any, those watched after every epoch.

    Attributes:
        cache: Whether resized images are kept on disk.
        cache_gb: How much all of them may take, in 10⁹ bytes; None for the default.
    """

    train: Images
    watched: Images | None
    cache: bool = False
    cache_gb: float | None = None

    @property
    def classes(self) -> list[str]:
        return self.train.classes


def open_splits(config: TrainConfig, root: str | None = None) -> Splits:
    """Open both splits, with transforms of the size that the model will have, as far as that is known.

    Args:
        config: The run.
        root: Where the images are read from, if not where the settings say.

    Raises:
        ClcaError: A split is missing, there is one class only, or the watched split has classes that training lacks.
    """
    where, name = config.data, config.watched_split
    root = root or where.root
    train = data.open(root, where.train_split, source=where.source)
    watched = data.open(root, name, source=where.source) if name != "none" else None
    if len(train.classes) < 2:
        raise ClcaError(f"{root}: only one class ({train.classes[0]!r}); a classifier needs two or more")
    check_class_names(train.classes, str(root))  # the model could not be saved
    if len(set(train.labels)) < 2:
        raise ClcaError(f"{root}: the {where.train_split} images are all of one class; a classifier needs two or more")
    if watched is not None:
        same_classes(train.classes, watched.classes, f"{root}: {name}", "the training images")
        unseen = sorted(set(watched.labels) - set(train.labels))
        if unseen:
            raise ClcaError(
                f"{root}: {name} has images of {_some([train.classes[label] for label in unseen])} "
                "and training has none"
            )
    splits = Splits(train, watched, config.cache, config.cache_gb)
    size = _expected_size(config.model)
    if size is not None:
        _give_transforms(splits, size, config.augmentation)
    return splits


def refuse_other_images(folder: Path, splits: Splits) -> None:
    """Refuse to go on with a run whose images are not those it was begun with.

    Its steps are counted by their number, its epochs ordered by their place in the list, and its head by their classes:
    with others it would go on without a word, at the wrong place or with the names of the classes exchanged.

    Raises:
        ClcaError: With what has changed.
    """
    stored = read_config(folder)
    then, now = part(stored, "resolved"), described_images(splits)
    changed = [
        f"{brief(str(then[name]), 40)} {name.replace('_', ' ')} then and {now[name]} now"
        for name in ("train_images", "watched_images")
        if then.get(name, now[name]) != now[name]
    ]
    classes = splits.classes if stored.get("classes") is None else stored["classes"]
    check_classes(classes, len(classes) if isinstance(classes, list) else 0, str(folder / CONFIG))
    if classes != splits.classes:
        differing = ((classes, splits.classes, "without"), (splits.classes, classes, "with"))
        told = [f"{how} {_some(sorted(set(a) - set(b)))}" for a, b, how in differing if set(a) - set(b)]
        changed.append(f"classes now {' and '.join(told) or 'in another order'}")
    changed = changed or [
        f"as many {name} images, with other names, sizes or classes"
        for name in ("train", "watched")
        if then.get(f"{name}_digest", now[f"{name}_digest"]) != now[f"{name}_digest"]  # runs of before have none
    ]
    if changed:
        raise ClcaError(
            f"--out {folder}: its images have changed since it was begun ({'; '.join(changed)}); "
            "put them back to go on, or choose another --out to begin anew"
        )


def described_images(splits: Splits) -> dict[str, Any]:
    """How many images there are to learn from and to watch, and a digest of which, as `config.json` keeps them."""
    told: dict[str, Any] = {}
    for name, images in (("train", splits.train), ("watched", splits.watched)):
        told[f"{name}_images"] = len(images) if images is not None else 0
        told[f"{name}_digest"] = _digest(images) if images is not None else None
    return told


def _digest(images: Images) -> str:
    """Of the path below the set, the size in bytes and the class of each image in its order; none is opened.

    Neither where the set lies nor when it was copied makes a difference.
    """
    digest = hashlib.sha256()
    root = getattr(images, "root", None)  # None: drawn in memory
    below = root if root is None or root.is_dir() else root.parent
    for path, label in zip(images.paths, images.labels, strict=True):
        name, size = str(path), 0
        if below is not None:
            name = str(path.relative_to(below)) if path.is_relative_to(below) else path.name
            with suppress(OSError):  # `verify_images` tells of an image that is not there
                size = path.stat().st_size
        digest.update(f"{name}\t{size}\t{label}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()[:16]


def _expected_size(config: ModelConfig) -> int | None:
    """Side of the images that a model will take, before it is made; None where only the model knows."""
    size: Any = config.img_size or config.backbone_kwargs.get("img_size")
    if size is None:
        try:
            usual = timm.get_pretrained_cfg_value(resolve(config.backbone).architecture, "input_size")
        except (ClcaError, RuntimeError):  # an unknown name is refused when the model is made
            return None
        size = usual[1:] if usual else (0, 1)
    height, width = size if isinstance(size, (tuple, list)) else (size, size)
    return height if height == width else None


def same_classes(known: Sequence[str], found: Sequence[str], where: str, whose: str) -> None:
    """Refuse images of classes that a model does not know.

    Raises:
        ClcaError: With the classes concerned.
    """
    strange = [name for name in found if name not in set(known)]
    if strange:
        raise ClcaError(f"{where} has classes that {whose} lack: {_some(strange)} (known: {_some(known)})")


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:5])
    return f"{shown} and {len(names) - 5} more" if len(names) > 5 else shown


def verify_images(splits: Splits, progress: bool) -> None:
    """Decode every image file once, so that none fails in epoch 7; draw synthetic leaves before workers share them.

    What the cache can keep goes there on the way; what is there already has been decoded before and has not changed.

    Args:
        progress: Show a bar on a terminal if it takes long, and say so if the cache cannot be used.

    Raises:
        ClcaError: Naming up to three unreadable files, and how many there are.
    """
    files, undecoded, bad = [], [], []
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
        bad, undecoded = outcome.bad, undecoded + outcome.unread
        warn_of_cache(outcome.problem if progress else None)
        splits.cache = outcome.problem is None
    bad += decode_images(undecoded, progress=progress)
    refuse_unreadable(bad, files)


def refuse_unreadable(bad: Sequence[BadImage], files: Sequence[Path]) -> None:
    """Refuse images that cannot be read.

    Args:
        bad: What cannot be read, in any order.
        files: All files that were looked at.

    Raises:
        ClcaError: Naming up to three, in the order of the files, and how many there are.
    """
    if not bad:
        return
    order = {path: number for number, path in enumerate(files)}
    bad = sorted(bad, key=lambda image: order[image.path])
    listed = "; ".join(f"{image.path}: {image.reason}" for image in bad[:3])
    more = f"; and {len(bad) - 3} more (clca data check lists them)" if len(bad) > 3 else ""
    raise ClcaError(f"{len(bad)} of {len(files)} images cannot be used: {listed}{more}")


def warn_of_cache(problem: str | None) -> None:
    """Log that the cache could not be used, which is no reason to stop."""
    if problem is not None:
        _log.warning("%s; the images are read from their own files", problem)


def _both(splits: Splits) -> list[Images]:
    return [images for images in (splits.train, splits.watched) if images is not None]


def build_model(config: TrainConfig, classes: Sequence[str], start: bool = True) -> TokenReducedViT:
    """The model of a run, its new parts drawn from the run's seed.

    Args:
        start: False where a checkpoint follows, so that the weights to start from are not needed again.

    Raises:
        ClcaError: Whatever `clca.create_model` refuses.
    """
    torch.manual_seed(config.seed)
    extra = dict(config.model.backbone_kwargs)
    if config.drop_path_rate:
        extra.setdefault("drop_path_rate", config.drop_path_rate)
    settings = config.model.model_copy(update={"num_classes": len(classes), "backbone_kwargs": extra})
    weights = config.weights if start else None
    model = build(settings, pretrained=start and config.pretrained and weights is None, weights=weights)
    model.classes = list(classes)
    model.preprocess = preprocess_dict(image_size(model))
    if config.grad_checkpointing:
        model.set_grad_checkpointing(True)
    return model


def image_size(model: TokenReducedViT) -> int:
    """Side in pixels of the square images that a model takes.

    Raises:
        ClcaError: It takes oblong ones, which the published recipe does not know.
    """
    height, width = model.patch_embed.img_size
    if height != width:
        raise ClcaError(f"--img-size {height} {width}: training uses square images; give one number")
    return height


def set_transforms(splits: Splits, size: int, augmentation: Augmentation) -> tuple[Images, Images | None]:
    """Give each split its transform, augmentation for training, the plain one for watching; and the cache.

    Raises:
        ClcaError: An image that `verify_images` did not see in this process, nor on this machine, cannot be read.
    """
    _give_transforms(splits, size, augmentation)
    if splits.cache:
        outcome = use_cache(_both(splits), gigabytes=splits.cache_gb, progress=False)
        refuse_unreadable(outcome.bad, [path for images in _both(splits) for path in images.paths])
    return splits.train, splits.watched


def _give_transforms(splits: Splits, size: int, augmentation: Augmentation) -> None:
    splits.train.transform = train_transform(size, augmentation, IMAGENET_MEAN, IMAGENET_STD, normalize=False)
    if splits.watched is not None:
        splits.watched.transform = eval_transform(size, IMAGENET_MEAN, IMAGENET_STD, normalize=False)
