"""The check of a data set: its contents, damaged files and duplicates."""

import io
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from image_files import rgb_profile, tiff
from PIL import Image
from rich.console import Console

from clca.cli.main import main
from clca.data.checks.decode import Inspection, in_parallel, inspect_images
from clca.data.checks.duplicates import _close_pairs, exact_duplicates, near_duplicates
from clca.data.checks.report import CheckReport, Duplicates, check
from clca.data.datasets import Leaves
from clca.data.synthetic.leaves import write_leaves
from clca.errors import ClcaError
from clca.system.paths import shown

LEAVES = Leaves(cultivars=3, images=8, size=96, split="all")


def leaf_set(root):
    """Three classes with eight leaves each, 4 + 2 + 2."""
    for index, label in enumerate(LEAVES.labels):
        split = ("train", "train", "train", "train", "val", "val", "test", "test")[index % 8]
        folder = root / split / "abc"[label]
        folder.mkdir(parents=True, exist_ok=True)
        LEAVES.image(index).save(folder / f"{index}.png")
    return root


def rendered(report) -> str:
    out = io.StringIO()
    report.render(Console(file=out, width=200))
    return out.getvalue()


def test_a_sound_set_has_nothing_to_complain_about(tmp_path):
    report = check(leaf_set(tmp_path))

    assert report.errors == report.warnings == []
    assert report.classes == ["a", "b", "c"]
    assert report.counts == {"train": [4, 4, 4], "val": [2, 2, 2], "test": [2, 2, 2]}
    assert report.sizes == {"min": (96, 96), "median": (96, 96), "max": (96, 96)}
    assert report.kinds == {"PNG RGB": 24}
    text = rendered(report)
    assert "train 12, val 6, test 6" in text
    assert "No problems found" in text
    assert json.loads(json.dumps(report.to_dict()))["counts"]["test"] == [2, 2, 2]


def test_everything_wrong_is_found_and_named(tmp_path):
    leaf_set(tmp_path)
    train, test = tmp_path / "train", tmp_path / "test"
    (train / "a" / "cut[1].jpg").write_bytes(b"\xff\xd8\xff\xe0 not much of a picture")
    (test / "b" / "zero.png").write_bytes(b"")
    Image.new("RGB", (200, 100), (250, 250, 248)).save(train / "b" / "blank.png")
    (test / "a" / "copy.png").write_bytes((train / "a" / "0.png").read_bytes())
    LEAVES.image(9).resize((120, 120)).save(test / "c" / "again.jpg", quality=70)  # a leaf of class b, in train
    LEAVES.image(1).save(train / "a" / "saved again.jpg", quality=80)

    report = check(tmp_path)

    assert set(report.unreadable) == {"train/a/cut[1].jpg", "test/b/zero.png"}
    assert report.unreadable["test/b/zero.png"] == "the file is empty (0 bytes)"
    assert len(report.errors) == 1
    assert report.errors[0].startswith("2 file(s) cannot be read: ")
    assert report.near_empty == ["train/b/blank.png"]
    groups = {frozenset(group.paths): group for group in report.duplicates}
    assert set(groups) == {
        frozenset({"train/a/0.png", "test/a/copy.png"}),
        frozenset({"train/b/9.png", "test/c/again.jpg"}),
        frozenset({"train/a/1.png", "train/a/saved again.jpg"}),
    }
    mixed = groups[frozenset({"train/b/9.png", "test/c/again.jpg"})]
    assert (mixed.exact, mixed.splits, mixed.classes) == (False, ["test", "train"], ["b", "c"])
    assert groups[frozenset({"train/a/0.png", "test/a/copy.png"})].exact
    assert [warning.split(" image(s) ")[1].split(":")[0] for warning in report.warnings] == [
        "are nearly empty",
        "occur in more than one split",
        "occur in more than one class",
        "occur more than once within a split",
    ]
    text = rendered(report)
    for part in ("cut[1].jpg", "zero.png", "blank.png", "same image, across test and train, labelled b and c"):
        assert part in text


def test_names_are_shown_as_they_are(tmp_path):
    for name in ("[bold]", ":smile:", "red\x1b[31m"):
        (tmp_path / name).mkdir()
        for i in range(4):
            LEAVES.image(i).save(tmp_path / name / f"{i}{name}.png")
        (tmp_path / name / f"bad{name}.png").touch()

    text = rendered(check(tmp_path))

    assert "\x1b" not in text
    for name in ("[bold]", ":smile:", r"red\x1b[31m"):
        for part in (f" {name} ", f"{name}/0{name}.png", f"{name}/bad{name}.png"):
            assert part in text


