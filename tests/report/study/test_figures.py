"""What each figure shows: the numbers it is given, readable in black and white, for whole and for meagre studies."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.collections import PathCollection
from study_maker import make_study

from clca.plots.axes import plain_number, spread, thinned
from clca.plots.figure import DARK, LIGHT, Mark, Panel, Picture, panel_svgs, plain_style, swatch, write_files
from clca.reductions import list_reductions
from clca.report.published import published
from clca.report.study.figures import Numbers, study_figures
from clca.report.study.figures.accuracy_cost import accuracy_gmacs
from clca.report.study.figures.cells import MOST_PANELS, panel_keys, pooled
from clca.report.study.figures.marks import ARMS, of_arm, of_reduction, reductions_in_order
from clca.report.study.gradients import gradients
from clca.report.study.numbers import gain_summary, over_seeds, paired_gains
from clca.report.study.settings import by_default, finished_runs
from clca.study.results.table import read_table

pytestmark = pytest.mark.slow


def numbers_of(folder: Path, axes: dict[str, list[str]] | None = None) -> Numbers:
    table = read_table(folder)
    pairs = paired_gains(table)
    return Numbers(
        finished=table[table["state"] == "finished"],
        default=by_default(finished_runs(table)),
        cells=over_seeds(table),
        pairs=pairs,
        by_reduction=gain_summary(pairs, ["reduction"]),
        by_rate=gain_summary(pairs, ["keep_rate"]),
        everything=gain_summary(pairs),
        gradients=gradients(folder, table),
        published=published(),
        axes=axes or {},
    )


def drawn(panel: Panel) -> Any:
    """A panel's axes, drawn."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with plain_style("test"):
        figure = Figure()
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        panel.draw(axes)
    return axes


MEAGRE = {
    "one run": {"reductions": ("evit",), "keep_rates": (0.5,), "sizes": (64,), "seeds": (0,), "arms": ("base",)},
    "only base": {"arms": ("base",), "seeds": (0,)},
    "only CLCA": {"arms": ("clca",), "seeds": (0,)},
    "one size, one seed": {"sizes": (64,), "seeds": (0,)},
    "dense only": {"reductions": ("none",)},
    "nothing logged": {"metrics": False, "seeds": (0, 1)},
    "a reduction of another's": {"reductions": ("none", "evit", "tome"), "failed": range(0, 60, 2)},
    "five sets, nine backbones": {
        "data": ("a", "b", "c", "d", "e"), "backbones": tuple(f"vit_{k}" for k in range(9)), "reductions": ("evit",),
        "keep_rates": (0.5, 0.1), "seeds": (0,), "metrics": False, "missing": range(0, 300, 7),
    },
}  # fmt: skip


@pytest.mark.parametrize("name", MEAGRE)
def test_a_meagre_study_has_the_figures_there_is_something_for(name: str, tmp_path: Path) -> None:
    numbers = numbers_of(make_study(tmp_path / "s", **MEAGRE[name]))
    pictures, absent = study_figures(numbers)
    names = {re.sub(r"^keep-rates-.*", "keep-rates", picture.name) for picture in pictures}
    expected = {"accuracy-gmacs", "accuracy-time", "accuracy-boxes", "keep-rates"}
    expected |= {"paired-gain"} if len(numbers.pairs) else set()
    expected |= {"gradients"} if MEAGRE[name].get("metrics", True) else set()
    assert names == expected
    assert len(names) + len(absent) == 6
    for picture in pictures:
        assert picture.panels
        assert picture.caption
        drawn(picture.panels[0])


