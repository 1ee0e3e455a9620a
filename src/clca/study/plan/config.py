"""A study as data: which settings vary, which are fixed, and which combinations are excluded.

A study is a YAML file, or a Python file that defines `study`. Its settings have the names of `clca train`'s flags.
"""

from __future__ import annotations

import re
import runpy
from collections import Counter
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError, field_validator, model_validator

from clca.errors import ClcaError, brief
from clca.models.config import Name
from clca.system.numbers import refuse_odd_number
from clca.system.settings import Settings, explain
from clca.system.yaml import read_yaml
from clca.training.settings import flat_settings

NOT_IN_A_STUDY = frozenset({"out", "seed", "track"})
"""Settings that a study chooses for each run."""

# Beyond all use; such a file is refused before it is expanded. The limit on the number of runs is in expand.py.
MOST_SEEDS = 100_000
MOST_AXES = 64
MOST_VALUES = 10_000
"""Of one axis."""
MOST_EXCLUSIONS = 1_000
MOST_STAGES = 100
"""Runs of a pretraining."""
_LONGEST_LABEL = 500
_LARGEST_SEED = 2**31 - 1


class AxisValue(Settings):
    """One value of an axis."""

    label: Name = Field(description="Its name in tables and run names.")
    settings: dict[str, Any] = Field(description="The settings that it stands for, by the names of the flags.")


def _listed(value: Any) -> Any:
    """`[0, 1, 2]` from 3."""
    if not isinstance(value, int) or isinstance(value, bool):
        return refuse_odd_number(value)
    if value > MOST_SEEDS:
        raise ValueError(f"{value} are more than the {MOST_SEEDS:,} seeds that a study may have")
    return list(range(value))


