"""`predict(model, paths)`: classify photographs."""

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from clca.data.decoding import Decoders
from clca.data.sources.photographs import Photographs, find_photographs
from clca.data.sources.photographs import find_images as find_images  # its former home, for those that import it here
from clca.data.transforms import Normalization, apply_transform, from_preprocess
from clca.errors import ClcaError
from clca.kernels.prepack import prepacked
from clca.models.confidence import AnsweringModel
from clca.models.pretrained import from_pretrained
from clca.models.ranking import most_likely
from clca.models.token_reduced_vit import TokenReducedViT
from clca.training.device import make_accelerator

_PROCESSES = 4  # for decoding images


@dataclass(frozen=True)
class Prediction:
    """The prediction for one image.

    Attributes:
        path: The file.
        classes: The most likely classes, best first; empty where the file could not be read.
        probabilities: Their probabilities, 0 … 1, calibrated where the model's confidence allows.
        unfamiliarity: How far the image is from the known classes; None where the model has no confidence at its keep
            rate.
        error: Why the file could not be read, or None.
        left_out: Whether it was left out of its folder by its name, and not opened; `error` has the reason.
    """

    path: Path
    classes: tuple[str, ...] = ()
    probabilities: tuple[float, ...] = ()
    unfamiliarity: float | None = None
    error: str | None = None
    left_out: bool = False

    @property
    def is_unfamiliar(self) -> bool:
        """Whether the image is taken for none of the classes."""
        return self.unfamiliarity is not None and self.unfamiliarity > 1


def predict(
    model: TokenReducedViT | str | Path,
    paths: str | Path | Iterable[str | Path] | Photographs,
    top_k: int = 5,
    *,
    keep_rate: float | tuple[float, ...] | None = None,
    batch_size: int = 32,
    device: str = "auto",
    precision: str = "auto",
    compile: bool = False,
) -> Iterator[Prediction]:
    """Classify images in the given order; one that cannot be read has an error instead of classes.

    So do the images in a folder that are left out, as in training: of formats that are not read, without an extension,
    in a cloud only. A warning counts them, and those in folders that a system made (a recycle bin, thumbnails).

        model = clca.from_pretrained("runs/leaves")
        for prediction in clca.predict(model, "photos/"):
            print(prediction.path, prediction.classes[0], prediction.probabilities[0])

    Args:
        model: A model with `classes` and `preprocess`, as training sets them; or a run folder or hub id.
        paths: Files, folders (searched recursively for images, also through links) and patterns such as
            `photos/*.jpg`; or what `clca.data.sources.photographs.find_photographs` found.
        top_k: Number of classes to return for each image, at most all of them.
        keep_rate: Share of tokens to keep instead of the one that the model was trained with.
        batch_size: Images per batch.
        device: "auto" or "cpu".
        precision: "auto", "no", "bf16" or "fp16".
        compile: Compile the model first, which takes a minute and pays off from a few thousand images on.

    Raises:
        ClcaError: There is no such model, or a folder or pattern has no images.
    """
    model = ready_model(model, keep_rate)
    if top_k < 1:
        raise ClcaError(f"top_k {top_k}: must be at least 1")
    found = found_photographs(paths)
    answered = answers(model, found, batch_size=batch_size, device=device, precision=precision, compile=compile)
    return (_prediction(one, model.classes or [], top_k) for one in answered)


def ready_model(
    model: TokenReducedViT | str | Path, keep_rate: float | tuple[float, ...] | None = None
) -> TokenReducedViT:
    """A model with classes and preprocessing, loaded if it is named, at a keep rate.

    Raises:
        ClcaError: There is no such model, or it lacks one of them.
    """
    if not isinstance(model, TokenReducedViT):
        model = from_pretrained(model)
    if model.classes is None or model.preprocess is None:
        raise ClcaError("the model lacks its classes or preprocessing: set model.classes and model.preprocess")
    if keep_rate is not None:
        model.keep_rate = keep_rate
    return model


def found_photographs(paths: str | Path | Iterable[str | Path] | Photographs) -> Photographs:
    """What `find_photographs` finds, or is given already; a warning counts the images that are left out."""
    found = paths if isinstance(paths, Photographs) else find_photographs(paths)
    for line in found.warnings:
        warnings.warn(line, stacklevel=3)
    return found


@dataclass(frozen=True)
class ImageAnswer:
    """What a model makes of one image.

    Attributes:
        path: The file.
        probabilities: Of all classes, [K]; None where it could not be read.
        unfamiliarity, error, left_out: As of `Prediction`.
    """

    path: Path
    probabilities: Tensor | None = None
    unfamiliarity: float | None = None
    error: str | None = None
    left_out: bool = False


def _prediction(answer: ImageAnswer, classes: Sequence[str], top_k: int) -> Prediction:
    if answer.probabilities is None:
        return Prediction(answer.path, error=answer.error, left_out=answer.left_out)
    shares, indices = most_likely(answer.probabilities, top_k)
    names = tuple(classes[k] for k in indices.tolist())
    return Prediction(answer.path, names, tuple(shares.tolist()), answer.unfamiliarity)


def answers(
    model: TokenReducedViT, found: Photographs, *, batch_size: int, device: str, precision: str, compile: bool
) -> Iterator[ImageAnswer]:
    """Answers to photographs, in order; the arguments are those of `predict`.

    Raises:
        ClcaError: The batch size, device or precision is invalid.
    """
    if batch_size < 1:
        raise ClcaError(f"batch_size {batch_size}: must be at least 1")
    return _answers(model, found.files, batch_size, device, precision, compile)


def _answers(
    model: TokenReducedViT,
    files: Mapping[Path, str | None],
    batch_size: int,
    device: str,
    precision: str,
    compile: bool,
) -> Iterator[ImageAnswer]:
    accelerator = make_accelerator(device=device, precision=precision)
    model = model.to(accelerator.device).eval()
    answer = AnsweringModel(model, compile=compile)
    preprocess = model.preprocess or {}
    transform, normalize = from_preprocess(preprocess, normalize=False), Normalization(preprocess)

    def read(path: Path) -> Tensor | str:
        try:
            return apply_transform(transform, lambda resize: decoders.image(path, resize)[0])
        except ClcaError as error:
            return str(error).removeprefix(f"{path}: ")

    def started(item: tuple[Path, str | None]) -> tuple[Path, str | Future[Tensor | str]]:
        path, why_left_out = item
        return path, pool.submit(read, path) if why_left_out is None else why_left_out

    # The next batch is decoded while this one is classified, each image in a process that is killed on a timeout.
    processes = min(_PROCESSES, len(files))
    with Decoders(processes) as decoders, ThreadPoolExecutor(processes) as pool, prepacked(model):
        remaining = map(started, files.items())
        waiting = list(islice(remaining, 2 * batch_size))
        while waiting:
            batch, waiting = waiting[:batch_size], waiting[batch_size:]
            found = [(path, job if isinstance(job, str) else job.result()) for path, job in batch]
            waiting += islice(remaining, batch_size)
            images = [image for _, image in found if isinstance(image, Tensor)]
            answered: Iterator[tuple[Tensor, float | None]] = iter(())
            if images:
                with torch.inference_mode(), accelerator.autocast():
                    shares, unfamiliarity = answer(normalize(torch.stack(images), accelerator.device))
                distances = [None] * len(images) if unfamiliarity is None else unfamiliarity.tolist()
                answered = iter(zip(shares.cpu(), distances, strict=True))
            for path, image in found:
                if isinstance(image, str):
                    yield ImageAnswer(path, error=image, left_out=files[path] is not None)
                else:
                    yield ImageAnswer(path, *next(answered))
