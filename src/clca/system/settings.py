"""Settings as data: models whose docstrings list their fields, and errors of settings as one line."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator
from pydantic.fields import FieldInfo

from clca.errors import ClcaError, brief
from clca.system.numbers import refuse_odd_number

_LONGEST_VALUE = 80
_BRANCHES = ("tuple[", "list[", "function-", "dict[", "constrained-", "literal[", "lax-or-strict[", "nullable[")


class Settings(BaseModel):
    """Settings that are checked when they are made and never change; each field's description is its documentation."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        """Append the fields and their descriptions to the docstring, for `help()`."""
        described = [f"    {name}: {info.description}" for name, info in cls.model_fields.items() if info.description]
        if described:
            cls.__doc__ = "\n".join([inspect.cleandoc(cls.__doc__ or ""), "", "Attributes:", *described])

    @field_validator("*", mode="before")
    @classmethod
    def _plain_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse text that pydantic takes for a number and a reader does not, such as 1_0."""
        name = info.field_name
        return refuse_odd_number(value) if name is not None and _is_number(cls.model_fields[name].annotation) else value


class StrictSettings(Settings):
    """Settings whose constructor raises `ClcaError` with one line, in place of pydantic's report."""

    if not TYPE_CHECKING:

        def __init__(self, **values: Any) -> None:
            try:
                super().__init__(**values)
            except ValidationError as error:
                raise ClcaError(explain(error, type(self))) from None


def explain(
    error: ValidationError, model: type[BaseModel] | None = None, named: Callable[[tuple[str, ...]], str] = ".".join
) -> str:
    """Render pydantic's report as one line: each setting, its value, and what is allowed.

    Args:
        error: What pydantic raised.
        model: The model that was validated: a missing setting is then described, an unknown one compared with its own.
        named: Spells the path of a setting, such as ("model", "keep_rate"), as the user wrote it.

    Returns:
        `setting value: what is allowed`, several joined by semicolons.
    """
    lines: dict[str, tuple[tuple[bool, int], str]] = {}
    for item in error.errors(include_url=False):
        path = tuple(part for part in item["loc"] if isinstance(part, str) and not _is_branch(part))
        reason = item["msg"].removeprefix("Value error, ")
        reason = reason.removeprefix(f"{path[-1]}: ") if path else reason
        if not path and reason.partition(": ")[0].isidentifier():  # a check over several settings names one itself
            name, _, reason = reason.partition(": ")
            setting = brief(named((name,)), 100)
            line = f"{setting}: {brief(reason, 500)}"
        else:
            setting = brief(named(path), 100) or "settings"
            line = f"{setting}{_what_is_wrong(item, path, brief(reason, 500), model)}"
        # Of a union every branch reports; the most telling is a rule of ours, else what lies deepest, else the first.
        rank = (item["type"] == "value_error", len(item["loc"]))
        if setting not in lines or rank > lines[setting][0]:
            lines[setting] = (rank, line)
    return "; ".join(line for _, line in lines.values())


def _what_is_wrong(item: Any, path: tuple[str, ...], reason: str, model: type[BaseModel] | None) -> str:
    """What follows the name of a setting."""
    if item["type"] == "missing":
        description = _description(model, path)
        return f" is missing: {description.removesuffix('.')}" if description else " is missing"
    if item["type"] == "extra_forbidden":
        known = _fields(model, path[:-1])
        near = get_close_matches(path[-1], known, 1)
        hint = f"did you mean {near[0]}?" if near else f"choose from {', '.join(known)}" if known else ""
        return f": no such setting{'; ' if hint else ''}{hint}"
    if item["type"] in ("bool_parsing", "bool_type"):
        reason = "should be true or false"
    reason = reason.replace("Input should be", "should be").partition(", unable to parse")[0]
    value = _shown(item["input"])
    return f" {value}: {reason}" if value else f": {reason}"


def _fields(model: type[BaseModel] | None, path: tuple[str, ...]) -> dict[str, FieldInfo]:
    """Fields of the model that lies at a path inside another; empty where there is none."""
    inner: Any = model
    for part in path:
        inner = inner.model_fields[part].annotation if part in getattr(inner, "model_fields", {}) else None
    return getattr(inner, "model_fields", {})


def _description(model: type[BaseModel] | None, path: tuple[str, ...]) -> str:
    info = _fields(model, path[:-1]).get(path[-1]) if path else None
    return (info.description or "") if info is not None else ""


def _shown(value: Any) -> str:
    """A value as a user would write it, shortened; empty for one with too many parts to show."""
    if isinstance(value, (tuple, list)) and not any(isinstance(part, (tuple, list, dict)) for part in value):
        text = " ".join(str(part) or "''" for part in value[:100])
    else:
        text = str(value) if not isinstance(value, str) or value.strip() else repr(value)
    text = " ".join(text.split()) or repr(value)
    if len(text) <= _LONGEST_VALUE:
        return text
    return "" if isinstance(value, (dict, list, tuple)) else f"{text[:_LONGEST_VALUE]} …"


def _is_number(annotation: Any) -> bool:
    """Whether a field holds numbers, or several of them, and never text but one of given words."""
    kinds = [annotation]
    found = False
    while kinds:
        kind = kinds.pop()
        if kind in (int, float):
            found = True
        elif get_origin(kind) is Literal:
            continue
        elif arguments := get_args(kind):
            kinds.extend(arguments)
        elif kind not in (None, type(None), Ellipsis) and not isinstance(kind, (FieldInfo, AfterValidator)):
            return False
    return found


def _is_branch(part: str) -> bool:
    """Whether a part of an error's path names an alternative of a union, not a field."""
    return part in ("int", "float", "str", "bool", "none", "path") or part.startswith(_BRANCHES)
