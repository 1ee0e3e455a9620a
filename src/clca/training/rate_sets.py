"""Which keep rates a step of training uses, where one model is trained for several; without torch, for plans too."""

from __future__ import annotations

from collections.abc import Mapping

RateSet = tuple[float, ...]


def rate_sets(costs: Mapping[float, float]) -> tuple[RateSet, ...]:
    """The sets of keep rates among which a step of training draws.

    Each holds the largest rate, whose predictions teach the others, and costs at most twice what it does. After it
    comes the smallest, and one in between: the sandwich rule of Yu & Huang (ICCV 2019) with one random rate. Where
    these three are too expensive, as with DynamicViT, which masks tokens in training and drops none, the one in between
    takes the place of the smallest. Every rate is in at least one set.

    Args:
        costs: Cost of a forward pass in training by keep rate, of at least two rates.

    Returns:
        Sets of two or three rates, the largest first and the others ascending.
    """
    smallest, *between, largest = sorted(costs)
    fits = {rate: costs[smallest] + costs[rate] <= costs[largest] for rate in between}
    sets = [(largest, smallest, rate) if fits[rate] else (largest, rate) for rate in between]
    if not any(fits.values()):
        sets.append((largest, smallest))
    return tuple(sets)


def mean_cost(costs: Mapping[float, float]) -> float:
    """Mean cost of the forward passes of a step, in the unit of `costs`: at most twice that of the largest rate."""
    sets = rate_sets(costs)
    return sum(costs[rate] for rates in sets for rate in rates) / len(sets)
