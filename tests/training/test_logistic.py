"""Logistic regression on features: scikit-learn's solution, with a strength that cross-validation chooses."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from clca.training.logistic import STRENGTHS, LogisticFit, fit_logistic


def data(images: int, features: int, classes: int, signal: float = 1.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Gaussian features of very different scales; `signal` is how far the class means lie apart."""
    rng = np.random.default_rng(seed)
    labels = np.arange(images) % classes
    means = signal * rng.standard_normal((classes, features))
    values = (means[labels] + rng.standard_normal((images, features))) * 10.0 ** rng.uniform(-2, 2, features)
    return (values + rng.uniform(-5, 5, features)).astype(np.float32), labels


def logits(fit: LogisticFit, features: np.ndarray) -> np.ndarray:
    return (features - fit.mean) / fit.deviation @ fit.weight.T + fit.bias


@pytest.mark.parametrize(("images", "features"), [(60, 8), (20, 100)], ids=["more images", "more features"])
@pytest.mark.parametrize("classes", [3, 5])
def test_it_is_the_solution_of_scikit_learn(images: int, features: int, classes: int) -> None:
    values, labels = data(images, features, classes)
    fit = fit_logistic(values, labels, classes, strengths=[0.1])
    standard = (values - fit.mean) / fit.deviation
    plain = LogisticRegression(C=0.1, tol=1e-8, max_iter=10_000).fit(standard, labels)
    found, expected = (
        np.exp(x - x.max(1, keepdims=True)) for x in (logits(fit, values), plain.decision_function(standard))
    )
    np.testing.assert_allclose(
        found / found.sum(1, keepdims=True), expected / expected.sum(1, keepdims=True), atol=2e-3
    )


def test_two_classes_have_two_logits() -> None:
    values, labels = data(40, 6, 2)
    fit = fit_logistic(values, labels, 2, strengths=[0.1])
    plain = LogisticRegression(C=0.1, tol=1e-8, max_iter=10_000).fit((values - fit.mean) / fit.deviation, labels)
    both = logits(fit, values)
    assert both.shape == (40, 2)
    np.testing.assert_allclose(
        both[:, 1] - both[:, 0], plain.decision_function((values - fit.mean) / fit.deviation), atol=1e-2
    )


def test_noise_is_regularised_more_than_a_signal() -> None:
    noise = fit_logistic(*data(60, 30, 3, signal=0.0), 3)
    signal = fit_logistic(*data(60, 30, 3, signal=2.0), 3)
    assert noise.strength < signal.strength
    assert noise.top1 is not None
    assert noise.top1 < 0.6
    assert signal.top1 == 1.0
    assert signal.train_top1 == 1.0


def test_images_of_a_group_are_left_out_together() -> None:
    """Ten copies of each of some images of random classes: only a copy of an image predicts its class."""
    rng = np.random.default_rng(0)
    values, labels = rng.standard_normal((20, 40)), rng.permutation(np.arange(20) % 4)
    groups = np.repeat(np.arange(20), 10)
    copies, their_labels = values[groups], labels[groups]
    alone, together = (fit_logistic(copies, their_labels, 4, groups=each, strengths=[1.0]) for each in (None, groups))
    assert alone.top1 == 1.0
    assert together.top1 is not None
    assert together.top1 < 0.7


@settings(max_examples=20, deadline=None)
@given(counts=st.lists(st.integers(1, 7), min_size=2, max_size=5), features=st.integers(1, 30))
def test_any_counts_of_images_give_a_finite_fit(counts: list[int], features: int) -> None:
    labels = np.repeat(np.arange(len(counts)), counts)
    values = np.random.default_rng(0).standard_normal((len(labels), features))
    values[:, 0] = 3.0  # a feature that is the same everywhere
    fit = fit_logistic(values, labels, len(counts), strengths=[1e-3, 1.0])
    assert all(np.isfinite(each).all() for each in (fit.weight, fit.bias, fit.mean, fit.deviation))
    assert fit.weight.shape == (len(counts), features)
    assert fit.train_loss >= 0
    assert 0 <= fit.train_top1 <= 1


def test_features_at_several_rates_are_standardised_apart_and_fitted_together() -> None:
    values, labels = data(40, 6, 4)
    at_rates = np.stack([values, 3 * values + 5, values[:, ::-1]])
    fit = fit_logistic(at_rates[:, None], labels, 4, strengths=[0.1])
    assert fit.mean.shape == fit.variance.shape == (3, 6)
    np.testing.assert_allclose(fit.mean, at_rates.mean(1), rtol=1e-5)
    np.testing.assert_allclose(fit.variance, at_rates.var(1), rtol=1e-4)
    standard = [(features - fit.mean[r]) / fit.deviation[r] for r, features in enumerate(at_rates)]
    stacked = fit_logistic(np.concatenate(standard), np.tile(labels, 3), 4, strengths=[0.1])
    np.testing.assert_allclose(fit.weight, stacked.weight / stacked.deviation, atol=1e-2)
    assert fit.images == 40


def test_all_copies_of_an_image_are_left_out_together() -> None:
    """Noise: a copy in training would give away the class of its image."""
    rng = np.random.default_rng(0)
    values, labels = rng.standard_normal((30, 200)).astype(np.float32), np.arange(30) % 3
    fit = fit_logistic(np.stack([values] * 3)[:, None], labels, 3, strengths=[1.0])
    assert fit.train_top1 == 1
    assert fit.top1 is not None
    assert fit.top1 < 0.6
    views = fit_logistic(np.stack([values] * 4)[None], labels, 3, strengths=[1.0])
    assert views.top1 is not None
    assert views.top1 < 0.6
    alone = fit_logistic(np.stack([values[:3]] * 3)[:, None], labels[:3], 3)
    assert alone.top1 is None  # one image a class: nothing can be left out


@pytest.mark.parametrize(("useful", "views"), [(True, 4), (False, 1)])
def test_views_are_used_where_they_help(useful: bool, views: int) -> None:
    """Views that are other draws of the same class help; views of another class mislead."""
    values, labels = data(30, 40, 3, signal=0.4)
    rng = np.random.default_rng(1)
    scale = values.std(0)
    means = np.stack([values[labels == label].mean(0) for label in range(3)])
    others = [
        means[labels if useful else (labels + 1) % 3] + scale * rng.standard_normal(values.shape) for _ in range(3)
    ]
    fit = fit_logistic(np.stack([values, *others])[None], labels, 3)
    assert fit.views == views
    assert fit.images == 30
    assert fit.mean.shape == (40,)


def test_the_search_ends_after_the_best_strength_and_finds_the_same() -> None:
    values, labels = data(60, 30, 3, signal=0.3)
    fit = fit_logistic(values, labels, 3)
    losses = [fit_logistic(values, labels, 3, strengths=[c]).loss for c in STRENGTHS]
    assert fit.strength == STRENGTHS[int(np.argmin(losses))]  # type: ignore[arg-type]
    assert fit.loss == pytest.approx(min(losses), rel=1e-2)  # type: ignore[type-var]
