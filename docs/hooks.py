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

from clca.cli import COMMANDS, main

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
    if COMMANDS_HERE in markdown:
        markdown = markdown.replace(COMMANDS_HERE, "\n".join(_sections()))
    return markdown


def _sections() -> Iterator[str]:
    """A heading and the help of each command, those of a group under their group."""
    for name, (module, what) in COMMANDS.items():
        yield f"## clca {name}\n\n{what}.\n\n```text\n{help_of(name)}\n```\n"
        for member in getattr(import_module(f"clca.commands.{module}"), "COMMANDS", {}):
            yield f"### clca {name} {member}\n\n```text\n{help_of(name, member)}\n```\n"


def help_of(*command: str) -> str:
    """What `clca COMMAND --help` prints on a narrow terminal, without the frames around its parts."""
    told = io.StringIO()
    with (
        patch.dict(os.environ, {"COLUMNS": "88", "NO_COLOR": "1"}),
        contextlib.redirect_stdout(told),
        contextlib.suppress(SystemExit),
    ):
        main([*command, "--help"])
    return without_frames(told.getvalue())


def without_frames(text: str) -> str:
    """Boxes as titles and indented lines: a phone shows these, and they can be searched."""
    lines = []
    for line in text.splitlines():
        if title := re.fullmatch(r"╭─ (.+?) ─*╮", line):
            lines.append(f"\n{title[1]}:")
        elif inside := re.fullmatch(r"│(.*)│", line):
            if not re.fullmatch(r"[ ─]*", inside[1]):
                lines.append(f" {inside[1].rstrip()}")
        elif not re.fullmatch(r"╰─*╯", line):
            lines.append(line.rstrip())
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()