def test_nothing_finished_leaves_all_figures_out_and_says_so(tmp_path: Path) -> None:
    folder = make_study(tmp_path / "s", reductions=("evit",), keep_rates=(0.5,), sizes=(64,), seeds=(0,), failed=(0, 1))
    pictures, absent = study_figures(numbers_of(folder))
    assert pictures == []
    assert len(absent) == 6
    assert all("left out, because" in sentence for sentence in absent)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Numbers:
    folder = make_study(
        tmp_path_factory.mktemp("small") / "s", data=("cotton80",), backbones=("deit3_base_patch16_224.fb_in1k",),
        reductions=("none", "evit", "sit"), keep_rates=(0.5, 0.1), sizes=(448,), seeds=(0, 1), arms=ARMS,
    )  # fmt: skip
    return numbers_of(folder, {"what": ["a", "b"]})


def picture_of(numbers: Numbers, name: str) -> Picture:
    return next(picture for picture in study_figures(numbers)[0] if picture.name == name)


def test_accuracy_against_cost_shows_each_mean_at_its_cost(small: Numbers) -> None:
    (panel,) = picture_of(small, "accuracy-gmacs").panels
    axes = drawn(panel)
    points = {(round(x, 6), round(y, 6)) for line in axes.lines for x, y in zip(*line.get_data(), strict=True)}
    shown = small.cells[small.cells["arm"].isin(["base", "clca"])]
    assert points == {(round(x, 6), round(y, 6)) for x, y in zip(shown["gmacs"], shown["top1_mean"], strict=True)}


def test_published_results_of_the_set_stand_beside_ours(small: Numbers) -> None:
    picture = picture_of(small, "accuracy-gmacs")
    known = published()
    theirs = known[(known["data"] == "cotton80") & known["gmacs"].notna()]
    assert len(theirs)
    letters = dict(re.findall(r"(\b[a-z]) ([A-Z][^,)]*(?:, keep \d+ %)?)", picture.caption))
    assert set(letters.values()) == set(theirs["method"])
    texts = [text.get_text() for text in drawn(picture.panels[0]).texts]
    assert set(letters) <= set(texts)
    assert "54.6 % at 448" in texts  # TransFG, whose cost lies beyond the panel
    axes = drawn(picture.panels[0])
    moved = [tuple(dots.get_offsets()[0]) for dots in axes.collections if isinstance(dots, PathCollection)]
    costs = {(row["gmacs"], row["top1"]) for row in theirs.to_dict("records")}
    assert (78.5, 52.5) not in moved  # where it is
    assert moved
    assert set(moved) <= costs  # where they would hide another letter, a dot says where they belong
    elsewhere = small.cells.assign(data="leaves")
    other = accuracy_gmacs(elsewhere, known)
    assert other is not None
    assert "Letters" not in other.caption


def test_only_rates_of_reductions_have_a_place_by_keep_rate(small: Numbers) -> None:
    rates = {f"{rate:g}" for rate in small.cells.loc[small.cells["reduction"] != "none", "keep_rate"]}
    axes = drawn(picture_of(small, "keep-rates").panels[0])
    assert {text.get_text() for text in axes.get_xticklabels()} == rates
    listed = ", ".join(sorted(rates, key=float, reverse=True))
    assert f"Lines join keep rates ({listed});" in picture_of(small, "accuracy-gmacs").caption


def test_paired_gains_show_mean_interval_count_and_p(small: Numbers) -> None:
    picture = picture_of(small, "paired-gain")
    axes = drawn(picture.panels[0])
    means = [line.get_xdata()[0] for line in axes.lines if line.get_marker() == "D"]
    wanted = {row["reduction"]: row for row in small.by_reduction.to_dict("records")}
    order = [*reductions_in_order(wanted)]
    assert means[:-1] == [wanted[name]["mean"] for name in order]
    assert means[-1] == small.everything["mean"][0]
    beside = [text.get_text() for text in axes.child_axes[0].get_yticklabels()]
    assert beside[-1].startswith(f"n {len(small.pairs)}, p ")
    assert "sit −" in picture.panels[0].alt or "sit -" in picture.panels[0].alt


