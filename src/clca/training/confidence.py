"""Set how far a trained model's answers can be trusted, on the watched images."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Subset

from clca.data.transforms import IMAGENET_MEAN, IMAGENET_STD, Normalization, eval_transform
from clca.kernels.prepack import prepacked
from clca.models.confidence import (
    CalibrationFacts,
    Confidence,
    Confidences,
    confidence_rows,
    normalized,
    read_by_head,
)
from clca.models.token_reduced_vit import TokenReducedViT
from clca.training.features import features_of
from clca.training.loaders import end_workers, eval_loader, reading_processes
from clca.training.preflight import image_size
from clca.training.state import RunState

FALSE_ALARMS = 0.05
"""Share of images of the known classes that may be taken for none of them."""

FEWEST_IMAGES = 20
"""Watched images below which no distance is exceeded by 5 % of them."""

_MOST_IMAGES = 5000  # training images; mean and covariance hardly depend on more
_BINS = 15  # of the expected calibration error, as in Guo et al. (ICML 2017)
_LARGEST_LOG = 3.0  # of the temperature


def set_confidence(state: RunState, model: TokenReducedViT, progress: Callable[[int, int], None]) -> Confidences:
    """Set the confidence of a trained model at every keep rate that it was trained for.

    Args:
        state: Of the run, with at least `FEWEST_IMAGES` watched images.
        model: With the weights that the run keeps.
        progress: Called with the number of images that have passed the model, and their total.
    """
    config, accelerator = state.config, state.accelerator
    assert state.watched_images is not None
    model = model.to(accelerator.device).eval()
    train, watched = state.train_images, state.watched_images
    chosen = _spread(len(train), _MOST_IMAGES)
    rates = model.config.keep_rates or (model.keep_rate,)
    total, found = len(rates) * (len(chosen) + len(watched)), []
    augmented = train.transform
    train.transform = eval_transform(image_size(model), IMAGENET_MEAN, IMAGENET_STD, normalize=False)
    try:
        for place, rate in enumerate(rates):
            model.keep_rate = rate
            before = place * total // len(rates)

            def show(done: int, _: int, before: int = before) -> None:
                progress(before + done, total)

            features = features_of(
                model, train if len(chosen) == len(train) else _Chosen(train, chosen), accelerator,
                batch_size=config.batch_size, workers=reading_processes(config.workers), store=config.cache,
                progress=show,
            )  # fmt: skip
            tokens, logits, labels = _watched(model, watched, state)
            show(len(chosen) + len(watched), total)
            found.append(fit_confidence(model, rate, features.values, features.labels, tokens, logits, labels))
    finally:
        train.transform = augmented
    return Confidences(found)


def fit_confidence(
    model: TokenReducedViT,
    keep_rate: float | tuple[float, ...],
    tokens: np.ndarray,
    labels: np.ndarray,
    watched: Tensor,
    logits: Tensor,
    truth: Tensor,
    false_alarms: float = FALSE_ALARMS,
) -> Confidence:
    """Distances from the training images, temperature and limit from the watched ones.

    The classes share a covariance at each depth, shrunk by the rule of Ledoit and Wolf (2004). The limit is the
    smallest distance that, by its rank among the watched images, new images of the known classes exceed with at most
    the stated probability (split conformal prediction), so that few watched images set it further out.

    Args:
        model: For the positions of the tokens.
        keep_rate: Of the model.
        tokens, labels: What the head reads of the training images, [N, G, C], and their classes, [N].
        watched, logits, truth: The same of the watched images, [M, G, C], with logits [M, K] and classes [M].
        false_alarms: Largest share of known images beyond the limit.
    """
    from sklearn.covariance import ledoit_wolf  # late: SciPy takes half a second

    rows = confidence_rows(model)
    x = normalized(torch.from_numpy(tokens[:, rows])).double().numpy()  # [N, D, C]
    classes, index = np.unique(labels, return_inverse=True)
    means, whitening, centers = [], [], []
    for depth in range(len(rows)):
        one = x[:, depth]
        mean, deviation = one.mean(0), one.std(0) + 1e-6
        one = (one - mean) / deviation
        center = np.stack([one[index == k].mean(0) for k in range(len(classes))])
        covariance, _ = ledoit_wolf(one - center[index], assume_centered=True)
        values, vectors = np.linalg.eigh(covariance)
        whiten = vectors / np.sqrt(np.maximum(values, 1e-6))
        means.append(mean)
        whitening.append(whiten / deviation[:, None])
        centers.append(center @ whiten)
    temperature = fit_temperature(logits, truth)
    scaled = logits / temperature
    facts = CalibrationFacts(
        len(truth), false_alarms,
        F.cross_entropy(logits, truth).item(), _error_of(logits, truth),
        F.cross_entropy(scaled, truth).item(), _error_of(scaled, truth),
    )  # fmt: skip
    found = Confidence(keep_rate, rows, x.shape[2], len(classes), facts)
    found.temperature.fill_(temperature)
    found.mean.copy_(torch.from_numpy(np.stack(means)))
    found.whitening.copy_(torch.from_numpy(np.stack(whitening)))
    found.centers.copy_(torch.from_numpy(np.stack(centers, axis=1)))
    limit = _limit(found(watched).numpy(), false_alarms)
    found.whitening /= limit
    found.centers /= limit
    return found.eval()


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature of the lowest cross-entropy of logits [N, K] for classes [N]."""
    from scipy.optimize import minimize_scalar

    logits = logits.double()

    def loss(log: float) -> float:
        return F.cross_entropy(logits / math.exp(log), labels).item()

    return math.exp(minimize_scalar(loss, bounds=(-_LARGEST_LOG, _LARGEST_LOG), method="bounded").x)


