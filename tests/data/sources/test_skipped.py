"""Images that lie in the folder of a data set and are left out are warning of, and nothing else is."""

import os
import warnings
from pathlib import Path

import pytest
from PIL import Image

import clca.data
from clca.data import image_formats
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
    touch(*(class_folder / "phone" / f"{i}.JXL" for i in range(3)), class_folder / "y.PSD")
    touch(tmp_path / "test" / "b" / "vec.svg")
    line = (
        "5 image(s) are left out because their format is not read: 3 .jxl, 1 .psd, 1 .svg, "
        "such as train/a/phone/0.JXL; convert them to JPEG or PNG"
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
        names = ["Thumbs.db", ".DS_Store", "._0.png", "._1.jxl", ".hidden.jxl", "README", "script.py"]
        names += [f"file.{ending}" for ending in ("txt", "csv", "json", "xml", "md", "yaml", "zip")]
        touch(*(folder / name for name in names))
        touch(folder / "__MACOSX" / "0.png", folder / ".cache" / "0.jxl")
    (tmp_path / "far").symlink_to(photos(tmp_path / ".elsewhere"))  # not followed: it may lead anywhere

    assert read_listing(tmp_path, "folder").unused == []
    assert warned(tmp_path) == []
    assert not any("left out" in line for line in check(tmp_path).warnings)


THUMBNAIL = "@eaDir/IMG_1000.jpg/SYNOPHOTO_THUMB_M.jpg"


@pytest.mark.parametrize("splits", [(), ("train", "test")])
@pytest.mark.parametrize(
    ("place", "names"),
    [
        ("", ["lost+found/1.jpg"]),
        ("", ["$Recycle.Bin/S-1-5-21/$RA0B1C2.jpg", "System Volume Information/a.png"]),
        ("", ["photos.photoslibrary/originals/0/a.heic"]),
        ("class", [THUMBNAIL]),
        ("class", ["deep/@EADIR/IMG_1.jpg/SYNOPHOTO_THUMB_S.jpg", "#recycle/2.png", ".Trash-1000/files/3.png"]),
        ("split", ["#Recycle/a/3.png"]),
        ("split", [".@__thumb/s100a.jpg"]),
    ],
)
def test_what_a_system_keeps_among_the_photographs_is_counted_and_no_class(
    tmp_path: Path, splits: tuple[str, ...], place: str, names: list[str]
) -> None:
    photos(tmp_path, *splits)
    before = read_listing(tmp_path)
    split = tmp_path / (splits[0] if splits else "")
    files = [{"": tmp_path, "split": split, "class": split / "a"}[place] / name for name in names]
    touch(*files)

    after = read_listing(tmp_path)

    assert after.classes == before.classes == ["a", "b"]
    assert after.splits == before.splits
    assert sorted(after.unused) == sorted(files)
    [warning] = warned(tmp_path)
    assert f"{len(files)} image(s) are left out because they are in folders that a system or program made (" in warning
    assert warning.endswith("; move those that you need to another folder")
    assert all(f"{name.split('/')[0 if 'deep' not in name else 1]}" in warning for name in names)


def test_a_check_counts_what_a_system_keeps_and_second_versions(tmp_path: Path) -> None:
    photos(tmp_path)
    touch(tmp_path / "a" / THUMBNAIL, tmp_path / "b" / "0 (conflicted copy 2024-01-01).png")
    [warning] = warned(tmp_path)
    lines = warning.removeprefix(f"{tmp_path}: ").split("; 1 image(s)")
    report = check(tmp_path, progress=False)
    assert report.errors == []
    assert [lines[0], f"1 image(s){lines[1]}"] == report.warnings[:2]


def test_folders_of_a_system_without_images_need_no_line(tmp_path: Path) -> None:
    photos(tmp_path)
    (tmp_path / "lost+found").mkdir(mode=0)
    touch(
        tmp_path / "a" / "@eaDir" / "0.png@SynoEAStream", tmp_path / "System Volume Information" / "IndexerVolumeGuid"
    )
    touch(tmp_path / "#recycle" / "._0.png")
    (tmp_path / "b" / "#snapshot").symlink_to(tmp_path / "a")
    assert read_listing(tmp_path).classes == ["a", "b"]
    assert warned(tmp_path) == []


def test_a_class_of_thumbnails_alone_is_an_error_that_counts_them(tmp_path: Path) -> None:
    photos(tmp_path)
    touch(tmp_path / "c" / THUMBNAIL)
    with pytest.raises(ClcaError, match=r"/c: no usable images in this class folder: 1 image\(s\) .*\(@eaDir\)"):
        clca.data.open(tmp_path)


def test_a_snapshot_of_a_whole_disk_is_not_counted_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos(tmp_path)
    touch(*(tmp_path / "#snapshot" / f"{number}.jpg" for number in range(9)), tmp_path / "@eaDir" / "1.jpg")
    monkeypatch.setattr("clca.data.sources.skipped.MOST_COUNTED", 5)
    [warning] = warned(tmp_path)
    assert "at least 6 image(s) are left out because they are in folders that a system or program made (" in warning
    assert "(#snapshot, @eaDir): 6 .jpg, such as #snapshot/0.jpg" in warning
    monkeypatch.setattr("clca.data.sources.skipped.MOST_COUNTED", 9)
    assert f"{tmp_path}: 10 image(s) are left out" in warned(tmp_path)[0]
    monkeypatch.setattr("clca.data.sources.skipped.MOST_LOOKED_AT", 3)
    assert "at least 4 image(s)" in warned(tmp_path)[0]


def test_what_is_in_a_cloud_only_and_second_versions_are_counted(tmp_path: Path) -> None:
    photos(tmp_path)
    before = read_listing(tmp_path).splits
    folder = tmp_path / "a"
    touch(folder / ".IMG_1.HEIC.icloud", folder / "2.jpg.nextcloud", folder / ".notes.txt.icloud")
    touch(folder / "0 (conflicted copy 2024-01-01).png", folder / "0.sync-conflict-20240101-101500-ABCDEF7.png")

    assert read_listing(tmp_path).splits == before
    [warning] = warned(tmp_path)
    assert "2 image(s) are left out because they are in a cloud only, not on this machine: 1 .heic, 1 .jpg" in warning
    assert "2 image(s) are left out because a cloud client saved them as a second version of a file: 2 .png" in warning


@pytest.mark.parametrize("far", [False, True])
def test_thumbnails_in_a_list_are_kept_with_a_warning(tmp_path: Path, far: bool) -> None:
    photos(tmp_path / "set")
    for name in ("@eaDir", "#recycle"):
        touch(tmp_path / "set" / "a" / name / "0.png")
    place = tmp_path / ("far" if far else "set")
    place.mkdir(exist_ok=True)
    files = sorted((tmp_path / "set").rglob("*.png"))  # as `find` lists them
    rows = [f"{file},{'a' if (tmp_path / 'set' / 'a') in file.parents else 'b'}" for file in files]
    (place / "list.csv").write_text("\n".join(["path,label", *rows]))

    listing = read_listing(place / "list.csv")

    assert sum(map(len, listing.splits.values())) == 12
    assert listing.warnings == [
        f"{place / 'list.csv'}: 2 listed image(s) are in folders that a system or program made (#recycle, @eaDir): "
        "remove their rows if they are thumbnails or deleted"
    ]
    assert warned(place / "list.csv") == listing.warnings


def test_a_file_that_is_linked_twice_is_no_two_images(tmp_path: Path) -> None:
    photos(tmp_path)
    touch(tmp_path / ".more" / "9.png")
    for name in ("x", "y"):
        (tmp_path / "a" / name).symlink_to(tmp_path / ".more")
    found = [path for samples in read_listing(tmp_path).splits.values() for path, _ in samples]
    assert [path for path in found if path.name == "9.png"] == [tmp_path / "a" / "x" / "9.png"]


@pytest.mark.parametrize("splits", [(), ("train", "test")])
def test_folders_with_a_leading_underscore_are_reported(tmp_path, splits):
    photos(tmp_path, *splits)
    class_folder = tmp_path / (splits[0] if splits else "") / "a"
    before = read_listing(tmp_path).splits
    touch(tmp_path / "_aside" / "0.png", class_folder / "_raw" / "deep" / "1.jpg", class_folder / "_raw" / "2.jxl")

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
    for name in ("plot 3.2", "IMG_1.jpg_original", "MVI_1.THM"):  # the last is of a film
        Image.new("RGB", (6, 5)).save(tmp_path / "train" / "a" / name, "JPEG")

    [warning] = warned(tmp_path)

    why = "their names have no extension such as .jpg: 4 without an extension, 1 .jpg_original, 1 .2, "
    assert f"6 image(s) are left out because {why}" in warning
    assert warning.endswith("such as train/a/IMG_1.jpg_original; rename them")


def test_formats_that_are_read_later_on_are_read_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos(tmp_path)
    touch(tmp_path / "a" / "9.heic")
    monkeypatch.setattr("clca.data.image_formats.EXTENSIONS", image_formats.EXTENSIONS | {".heic"})
    monkeypatch.setattr("clca.data.image_formats.UNREAD_EXTENSIONS", image_formats.UNREAD_EXTENSIONS - {".heic"})
    listing = read_listing(tmp_path)
    assert listing.unused == []
    assert tmp_path / "a" / "9.heic" in {path for samples in listing.splits.values() for path, _ in samples}


def test_only_who_opens_it_to_learn_from_is_warned(tmp_path):
    photos(tmp_path, "train", "val", "test")
    touch(tmp_path / "train" / "a" / "0.jxl")

    assert len(warned(tmp_path, "train_val")) == 1
    assert warned(tmp_path, "val") == warned(tmp_path, "test") == warned(tmp_path, strict=False) == []


def test_a_class_folder_with_only_unread_formats_is_an_error(tmp_path):
    photos(tmp_path, "train")
    touch(tmp_path / "train" / "phone" / "0.jxl", tmp_path / "train" / "phone" / "1.jxl")

    with pytest.raises(ClcaError) as caught:
        clca.data.open(tmp_path)
    reason = "this class folder has only formats that are not read (2 .jxl): convert them to JPEG or PNG"
    assert str(caught.value) == f"{tmp_path / 'train' / 'phone'}: {reason}"
    assert check(tmp_path).errors == [str(caught.value)]


def test_a_set_with_only_unread_formats_is_an_error(tmp_path):
    touch(tmp_path / "a" / "0.jxl", tmp_path / "b" / "0.jxl")

    with pytest.raises(ClcaError, match=r"no usable images: 2 image\(s\) are left out .* 2 \.jxl, such as a/0\.jxl;"):
        clca.data.open(tmp_path)
