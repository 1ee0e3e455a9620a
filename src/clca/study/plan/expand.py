"""Expand a study into its runs without starting any; a hundred thousand take seconds."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from math import prod
from pathlib import Path
from typing import Any

from clca.data import is_leaves
from clca.errors import ClcaError
from clca.models.config import ModelConfig
from clca.study.plan.config import StudyConfig
from clca.study.plan.identity import (
    data_text,
    images_fingerprint,
    model_text,
    recipe_text,
    run_id,
    weights_fingerprint,
)
from clca.study.results.folder import PRETRAINING
from clca.system.paths import expanded
from clca.training.config import DataConfig, TrainConfig
from clca.training.settings import by_part, checked

MOST_RUNS = 1_000_000
"""Of one study, over all seeds; about a kilobyte of memory each."""
MOST_COMBINATIONS = 5_000_000
"""Of the axes' values, with those that exclusions leave out."""
MOST_SETTINGS = 100_000
"""Distinct recipes, and distinct models; about four kilobytes of memory each."""
MOST_COMPARISONS = 20_000_000
"""Of combinations with exclusions."""


@dataclass(frozen=True, slots=True)
class PlannedRun:
    """One run of a plan.

    Attributes:
        id: Its identity.
        name: Name of its folder below runs/.
        choice: Index of its value on each axis; for a pretraining run, its index among them.
        seed: Its seed.
    """

    id: str
    name: str
    choice: tuple[int, ...]
    seed: int


@dataclass
class Plan:
    """The runs of a study, in the order in which they start.

    Attributes:
        study: The study.
        runs: All runs, every combination with the first seed first.
        pretraining: The runs that are made first, each from the weights of the previous one; all others start from the
            last.
        excluded: Number of combinations (of one seed) that each exclusion removes, in order; one that two exclusions
            remove counts for the first.
        absent: Data sets that are missing here; runs on them can be neither made nor recognised as done.
    """

    study: StudyConfig
    runs: list[PlannedRun]
    pretraining: list[PlannedRun]
    excluded: list[int]
    absent: list[str]
    _resolver: _Resolver = field(repr=False)

    def config(self, run: PlannedRun) -> TrainConfig:
        """The settings of a run, without its output folder and the path of pretrained weights."""
        if run.name.startswith(PRETRAINING):
            return self._resolver.stages[run.choice[0]]
        return self._resolver.config(run.choice, run.seed)

    def before(self, run: PlannedRun) -> PlannedRun | None:
        """The run of this study from whose weights a run starts, if there is one."""
        if self.config(run).weights is not None or not self.pretraining:
            return None
        if run.name.startswith(PRETRAINING):
            return self.pretraining[run.choice[0] - 1] if run.choice[0] else None
        return self.pretraining[-1]

    def labels(self, run: PlannedRun) -> dict[str, str]:
        """The label of its value on each axis."""
        if run.name.startswith(PRETRAINING):
            return {}
        return {
            axis: values[number].label
            for (axis, values), number in zip(self.study.axes.items(), run.choice, strict=True)
        }

    def absent_among(self, runs: Sequence[PlannedRun]) -> list[str]:
        """The data sets of these runs and of the pretraining runs that are missing here."""
        roots = {self.config(run).data.root for run in [*self.pretraining, *runs]} if self.absent else set()
        return [root for root in self.absent if root in roots]

    def absent_names(self) -> list[str]:
        """Short names of the missing data sets, as in the names and rows of their runs."""
        return self._resolver.absent_names()

    def by_axis(self) -> dict[str, Counter[str]]:
        """Number of runs for each value of each axis."""
        counts = [Counter(run.choice[number] for run in self.runs) for number in range(len(self.study.axes))]
        return {
            axis: Counter({value.label: counts[number][k] for k, value in enumerate(values)})
            for number, (axis, values) in enumerate(self.study.axes.items())
        }

    def only(self, wanted: Mapping[str, Sequence[str]]) -> list[PlannedRun]:
        """The runs whose values are all selected.

        Args:
            wanted: Selected labels by axis, and seeds under "seed".

        Raises:
            ClcaError: There is no such axis, label or seed.
        """
        runs = self.runs
        for axis, labels in wanted.items():
            if axis == "seed":
                seeds = [str(seed) for seed in self.study.seeds]
                for label in labels:
                    if label not in seeds:
                        raise ClcaError(f"--only seed={label}: there is no such seed; there are {', '.join(seeds)}")
                runs = [run for run in runs if str(run.seed) in labels]
                continue
            if axis not in self.study.axes:
                raise ClcaError(f"--only {axis}: there is no such axis; there are {', '.join(self.study.axes)}, seed")
            known = [value.label for value in self.study.axes[axis]]
            for label in labels:
                if label not in known:
                    raise ClcaError(f"--only {axis}={label}: there is no such value; there are {', '.join(known)}")
            number, kept = list(self.study.axes).index(axis), {known.index(label) for label in labels}
            runs = [run for run in runs if run.choice[number] in kept]
        return runs


