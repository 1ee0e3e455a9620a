"""What the head of a frozen model reads of each image, computed once and kept on disk."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from torch import Tensor
from torch.utils.data import Subset

from clca.data.cache.fill import reader_versions
from clca.data.cache.limits import FEATURES, beside_cache, free_features
from clca.data.transforms import Normalization
from clca.errors import WorkError
from clca.kernels.prepack import prepacked
from clca.models.token_reduced_vit import TokenReducedViT
from clca.system.files import replacing
from clca.training.loaders import end_workers, eval_loader

_CHUNK = 256  # images; an interrupted pass continues after the last whole chunk
_HEADS = ("cla_head.", "head.", "head_dist.", "rate_statistics.")


class View(NamedTuple):
    """A symmetry of the square: images [B, C, H, W] are flipped along axes, then perhaps mirrored at the diagonal."""

    flip: tuple[int, ...] = ()
    transposed: bool = False

    def of(self, images: Tensor) -> Tensor:
        """The images in this view, [B, C, H, W]."""
        images = images.flip(self.flip)
        return images.transpose(2, 3) if self.transposed else images


AS_IT_IS = View()


@dataclass(frozen=True)
class Features:
    """What the head reads of every image of a data set.

    Attributes:
        values: What the aggregation head reads, [N, G, C]; of a model without it what its own head reads, [N, 1, C].
        labels: Classes, [N].
    """

    values: np.ndarray
    labels: np.ndarray


def features_of(
    model: TokenReducedViT,
    images: Any,
    accelerator: Accelerator,
    *,
    batch_size: int,
    workers: int,
    view: View = AS_IT_IS,
    store: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> Features:
    """Run a frozen model once over a data set.

    Features that were stored for the same weights, images, transform and precision are read instead; an interrupted
    pass continues after the last 256 images that were stored.

    Args:
        model: On its device; its mode is restored.
        images: A data set of `clca.data`, with its transform.
        accelerator: Device and precision.
        batch_size: Images per forward pass.
        workers: Processes that read images.
        view: How the images are turned first.
        store: Keep the features in `$CLCA_CACHE/features`, else `~/.cache/clca/features`.
        progress: Called with the number of images done and their total: at the start, and after each batch. What it
            raises ends the pass.
    """
    folder = beside_cache(FEATURES) if store else None
    if folder is not None:
        folder /= _digest(model, images, accelerator, view)
    chunks: list[np.ndarray] = []
    starts = range(0, len(images), _CHUNK)
    for first in starts:
        stored = _read(_chunk(folder, first), min(_CHUNK, len(images) - first)) if folder is not None else None
        if stored is None:
            break
        chunks.append(stored)
    done = _CHUNK * len(chunks)
    if folder is not None and chunks:
        with suppress(OSError):
            os.utime(folder)  # in use: the last to be removed
    if done < len(images):
        left = Subset(images, range(done, len(images)))
        waiting: list[np.ndarray] = []
        passed = done
        if progress is not None:
            progress(passed, len(images))
        for batch in _batches(model, left, accelerator, batch_size, workers, view):
            waiting.append(batch)
            passed += len(batch)
            while sum(map(len, waiting)) >= _CHUNK:
                values = np.concatenate(waiting)
                _write(folder, _CHUNK * len(chunks), values[:_CHUNK])
                chunks.append(values[:_CHUNK])
                waiting = [values[_CHUNK:]]
            if progress is not None:
                progress(passed, len(images))
        if sum(map(len, waiting)):
            _write(folder, _CHUNK * len(chunks), np.concatenate(waiting))
            chunks += waiting
    return Features(np.concatenate(chunks), np.asarray(images.labels))


@torch.no_grad()
def _batches(
    model: TokenReducedViT,
    images: Subset,
    accelerator: Accelerator,
    batch_size: int,
    workers: int,
    view: View,
) -> Iterator[np.ndarray]:
    device, normalize = accelerator.device, Normalization(model.preprocess or {})
    loader = eval_loader(images, len(images), batch_size, 0, 1, workers, device)
    was_training = model.training
    model.eval()
    try:
        with prepacked(model):
            for pixels, _ in loader:
                with accelerator.autocast():
                    tokens = model.forward_features(view.of(normalize(pixels, device)))
                    if model.cla_head is None:
                        tokens = model.forward_head(tokens, pre_logits=True).unsqueeze(1)
                yield tokens.float().cpu().numpy()
    finally:
        end_workers(loader)
        model.train(was_training)


def _digest(model: TokenReducedViT, images: Any, accelerator: Accelerator, view: View) -> str:
    """Of all that the features follow from; changed images are noticed by their size or time of modification."""
    digest = hashlib.sha256()
    settings = model.config.model_dump(mode="json", exclude={"num_classes", "cla_head", "cla_width", "keep_rates"})
    versions = [version("clca"), version("torch"), version("timm"), reader_versions()]
    found = [*versions, accelerator.mixed_precision, accelerator.device.type]
    digest.update(
        json.dumps([settings, model.preprocess, found, repr(images.transform), view], sort_keys=True).encode()
    )
    for name, tensor in model.state_dict().items():
        if not name.startswith(_HEADS):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    for path in images.paths:
        described = str(path)
        with suppress(OSError):
            found_file = os.stat(path)
            described = f"{os.path.abspath(path)}\t{found_file.st_size}\t{found_file.st_mtime_ns}"
        digest.update(described.encode(errors="surrogateescape") + b"\n")
    return digest.hexdigest()[:32]


def _chunk(folder: Path, first: int) -> Path:
    return folder / f"{first:08}.safetensors"


def _read(path: Path, count: int) -> np.ndarray | None:
    """The values of a chunk; None if it is not there, or damaged."""
    with suppress(OSError, SafetensorError, KeyError, ValueError):
        values: np.ndarray = load_file(path)["values"]
        if values.ndim == 3 and len(values) == count and values.dtype == np.float32 and np.isfinite(values).all():
            return values
    return None


def _write(folder: Path | None, first: int, values: np.ndarray) -> None:
    """Store a chunk; a cache that cannot be written costs only time."""
    if folder is None:
        return
    with suppress(OSError, WorkError):
        free_features(values.nbytes, keep=folder)
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(_chunk(folder, first)) as temporary:
            save_file({"values": np.ascontiguousarray(values)}, temporary)
