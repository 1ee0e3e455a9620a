"""What the manual is given while it is built: the help of every command, and the page for contributors."""

import contextlib
import io
import os
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from unittest.mock import patch

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from clca.cli.main import COMMANDS, main

COMMANDS_HERE = "<!-- every command's help -->"
CONTRIBUTING = "contributing.md"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Take CONTRIBUTING.md, which lies beside the manual, as one of its pages."""
    text = (Path(config.config_file_path).parent / "CONTRIBUTING.md").read_text(encoding="utf-8")
    files.append(File.generated(config, CONTRIBUTING, content=text.replace("](docs/", "](")))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Put the help in its place, and let links to CONTRIBUTING.md lead to its page."""
    to_top = "../" * page.file.src_uri.count("/")
    markdown = re.sub(r"\]\((?:\.\./)+CONTRIBUTING\.md", f"]({to_top}{CONTRIBUTING}", markdown)
    return markdown.replace(COMMANDS_HERE, "\n".join(_sections()) if COMMANDS_HERE in markdown else "")


def _sections() -> Iterator[str]:
    """The help of each command under its name, those of a group under their group."""
    for name, (module, what) in COMMANDS.items():
        members = getattr(import_module(f"clca.cli.commands.{module}"), "COMMANDS", {})
        yield f"## clca {name}\n"
        yield f"{what}.\n" if members else as_markdown(help_of(name))
        for member in members:
            yield f"### clca {name} {member}\n\n{as_markdown(help_of(name, member))}"


def help_of(*command: str) -> str:
    """What `clca COMMAND --help` prints on a terminal 100 characters wide."""
    told = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)
    with (
        patch.dict(os.environ, {"COLUMNS": "100", "NO_COLOR": "1"}),
        contextlib.redirect_stdout(told),
        contextlib.suppress(SystemExit),
    ):
        main([*command, "--help"])
    return told.buffer.getvalue().decode()  # type: ignore[attr-defined]


def as_markdown(text: str) -> str:
    """Framed help as paragraphs, examples and lists of options, which fit a phone and can be searched.

    Raises:
        ValueError: It does not look like help.
    """
    before, *frames = re.split(r"^╭─ (.+?) ─*╮$", text, flags=re.MULTILINE)
    usage, _, summary = before.strip().partition("\n")
    if not usage.startswith("usage: ") or not frames:
        raise ValueError(f"this is no help: {text[:200]!r}")
    summary, _, examples = summary.partition("Examples:")
    parts = [f"```text\n{usage.removeprefix('usage: ')}\n```", _plain(summary.strip())]
    if examples:
        parts.append("```sh\n" + "\n".join(line.strip() for line in examples.strip().splitlines()) + "\n```")
    for title, body in zip(frames[::2], frames[1::2], strict=True):
        parts.append(f"**{title.capitalize()}**")
        parts.extend(_entries(re.findall(r"^│ (.*?) *│$", body, flags=re.MULTILINE)))
    return "\n\n".join(parts) + "\n"


def _entries(lines: list[str]) -> Iterator[str]:
    """The options of one frame as a definition list, and what is said of all of them before it."""
    entries: list[tuple[str, list[str]]] = []
    for line in lines:
        if line.startswith("  ") and entries:
            entries[-1][1].append(line.strip())
        elif "  " in line or re.match(r"-|[A-Z]+( |$)|[A-Z]+ …", line):
            name, _, told = line.partition("  ")
            entries.append((name, [told.strip()]))
        elif not re.fullmatch(r"─*", line):
            yield _plain(line)
    for name, told in entries:
        if name != "-h, --help":
            text = re.sub(r" \(default: (None)?\)", "", " ".join(told).strip())
            yield f"`{name.replace('{None}|', '')}`\n:   {_plain(text)}"


def _plain(text: str) -> str:
    """Text in which Markdown finds nothing to set."""
    return re.sub(r"([*_`<\[\]|])", r"\\\1", text)
