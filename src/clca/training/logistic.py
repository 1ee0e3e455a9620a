"""Multinomial logistic regression on features, its regularisation chosen by cross-validation on the training images."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

STRENGTHS = tuple(float(10**exponent) for exponent in np.arange(-5, 2.1, 0.5))
"""Inverse regularisations C that are compared, ascending."""

_USUAL = 1e-2  # where no image can be left out
_FOLDS = 5
_MOST_IN_FOLDS = 5000  # rows; the strength hardly depends on more
_PATIENCE = 2  # strengths in a row after the best, at which the search ends
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
        views: How many views of each image it was fitted to.
        strength: The inverse regularisation C chosen.
        train_loss, train_top1: Cross-entropy and accuracy of the images that it was fitted to, in their first view.
        loss, top1: The same of each image by a fit without its fold; None if there were too few images for that.
    """

    mean: np.ndarray
    variance: np.ndarray
    weight: np.ndarray
    bias: np.ndarray
    images: int
    views: int
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
    weights: np.ndarray | None = None,
    strengths: Sequence[float] = STRENGTHS,
    seed: int = 0,
    apart: bool = True,
) -> LogisticFit:
    """Fit a classifier, with the strength of the lowest cross-entropy in stratified cross-validation.

    One classifier serves all keep rates and views. How many of the views it is fitted to (the first, the first two, or
    all) is chosen by the same cross-validation, which judges the first view of the images that were left out.

    Args:
        features: [N, F]; or [R, V, N, F], of V views of the same images at R keep rates.
        labels: Classes, [N]; each of 0 … classes - 1 occurs.
        classes: K.
        groups: Images of one group are left out together, [N]; None if there are no groups.
        weights: How much each image counts, [N], with a mean of 1; None for all the same.
        strengths: Inverse regularisations to compare, ascending.
        seed: Of the folds.
        apart: Standardise the features of each keep rate by their own mean and variance; otherwise all by one.
    """
    features = features if features.ndim == 4 else features[None, None]
    weights = np.ones(len(labels)) if weights is None else weights
    several = len(features) > 1 and apart
    images, found = len(labels), []
    folds = _split(labels, groups, _MOST_IN_FOLDS // (features.shape[0] * features.shape[1]), seed)
    for views in sorted({1, min(2, features.shape[1]), features.shape[1]}):
        standard, _, _ = _standardised(features[:, :views], apart)
        found += [
            (loss, top1, views, c)
            for c, loss, top1 in _cross_validate(standard, labels, weights, classes, folds, strengths)
        ]
    loss, top1, views, strength = min(found) if found else (None, None, features.shape[1], _USUAL)
    standard, mean, variance = _standardised(features[:, :views], apart)
    weight, bias = _Solver(*_rows(standard, labels, weights), classes).fit(strength)
    losses, hits = _judge(standard[:, 0] @ weight.T + bias, labels)
    own = float(losses.mean()), float(hits.mean())
    mean, variance = (mean, variance) if several else (mean[0], variance[0])
    return LogisticFit(mean, variance, weight, bias, images, views, strength, *own, loss, top1)


def _standardised(features: np.ndarray, apart: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features [R, V, N, F] in standard units, and their means and variances [R, F], or [1, F] for all rates."""
    over = (1, 2) if apart else (0, 1, 2)
    mean = features.mean(over, dtype=np.float64).reshape(-1, features.shape[-1])
    variance = features.var(over, dtype=np.float64).reshape(-1, features.shape[-1])
    shape = (len(mean), 1, 1, -1)
    return (features - mean.reshape(shape)) / np.sqrt(variance.reshape(shape) + _EPSILON), mean, variance


def _rows(features: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features [R, V, N, F] as rows [R · V · N, F], with the label and the weight of each."""
    copies = features.shape[0] * features.shape[1]
    return features.reshape(-1, features.shape[-1]), np.tile(labels, copies), np.tile(weights, copies)


def _split(labels: np.ndarray, groups: np.ndarray | None, most: int, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Images to fit and to judge in each fold; empty if no image can be left out."""
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    chosen = np.arange(len(labels))
    if len(labels) > most:
        chosen = np.random.default_rng(seed).permutation(len(labels))[:most]
    labels, groups = labels[chosen], groups[chosen] if groups is not None else None
    apart = np.unique(groups, return_index=True)[1] if groups is not None else np.arange(len(labels))
    counts = np.bincount(labels[apart])  # of what can be left out separately
    folds = min(_FOLDS, max(2, int(counts[counts > 0].min())))
    if counts.max() < folds:
        return []
    splitter = StratifiedKFold if groups is None else StratifiedGroupKFold
    with warnings.catch_warnings():  # of classes with one image, which is never left out or never trained on
        warnings.simplefilter("ignore", UserWarning)
        parts = list(splitter(folds, shuffle=True, random_state=seed).split(chosen, labels, groups))
    return [(chosen[fit], chosen[left]) for fit, left in parts if len(np.unique(labels[fit])) > 1]


def _cross_validate(
    features: np.ndarray,
    labels: np.ndarray,
    weights: np.ndarray,
    classes: int,
    folds: Sequence[tuple[np.ndarray, np.ndarray]],
    strengths: Sequence[float],
) -> list[tuple[float, float, float]]:
    """Strength, cross-entropy and accuracy of each strength, up to two after the best; features: [R, V, N, F]."""
    if not folds:
        return []
    solvers = [_Solver(*_rows(features[:, :, fit], labels[fit], weights[fit]), classes) for fit, _ in folds]
    counted = np.concatenate([np.tile(weights[left_out], len(features)) for _, left_out in folds])
    scores: list[tuple[float, float, float]] = []
    for strength in strengths:
        losses, hits = [], []
        for solver, (_, left_out) in zip(solvers, folds, strict=True):
            weight, bias = solver.fit(strength)
            loss, hit = _judge(features[:, 0, left_out] @ weight.T + bias, labels[left_out])
            losses.append(loss)
            hits.append(hit)
        mean = float(np.average(np.concatenate(losses), weights=counted))
        scores.append((strength, mean, float(np.concatenate(hits).mean())))
        best = min(range(len(scores)), key=lambda number: scores[number][1])
        if len(scores) - best > _PATIENCE:
            break
    return scores


def _judge(logits: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cross-entropy of each row, and whether its class has the largest logit; logits: [R, N, K], labels: [N]."""
    labels = np.tile(labels, len(logits))
    logits = logits.reshape(len(labels), -1)
    logits = logits - logits.max(axis=1, keepdims=True)
    own = logits[np.arange(len(labels)), labels]
    return np.log(np.exp(logits).sum(axis=1)) - own, logits.argmax(axis=1) == labels


class _Solver:
    """Logistic regression of one set of rows at one strength after another, each from the solution before.

    Args:
        features: [M, F].
        labels: Classes, [M].
        weights: How much each row counts, [M].
        classes: K; one without rows has the logits of a rare one.
    """

    def __init__(self, features: np.ndarray, labels: np.ndarray, weights: np.ndarray, classes: int) -> None:
        from sklearn.linear_model import LogisticRegression

        self._rotation: np.ndarray | None = None
        if len(features) < features.shape[1]:  # an L2 penalty is the same in any rotation; M rows span M dimensions
            _, _, self._rotation = np.linalg.svd(features - features.mean(0), full_matrices=False)
            features = features @ self._rotation.T
        self._features, self._labels, self._weights, self._classes = features, labels, weights, classes
        self._model = LogisticRegression(max_iter=_ITERATIONS, tol=1e-4, warm_start=True)

    def fit(self, strength: float) -> tuple[np.ndarray, np.ndarray]:
        """Weight [K, F] and bias [K] at an inverse regularisation."""
        model = self._model.set_params(C=strength)
        model.fit(self._features, self._labels, None if (self._weights == 1).all() else self._weights)
        weight, bias = model.coef_, model.intercept_
        if len(model.classes_) == 2:  # one logit, of the second class
            weight, bias = np.concatenate([-weight / 2, weight / 2]), np.concatenate([-bias / 2, bias / 2])
        if self._rotation is not None:
            weight = weight @ self._rotation
        whole, offset = np.zeros((self._classes, weight.shape[1])), np.full(self._classes, bias.min() - 10.0)
        whole[model.classes_], offset[model.classes_] = weight, bias
        return whole, offset