def test_classes_are_compared(tmp_path):
    for name, count in (("few", 1), ("many", 60), ("some", 5)):
        (tmp_path / "train" / name).mkdir(parents=True)
        for i in range(count):
            noise = np.random.default_rng([len(name), i]).integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(noise).save(tmp_path / "train" / name / f"{i}.png")
    (tmp_path / "test" / "many").mkdir(parents=True)
    Image.new("RGB", (30, 40), "green").save(tmp_path / "test" / "many" / "0.png")
    (tmp_path / "test" / "unknown").mkdir()
    Image.new("L", (50, 20), 77).save(tmp_path / "test" / "unknown" / "0.png")

    report = check(tmp_path)

    assert report.errors == [f"{tmp_path}: test contains 1 class(es) that train lacks: 'unknown'"]
    assert "1 class(es) with fewer than 3 training images: few" in report.warnings
    assert "classes are uneven: 60 training images in the largest, 1 in the smallest" in report.warnings
    assert "2 class(es) without images in test: few, some" in report.warnings
    assert report.sizes == {"min": (16, 16), "median": (16, 16), "max": (50, 40)}
    assert report.kinds == {"PNG RGB": 67, "PNG L": 1}


def test_very_many_classes_are_summed_up(tmp_path):
    for number in range(70):
        (tmp_path / f"class-{number:02d}").mkdir()
        for i in range(3 if number == 35 else 2):
            Image.new("RGB", (4, 4), (number, i, 0)).save(tmp_path / f"class-{number:02d}" / f"{i}.png")

    text = rendered(check(tmp_path))

    assert "ten smallest and the ten largest" in text
    assert "class-35" in text
    assert "class-40" not in text


def test_no_data_set_at_all_is_one_line(tmp_path):
    with pytest.raises(ClcaError, match="no class folders"):
        check(tmp_path)
    with pytest.raises(ClcaError, match="no such file or folder"):
        check(tmp_path / "nowhere")


def test_what_training_refuses_is_an_error_in_the_table(tmp_path, capsys):
    leaf_set(tmp_path / "gap")
    (tmp_path / "gap" / "train" / "empty").mkdir()
    leaf_set(tmp_path / "untrained")
    shutil.rmtree(tmp_path / "untrained" / "train")

    gap, untrained = check(tmp_path / "gap"), check(tmp_path / "untrained")

    assert gap.counts["train"] == [4, 4, 4, 0]
    assert "empty" in rendered(gap)
    assert gap.errors == [f"{tmp_path}/gap/train/empty: no images in this class folder: add some or remove the folder"]
    assert [line.split(":")[0] for line in untrained.errors] == [
        "no images in split train, so there is nothing to train on"
    ]
    assert not any("split train" in line for line in untrained.warnings)
    codes = [main(["data", "check", str(tmp_path / name)]) for name in ("gap", "untrained")]
    assert codes == [1, 1]
    assert capsys.readouterr().err == ""


def inspected(tmp_path, pictures) -> list[Inspection]:
    paths = []
    for number, picture in enumerate(pictures):
        paths.append(tmp_path / f"{number}.png")
        picture.save(paths[-1])
    found = inspect_images(paths)
    assert all(isinstance(image, Inspection) for image in found)
    return found  # type: ignore[return-value]


def test_different_leaves_are_no_duplicates(tmp_path):
    images = inspected(tmp_path, [LEAVES.image(i) for i in range(len(LEAVES))])

    assert exact_duplicates(images) == near_duplicates(images) == []


def test_near_empty_images_are_distinguished_from_small_objects_on_plain_ground(tmp_path):
    grain = Image.new("RGB", (640, 480), "black")
    grain.paste((200, 190, 150), (300, 200, 360, 230))
    dust = Image.new("RGB", (640, 480), "white")
    dust.paste((90, 90, 90), (10, 10, 14, 14))

    assert [image.near_empty for image in inspected(tmp_path, [grain, dust, LEAVES.image(0)])] == [False, True, False]


