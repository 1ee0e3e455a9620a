"""The five ultra-fine-grained sets in small: every layout gives the same listing, and what is missing is named."""

from pathlib import Path

import pytest
from PIL import Image

import clca.data
from clca.data.sources.folder_csv import read_listing
from clca.data.sources.ultra_fgvc import (
    IMAGE_FOLDERS,
    STAGES,
    ULTRA_FGVC,
    Published,
    looks_like_ultra_fgvc,
    read_ultra_fgvc,
)
from clca.errors import ClcaError

SMALL = Published(classes=12, train=36, test=36)
NUMERIC = [f"{c}_{i}_{'train' if i % 2 else 'test'}.png" for c in range(1, 13) for i in range(1, 7)]


def label_of(name: str) -> int:
    """From 1, as the official annotation has it."""
    return int(name.split("_")[0])


def put(folder: Path, names: list[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), "green").save(folder.parent / "pixel.png")
    content = (folder.parent / "pixel.png").read_bytes()
    (folder.parent / "pixel.png").unlink()
    for name in names:
        (folder / name).write_bytes(content)


def annotate(root: Path, names: list[str], label=label_of) -> None:
    (root / "anno").mkdir(parents=True)
    for split in ("train", "test"):
        lines = [f"{name} {label(name)}" for name in names if f"_{split}." in name]
        (root / "anno" / f"{split}.txt").write_text("\n".join(lines) + "\n")


def as_csv(root: Path, names: list[str], splits: dict[str, list[str]], label=label_of) -> None:
    root.mkdir(parents=True, exist_ok=True)
    for split, chosen in splits.items():
        rows = [f"{label(name.rpartition('/')[2]) - 1},{name}" for name in names if name in chosen]
        (root / f"{split}.csv").write_text("class_id,dir\n" + "\n".join(rows) + "\n")


def by_name(listing) -> dict[str, list[tuple[str, int]]]:
    return {split: [(path.name, label) for path, label in samples] for split, samples in listing.splits.items()}


def numeric_layout(root: Path, layout: str) -> None:
    put(root / "images", NUMERIC)
    if layout == "anno":
        annotate(root, NUMERIC)
    elif layout == "csv":
        train = [name for name in NUMERIC if "train" in name]
        as_csv(root, NUMERIC, {"train": train, "test": [name for name in NUMERIC if "test" in name]})


@pytest.mark.parametrize("name", ["cotton80", "soylocal", "soyglobal"])
@pytest.mark.parametrize("layout", ["anno", "csv", "names"])
def test_every_layout_of_the_numeric_sets_gives_the_same(tmp_path, name, layout):
    numeric_layout(tmp_path, layout)

    listing = read_ultra_fgvc(tmp_path, name, SMALL)

    assert listing.problems == []
    assert listing.classes == [str(c) for c in range(1, 13)]  # by number: label 9 is class 10
    found = by_name(listing)
    assert sorted(found["train"]) == sorted((f"{c}_{i}_train.png", c - 1) for c in range(1, 13) for i in (1, 3))
    assert found["val"] == [(f"{c}_5_train.png", c - 1) for c in range(1, 13)]  # one of three, by rule
    assert sorted(found["test"]) == sorted((f"{c}_{i}_test.png", c - 1) for c in range(1, 13) for i in (2, 4, 6))
    assert len(listing.samples("train_val")) == 36


@pytest.mark.parametrize("folder", IMAGE_FOLDERS)
def test_image_folders_have_many_names(tmp_path, folder):
    put(tmp_path / folder, NUMERIC)
    annotate(tmp_path, NUMERIC)

    listing = read_ultra_fgvc(tmp_path, "cotton80", SMALL)

    assert listing.problems == []
    assert all(path.parent == tmp_path / folder and path.is_file() for path, _ in listing.samples("train_val"))


def test_images_may_lie_in_the_root_itself(tmp_path):
    put(tmp_path, NUMERIC)

    assert read_ultra_fgvc(tmp_path, "soylocal", SMALL).problems == []


