"""Training one model for several keep rates: every step passes its images at more than one of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader

from clca.models.config import ModelConfig
from clca.models.cost import cost
from clca.models.factory import build
from clca.models.saving import on_meta
from clca.models.token_reduced_vit import TokenReducedViT
from clca.training.loaders import drawn_index
from clca.training.rate_sets import RateSet, rate_sets
from clca.training.state import RunState
from clca.training.validation import run_inference


def training_costs(config: ModelConfig) -> dict[float, float]:
    """GMACs of a forward pass in training at each of a model's `keep_rates`.

    They follow from the settings alone, so that a resumed run draws the same rates. What ATS keeps depends on the image
    and the weights: it counts as Top-K, which keeps about as many tokens as ATS does at most. A reduction of a plug-in
    that cannot run without values counts as if it dropped no tokens.
    """
    rates = config.keep_rates or ()
    described = on_meta(build, config)
    if described.pads:
        described = on_meta(build, config.model_copy(update={"reduction": "topk"}))
    if described.config.reduction == "none":
        return dict.fromkeys(rates, 1.0)
    found = {}
    for rate in rates:
        described.keep_rate = rate
        try:
            found[rate] = cost(described, training=True).gmacs
        except RuntimeError:
            return dict.fromkeys(rates, 1.0)
    return found


class ElasticStep:
    """The forward and backward passes of a step that trains a model for several keep rates.

    The largest rate learns from the labels; every other one half from the labels and half from the predictions of the
    largest. Sources: Yu & Huang, Universally Slimmable Networks, ICCV 2019 (sandwich rule, in-place distillation); Cai
    et al., Once-for-All, ICLR 2020.

    Args:
        state: Of the run, whose model has `keep_rates`.
        loss: Of logits [B, K] and targets, as `losses.make_loss` returns it.
    """

    def __init__(self, state: RunState, loss: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.state, self.loss = state, loss
        self.sets = rate_sets(training_costs(state.bare.config))

    def rates(self, step: int) -> RateSet:
        """The keep rates of an update; they depend on the seed and the number of the update alone."""
        return self.sets[drawn_index(self.state.config.seed, step, len(self.sets))]

    def forward_backward(self, step: int, images: Tensor, labels: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Add the mean gradient over the keep rates of a step.

        Args:
            step: Number of the update.
            images: [B, 3, H, W].
            labels: Classes, [B].
            targets: What the loss compares with.

        Returns:
            Loss and number of correct predictions, means over the rates.
        """
        state, accelerator, rates = self.state, self.state.accelerator, self.rates(step)
        teacher: Tensor | None = None
        losses, correct = [], []
        with restored_rate(state.bare):
            for number, rate in enumerate(rates, start=1):
                state.bare.keep_rate = rate
                # Gradients are summed over the processes once, in the last pass.
                with nullcontext() if number == len(rates) else accelerator.no_sync(state.model):
                    logits = state.model(images).float()
                    loss = self.loss(logits, targets)
                    if teacher is None:
                        teacher = logits.detach().softmax(1)
                    else:
                        loss = (loss + F.cross_entropy(logits, teacher)) / 2
                    loss = (loss + state.bare.auxiliary_loss) / len(rates)
                    accelerator.backward(loss)
                losses.append(loss.detach())
                correct.append((logits.detach().argmax(1) == labels).sum())
        return torch.stack(losses).sum(), torch.stack(correct).float().mean()


@contextmanager
def restored_rate(model: TokenReducedViT) -> Iterator[None]:
    """Set the model's keep rate back at the end of the block."""
    own = model.keep_rate
    try:
        yield
    finally:
        model.keep_rate = own


def evaluate_rates(
    model: TokenReducedViT, loader: DataLoader, accelerator: Any
) -> tuple[dict[str, Any], dict[str, dict[str, Any]] | None]:
    """Scores of a model on a split: at its keep rate, or means over its `keep_rates`.

    Args:
        model, loader, accelerator: As for `run_inference`.

    Returns:
        loss, top1, top5, macro, images; and, of a model with `keep_rates`, the same by rate, else None.
    """
    if model.config.keep_rates is None:
        return run_inference(model, loader, accelerator).summary(), None
    found = {}
    with restored_rate(model):
        for rate in model.config.keep_rates:
            model.keep_rate = rate
            found[f"{rate:g}"] = run_inference(model, loader, accelerator).summary()
    first, *_ = found.values()
    means = {name: sum(each[name] for each in found.values()) / len(found) for name in first if name != "images"}
    return {**means, "images": first["images"]}, found
