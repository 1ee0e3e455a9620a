"""The published numbers, and the settings that they are held against."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import clca
from clca.report.published import JOINED, NINE, join, plain, published

DEIT3 = "deit3_base_patch16_224.fb_in1k"


def row(**changed: object) -> dict[str, object]:
    return {
        "data": "cotton80", "backbone": DEIT3, "reduction": "evit", "keep_rate": 0.1, "img_size": 448, "arm": "clca",
        "top1": 0.566, **changed,
    }  # fmt: skip


def joined(**changed: object) -> dict[str, object]:
    return join(pd.DataFrame([row(**changed)])).iloc[0].to_dict()


def test_the_nine_are_those_of_the_library():
    assert list(NINE) == clca.list_backbones()


def test_every_number_is_within_its_bounds_and_says_where_it_is_from():
    rows = published()
    tops = rows[rows["kind"] == "top-1"]
    assert tops["top1"].between(0, 100).all()
    assert (rows["source"].str.len() > 0).all()
    assert set(rows["kind"]) == {"top-1", "median gain"}
    assert not tops.duplicated(["method", "data", "keep_rate", "arm"]).any()
    assert rows.loc[rows["kind"] == "median gain", ["gain_low", "gain_high"]].to_numpy().tolist() == [[18, 33]]


def test_published_hands_out_a_copy():
    rows = published()
    rows["top1"] = 0.0
    assert published()["top1"].max() > 80


@pytest.mark.parametrize(
    ("changed", "top1"),
    [
        ({}, 55.6),
        ({"keep_rate": 0.7}, 67.8),
        ({"data": "soyageing"}, 87.4),
        ({"data": "soyglobal", "keep_rate": 0.7}, 58.2),
        ({"data": "soygene"}, 75.0),
        ({"data": "soygene", "arm": "base"}, 56.0),
        ({"data": "soygene", "keep_rate": 1.0}, 81.0),
        ({"data": "soygene", "keep_rate": 1.0, "arm": "base", "reduction": "none"}, 66.0),
        ({"backbone": "deit_base_patch16_224.fb_in1k", "keep_rate": 1.0, "arm": "base", "reduction": "none"}, 54.2),
        ({"backbone": "deit_base_patch16_224.fb_in1k", "keep_rate": 1.0, "arm": "base"}, 54.2),
        ({"num_clr": 1, "clc_gap": True, "clc_recover_at_last": True, "cla_width": 2}, 55.6),
        ({"keep_rates": None, "locations": "3 6 9"}, 55.6),
        ({"data": "soygene", "keep_rate": 1.0, "arm": "base", "reduction": "none", "locations": "2 8"}, 66.0),
    ],
)
def test_a_setting_of_the_paper_gets_its_number(changed, top1):
    found = joined(**changed)
    assert found["published_top1"] == top1
    assert found["difference"] == pytest.approx(56.6 - top1)


@pytest.mark.parametrize(
    "changed",
    [
        {"img_size": 224},
        {"data": "leaves"},
        {"data": "soylocal"},
        {"data": "soyageing-R1"},
        {"keep_rate": 0.5},
        {"reduction": "tome"},
        {"arm": "base"},
        {"arm": "cla"},
        {"backbone": "vit_tiny_patch16_224"},
        {"num_clr": 4},
        {"clc_gap": False},
        {"cla_width": 1},
        {"keep_rates": "0.15 0.1 0.05"},
        {"locations": "2 8"},
        {"data": None},
        {"keep_rate": None, "img_size": None},
    ],
)
def test_another_setting_gets_none(changed):
    found = joined(**changed)
    assert np.isnan(found["published_top1"])
    assert np.isnan(found["difference"])
    assert found["published_method"] is None


def test_what_the_paper_does_not_state_is_noted():
    found = joined()
    assert "backbone not stated" in found["published_note"]
    assert found["approximate"] is False
    figure = joined(data="soygene")
    assert figure["approximate"] is True
    assert "DeiT-III" in figure["published_method"]
    nine = join(pd.DataFrame([row(backbone=name) for name in NINE]))
    assert (nine["published_top1"] == 55.6).all()


def test_settings_of_a_module_that_an_arm_lacks_do_not_matter():
    base = {"data": "soygene", "arm": "base"}
    assert joined(**base, num_clr=4)["published_top1"] == joined(**base)["published_top1"] == 56.0


def test_percent_and_share_are_told_apart():
    table = pd.DataFrame([{**row(), "top1_mean": 60.0}])
    assert join(table)["difference"].item() == pytest.approx(60 - 55.6)


@settings(max_examples=25, deadline=None)
@given(
    rows=st.lists(
        st.fixed_dictionaries(
            {
                "data": st.sampled_from(["cotton80", "soygene", "leaves"]),
                "backbone": st.sampled_from([DEIT3, NINE[0], "vit_tiny"]),
                "keep_rate": st.sampled_from([0.1, 0.7, 1.0]),
                "arm": st.sampled_from(["base", "clca"]),
            }
        ),
        max_size=8,
    )
)
def test_join_keeps_every_row_in_its_place_and_does_not_care_for_their_order(rows):
    table = pd.DataFrame([row(**own, top1=number / 10) for number, own in enumerate(rows)], columns=list(row()))
    table.index = range(5, 5 + len(table))
    there = join(table)
    pd.testing.assert_frame_equal(there[table.columns], table)
    pd.testing.assert_frame_equal(join(there), there)
    pd.testing.assert_frame_equal(join(table[::-1])[::-1], there)


def test_a_table_without_the_columns_gets_blank_ones():
    assert list(join(pd.DataFrame({"x": [1]})).columns) == ["x", *JOINED]
    assert list(join(pd.DataFrame()).columns) == JOINED


def test_other_methods_best_first():
    rows = plain("soygene")
    assert rows["method"].tolist() == ["CSDNet", "ILA++", "TransFG", "SIM-Trans"]
    assert rows["top1"].is_monotonic_decreasing
    assert len(plain("leaves")) == 0
    assert "DeiT-B" in set(plain("cotton80")["method"])


def test_no_module_of_the_report_loads_torch_itself():
    """`import clca` may; the report adds nothing to it."""
    code = (
        "import sys, types; package = types.ModuleType('clca'); package.__path__ = [sys.argv[1]];"
        "sys.modules['clca'] = package;"
        "import clca.report.published, clca.report.study.tables, clca.report.study.state, clca.report.study.gradients;"
        "clca.report.published.published();"
        "bad = {'torch', 'timm', 'matplotlib', 'ray'} & set(sys.modules); assert not bad, bad"
    )
    done = subprocess.run([sys.executable, "-c", code, clca.__path__[0]], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
