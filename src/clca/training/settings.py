"""The command line and YAML files as views of `TrainConfig`: its fields, flat, under the names that people type.

Nothing is said twice: defaults, limits and most descriptions come from the config, and values are checked there alone.
"""

from collections.abc import Callable, Mapping
from dataclasses import field, fields, make_dataclass
from difflib import get_close_matches
from functools import cache
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from clca.errors import ClcaError, brief, reason
from clca.models.config import ModelConfig
from clca.system.yaml import read_yaml
from clca.training.config import DataConfig, TrainConfig

T = TypeVar("T")

_NOT_FLAGS = {"model", "data", "num_classes", "backbone_kwargs"}
_RENAMED = {"backbone": "model", "root": "data"}
_FIELD_OF = {flag: name for name, flag in _RENAMED.items()}
_SEVERAL = {"keep_rate", "locations"}
_MODEL_HELP = {
    "model": "Name of a timm ViT, such as deit3_small_patch16_224.fb_in1k or vit_small_patch14_dinov2.",
    "img_size": "Side of the square images in pixels; a multiple of the patch size. If omitted: the model's own.",
    "reduction": "none, topk, evit, dynamicvit, ats, tome, patchmerger, sit or dpcknn.",
    "keep_rate": "Share of tokens kept at each location (0.1: a tenth), or one share a location.",
    "locations": "Blocks that reduce, from 0. If omitted: after a quarter, half and three quarters of the depth.",
    "cla": "Cross-Layer Aggregation head: classify from the CLS tokens of several depths.",
    "clc": "Cross-Layer Cache: carry what earlier layers saw past every reduction.",
    "num_clr": "Learned carrier tokens of the cache.",
    "clc_gap": "Whether the cache keeps the average of the tokens too.",
    "clc_recover_at_last": "Whether the cache is recovered once more before the last block.",
    "cla_width": "Features that the aggregation head makes of each channel.",
}
_GROUPS = ("model", "images", "recipe", "run")
_GROUP_HELP = {
    "model": "What is trained.",
    "images": "What it sees.",
    "recipe": "How it learns; the published recipe if omitted.",
    "run": "Where and on what it runs; nothing here changes the result but --precision and, by rounding, --compile.",
}
_RUN = ("out", "workers", "cache", "cache_gb", "precision", "device", "channels_last", "grad_checkpointing", "compile",
        "log_every", "checkpoint_minutes", "checkpoint_steps", "track")  # fmt: skip
_GROUP_OF = {"pretrained": "model", "weights": "model", **dict.fromkeys(_RUN, "run")}
_GROUP_OF |= dict.fromkeys(("augmentation", "mixup", "cutmix", "batch_size"), "images")


def _groups() -> dict[str, dict[str, FieldInfo]]:
    """Flag name → field of the config, by group of the help text."""
    groups: dict[str, dict[str, FieldInfo]] = {title: {} for title in _GROUPS}
    own = {name: (_GROUP_OF.get(name, "recipe"), info) for name, info in TrainConfig.model_fields.items()}
    model = {name: ("model", info) for name, info in ModelConfig.model_fields.items()}
    images = {name: ("images", info) for name, info in DataConfig.model_fields.items()}
    for fields_of in (model, images, own):
        for name, (title, info) in fields_of.items():
            if name not in _NOT_FLAGS:
                groups[title][_RENAMED.get(name, name)] = info
    return groups


def arguments(given: Mapping[str, Any]) -> type:
    """A dataclass for tyro with a nested group for every part of the config.

    Args:
        given: Values from a file, by flag name, which take the place of the defaults of on/off flags.
    """
    import tyro

    groups = []
    for title, members in _groups().items():
        members = {name: info for name, info in members.items() if name != "data"}
        made = make_dataclass(title.capitalize(), [_argument(name, info, given) for name, info in members.items()])
        groups.append((title, Annotated[made, tyro.conf.arg(help=_GROUP_HELP[title])], field(default_factory=made)))
    data = Annotated[
        str | None, tyro.conf.Positional, tyro.conf.arg(metavar="DATA", help=_help("data"), help_behavior_hint="")
    ]
    config = Annotated[
        str | None,
        tyro.conf.arg(
            metavar="FILE",
            help="YAML file with any of these settings; flags given here go first.",
            help_behavior_hint="",
        ),
    ]
    going_on = Annotated[
        str | None,
        tyro.conf.arg(
            metavar="RUN", help="Go on with an interrupted run; nothing else is needed.", help_behavior_hint=""
        ),
    ]
    own = [("data", data, None), ("config", config, None), ("resume", going_on, None)]
    return tyro.conf.configure(tyro.conf.OmitArgPrefixes)(make_dataclass("Train", [*own, *groups]))


def _help(name: str) -> str:
    info = next(members[name] for members in _groups().values() if name in members)
    return info.description or _MODEL_HELP[name]


def _argument(name: str, info: FieldInfo, given: Mapping[str, Any]) -> tuple[str, Any, Any]:
    import tyro

    if info.annotation is bool:
        told = given.get(name)
        default = info.default if told is None else _as_switch(name, told)
        return name, Annotated[bool, tyro.conf.arg(help=_help(name))], default
    hint = "" if info.default is None or info.is_required() else f"(default: {_plain(info.default)})"
    metavar = _metavar(name, info)
    if name in _SEVERAL:
        kind: Any = tuple[str, ...]
        metavar = f"{metavar} [{metavar} …]"
        return name, Annotated[kind, tyro.conf.arg(help=_help(name), metavar=metavar, help_behavior_hint=hint)], ()
    return name, Annotated[str | None, tyro.conf.arg(help=_help(name), metavar=metavar, help_behavior_hint=hint)], None


