"""Probable label errors: the plain rule, against cleanlab."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from clca.evaluation.label_errors import find_label_errors


def noisy(seed: int, images: int, classes: int, flipped: float) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities that know the true classes rather well, and labels of which a share is wrong."""
    rng = np.random.default_rng(seed)
    true = rng.integers(0, classes, images)
    logits = rng.normal(0, 1, (images, classes)).astype(np.float32)
    logits[np.arange(images), true] += 2.5
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return shares, np.where(rng.random(images) < flipped, rng.integers(0, classes, images), true)


@given(st.integers(0, 10**6), st.integers(2, 60), st.integers(2, 7), st.sampled_from([0.0, 0.1, 0.5]))
def test_it_is_the_rule_of_cleanlab(seed: int, images: int, classes: int, flipped: float) -> None:
    cleanlab = pytest.importorskip("cleanlab")
    shares, labels = noisy(seed, images, classes, flipped)
    assume(len(set(labels)) == classes)  # cleanlab numbers classes anew where one has no images
    expected = cleanlab.filter.find_label_issues(
        labels, shares, filter_by="confident_learning", return_indices_ranked_by="normalized_margin", n_jobs=1
    )
    found = find_label_errors(shares, labels)
    # Where an image reaches two thresholds but not that of its most likely class, the paper takes the likelier of the
    # two, and cleanlab the most likely class all the same.
    thresholds = np.array([shares[labels == k, k].mean() for k in range(classes)])
    reached = shares >= thresholds - 1e-6
    differ = np.flatnonzero((reached.sum(1) > 1) & ~reached[np.arange(images), shares.argmax(1)])
    assert set(found.images.tolist()) - set(differ) == set(np.asarray(expected).tolist()) - set(differ)
    assert (np.diff(found.margin) >= 0).all()
    scores = cleanlab.rank.get_normalized_margin_for_each_label(labels, shares)
    assert found.margin == pytest.approx(2 * scores[found.images] - 1, abs=1e-5)
    assert (found.suggested != labels[found.images]).all()


def test_flipped_labels_come_first() -> None:
    shares = np.full((30, 3), 0.05)
    true = np.arange(30) % 3
    shares[np.arange(30), true] = 0.9
    labels = true.copy()
    labels[[4, 20]] = [2, 0]
    found = find_label_errors(shares, labels)
    assert found.images.tolist() == [4, 20]
    assert found.suggested.tolist() == [1, 2]


@pytest.mark.parametrize("labels", [[0, 0, 0], [1, 1, 1]])
def test_of_one_class_nothing_is_suspected(labels: list[int]) -> None:
    """No image is labelled with another class, so none can count for one."""
    shares = np.array([[0.1, 0.9], [0.6, 0.4], [0.5, 0.5]])
    assert len(find_label_errors(shares, np.array(labels)).images) == 0
