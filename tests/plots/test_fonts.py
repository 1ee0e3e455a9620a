"""Names in pictures: drawn with a font of the machine that has their characters."""

import warnings
from pathlib import Path

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from clca.plots import fonts
from clca.plots.confusion import write_confusion_picture
from clca.plots.figure import write_files
from clca.report.run.figures import confusion

BEAN, FLOWER, RICE = "豆花米"
FAMILY = "WenQuanYi Zen Hei"  # one that is looked for


@pytest.fixture
def only_squares(tmp_path, monkeypatch) -> Path:
    """A machine whose only font beside matplotlib's own is one of two characters, both of them black squares."""
    pen = TTGlyphPen(None)
    for move, place in zip((pen.moveTo, pen.lineTo, pen.lineTo, pen.lineTo), ((0, 0), (0, 900), (900, 900), (900, 0)),
                           strict=True):  # fmt: skip
        move(place)
    pen.closePath()
    square, names = pen.glyph(), [".notdef", "bean", "flower"]
    font = FontBuilder(1000)
    font.setupGlyphOrder(names)
    font.setupCharacterMap({ord(BEAN): "bean", ord(FLOWER): "flower"})
    font.setupGlyf(dict.fromkeys(names, square))
    font.setupHorizontalMetrics(dict.fromkeys(names, (1000, 0)))
    font.setupHorizontalHeader(ascent=900, descent=-100)
    font.setupNameTable({"familyName": FAMILY, "styleName": "Regular", "psName": "WenQuanYiZenHei-Regular"})
    font.setupOS2(sTypoAscender=900, sTypoDescender=-100, usWinAscent=900, usWinDescent=100)
    font.setupPost()
    path = tmp_path / "squares.ttf"
    font.save(path)
    own = [one for one in font_manager.fontManager.ttflist if "mpl-data" in one.fname]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", own)
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: [str(path), str(tmp_path / "gone.ttf")])
    monkeypatch.setattr(fonts, "_warned", False)
    fonts._installed.cache_clear()
    yield path
    fonts._installed.cache_clear()


def a_figure(*texts: str) -> Figure:
    figure = Figure(figsize=(2, 2))
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1), frameon=False)
    axes.set_yticks([])
    axes.set_xlim(-0.5, len(texts) - 0.5)
    axes.set_xticks(np.arange(len(texts)), texts, fontsize=20)
    axes.tick_params(direction="in", pad=-60, length=0)
    return figure


def families(figure: Figure) -> dict[str, list[str]]:
    return {text.get_text(): text.get_fontfamily() for text in figure.findobj(Text) if text.get_text()}


def test_what_the_own_font_lacks_comes_from_one_of_the_machine_and_what_it_has_from_itself(only_squares, tmp_path):
    figure = a_figure(f"{BEAN}{FLOWER}", "± b")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fonts.save_figure(figure, tmp_path / "a.png", format="png")
    there = families(figure)
    assert there[BEAN + FLOWER][-1] == FAMILY
    left = np.asarray(Image.open(tmp_path / "a.png").convert("L"))[:, :100]
    square = (20 * 100 / 72) ** 2 * 0.81
    assert (left < 128).sum() == pytest.approx(2 * square, rel=0.1)


def test_what_no_font_has_is_warned_of_once_with_what_to_install(only_squares, tmp_path):
    with pytest.warns(UserWarning, match=f"^pictures show {RICE} as boxes, .*fonts-noto-cjk.*$") as caught:
        fonts.save_figure(a_figure(f"{BEAN}{RICE}"), tmp_path / "a.png", format="png")
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fonts.save_figure(a_figure(f"{BEAN}{RICE}"), tmp_path / "b.png", format="png")


def test_an_svg_leaves_its_text_to_the_browser_and_does_not_warn(only_squares, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fonts.save_figure(a_figure(RICE), tmp_path / "a.svg", format="svg")


def test_names_of_classes_in_pictures_of_runs(only_squares, tmp_path):
    counts, names = np.array([[3, 1], [0, 4]]), [BEAN, FLOWER]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write_confusion_picture(tmp_path / "confusion.png", counts, names)
        (tmp_path / "report").mkdir()
        written = write_files(confusion(counts.tolist(), names), tmp_path / "report")
    assert FAMILY.replace(" ", "").encode() in written[1].read_bytes()


def test_other_warnings_are_passed_on(only_squares, tmp_path, monkeypatch):
    figure = a_figure("a")
    genuine = figure.savefig

    def warning(*args, **kwargs):
        warnings.warn("something else", UserWarning, stacklevel=1)
        genuine(*args, **kwargs)

    monkeypatch.setattr(figure, "savefig", warning)
    with pytest.warns(UserWarning, match="^something else$"):
        fonts.save_figure(figure, tmp_path / "a.png", format="png")
