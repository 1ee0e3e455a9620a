"""Folders and CSV files: what is found, how it is split by rule, and what is refused."""

import io
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from forbidden import forbidden, readable_folder
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console
from torch.utils.data import DataLoader

import clca.data
from clca.data.checks.report import check
from clca.data.sources.folder_csv import read_listing
from clca.data.sources.splits import split_by_rule, take_every_fifth
from clca.data.transforms import eval_transform
from clca.errors import ClcaError
from clca.study.plan.identity import images_fingerprint


def put(*paths: Path) -> None:
    """Write a small image to each path."""
    for number, path in enumerate(paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (6, 5), (number % 256, 100, 50)).save(path)


def folder(root: Path, counts: dict[str, dict[str, int]]) -> Path:
    for split, classes in counts.items():
        for name, count in classes.items():
            put(*(root / split / name / f"{name}_{i}.png" for i in range(count)))
    return root


def refused(root, *args, **options) -> str:
    with pytest.raises(ClcaError) as caught:
        clca.data.open(root, *args, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.filterwarnings("ignore:.*differ only by case")
def test_split_folders_are_read_as_they_are(tmp_path):
    folder(tmp_path, {"train": {"b": 3, "a": 2, "B": 1}, "val": {"a": 1}, "test": {"b": 2, "B": 1}})

    train, val, test = (clca.data.open(tmp_path, split) for split in ("train", "val", "test"))

    assert train.classes == val.classes == test.classes == ["B", "a", "b"]  # plain sorted order, as torchvision's
    assert (train.labels, val.labels, test.labels) == ([0, 1, 1, 2, 2, 2], [1], [0, 2, 2])
    assert all(path.parent.name == train.classes[label] for path, label in zip(train.paths, train.labels, strict=True))
    assert len(clca.data.open(tmp_path, "train_val")) == 7


@pytest.mark.parametrize("name", ["val", "valid", "validation", "Valid"])
def test_split_folders_have_other_names_too(tmp_path, name):
    folder(tmp_path, {"Training": {"a": 2, "b": 2}, name: {"a": 1, "b": 1}, "testing": {"a": 1}})

    assert [len(clca.data.open(tmp_path, split)) for split in ("train", "val", "test")] == [4, 2, 1]


def test_without_validation_it_is_taken_from_training(tmp_path):
    folder(tmp_path, {"train": {"a": 10, "b": 4, "c": 1}, "test": {"a": 1, "b": 1}})

    train, val, both = (clca.data.open(tmp_path, split) for split in ("train", "val", "train_val"))

    assert val.labels == [0, 0, 1]  # one in five, at least one, and none of a class that has only one
    assert set(train.paths).isdisjoint(val.paths)
    assert set(both.paths) == set(train.paths) | set(val.paths)
    assert len(both) == 15


def test_items_are_images_until_a_transform_is_set(tmp_path):
    data = clca.data.open(folder(tmp_path, {"train": {"a": 5, "b": 5}}))

    image, label = data[0]
    assert (image.mode, image.size, label) == ("RGB", (6, 5), 0)

    data.transform = eval_transform(16)
    images, labels = next(iter(DataLoader(data, batch_size=3, num_workers=1)))
    assert images.shape == (3, 3, 16, 16)
    assert labels.tolist() == [0, 0, 0]


def test_one_folder_is_split_by_rule_and_stays_so(tmp_path):
    put(*(tmp_path / name / "deep" / f"{i}.jpg" for name in ("a", "b") for i in range(20)), tmp_path / "c" / "only.JPG")
    (tmp_path / "a" / "notes.txt").write_text("not an image")
    (tmp_path / ".cache").mkdir()

    before = {split: set(clca.data.open(tmp_path, split).paths) for split in ("train", "val", "test")}
    assert [len(before[split]) for split in ("train", "val", "test")] == [27, 6, 8]
    assert clca.data.open(tmp_path).classes == ["a", "b", "c"]

    put(tmp_path / "d" / "1.png", tmp_path / "d" / "2.png")  # another class moves nobody
    assert before["test"] < set(clca.data.open(tmp_path, "test").paths)
    assert before["val"] == set(clca.data.open(tmp_path, "val").paths)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=5), st.randoms())
def test_the_rule_keeps_every_class_in_training_and_forgets_the_order(counts, random):
    samples = [(Path(f"{label}/{i}.png"), label) for label, count in enumerate(counts) for i in range(count)]

    parts = split_by_rule(samples)
    shuffled = random.sample(samples, len(samples))

    assert sorted((sample for part in parts.values() for sample in part), key=str) == sorted(samples, key=str)
    for name, part in split_by_rule(shuffled).items():
        assert set(part) == set(parts[name])
    for label, count in enumerate(counts):
        train, val, test = (sum(own == label for _, own in parts[name]) for name in ("train", "val", "test"))
        assert train >= min(count, 1)
        assert test == (max(1, round(count / 5)) if count > 1 else 0)
        assert (val > 0) == (count >= 3)
    assert take_every_fifth(samples)[1] == parts["test"]


