"""The identity of a run, which depends neither on where its images are nor on where it is started."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from functools import cache
from typing import Any

from clca.errors import ClcaError, reason
from clca.models.config import ModelConfig
from clca.system.paths import as_text, expanded
from clca.training.config import NOT_PART_OF_A_RUN, DataConfig, TrainConfig

COMPUTES = 1
"""Raise it with every change of the program, or of a default, that changes what a run with the same settings computes:
earlier runs then have another identity. Versions of torch and timm are stored with each result and compared in the
report."""

_PARTS = ("model", "data", "seed", "weights", "pretrained")


def model_text(config: ModelConfig) -> str:
    """The settings of a model that affect what it computes, in canonical form."""
    settings = config.model_dump(mode="json", exclude_defaults=True, exclude={"num_classes"})
    if config.reduction == "none":
        settings.pop("keep_rate", None)
    if not config.clc:
        for name in ("num_clr", "clc_gap", "clc_recover_at_last"):
            settings.pop(name, None)
    if not config.cla:
        settings.pop("cla_head", None)
        settings.pop("cla_average", None)
    if not config.cla or config.cla_head == "linear":
        settings.pop("cla_width", None)
    if config.reduction == "none" and not (config.clc or config.cla):
        settings.pop("locations", None)  # nothing is reduced, recovered or read there
    return _canonical(settings)


def data_text(config: DataConfig, images: str) -> str:
    """The settings of a data set that affect a run, with the fingerprint `images` in place of its path."""
    settings = config.model_dump(mode="json", exclude_defaults=True, exclude={"root", "source"})
    return _canonical({**settings, "images": images})


def recipe_text(config: TrainConfig, weights: str | None) -> str:
    """The settings of a recipe that affect a run, with the fingerprint `weights` in place of the name of the file."""
    settings = config.model_dump(mode="json", exclude_defaults=True, exclude={*NOT_PART_OF_A_RUN, *_PARTS})
    start = weights if weights is not None else "published" if config.pretrained else "random"
    return _canonical({**settings, "start": start})


def run_id(model: str, data: str, recipe: str, seed: int, split: str) -> str:
    """Sixteen hexadecimal digits, from the texts of the parts."""
    text = "\n".join((str(COMPUTES), model, data, recipe, str(seed), split))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _canonical(settings: dict[str, Any]) -> str:
    return json.dumps(settings, sort_keys=True, separators=(",", ":"))


def images_fingerprint(root: str, source: str | None = None) -> str | None:
    """A digest of the images of a data set: split, class, relative path and size in bytes of each.

    It depends neither on where the set is nor on when it was copied. The files are not opened, so a changed image of
    the same size is not noticed.

    Returns:
        The digest, or None if there is no such set here.

    Raises:
        ClcaError: The path exists and is not a data set.
    """
    from clca.data import is_leaves
    from clca.data.sources.folder_csv import read_listing
    from clca.data.synthetic.leaves import DrawnLeaves

    if is_leaves(root, source):
        leaves = DrawnLeaves.from_text(root, split="all")
        images = len(leaves) // len(leaves.classes)
        own = [len(leaves.classes), images, leaves.size, leaves.seed, leaves.difficulty]
        return "leaves:" + ",".join(f"{value:g}" for value in own)
    if not expanded(root).exists():
        return None
    listing = read_listing(root, source)
    if listing.problems:
        raise ClcaError(listing.problems[0])
    digest = hashlib.sha256()
    below = listing.root if listing.root.is_dir() else listing.root.parent
    for split in sorted(listing.splits):
        for path, label in sorted(listing.splits[split]):
            name = path.relative_to(below) if path.is_relative_to(below) else path.name
            line = f"{split}\t{listing.classes[label]}\t{as_text(name)}\t{path.stat().st_size}\n"
            digest.update(line.encode(errors="surrogateescape"))
    return digest.hexdigest()[:16]


@cache
def weights_fingerprint(path: str) -> str:
    """A digest of a weights file.

    Raises:
        ClcaError: It cannot be read.
    """
    try:
        if not stat.S_ISREG(os.stat(expanded(path)).st_mode):  # a device or a FIFO may have no end
            raise ClcaError(f"weights {path}: is no file of weights")
        with open(expanded(path), "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]
    except OSError as error:
        raise ClcaError(f"weights {path}: cannot be read ({reason(error)})") from None
