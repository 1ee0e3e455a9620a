"""Images that lie in the folder of a data set and are left out are warning of, and nothing else is."""

import os
import warnings
from pathlib import Path

import pytest
from PIL import Image

import clca.data
from clca.data.checks.report import check
from clca.data.sources.folder_csv import read_listing
from clca.errors import ClcaError


def photos(root: Path, *splits: str) -> Path:
    """Five images of each of two classes, in each split if there are any."""
    for part in splits or ("",):
        for name in "ab":
            folder = root / part / name
            folder.mkdir(parents=True)
            for i in range(5):
                Image.new("RGB", (6, 5), (i, 100, 50)).save(folder / f"{i}.png")
    return root


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def warned(root: Path, split: str = "train", **options) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        clca.data.open(root, split, **options)
    return [str(one.message) for one in caught]


def test_formats_that_are_not_read_are_counted_in_a_warning(tmp_path):
    photos(tmp_path, "train", "test")
    class_folder = tmp_path / "train" / "a"
    touch(*(class_folder / "phone" / f"{i}.HEIC" for i in range(3)), class_folder / "y.CR2")
    touch(tmp_path / "test" / "b" / "vec.svg")
    line = (
        "5 image(s) are left out because their format is not read: 3 .heic, 1 .cr2, 1 .svg, "
        "such as train/a/phone/0.HEIC; convert them to JPEG or PNG"
    )

    assert warned(tmp_path) == [f"{tmp_path}: {line}"]
    report = check(tmp_path)
    assert line in report.warnings
    assert report.errors == []


@pytest.mark.parametrize(
    ("splits", "strays"),
    [
        ((), ["loose.png", "other.JPG"]),
        (("train", "test"), ["loose.png"]),
        (("train", "test"), ["train/loose.png", "test/loose.jpg"]),
        (("train", "test"), ["a/0.png", "a/deep/1.png"]),  # a class folder beside train and test
    ],
)
def test_images_outside_the_class_folders_are_reported(tmp_path, splits, strays):
    photos(tmp_path, *splits)
    touch(*(tmp_path / name for name in strays))

    listing = read_listing(tmp_path)
    assert listing.unused == [tmp_path / name for name in strays]
    assert not set(listing.unused) & {path for samples in listing.splits.values() for path, _ in samples}
    warning = warned(tmp_path)
    assert len(warning) == 1
    assert f"{len(strays)} image(s) are left out because they are outside the class folders: " in warning[0]
    assert f"such as {strays[0]}; move them" in warning[0]
    assert warning[0].removeprefix(f"{tmp_path}: ") in check(tmp_path).warnings


def test_what_is_no_image_or_hidden_is_left_alone(tmp_path):
    photos(tmp_path, "train", "test")
    for folder in (tmp_path, tmp_path / "train", tmp_path / "train" / "a"):
        names = ["Thumbs.db", ".DS_Store", "._0.png", "._1.heic", ".hidden.heic", "README", "script.py"]
        names += [f"file.{ending}" for ending in ("txt", "csv", "json", "xml", "md", "yaml", "zip")]
        touch(*(folder / name for name in names))
        touch(folder / "__MACOSX" / "0.png", folder / ".cache" / "0.heic")
    (tmp_path / "far").symlink_to(photos(tmp_path / ".elsewhere"))  # not followed: it may lead anywhere

    assert read_listing(tmp_path, "folder").unused == []
    assert warned(tmp_path) == []
    assert not any("left out" in line for line in check(tmp_path).warnings)


@pytest.mark.parametrize("splits", [(), ("train", "test")])
def test_folders_with_a_leading_underscore_are_reported(tmp_path, splits):
    photos(tmp_path, *splits)
    class_folder = tmp_path / (splits[0] if splits else "") / "a"
    before = read_listing(tmp_path).splits
    touch(tmp_path / "_aside" / "0.png", class_folder / "_raw" / "deep" / "1.jpg", class_folder / "_raw" / "2.heic")

    assert read_listing(tmp_path).splits == before
    [warning] = warned(tmp_path)
    assert "3 image(s) are left out because they are in folders whose names begin with _: " in warning
    assert warning.endswith("such as _aside/0.png; rename the folders if they belong to the set")
    assert warning.removeprefix(f"{tmp_path}: ") in check(tmp_path).warnings


def test_photographs_without_an_extension_are_reported(tmp_path):
    photos(tmp_path, "train")
    (tmp_path / "train" / "a" / "README").write_text("BM, not a bitmap")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "train" / "a" / "pipe")  # not waited for
    for kind in ("JPEG", "PNG", "TIFF", "WEBP"):
        Image.new("RGB", (6, 5)).save(tmp_path / "train" / "a" / f"IMG_{kind}", kind)

    [warning] = warned(tmp_path)

    assert (
        "4 image(s) are left out because their names have no extension such as .jpg: 4 without an extension, "
        in warning
    )
    assert warning.endswith("such as train/a/IMG_JPEG; rename them")


def test_only_who_opens_it_to_learn_from_is_warned(tmp_path):
    photos(tmp_path, "train", "val", "test")
    touch(tmp_path / "train" / "a" / "0.heic")

    assert len(warned(tmp_path, "train_val")) == 1
    assert warned(tmp_path, "val") == warned(tmp_path, "test") == warned(tmp_path, strict=False) == []


def test_a_class_folder_with_only_unread_formats_is_an_error(tmp_path):
    photos(tmp_path, "train")
    touch(tmp_path / "train" / "phone" / "0.heic", tmp_path / "train" / "phone" / "1.heic")

    with pytest.raises(ClcaError) as caught:
        clca.data.open(tmp_path)
    reason = "this class folder has only formats that are not read (2 .heic): convert them to JPEG or PNG"
    assert str(caught.value) == f"{tmp_path / 'train' / 'phone'}: {reason}"
    assert check(tmp_path).errors == [str(caught.value)]


def test_a_set_with_only_unread_formats_is_an_error(tmp_path):
    touch(tmp_path / "a" / "0.heic", tmp_path / "b" / "0.heic")

    with pytest.raises(ClcaError, match=r"no usable images: 2 image\(s\) are left out .* 2 \.heic, such as a/0\.heic;"):
        clca.data.open(tmp_path)
