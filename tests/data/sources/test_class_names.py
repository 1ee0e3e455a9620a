"""Two names of classes that look the same are refused, and shown such that the difference is seen."""

import os
import re
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import clca.data
from clca.data.checks.report import check
from clca.data.sources.class_names import describe_similar, refuse_lookalikes, visible_difference
from clca.data.sources.folder_csv import read_listing
from clca.errors import ClcaError

LOOKALIKES = {
    "two blanks": ("Cabernet Franc", "Cabernet  Franc", r"Cabernet\x20\x20Franc"),
    "a blank at the end": ("Merlot", "Merlot ", r"Merlot\x20"),
    "a blank at the beginning": ("Merlot", " Merlot", r"\x20Merlot"),
    "a no-break space": ("Cabernet Franc", "Cabernet\u00a0Franc", r"Cabernet\xa0Franc"),
    "a narrow no-break space": ("Cabernet Franc", "Cabernet\u202fFranc", r"Cabernet\u202fFranc"),
    "an ideographic space": ("Cabernet Franc", "Cabernet\u3000Franc", r"Cabernet\u3000Franc"),
    "a zero-width space": ("Merlot", "Mer\u200blot", r"Mer\u200blot"),
    "a soft hyphen": ("Merlot", "Mer\u00adlot", r"Mer\xadlot"),
    "a byte order mark": ("Merlot", "\ufeffMerlot", r"\ufeffMerlot"),
    "a variation selector": ("Merlot", "Merlot\ufe0f", r"Merlot\ufe0f"),
    "a tag": ("Merlot", "Merlot\U000e0041", r"Merlot\U000e0041"),
    "a Hangul filler": ("Merlot", "Merlot\u3164", r"Merlot\u3164"),
    "a Cyrillic letter": ("Merlot", "M\u0435rlot", r"M\u0435rlot"),
    "a no-break hyphen": ("Pinot-Noir", "Pinot\u2011Noir", r"Pinot\u2011Noir"),
    "separate accents": ("Ros\u00e9", "Rose\u0301", r"Rose\u0301"),
    "both": ("Ros\u00e9", "Rose\u200b\u0301 ", r"Rose\u200b\u0301\x20"),
}


@pytest.mark.parametrize("kind", LOOKALIKES)
def test_folders_whose_names_look_the_same_are_refused(tmp_path: Path, kind: str) -> None:
    first, second, seen = LOOKALIKES[kind]
    for name in (first, second, "Gamay"):
        (tmp_path / "train" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "train" / name / "1.png")
    if len(os.listdir(tmp_path / "train")) < 3:
        pytest.skip("this disk takes the two for one name")
    with pytest.raises(ClcaError) as caught:
        read_listing(tmp_path)
    line = str(caught.value)
    assert f"'{seen}'" in line
    assert "\n" not in line
    assert line.startswith(f"{tmp_path}: two classes look the same, ")
    assert re.search("rename one folder, or merge the two$|rename all at once: convmv", line)
    shown = line.removeprefix(f"{tmp_path}: two classes look the same, ")
    assert shown.isprintable()
    assert " ".join(shown.split()) == shown  # nothing is lost where blanks are merged, as in a log


@pytest.mark.parametrize("kind", sorted({*LOOKALIKES} - {"a blank at the end", "a blank at the beginning"}))
def test_labels_of_a_csv_file_that_look_the_same_are_refused(tmp_path: Path, kind: str) -> None:
    first, second, seen = LOOKALIKES[kind]
    for number in range(3):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{number}.png")
    labels = (first, second.strip(), "Gamay")
    rows = [f"{number}.png,{label}" for number, label in enumerate(labels)]
    (tmp_path / "list.csv").write_text("\n".join(["path,label", *rows]), "utf-8")
    with pytest.raises(ClcaError, match=r"use one (name for both in this file|form)$") as caught:
        read_listing(tmp_path / "list.csv")
    assert seen.removesuffix(r"\x20") in str(caught.value)


def test_a_blank_around_a_label_is_none_of_it(tmp_path: Path) -> None:
    for number in range(4):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{number}.png")
    (tmp_path / "list.csv").write_text("path,label\n0.png,a\n1.png,a \n2.png,\u00a0b\n3.png,b\n", "utf-8")
    assert read_listing(tmp_path / "list.csv").classes == ["a", "b"]


SIMILAR = [
    ("Merlot", "merlot"),
    ("STRASSE", "straße"),
    ("Merlot", "Ｍerlot"),
    ("Pinot-Noir", "Pinot–Noir"),
    ("Granny's", "Granny’s"),
    ("H2", "H²"),
]


@pytest.mark.parametrize(("first", "second"), SIMILAR)
def test_names_that_differ_by_case_or_form_cause_a_warning(tmp_path: Path, first: str, second: str) -> None:
    for name in (first, second):
        for number in range(5):
            (tmp_path / name).mkdir(exist_ok=True)
            Image.new("RGB", (8, 8), (number, 9, 9)).save(tmp_path / name / f"{number}.png")
    if len(os.listdir(tmp_path)) < 2:
        pytest.skip("this disk takes the two for one name")
    names = " and ".join(f"'{name}'" for name in sorted((first, second)))
    line = f"{tmp_path}: 1 pair(s) of classes differ only by case or form: {names}; merge them if they are one"
    with pytest.warns(UserWarning, match="differ only by case or form") as caught:
        clca.data.open(tmp_path)
    assert [str(one.message) for one in caught] == [line]
    if (first, second) == SIMILAR[0]:
        report = check(tmp_path, progress=False)
        assert line in report.warnings
        assert report.errors == []


@pytest.mark.parametrize(
    "names", [["Merlot", "Merlot 2", "Merlot-2"], ["α", "a"], ["Rosé", "Rose"], ["赤霞珠", "赤霞朱"], ["1", "01", "10"]]
)
def test_other_names_are_left_alone(names: list[str]) -> None:
    refuse_lookalikes(Path(), names)
    assert describe_similar(Path(), names) == []


LETTERS = st.text(st.sampled_from("ab é\u0301\u200b\u00a0\u00ad\u0430"), min_size=1, max_size=6)


@given(LETTERS, LETTERS)
def test_what_is_refused_is_shown_differently(first: str, second: str) -> None:
    try:
        refuse_lookalikes(Path(), [first, second])
    except ClcaError:
        one, other = visible_difference(first, second)
        assert one != other
        assert " ".join(one.split()) != " ".join(other.split()) or unicodedata.normalize("NFC", one) != one


@given(LETTERS, st.sampled_from(["\u200b", "\u00ad", "\u2060", "\ufeff", "\ufe0f"]), st.integers(0, 6))
def test_an_invisible_character_anywhere_makes_no_other_class(name: str, invisible: str, place: int) -> None:
    other = name[:place] + invisible + name[place:]
    with pytest.raises(ClcaError, match="two classes look the same"):
        refuse_lookalikes(Path(), [name, other])
