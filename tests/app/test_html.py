"""What the page shows of an answer: nothing of it can be HTML by mistake, and no figure says what was not measured."""

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from clca.app import html as render
from clca.app.i18n import Translator, Words
from clca.app.inference import Look, Price
from clca.evaluation.stored import StoredEvaluation
from clca.explain import DepthShare
from clca.serve.served_model import Rates
from clca.serve.service import Ranked

SAY = Translator(Words(), "en")
NASTY = "<script>alert('x')</script>\"' onerror=y & {0} %s"
VOID = {"img"}
TAGS = {"div", "p", "strong", "span", "ol", "li", "i", "img", "h2", "b", "section", "figure", "figcaption", "table",
        "thead", "tbody", "tr", "th", "td"}  # fmt: skip


class Reader(HTMLParser):
    """Tags, text and attributes of a piece of HTML; every tag is closed, in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.text, self.attributes, self.tags = "", [], []
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in TAGS
        assert not any(name.startswith("on") for name, _ in attrs)
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data + "\n"

    def all(self, attribute: str) -> list[str | None]:
        return [value for _, name, value in self.attributes if name == attribute]


def ranked(*probabilities: float, name: str = "class") -> Ranked:
    return Ranked(tuple(f"{name} {k}" for k in range(len(probabilities))), probabilities)


def stored(rate: Rates, top1: float, **other: Any) -> StoredEvaluation:
    found = StoredEvaluation("test", rate, top1, 0.99, top1, 200, 1.0, 100.0, Path("nowhere"))
    return replace(found, **other)


def look(share: float = 0.5, gmacs: float = 2.0, milliseconds: float = 12.3) -> Look:
    unseen: Any = None
    return Look(Image.new("RGB", (2, 2)), ranked(1.0), milliseconds, Price(gmacs, share), unseen, ())


def price(rate: Rates, *known: StoredEvaluation, **of_look: float) -> str:
    return Reader(render.price(SAY, look(**of_look), rate, known)).text


# -- names ----------------------------------------------------------------------------------------------------------


@given(name=st.text(max_size=60))
def test_a_name_is_text_wherever_it_is_shown(name: str) -> None:
    examples = {name: ["data:image/webp;base64,AA"]}
    found = [
        Reader(render.answer(SAY, Ranked((name, "other"), (0.7, 0.3)), examples, 2)),
        Reader(render.table([name], [[name], [3]])),
        Reader(render.figures(name, [Image.new("RGB", (2, 2))], [name])),
        Reader(render.problem(name)),
    ]
    tags = [each.tags for each in found]
    plain = [
        Reader(render.answer(SAY, Ranked(("a", "other"), (0.7, 0.3)), {"a": ["data:image/webp;base64,AA"]}, 2)),
        Reader(render.table(["a"], [["a"], [3]])),
        Reader(render.figures("a", [Image.new("RGB", (2, 2))], ["a"])),
        Reader(render.problem("a")),
    ]
    assert tags == [each.tags for each in plain]  # the name has added no element


def test_names_keep_their_letters() -> None:
    reader = Reader(render.answer(SAY, Ranked((NASTY,), (1.0,)), {NASTY: ['data:,"><b>']}, 1))
    assert reader.text.count(NASTY) == 2
    assert reader.all("alt") == [f"example of {NASTY}"]
    assert reader.all("src") == ['data:,"><b>']


def test_a_translation_is_text_too(tmp_path: Path) -> None:
    (tmp_path / "de.json").write_text('{"no_photo_yet": "<b>hier</b>", "no_examples": "<img src=x onerror=y>"}')
    say = Translator(Words(tmp_path), "de")
    assert "<b>hier</b>" in Reader(render.waiting(say)).text
    assert "<img src=x onerror=y>" in Reader(render.answer(say, ranked(1.0), {}, 1)).text


# -- probabilities --------------------------------------------------------------------------------------------------


def test_the_first_class_is_said_and_all_are_listed() -> None:
    html = render.answer(SAY, ranked(0.6, 0.3, 0.1), {"class 1": ["data:,a", "data:,b"]}, 40)
    reader = Reader(html)
    assert re.search(r"<p class=said role=status aria-live=polite><strong>class 0</strong> <span>60%</span>", html)
    assert [text for text in reader.text.split() if "%" in text] == ["60%", "60.0%", "30.0%", "10.0%"]
    assert reader.all("alt") == ["example of class 1"] * 2
    assert "40 classes" in reader.text


@pytest.mark.parametrize(
    ("share", "text"),
    [(0.0, "< 0.1%"), (5e-324, "< 0.1%"), (0.00099, "< 0.1%"), (0.001, "0.1%"), (0.9994, "99.9%"), (1.0, "100.0%")],
)
def test_tiny_and_huge_probabilities(share: float, text: str) -> None:
    texts = Reader(render.answer(SAY, Ranked(("a",), (share,)), {}, 1)).text.split("\n")
    assert texts.count(text) == 1


@given(st.lists(st.floats(0, 1), min_size=1, max_size=5))
def test_bars_are_as_long_as_what_they_show(shares: list[float]) -> None:
    styles = Reader(render.answer(SAY, ranked(*shares), {}, 5)).all("style")
    widths = [float(re.fullmatch(r"width:(\d+\.\d\d)%", str(style)).group(1)) for style in styles]  # type: ignore[union-attr]
    assert widths == pytest.approx([100 * share for share in shares], abs=0.0051)


def test_one_class_and_five_alike() -> None:
    assert Reader(render.answer(SAY, ranked(1.0), {}, 1)).tags.count("li") == 1
    alike = Reader(render.answer(SAY, ranked(*[0.2] * 5), {}, 5))
    assert alike.text.count("20.0%") == 5
    assert len(set(alike.all("style"))) == 1


def test_it_says_where_there_are_no_examples() -> None:
    missing = "Examples of each class are not shown"
    assert missing in render.answer(SAY, ranked(0.9, 0.1), {}, 2)
    assert missing in render.answer(SAY, ranked(0.9, 0.1), {"class 0": ()}, 2)
    assert missing not in render.answer(SAY, ranked(0.9, 0.1), {"class 1": ["data:,a"]}, 2)


# -- accuracy at a keep rate ----------------------------------------------------------------------------------------

KNOWN = (stored(0.25, 0.71), stored(0.5, 0.82), stored(1.0, 0.93))


def test_the_accuracy_of_the_very_rate() -> None:
    text = price(0.5, *KNOWN)
    assert "82.0%" in text
    assert "200 test photographs" in text
    assert "71.0%" not in text
    assert "82.0%" in price(0.5 + 1e-9, *KNOWN)  # a slider is a float


@pytest.mark.parametrize(
    ("rate", "accuracy", "about"),
    [(0.4, "71.0% – 82.0%", "at 25% and 50%"), (0.75, "82.0% – 93.0%", "at 50% and 100%"),
     (0.01, "–", "not evaluated here; 71.0% at 25%"), (0.2499, "–", "not evaluated here; 71.0% at 25%")],
)  # fmt: skip
def test_the_accuracy_of_the_rates_beside_it(rate: float, accuracy: str, about: str) -> None:
    text = price(rate, *KNOWN)
    assert accuracy in text.split("\n")
    assert about in text


def test_beyond_the_highest_rate_the_nearest_is_told() -> None:
    text = price(0.9, *KNOWN[:2])
    assert "–" in text.split("\n")
    assert "not evaluated here; 82.0% at 50%" in text


def test_a_rate_a_location_is_compared_as_a_whole() -> None:
    known = (stored((0.9, 0.5), 0.8), stored(0.7, 0.6))
    assert "80.0%" in price((0.9, 0.5), *known)
    assert "not evaluated" in price((0.5, 0.9), *known)
    between = price(0.7, *known)
    assert "60.0%" in between
    assert "80.0%" not in price(0.75, *known)  # the rates a location are no neighbour of one for all


def test_without_an_evaluation_it_says_how_to_get_one() -> None:
    text = price(0.5)
    assert "–" in text.split("\n")
    assert "clca evaluate RUN" in text


@pytest.mark.parametrize(("share", "text"), [(1.0, "every patch is kept"), (0.5, "50% of"), (0.9990, "100% of")])
def test_the_cost_beside_keeping_every_patch(share: float, text: str) -> None:
    assert text in price(0.5, share=share)


@given(gmacs=st.floats(1e-6, 1e6), milliseconds=st.floats(1e-3, 1e6))
def test_cost_and_time_have_three_figures(gmacs: float, milliseconds: float) -> None:
    text = price(0.5, gmacs=gmacs, milliseconds=milliseconds)
    cost, time = re.search(r"(\S+) GMACs", text), re.search(r"(\S+) ms", text)
    assert cost is not None
    assert time is not None
    assert float(cost[1]) == pytest.approx(gmacs, rel=0.0051)
    assert float(time[1]) == pytest.approx(milliseconds, rel=0.0051)


# -- depths, tables, pictures ---------------------------------------------------------------------------------------


class _Explained:
    target = NASTY

    def __init__(self, *logits: float) -> None:
        self.depths = tuple(DepthShare(block, logit, 0.5) for block, logit in enumerate(logits))


def depths(*logits: float) -> str:
    explained: Any = _Explained(*logits)
    return render.depths(SAY, explained)


def test_depths_speak_for_or_against() -> None:
    html = depths(2.0, -4.0, 0.0)
    reader = Reader(html)
    assert NASTY in reader.text
    assert [text for text in reader.text.split("\n") if text[:1] in "+-" and text] == ["+2.00", "-4.00", "+0.00"]
    assert reader.all("style") == ["width:50.00%", "width:100.00%", "width:0.00%"]
    assert [each for each in reader.all("class") if each and each.startswith("bar ")][:2] == ["bar for", "bar against"]
    assert depths() == ""
    assert "width:0.00%" in depths(0.0, 0.0)  # nothing to divide by


def test_the_last_cell_of_a_short_row_goes_over_the_rest() -> None:
    html = render.table(["a", "b", "c"], [[1, 2, 3], ["x", "why"]])
    assert html.count("colspan") == 1
    assert "<td class=wide colspan=2>why</td>" in html
    assert render.table(["a"], []).endswith("<tbody></tbody></table></div>")


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "CMYK", "1"])
def test_a_picture_is_small_data(mode: str) -> None:
    import base64
    import io

    picture = Image.fromarray(np.zeros((900, 300, 3), np.uint8)).convert(mode)
    address = render.address_of(picture, 160)
    kind, _, data = address.partition(";base64,")
    assert kind == "data:image/webp"
    with Image.open(io.BytesIO(base64.b64decode(data))) as found:
        assert found.size == (53, 160)
    assert picture.size == (300, 900)  # not changed itself
