"""What systems and programs leave in folders of photographs: recognised in any case, and nothing else is."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clca.data.sources.leftovers import is_conflict_copy, is_leftover, leftover_above, placeholder_for

FOLDERS = (
    *("@eaDir", "#recycle", "#snapshot", "@tmp", "@Recycle", ".@__thumb", "@Recently-Snapshot", ".recycle", ".zfs"),
    *(".snapshot", ".snapshots", "~snapshot", ".Recycle.Bin", "Recycle Bin - Volume_1", "Nas_Prog", "trashbox"),
    *("Network Recycle Bin 1", "Recycle Bin", "OneDriveTemp", "ix-applications"),
    *("$RECYCLE.BIN", "RECYCLER", "System Volume Information", "FOUND.000", "FOUND.017", "MSOCache"),
    *(".AppleDouble", ".Spotlight-V100", ".fseventsd", ".Trashes", ".TemporaryItems", "Network Trash Folder"),
    *("lost+found", ".Trash-1000", ".Trash", "LOST.DIR", ".thumbnails"),
    *("Leaves Previews.lrdata", "Photos Library.photoslibrary", "iPhoto Library.photolibrary", "CaptureOne"),
    *(".picasaoriginals", "[Originals]", ".dtrash", "mipmaps-0123456789abcdef.d", "iPod Photo Cache"),
    *(".dropbox.cache", ".tmp.driveupload", ".tmp.drivedownload", ".stfolder", ".stversions", ".sync", "appdata_oc1x2"),
)

CLASSES = (
    *("merlot", "Originals", "recycle", "snapshot", "trash", "#12", "@home", "$5", "~approx", "found", "lost", "tmp"),
    *("foundation.0001", "eaDir", "Recycled paper", "photoslibrary", "library.photos", "sync", "Thumbnails", "cache"),
    *("System", "Volume", "Trash-1000", "#recycled leaves", "Capture One", "lrdata"),
)


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_of_a_system_is_recognised_in_any_case(name: str) -> None:
    for spelled in (name, name.upper(), name.lower(), name.swapcase()):
        assert is_leftover(Path("photos", spelled)), spelled


@pytest.mark.parametrize("name", CLASSES)
def test_a_class_is_not(name: str) -> None:
    assert not is_leftover(Path("photos", name))


@given(st.text(st.characters(categories=["L", "Nd"]), min_size=1, max_size=30))
def test_no_name_of_letters_and_digits_is_one(name: str) -> None:
    known = {"trashbox", "recycler", "recyclebin", "msocache", "wpsystem", "captureone", "onedrivetemp"}
    known |= {"thevolumesettingsfolder", "originals"}
    assert not is_leftover(Path("photos", name)) or name.casefold() in known


def test_originals_are_picasas_beside_its_settings_only(tmp_path: Path) -> None:
    assert not is_leftover(tmp_path / "Originals")
    (tmp_path / ".picasa.ini").touch()
    assert is_leftover(tmp_path / "Originals")


def test_the_uppermost_leftover_below_the_top_is_named() -> None:
    top = Path("disk/@eaDir/photos")
    assert leftover_above(top / "merlot" / "1.jpg", top) is None
    assert leftover_above(top / "a" / "#recycle" / "@eaDir" / "1.jpg", top) == top / "a" / "#recycle"


@pytest.mark.parametrize(
    ("name", "original"),
    [
        (".IMG_1.HEIC.icloud", "IMG_1.HEIC"),
        ("leaf.jpg.nextcloud", "leaf.jpg"),
        ("leaf.jpg.owncloud", "leaf.jpg"),
        ("leaf.jpg", None),
        (".icloud", None),
        ("icloud.jpg", None),
    ],
)
def test_placeholders_name_what_they_stand_for(name: str, original: str | None) -> None:
    assert placeholder_for(name) == original


@pytest.mark.parametrize(
    ("name", "is_copy"),
    [
        ("leaf (conflicted copy 2024-01-01 101500).jpg", True),
        ("leaf (Ana's conflicted copy 2024-01-01).jpg", True),
        ("leaf (In Konflikt stehende Kopie von Ana 2024-01-01).jpg", True),
        ("leaf (copie en conflit de Ana 2024-01-01).JPG", True),
        ("leaf (copia en conflicto de Ana).jpg", True),
        ("leaf (SFConflict ana@x.org 2024-01-01-10-15-00).jpg", True),
        ("leaf (Case Conflict).jpg", True),
        ("leaf.sync-conflict-20240101-101500-ABCDEF7.jpg", True),
        ("leaf_conflict-20240101-101500.jpg", True),
        ("leaf_DESKTOP_Jan-01-101500-2024_Conflict.jpg", True),
        ("leaf [Conflict].jpg", True),
        ("leaf.Conflict.jpg", True),
        ("conflict.jpg", False),
        ("conflict_zone_3.jpg", False),
        ("leaf (copy).jpg", False),
        ("leaf (1).jpg", False),
        ("leaf (no conflict).jpg", False),
        ("leaf_conflict.jpg", False),
    ],
)
def test_second_versions_of_cloud_clients_are_recognised(name: str, is_copy: bool) -> None:
    assert is_conflict_copy(name) is is_copy
