"""Groups stay on one side of every split, and folds hold every image once."""

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_runs import draw

from clca.data.checks.report import check
from clca.data.sources.grouping import (
    group_names,
    hold_out_groups,
    split_groups,
    suspected_groups,
    take_fold,
)
from clca.data.sources.splits import Samples
from clca.errors import ClcaError


@st.composite
def tables(draw: st.DrawFn) -> tuple[Samples, dict[Path, str]]:
    """A random table of images; a group may have several classes, as a session has."""
    classes = draw(st.integers(2, 5))
    rows = draw(st.lists(st.tuples(st.integers(0, classes - 1), st.integers(0, 30)), min_size=classes, max_size=80))
    rows += [(label, 31 + label) for label in range(classes)]
    samples = [(Path(f"c{label}/{place}.jpg"), label) for place, (label, _) in enumerate(rows)]
    groups = {path: f"plant {group}" for (path, _), (_, group) in zip(samples, rows, strict=True)}
    return samples, groups


@settings(max_examples=1000, deadline=None)
@given(tables())
def test_a_group_is_never_on_two_sides(table: tuple[Samples, dict[Path, str]]) -> None:
    samples, groups = table
    rest, test = hold_out_groups(samples, groups)
    train, val = hold_out_groups(rest, groups)
    splits = {"train": train, "val": val, "test": test}
    assert split_groups(splits, groups) == {}
    assert sorted(train + val + test) == sorted(samples)
    assert {label for _, label in train} == {label for _, label in samples}
    assert (rest, test) == hold_out_groups(samples, groups)


@settings(max_examples=200, deadline=None)
@given(tables(), st.integers(2, 5), st.booleans())
def test_folds_hold_every_image_once(table: tuple[Samples, dict[Path, str]], folds: int, grouped: bool) -> None:
    samples, groups = table
    known = groups if grouped else None
    try:
        parts = [take_fold(samples, folds, fold, known) for fold in range(1, folds + 1)]
    except ClcaError as error:
        assert "a class has only" in str(error)  # noqa: PT017 (only some tables have too few)
        return
    assert sorted(sample for _, held in parts for sample in held) == sorted(samples)
    for rest, held in parts:
        assert not set(rest) & set(held)
        assert len(rest) + len(held) == len(samples)
        if grouped:
            assert split_groups({"train": rest, "test": held}, groups) == {}


def test_about_one_in_five_of_each_class_is_held_out() -> None:
    samples = [(Path(f"{label}/{plant}_{number}.jpg"), label) for label in range(4) for plant in range(20)
               for number in range(3)]  # fmt: skip
    groups = {path: f"{path.parent.name}/{path.stem.split('_')[0]}" for path, _ in samples}
    rest, held = hold_out_groups(samples, groups)
    assert Counter(label for _, label in held) == dict.fromkeys(range(4), 12)
    assert len(rest) == 4 * 48
    for fold in range(1, 6):
        _, part = take_fold(samples, 5, fold, groups)
        assert Counter(label for _, label in part) == dict.fromkeys(range(4), 12)


def test_the_order_of_the_images_does_not_matter() -> None:
    samples = [(Path(f"{label}/{number}.jpg"), label) for label in range(3) for number in range(20)]
    groups = {path: str(int(path.stem) // 2 + 10 * int(path.parent.name)) for path, _ in samples}
    for known in (None, groups):
        assert sorted(take_fold(samples, 4, 2, known)[1]) == sorted(take_fold(samples[::-1], 4, 2, known)[1])
    assert sorted(hold_out_groups(samples, groups)[1]) == sorted(hold_out_groups(samples[::-1], groups)[1])


@pytest.mark.parametrize(
    ("pattern", "groups"),
    [
        (r"plant(\d+)", ["1", "1", "2"]),
        (r"plant\d+", ["plant1", "plant1", "plant2"]),
        (r"^([^/]+)/plant(\d+)", ["a 1", "a 1", "b 2"]),
        (r"(?P<pot>plant\d+)_(?P<day>\d)", ["plant1 1", "plant1 2", "plant2 1"]),
    ],
)
def test_a_group_is_what_the_pattern_finds(pattern: str, groups: list[str]) -> None:
    paths = [Path("/set/a/plant1_1.jpg"), Path("/set/a/plant1_2.jpg"), Path("/set/b/plant2_1.jpg")]
    assert list(group_names(paths, Path("/set"), pattern).values()) == groups


@pytest.mark.parametrize(
    ("pattern", "message"),
    [("(", "is not a regular expression"), ("plant3", "is not found in 2 of 2 file names, such as a/1.jpg"),
     ("(x*)", "is not found in 2 of 2")],
)  # fmt: skip
def test_a_pattern_that_cannot_be_used_is_refused(pattern: str, message: str) -> None:
    with pytest.raises(ClcaError) as refused:
        group_names([Path("/set/a/1.jpg"), Path("/set/a/2.jpg")], Path("/set"), pattern)
    assert message in str(refused.value)


def test_too_few_images_for_so_many_folds_are_refused() -> None:
    samples = [(Path(f"{label}/{number}.jpg"), label) for label in range(2) for number in range(6)]
    with pytest.raises(ClcaError, match="a class has only 6 images"):
        take_fold(samples, 7, 1)
    with pytest.raises(ClcaError, match="a class has only 3 groups"):
        take_fold(samples, 4, 1, {path: f"{label}{int(path.stem) % 3}" for path, label in samples})


@pytest.mark.parametrize(
    ("names", "suspected"),
    [
        (["plant1_1", "plant1_2", "plant2_1", "plant2_2"], ["plant1", "plant2"]),
        (["A-07a", "A-07b", "A-08a", "A-08b"], ["A-07", "A-08"]),
        (["P12 (1)", "P12 (2)", "P13 (1)", "P13 (2)"], ["P12", "P13"]),
        (["IMG_1001", "IMG_1002", "IMG_2003", "IMG_2004"], []),
        (["merlot (1)", "merlot (2)", "merlot (3)", "merlot (4)"], []),
        (["1", "2", "3", "4"], []),
    ],
)
def test_names_that_look_like_plants_across_splits_are_found(names: list[str], suspected: list[str]) -> None:
    paths = [(Path(f"x/{name}.jpg"), 0) for name in names]
    assert suspected_groups({"train": paths[::2], "test": paths[1::2]}) == suspected
    assert suspected_groups({"train": paths, "test": []}) == []


def test_data_check_points_to_plants_on_both_sides(tmp_path: Path) -> None:
    root = draw(tmp_path / "set", classes=2, images=8, splits=("all",)) / "all"
    assert not any("file names" in line for line in check(root, progress=False).warnings)
    for path in root.rglob("*.png"):
        number = int(path.stem)
        path.rename(path.with_name(f"plant{number // 4}_{number % 4}.png"))
    lines = [line for line in check(root, progress=False).warnings if "file names" in line]
    assert len(lines) == 1
    assert "photographs of 4 plants" in lines[0] or "photographs of 3 plants" in lines[0]
    assert "--group-by" in lines[0]
