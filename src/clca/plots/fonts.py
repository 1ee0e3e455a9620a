"""Names in pictures, whatever their script: matplotlib takes each glyph from the first family that has it."""

from __future__ import annotations

import re
import warnings
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TextIO

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# A Chinese character has one code and several regional forms; the data sets of this field are Chinese.
FALLBACK = (
    "Noto Sans CJK SC", "Noto Sans SC", "Source Han Sans SC", "WenQuanYi Zen Hei", "WenQuanYi Micro Hei",
    "Droid Sans Fallback", "Microsoft YaHei", "SimHei", "PingFang SC", "Hiragino Sans GB", "Noto Sans CJK JP",
    "Noto Sans JP", "IPAGothic", "Noto Sans CJK KR", "Noto Sans KR", "NanumGothic", "Noto Sans Arabic",
    "Noto Sans Hebrew", "Noto Sans Devanagari", "Noto Sans Bengali", "Noto Sans Tamil", "Noto Sans Thai", "FreeSans",
    "Noto Sans", "Arial Unicode MS", "Unifont",
)  # fmt: skip
"""Families to look for on this machine, best first."""

_MISSING = re.compile(r"Glyph (\d+)")
_MOST_NAMED = 8  # missing characters in the warning
_warned = False


def save_figure(figure: Figure, target: str | Path | BinaryIO | TextIO, **options: Any) -> None:
    """`figure.savefig`, with the fonts of this machine for characters that the figure's own font lacks.

    The first time that no font has a character, one warning names it and what to install. An SVG has none, because its
    text is drawn by what displays it.

    Args:
        figure: What is drawn.
        target, options: As `savefig` takes them.
    """
    from matplotlib.axis import Axis
    from matplotlib.text import Text

    for axis in figure.findobj(Axis):
        axis.get_ticklabels(which="both")  # otherwise made when they are drawn
    for text in figure.findobj(Text):
        if not text.get_text().isascii():
            text.set_fontfamily([*text.get_fontfamily(), *_installed()])
    with warnings.catch_warnings(record=True) as caught:
        warnings.filterwarnings("always", message="Glyph")
        figure.savefig(target, **options)
    missing = set()
    for warning in caught:
        if found := _MISSING.match(str(warning.message)):
            missing.add(chr(int(found[1])))
        else:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    if missing and options.get("format") != "svg":
        _warn(missing)


@cache
def _installed() -> tuple[str, ...]:
    """The families of `FALLBACK` that this machine has."""
    from matplotlib.font_manager import findSystemFonts, fontManager

    # matplotlib's own list is from its first run here, and lacks what was installed since, perhaps on our advice.
    for path in set(findSystemFonts()) - {entry.fname for entry in fontManager.ttflist}:
        try:
            fontManager.addfont(path)
        except (OSError, RuntimeError, ValueError):  # not one that matplotlib can read
            continue
    names = set(fontManager.get_font_names())
    return tuple(family for family in FALLBACK if family in names)


def _warn(missing: set[str]) -> None:
    global _warned
    if _warned:
        return
    _warned = True
    some = "".join(sorted(missing)[:_MOST_NAMED]) + ("…" if len(missing) > _MOST_NAMED else "")
    warnings.warn(
        f"pictures show {some} as boxes, because no font on this machine has them; install one that does, such as Noto "
        "Sans CJK for Chinese, Japanese and Korean (Debian, Ubuntu: apt install fonts-noto-cjk), and draw them again",
        stacklevel=3,
    )
