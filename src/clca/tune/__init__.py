"""The most accurate run and keep rate within a budget, on this machine: `tune(runs, budget)`."""

from clca.tune.result import Budget, Measure, Point, Tuning, choose, frontier
from clca.tune.running import KEEP_RATES, at_size, tune

__all__ = ["KEEP_RATES", "Budget", "Measure", "Point", "Tuning", "at_size", "choose", "frontier", "tune"]
