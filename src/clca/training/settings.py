"""YAML files and the command line as views of `TrainConfig`: its fields, flat, by the names of the flags.

Defaults, limits and descriptions are defined on the config's fields alone, and values are checked there alone.
"""

from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from clca.errors import ClcaError, brief, reason
from clca.models.config import ModelConfig
from clca.system.settings import explain
from clca.system.yaml import read_yaml
from clca.training.config import DataConfig, TrainConfig
from clca.training.start_from import model_of

T = TypeVar("T")

GROUPS = {
    "model": "The model to train.",
    "images": "The images, and how they are augmented.",
    "recipe": "How the model is trained; the defaults are the published recipe.",
    "run": "Where and how it runs. Only `precision` and, by rounding, `compile` change the result.",
}
"""Title → description of the groups that the settings fall into."""

_FILE_ONLY = {"num_classes", "backbone_kwargs"}
_RENAMED = {"backbone": "model", "root": "data"}
_FLAGS = {"start_from": "--from"}
"""Flags that are not the name of their setting."""
_FIELD_OF = {setting: name for name, setting in _RENAMED.items()}
_RUN = ("out", "workers", "cache", "cache_gb", "precision", "device", "channels_last", "grad_checkpointing", "compile",
        "log_every", "checkpoint_minutes", "checkpoint_steps", "track")  # fmt: skip
_GROUP_OF = {"pretrained": "model", "weights": "model", "start_from": "model", **dict.fromkeys(_RUN, "run")}
_GROUP_OF |= dict.fromkeys(("augmentation", "mixup", "cutmix", "batch_size"), "images")


def setting_fields() -> dict[str, dict[str, FieldInfo]]:
    """Name of a setting, as flags and files spell it → field of the config; by group of the help."""
    groups: dict[str, dict[str, FieldInfo]] = {title: {} for title in GROUPS}
    for config, group in ((ModelConfig, "model"), (DataConfig, "images"), (TrainConfig, "recipe")):
        for name, info in config.model_fields.items():
            if name not in _FILE_ONLY and not (config is TrainConfig and name in ("model", "data")):
                groups[_GROUP_OF.get(name, group)][_RENAMED.get(name, name)] = info
    return groups


def read_file(path: str) -> dict[str, Any]:
    """Settings of a YAML (or JSON) file by flag name; flat, or nested under model: and data: as in a config.json.

    Raises:
        ClcaError: The file cannot be read, or names a setting that does not exist.
    """
    where = f"--config {path}"
    try:
        content = read_yaml(path, where) or {}
    except FileNotFoundError as error:
        raise ClcaError(f"{where}: cannot be read ({reason(error)})") from None
    if not isinstance(content, dict):
        raise ClcaError(f"--config {path}: holds no settings; write one per line, such as lr: 0.0001")
    if isinstance(content.get("train"), dict):  # a run's config.json
        content = content["train"]
    return flat_settings(content, f"--config {path}")