def test_boxes_are_of_every_finished_run(small: Numbers) -> None:
    axes = drawn(picture_of(small, "accuracy-boxes").panels[0])
    points = sorted(x for line in axes.lines if line.get_linestyle() == "None" for x in line.get_xdata())
    assert points == pytest.approx(sorted(100 * small.finished["top1"]))


def test_an_axis_of_the_study_s_own_gets_a_picture(small: Numbers) -> None:
    finished = small.finished.assign(**{"axis.what": np.where(small.finished["seed"] == 0, "a", "b")})
    numbers = Numbers(**{**vars(small), "finished": finished})
    axes = drawn(picture_of(numbers, "by-what").panels[0])
    assert [text.get_text() for text in axes.get_yticklabels()] == ["a", "b"]


def test_sets_whose_names_are_not_ascii_keep_their_own_files(small: Numbers) -> None:
    several = [small.cells.assign(data=name) for name in ("大豆", "小麦", "棉花", "水稻", "玉米")]
    numbers = Numbers(**{**vars(small), "cells": pd.concat(several, ignore_index=True)})
    names = [picture.name for picture in study_figures(numbers)[0]]
    assert len([name for name in names if name.startswith("keep-rates-")]) == 5
    assert len(set(names)) == len(names)
    assert all(name.isascii() for name in names)


def test_letters_and_their_numbers_lie_clear_of_one_another(small: Numbers) -> None:
    for name in ("cotton80", "soyageing", "soygene", "soyglobal", "soylocal"):
        picture = accuracy_gmacs(small.cells.assign(data=name), published())
        assert picture is not None
        axes = drawn(picture.panels[0])
        axes.figure.canvas.draw()
        boxes = [(text.get_text(), text.get_window_extent()) for text in axes.texts]
        assert len(boxes) > 2
        assert [(one[0], other[0]) for one, other in combinations(boxes, 2) if one[1].overlaps(other[1])] == []


def test_gradients_have_a_line_and_a_band_an_arm(small: Numbers) -> None:
    picture = picture_of(small, "gradients")
    assert [mark.label for mark in picture.legend] == ["base", "CLA alone", "CLC alone", "CLCA"]
    axes = drawn(picture.panels[0])
    assert len(axes.lines) == len(axes.collections) == 4
    assert axes.get_yscale() == "log"
    base, *_, clca = axes.lines
    assert np.median(base.get_ydata()) > np.median(clca.get_ydata())


def test_the_caption_calls_time_approximate_and_names_the_device(small: Numbers) -> None:
    caption = picture_of(small, "accuracy-time").caption
    assert "on cpu" in caption
    assert "approximate" in caption


def test_arms_and_reductions_differ_without_colour() -> None:
    names = [name for name in list_reductions() if name != "none"]
    assert len({of_reduction(name).marker for name in names}) == len(names)
    assert len({(of_arm(arm).marker, of_arm(arm).line, of_arm(arm).filled) for arm in ARMS}) == len(ARMS)
    assert of_reduction("evit", "base").filled is False
    assert of_reduction("evit", "base").line != of_reduction("evit", "clca").line
    assert of_reduction("a <new> one").colour in LIGHT.values()


def test_every_colour_of_a_mark_turns_with_the_page() -> None:
    assert LIGHT.keys() == DARK.keys()
    for mark in [of_arm(arm) for arm in ARMS] + [of_reduction(name) for name in list_reductions()]:
        assert mark.colour in LIGHT.values()
        assert "#" not in swatch(mark)
        ElementTree.fromstring(swatch(mark))


