"""What the page says: every sentence that it asks for is there, and a translation is checked when it is read."""

import json
import re
from pathlib import Path
from string import Formatter

import pytest

from clca.app import i18n as words
from clca.app import settings
from clca.app.i18n import Translator, Words
from clca.errors import ClcaError

SOURCE = Path(settings.__file__).parent
CALLS = re.compile(r"""\b(?:tr|words|i18n)\(\s*f?["']([a-z_0-9{}]+)["']""")


def test_every_sentence_is_there_and_is_used() -> None:
    known = set(Words().languages["en"])
    code = "\n".join(path.read_text() for path in SOURCE.glob("*.py"))
    asked = set(CALLS.findall(code))
    patterns = [re.escape(name).replace(r"\{name\}", "[a-z0-9]+") for name in asked]
    assert all(any(re.fullmatch(pattern, key) for key in known) for pattern in patterns), asked - known
    literal = set(re.findall(r"""["']([a-z_0-9]+)["']""", code))
    unused = {
        key for key in known if key not in literal and not any(re.fullmatch(pattern, key) for pattern in patterns)
    }
    assert unused == set()


def test_a_translation_replaces_what_it_has_and_leaves_the_rest_english(tmp_path: Path) -> None:
    (tmp_path / "de.json").write_text(json.dumps({"accuracy": "Güte", "batch_progress": "{done} von {total}"}))
    found = Words(tmp_path)
    german = Translator(found, "de")
    assert (german("accuracy"), german("batch_progress", done=1, total=3)) == ("Güte", "1 von 3")
    assert german("cost") == Translator(found, "en")("cost")


@pytest.mark.parametrize(
    ("accepted", "language"),
    [("de-AT,de;q=0.9,en;q=0.5", "de"), ("fr,de;q=0.3", "de"), ("en;q=0.9,de;q=0.8", "en"), ("de;q=0.1,en;q=0.9", "en"),
     ("", "en"), ("xx", "en"), ("de;q=nonsense", "en"), ("," * 10_000, "en"), ("DE", "de")],
)  # fmt: skip
def test_the_language_of_a_browser(accepted: str, language: str, tmp_path: Path) -> None:
    (tmp_path / "de.json").write_text("{}")
    assert Words(tmp_path).language(accepted) == language


@pytest.mark.parametrize(
    ("content", "told"),
    [("{", "cannot be read"), ("[]", "has to be"), ('{"accuracy": 3}', "has to be"),
     ('{"acuracy": "x"}', "no 'acuracy'"),
     ('{"batch_progress": "{done}"}', "done, total"), ('{"accuracy": "{name}"}', "nothing"),
     ('{"accuracy": "{"}', "nothing"), ("\udcff", "cannot be read")],
)  # fmt: skip
def test_a_broken_translation_is_refused_by_name(content: str, told: str, tmp_path: Path) -> None:
    file = tmp_path / "de.json"
    file.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(ClcaError, match=told) as refusal:
        Words(tmp_path)
    assert str(file) in str(refusal.value)


def test_a_translation_cannot_reach_into_objects(tmp_path: Path) -> None:
    (tmp_path / "de.json").write_text(json.dumps({"evidence": "{name.__class__}"}))
    with pytest.raises(ClcaError):
        Words(tmp_path)


def test_english_has_no_broken_places() -> None:
    for text in json.loads((words.SHIPPED / "en.json").read_text()).values():
        list(Formatter().parse(text))