def flat_settings(content: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Settings by flag name, from ones that are flat or nested under model: and data:.

    Args:
        content: The settings.
        where: Prefix of an error line about them.

    Raises:
        ClcaError: One of them does not exist, or is given under two spellings.
    """
    flat: dict[str, Any] = {}
    spelled: dict[str, str] = {}
    prefix = f"{where}: " if where else ""
    for name, value in content.items():
        is_group = name in ("model", "data") and isinstance(value, dict)
        for key, inner in (value if is_group else {name: value}).items():
            setting = _RENAMED.get(str(key), str(key)).replace("-", "_")
            spelling = f"{name}: {key}" if is_group else str(key)
            if setting in flat:
                both = f"{brief(spelled[setting], 100)} and {brief(spelling, 100)}"
                raise ClcaError(f"{prefix}{both} are the same setting; give it once")
            flat[setting], spelled[setting] = inner, spelling
    known = setting_names()
    _refuse_spelled_switches(flat.get("backbone_kwargs"), where)
    for name in flat:
        if name not in known:
            near = get_close_matches(name, known, 1) if len(name) < 100 else []
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ClcaError(f"{prefix}no setting is called {brief(name, 100)}{hint}")
    return flat


def _refuse_spelled_switches(backbone_kwargs: Any, where: str) -> None:
    """Refuse `qkv_bias: no` in arguments of timm, which no field checks: as text it would count as true."""
    for name, value in backbone_kwargs.items() if isinstance(backbone_kwargs, dict) else ():
        if isinstance(value, str) and value.lower() in ("yes", "no", "on", "off", "y", "n"):
            raise ClcaError(f"{where}: backbone_kwargs: {brief(str(name), 100)} is {value}; write true or false")


def setting_names() -> frozenset[str]:
    """The settings of a file: every flag, and the two without a flag."""
    return frozenset(name for members in setting_fields().values() for name in members) | _FILE_ONLY


def to_config(given: Mapping[str, Any], from_file: Mapping[str, Any]) -> TrainConfig:
    """A `TrainConfig` from settings given by flags, which take precedence, and by a file.

    Args:
        given: Setting → value, or its text, of the flags that were given.
        from_file: What `read_file` found; an empty setting counts as omitted.

    Raises:
        ClcaError: One line that names each wrong flag, its value and what is allowed.
    """
    flat = {name: value for name, value in from_file.items() if value is not None} | dict(given)
    if flat.get("start_from") is not None:
        flat = _with_model_of(str(flat["start_from"]), flat)
    fields = {name: info for members in setting_fields().values() for name, info in members.items()}
    missing = [name for name in ("data", "model") if name not in flat]
    if missing:
        lines = [
            f"{flag_of(name)} is missing: {(fields[name].description or '').removesuffix('.')}" for name in missing
        ]
        raise ClcaError(f"{'; '.join(lines)}; see clca train --help")
    model, data, own = by_part(flat)
    return checked(lambda: TrainConfig.model_validate({**own, "model": model, "data": data}))


def _with_model_of(run: str, flat: dict[str, Any]) -> dict[str, Any]:
    """Settings with those of the model of a run to start from; the head is the recipe's where it is fitted anew.

    Raises:
        ClcaError: There is no such run, or a setting of the model differs from it.
    """
    own = model_of(run)
    asked, _, _ = by_part(flat)
    settings = own.model_dump(mode="json")
    fitted = flat.get("recipe") in ("quick", "best") or flat.get("probe", "none") != "none"
    if fitted and own.cla and own.cla_head != "linear":
        for name in ("cla_head", "cla_average"):
            del settings[name]
    merged = checked(lambda: ModelConfig.model_validate(settings | asked)) if asked else own
    for name in asked:
        if name in settings and getattr(merged, name) != getattr(own, name):
            raise ClcaError(
                f"{flag_of(name)}: is {getattr(own, name)} in {run}, whose model settings --from takes: leave it out"
            )
    return flat | {_RENAMED.get(name, name): value for name, value in settings.items()}


def by_part(flat: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Settings by flag name as fields of `ModelConfig`, of `DataConfig`, and of `TrainConfig` itself."""
    model: dict[str, Any] = {}
    data: dict[str, Any] = {}
    own: dict[str, Any] = {}
    for name, value in flat.items():
        field_name = _FIELD_OF.get(name, name)
        if field_name in ModelConfig.model_fields:
            model[field_name] = value
        elif field_name in DataConfig.model_fields:
            data[field_name] = value
        else:
            own[name] = value
    return model, data, own


def checked(make: Callable[[], T]) -> T:
    """The result of `make`; an error of settings becomes one line that spells them as flags.

    Raises:
        ClcaError: A setting is wrong.
    """
    try:
        return make()
    except ValidationError as error:
        raise ClcaError(explain_flags(error)) from None


def explain_flags(error: ValidationError) -> str:
    """One line on an error of a `TrainConfig`, which spells its settings as flags."""
    return explain(error, TrainConfig, lambda path: flag_of(path[-1]) if path else "")


def flag_of(name: str) -> str:
    """How `clca train` spells a field of the config."""
    name = _RENAMED.get(name, name)
    if name in _FLAGS:
        return _FLAGS[name]
    return "DATA" if name == "data" else f"--{name.replace('_', '-')}"
