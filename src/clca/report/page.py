"""Pages: fill templates, inline figures, write files atomically."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from html import unescape
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from clca.errors import ClcaError
from clca.plots.figure import DARK, LIGHT, Mark, Picture, panel_svgs, swatch, write_files
from clca.system.files import replacing

_NEEDED = ("pandas", "pyarrow", "jinja2")


@dataclass(frozen=True)
class Shown:
    """A figure, as the templates need it.

    Attributes:
        picture: Title, name and caption.
        svgs: One per panel.
        legend: The marks, each with its symbol as SVG.
        files: Names in figures/, for links.
        sentences: Printed below it.
    """

    picture: Picture
    svgs: list[str]
    legend: list[tuple[Mark, str]]
    files: list[str] = field(default_factory=list)
    sentences: Sequence[str] = ()


def need_extras() -> None:
    """Check that the packages a report needs are installed.

    Raises:
        ClcaError: One is missing; the message has the command that installs it.
    """
    absent = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if absent:
        raise ClcaError(f"a report needs {' and '.join(absent)}: pip install 'clca[study]'")


def shown(picture: Picture, folder: Path | None = None, sentences: Sequence[str] = ()) -> Shown:
    """Draw a picture for a page and, with a folder, into its PNG and PDF files too.

    Raises:
        WorkError: A file could not be written.
    """
    files = [path.name for path in write_files(picture, folder)] if folder is not None else []
    return Shown(picture, panel_svgs(picture), [(mark, swatch(mark)) for mark in picture.legend], files, sentences)


def write_page(path: Path, template: str, **content: Any) -> None:
    """Fill a template and write the page atomically.

    Figures and tables that only the previous page linked to are removed, so that they are not taken for current ones.

    Args:
        path: The file.
        template: "study/study.html.jinja" or "run/run.html.jinja".
        content: The template's variables; all text is escaped.

    Raises:
        WorkError: It could not be written.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    text = environment.get_template(template).render(light=LIGHT, dark=DARK, **content)
    try:
        earlier = _linked(path.read_text(encoding="utf-8", errors="replace"))
    except OSError:
        earlier = set()
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")  # a file's name may not be UTF-8
    for name in earlier - _linked(text):
        with suppress(OSError):
            (path.parent / name).unlink()


def _linked(text: str) -> set[str]:
    """The files in figures/ and tables/ that a page written by this module links to."""
    if '<meta name="generator" content="clca report">' not in text:
        return set()
    links = re.findall(r'<a href="((?:figures|tables)/[^"/]+\.(?:png|jpg|pdf|csv|tex))">', text)
    names = {unquote(unescape(link)) for link in links}
    return {name for name in names if name.count("/") == 1}