def plan(study: StudyConfig, data_folder: str | None = None) -> Plan:
    """Expand a study.

    Args:
        study: The study.
        data_folder: Overrides the data folder of the study.

    Raises:
        ClcaError: A setting is wrong, two combinations give the same run, or no run is left.
    """
    _check_size(study)
    resolver = _Resolver(study, data_folder if data_folder is not None else study.data_folder)
    pretraining = resolver.pretraining()
    excluded = [0] * len(study.exclude)
    combinations = []
    for choice, texts in resolver.combinations(excluded):
        combinations.append((choice, texts, resolver.name(choice)))
        if len(combinations) * len(study.seeds) > MOST_RUNS:
            raise ClcaError(f"{study.name}: more than {MOST_RUNS:,} runs, which one study cannot have; split it")
    runs = []
    for seed in study.seeds:
        for choice, texts, name in combinations:
            identity = run_id(*texts, seed, study.split)
            runs.append(PlannedRun(identity, f"{name}-s{seed}-{identity[:12]}", choice, seed))
    if not runs:
        raise ClcaError(f"{study.name}: the exclusions leave no run")
    _check_distinct(study, runs)
    return Plan(study, runs, pretraining, excluded, resolver.absent, resolver)


def _check_size(study: StudyConfig) -> None:
    """Refuse a study that would take hours or all memory to expand."""
    size = prod(map(len, study.axes.values()))
    runs = size * len(study.seeds)
    if not study.exclude and runs > MOST_RUNS:
        raise ClcaError(f"{study.name}: {runs:,} runs; one study may have {MOST_RUNS:,}: split it")
    if size > MOST_COMBINATIONS:
        raise ClcaError(f"{study.name}: {size:,} combinations; one study may have {MOST_COMBINATIONS:,}: split it")
    if size * len(study.exclude) > MOST_COMPARISONS:
        raise ClcaError(
            f"{study.name}: {size:,} combinations times {len(study.exclude):,} exclusions are more than "
            f"{MOST_COMPARISONS:,}: split the study"
        )


def _check_distinct(study: StudyConfig, runs: list[PlannedRun]) -> None:
    """Refuse two combinations that give the same run: the study would claim more runs than it has."""
    seen: dict[str, PlannedRun] = {}
    for run in runs:
        other = seen.setdefault(run.id, run)
        if other is not run:
            differing = [
                (axis, values[a].label, values[b].label)
                for (axis, values), a, b in zip(study.axes.items(), other.choice, run.choice, strict=True)
                if a != b
            ]
            first = ", ".join(f"{axis} {label}" for axis, label, _ in differing)
            second = ", ".join(f"{axis} {label}" for axis, _, label in differing)
            same = [values[k].label for (_, values), k in zip(study.axes.items(), run.choice, strict=True)]
            raise ClcaError(
                f"{study.name}: the same run twice: {first} and {second} make no difference with {', '.join(same)}; "
                "exclude one of them"
            )


_FOR_THE_MODEL = ("recipe", "probe")
"""Settings of a run on which defaults or limits of its model depend."""


class _Part:
    """One part of the settings (model, data or recipe): the axes that affect it, and its value for each combination."""

    def __init__(self, axes: Sequence[Sequence[dict[str, Any]]], base: dict[str, Any]) -> None:
        self.axes = axes
        self.base = base
        self.numbers = tuple(number for number, values in enumerate(axes) if any(values))
        self.known: dict[Any, Any] = {}

    def key(self, choice: Sequence[int]) -> tuple[int, ...]:
        return tuple([choice[number] for number in self.numbers])

    def settings(self, choice: Sequence[int]) -> dict[str, Any]:
        merged = dict(self.base)
        for number in self.numbers:
            merged.update(self.axes[number][choice[number]])
        return merged


