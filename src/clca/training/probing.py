"""Fit the head alone on the features of the frozen model: all of `recipe: quick`, and the start of `recipe: best`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from clca.data.transforms import IMAGENET_MEAN, IMAGENET_STD, eval_transform
from clca.errors import ClcaError
from clca.models.cross_layer import LinearAggregationHead
from clca.models.token_reduced_vit import TokenReducedViT
from clca.training.features import features_of
from clca.training.loaders import reading_processes
from clca.training.logistic import LogisticFit, fit_logistic
from clca.training.preflight import image_size
from clca.training.state import RunState


def probe(state: RunState, progress: Callable[[int, int], None]) -> LogisticFit:
    """Replace the head of a run's model by the best linear one on the features of the training images.

    Source of fitting the head first: Kumar et al., ICLR 2022.

    Args:
        state: Of the run.
        progress: Called with the number of images that have passed the model, and their total.

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
    try:
        features = features_of(
            model, images, state.accelerator, batch_size=config.batch_size, workers=reading_processes(config.workers),
            store=config.cache, progress=progress,
        )  # fmt: skip
    finally:
        images.transform = augmented
    values = features.values
    if isinstance(model.cla_head, LinearAggregationHead):
        values = model.cla_head.norm_in(torch.from_numpy(values)).numpy()
    flat = values.reshape(len(values), -1)
    fit = fit_logistic(flat, features.labels, model.num_classes, seed=config.seed)
    set_head(model, fit)
    if state.ema is not None:
        state.ema.set(model)
    return fit


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