class StudyConfig(Settings):
    """A grid of runs: every combination of the values of the axes that is not excluded, once per seed."""

    name: Name = Field(description="Name of the study and, below runs/, of its default folder.")
    about: str = Field("", description="Its purpose; the report begins with it.")
    base: dict[str, Any] = Field(default_factory=dict, description="Settings of every run.")
    axes: dict[str, tuple[AxisValue, ...]] = Field(
        description="What varies: a setting with its values, as in reduction: [evit, tome]; or any name with labels "
        "and the settings of each, as in arm: {base: {cla: false, clc: false}, clca: {}}."
    )
    exclude: tuple[dict[str, Any], ...] = Field(
        (),
        max_length=MOST_EXCLUSIONS,
        description="Excluded combinations: {reduction: none, keep_rate: [0.5, 0.1]}; {not: none} is all but none.",
    )
    seeds: Annotated[tuple[int, ...], BeforeValidator(_listed)] = Field(
        (0,), max_length=MOST_SEEDS, description="Every combination runs once per seed; a number n means 0 … n-1."
    )
    split: Literal["test", "val"] = Field("test", description="The split that every finished run is evaluated on.")
    keep: Literal["none", "weights", "all"] = Field(
        "weights",
        description="What is kept of a finished run beside its numbers: nothing, the weights, or all.",
    )
    data_folder: Name | None = Field(None, description="Folder that relative paths of data are relative to.")
    pretraining: tuple[dict[str, Any], ...] = Field(
        (),
        max_length=MOST_STAGES,
        description="Settings, on top of base, of a run that is made first and whose weights all others start from; or "
        "a list of such runs, each of which starts from the previous one.",
    )

    @field_validator("name")
    @classmethod
    def _is_a_name(cls, name: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9][\w.-]{0,79}", name):
            raise ValueError("should contain letters, digits, . - and _ only, because it names a folder")
        return name

    @field_validator("base", mode="before")
    @classmethod
    def _base(cls, value: Any) -> Any:
        return _checked_settings(value, "") if isinstance(value, dict) else value

    @field_validator("pretraining", mode="before")
    @classmethod
    def _pretraining(cls, value: Any) -> Any:
        stages = [value] if isinstance(value, dict) else value
        if not isinstance(stages, (list, tuple)) or len(stages) > MOST_STAGES:
            return stages or ()
        return [_checked_settings(one, "") if isinstance(one, dict) else one for one in stages]

    @field_validator("axes", mode="before")
    @classmethod
    def _axes(cls, axes: Any) -> Any:
        if not isinstance(axes, dict) or not axes:
            raise ValueError("should name at least one setting and its values, such as reduction: [evit, tome]")
        if len(axes) > MOST_AXES:
            raise ValueError(f"{len(axes)} axes are more than the {MOST_AXES} that a study may have")
        return {str(name): _axis(str(name), values) for name, values in axes.items()}

    @field_validator("seeds")
    @classmethod
    def _seeds(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if not seeds:
            raise ValueError("should have at least one seed, such as [0]")
        if len(set(seeds)) < len(seeds):
            raise ValueError("a seed occurs twice, which would give the same run twice")
        if min(seeds) < 0:
            raise ValueError("seeds are whole numbers of at least 0")
        if max(seeds) > _LARGEST_SEED:
            raise ValueError(f"seeds are at most {_LARGEST_SEED}")
        return seeds

    @model_validator(mode="after")
    def _fits_together(self) -> StudyConfig:
        owner: dict[str, str] = {}
        for axis, values in self.axes.items():
            for setting in {name for value in values for name in value.settings}:
                if owner.setdefault(setting, axis) != axis:
                    raise ValueError(f"axes: {setting} is set by both {owner[setting]} and {axis}; remove one")
        for condition in self.exclude:
            if not condition:
                raise ValueError("exclude: an entry without a condition would exclude everything")
            for axis, wanted in condition.items():
                self._check_condition(axis, wanted)
        return self

    def _check_condition(self, axis: str, wanted: Any) -> None:
        """Refuse a condition that nothing meets: it is a typing error, and the study would run what it should not."""
        if axis not in self.axes:
            raise ValueError(f"exclude: there is no axis {axis!r}; there are {brief(', '.join(self.axes))}")
        known = {value.label: None for value in self.axes[axis]}
        if isinstance(wanted, dict) and set(wanted) != {"not"}:
            raise ValueError(
                f"exclude: {axis} is {brief(repr(wanted), 100)}; give a value, a list of values, or {{not: …}}"
            )
        for label in _labels(wanted["not"] if isinstance(wanted, dict) else wanted):
            if label not in known:
                raise ValueError(f"exclude: {axis} has no value {label}; it has {brief(', '.join(known))}")

    def excluded(self, axis: str, condition: Mapping[str, Any]) -> frozenset[str]:
        """The labels of an axis that meet a condition; all of them if it does not name the axis."""
        labels = frozenset(value.label for value in self.axes[axis])
        if axis not in condition:
            return labels
        wanted = condition[axis]
        if isinstance(wanted, dict):
            return labels - frozenset(_labels(wanted["not"]))
        return frozenset(_labels(wanted))


def label_of(value: Any) -> str:
    """The label of a value: 0.25, evit, 0.7-0.5-0.3."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, float):
        short = f"{value:g}"
        return short if float(short) == value or value != value else repr(value)
    if isinstance(value, (list, tuple)):
        return "-".join(label_of(part) for part in value)
    return str(value)


def _labels(wanted: Any) -> list[str]:
    return [label_of(value) for value in wanted] if isinstance(wanted, (list, tuple)) else [label_of(wanted)]


def _checked_settings(settings: Mapping[str, Any], where: str) -> dict[str, Any]:
    for name in NOT_IN_A_STUDY & settings.keys():
        instead = "write seeds: [0, 1, 2]" if name == "seed" else "the study chooses it for each run"
        raise ValueError(f"{name} cannot be set here: {instead}")
    return flat_settings(settings, where or "settings")


def _axis(name: str, values: Any) -> list[AxisValue]:
    """The values of an axis, from its entry in a study file.

    Raises:
        ValueError: There are none, two have the same label, or one is not a setting.
    """
    if name == "seed":
        raise ValueError("seed cannot be an axis: write seeds: [0, 1, 2]")
    if len(name) > _LONGEST_LABEL:
        raise ValueError(f"the name of an axis has {len(name):,} characters; at most {_LONGEST_LABEL} are read")
    if isinstance(values, (list, tuple, dict)) and len(values) > MOST_VALUES:
        raise ValueError(f"{name} has {len(values):,} values, more than the {MOST_VALUES:,} that an axis may have")
    if isinstance(values, (list, tuple)) and values and all(map(_is_axis_value, values)):
        made = [AxisValue.model_validate(value) for value in values]
    elif isinstance(values, (list, tuple)):
        _checked_settings({name: None}, "axes")
        made = [AxisValue(label=label_of(value), settings={name: value}) for value in values]
    elif isinstance(values, dict):
        made = []
        for label, settings in values.items():
            if not isinstance(settings, dict):
                raise ValueError(f"{name}: {label} should stand for settings, such as {{cla: false}}, not "
                                 f"{brief(repr(settings), 100)}")  # fmt: skip
            made.append(AxisValue(label=label_of(label), settings=_checked_settings(settings, f"axes: {name}")))
    else:
        raise ValueError(f"{name} should have several values, such as [0.5, 0.1], not {brief(repr(values), 100)}")
    if not made:
        raise ValueError(f"{name} has no values, so there would be no runs")
    for label, count in Counter(value.label for value in made).items():
        if count > 1:
            raise ValueError(f"{name} has {label} twice, which would give the same run twice")
    return made


def _is_axis_value(value: Any) -> bool:
    """Whether a value has the form of `AxisValue`, as in a study that was saved."""
    return isinstance(value, AxisValue) or (isinstance(value, dict) and set(value) == {"label", "settings"})


def shipped() -> dict[str, Path]:
    """The studies that ship with the package, by name."""
    folder = Path(str(files("clca.study") / "shipped"))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def read_study(where: str | Path) -> StudyConfig:
    """A study from a YAML or Python file, or a shipped one by its name.

    Raises:
        ClcaError: There is no such file, or something in it is wrong.
    """
    path = Path(where)
    if not path.exists() and str(where) in shipped():
        path = shipped()[str(where)]
    if path.suffix == ".py":
        return _from_python(path)
    content = _read_yaml(path)
    if not isinstance(content, dict):
        raise ClcaError(f"{path}: is not a study; it should begin with name: and axes: (see clca study --help)")
    return validated_study({"name": path.stem, **content}, str(path))


def validated_study(content: Mapping[str, Any], where: str) -> StudyConfig:
    """A study from its content; an error is one line that begins with `where`."""
    try:
        return StudyConfig.model_validate(dict(content))
    except ValidationError as error:
        raise ClcaError(f"{where}: {brief(explain(error, StudyConfig), 1000)}") from None


def _read_yaml(path: Path) -> Any:
    try:
        return read_yaml(path)
    except FileNotFoundError:
        listed = ", ".join(shipped())
        raise ClcaError(f"{path}: no such study; give a file, or the name of a shipped study: {listed}") from None


def _from_python(path: Path) -> StudyConfig:
    if not path.is_file():
        raise ClcaError(f"{path}: no such file")
    try:
        found = runpy.run_path(str(path)).get("study")
        made = found() if callable(found) and not isinstance(found, StudyConfig) else found
    except ValidationError as error:
        raise ClcaError(f"{path}: {explain(error, StudyConfig)}") from None
    except ClcaError as error:
        raise ClcaError(f"{path}: {error}") from None
    except Exception as error:
        raise ClcaError(f"{path}: failed ({type(error).__name__}: {error})") from error
    if isinstance(made, dict):
        return validated_study({"name": path.stem, **made}, str(path))
    if not isinstance(made, StudyConfig):
        raise ClcaError(f"{path}: does not define a study; it should have study = StudyConfig(…), or a dict")
    return made