@pytest.mark.parametrize(
    ("listed", "there"),
    [
        ("{}.png", "{}.PNG"),
        ("{}.png", "{}.jpg"),
        ("images/{}.png", "{}.png"),
        ("/home/someone/cotton/images/{}.png", "{}.png"),
        ("C:\\cotton\\images\\{}.png", "{}.JPEG"),
        ("images\\{}.png", "images\\{}.png"),  # the name itself, as some make of it that unpack archives
    ],
)
def test_lists_made_on_another_machine_name_the_same_images(tmp_path, listed, there):
    stems = [name.removesuffix(".png") for name in NUMERIC]
    put(tmp_path / "images", [there.format(stem) for stem in stems])
    (tmp_path / "anno").mkdir()
    for split in ("train", "test"):
        lines = [f"{listed.format(stem)}\t{label_of(stem)}\r\n" for stem in stems if stem.endswith(split)]
        (tmp_path / "anno" / f"{split}.txt").write_text("\ufeff" + "".join(lines), newline="")
    listing = read_ultra_fgvc(tmp_path, "soylocal", SMALL)
    found = [(path, label) for samples in listing.splits.values() for path, label in samples]
    assert sorted(found) == sorted((tmp_path / "images" / there.format(stem), label_of(stem) - 1) for stem in stems)


def test_an_image_as_it_is_listed_goes_before_others_of_its_name(tmp_path):
    put(tmp_path / "images", [*NUMERIC, "1_1_train.JPG", "2_1_train.jpg"])
    annotate(tmp_path, NUMERIC)
    listing = read_ultra_fgvc(tmp_path, "soylocal", SMALL)
    assert listing.problems == []
    assert {path.suffix for samples in listing.splits.values() for path, _ in samples} == {".png"}


@pytest.mark.parametrize("how", ["folder", "broken link"])
def test_what_is_no_file_is_missing(tmp_path, how):
    put(tmp_path / "images", NUMERIC)
    annotate(tmp_path, NUMERIC)
    (tmp_path / "images" / NUMERIC[0]).unlink()
    if how == "folder":
        (tmp_path / "images" / NUMERIC[0]).mkdir()
    else:
        (tmp_path / "images" / NUMERIC[0]).symlink_to("nowhere")
    assert NUMERIC[0] in read_ultra_fgvc(tmp_path, "soylocal", SMALL).problems[0]


def test_where_no_image_is_found_it_is_said_where_they_belong(tmp_path):
    put(tmp_path / "pictures", NUMERIC)
    annotate(tmp_path, NUMERIC)
    with pytest.raises(ClcaError) as caught:
        read_ultra_fgvc(tmp_path, "soylocal", SMALL)
    assert str(caught.value) == (
        f"{tmp_path}: none of the 72 images of soylocal exists: put 1_1_train.png … into {tmp_path / 'images'}"
    )


@pytest.mark.parametrize("annotated", [True, False])
def test_a_set_one_level_further_down_is_pointed_at(tmp_path, annotated):
    put(tmp_path / "SoyLocal" / "images", NUMERIC)
    if annotated:
        annotate(tmp_path / "SoyLocal", NUMERIC)
    with pytest.raises(ClcaError) as caught:
        read_listing(tmp_path)
    assert str(caught.value) == (f"{tmp_path}: contains the data set one level down: use {tmp_path / 'SoyLocal'}")


def test_several_sets_in_a_folder_are_no_classes(tmp_path):
    for name in ("SoyLocal", "Cotton80"):
        put(tmp_path / name / "images", NUMERIC)
        annotate(tmp_path / name, NUMERIC)
    soyageing(tmp_path / "SoyAgeing")
    with pytest.raises(ClcaError) as caught:
        read_listing(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}: contains the data sets Cotton80, SoyAgeing, SoyLocal one level down: use {tmp_path / 'Cotton80'}"
    )


def test_annotations_come_before_csv_and_csv_before_names(tmp_path):
    put(tmp_path / "images", NUMERIC)
    train, test = ([name for name in NUMERIC if split in name] for split in ("train", "test"))
    as_csv(tmp_path, NUMERIC, {"train": train[:18], "test": test})
    assert len(read_ultra_fgvc(tmp_path, "cotton80", SMALL).samples("train_val")) == 18

    annotate(tmp_path, NUMERIC)
    assert len(read_ultra_fgvc(tmp_path, "cotton80", SMALL).samples("train_val")) == 36