def test_csv_with_splits(tmp_path):
    put(*(tmp_path / "photos" / f"{i}.png" for i in range(6)))
    rows = ["0.png,10,train", "1.png,9,train", "2.png,10,valid", "3.png,9,test", "4.png,9,", "5.png, 10 ,test"]
    (tmp_path / "list.csv").write_text(
        "\ufeffpath, label, split\n" + "\n".join(f"photos/{row}" for row in rows), encoding="utf-8"
    )

    train = clca.data.open(tmp_path / "list.csv")

    assert train.classes == ["9", "10"]  # whole numbers in their own order
    assert [path.name for path in train.paths] == ["0.png", "1.png", "4.png"]
    assert train.labels == [1, 0, 0]
    assert clca.data.open(tmp_path / "list.csv", "val").labels == [1]
    assert clca.data.open(tmp_path / "list.csv", "test").labels == [0, 1]


@pytest.mark.parametrize("separator", [",", ";"])
@pytest.mark.parametrize("start", ["", "\ufeff"], ids=["plain", "byte order mark"])
def test_csv_as_a_spreadsheet_on_windows_saves_it(tmp_path, separator, start):
    put(*(tmp_path / "leaves" / f"{n}.png" for n in range(4)), tmp_path / "own\\4.png")
    paths = [*(f"leaves\\{n}.png" for n in range(4)), "own\\4.png"]
    rows = [["path", "label"], *([path, "1,5" if n % 2 else "b"] for n, path in enumerate(paths))]
    if separator == ",":
        rows = [[value.replace(",", ".") for value in row] for row in rows]
    (tmp_path / "list.csv").write_text(start + "".join(separator.join(row) + "\r\n" for row in rows))
    listing = read_listing(tmp_path / "list.csv")
    assert listing.classes == ["1,5" if separator == ";" else "1.5", "b"]
    assert listing.problems == []
    found = sorted(path for samples in listing.splits.values() for path, _ in samples)
    assert found == sorted([*(tmp_path / "leaves" / f"{n}.png" for n in range(4)), tmp_path / "own\\4.png"])


def test_csv_without_splits_follows_the_rule_of_folders(tmp_path):
    paths = [tmp_path / name / f"{i}.png" for name in ("x", "y") for i in range(10)]
    put(*paths)
    lines = [f"{path.relative_to(tmp_path)},{path.parent.name}" for path in paths]
    (tmp_path / "all.csv").write_text("path,label\n" + "\n".join(lines))

    by_csv = {split: set(clca.data.open(tmp_path / "all.csv", split).paths) for split in clca.data.SPLITS}
    (tmp_path / "all.csv").unlink()
    by_folder = {split: set(clca.data.open(tmp_path, split).paths) for split in clca.data.SPLITS}

    assert by_csv == by_folder


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("file,class\na.png,x\n", "needs the columns path, label; has file, class"),
        ("path,label\na.png,x\nb.png,\n", "line 3: path or label is empty"),
        ("path,label,split\na.png,x,train\nb.png,y,exam\n", "line 3: unknown split 'exam'"),
        ("path,label\na.png,x\nb.png,y\nno.png,y\n", "1 file(s) missing, relative to the CSV file: no.png"),
        ("path,label\na.png,x\nb.png,x\n", "only one class ('x')"),
        ("path,label\na.png,x\na.png,y\n", "listed more than once"),
        ("path,label,split\na.png,x,train\nb.png,y,test\n", "test contains 1 class(es) that train lacks: 'y'"),
        ("path,label\n", "no images"),
        ("", "needs the columns path, label; has none"),
    ],
)
def test_csv_mistakes_name_file_and_line(tmp_path, text, reason):
    put(tmp_path / "a.png", tmp_path / "b.png")
    (tmp_path / "list.csv").write_text(text)

    message = refused(tmp_path / "list.csv")

    assert reason in message
    assert "list.csv" in message


def test_a_file_that_is_no_text_is_no_csv(tmp_path):
    (tmp_path / "list.csv").write_bytes(b"path,label\n\xff\xfe\x00,x")

    assert "CSV" in refused(tmp_path / "list.csv")


