"""Pages: templates filled, figures inlined, files written whole."""

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
    """A figure as a template takes it.

    Attributes:
        picture: Title, name and caption.
        svgs: One a panel.
        legend: Each mark and its sign.
        files: Names below figures/, to link to.
        sentences: Said below it.
    """

    picture: Picture
    svgs: list[str]
    legend: list[tuple[Mark, str]]
    files: list[str] = field(default_factory=list)
    sentences: Sequence[str] = ()


def need_extras() -> None:
    """Refuse to begin without what a report is made with.

    Raises:
        ClcaError: With the command that installs it.
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
    """Fill a template of this folder and write the page whole or not at all.

    Figures and tables that the page linked to before and does not any more are removed: they would be taken for its.

    Args:
        path: The file.
        template: "study.html.jinja" or "run.html.jinja".
        content: What it asks for; all text is escaped.

    Raises:
        WorkError: It could not be written.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    room = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    text = room.get_template(template).render(light=LIGHT, dark=DARK, **content)
    try:
        earlier = _linked(path.read_text(encoding="utf-8", errors="replace"))
    except OSError:
        earlier = set()
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")  # a name may be none
    for name in earlier - _linked(text):
        with suppress(OSError):
            (path.parent / name).unlink()


def _linked(text: str) -> set[str]:
    """The files below figures/ and tables/ that a page of ours links to."""
    if '<meta name="generator" content="clca report">' not in text:
        return set()
    links = re.findall(r'<a href="((?:figures|tables)/[^"/]+\.(?:png|pdf|csv|tex))">', text)
    names = {unquote(unescape(link)) for link in links}
    return {name for name in names if name.count("/") == 1}
