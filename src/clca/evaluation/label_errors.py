"""Probable label errors by confident learning (Northcutt, Jiang and Chuang, JAIR 2021)."""

from dataclasses import dataclass

import numpy as np

_CLOSE = 1e-6  # probabilities that differ by less count as equal


@dataclass(frozen=True)
class LabelErrors:
    """The images whose label is probably wrong, most probable first.

    Attributes:
        images: Their positions, [M].
        suggested: The class that each probably is, [M].
        margin: Probability of the label minus that of the most likely other class, -1 … 1, [M].
    """

    images: np.ndarray
    suggested: np.ndarray
    margin: np.ndarray


def find_label_errors(probabilities: np.ndarray, labels: np.ndarray) -> LabelErrors:
    """Apply the plain rule: what counts in the confident joint off its diagonal, ranked by normalised margin.

    The threshold of a class is the mean probability that the images labelled with it have of it. An image counts for
    the most likely of the classes whose threshold it reaches; if that is not its label, the label is probably wrong,
    unless the label is the most likely class after all.

    Args:
        probabilities: Of a model that was not trained on these images, [N, K].
        labels: Classes, [N].
    """
    every = np.arange(len(labels))
    own = probabilities[every, labels].astype(np.float64)
    count = np.bincount(labels, minlength=probabilities.shape[1])
    sums = np.bincount(labels, weights=own, minlength=probabilities.shape[1])
    # No image counts for a class that none is labelled with.
    thresholds = np.where(count > 0, np.maximum(sums / np.maximum(count, 1), 2 * _CLOSE), np.inf)
    reached = np.where(probabilities >= thresholds - _CLOSE, probabilities, -1.0)
    counted = reached.argmax(1)
    others = probabilities.astype(np.float64)
    others[every, labels] = -1.0
    margin = own - others.max(1)
    wrong = (reached.max(1) >= 0) & (counted != labels) & (margin <= -_CLOSE)
    found = np.flatnonzero(wrong)
    order = found[np.argsort(margin[found], kind="stable")]
    return LabelErrors(order, counted[order], margin[order])
