"""Fit the head alone on the features of the frozen model: all of `recipe: quick`, and the start of `recipe: best`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch import nn

from clca.data.transforms import IMAGENET_MEAN, IMAGENET_STD, eval_transform
from clca.errors import ClcaError
from clca.models.cross_layer import LinearAggregationHead
from clca.models.token_reduced_vit import TokenReducedViT
from clca.training.elastic import restored_rate
from clca.training.features import View, features_of
from clca.training.loaders import reading_processes
from clca.training.logistic import LogisticFit, fit_logistic
from clca.training.losses import class_weights
from clca.training.preflight import image_size
from clca.training.state import RunState

_VIEWS = tuple(View(flip, transposed) for transposed in (False, True) for flip in ((), (3,), (2,), (2, 3)))
"""The photograph, its mirror image, both upside down, and these four mirrored at the diagonal."""

_ALL_VIEWS, _TWO_VIEWS = 2000, 5000  # photographs up to which so many views pay for their time


def probe(state: RunState, progress: Callable[[int, int], None]) -> LogisticFit:
    """Replace the head of a run's model by the best linear one on the features of the training images.

    A model for several keep rates has one head for all of them, fitted to the features at each. Source of fitting the
    head first: Kumar et al., ICLR 2022.

    Args:
        state: Of the run.
        progress: Called with the number of images that have passed the model, and their total over all views and rates.

    Raises:
        ClcaError: The model's head is not linear.
    """
    model, config, images = state.bare, state.config, state.train_images
    require_linear_head(model)
    rates = model.config.keep_rates or (model.keep_rate,)
    views = _VIEWS[: config.probe_views or _usual_views(len(images), trains=config.probe == "first")]
    passes = [(rate, view) for rate in rates for view in views]
    augmented = images.transform
    images.transform = eval_transform(image_size(model), IMAGENET_MEAN, IMAGENET_STD, normalize=False)
    found = []
    try:
        with restored_rate(model):
            for number, (rate, view) in enumerate(passes):
                model.keep_rate = rate

                def show(done: int, total: int, earlier: int = number) -> None:
                    progress(earlier * total + done, len(passes) * total)

                features = features_of(
                    model, images, state.accelerator, batch_size=config.batch_size, view=view,
                    workers=reading_processes(config.workers), store=config.cache, progress=show,
                )  # fmt: skip
                found.append(_read_by_head(model, features.values))
    finally:
        images.transform = augmented
    stacked = np.stack(found).reshape(len(rates), len(views), *found[0].shape)
    # Without aggregation head there is one standardisation for all rates.
    apart = model.rate_statistics is not None
    # NumPy's threads beside those of other runs on this machine would spend most of their time waiting for a core.
    with threadpool_limits(torch.get_num_threads(), user_api="blas"):
        fit = fit_logistic(
            stacked, features.labels, model.num_classes, groups=_groups(images),
            weights=_weights(features.labels, state), seed=config.seed, apart=apart,
        )  # fmt: skip
    set_head(model, fit)
    if state.ema is not None:
        state.ema.set(model)
    return fit


def _groups(images: Any) -> np.ndarray | None:
    """The number of each image's group, [N], so that cross-validation keeps them together; None without groups."""
    groups = getattr(images, "groups", None)
    return None if groups is None else np.unique(groups, return_inverse=True)[1]


def _weights(labels: np.ndarray, state: RunState) -> np.ndarray | None:
    """How much each training image counts, [N]; None if classes count by their number of images."""
    if state.config.balance == "none":
        return None
    return class_weights(labels.tolist(), state.bare.num_classes)[labels]


def _usual_views(images: int, trains: bool) -> int:
    """As many as pay for their time; more of them before training, which takes far longer."""
    if images > _ALL_VIEWS:
        return 2 if images <= _TWO_VIEWS else 1
    return 8 if trains else 4


def _read_by_head(model: TokenReducedViT, values: np.ndarray) -> np.ndarray:
    """What the linear layer reads before its standardisation, [N, F], of features [N, G, C]."""
    if isinstance(model.cla_head, LinearAggregationHead):
        values = model.cla_head.norm_in(torch.from_numpy(values)).numpy()
    return values.reshape(len(values), -1)


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