def _as_switch(name: str, told: Any) -> bool:
    """On or off as a file says it: true, "false", 0, off … as everywhere in the settings.

    Raises:
        ClcaError: It says neither.
    """
    try:
        return TypeAdapter(bool).validate_python(told)
    except ValidationError:
        raise ClcaError(f"{_flag(name)} {_shown(told)}: should be true or false") from None


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _metavar(name: str, info: FieldInfo) -> str:
    from typing import Literal, get_args, get_origin

    named = {"model": "NAME", "img_size": "PIXELS", "keep_rate": "RATE", "locations": "BLOCK", "out": "FOLDER"}
    named |= {"weights": "FILE", "reduction": "NAME", "source": "NAME", "epochs": "N", "cache_gb": "GB"}
    if name in named:
        return named[name]
    if get_origin(info.annotation) is Literal:
        return "|".join(get_args(info.annotation))
    return "N" if "int" in str(info.annotation) else "NUMBER"


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
        raise ClcaError(f"--config {path}: holds no settings; write one a line, such as lr: 0.0001")
    if isinstance(content.get("train"), dict):  # a run's config.json
        content = content["train"]
    return flat_settings(content, f"--config {path}")


def flat_settings(content: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Settings by flag name, from ones that are flat or nested under model: and data:.

    Args:
        content: The settings.
        where: What a message about them begins with.

    Raises:
        ClcaError: One of them does not exist.
    """
    flat: dict[str, Any] = {}
    for name, value in content.items():
        nested = value if name in ("model", "data") and isinstance(value, dict) else {name: value}
        flat.update({_RENAMED.get(str(key), str(key)).replace("-", "_"): inner for key, inner in nested.items()})
    known = setting_names()
    _refuse_spelled_switches(flat.get("backbone_kwargs"), where)
    for name in flat:
        if name not in known:
            near = get_close_matches(name, known, 1) if len(name) < 100 else []
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ClcaError(f"{where}: no setting is called {brief(name, 100)}{hint}")
    return flat


def _refuse_spelled_switches(backbone_kwargs: Any, where: str) -> None:
    """Refuse `qkv_bias: no` among arguments of timm, which no field checks: as text it would count as true."""
    for name, value in backbone_kwargs.items() if isinstance(backbone_kwargs, dict) else ():
        if isinstance(value, str) and value.lower() in ("yes", "no", "on", "off", "y", "n"):
            raise ClcaError(f"{where}: backbone_kwargs: {brief(str(name), 100)} is {value}; write true or false")


@cache
def setting_names() -> frozenset[str]:
    """What a file may set: every flag, and the two that only files have."""
    flags = {name for members in _groups().values() for name in members}
    return frozenset(flags | {"num_classes", "backbone_kwargs"})


def to_config(parsed: Any, given: Mapping[str, Any]) -> TrainConfig:
    """A `TrainConfig` from what tyro parsed and what a file gave.

    Raises:
        ClcaError: One line that names each wrong flag, its value and what is allowed.
    """
    flat = {name: value for name, value in given.items() if value is not None}
    if parsed.data is not None:
        flat["data"] = parsed.data
    for title in _GROUPS:
        group = getattr(parsed, title)
        for member in fields(group):
            value = getattr(group, member.name)
            if value is not None and value != ():
                flat[member.name] = value[0] if isinstance(value, tuple) and _is_single(member.name, value) else value
    missing = [name for name in ("data", "model") if name not in flat]
    if missing:
        told = "; ".join(f"{_flag(name)} is missing: {_help(name).removesuffix('.')}" for name in missing)
        raise ClcaError(f"{told}; clca train --help says more")
    model, data, own = by_part(flat)
    return checked(lambda: TrainConfig.model_validate({**own, "model": model, "data": data}))


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


def _is_single(name: str, value: tuple[str, ...]) -> bool:
    return name == "keep_rate" and len(value) == 1


def checked(make: Callable[[], T]) -> T:
    """What `make` makes; pydantic's report of what is wrong becomes one line."""
    try:
        return make()
    except ValidationError as error:
        raise ClcaError(explain(error)) from None


def explain(error: ValidationError) -> str:
    """Pydantic's report in one line: each flag, its value, and what is allowed."""
    told: dict[str, str] = {}
    for item in error.errors():
        path = [part for part in item["loc"] if isinstance(part, str)]
        name = brief(path[0], 100) if path else ""
        if name in ("model", "data") and len(path) > 1:
            name = path[1]
        message = brief(item["msg"].removeprefix("Value error, "))
        if not path and ": " in message:  # a check over several fields says itself which
            name, message = message.split(": ", 1)
            told[name] = f"{_flag(name)}: {message}"
        elif item["type"] == "missing":
            told[name] = f"{_flag(name)} is missing: {_help(_RENAMED.get(name, name))}"
        elif name not in told or item["type"] == "value_error":
            # Where several types are allowed each says why it is not that one; a rule of ours says it best.
            message = message.replace("Input should be", "should be").replace(
                ", unable to parse string as a number", ""
            )
            told[name] = f"{_flag(name)} {_shown(item['input'])}: {message}"
    return "; ".join(told.values())


def _flag(name: str) -> str:
    name = _RENAMED.get(name, name)
    return "DATA" if name == "data" else f"--{name.replace('_', '-')}"


def _shown(value: Any) -> str:
    if isinstance(value, (tuple, list)):
        return brief(" ".join(str(part) or "''" for part in value[:100]), 200)
    return brief(str(value), 200) if not isinstance(value, BaseModel) else ""
