"""The arguments of a command as data: pydantic fields, and how each is spelled on the command line."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field
from pydantic.fields import FieldInfo

from clca.models.config import Rate


class Arguments(BaseModel):
    """The arguments of a command: its docstring is the summary of the help, its fields are the flags."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


@dataclass(frozen=True)
class Spelling:
    """How a field is written on the command line, where its name and type do not already tell; goes in `Annotated`.

    Args:
        metavar: What stands for a value in the help.
        positional: Given by its place, not by a flag.
        only_on: A switch without its `--no-` form.
        repeated: May be given several times, with one value each.
        flag: The flag, where it is not the name of the field.
    """

    metavar: str | None = None
    positional: bool = False
    only_on: bool = False
    repeated: bool = False
    flag: str | None = None


Switch = Annotated[bool, Spelling(only_on=True)]
"""A flag that only turns something on, such as `--quick`."""

Run = Annotated[str, Spelling("RUN", positional=True), Field(description="Run folder, saved model's folder or hub id.")]
Data = Annotated[str | None, Spelling("DATA", positional=True)]
Device = Annotated[Literal["auto", "cpu"], Field(description="auto: the GPU if there is one. cpu: not even then.")]
Precision = Annotated[
    Literal["auto", "no", "bf16", "fp16"],
    Field(description="Mixed precision. auto: bf16 where the device computes it fast, else none."),
]
KeepRate = Annotated[
    Rate | tuple[Rate, ...] | None,
    Field(description="Share of tokens to keep, or one share per location. If omitted: as the run was trained."),
]
Workers = Annotated[int | None, Field(description="Processes that read images. If omitted: one per core, at most 8.")]
Threads = Annotated[int | None, Field(description="CPU threads. If omitted: PyTorch's choice.")]


@dataclass(frozen=True)
class Argument:
    """One argument of a command.

    Args:
        name: Of the setting, with underscores.
        info: The field that holds its type, default and description.
        group: Title of the group in the help that lists it.
    """

    name: str
    info: FieldInfo
    group: str = "options"

    @property
    def spelling(self) -> Spelling:
        return next((one for one in self.info.metadata if isinstance(one, Spelling)), Spelling())

    @property
    def flag(self) -> str:
        """`--keep-rate`, or the metavar of a positional argument."""
        if self.spelling.positional:
            return self.metavar
        return self.spelling.flag or f"--{self.name.replace('_', '-')}"

    @property
    def kinds(self) -> tuple[Any, ...]:
        """The types that a value may have, None left out."""
        return _alternatives(self.info.annotation)

    @property
    def is_switch(self) -> bool:
        return self.kinds == (bool,)

    @property
    def takes_several(self) -> bool:
        """Whether it takes any number of values, up to the next flag."""
        return not self.spelling.repeated and any(_is_sequence(kind) for kind in self.kinds)

    @property
    def may_be_one(self) -> bool:
        """Whether one value may stand for several, as a keep rate for all locations."""
        return self.takes_several and not all(map(_is_sequence, self.kinds))

    @property
    def metavar(self) -> str:
        """What stands for one value."""
        if self.spelling.metavar is not None:
            return self.spelling.metavar
        kind = next((get_args(one)[0] if _is_sequence(one) else one for one in self.kinds), str)
        (kind, *_) = _alternatives(kind)
        if get_origin(kind) is Literal:
            return _METAVARS.get(self.name, "|".join(get_args(kind)))
        return _METAVARS.get(self.name, {int: "N", float: "NUMBER"}.get(kind, "PATH"))


_METAVARS = {
    "batch_sizes": "N", "cache_gb": "GB", "config": "FILE", "data": "DATA", "data_folder": "FOLDER",
    "examples": "DATA", "explain": "FOLDER", "gpus": "GPU", "host": "ADDRESS", "images": "IMAGES",
    "img_size": "PIXELS", "img_sizes": "PIXELS", "keep_rate": "RATE", "keep_rates": "RATE", "locations": "BLOCK",
    "model": "NAME", "models": "MODEL", "modes": "MODE", "only": "AXIS=VALUES", "out": "FOLDER",
    "precisions": "PRECISION", "ray_address": "ADDRESS", "reduction": "NAME", "reductions": "NAME", "resume": "RUN",
    "shard": "PART/PARTS", "size": "PIXELS", "source": "NAME", "start_from": "RUN",
    "sweep": "RATE", "token_file": "FILE",
    "weights": "FILE", "words": "FOLDER",
}  # fmt: skip
"""What stands for a value of these arguments; for others it follows from the type."""


def _alternatives(annotation: Any) -> tuple[Any, ...]:
    """The types of a union, without None and without what `Annotated` adds."""
    if get_origin(annotation) is Annotated:
        return _alternatives(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return tuple(one for part in get_args(annotation) for one in _alternatives(part) if one is not type(None))
    return (annotation,)


def _is_sequence(kind: Any) -> bool:
    return get_origin(kind) is tuple and get_args(kind)[-1] is ...


def like(model: type[BaseModel], name: str) -> Any:
    """A field with the limits, the default and the description of another model's field."""
    return copy(model.model_fields[name])


def spelled(info: FieldInfo, spelling: Spelling, *, required: bool) -> FieldInfo:
    """A field with another spelling on the command line, and None in place of its value if it is not required."""
    made = copy(info)
    made.metadata = [*info.metadata, spelling]
    made.default = info.default if required else None
    return made


def arguments_of(command: type[BaseModel]) -> list[Argument]:
    """The arguments of a command, in the order of its fields."""
    return [Argument(name, info) for name, info in command.model_fields.items()]
