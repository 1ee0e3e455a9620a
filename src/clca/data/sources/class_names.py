"""Names of classes that people take for the same one, which a computer does not."""

import re
import shlex
import unicodedata
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

from clca.errors import ClcaError

# Unicode's Default_Ignorable_Code_Point, which `unicodedata` does not know: a font shows nothing for them.
_INVISIBLE = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164"
    "\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufff8\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
_BLANK = re.compile("[\\s\u0085\u2800]+")  # U+2800 is Braille without a dot

# Letters of other alphabets that fonts draw as Latin ones, and hyphens that they draw as the usual one.
_SAME_SHAPE = str.maketrans(
    "АВЕЅІЈКМНОРСТУХаеорсухіјѕԁԛԝһΑΒΕΖΗΙΚΜΝΟΡΤΥΧο\u2010\u2011",
    "ABESIJKMHOPCTYXaeopcyxijsdqwh" + "ABEZHIKMNOPTYXo" + "--",
)
_SIMILAR = str.maketrans("‘’ʼ´`“”‒–—−", "'''''\"\"----")


def refuse_lookalikes(root: Path, classes: Sequence[str]) -> None:
    """Refuse names that look the same: with other blanks, invisible characters, or accents in another form.

    Raises:
        ClcaError: There are two; the message shows them such that the difference is seen.
    """
    for first, second in _pairs(classes, _appearance):
        one, other = visible_difference(first, second)
        if unicodedata.normalize("NFC", first) == unicodedata.normalize("NFC", second):
            command = f"convmv -f utf8 -t utf8 --nfc -r --notest {shlex.quote(str(root))}"
            raise ClcaError(
                f"{root}: two classes look the same, '{one}' and '{other}': one has accents as separate characters, "
                f"as on macOS; {'use one form' if root.is_file() else f'rename all at once: {command}'}"
            )
        remedy = "use one name for both in this file" if root.is_file() else "rename one folder, or merge the two"
        raise ClcaError(f"{root}: two classes look the same, '{one}' and '{other}': {remedy}")


def describe_similar(root: Path, classes: Sequence[str]) -> list[str]:
    """A line if names differ only by case, by the kind of dash or quotation mark, or by wide and other forms."""
    pairs = [
        f"'{_revealed(first)}' and '{_revealed(second)}'"
        for first, second in _pairs(classes, lambda name: _appearance(_loose(name)))
    ]
    if not pairs:
        return []
    shown = ", ".join(pairs[:3]) + (f" and {len(pairs) - 3} more" if len(pairs) > 3 else "")
    return [f"{root}: {len(pairs)} pair(s) of classes differ only by case or form: {shown}; merge them if they are one"]


def visible_difference(first: str, second: str) -> tuple[str, str]:
    r"""Two names that differ, such that it is seen how: `Cabernet\x20\x20Franc`, `Merlot\u200b`, `Ros\xe9`."""
    return _revealed(first, set(first) - set(second)), _revealed(second, set(second) - set(first))


def _pairs(classes: Sequence[str], key: Callable[[str], str]) -> Iterator[tuple[str, str]]:
    """Each name with the first one before it that has the same key."""
    first: dict[str, str] = {}
    for name in classes:
        other = first.setdefault(key(name), name)
        if other != name:
            yield other, name


def _appearance(name: str) -> str:
    """What a reader sees of a name."""
    seen = _INVISIBLE.sub("", unicodedata.normalize("NFC", name)).translate(_SAME_SHAPE)
    return unicodedata.normalize("NFC", _BLANK.sub(" ", seen).strip())


def _loose(name: str) -> str:
    return unicodedata.normalize("NFKC", name.translate(_SIMILAR)).translate(_SIMILAR).casefold()


def _revealed(name: str, own: Collection[str] = ()) -> str:
    """A name with escapes for what is not seen in it: unusual blanks, invisible characters, and those in `own`."""
    pieces = []
    for place, char in enumerate(name):
        beside = (name[place - 1 : place] or " ") + (name[place + 1 : place + 2] or " ")
        is_odd_blank = char == " " and any(_BLANK.fullmatch(each) for each in beside)
        is_unusual = not char.isascii() and (char in own or _INVISIBLE.match(char) or _BLANK.match(char))
        if is_odd_blank:
            pieces.append("\\x20")
        elif is_unusual or not char.isprintable():
            pieces.append(char.encode("unicode_escape").decode())
        else:
            pieces.append(char)
    return "".join(pieces)
