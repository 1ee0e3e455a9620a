"""Hooks of the manual's build: they add the help of every command, and CONTRIBUTING.md as a page."""

import contextlib
import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from clca.cli.arguments import Argument
from clca.cli.help_text import description_of, names_of, usage_of, with_flags
from clca.cli.main import COMMANDS, main

PLACEHOLDER = "<!-- every command's help -->"
CONTRIBUTING = "contributing.md"


class Help(NamedTuple):
    """The arguments of `help_text`, from which the help of a command is made."""

    arguments: Sequence[Argument]
    prog: str
    summary: str
    groups: Mapping[str, str]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add CONTRIBUTING.md, which is outside of docs/, as a page."""
    text = (Path(config.config_file_path).parent / "CONTRIBUTING.md").read_text(encoding="utf-8")
    files.append(File.generated(config, CONTRIBUTING, content=text.replace("](docs/", "](")))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Insert the help of the commands, and redirect links from CONTRIBUTING.md to its page."""
    to_top = "../" * page.file.src_uri.count("/")
    markdown = re.sub(r"\]\((?:\.\./)+CONTRIBUTING\.md", f"]({to_top}{CONTRIBUTING}", markdown)
    return markdown.replace(PLACEHOLDER, "\n".join(_sections()) if PLACEHOLDER in markdown else "")


def _sections() -> Iterator[str]:
    """A section with the help of each command; commands of a group are subsections of the group."""
    for name, (module, what) in COMMANDS.items():
        members = getattr(import_module(f"clca.cli.commands.{module}"), "COMMANDS", {})
        yield f"## clca {name}\n"
        yield f"{what}.\n" if members else as_markdown(help_of(name))
        for member in members:
            yield f"### clca {name} {member}\n\n{as_markdown(help_of(name, member))}"


def help_of(*command: str) -> Help:
    """The content of `clca COMMAND --help`, as data."""
    with patch("clca.cli.parsing.help_text", _capture), contextlib.suppress(SystemExit):
        try:
            main([*command, "--help", "--debug"])
        except _Captured as captured:
            return Help(*captured.args)
    raise ValueError(f"clca {' '.join(command)} has no help")


class _Captured(Exception):
    """Carries the arguments of `help_text` out of the command line."""


def _capture(*arguments: object) -> str:
    """Replaces `help_text`."""
    raise _Captured(*arguments)


def as_markdown(found: Help) -> str:
    """The help of a command as paragraphs, examples and lists of options, searchable and fit for narrow screens."""
    summary, _, examples = inspect.cleandoc(found.summary).partition("Examples:")
    positional = [argument for argument in found.arguments if argument.spelling.positional]
    usage = " ".join([found.prog, "[OPTIONS]", *map(usage_of, positional)])
    parts = [f"```text\n{usage}\n```", _plain(summary.strip())]
    if examples:
        parts.append("```sh\n" + "\n".join(line.strip() for line in examples.strip().splitlines()) + "\n```")
    for title in dict.fromkeys(["arguments", *(one.group for one in found.arguments)]):
        members = [one for one in found.arguments if ("arguments" if one in positional else one.group) == title]
        if members:
            parts.append(f"**{title.capitalize()}**")
            parts.extend([_plain(with_flags(found.groups[title], found.arguments))] if title in found.groups else [])
            parts.extend(f"`{names_of(one)}`\n:   {_plain(description_of(one, found.arguments))}" for one in members)
    return "\n\n".join(parts) + "\n"


def _plain(text: str) -> str:
    """Escape characters that Markdown would interpret."""
    return re.sub(r"([*_`<\[\]|])", r"\\\1", text)
