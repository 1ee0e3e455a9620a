"""Multiply-accumulates of a study's models, without torch where they are known.

Those of the shipped studies come with the package, others are worked out once and kept in `$CLCA_CACHE`. A model's
price is linear in its number of classes, so two numbers say it for every data set.
"""

from __future__ import annotations

import gzip
import json
from importlib.resources import files
from pathlib import Path
from typing import Any

from clca.data.cache.limits import beside_cache
from clca.errors import WorkError
from clca.models.config import ModelConfig
from clca.study.plan.identity import COMPUTES, model_text
from clca.system.files import part, read_json, write_json

_SHIPPED = "prices.json.gz"
_CLASSES = 1000  # the second number of classes at which a price is taken; the first is 1

Price = list[float]
"""GMACs of one image: in training without classes, more for each class, the same in evaluation."""


class Prices:
    """Prices of models by their settings; losing what was kept costs time only."""

    def __init__(self) -> None:
        self.path = beside_cache("prices.json")
        kept: dict[str, Any] = (read_json(self.path) if self.path is not None else None) or {}
        self.kept: dict[str, Price] = part(kept, str(COMPUTES))
        self.shipped = shipped_prices()
        self._new = False

    def of(self, config: ModelConfig, classes: int, text: str | None = None) -> tuple[float, float]:
        """GMACs of one image in training and in evaluation.

        Args:
            config: The model.
            classes: K.
            text: `model_text(config)`, if it is known.

        Raises:
            ClcaError: There is no such model.
        """
        key = text if text is not None else model_text(config)
        price = self.shipped.get(key) or self.kept.get(key)
        if price is None:
            price = self.kept[key] = worked_out(config)
            self._new = True
        return price[0] + classes * price[1], price[2] + classes * price[3]

    def save(self) -> None:
        """Keep what was worked out; that it cannot be kept is no reason to stop."""
        if not self._new or self.path is None:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_json(self.path, {str(COMPUTES): self.kept})
        except (OSError, WorkError):
            pass
        self._new = False


def worked_out(config: ModelConfig) -> Price:
    """The price of a model by `clca.study.plan.cost_model`, for which torch and timm are loaded."""
    from clca.study.plan.cost_model import price, training_gmacs

    found: Price = []
    for gmacs in (training_gmacs, price):
        one, many = gmacs(config, 1), gmacs(config, _CLASSES)
        each = (many - one) / (_CLASSES - 1)
        found += [one - each, each]
    return found


def shipped_prices() -> dict[str, Price]:
    """The prices that come with the package; none where they are of another version of what is computed."""
    content = json.loads(gzip.decompress((files("clca.study") / "shipped" / _SHIPPED).read_bytes()))
    return content["prices"] if content["computes"] == COMPUTES else {}


def write_shipped_prices(folder: Path) -> Path:
    """Work out the prices of every model of the shipped studies, and write them; for who changes either.

    Args:
        folder: Of the shipped studies.
    """
    from clca.study.plan.config import read_study, shipped
    from clca.study.plan.expand import plan

    prices: dict[str, Price] = {}
    for name in shipped():
        planned = plan(read_study(name), "data")
        for run in [*planned.pretraining, *planned.runs]:
            model = planned.config(run).model
            text = model_text(model)
            if text not in prices:
                prices[text] = worked_out(model)
    content = json.dumps({"computes": COMPUTES, "prices": prices}, separators=(",", ":"), sort_keys=True)
    path = folder / _SHIPPED
    path.write_bytes(gzip.compress(content.encode(), mtime=0))
    return path
