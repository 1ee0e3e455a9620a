"""Statistics of the aggregation head's batch norms for several keep rates, interpolated between them."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class RateStatistics(nn.Module):
    """Means and variances of every batch norm of a head, for each keep rate that a model is trained for.

    One set of weights serves all keep rates, but the CLS tokens of different rates differ in mean and variance. Source
    of separate statistics: Yu & Huang, Universally Slimmable Networks, ICCV 2019. The batch norms themselves stay
    ordinary: `apply` gives them the statistics of a rate, `update` takes back what a training step made of them.

    Args:
        keep_rates: The R rates, ascending.
        head: The head, whose batch norms are the children of type BatchNorm.
    """

    def __init__(self, keep_rates: tuple[float, ...], head: nn.Module) -> None:
        super().__init__()
        self.keep_rates = keep_rates
        for name, norm in _norms(head):
            mean, variance = cast(Tensor, norm.running_mean), cast(Tensor, norm.running_var)
            self.register_buffer(f"{name}_mean", mean.repeat(len(keep_rates), 1))  # [R, F]
            self.register_buffer(f"{name}_var", variance.repeat(len(keep_rates), 1))

    @torch.no_grad()
    def apply_to(self, head: nn.Module, keep_rate: float | tuple[float, ...]) -> None:
        """Set the running statistics of a head's batch norms to those of a keep rate.

        Args:
            head: The head.
            keep_rate: Between two of `keep_rates` both are interpolated linearly in its logarithm; beyond them the
                nearest holds. Of one rate per location the geometric mean counts.
        """
        low, share = self._place(keep_rate)
        high = min(low + 1, len(self.keep_rates) - 1)
        for name, norm in _norms(head):
            for part, target in (("mean", norm.running_mean), ("var", norm.running_var)):
                rows = self._rows(name, part)
                value = rows[low] if not share else torch.lerp(rows[low], rows[high], share)
                cast(Tensor, target).copy_(value)

    @torch.no_grad()
    def update(self, head: nn.Module, keep_rate: float | tuple[float, ...]) -> None:
        """Store the running statistics of a head's batch norms for a keep rate, if it is one of `keep_rates`."""
        if keep_rate not in self.keep_rates:
            return
        row = self.keep_rates.index(cast(float, keep_rate))
        for name, norm in _norms(head):
            self._rows(name, "mean")[row].copy_(cast(Tensor, norm.running_mean))
            self._rows(name, "var")[row].copy_(cast(Tensor, norm.running_var))

    @torch.no_grad()
    def set(self, name: str, mean: Tensor, variance: Tensor) -> None:
        """Set the statistics of one batch norm, [R, F] each, by its name in the head."""
        self._rows(name, "mean").copy_(mean)
        self._rows(name, "var").copy_(variance)

    def _rows(self, name: str, part: str) -> Tensor:
        return cast(Tensor, getattr(self, f"{name}_{part}"))

    def _place(self, keep_rate: float | tuple[float, ...]) -> tuple[int, float]:
        """The row at or below a keep rate, and the share of the way to the next, in logarithms."""
        rates = keep_rate if isinstance(keep_rate, tuple) else (keep_rate,)
        if len(set(rates)) == 1 and rates[0] in self.keep_rates:
            return self.keep_rates.index(rates[0]), 0.0
        at = sum(map(math.log, rates)) / len(rates)
        logs = [math.log(rate) for rate in self.keep_rates]
        if at <= logs[0] or at >= logs[-1]:
            return (0 if at <= logs[0] else len(logs) - 1), 0.0
        low = bisect_left(logs, at) - 1
        return low, (at - logs[low]) / (logs[low + 1] - logs[low])


def apply_loaded(model: Any, _: object) -> None:
    """Hook after `load_state_dict`: the head normalises by the loaded statistics of the keep rate in use."""
    model.use_rate_statistics()


def _norms(head: nn.Module) -> Iterator[tuple[str, _BatchNorm]]:
    """The batch norms of a head by name; training over several processes replaces them by another kind."""
    for name, module in head.named_children():
        if isinstance(module, _BatchNorm):
            yield name, module