def test_validation_files_are_honoured_where_they_are(tmp_path):
    put(tmp_path / "images", NUMERIC)
    train = [name for name in NUMERIC if "train" in name]
    val = [name for name in train if "_1_" in name]
    rest = [name for name in train if name not in val]
    test = [name for name in NUMERIC if "test" in name]
    as_csv(tmp_path, NUMERIC, {"train": rest, "val": val, "train_val": train, "test": test})

    listing = read_ultra_fgvc(tmp_path, "cotton80", SMALL)

    assert listing.problems == []
    assert {path.name for path, _ in listing.splits["val"]} == set(val)
    assert {path.name for path, _ in listing.splits["train"]} == set(rest)


def test_soygene_takes_every_fifth_image_for_validation(tmp_path):
    sizes = {"GDC008-1-001": 3, "GDC009-2-002": 5, "GDC010-1-003": 15}
    names = [f"{name}_{i}_train.png" for name, size in sizes.items() for i in range(1, size + 1)]
    names += [f"{name}_{i}_test.png" for name in sizes for i in range(16, 19)]
    put(tmp_path / "images", names)
    annotate(tmp_path, names, lambda name: list(sizes).index(name.rsplit("_", 2)[0]) + 1)

    listing = read_ultra_fgvc(tmp_path, "soygene", Published(3, 23, 9))

    assert listing.problems == []
    assert listing.classes == list(sizes)
    assert [path.name for path, _ in listing.splits["val"]] == [
        "GDC008-1-001_3_train.png",
        "GDC009-2-002_5_train.png",
        "GDC010-1-003_5_train.png",
        "GDC010-1-003_10_train.png",
        "GDC010-1-003_15_train.png",
    ]


def soyageing(root: Path, layout: str = "anno") -> None:
    everything = []
    for stage in STAGES:
        names = [
            f"yd{c:03d}_{stage}_{i}_{'train' if i <= 5 else 'test'}.png" for c in (12, 7, 30) for i in range(1, 11)
        ]
        put(root / stage / "images", names)
        everything += [f"{stage}/images/{name}" for name in names]
        if layout == "anno":
            annotate(root / stage, names, soyageing_label)
    if layout == "csv":
        train, test = ([name for name in everything if split in name] for split in ("train", "test"))
        as_csv(root, everything, {"train": train, "test": test}, soyageing_label)


def soyageing_label(name: str) -> int:
    return {"yd012": 1, "yd007": 2, "yd030": 3}[name.split("_")[0]]


@pytest.mark.parametrize("layout", ["anno", "csv"])
def test_soyageing_is_all_stages_and_each_alone(tmp_path, layout):
    soyageing(tmp_path, layout)

    whole = read_ultra_fgvc(tmp_path, "soyageing", Published(3, 75, 75))
    stages = [read_ultra_fgvc(tmp_path, f"soyageing-{stage}", Published(3, 15, 15)) for stage in STAGES]

    assert whole.problems == []
    assert whole.classes == ["yd012", "yd007", "yd030"]  # in the order of the labels
    assert len(whole.splits["val"]) == 15
    assert all("_5_train" in path.name for path, _ in whole.splits["val"])
    assert all(stage.problems == [] and stage.classes == whole.classes for stage in stages)
    for split in ("train", "val", "test"):
        together = [path for stage in stages for path, _ in stage.splits[split]]
        assert sorted(together) == sorted(path for path, _ in whole.splits[split])


def test_a_stage_folder_is_a_set_of_its_own(tmp_path):
    soyageing(tmp_path)

    assert read_listing(tmp_path / "R3").source == "soyageing-R3"
    assert read_listing(tmp_path).source == "soyageing"
    assert len(read_ultra_fgvc(tmp_path / "R3", "soyageing-R3", Published(3, 15, 15)).samples("train_val")) == 15


