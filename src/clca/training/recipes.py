"""Recipes: named defaults of the settings of a training run, from `recipes.yaml` beside this file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from clca.system.yaml import read_yaml

FILE = Path(__file__).with_name("recipes.yaml")


@dataclass(frozen=True)
class Recipe:
    """Defaults of a training run.

    Attributes:
        name: As `--recipe` takes it.
        summary: What it does, in a sentence.
        settings: Field of `TrainConfig` → default; under "model" those of `ModelConfig`.
    """

    name: str
    summary: str
    settings: Mapping[str, Any]


@cache
def recipes() -> dict[str, Recipe]:
    """All recipes by their names."""
    return {name: Recipe(name, each["summary"], each["settings"]) for name, each in read_yaml(FILE).items()}


def with_recipe(given: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a `TrainConfig`, with the defaults of its recipe for those that are not given."""
    recipe = recipes().get(str(given.get("recipe")))
    if recipe is None:
        return dict(given)
    settings, model = {**recipe.settings}, given.get("model")
    of_model = settings.pop("model", {})
    if isinstance(model, BaseModel):
        model = {name: getattr(model, name) for name in model.model_fields_set}
    if isinstance(model, Mapping):
        settings["model"] = {**of_model, **model}
        given = {name: value for name, value in given.items() if name != "model"}
    return {**settings, **given}
