"""Multinomial logistic regression on features, its regularisation chosen by cross-validation on the training images."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

STRENGTHS = tuple(float(10**exponent) for exponent in np.arange(-5, 2.1, 0.5))
"""Inverse regularisation C that are compared."""

_USUAL = 1e-2  # where no image can be left out
_FOLDS = 5
_MOST_IN_FOLDS = 5000  # images; the strength hardly depends on more
_EPSILON = 1e-5  # of torch's BatchNorm
_ITERATIONS = 1000


@dataclass(frozen=True)
class LogisticFit:
    """A linear classifier of standardised features.

    Attributes:
        mean, variance: Of each feature over the images, [F], or [R, F] where there are features at R keep rates.
        weight: [K, F], of the features minus `mean` over the root of `variance` + 1e-5.
        bias: [K].
        images: N, how many it was fitted to.
        strength: The inverse regularisation C chosen.
        train_loss, train_top1: Cross-entropy and accuracy of the images that it was fitted to.
        loss, top1: The same of each image by a fit without its fold; None if there were too few images for that.
    """

    mean: np.ndarray
    variance: np.ndarray
    weight: np.ndarray
    bias: np.ndarray
    images: int
    strength: float
    train_loss: float
    train_top1: float
    loss: float | None
    top1: float | None

    @property
    def deviation(self) -> np.ndarray:
        """Of each feature, as BatchNorm divides by it, [F] or [R, F]."""
        return np.sqrt(self.variance + _EPSILON)


def fit_logistic(
    features: np.ndarray,
    labels: np.ndarray,
    classes: int,
    *,
    groups: np.ndarray | None = None,
    strengths: Sequence[float] = STRENGTHS,
    seed: int = 0,
) -> LogisticFit:
    """Fit a classifier, with the strength of the lowest cross-entropy in stratified cross-validation.

    Args:
        features: [N, F]; or [R, N, F], of the same images at R keep rates: those of each rate are standardised by their
            own mean and variance, and one classifier is fitted to all of them.
        labels: Classes, [N]; each of 0 … classes - 1 occurs.
        classes: K.
        groups: Images of one group are left out together, [N]; None if there are no groups.
        strengths: Inverse regularisations to compare.
        seed: Of the folds.
    """
    images = len(labels)
    mean, variance = features.mean(-2, dtype=np.float64), features.var(-2, dtype=np.float64)
    deviation = np.sqrt(variance + _EPSILON)
    standard = ((features - mean[..., None, :]) / deviation[..., None, :]).astype(np.float64)
    if standard.ndim == 3:
        rates = len(standard)
        standard, labels = standard.reshape(-1, standard.shape[-1]), np.tile(labels, rates)
        groups = np.tile(np.arange(images) if groups is None else groups, rates)
    scores = _cross_validate(standard, labels, classes, groups, strengths, seed)
    strength, loss, top1 = min(scores, key=lambda each: each[1]) if scores else (_USUAL, None, None)
    weight, bias = _fit(standard, labels, classes, strength)
    losses, hits = _judge(standard @ weight.T + bias, labels)
    own = float(losses.mean()), float(hits.mean())
    return LogisticFit(mean, variance, weight, bias, images, strength, *own, loss, top1)


def _cross_validate(
    features: np.ndarray,
    labels: np.ndarray,
    classes: int,
    groups: np.ndarray | None,
    strengths: Sequence[float],
    seed: int,
) -> list[tuple[float, float, float]]:
    """Strength, cross-entropy and accuracy of each; empty if no image can be left out."""
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    if len(labels) > _MOST_IN_FOLDS:
        chosen = np.random.default_rng(seed).permutation(len(labels))[:_MOST_IN_FOLDS]
        features, labels = features[chosen], labels[chosen]
        groups = groups[chosen] if groups is not None else None
    apart = np.unique(groups, return_index=True)[1] if groups is not None else np.arange(len(labels))
    counts = np.bincount(labels[apart])  # of what can be left out separately
    folds = min(_FOLDS, max(2, int(counts[counts > 0].min())))
    if counts.max() < folds:
        return []
    splitter = StratifiedKFold if groups is None else StratifiedGroupKFold
    with warnings.catch_warnings():  # of classes with one image, which is never left out or never trained on
        warnings.simplefilter("ignore", UserWarning)
        parts = list(splitter(folds, shuffle=True, random_state=seed).split(features, labels, groups))
    parts = [(train, left_out) for train, left_out in parts if len(np.unique(labels[train])) > 1]
    scores = []
    for strength in strengths:
        losses, hits = [], []
        for train, left_out in parts:
            weight, bias = _fit(features[train], labels[train], classes, strength)
            loss, hit = _judge(features[left_out] @ weight.T + bias, labels[left_out])
            losses.append(loss)
            hits.append(hit)
        scores.append((strength, float(np.concatenate(losses).mean()), float(np.concatenate(hits).mean())))
    return scores


def _judge(logits: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cross-entropy of each image, and whether its class has the largest logit; logits: [N, K]."""
    logits = logits - logits.max(axis=1, keepdims=True)
    own = logits[np.arange(len(labels)), labels]
    return np.log(np.exp(logits).sum(axis=1)) - own, logits.argmax(axis=1) == labels


def _fit(features: np.ndarray, labels: np.ndarray, classes: int, strength: float) -> tuple[np.ndarray, np.ndarray]:
    """Weight [K, F] and bias [K]; a class without images has the logits of a rare one."""
    from sklearn.linear_model import LogisticRegression

    rotation = None
    if len(features) < features.shape[1]:  # an L2 penalty is the same in any rotation, and N dimensions hold N images
        _, _, rotation = np.linalg.svd(features - features.mean(0), full_matrices=False)
        features = features @ rotation.T
    model = LogisticRegression(C=strength, max_iter=_ITERATIONS, tol=1e-4)
    model.fit(features, labels)
    weight, bias = model.coef_, model.intercept_
    if len(model.classes_) == 2:  # one logit, of the second class
        weight, bias = np.concatenate([-weight / 2, weight / 2]), np.concatenate([-bias / 2, bias / 2])
    if rotation is not None:
        weight = weight @ rotation
    whole, offset = np.zeros((classes, weight.shape[1])), np.full(classes, bias.min() - 10.0)
    whole[model.classes_], offset[model.classes_] = weight, bias
    return whole, offset