def contrast(one: str, other: str) -> float:
    """WCAG's ratio of two colours."""

    def light(colour: str) -> float:
        parts = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((light(one), light(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize(("inks", "text", "marks"), [(LIGHT, 4.5, 2.0), (DARK, 4.5, 3.0)])
def test_text_and_marks_stand_out_from_the_page(inks: dict[str, str], text: float, marks: float) -> None:
    for name, colour in inks.items():
        if name in ("ink", "faint"):
            assert contrast(colour, inks["paper"]) >= text, name
        elif name.startswith("c-"):
            assert contrast(colour, inks["paper"]) >= marks, name


def awkward(axes: Any) -> None:
    axes.plot([1, 2], [1, 2], marker="o", color="#0072b2")
    axes.set_xlabel("a $x$ <y> & 'z'")


def test_a_panel_becomes_a_small_svg_that_says_what_it_is() -> None:
    picture = Picture("p", "T", "C", [Panel("one <&>", awkward, 'says "this" & <that>')], [Mark("m", "#0072b2")])
    (svg,) = panel_svgs(picture)
    root = ElementTree.fromstring(svg)
    assert root.get("role") == "img"
    said = {element.get("id"): element.text for element in root if element.tag in ("title", "desc")}
    assert [said[name] for name in (root.get("aria-labelledby") or "").split()] == ["one <&>", 'says "this" & <that>']
    assert "a $x$ <y> & 'z'" in [element.text for element in root.iter("text")]  # text, not outlines, nor mathematics
    assert "font-family" not in svg
    assert "#0072b2" not in svg
    assert "var(--c-blue)" in svg
    assert len(svg) < 12_000
    assert panel_svgs(picture) == [svg]
    ids = [element.get("id") for element in root.iter() if element.get("id")]
    assert all(name and name.startswith("p-1-") for name in ids)


def test_figures_of_one_name_are_the_same_bytes(tmp_path: Path) -> None:
    picture = Picture("p", "T", "C", [Panel("one", awkward, "x")] * 2, [Mark("m", "#0072b2")])
    first = [path.read_bytes() for path in write_files(picture, tmp_path)]
    assert [path.read_bytes() for path in write_files(picture, tmp_path)] == first
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p.pdf", "p.png"]


def cells(backbones: list[str], extra: Callable[[str], bool] = lambda name: True) -> pd.DataFrame:
    rows = [
        {"data": "a", "img_size": 64, "backbone": name, "reduction": "evit", "arm": arm, "keep_rate": 0.5,
         "top1_mean": 10.0 * place, "n": 2}
        for place, name in enumerate(backbones)
        for arm in ("base", "clca")
        if arm == "base" or extra(name)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_a_mean_over_fewer_backbones_than_its_neighbours_is_left_out() -> None:
    points, left_out = pooled(cells(["x", "y", "z"], lambda name: name != "y"), ["data", "img_size"], ["top1_mean"])
    assert left_out == 1
    assert points[["arm", "top1_mean", "backbones", "n"]].to_dict("records") == [
        {"arm": "base", "top1_mean": 10.0, "backbones": 3, "n": 6}
    ]


@pytest.mark.parametrize(("count", "keys"), [(MOST_PANELS, 3), (MOST_PANELS + 1, 2)])
def test_backbones_share_a_panel_when_there_are_many(count: int, keys: int) -> None:
    assert len(panel_keys(cells([f"vit_{k}" for k in range(count)]))) == keys


@settings(deadline=None)
@given(length=st.integers(1, 3000), most=st.integers(2, 400))
def test_thinning_keeps_order_and_ends(length: int, most: int) -> None:
    places = thinned(length, most)
    assert places == sorted(set(places))
    assert len(places) == min(length, most)
    assert (places[0], places[-1]) == (0, length - 1)


@settings(deadline=None)
@given(count=st.integers(0, 500), width=st.floats(0.01, 1))
def test_spread_points_stay_within_their_row(count: int, width: float) -> None:
    places = spread(count, width)
    assert len(places) == count
    assert all(abs(place) <= width / 2 + 1e-9 for place in places)


@pytest.mark.parametrize(("value", "text"), [(0, "0"), (0.25, "0.25"), (1200.0, "1200"), (2e6, "2e6"), (1e-5, "1e-5")])
def test_numbers_on_axes_are_plain(value: float, text: str) -> None:
    assert plain_number(value) == text
