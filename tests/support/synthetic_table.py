"""Results tables with a known gain, for tests of what is computed from them."""

import itertools
from collections.abc import Sequence

import numpy as np
import pandas as pd

SHARE = {"base": 0.0, "cla": 0.7, "clc": 0.3, "clca": 1.0}


def results(
    *,
    data: Sequence[str] = ("leaves",),
    backbones: Sequence[str] = ("vit_tiny",),
    reductions: Sequence[str] = ("none", "evit", "tome"),
    rates: Sequence[float] = (0.5, 0.1),
    sizes: Sequence[int] = (64, 96),
    arms: Sequence[str] = ("base", "clca"),
    seeds: Sequence[int] = (0, 1, 2),
    gain: float = 0.05,
    noise: float = 0.01,
    between: float = 0.0,
    rng: int = 0,
) -> pd.DataFrame:
    """A finished study: top-1 falls with the rate; CLCA adds `gain`, which varies by `between` over settings."""
    dice, rows = np.random.default_rng(rng), []
    for name, backbone, reduction, rate, size in itertools.product(data, backbones, reductions, rates, sizes):
        if reduction == "none" and rate != rates[0]:
            continue
        rate = 1.0 if reduction == "none" else rate
        own = gain + dice.normal(0, between) if between else gain
        for arm, seed in itertools.product(arms, seeds):
            clc = arm in ("clc", "clca")
            label = f"{name}-{backbone}-{reduction}-{rate:g}-{arm}-{size}px-s{seed}"
            rows.append(
                {
                    "run": f"{len(rows):016x}", "name": label, "state": "finished", "error": None, "data": name,
                    "split": "test", "backbone": backbone, "reduction": reduction, "keep_rate": rate,
                    "img_size": size, "arm": arm, "num_clr": 1 if clc else 0, "clc_gap": clc,
                    "clc_recover_at_last": clc, "cla_width": 2, "seed": seed,
                    "top1": 0.4 + 0.2 * rate + SHARE[arm] * own + dice.normal(0, noise), "macro": 0.5,
                    "gmacs": rate * size / 10 + 0.01 * clc, "images_per_second": 100 / rate,
                    "grad_max": 8.0 if arm == "base" else 2.0, "grad_median": 2.0 if arm == "base" else 1.0,
                    "device": "cpu", "precision": "no", "clca": "0.1", "torch": "2.9", "timm": "1.0",
                    "finished_at": "2025-01-01T00:00:00", "axis.reduction": reduction, "axis.keep_rate": f"{rate:g}",
                    "axis.img_size": str(size), "axis.arm": arm,
                }
            )  # fmt: skip
    return pd.DataFrame(rows)