@pytest.mark.parametrize("layout", ["anno", "csv", "names"])
def test_missing_files_are_named_with_the_counts(tmp_path, layout):
    numeric_layout(tmp_path, layout)
    for name in ("3_1_train.png", "12_6_test.png"):
        (tmp_path / "images" / name).unlink()

    problem = read_ultra_fgvc(tmp_path, "cotton80", SMALL).problems[0]

    assert "cotton80 has 12 classes, 36 training and 36 test images, but found 12, 35 and 35" in problem
    assert "missing: 12_6_test.png, 3_1_train.png" in problem or "missing: 3_1_train.png, 12_6_test.png" in problem


def full_cotton(root: Path) -> list[str]:
    return [f"{c}_{i}_{'train' if i % 2 else 'test'}.png" for c in range(1, 81) for i in range(1, 7)]


def test_the_whole_of_cotton80_is_found_out_and_opened(tmp_path):
    put(tmp_path / "images", full_cotton(tmp_path))

    assert read_listing(tmp_path).source == "cotton80"
    assert [len(clca.data.open(tmp_path, split)) for split in clca.data.SPLITS] == [160, 80, 240, 240]

    (tmp_path / "images" / "41_4_test.png").unlink()
    with pytest.raises(ClcaError, match=r"240 test images, but found 80, 240 and 239; missing: 41_4_test\.png"):
        clca.data.open(tmp_path)
    assert len(clca.data.open(tmp_path, "test", strict=False)) == 239


def test_the_published_totals_agree():
    sets = [ULTRA_FGVC[name] for name in ("cotton80", "soylocal", "soyglobal", "soygene", "soyageing")]

    assert sum(published.classes for published in sets) == 3526
    assert sum(published.train + published.test for published in sets) == 47114
    assert set(ULTRA_FGVC) < set(clca.data.SOURCES)


def test_quoted_columns_are_columns(tmp_path):
    """As R's write.csv has them, its row names included."""
    put(tmp_path / "images", NUMERIC)
    for split in ("train", "test"):
        rows = [f'"{i}",{label_of(name) - 1},"{name}"' for i, name in enumerate(NUMERIC) if split in name]
        (tmp_path / f"{split}.csv").write_text("\n".join(['"","class_id","dir"', *rows]) + "\n")

    assert looks_like_ultra_fgvc(tmp_path)
    listing = read_ultra_fgvc(tmp_path, "soygene", SMALL)
    assert listing.problems == []
    assert listing.source == "soygene"


def test_annotations_that_are_not_utf8_are_named(tmp_path):
    for root, file, content in (
        (tmp_path / "a", "anno/train.txt", b"caf\xe9_1_train.png 1\n"),
        (tmp_path / "b", "train.csv", b"class_id,dir\n0,caf\xe9_1_train.png\n"),
    ):
        (root / file).parent.mkdir(parents=True)
        (root / file).write_bytes(content)
        with pytest.raises(ClcaError, match=rf"{file}: is not .*UTF-8.* \('utf-8' codec can't decode byte 0xe9"):
            read_ultra_fgvc(root, "soygene")


def test_mistakes_in_the_layout_are_named(tmp_path):
    (tmp_path / "anno").mkdir()
    put(tmp_path / "images", ["1_1_train.png"])
    (tmp_path / "anno" / "train.txt").write_text("1_1_train.png 1\n1_3_train.png 0\n")
    with pytest.raises(ClcaError, match=r"train\.txt, line 2: expected `name label` with a label from 1"):
        read_ultra_fgvc(tmp_path, "cotton80")

    put(tmp_path / "wrong" / "images", ["1_1_test.png"])
    with pytest.raises(ClcaError, match="odd numbers must be training"):
        read_ultra_fgvc(tmp_path / "wrong", "cotton80")

    put(tmp_path / "unnamed" / "images", [name for name in NUMERIC if label_of(name) < 5])
    with pytest.raises(ClcaError, match="no set has 4 classes: name the set with source="):
        clca.data.open(tmp_path / "unnamed")

    with pytest.raises(ClcaError, match=r"does not have the layout of soygene: expected anno/train\.txt"):
        clca.data.open(tmp_path / "unnamed", source="soygene")
