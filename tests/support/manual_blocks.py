"""What the manual shows: the commands and the Python of its pages, in order, as the reader meets them."""

import re
import shlex
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
SHELL = ("", "sh", "bash", "shell", "console")
"""Languages of blocks that hold commands; none is that of an indented block."""

OURS = ("clca", "curl", "openssl", "accelerate", "torchrun", "python")
"""Programs whose lines are run. Python: only scripts of this repository, and one's own by -m clca or -c."""

_BEFORE = ("uv", "run", "exec", "srun", "$")
_FENCE = re.compile(r"( *)(```+|~~~+) *(?:\{ *\.)?([\w+-]*)")
_AT_A_COMMAND = re.compile(
    rf"(?:^|[|&;] *)(?:(?:{'|'.join(map(re.escape, _BEFORE))}|[A-Z_]+=\S+) +)*(?:{'|'.join(OURS)}) "
)
"""Where one of `OURS` is called in a line of the shell. Other lines of an indented block may be prose, not split."""


def pages() -> list[Path]:
    """The manual's pages and the README."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


@dataclass(frozen=True)
class Block:
    """A code block of a page.

    Attributes:
        line: Its first line's number.
        language: What stands behind the fence; empty for an indented block.
        text: Its lines, without the page's indentation.
    """

    line: int
    language: str
    text: str


def blocks(page: str) -> Iterator[Block]:
    """The fenced blocks of a page, at any indentation, and the indented ones."""
    lines = page.splitlines()
    number = 0
    while number < len(lines):
        start = number
        if fence := _FENCE.match(lines[number]):
            number += 1
            while number < len(lines) and not lines[number].strip().startswith(fence[2]):
                number += 1
            inside = textwrap.dedent("\n".join(line.removeprefix(fence[1]) for line in lines[start + 1 : number]))
            yield Block(start + 2, fence[3], inside)
            number += 1
        elif lines[number].startswith("    ") and (start == 0 or not lines[start - 1].strip()):
            while number < len(lines) and (lines[number].startswith("    ") or not lines[number].strip()):
                if _FENCE.match(lines[number]):
                    break
                number += 1
            yield Block(start + 1, "", textwrap.dedent("\n".join(lines[start:number])).rstrip())
        else:
            number += 1


@dataclass(frozen=True)
class Command:
    """A command of ours, as the shell would take it apart.

    Attributes:
        line: Its line's number in the page.
        shown: The line, with what was continued by a backslash.
        words: Program and arguments, without quotes and without what stands before the program.
        environment: Variables set before it.
        source: The words of a command whose output it reads, after "|".
        target: The file that takes its output, after ">".
    """

    line: int
    shown: str
    words: tuple[str, ...]
    environment: tuple[str, ...] = ()
    source: tuple[str, ...] = ()
    target: str = ""


def commands(block: Block) -> Iterator[Command]:
    """The commands of ours in a block of shell lines."""
    continued = ""
    for offset, line in enumerate(block.text.splitlines()):
        continued += line.strip()
        if continued.endswith("\\"):
            continued = continued[:-1].rstrip() + " "
            continue
        shown, continued = continued, ""
        if _AT_A_COMMAND.search(shown):
            yield from _of_line(shown, block.line + offset)


def _of_line(shown: str, number: int) -> Iterator[Command]:
    lexer = shlex.shlex(shown, posix=True, punctuation_chars="|&;>")
    lexer.whitespace_split = True
    source: tuple[str, ...] = ()
    words: list[str] = []
    target = ""
    tokens = [*lexer, ";"]
    while tokens:
        word = tokens.pop(0)
        if word == ">":
            target = tokens.pop(0)
        elif word in ("|", "||", "&", "&&", ";"):
            environment, rest = _without_prefix(words)
            if rest and is_ours(rest):
                yield Command(number, shown, tuple(rest), tuple(environment), source, target)
            source, words, target = (tuple(words) if word == "|" else ()), [], ""
        else:
            words.append(word)


def _without_prefix(words: list[str]) -> tuple[list[str], list[str]]:
    rest, environment = list(words), []
    while rest and (rest[0] in _BEFORE or re.fullmatch(r"[A-Z_]+=.*", rest[0])):
        word = rest.pop(0)
        if "=" in word:
            environment.append(word)
    return environment, rest


def is_ours(words: list[str]) -> bool:
    """Whether a line is one that this repository answers for."""
    if words[0] != "python":
        return words[0] in OURS
    return len(words) > 1 and (words[1].startswith("benchmarks/") or words[1] == "-c" or words[1:3] == ["-m", "clca"])


def hidden_commands(block: Block) -> list[str]:
    """Lines of a block that is not said to be shell, nor output of ours, and yet would be run by a reader."""
    if block.language in (*SHELL, "python", "yaml", "bibtex"):
        return []
    return [line for line in block.text.splitlines() if re.match(r"(uv run )?clca [a-z]|\$ ", line)]
