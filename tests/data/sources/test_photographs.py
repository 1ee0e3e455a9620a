"""What is found for `clca predict`: nothing is left out without a word, nothing comes twice, nothing is waited for."""

import glob
import os
import socket
from itertools import pairwise
from pathlib import Path

import pytest
from PIL import Image

from clca.data.sources.photographs import find_images, find_photographs
from clca.data.sources.skipped import describe_unused
from clca.errors import ClcaError


def put(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def test_every_file_that_was_there_is_found_with_the_reason(tmp_path: Path) -> None:
    reasons = {
        "IMG_1.PSD": "its format is not read: convert it to JPEG or PNG",
        "deep/IMG_2.XCF": "its format is not read: convert it to JPEG or PNG",
        ".IMG_3.jpg.icloud": "it is in a cloud only, not on this machine: download it",
        "a (conflicted copy 2024-01-01).jpg": "a cloud client saved it as a second version of a file: rename it",
        "nameless": "its name has no extension such as .jpg: rename it",
    }
    read = ["a.jpg", "deep/_aside/b.PNG"]
    put(*(tmp_path / name for name in (*reasons, *read, "notes.txt", ".hidden.jpg", "@eaDir/a.jpg/T_M.jpg")))
    Image.new("RGB", (4, 4)).save(tmp_path / "nameless", "JPEG")

    found = find_photographs(tmp_path)

    assert list(found.files) == sorted(tmp_path / name for name in (*reasons, *read))
    assert [path for path, why in found.files.items() if why is None] == [tmp_path / name for name in read]
    for name, reason in reasons.items():
        assert f"left out because {reason}" in str(found.files[tmp_path / name])
    unused = [path for path, why in found.files.items() if why] + [tmp_path / "@eaDir" / "a.jpg" / "T_M.jpg"]
    assert found.warnings == [f"{tmp_path}: {'; '.join(describe_unused(tmp_path, unused, of_a_set=False))}"]
    assert "2 image(s) are left out because their format is not read: 1 .psd, 1 .xcf, such as" in found.warnings[0]
    assert (
        "in folders that a system or program made (@eaDir): 1 .jpg, such as @eaDir/a.jpg/T_M.jpg" in found.warnings[0]
    )
    with pytest.warns(UserWarning, match="are left out because their format"):
        assert find_images(tmp_path) == [tmp_path / name for name in read]


def test_what_is_named_is_read_whatever_its_folder_would_do(tmp_path: Path) -> None:
    put(tmp_path / "a.psd", tmp_path / "@eaDir" / "b.jpg")
    for paths in ([tmp_path, tmp_path / "a.psd"], [tmp_path / "a.psd", tmp_path]):
        assert find_photographs(paths).files == {tmp_path / "a.psd": None}
    assert list(find_photographs(tmp_path / "@eaDir").files) == [tmp_path / "@eaDir" / "b.jpg"]


@pytest.mark.parametrize("name", ["#recycle/1.jpg", "@eaDir/1.jpg/M.jpg", ".Trash-1000/files/1.png"])
def test_a_folder_of_leftovers_alone_is_refused_with_their_number(tmp_path: Path, name: str) -> None:
    put(tmp_path / name)
    with pytest.raises(ClcaError, match=r"no images in this folder; 1 image\(s\) are left out because they are in f"):
        find_photographs(tmp_path)


def test_linked_folders_are_searched_once_and_circles_end(tmp_path: Path) -> None:
    top, far = tmp_path / "top", tmp_path / "far"
    put(top / "a" / "1.jpg", top / "b" / "2.jpg", far / "deep" / "3.jpg", far / "4.jpg")
    for link, target in {
        "up": "..", "self": ".", "a/to_b": "../b", "b/to_top": str(top), "away": "../far", "b/away": "../../far",
        "deep": str(far / "deep"),
    }.items():  # fmt: skip
        (top / link).symlink_to(target)
    (far / "back").symlink_to(top)
    (far / "parent").symlink_to(tmp_path)

    found = list(find_photographs(top).files)

    assert found == sorted([top / "a/1.jpg", top / "b/2.jpg", top / "away/4.jpg", top / "away/deep/3.jpg"])


def test_links_that_branch_at_every_level_end(tmp_path: Path) -> None:
    levels = [tmp_path / str(number) for number in range(40)]
    for here, further in pairwise(levels):
        here.mkdir()
        for name in "ab":
            (here / name).symlink_to(further)
    put(levels[-1] / "1.jpg")
    assert len(find_photographs(levels[0]).files) == 1


@pytest.mark.parametrize("place", ["", "folder/", "folder/*", "folder/*.jpg"])
def test_fifos_sockets_and_broken_links_are_found_and_not_opened(tmp_path: Path, place: str) -> None:
    folder = tmp_path / "folder"
    put(folder / "0.jpg")
    os.mkfifo(folder / "1.jpg")
    os.mkfifo(folder / "pipe without a name")
    (folder / "2.jpg").symlink_to("gone.jpg")
    with socket.socket(socket.AF_UNIX) as server:
        here = Path.cwd()
        os.chdir(folder)  # the path of a socket is short
        try:
            server.bind("3.jpg")
        finally:
            os.chdir(here)
        given = [folder / f"{number}.jpg" for number in range(4)] if not place else [tmp_path / place]
        found = find_photographs(given).files
    names = {path.name for path, why in found.items() if why is None}
    assert names - {"pipe without a name"} == {f"{number}.jpg" for number in range(4)}


@pytest.mark.parametrize("pattern", ["**/*.jpg", "a/**/[12].jpg", "*/**/1.*", "a/**", "**/b/**/2.jpg", "**"])
def test_patterns_over_folders_of_any_depth_match_as_in_python(
    tmp_path: Path, pattern: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(*(tmp_path / folder / f"{n}.jpg" for folder in ("", "a", "a/b", "a/b/c", "b", "b/a") for n in (1, 2, 3)))
    put(
        tmp_path / ".thumbs" / "1.jpg",
        tmp_path / "a" / ".1.jpg",
        tmp_path / "a" / ".1.jpg.icloud",
        tmp_path / "a" / "1.png",
        tmp_path / "a" / "notes",
    )
    for top in (tmp_path, Path()):
        monkeypatch.chdir(tmp_path)
        expected = {Path(path) for path in glob.glob(str(top / pattern), recursive=True) if os.path.isfile(path)}
        assert set(find_photographs(top / pattern).files) == expected


def test_links_that_lead_back_do_not_keep_a_pattern(tmp_path: Path) -> None:
    put(tmp_path / "a" / "1.jpg", tmp_path / "b" / "2.jpg")
    for number in range(6):
        (tmp_path / "ab"[number % 2] / f"back{number}").symlink_to("..")
    found = find_photographs(tmp_path / "**" / "*.jpg").files
    assert list(found) == [tmp_path / "a" / "1.jpg", tmp_path / "b" / "2.jpg"]


def test_a_pattern_may_match_what_is_named_already(tmp_path: Path) -> None:
    put(tmp_path / "1.jpg")
    assert list(find_photographs([tmp_path / "1.jpg", tmp_path / "*.jpg"]).files) == [tmp_path / "1.jpg"]


def test_patterns_leave_out_what_systems_keep_and_enter_folders(tmp_path: Path) -> None:
    put(tmp_path / "a" / "1.jpg", tmp_path / "a" / "2.psd", tmp_path / "a" / "@eaDir" / "1.jpg" / "M.jpg")
    put(tmp_path / "b.txt", tmp_path / "#recycle" / "3.jpg")
    (tmp_path / "empty").mkdir()
    (tmp_path / "a" / "back").symlink_to("..")

    every = find_photographs(str(tmp_path / "**" / "*.jpg"))
    assert list(every.files) == [tmp_path / "a" / "1.jpg"]
    [line] = every.warnings
    assert (
        "2 image(s) are left out because they are in folders that a system or program made (#recycle, @eaDir)" in line
    )

    below = find_photographs(str(tmp_path / "*" / "**" / "*.jpg"))
    assert (list(below.files), len(below.warnings)) == ([tmp_path / "a" / "1.jpg"], 1)

    flat = find_photographs(str(tmp_path / "*"))
    assert {path: why is None for path, why in flat.files.items()} == {
        tmp_path / "a" / "1.jpg": True, tmp_path / "a" / "2.psd": False, tmp_path / "b.txt": True
    }  # fmt: skip
    assert len(flat.warnings) == 2
    with pytest.raises(ClcaError, match=r"no file matches this pattern; 1 image\(s\) are left out"):
        find_photographs(str(tmp_path / "#*"))
