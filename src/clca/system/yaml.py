"""The reader of all YAML files (settings and studies), safe for files from untrusted sources.

A file is checked event by event before any object is built, so memory stays within fixed limits. Unquoted scalars
follow YAML 1.2: `no` is text, `1e-4` a number. Numbers that YAML versions read differently (`010`, `1_000`, `1:30`,
`0x1F`) are refused.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clca.errors import ClcaError, brief, reason
from clca.system.numbers import DECIMAL, WHOLE

MOST_BYTES = 1 << 20
MOST_NODES = 100_000
"""Keys and values of a file, counted again wherever an alias (`*name`) repeats them."""
MOST_CHARACTERS = 4 << 20
"""Characters of all keys and values, counted the same way."""
MOST_DEPTH = 32
LONGEST_TEXT = 1 << 16
LARGEST_INTEGER = 2**63 - 1

_TAG = "tag:yaml.org,2002:"
_NOT_OCTAL = r"(?![-+]?0[0-9])"  # 010 is 8 in YAML 1.1
_INTEGER = re.compile(_NOT_OCTAL + WHOLE.pattern)
_NUMBER = re.compile(_NOT_OCTAL + DECIMAL.pattern)
# What YAML 1.1 or Python reads as a number, but this reader does not.
_AMBIGUOUS = re.compile(
    r"[-+]?(?:0[xX][0-9a-fA-F_]+|0[oO][0-7_]+|0[bB][01_]+"
    r"|[0-9][0-9_]*(?::[0-5]?[0-9])+(?:\.[0-9_]*)?"
    r"|(?:[0-9][0-9_]*(?:\.[0-9_]*)?|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9_]+)?"
    r"|\.(?:inf|Inf|INF|nan|NaN|NAN))"
)
_PLAIN_SCALARS = {
    "null": re.compile(r"(?:~|null|Null|NULL|)\Z"),
    "bool": re.compile(r"(?:true|True|TRUE|false|False|FALSE)\Z"),
    "int": re.compile(_INTEGER.pattern + r"\Z"),
    "float": re.compile(_NUMBER.pattern + r"\Z"),
    "merge": re.compile(r"<<\Z"),
}
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def read_yaml(path: str | Path, where: str | None = None) -> Any:
    """Read a YAML (or JSON) file of mappings, lists, strings, numbers, booleans and nulls.

    Args:
        path: The file.
        where: Prefix of error messages; the path if omitted.

    Raises:
        FileNotFoundError: There is no such file.
        ClcaError: It cannot be read, is not YAML, or exceeds a limit.
    """
    where = str(path) if where is None else where
    try:
        with open(path, "rb") as file:
            raw = file.read(MOST_BYTES + 1)
        text = raw.decode("utf-8-sig") if len(raw) <= MOST_BYTES else ""
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path, or invalid UTF-8
        raise ClcaError(f"{where}: cannot be read ({reason(error)})") from None
    if len(raw) > MOST_BYTES:
        raise ClcaError(f"{where}: is larger than {MOST_BYTES >> 20} MiB; a file of settings is smaller")
    return _parse(text, where)


def _parse(text: str, where: str) -> Any:
    import yaml

    loader = _loader()
    try:
        _LimitChecker(where).events(yaml.parse(text, Loader=loader))
        return yaml.load(text, Loader=loader)
    except ClcaError:
        raise
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f"line {mark.line + 1}: " if mark is not None else ""
        raise ClcaError(f"{where}: cannot be read ({line}{brief(error.problem or str(error))})") from None
    except (yaml.YAMLError, ValueError) as error:
        raise ClcaError(f"{where}: cannot be read ({brief(reason(error))})") from None


@dataclass
class _Container:
    """A list or mapping that is still open."""

    anchor: str | None
    before: tuple[int, int]
    mapping: bool
    children: int = 0


class _LimitChecker:
    """Counts what would be built from a file and raises at the first event beyond a limit."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.nodes = self.characters = 0
        self.open: list[_Container] = []
        self.anchored: dict[str, tuple[int, int] | None] = {}  # None: still open

    def events(self, events: Iterable[Any]) -> None:
        from yaml import events as kinds

        for event in events:
            if isinstance(event, kinds.ScalarEvent):
                self._key_or_value(event, is_scalar=True)
                self._scalar(event)
            elif isinstance(event, (kinds.SequenceStartEvent, kinds.MappingStartEvent)):
                self._key_or_value(event, is_scalar=False)
                self._begin(event, isinstance(event, kinds.MappingStartEvent))
            elif isinstance(event, (kinds.SequenceEndEvent, kinds.MappingEndEvent)):
                self._end()
            elif isinstance(event, kinds.AliasEvent):
                self._key_or_value(event, is_scalar=False)
                self._alias(event)

    def _refuse(self, event: Any, why: str) -> None:
        raise ClcaError(f"{self.where}: line {event.start_mark.line + 1}: {why}")

    def _count(self, event: Any, nodes: int, characters: int) -> None:
        self.nodes += nodes
        self.characters += characters
        if self.nodes > MOST_NODES:
            self._refuse(event, f"more than {MOST_NODES:,} values, aliases written out; a file of settings has fewer")
        if self.characters > MOST_CHARACTERS:
            self._refuse(event, f"more than {MOST_CHARACTERS >> 20} MiB of text, aliases written out")

    def _key_or_value(self, event: Any, is_scalar: bool) -> None:
        if not self.open:
            return
        parent = self.open[-1]
        if parent.mapping and parent.children % 2 == 0 and not is_scalar:
            self._refuse(event, "a key should be text or a number")
        parent.children += 1

    def _scalar(self, event: Any) -> None:
        value = event.value
        self._tag(event)
        self._count(event, 1, len(value))
        if len(value) > LONGEST_TEXT:
            self._refuse(event, f"a text of {len(value):,} characters; at most {LONGEST_TEXT:,} are read")
        if _CONTROL.search(value):
            self._refuse(event, f"a control character in {brief(repr(value), 60)}")
        if event.implicit[0] and not event.style:  # not in quotes
            self._plain_scalar(event, value)
        if event.anchor is not None:
            self.anchored[event.anchor] = (1, len(value))

    def _plain_scalar(self, event: Any, value: str) -> None:
        if _INTEGER.fullmatch(value):
            if len(value) > 20 or abs(int(value)) > LARGEST_INTEGER:
                self._refuse(event, f"{brief(value, 40)} is too large a number")
        elif _NUMBER.fullmatch(value):
            if not math.isfinite(float(value)):
                self._refuse(event, f"{brief(value, 40)} is too large a number")
        elif len(value) <= 100 and _AMBIGUOUS.fullmatch(value):
            self._refuse(event, f"{value} is no plain number: write digits such as 1000 or 0.5, or quote it as text")

    def _tag(self, event: Any) -> None:
        if event.tag not in (None, "!", f"{_TAG}str", f"{_TAG}seq", f"{_TAG}map"):
            self._refuse(event, f"the tag {brief(event.tag, 80)} is not read: only plain text, numbers and lists are")

    def _begin(self, event: Any, mapping: bool) -> None:
        self._tag(event)
        self._count(event, 1, 0)
        if len(self.open) >= MOST_DEPTH:
            self._refuse(event, f"nested more than {MOST_DEPTH} deep")
        self.open.append(_Container(event.anchor, (self.nodes - 1, self.characters), mapping))
        if event.anchor is not None:
            self.anchored[event.anchor] = None

    def _end(self) -> None:
        ended = self.open.pop()
        if ended.anchor is not None:
            self.anchored[ended.anchor] = (self.nodes - ended.before[0], self.characters - ended.before[1])

    def _alias(self, event: Any) -> None:
        size = self.anchored.get(event.anchor, (1, 0))  # the loader refuses an undefined alias
        if size is None:
            self._refuse(event, f"*{brief(event.anchor, 40)} is within itself")
        else:
            self._count(event, *size)


@functools.cache
def _loader() -> Any:
    """A safe loader that resolves plain scalars as YAML 1.2 does and refuses duplicate keys."""
    import yaml

    class Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
        yaml_implicit_resolvers: dict[Any, Any] = {}  # noqa: RUF012 (the registry of PyYAML)

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            # PyYAML would keep the last duplicate. Keys written here take precedence over merged ones (<<: *another).
            seen: set[Any] = set()
            for key, _ in node.value:
                merges = key.tag == f"{_TAG}merge"
                word = key.value if merges else self.construct_object(key, deep=True)
                if word in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"{word} occurs twice", key.start_mark)
                seen.add(word)
            return super().construct_mapping(node, deep)

    for name, words in _PLAIN_SCALARS.items():
        Loader.add_implicit_resolver(f"{_TAG}{name}", words, None)
    return Loader
