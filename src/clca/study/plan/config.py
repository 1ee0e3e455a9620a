"""A study as data: which settings vary, which stay, and which combinations are left out.

A study is a YAML file, or a Python file that defines `study`. Its settings have the names of `clca train`'s flags.
"""

from __future__ import annotations

import re
import runpy
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError, field_validator, model_validator

from clca.errors import ClcaError, reason
from clca.system.settings import Settings, explain
from clca.training.settings import flat_settings

NOT_IN_A_STUDY = frozenset({"out", "seed", "track"})
"""Settings that a study gives each run itself."""

_LONGEST_PRODUCT = 10_000_000


class AxisValue(Settings):
    """One value of an axis."""

    label: str = Field(description="Its name in tables and run names.")
    settings: dict[str, Any] = Field(description="The settings that it stands for, by the names of the flags.")


def _listed(value: Any) -> Any:
    """`[0, 1, 2]` from 3."""
    return list(range(value)) if isinstance(value, int) and not isinstance(value, bool) else value


class StudyConfig(Settings):
    """A grid of runs: every combination of the axes' values but those excluded, once for every seed."""

    name: str = Field(description="Name of the study, and of its folder in runs/ if no other is given.")
    about: str = Field("", description="Purpose of the study; the report begins with it.")
    base: dict[str, Any] = Field(default_factory=dict, description="Settings of every run.")
    axes: dict[str, tuple[AxisValue, ...]] = Field(
        description="What varies. A setting with its values, as in reduction: [evit, tome]; or any name with the "
        "settings of each of its labels, as in arm: {base: {cla: false, clc: false}, clca: {}}."
    )
    exclude: tuple[dict[str, Any], ...] = Field(
        (), description="Combinations left out: {reduction: none, keep_rate: [0.5, 0.1]}; {not: none} is all but none."
    )
    seeds: Annotated[tuple[int, ...], BeforeValidator(_listed)] = Field(
        (0,), description="Every combination is run once per seed; a number n means 0 … n-1."
    )
    split: Literal["test", "val"] = Field("test", description="Split on which every finished run is evaluated.")
    keep: Literal["none", "weights", "all"] = Field(
        "weights",
        description="Kept of a finished run beside its results: none, the weights, or all (the checkpoint too).",
    )
    data_folder: str | None = Field(None, description="Folder that relative data folders start from.")
    pretraining: tuple[dict[str, Any], ...] = Field(
        (),
        description="Settings, on top of base, of a run that comes first and whose weights all others start from; or a "
        "list of such runs, each of which starts from the one before.",
    )

    @field_validator("name")
    @classmethod
    def _is_a_name(cls, name: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9][\w.-]{0,79}", name):
            raise ValueError("should be letters, digits, - and _ only, because it names a folder")
        return name

    @field_validator("base", mode="before")
    @classmethod
    def _base(cls, value: Any) -> Any:
        return _checked_settings(value, "") if isinstance(value, dict) else value

    @field_validator("pretraining", mode="before")
    @classmethod
    def _pretraining(cls, value: Any) -> Any:
        stages = [value] if isinstance(value, dict) else value
        return [_checked_settings(one, "") if isinstance(one, dict) else one for one in stages or ()]

    @field_validator("axes", mode="before")
    @classmethod
    def _axes(cls, axes: Any) -> Any:
        if not isinstance(axes, dict) or not axes:
            raise ValueError("should name at least one setting and its values, such as reduction: [evit, tome]")
        return {str(name): _axis(str(name), values) for name, values in axes.items()}

    @field_validator("seeds")
    @classmethod
    def _seeds(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if not seeds:
            raise ValueError("should be at least one, such as [0]")
        if len(set(seeds)) < len(seeds):
            raise ValueError("a seed occurs twice, which would be the same run twice")
        if min(seeds) < 0:
            raise ValueError("seeds are whole numbers from 0")
        return seeds

    @model_validator(mode="after")
    def _fits_together(self) -> StudyConfig:
        owner: dict[str, str] = {}
        for axis, values in self.axes.items():
            for setting in {name for value in values for name in value.settings}:
                if owner.setdefault(setting, axis) != axis:
                    raise ValueError(f"axes: {setting} is set by {owner[setting]} and by {axis}; one of them must not")
        for condition in self.exclude:
            if not condition:
                raise ValueError("exclude: an entry without a condition would leave out everything")
            for axis, wanted in condition.items():
                self._check_condition(axis, wanted)
        return self

    def _check_condition(self, axis: str, wanted: Any) -> None:
        """Refuse a condition that nothing meets: the study would run what it should not."""
        if axis not in self.axes:
            raise ValueError(f"exclude: there is no axis {axis!r}; there are {', '.join(self.axes)}")
        known = [value.label for value in self.axes[axis]]
        if isinstance(wanted, dict) and set(wanted) != {"not"}:
            raise ValueError(f"exclude: {axis} is {wanted!r}; give a value, several, or {{not: …}}")
        for label in _labels(wanted["not"] if isinstance(wanted, dict) else wanted):
            if label not in known:
                raise ValueError(f"exclude: {axis} has no value {label}; it has {', '.join(known)}")

    def excluded(self, axis: str, condition: Mapping[str, Any]) -> frozenset[str]:
        """The labels of an axis that meet a condition; all of them where it does not name the axis."""
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
        instead = "write seeds: [0, 1, 2]" if name == "seed" else "each run gets its own"
        raise ValueError(f"{name} is not set here: {instead}")
    return flat_settings(settings, where)


def _axis(name: str, values: Any) -> list[AxisValue]:
    """The values of an axis as a file lists them.

    Raises:
        ValueError: There are none, two of the same name, or ones that are no settings.
    """
    if name == "seed":
        raise ValueError("seed is no axis: write seeds: [0, 1, 2]")
    if isinstance(values, (list, tuple)) and values and all(map(_is_made, values)):
        made = [AxisValue.model_validate(value) for value in values]
    elif isinstance(values, (list, tuple)):
        _checked_settings({name: None}, "axes")
        made = [AxisValue(label=label_of(value), settings={name: value}) for value in values]
    elif isinstance(values, dict):
        made = []
        for label, settings in values.items():
            if not isinstance(settings, dict):
                raise ValueError(f"{name}: {label} should stand for settings, such as {{cla: false}}, not {settings!r}")
            made.append(AxisValue(label=label_of(label), settings=_checked_settings(settings, f"axes: {name}")))
    else:
        raise ValueError(f"{name} should have several values, such as [0.5, 0.1], not {values!r}")
    if not made:
        raise ValueError(f"{name} has no values, so there would be no run at all")
    labels = [value.label for value in made]
    for label in labels:
        if labels.count(label) > 1:
            raise ValueError(f"{name} has {label} twice, which would be the same run twice")
    return made


def _is_made(value: Any) -> bool:
    """Whether a value of an axis is written out, as a study is that was saved."""
    return isinstance(value, AxisValue) or (isinstance(value, dict) and set(value) == {"label", "settings"})


def shipped() -> dict[str, Path]:
    """The studies that come with the package, by name."""
    folder = Path(str(files("clca.study") / "shipped"))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def read_study(where: str | Path) -> StudyConfig:
    """A study from a YAML or Python file, or a shipped one by its name.

    Raises:
        ClcaError: In one line: there is no such file, or what is wrong in it.
    """
    path = Path(where)
    if not path.exists() and str(where) in shipped():
        path = shipped()[str(where)]
    if path.suffix == ".py":
        return _from_python(path)
    content = _read_yaml(path)
    if not isinstance(content, dict):
        raise ClcaError(f"{path}: holds no study; it should begin with name: and axes: (see clca study --help)")
    return validated_study({"name": path.stem, **content}, str(path))


def validated_study(content: Mapping[str, Any], where: str) -> StudyConfig:
    """A study from its content; an error is one line that begins with `where`."""
    try:
        return StudyConfig.model_validate(dict(content))
    except ValidationError as error:
        raise ClcaError(f"{where}: {explain(error, StudyConfig)}") from None


def _read_yaml(path: Path) -> Any:
    import yaml

    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader=_unique_keys())
    except FileNotFoundError:
        listed = ", ".join(shipped())
        raise ClcaError(f"{path}: no such study; give a file, or one of those shipped: {listed}") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ClcaError(f"{path}: cannot be read ({reason(error)})") from None


def _unique_keys() -> Any:
    """A safe loader that refuses a key that occurs twice, of which YAML silently keeps the last."""
    import yaml

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            merge = "tag:yaml.org,2002:merge"  # <<: *another, whose keys those written here go before
            keys = [self.construct_object(key, deep=True) for key, _ in node.value if key.tag != merge]
            for key in keys:
                if isinstance(key, (str, int, float)) and keys.count(key) > 1:
                    raise yaml.constructor.ConstructorError(None, None, f"{key} occurs twice", node.start_mark)
            return super().construct_mapping(node, deep)

    return Loader


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
        raise ClcaError(f"{path}: cannot be run ({type(error).__name__}: {error})") from error
    if isinstance(made, dict):
        return validated_study({"name": path.stem, **made}, str(path))
    if not isinstance(made, StudyConfig):
        raise ClcaError(f"{path}: defines no study; it needs study = StudyConfig(…), or a dict of the same")
    return made