def _error_of(logits: Tensor, truth: Tensor) -> float:
    surest, answers = logits.softmax(1).max(dim=1)
    return calibration_error(surest, answers == truth)


def calibration_error(probabilities: Tensor, right: Tensor) -> float:
    """The expected calibration error of the probabilities of answers, [N], and whether these are right, [N]."""
    bins = reliability(probabilities, right)
    return sum(abs(each.images * (each.accuracy - each.confidence)) for each in bins) / len(right)


@dataclass(frozen=True)
class ReliabilityBin:
    """The answers with a probability within one bin: how many, its mean, and the share that is right."""

    images: int
    confidence: float
    accuracy: float


def reliability(probabilities: Tensor, right: Tensor) -> list[ReliabilityBin]:
    """Answers by their probability, in 15 bins of equal width, without empty ones, from low to high.

    Args:
        probabilities: Of the answers, [N], 0 … 1.
        right: Whether they are right, [N].
    """
    surest, right = probabilities.double(), right.double()
    place = (surest * _BINS).ceil().clamp(1, _BINS) - 1
    lines = []
    for number in range(_BINS):
        inside = place == number
        if count := int(inside.sum()):
            lines.append(ReliabilityBin(count, surest[inside].mean().item(), right[inside].mean().item()))
    return lines


def _limit(distances: np.ndarray, false_alarms: float) -> float:
    """The distance that the next image like these exceeds with a probability of at most `false_alarms`."""
    rank = min(len(distances), math.ceil((len(distances) + 1) * (1 - false_alarms)))
    return max(float(np.sort(distances)[rank - 1]), 1e-6)


@torch.no_grad()
def _watched(model: TokenReducedViT, images: Any, state: RunState) -> tuple[Tensor, Tensor, Tensor]:
    """What the head reads of the watched images, logits and classes, on the CPU in float32."""
    device, normalize = state.accelerator.device, Normalization(model.preprocess or {})
    workers = reading_processes(state.config.workers)
    loader = eval_loader(images, len(images), state.config.batch_size, 0, 1, workers, device)
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    try:
        with prepacked(model):
            for pixels, labels in loader:
                with state.accelerator.autocast():
                    features = model.forward_features(normalize(pixels, device))
                    logits, tokens = model.forward_head(features), read_by_head(model, features)
                found.append((tokens.float().cpu(), logits.float().cpu(), labels))
    finally:
        end_workers(loader)
    tokens, logits, labels = (torch.cat(parts) for parts in zip(*found, strict=True))
    return tokens, logits, labels


def _spread(count: int, most: int) -> list[int]:
    """Up to `most` of `count` positions, evenly spread: data sets list their images class by class."""
    if count <= most:
        return list(range(count))
    return np.unique(np.linspace(0, count - 1, most).astype(int)).tolist()


class _Chosen(Subset):
    """Some images of a data set, with what `features_of` reads of it."""

    def __init__(self, images: Any, chosen: list[int]) -> None:
        super().__init__(images, chosen)
        self.transform = images.transform
        self.paths = [images.paths[place] for place in chosen]
        self.labels = [images.labels[place] for place in chosen]