class _Resolver:
    """Resolves a value on each axis to settings and identity; each distinct part is validated once."""

    def __init__(self, study: StudyConfig, data_folder: str | None) -> None:
        self.study, self.data_folder = study, data_folder
        base = by_part(study.base)
        values = [[by_part(value.settings) for value in axis] for axis in study.axes.values()]
        self.model, self.data, self.recipe = (
            _Part([[parts[which] for parts in axis] for axis in values], base[which]) for which in range(3)
        )
        # A recipe has defaults for the model too.
        self._of_recipe = [
            number
            for number, settings in enumerate(self.recipe.axes)
            if any(name in setting for setting in settings for name in _FOR_THE_MODEL)
        ]
        self.absent: list[str] = []
        self._images: dict[tuple[str, str | None], str | None] = {}
        self.stages: list[TrainConfig] = []
        self.started_from = ""

    # -- one run -------------------------------------------------------------------------------------------------

    def config(self, choice: Sequence[int], seed: int) -> TrainConfig:
        _, model = self._model(choice)
        _, data = self._data(choice)
        _, recipe = self._recipe(choice)
        return recipe.model_copy(update={"model": model, "data": data, "seed": seed})

    def name(self, choice: Sequence[int]) -> str:
        _, model = self._model(choice)
        _, data = self._data(choice)
        return _name(model, data)

    # -- all of them ---------------------------------------------------------------------------------------------

    def combinations(self, excluded: list[int]) -> Iterator[tuple[tuple[int, ...], tuple[str, str, str]]]:
        """Every combination that is not excluded, with the texts of its parts; counts the others in `excluded`."""
        conditions = self._conditions()
        for choice in product(*(range(len(values)) for values in self.study.axes.values())):
            met = next((k for k, condition in enumerate(conditions) if _meets(choice, condition)), None)
            if met is not None:
                excluded[met] += 1
                continue
            yield choice, (self._model(choice)[0], self._data(choice)[0], self._recipe(choice)[0])

    def _conditions(self) -> list[list[tuple[int, frozenset[int]]]]:
        """Each exclusion as indices of axes with indices of their values."""
        conditions = []
        for condition in self.study.exclude:
            numbered = []
            for number, (axis, values) in enumerate(self.study.axes.items()):
                if axis in condition:
                    labels = self.study.excluded(axis, condition)
                    numbered.append((number, frozenset(k for k, v in enumerate(values) if v.label in labels)))
            conditions.append(numbered)
        return conditions

    def absent_names(self) -> list[str]:
        return sorted({set_name(data) for _, data in self.data.known.values() if data.root in self.absent})

    # -- the parts -----------------------------------------------------------------------------------------------

    def _model(self, choice: Sequence[int]) -> tuple[str, ModelConfig]:
        key = (self.model.key(choice), tuple([choice[number] for number in self._of_recipe]))
        if key not in self.model.known:
            self._refuse_one_more(self.model)
            settings, recipe = self.model.settings(choice), self.recipe.settings(choice)
            recipe = {name: recipe[name] for name in _FOR_THE_MODEL if name in recipe}
            if "backbone" not in settings:
                raise ClcaError(f"{self.study.name}: the model is missing; write model: NAME under base or axes")
            made = self._checked(choice, settings, {"root": "-"}, recipe).model
            self.model.known[key] = (model_text(made), made)
        return self.model.known[key]

    def _data(self, choice: Sequence[int]) -> tuple[str, DataConfig]:
        key = self.data.key(choice)
        if key not in self.data.known:
            self._refuse_one_more(self.data)
            settings = self.data.settings(choice)
            if "root" not in settings:
                raise ClcaError(f"{self.study.name}: the images are missing; write data: FOLDER under base or axes")
            made = self._checked(choice, {"backbone": "-"}, settings, {}).data
            made = made.model_copy(update={"root": below(self.data_folder, made.root, made.source)})
            try:
                self.data.known[key] = (data_text(made, self._fingerprint(made)), made)
            except ClcaError as error:
                raise ClcaError(f"{self.study.name}: {error}") from None
        return self.data.known[key]

    def _recipe(self, choice: Sequence[int]) -> tuple[str, TrainConfig]:
        key = (self.recipe.key(choice), self.data.key(choice))  # some of the recipe must fit the splits
        if key not in self.recipe.known:
            self._refuse_one_more(self.recipe)
            settings = self.recipe.settings(choice)
            made = self._checked(choice, {"backbone": "-"}, self.data.settings(choice), settings)
            weights = weights_fingerprint(made.weights) if made.weights is not None else None
            weights = weights or self.started_from or None
            self.recipe.known[key] = (recipe_text(made, weights), made)
        return self.recipe.known[key]

    def _refuse_one_more(self, part: _Part) -> None:
        if len(part.known) >= MOST_SETTINGS:
            raise ClcaError(f"{self.study.name}: more than {MOST_SETTINGS:,} distinct settings; split the study")

    def _checked(
        self, choice: Sequence[int], model: dict[str, Any], data: dict[str, Any], own: dict[str, Any]
    ) -> TrainConfig:
        try:
            return checked(lambda: TrainConfig.model_validate({**own, "model": model, "data": data}))
        except ClcaError as error:
            named = ", ".join(
                f"{axis} {values[number].label}"
                for (axis, values), number in zip(self.study.axes.items(), choice, strict=False)
            )
            raise ClcaError(f"{self.study.name}: {error} (in the run with {named})") from None

    def _fingerprint(self, data: DataConfig) -> str:
        where = (data.root, data.source)
        if where not in self._images:
            self._images[where] = images_fingerprint(*where)
            if self._images[where] is None:
                self.absent.append(data.root)
        return self._images[where] or f"absent {data.root}"

    # -- the runs that are made first ------------------------------------------------------------------------------

    def pretraining(self) -> list[PlannedRun]:
        """The runs from whose weights the others start, if the study has any."""
        runs = []
        for number, settings in enumerate(self.study.pretraining):
            model, data, own = by_part({**self.study.base, **settings})
            made = self._checked((), model, data, own)
            where = made.data.model_copy(update={"root": below(self.data_folder, made.data.root, made.data.source)})
            seed = self.study.seeds[0]
            self.stages.append(made.model_copy(update={"data": where, "seed": seed}))
            weights = weights_fingerprint(made.weights) if made.weights is not None else self.started_from or None
            texts = model_text(made.model), data_text(where, self._fingerprint(where)), recipe_text(made, weights)
            identity = run_id(*texts, seed, self.study.split)
            name = f"{PRETRAINING}{_name(made.model, where)}-s{seed}-{identity[:12]}"
            runs.append(PlannedRun(identity, name, (number,), seed))
            self.started_from = f"pretraining {identity}"
        return runs


