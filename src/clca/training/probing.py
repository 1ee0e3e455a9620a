"""Fit the head alone on the features of the frozen model: all of `recipe: quick`, and the start of `recipe: best`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from clca.data.transforms import IMAGENET_MEAN, IMAGENET_STD, eval_transform
from clca.errors import ClcaError
from clca.models.cross_layer import LinearAggregationHead
from clca.models.token_reduced_vit import TokenReducedViT
from clca.training.elastic import restored_rate
from clca.training.features import features_of
from clca.training.loaders import reading_processes
from clca.training.logistic import LogisticFit, fit_logistic
from clca.training.preflight import image_size
from clca.training.state import RunState


def probe(state: RunState, progress: Callable[[int, int], None]) -> LogisticFit:
    """Replace the head of a run's model by the best linear one on the features of the training images.

    A model for several keep rates has one head for all of them, fitted to the features at each.

    Source of fitting the head first: Kumar et al., ICLR 2022.

    Args:
        state: Of the run.
        progress: Called with the number of images that have passed the model, and their total over all keep rates.

    Raises:
        ClcaError: The model's head is not linear.
    """
    model, config = state.bare, state.config
    require_linear_head(model)
    images = state.train_images
    augmented, images.transform = (
        images.transform,
        eval_transform(image_size(model), IMAGENET_MEAN, IMAGENET_STD, normalize=False),
    )
    rates = model.config.keep_rates or (model.keep_rate,)
    found = []
    try:
        with restored_rate(model):
            for number, rate in enumerate(rates):
                model.keep_rate = rate

                def show(done: int, total: int, earlier: int = number) -> None:
                    progress(earlier * total + done, len(rates) * total)

                features = features_of(
                    model, images, state.accelerator, batch_size=config.batch_size,
                    workers=reading_processes(config.workers), store=config.cache, progress=show,
                )  # fmt: skip
                found.append(_read_by_head(model, features.values))
    finally:
        images.transform = augmented
    fit = _fit(found, features.labels, model, config.seed)
    set_head(model, fit)
    if state.ema is not None:
        state.ema.set(model)
    return fit


def _read_by_head(model: TokenReducedViT, values: np.ndarray) -> np.ndarray:
    """What the linear layer reads before its standardisation, [N, F], of features [N, G, C]."""
    if isinstance(model.cla_head, LinearAggregationHead):
        values = model.cla_head.norm_in(torch.from_numpy(values)).numpy()
    return values.reshape(len(values), -1)


def _fit(features: list[np.ndarray], labels: np.ndarray, model: TokenReducedViT, seed: int) -> LogisticFit:
    """One classifier of features [N, F] at each keep rate."""
    rates, classes = len(features), model.num_classes
    if rates == 1:
        return fit_logistic(features[0], labels, classes, seed=seed)
    if model.rate_statistics is not None:
        return fit_logistic(np.stack(features), labels, classes, seed=seed)
    # Without aggregation head there is one standardisation for all rates.
    copies = np.tile(np.arange(len(labels)), rates)
    fit = fit_logistic(np.concatenate(features), np.tile(labels, rates), classes, groups=copies, seed=seed)
    return replace(fit, images=len(labels))


def require_linear_head(model: TokenReducedViT) -> None:
    """Refuse a head that cannot be fitted at once.

    Raises:
        ClcaError: It is the published aggregation head, or there are two.
    """
    if isinstance(model.cla_head, LinearAggregationHead):
        return
    if model.cla_head is not None:
        raise ClcaError("--probe fits a linear head: use it with --cla-head linear, or with --no-cla")
    if not isinstance(model.head, nn.Linear) or hasattr(model, "head_dist"):
        raise ClcaError(f"--probe fits one linear head, and {model.config.backbone} has another: use --cla-head linear")


@torch.no_grad()
def set_head(model: TokenReducedViT, fit: LogisticFit) -> None:
    """Give a model's linear head the fitted weights; without aggregation head the standardisation goes into them."""
    head = model.cla_head
    if isinstance(head, LinearAggregationHead):
        if model.rate_statistics is not None:
            model.rate_statistics.set("norm", torch.from_numpy(fit.mean), torch.from_numpy(fit.variance))
            model.use_rate_statistics()
        else:
            _copy(head.norm.running_mean, fit.mean)
            _copy(head.norm.running_var, fit.variance)
        linear: Any = head.classifier
        _copy(linear.weight, fit.weight)
        _copy(linear.bias, fit.bias)
        return
    weight = fit.weight / fit.deviation
    linear = model.head
    _copy(linear.weight, weight)
    _copy(linear.bias, fit.bias - weight @ fit.mean)


def _copy(target: Any, values: np.ndarray) -> None:
    target.copy_(torch.from_numpy(values))
