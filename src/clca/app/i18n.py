"""The page's texts by language: one JSON file each; English is always there."""

import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clca.errors import ClcaError, reason
from clca.system.numbers import decimal_number

if TYPE_CHECKING:
    from gradio.i18n import I18n

SHIPPED = Path(__file__).with_name("words")
ENGLISH = "en"


class Words:
    """Sentences by key and language. A key that a translation lacks is shown in English.

    Args:
        folders: With LANGUAGE.json files, {key: sentence}; later ones add languages and replace sentences.

    Raises:
        ClcaError: A file is not such a JSON file, or translates what does not exist.
    """

    def __init__(self, *folders: Path) -> None:
        self.languages: dict[str, dict[str, str]] = {}
        for folder in (SHIPPED, *folders):
            for file in sorted(folder.glob("*.json")):
                self._add(file)

    def _add(self, file: Path) -> None:
        language = file.stem.lower()
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ClcaError(f"{file}: cannot be read as JSON ({reason(error)})") from None
        if not isinstance(found, dict) or not all(isinstance(text, str) for text in found.values()):
            raise ClcaError(f'{file}: has to be {{"key": "sentence", …}}')
        known = self.languages.get(ENGLISH, found)
        unknown = sorted(found.keys() - known.keys())
        if unknown:
            raise ClcaError(f"{file}: there is no {unknown[0]!r} to translate; {SHIPPED.name}/en.json has every key")
        for key, text in found.items():
            if _places(text) != _places(known[key]):
                raise ClcaError(f"{file}: {key!r} has to name {', '.join(sorted(_places(known[key]))) or 'nothing'}")
        self.languages[language] = {**known, **self.languages.get(language, {}), **found}

    @cached_property
    def i18n(self) -> "I18n":
        """For texts of Gradio's components: the browser takes its own language."""
        import gradio

        return gradio.I18n(**self.languages)

    def language(self, accepted: str) -> str:
        """The best of the languages that a browser asks for.

        Args:
            accepted: Its Accept-Language header, as "de-AT,de;q=0.9,en;q=0.5".
        """
        wishes = []
        for place, wish in enumerate(accepted.split(",")[:20]):
            tag, _, weight = wish.strip().lower().partition(";q=")
            try:
                wishes.append((-decimal_number(weight or "1"), place, tag))
            except ValueError:
                continue
        for _, _, tag in sorted(wishes):
            for name in (tag, tag.partition("-")[0]):
                if name in self.languages:
                    return name
        return ENGLISH

    def translate(self, language: str, key: str, **values: Any) -> str:
        """A sentence, with values in its places."""
        return self.languages.get(language, self.languages[ENGLISH])[key].format_map(values)

    def translator(self, headers: Mapping[str, str]) -> "Translator":
        """The translator into the language of a request."""
        return Translator(self, self.language(headers.get("accept-language", "")))


class Translator:
    """`Words` in one language: `translator("key", value=…)`."""

    def __init__(self, words: Words, language: str) -> None:
        self.words, self.language = words, language

    def __call__(self, key: str, **values: Any) -> str:
        return self.words.translate(self.language, key, **values)


def _places(text: str) -> set[str]:
    """Names of the {places} in a sentence."""
    from string import Formatter

    try:
        return {name.split(":")[0] for _, name, _, _ in Formatter().parse(text) if name is not None}
    except ValueError:
        return {"(broken braces)"}