def test_bad_folders_are_refused_in_one_line(tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    put(tmp_path / "flat" / "1.png", tmp_path / "one" / "only" / "1.png", tmp_path / "file.png")
    folder(tmp_path / "gap", {"train": {"a": 2, "b": 2}})
    (tmp_path / "gap" / "train" / "c").mkdir()
    folder(tmp_path / "new", {"train": {"a": 2, "b": 2}, "test": {"a": 1, "fresh": 1}})
    folder(tmp_path / "zip" / "leaves", {"train": {"a": 2, "b": 2}})
    folder(tmp_path / "both", {"val": {"a": 2, "b": 2}, "valid": {"a": 2}})
    folder(tmp_path / "untested", {"train": {"a": 5, "b": 5}})

    assert "no class folders" in refused(empty)
    assert "no class folders" in refused(tmp_path / "flat")
    assert "only one class ('only')" in refused(tmp_path / "one")
    assert "no images in this class folder" in refused(tmp_path / "gap")
    assert "test contains 1 class(es) that train lacks: 'fresh'" in refused(tmp_path / "new")
    assert f"use {tmp_path / 'zip' / 'leaves'}" in refused(tmp_path / "zip")
    assert "both mean 'val'" in refused(tmp_path / "both")
    assert "no images in split 'test'; available: train (8 images), val (2 images)" in refused(
        tmp_path / "untested", "test"
    )
    assert "no such file or folder" in refused(tmp_path / "nowhere")
    assert "is a file" in refused(tmp_path / "file.png")
    assert "is not a folder" in refused(tmp_path / "file.png", source="folder")
    assert "unknown split 'exam': choose from train, val, train_val, test" in refused(tmp_path / "gap", "exam")
    assert "unknown source 'imagenet': choose from folder, csv, cotton80" in refused(empty, source="imagenet")


@pytest.mark.parametrize("splits", [("",), ("train", "test")])
def test_links_that_lead_back_add_nothing(tmp_path, splits):
    root = folder(tmp_path / "set", {split: {"merlot": 5, "pinot": 5} for split in splits})
    expected = read_listing(root).splits
    for split in splits:
        for name, target in {
            "self": ".", "again": "../merlot", "up": "..", "top": "../..", "all": "/", "other": "../pinot",
            "whole": str(root),
        }.items():  # fmt: skip
            (root / split / "merlot" / name).symlink_to(target)

    assert read_listing(root).splits == expected


def test_links_to_elsewhere_are_followed(tmp_path):
    root = folder(tmp_path / "set", {"": {"merlot": 2, "pinot": 2}})
    put(tmp_path / "more" / "deep" / "a.png")
    (root / "merlot" / "more").symlink_to(tmp_path / "more")
    (tmp_path / "more" / "deep" / "back").symlink_to("../../more")
    (root / "gamay").symlink_to("pinot")  # who wants a folder under two names has it

    listing = read_listing(root)

    found = {(path, listing.classes[label]) for part in listing.splits.values() for path, label in part}
    assert (root / "merlot" / "more" / "deep" / "a.png", "merlot") in found
    assert len(found) == 3 + 2 + 2


def test_folders_that_cannot_be_read_are_reported(monkeypatch):
    # Decoding processes run as before: another user may not be allowed to execute this Python.
    monkeypatch.setattr("clca.data.decoding.subprocess.Popen", partial(subprocess.Popen, user=os.getuid()))
    with readable_folder() as parent:
        root = folder(parent / "set", {"": {"merlot": 4, "pinot": 4}})
        put(root / "merlot" / "sub" / "a.png")
        with forbidden(root / "merlot" / "sub"):
            line = f"{root}/merlot/sub: this folder cannot be read (permission denied): change its permissions, or "
            line += "move it away"
            assert refused(root) == line
            assert check(root).errors == [line]
            assert len(read_listing(root).samples("train_val")) == 6
        with forbidden(root / "merlot"):
            assert refused(root).startswith(f"{root}/merlot: this folder cannot be read (permission denied)")
        with forbidden(root):
            assert refused(root) == f"{root}: cannot be read (permission denied)"
            assert refused(root / "merlot") == f"{root}/merlot: cannot be read (permission denied)"


def test_names_that_are_not_utf8_are_names(tmp_path):
    """As archives made elsewhere leave them; Python hands their bytes on as surrogates."""
    names = [os.fsdecode(b"caf\xe9_%d.png" % i) for i in range(5)]
    put(*(tmp_path / label / name for label in "ab" for name in names))

    parts = read_listing(tmp_path).splits

    assert {name: len(part) for name, part in parts.items()} == {"train": 6, "val": 2, "test": 2}
    assert images_fingerprint(str(tmp_path))
    report = check(tmp_path)
    assert r"a/caf\xe9_0.png" in report.near_empty
    report.render(Console(file=io.TextIOWrapper(io.BytesIO(), encoding="utf-8")))

    (tmp_path / os.fsdecode(b"caf\xe9")).mkdir()
    put(tmp_path / os.fsdecode(b"caf\xe9") / "a.png")
    line = refused(tmp_path)
    assert "the name of the class b'caf\\xe9' is not UTF-8: rename it" in line
    assert line.endswith(f"at once: convmv -f latin1 -t utf8 -r --notest {tmp_path}")


def test_a_name_that_is_too_long_is_a_file_that_is_missing(tmp_path):
    put(tmp_path / "a.png", tmp_path / "c.png")
    (tmp_path / "list.csv").write_text(f"path,label\na.png,x\n{'b' * 300}.png,y\nc.png,y\n")

    assert "1 file(s) missing, relative to the CSV file: bbb" in refused(tmp_path / "list.csv")


def test_a_name_with_a_tilde_is_no_home_folder(tmp_path, monkeypatch):
    put(*(tmp_path / name / f"{i}.png" for name in ("a", "b") for i in range(3)))
    (tmp_path / "~set.csv").write_text("path,label\n" + "".join(f"{x}/{i}.png,{x}\n" for x in "ab" for i in range(3)))
    monkeypatch.chdir(tmp_path)

    assert clca.data.open("~set.csv").classes == ["a", "b"]


def test_problems_can_be_waived(tmp_path):
    folder(tmp_path, {"train": {"a": 2, "b": 2}, "test": {"a": 1, "fresh": 1}})

    assert clca.data.open(tmp_path, "test", strict=False).labels == [0, 2]


def test_a_broken_image_is_named_when_it_is_read(tmp_path):
    folder(tmp_path, {"train": {"a": 2, "b": 2}})
    (tmp_path / "train" / "a" / "zz.jpg").write_bytes(b"")
    data = clca.data.open(tmp_path, "train_val")

    with pytest.raises(ClcaError, match=r"zz\.jpg: the file is empty"):
        data[[path.name for path in data.paths].index("zz.jpg")]


@pytest.mark.parametrize(
    ("name", "counts"), [("grapevine_leaves5", (225, 50, 125)), ("rice_bd8", (400, 80, 320))]
)  # fmt: skip
def test_real_sets_open(shared, name, counts):
    splits = [clca.data.open(shared / "data" / name, split) for split in ("train", "val", "test")]

    assert tuple(len(split) for split in splits) == counts
    assert len(splits[0].classes) == int(name[-1])
    assert splits[0][0][0].mode == "RGB"


LATIN = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def test_names_are_utf8_in_every_locale(tmp_path: Path) -> None:
    """The same classes and splits, from folders and from a CSV file, and no wrong name."""
    put(*(tmp_path / name / f"é{i}.png" for name in ("Rosé", "赤霞珠") for i in range(6)))
    rows = [f"{name}/é{i}.png,{name}" for name in ("Rosé", "赤霞珠") for i in range(6)]
    (tmp_path / "list.csv").write_text("\n".join(["path,label", *rows]), "utf-8")
    program = (
        "import sys; from clca.data.sources.folder_csv import read_listing; from clca.system.paths import as_text\n"
        "print(ascii([(found.classes, [[(as_text(path), label) for path, label in part] for part in"
        " found.splits.values()]) for found in map(read_listing, sys.argv[1:])]))"
    )
    command = [sys.executable, "-c", program, str(tmp_path), str(tmp_path / "list.csv")]
    plain, other = (
        subprocess.run(command, env=os.environ | more, capture_output=True, text=True, check=True).stdout
        for more in ({"PYTHONUTF8": "1"}, LATIN)
    )
    assert plain == other
    assert plain.count("['Ros\\xe9', '\\u8d64\\u971e\\u73e0']") == 2


def test_one_name_in_two_forms_of_unicode_is_no_two_classes(tmp_path: Path) -> None:
    for split, name in (("train", "Ros\u00e9"), ("train", "Gamay"), ("val", "Rose\u0301")):
        (tmp_path / split / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / split / name / "1.png")
    with pytest.raises(ClcaError, match=r"two classes look the same, .* rename all at once: convmv .* --nfc"):
        read_listing(tmp_path)


def test_an_image_in_training_and_in_test_causes_a_warning_with_strict_false(tmp_path: Path) -> None:
    for number in range(4):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{number}.png")
    rows = ["0.png,a,train", "1.png,b,train", "2.png,a,val", "3.png,b,test", "0.png,a,test"]
    (tmp_path / "images.csv").write_text("\n".join(["path,label,split", *rows]))
    with pytest.warns(UserWarning, match=r"1 image\(s\) are in training and in test \(0\.png\)"):
        clca.data.open(tmp_path / "images.csv", "test", strict=False)
