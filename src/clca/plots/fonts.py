"""Names in pictures, whatever their script: from an installed font where the picture's own has not the characters."""

from __future__ import annotations

import unicodedata
import warnings
from collections.abc import Iterator
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TextIO

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.text import Text

_SEVERAL = 8  # characters named where no font has them
_told = False


def save_figure(figure: Figure, target: str | Path | BinaryIO | TextIO, **options: Any) -> None:
    """`figure.savefig`, every text with fonts that have its characters, as far as there are some on this machine.

    Where there are none, one warning a process says which characters are drawn as boxes, and what to install. Text of
    an SVG is left to whoever shows it, so there it is not said.

    Args:
        figure: What is drawn.
        target, options: As `savefig` takes them.
    """
    absent = use_fonts(figure)
    if absent and options.get("format") != "svg":
        _tell(absent)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # once a character and picture; it is told above
        figure.savefig(target, **options)


def use_fonts(figure: Figure) -> set[str]:
    """Give every text of a figure, next to its own font, those of the machine that have what its own has not.

    Returns:
        Characters that no font here has.
    """
    from matplotlib.axis import Axis
    from matplotlib.text import Text

    for axis in figure.findobj(Axis):
        axis.get_ticklabels(which="both")  # whose text is else not there before it is drawn
    lacking = {text: lacks for text in figure.findobj(Text) if (lacks := _lacking(text))}
    absent: set[str] = set()
    if lacking:
        families, without = _fallback(frozenset().union(*lacking.values()))
        absent.update(without)
        for text in lacking:
            text.set_fontfamily([*text.get_fontfamily(), *families])
    return absent


def _lacking(text: Text) -> frozenset[str]:
    """The characters of a text that its fonts have not."""
    from matplotlib.font_manager import findfont

    wanted = {
        letter for letter in text.get_text() if ord(letter) > 0x7E and unicodedata.category(letter)[0] not in "CZ"
    }
    if not wanted:
        return frozenset()
    own = text.get_fontproperties()
    for family in own.get_family():
        one = own.copy()
        one.set_family([family])
        has = _characters(str(findfont(one)))
        wanted = {letter for letter in wanted if ord(letter) not in has}
    return frozenset(wanted)


@lru_cache(maxsize=4)
def _characters(path: str) -> frozenset[int]:
    """The codes of what the font in a file has; none where it cannot be drawn with."""
    from matplotlib.ft2font import FT2Font

    try:
        font = FT2Font(path)
        font.set_size(10, 72)  # which bitmaps refuse
        return frozenset(font.get_charmap())
    except (OSError, RuntimeError, ValueError):
        return frozenset()


@cache
def _fallback(wanted: frozenset[str]) -> tuple[list[str], frozenset[str]]:
    """As few families as have all of some characters, and the characters that none has."""
    left, families = wanted, []
    for files in _families(wanted):
        has: dict[str, frozenset[str]] = {}
        for name, path in files.items():
            has[name] = frozenset(letter for letter in left if ord(letter) in _characters(path))
            if has[name] == left:
                break
        while best := max(has, key=lambda name: len(has[name] & left), default=None):
            if not has[best] & left:
                break
            families.append(best)
            left -= has[best]
        if not left:
            break
    return families, left


def _families(wanted: frozenset[str]) -> Iterator[dict[str, str]]:
    """Families by name, each with a file, best first: those matplotlib knows of, then all.

    It knows of those that were there when it looked for the first time on this machine, so of none that was installed
    because we said so.
    """
    from matplotlib.font_manager import findSystemFonts, fontManager

    japanese = any("HIRAGANA" in (name := unicodedata.name(letter, "")) or "KATAKANA" in name for letter in wanted)

    def place(entry: Any) -> tuple[Any, ...]:
        words = entry.name.split()
        plain = entry.style == "normal" and str(entry.weight) in ("400", "normal", "regular", "book")
        # A character has one code and several forms; the data sets of this field are Chinese.
        return ("Serif" in words, "Mono" in words, not plain, ("JP" if japanese else "SC") not in words, entry.name)

    def known() -> dict[str, str]:
        files: dict[str, str] = {}
        for entry in sorted(fontManager.ttflist, key=place):
            if "Last Resort" not in entry.name:  # boxes for everything
                files.setdefault(entry.name, entry.fname)
        return files

    yield known()
    there = {entry.fname for entry in fontManager.ttflist}
    for path in sorted(set(findSystemFonts()) - there):
        try:
            fontManager.addfont(path)
        except (OSError, RuntimeError, ValueError):
            continue
    yield known()


def _tell(absent: set[str]) -> None:
    global _told
    if _told:
        return
    _told = True
    some = "".join(sorted(absent)[:_SEVERAL]) + ("…" if len(absent) > _SEVERAL else "")
    warnings.warn(
        f"pictures show {some} as boxes, because no font on this machine has them; install one that does, such as Noto "
        "Sans CJK for Chinese, Japanese and Korean (Debian, Ubuntu: apt install fonts-noto-cjk), and draw them again",
        stacklevel=3,
    )