def _meets(choice: Sequence[int], condition: list[tuple[int, frozenset[int]]]) -> bool:
    return all(choice[axis] in values for axis, values in condition)


def _name(model: ModelConfig, data: DataConfig) -> str:
    """`cotton80-deit3_base_patch16_224-evit-0.1-clca-448px`"""
    rates = model.keep_rates or model.keep_rate
    rates = rates if isinstance(rates, tuple) else (rates,)
    size = model.img_size[0] if isinstance(model.img_size, tuple) else model.img_size
    parts = [set_name(data), model.backbone.partition(".")[0], model.reduction]
    if model.reduction != "none":
        parts.append("_".join(f"{rate:g}" for rate in rates))
    parts += [arm(model), f"{size}px" if size else ""]
    return re.sub(r"[^\w.+-]+", "_", "-".join(filter(None, parts)))[:150]


def set_name(data: DataConfig) -> str:
    """Short name of a data set: its source if that is a published set, else its folder."""
    if data.source not in (None, "folder", "csv", "leaves"):
        return str(data.source)
    return Path(data.root.partition(":")[0]).name or "data"


def arm(model: ModelConfig) -> str:
    """base, cla, clc or clca."""
    return {(False, False): "base", (True, False): "cla", (False, True): "clc", (True, True): "clca"}[
        model.cla, model.clc
    ]


def below(folder: str | None, root: str, source: str | None = None) -> str:
    """The root of a data set; a relative one is taken relative to the data folder."""
    if folder is None or is_leaves(root, source) or expanded(root).is_absolute():
        return root
    return str(expanded(folder) / root)
