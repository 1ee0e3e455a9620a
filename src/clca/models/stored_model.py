"""The allowed content of a model's `config.json`: model folders may come from untrusted sources.

The same checks apply when a model is saved, so that every saved model can be loaded. `clca.create_model` in Python
accepts all that timm accepts.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from clca.errors import ClcaError, reason
from clca.models.config import ModelConfig
from clca.models.limits import LARGEST_STORED_SIDE, SIZES
from clca.system.files import parse_json, read_bounded
from clca.system.settings import explain

_LARGEST_SCALE = 4  # of the resized image over the model's input; usual values are little more than 1
_MOST_SETTINGS = 2000
_LONGEST_CLASS = 1000


@dataclass(frozen=True)
class _Allowed:
    """The allowed values of a backbone setting in a file, and their description in an error."""

    fits: Callable[[Any], bool]
    words: str


def _whole(least: float, most: float) -> _Allowed:
    return _Allowed(lambda value: type(value) is int and least <= value <= most, f"a whole number {least} to {most}")


def _sides(most: int) -> _Allowed:
    one = _whole(1, most)

    def fits(value: Any) -> bool:
        return one.fits(value) or (isinstance(value, (list, tuple)) and len(value) == 2 and all(map(one.fits, value)))

    return _Allowed(fits, f"one or two whole numbers 1 to {most}")


def _number(least: float, most: float) -> _Allowed:
    def fits(value: Any) -> bool:
        return type(value) in (int, float) and math.isfinite(value) and least <= value <= most

    return _Allowed(fits, f"a number {least:g} to {most:g}")


def _one_of(*names: Any) -> _Allowed:
    def fits(value: Any) -> bool:
        return any(value is name or (isinstance(name, str) and value == name) for name in names)

    return _Allowed(fits, "one of " + ", ".join(repr(name) for name in names))


def _or_none(allowed: _Allowed) -> _Allowed:
    return _Allowed(lambda value: value is None or allowed.fits(value), f"{allowed.words}, or null")


_BOOL = _Allowed(lambda value: isinstance(value, bool), "true or false")
_RATE = _number(0, 1)
# timm's layers that work on tokens [B, N, C]; of the activations only `prelu` has weights.
_NORM = _or_none(
    _one_of("", "layernorm", "layernormfp32", "rmsnorm", "rmsnormfp32", "simplenorm", "simplenormfp32")
)  # fmt: skip
_ACT = _or_none(
    _one_of(
        "", "celu", "elu", "gelu", "gelu_tanh", "hard_mish", "hard_sigmoid", "hard_swish", "hardsigmoid", "hardswish",
        "identity", "leaky_relu", "mish", "prelu", "quick_gelu", "relu", "relu6", "selu", "sigmoid", "silu", "swish",
        "tanh",
    )
)  # fmt: skip

# Keywords of timm's VisionTransformer, without those for files, pretrained weights and how it is created.
BACKBONE_SETTINGS: Mapping[str, _Allowed] = {
    "img_size": _sides(LARGEST_STORED_SIDE),
    "patch_size": _sides(512),
    **{name: _whole(size.least, size.most) for name, size in SIZES.items() if name != "mlp_ratio"},
    "mlp_ratio": _number(*SIZES["mlp_ratio"][:2]),
    "init_values": _or_none(_number(-1000, 1000)),
    "qkv_bias": _BOOL,
    "qk_norm": _BOOL,
    "scale_attn_norm": _BOOL,
    "scale_mlp_norm": _BOOL,
    "proj_bias": _BOOL,
    "class_token": _BOOL,
    "no_embed_class": _BOOL,
    "pre_norm": _BOOL,
    "final_norm": _BOOL,
    "fc_norm": _or_none(_BOOL),
    "pool_include_prefix": _BOOL,
    "dynamic_img_size": _BOOL,
    "dynamic_img_pad": _BOOL,
    "fix_init": _BOOL,
    "global_pool": _one_of("", "avg", "avgmax", "max", "token", "map", "prr"),
    "pos_embed": _one_of("", "none", "learn"),
    "weight_init": _one_of("skip", "reset", "jax", "jax_nlhb", "moco", ""),
    "norm_layer": _NORM,
    "embed_norm_layer": _NORM,
    "act_layer": _ACT,
    "attn_layer": _one_of("", "attn", "diff"),
    **dict.fromkeys(
        ("drop_rate", "pos_drop_rate", "patch_drop_rate", "proj_drop_rate", "attn_drop_rate", "drop_path_rate"), _RATE
    ),
}


def read_config(file: Path) -> dict[str, Any]:
    """The content of a `config.json`.

    Raises:
        ClcaError: It cannot be read, is not a JSON object, or is too large.
    """
    try:
        content = parse_json(read_bounded(file))
    except OSError as error:
        raise ClcaError(f"{file}: cannot be read ({reason(error)})") from None
    except ValueError as error:
        raise ClcaError(f"{file} is not a JSON file: {reason(error)}") from None
    if not isinstance(content, dict):
        raise ClcaError(f"{file} does not hold settings by name")
    return content


def stored_config(settings: Any, where: str) -> ModelConfig:
    """The settings of a model, from a file.

    Args:
        settings: The content of the file, of any type.
        where: Start of an error message.

    Raises:
        ClcaError: They are not the settings of a model, or not allowed in a file.
    """
    if not isinstance(settings, dict):
        raise ClcaError(f"{where} does not describe a clca model: it has no settings under 'model'")
    check_count(settings, where)
    try:
        config = ModelConfig(**settings)
    except (ValidationError, TypeError) as error:
        problem = (
            explain(error, ModelConfig)
            if isinstance(error, ValidationError)
            else "the names of its settings are no text"
        )
        raise ClcaError(f"{where}: {problem}") from None
    check_storable(config, where)
    return config


def check_count(settings: Any, where: str) -> None:
    """Refuse settings with too many values: a validation error that lists all of them would exhaust the memory.

    Raises:
        ClcaError: There are too many.
    """
    level, count = [settings], 0
    while level:
        count += len(level)
        if count > _MOST_SETTINGS:
            raise ClcaError(f"{where} has more than {_MOST_SETTINGS} values in the settings of a model")
        level = [
            value
            for each in level
            if isinstance(each, (dict, list, tuple))
            for value in (each.values() if isinstance(each, dict) else each)
        ]


def check_storable(config: ModelConfig, where: str) -> None:
    """Refuse settings that are not allowed in a model folder; applied when one is read and when one is written.

    Args:
        config: The settings.
        where: Start of an error message.

    Raises:
        ClcaError: A value is not allowed; the message has the setting, its value and the allowed values.
    """
    check_backbone_settings(config.backbone_kwargs, where)
    size = config.img_size
    if size is not None and not BACKBONE_SETTINGS["img_size"].fits(size):
        raise ClcaError(f"{where}: img_size = {size}: a stored model takes at most {LARGEST_STORED_SIDE} pixels a side")


def check_backbone_settings(settings: Mapping[str, Any], where: str) -> None:
    """Refuse keywords of timm that refer to other files, or make a model of impractical size.

    Args:
        settings: `backbone_kwargs`.
        where: Start of an error message.

    Raises:
        ClcaError: A value is not allowed; the message has the setting, its value and the allowed values.
    """
    for name, value in settings.items():
        allowed = BACKBONE_SETTINGS.get(name)
        if allowed is None:
            close = get_close_matches(str(name)[:60], BACKBONE_SETTINGS, n=1)
            hint = f"did you mean {close[0]}?" if close else "remove it"
            raise ClcaError(
                f"{where}: backbone_kwargs has {str(name)[:60]!r}, which is not a setting of a stored model: {hint}"
            )
        if not allowed.fits(value):
            given = repr(value)[:60] if not callable(value) else type(value).__name__
            raise ClcaError(f"{where}: backbone_kwargs: {name} = {given}: a stored model takes {allowed.words}")


def check_classes(classes: Any, outputs: int, where: str) -> None:
    """Refuse class names that do not match the model's outputs; None, for a model without names, is allowed.

    Raises:
        ClcaError: There is not one for each output, or a name has control characters, which a terminal would interpret.
    """
    if classes is None:
        return
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise ClcaError(f"{where}: classes must be a list of names, not {str(classes)[:60]!r}")
    if len(classes) != outputs:
        raise ClcaError(
            f"{where}: classes has {len(classes)} names and the model {outputs} outputs; give one name per output"
        )
    check_class_names(classes, where)


def check_class_names(classes: Iterable[str], where: str) -> None:
    """Refuse class names that are not allowed in a model folder.

    Args:
        classes: The names.
        where: Start of an error message.

    Raises:
        ClcaError: A name is too long, or has control characters, which a terminal would interpret.
    """
    for name in classes:
        if len(name) > _LONGEST_CLASS:
            raise ClcaError(f"{where}: a class has a name of {len(name)} characters: at most {_LONGEST_CLASS}")
        if _CONTROL.search(name):
            raise ClcaError(f"{where}: the name of class {name[:60]!r} has control characters: rename it")


# All but tab and line ends, which lists of class names may have and tables escape.
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def check_preprocess(preprocess: Any, side: int, where: str) -> None:
    """Refuse preprocessing that is not allowed in a stored model; `from_preprocess` checks the rest.

    Args:
        preprocess: The content of the file; None if it has none.
        side: Longer side of the model's images, in pixels.
        where: Start of an error message.

    Raises:
        ClcaError: It is not allowed.
    """
    if preprocess is None:
        return
    if not isinstance(preprocess, dict):
        raise ClcaError(f"{where}: preprocess must be settings by name, not {str(preprocess)[:60]!r}")
    check_count(preprocess, where)
    for name in ("img_size", "resize"):
        allowed = _whole(1, _LARGEST_SCALE * side)
        if name in preprocess and not allowed.fits(preprocess[name]):
            given = repr(preprocess[name])[:60]
            raise ClcaError(f"{where}: preprocess: {name} = {given}: a model for {side} pixels takes {allowed.words}")
    for name in ("mean", "std"):
        values = preprocess.get(name, [0.5])
        allowed = _number(-1e6, 1e6) if name == "mean" else _number(1e-6, 1e6)
        if not isinstance(values, (list, tuple)) or not 1 <= len(values) <= 1024 or not all(map(allowed.fits, values)):
            raise ClcaError(f"{where}: preprocess: {name} must be a list of numbers, each {allowed.words}")
    for name, fits in (("interpolation", _is_word), ("square", lambda value: isinstance(value, bool))):
        if name in preprocess and not fits(preprocess[name]):
            raise ClcaError(f"{where}: preprocess: {name} = {repr(preprocess[name])[:60]} is invalid")


def _is_word(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[a-z_-]{1,40}", value) is not None