def test_close_pairs_are_all_pairs_within_the_distance():
    thumbnails = np.random.default_rng(0).integers(60, 180, (600, 64), dtype=np.uint8)  # more rows than one block
    thumbnails[550] = thumbnails[3] + 40  # only brighter
    thumbnails[100] = thumbnails[99] + np.where(np.arange(64) % 2, 4, 0).astype(np.uint8)

    found = {(int(i), int(j)) for one, other in _close_pairs(thumbnails, 40) for i, j in zip(one, other, strict=True)}

    centred = thumbnails - thumbnails.mean(axis=1, keepdims=True)
    distance = np.sqrt(((centred[:, None] - centred[None]) ** 2).mean(axis=2))
    assert found == {(int(i), int(j)) for i, j in np.argwhere(distance <= 40) if i < j}
    assert {(3, 550), (99, 100)} <= found
    assert 2 < len(found) < 10_000


def test_parallel_work_keeps_the_order_and_passes_failures_on():
    assert list(in_parallel(lambda x: x * x, list(range(50)), workers=4)) == [x * x for x in range(50)]
    with pytest.raises(ZeroDivisionError):
        list(in_parallel(lambda x: 1 // x, [1, 0, 2], workers=2))
    with pytest.raises(ClcaError, match="workers is -1"):
        list(in_parallel(str, [1], workers=-1))


def test_written_leaves_pass_their_own_check(tmp_path):
    report = check(write_leaves(tmp_path, cultivars=4, images=10, size=64))

    assert report.errors == report.warnings == []
    assert [sum(counts) for counts in report.counts.values()] == [24, 8, 8]


def test_real_leaves_are_all_readable(shared):
    report = check(shared / "data" / "grapevine_leaves5")

    assert report.unreadable == {}
    assert report.errors == report.warnings == []
    assert {split: sum(counts) for split, counts in report.counts.items()} == {"train": 225, "val": 50, "test": 125}
    assert report.sizes["median"] == (511, 511)


def test_real_grains_are_all_readable(shared):
    report = check(shared / "data" / "rice_bd8")

    assert report.unreadable == {}
    assert report.errors == []
    assert {split: sum(counts) for split, counts in report.counts.items()} == {"train": 400, "val": 80, "test": 320}


def test_colour_profiles_are_counted_and_broken_ones_named(tmp_path):
    leaf_set(tmp_path)
    for number, icc in enumerate(
        (rgb_profile("Display P3"), rgb_profile("Display P3"), rgb_profile("sRGB"), b"broken")
    ):
        LEAVES.image(number).save(tmp_path / "train" / "a" / f"{number}.png", icc_profile=icc)
    LEAVES.image(9).save(
        tmp_path / "train" / "b" / "9.png", icc_profile=rgb_profile("Display P3", "My\x1b[31m scanner")
    )

    report = check(tmp_path)

    assert report.profiles == {"sRGB or none": 20, "Display P3": 2, r"My\x1b[31m scanner": 1}
    assert report.bad_profiles == {"train/a/3.png": "cannot be read"}
    assert report.errors == []
    mixed, broken = report.warnings
    assert mixed.startswith(
        r"the images have 3 colour profiles (sRGB or none 20, Display P3 2, My\x1b[31m scanner 1): all are converted"
    )
    assert broken == (
        "1 image(s) have a colour profile that cannot be used and is ignored (it cannot be read 1): train/a/3.png"
    )
    text = rendered(report)
    assert "\x1b" not in text
    assert "Display P3 2" in text
    assert "Colour profiles that cannot be used" in text


@pytest.mark.parametrize("icc", [rgb_profile("Display P3"), None])
def test_one_profile_alone_is_no_warning(tmp_path, icc):
    leaf_set(tmp_path)
    for path in tmp_path.rglob("*.png"):
        Image.open(path).save(path, icc_profile=icc)
    (tmp_path / "train" / "a" / "0.png").write_bytes((tmp_path / "train" / "a" / "0.png").read_bytes())

    report = check(tmp_path)

    assert report.profiles == {"Display P3" if icc else "sRGB or none": 24}
    assert report.warnings == []


def test_sensor_files_are_reported_with_the_right_reason(tmp_path):
    leaf_set(tmp_path)
    leaf = np.asarray(LEAVES.image(0).resize((48, 48)))
    nir = np.asarray(LEAVES.image(1).convert("L").resize((48, 48)))[..., None]
    folder = tmp_path / "train" / "a"
    (folder / "twelve.tif").write_bytes(tiff(leaf.astype(np.uint16) << 4))
    (folder / "fourteen.tif").write_bytes(tiff(np.flipud(leaf).astype(np.uint16) << 6))
    (folder / "nir.tif").write_bytes(tiff(np.concatenate([np.fliplr(leaf), nir], axis=2), extra=(2,)))
    (folder / "five.tif").write_bytes(tiff(np.concatenate([leaf, nir, nir], axis=2), photometric=1, extra=(0,) * 4))

    report = check(tmp_path)

    assert "has 5 bands of 8-bit integer values" in report.unreadable["train/a/five.tif"]
    assert "no known format" not in report.unreadable["train/a/five.tif"]
    assert report.near_empty == ["train/a/twelve.tif"]
    assert set(report.dark) == {"train/a/twelve.tif", "train/a/fourteen.tif"}
    assert "as if 12 bits were stored in 16" in report.dark["train/a/twelve.tif"]
    assert set(report.left_out) == {"train/a/nir.tif"}
    for part in (
        "have bands that are not read: train/a/nir.tif",
        "2 image(s) are too dark",
        "1 image(s) are nearly empty",
    ):
        assert sum(part in line for line in report.warnings) == 1
    text = rendered(report)
    assert "train/a/twelve.tif" in text
    assert "as if 12 bits were stored in 16: multiply the values by 16" in text
    assert "as if 14 bits were stored in 16: multiply the values by 4" in text


LONG = "x" * 150
NAMES = [
    "plain.png",
    f"{LONG}.png",
    "two\nlines.png",
    "bell\x07 and \x1b[31mred.png",
    "tab\there.png",
    r"back\nslash.png",
    "caf\u2028e.png",
]


def test_both_files_of_a_duplicate_are_named_whole_in_a_pipe(tmp_path):
    """What `clca data check photos > report.txt` writes, or a pipe to another program."""
    leaf_set(tmp_path / "photos")
    folder = tmp_path / "photos" / "train" / "a"
    for number, name in enumerate(NAMES):
        original = LEAVES.image(number)
        original.save(folder / f"{number}.png")
        (folder / f"copy of {name}").write_bytes((folder / f"{number}.png").read_bytes())
        (folder / f"empty {name}").touch()
    program = [sys.executable, "-m", "clca", "data", "check", str(tmp_path / "photos")]

    out = subprocess.run(program, capture_output=True, text=True, env={**os.environ, "COLUMNS": "80"}).stdout

    rows = [line.strip("│ ").split("│")[0].strip() for line in out.splitlines() if line.startswith("│")]
    for number, name in enumerate(NAMES):
        assert {f"train/a/{number}.png", f"train/a/copy of {shown(name)}", f"train/a/empty {shown(name)}"} <= set(rows)
    assert not any(character in out for character in "\x07\x1b\t\u2028")
    summary = next(line for line in out.splitlines() if line.startswith("error: "))
    assert summary.startswith(f"error: {len(NAMES)} file(s) cannot be read: train/a/empty ")
    written = 2 * sum(shown(name).count(r"\n") for name in NAMES)  # a copy and an empty file of each
    assert out.count(r"\n") - summary.count(r"\n") == written


def many_copies() -> CheckReport:
    report = check_report_of_nothing()
    copies = [
        Duplicates(paths=[f"a/{LONG}{i}-{j}.png" for j in range(9)], exact=True, splits=["train"], classes=["a"])
        for i in range(30)
    ]
    unreadable = {f"b/{LONG}{i}.png": "the file is empty (0 bytes)" for i in range(30)}
    return report.model_copy(update={"duplicates": copies, "unreadable": unreadable})


def check_report_of_nothing() -> CheckReport:
    fields = {"root": "photos", "source": "folder", "classes": ["a", "b"], "counts": {"train": [4, 4]}, "sizes": {}}
    empty = {name: {} for name in ("kinds", "profiles", "bad_profiles", "unreadable", "left_out", "dark")}
    return CheckReport(**fields, **empty, near_empty=[], duplicates=[], errors=[], warnings=[])


def test_in_a_pipe_every_duplicate_and_unreadable_file_is_named():
    report, out = many_copies(), io.StringIO()

    report.render(Console(file=out, width=80))

    lines = out.getvalue().splitlines()
    for path in (*report.unreadable, *(path for group in report.duplicates for path in group.paths)):
        assert sum(line.strip("│ ").split("│")[0].strip() == path for line in lines) == 1
    assert "…" not in out.getvalue()


def test_on_a_terminal_long_lists_say_how_much_is_left_out():
    out = io.StringIO()
    many_copies().render(Console(file=out, width=200, force_terminal=True, color_system=None))

    assert "Unreadable files (the first 20 of 30)" in out.getvalue()
    assert "Same image more than once (the first 20 of 30)" in out.getvalue()
    assert out.getvalue().count("… and 3 more") == 20
