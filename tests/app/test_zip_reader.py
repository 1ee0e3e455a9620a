"""Zips as they come and as an enemy builds them: read within bounds, refused with a reason, and never written out."""

import io
import ntpath
import os
import posixpath
import stat
import struct
import sys
import tracemalloc
import unicodedata
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from clca.app.zip_reader import Archive, ArchiveLimits, Member, is_zip, shown
from clca.errors import ClcaError
from clca.serve.errors import Refusal

MIB = 1 << 20


def picture(seed: int = 0, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (20, 20), (seed % 256, 90, 10)).save(file, kind)
    return file.getvalue()


def written(path: Path, files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


@dataclass
class Entry:
    """A member of a zip made by hand: what its headers say need not be so."""

    name: bytes
    data: bytes = b""
    method: int = 0
    flags: int = 0
    size: int | None = None  # that the headers name
    packed_size: int | None = None
    crc: int | None = None
    mode: int = 0
    offset: int | None = None
    plain: bytes | None = None  # what `data` unpacks to

    def fields(self) -> tuple[int, int, int]:
        plain = self.data if self.plain is None else self.plain
        crc = zlib.crc32(plain) if self.crc is None else self.crc
        packed = len(self.data) if self.packed_size is None else self.packed_size
        return crc, packed, len(plain) if self.size is None else self.size

    def local(self) -> bytes:
        head = struct.pack("<4s5H3L2H", b"PK\3\4", 20, self.flags, self.method, 0, 0, *self.fields(), len(self.name), 0)
        return head + self.name

    def central(self, offset: int) -> bytes:
        at = offset if self.offset is None else self.offset
        head = struct.pack("<4s2B5H3L", b"PK\1\2", 20, 3, 20, self.flags, self.method, 0, 0, *self.fields())
        return head + struct.pack("<5H2L", len(self.name), 0, 0, 0, 0, self.mode << 16, at) + self.name


def end(count: int, length: int, offset: int, disk: int = 0) -> bytes:
    return struct.pack("<4s4H2LH", b"PK\5\6", disk, disk, count & 0xFFFF, count & 0xFFFF, length, offset, 0)


def by_hand(path: Path, entries: list[Entry], count: int | None = None, disk: int = 0) -> Path:
    body, directory = bytearray(), bytearray()
    for entry in entries:
        directory += entry.central(len(body))
        body += entry.local() + entry.data
    path.write_bytes(body + directory + end(len(entries) if count is None else count, len(directory), len(body), disk))
    return path


def deflated(data: bytes) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return packer.compress(data) + packer.flush()


def whole(path: Path, limits: ArchiveLimits | None = None) -> tuple[int, str]:
    """Status and code with which a zip is refused before anything of it is read."""
    with pytest.raises(Refusal) as caught, Archive(path, limits):
        pass
    assert str(path) not in caught.value.message
    return caught.value.status, caught.value.code


def outcome(archive: Archive, member: Member) -> bytes | str:
    """What a file holds, or the code with which it is refused."""
    try:
        return bytes(archive.read(member))
    except Refusal as refusal:
        return refusal.code


def outcomes(path: Path, limits: ArchiveLimits | None = None) -> list[tuple[str, bytes | str]]:
    with Archive(path, limits) as archive:
        return [(member.name, outcome(archive, member)) for member in archive.members]


_touched: list[tuple[str, Any]] = []
_watching = False
_WATCHED = (
    "open",
    "os.mkdir",
    "os.rename",
    "os.remove",
    "os.symlink",
    "os.link",
    "os.listdir",
    "os.scandir",
    "os.rmdir",
)


def _audit(event: str, arguments: Any) -> None:
    if _watching and event in _WATCHED:
        _touched.append((event, arguments[0]))


sys.addaudithook(_audit)


@contextmanager
def touching() -> Iterator[list[tuple[str, Any]]]:
    """What Python does to the file system meanwhile."""
    global _watching
    _touched.clear()
    _watching = True
    try:
        yield _touched
    finally:
        _watching = False


# -- what is read ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_files_come_back_as_they_were_in_their_order(tmp_path: Path, method: int) -> None:
    files = {f"vine {k}/Öküzgözü {k}.png": picture(k) + bytes(range(256)) * 800 for k in (3, 1, 2)}
    assert outcomes(written(tmp_path / "z", files, method)) == list(files.items())


def test_the_content_of_a_file_is_not_taken_for_a_directory(tmp_path: Path) -> None:
    files = {"a.png": b"PK\1\2" * 5000}
    assert outcomes(written(tmp_path / "z", files, zipfile.ZIP_STORED), ArchiveLimits(entries=2)) == list(files.items())


def test_folders_and_what_desktops_add_go_unsaid_but_counted(tmp_path: Path) -> None:
    files = {"a/": b"", "a/b/": b"", "a/leaf.png": picture(), "__MACOSX/a/._leaf.png": b"x", "a/.DS_Store": b"x"}
    files |= {"a/@eaDir/leaf.png/SYNOPHOTO_THUMB_M.jpg": b"x", "#recycle/a.png": b"x", "Originals/": b""}
    path = written(tmp_path / "z", {**files, "Thumbs.db": b"x", "a/Thumbs.db.png": picture(1)})
    with Archive(path) as archive:
        assert [member.name for member in archive.members] == ["a/leaf.png", "a/Thumbs.db.png"]
        assert archive.left_out == 8


def test_a_zip_with_something_before_it_after_it_or_of_64_bits_is_read(tmp_path: Path) -> None:
    path = tmp_path / "z"
    with zipfile.ZipFile(path, "w") as archive, archive.open("leaf.png", "w", force_zip64=True) as file:
        file.write(picture())
    assert outcomes(path) == [("leaf.png", picture())]
    path.write_bytes(path.read_bytes() + b"\0" * 500)
    assert outcomes(path) == [("leaf.png", picture())]
    path.write_bytes(b"PK00" + path.read_bytes())  # as a zip meant for several disks begins that fits on one
    assert outcomes(path) == [("leaf.png", picture())]


def test_names_of_macos_are_utf8_though_it_does_not_say_so(tmp_path: Path) -> None:
    path = by_hand(tmp_path / "z", [Entry("Üzüm.png".encode(), b"1"), Entry(b"\x9azum.png", b"2")])
    assert outcomes(path) == [("Üzüm.png", b"1"), ("Üzum.png", b"2")]


def test_it_is_told_by_content_not_by_name(tmp_path: Path) -> None:
    zip_as_jpeg = written(tmp_path / "leaf.jpg", {"a.png": picture()})
    jpeg_as_zip = tmp_path / "leaves.zip"
    jpeg_as_zip.write_bytes(picture(kind="JPEG") + zip_as_jpeg.read_bytes())  # zipfile itself would take it
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(zip_as_jpeg)
    assert is_zip(zip_as_jpeg)
    assert not any(is_zip(path) for path in (jpeg_as_zip, tmp_path, tmp_path / "none", tmp_path / "pipe"))
    assert whole(jpeg_as_zip) == (415, "not_a_zip")
    assert whole(tmp_path / "link") == (415, "not_a_zip")


# -- refused as a whole ----------------------------------------------------------------------------------------------


def test_what_is_no_whole_plain_zip_is_refused(tmp_path: Path) -> None:
    good = written(tmp_path / "good", {f"{k}.png": picture(k) for k in range(9)}).read_bytes()
    path = tmp_path / "z"
    cases = [
        (b"", "not_a_zip"),
        (b"PK", "not_a_zip"),
        (b"PK\3\4", "damaged_zip"),
        (b"Rar!\x1a\x07\1\0" + good, "not_a_zip"),
        (good[:-30], "damaged_zip"),
        (good[: len(good) // 2], "damaged_zip"),
        (good[:-22] + end(9, 0xFFFFFFF0, 0), "damaged_zip"),
        (good[:-22] + end(9, 10, 0xFFFFFFF0), "damaged_zip"),
        (good.replace(b"PK\1\2", b"PK\1\7"), "damaged_zip"),
        (end(0, 0, 0), "no_image"),
        (b"PK\x07\x08" + good, "one_of_several"),
        (good[:-18] + b"\3" + good[-17:], "one_of_several"),
        (good[:-22] + struct.pack("<4sLQL", b"PK\6\7", 2, 0, 3) + good[-22:], "one_of_several"),
    ]
    for data, code in cases:
        path.write_bytes(data)
        assert whole(path)[1] == code, (data[:20], code)


@given(cut=st.integers(0, 900), flips=st.lists(st.tuples(st.integers(0, 899), st.integers(1, 255)), max_size=6))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_damage_gets_through_as_another_error_or_as_other_content(
    tmp_path: Path, cut: int, flips: list[tuple[int, int]]
) -> None:
    files = {f"{k}.png": picture(k, "BMP")[: 300 + k] for k in range(4)}
    data = bytearray(written(tmp_path / "good", files).read_bytes())
    for at, bits in flips:
        data[at % len(data)] ^= bits
    path = tmp_path / "z"
    path.write_bytes(data[: len(data) - cut % len(data) if cut > 450 else len(data)])
    try:
        found = outcomes(path)
    except Refusal:
        return
    # The check sum lies in the zip as well: a flip that hits both ways is as rare as 1 in 2³².
    assert all(isinstance(content, str) or content in files.values() or not content for _, content in found)


def test_a_name_that_is_not_the_utf8_it_says_it_is_is_told(tmp_path: Path) -> None:
    path = by_hand(tmp_path / "z", [Entry(b"\xff.png", picture(), flags=0x800)])
    with pytest.raises(Refusal, match="UTF-8"), Archive(path):
        pass


def test_an_encrypted_zip_is_refused_as_a_whole(tmp_path: Path) -> None:
    for flags in (0x1, 0x41, 0x2001):
        path = by_hand(tmp_path / "z", [Entry(b"a.png", picture()), Entry(b"b.png", b"?" * 40, flags=flags)])
        assert whole(path) == (422, "encrypted")


def test_only_folders_or_nothing_is_refused(tmp_path: Path) -> None:
    assert whole(written(tmp_path / "z", {"a/": b"", "__MACOSX/x": b"x"})) == (422, "no_image")


@pytest.mark.parametrize("count", [None, 1, 0])
def test_ten_thousand_files_are_refused_by_what_is_listed_whatever_count_is_named(
    tmp_path: Path, count: int | None
) -> None:
    path = by_hand(tmp_path / "z", [Entry(b"%d.png" % k, b"x") for k in range(10_000)], count)
    with touching() as touched:
        assert whole(path) == (413, "too_many_files")
    assert {str(name) for event, name in touched if event == "open"} == {str(path)}


def test_the_directory_is_neither_read_nor_listed_beyond_its_bound(tmp_path: Path) -> None:
    names = [Entry(b"n" * 60_000 + b"%d" % k, b"x") for k in range(300)]  # 18 MB of names
    path = by_hand(tmp_path / "z", names)
    tracemalloc.start()
    assert whole(path) == (413, "too_many_files")
    assert tracemalloc.get_traced_memory()[1] < 12 * MIB
    tracemalloc.stop()


def test_the_limits_count_files_and_entries(tmp_path: Path) -> None:
    path = written(tmp_path / "z", {f"{k}.png": picture(k) for k in range(6)} | {f"{k}/": b"" for k in range(4)})
    assert len(outcomes(path, ArchiveLimits(files=6, entries=10))) == 6
    assert whole(path, ArchiveLimits(files=5)) == (413, "too_many_files")
    assert whole(path, ArchiveLimits(files=6, entries=9)) == (413, "too_many_files")
    with pytest.raises(ClcaError, match="ratio"):
        ArchiveLimits(ratio=0)


def test_more_than_may_be_unpacked_is_refused_before_it_is_and_while_it_is(tmp_path: Path) -> None:
    data = bytes(50_000)
    path = written(tmp_path / "z", {f"{k}.bmp": data for k in range(4)})
    assert whole(path, ArchiveLimits(total_bytes=199_999)) == (413, "zip_too_long")
    with Archive(path, ArchiveLimits(total_bytes=200_000)) as archive:
        assert all(outcome(archive, member) == data for member in archive.members)
        assert outcome(archive, archive.members[0]) == "zip_too_long"


def test_the_ratio_meets_bombs_and_no_small_pictures_of_one_colour(tmp_path: Path) -> None:
    bitmap = deflated(bytes(15 * MIB))  # 1:1000
    few = by_hand(tmp_path / "few", [Entry(b"%d.bmp" % k, bitmap, 8, size=15 * MIB) for k in range(17)])
    many = by_hand(tmp_path / "many", [Entry(b"%d.bmp" % k, bitmap, 8, size=15 * MIB) for k in range(18)])
    with Archive(few):
        pass
    assert whole(many) == (413, "zip_too_long")


# -- bombs -----------------------------------------------------------------------------------------------------------


@contextmanager
def bounded_memory(most: int) -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < most
    finally:
        tracemalloc.stop()


def test_files_that_share_their_bytes_are_refused(tmp_path: Path) -> None:
    """As D. Fifield builds it: each file's data quotes the next one's header, and ends in the same kernel."""
    plain = bytes(8 * MIB)
    data, content = deflated(plain), plain
    chained: list[Entry] = []
    for k in reversed(range(30)):
        entry = Entry(b"%02d.bmp" % k, data, 8, plain=content)
        header = entry.local()
        chained.insert(0, entry)
        data = struct.pack("<B2H", 0, len(header), len(header) ^ 0xFFFF) + header + data
        content = header + content
    body = chained[0].local() + chained[0].data
    directory, at = bytearray(), 0
    for entry in chained:
        directory += entry.central(at)
        at += len(entry.local()) + 5
    path = tmp_path / "z"
    path.write_bytes(body + directory + end(30, len(directory), len(body)))
    assert path.stat().st_size < 14_000
    with zipfile.ZipFile(path) as archive:  # without our check the bomb works
        assert len(archive.read("29.bmp")) >= 8 * MIB
        assert sum(info.file_size for info in archive.infolist()) > 240 * MIB
    with bounded_memory(8 * MIB):
        assert whole(path) == (422, "shared_bytes")


def test_two_entries_of_one_file_are_refused(tmp_path: Path) -> None:
    one = Entry(b"a.png", picture())
    two = Entry(b"a.png", b"", size=len(picture()), packed_size=len(picture()), crc=zlib.crc32(picture()), offset=0)
    # Of the same name the second is refused by itself, and only the first is read.
    assert [content for _, content in outcomes(by_hand(tmp_path / "z", [one, two]))] == [picture(), "duplicate_name"]
    two.name = b"b.png"
    assert whole(by_hand(tmp_path / "z", [one, two])) == (422, "shared_bytes")


def test_two_gigabytes_declared_and_few_there_are_refused_and_nothing_is_allocated(tmp_path: Path) -> None:
    entries = [
        Entry(b"a.png", deflated(picture()), 8, size=2_000_000_000),
        Entry(b"b.png", picture(), size=2_000_000_000, packed_size=2_000_000_000),
        Entry(b"c.png", deflated(picture()), 8, size=15 * MIB, plain=picture()),
        Entry(b"d.png", picture(), size=15 * MIB, packed_size=15 * MIB),
        Entry(b"e.png", picture()),
    ]
    with bounded_memory(8 * MIB):
        shared = whole(by_hand(tmp_path / "z", entries))
        found = dict(outcomes(by_hand(tmp_path / "z", [*entries[:3], entries[4]])))
        alone = outcomes(by_hand(tmp_path / "z", [entries[3]]))
    assert shared == (422, "shared_bytes")
    assert found == {"a.png": "file_too_long", "b.png": "file_too_long", "c.png": "damaged", "e.png": picture()}
    assert alone == [("d.png", "damaged")]


def test_reading_stops_at_the_length_that_a_lying_header_names(tmp_path: Path) -> None:
    bomb = deflated(bytes(256 * MIB))
    entries = [Entry(b"%d.png" % k, bomb, 8, size=size, crc=0) for k, size in enumerate((0, 1, 1000, 2 * MIB))]
    path = by_hand(tmp_path / "z", entries)
    with bounded_memory(8 * MIB):
        assert [content for _, content in outcomes(path)] == [b"", "damaged", "damaged", "damaged"]
        assert whole(path, ArchiveLimits(total_bytes=MIB)) == (413, "zip_too_long")


def test_a_wrong_check_sum_is_damage(tmp_path: Path) -> None:
    found = outcomes(by_hand(tmp_path / "z", [Entry(b"a.png", picture(), crc=1), Entry(b"b.png", picture())]))
    assert found == [("a.png", "damaged"), ("b.png", picture())]


def test_archives_in_the_zip_are_not_opened(tmp_path: Path) -> None:
    """As 42.zip: five layers, each of many copies of the next, and gigabytes at the bottom."""
    data = deflated(bytes(16 * MIB))
    layer = by_hand(tmp_path / "layer", [Entry(b"0.dll", data, 8, plain=bytes(16 * MIB))]).read_bytes()
    for _ in range(5):
        packed = deflated(layer)
        entries = [Entry(b"lib %d.zip" % k, packed, 8, plain=layer) for k in range(16)]
        layer = by_hand(tmp_path / "layer", entries).read_bytes()
    with bounded_memory(8 * MIB):
        assert [content for _, content in outcomes(tmp_path / "layer")] == ["archive_in_archive"] * 16
    tar = bytes(257) + b"ustar" + bytes(250)
    others = {"a.gz": b"\x1f\x8b\x08" + bytes(99), "leaf.png": b"7z\xbc\xaf\x27\x1c" + bytes(9), "b": tar}
    found = outcomes(written(tmp_path / "z", {**others, "c.png": picture()}))
    assert [content for _, content in found] == [*["archive_in_archive"] * 3, picture()]


# -- names, links and devices ----------------------------------------------------------------------------------------


def test_links_and_devices_are_refused_and_lead_nowhere(tmp_path: Path) -> None:
    kinds = {stat.S_IFLNK: "link", stat.S_IFCHR: "not_a_file", stat.S_IFIFO: "not_a_file", stat.S_IFSOCK: "not_a_file"}
    entries = [Entry(b"%d.png" % k, b"/etc/passwd", mode=kind | 0o777) for k, kind in enumerate(kinds)]
    entries += [Entry(b"dir", mode=stat.S_IFDIR | 0o755), Entry(b"full/", b"x"), Entry(b"a.png", mode=stat.S_IFREG)]
    path = by_hand(tmp_path / "z", entries)
    with touching() as touched:
        found = outcomes(path)
    assert [content for _, content in found] == [*kinds.values(), "not_a_file", b""]
    assert {str(name) for event, name in touched if event == "open"} == {str(path)}


HOSTILE = [
    "../canary.png",
    "a/../../canary.png",
    "..",
    ".. /a.png",
    "/etc/passwd",
    "//server/share/a.png",
    "C:/a.png",
    "c:a.png",
    "\\\\server\\a.png",
    "..\\canary.png",
    "a\\b.png",
    "a.png\0.exe",
    "a\nb.png",
    "\x1b[2Ja.png",
    "",
    "../__MACOSX/x",
    "__MACOSX/../../x",
]


def test_hostile_names_are_refused_one_by_one_and_shown_harmless(tmp_path: Path) -> None:
    entries = [Entry(name.encode(), b"%d" % k) for k, name in enumerate(HOSTILE)]
    found = outcomes(by_hand(tmp_path / "z", [*entries, Entry(b"good.png", picture())]))
    assert [content for _, content in found] == [*["unsafe_name"] * len(HOSTILE), picture()]
    assert all(name.isprintable() for name, _ in found)


def test_the_second_of_a_name_is_refused(tmp_path: Path) -> None:
    path = by_hand(tmp_path / "z", [Entry(b"a.png", b"1"), Entry(b"A.png", b"2"), Entry(b"a.png", b"3")])
    assert outcomes(path) == [("a.png", b"1"), ("A.png", b"2"), ("a.png", "duplicate_name")]


def test_other_packing_is_refused_by_name(tmp_path: Path) -> None:
    for method in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        assert outcomes(written(tmp_path / "z", {"a.png": picture()}, method)) == [("a.png", "unknown_compression")]
    path = by_hand(tmp_path / "z", [Entry(b"%d.png" % method, picture(), method) for method in (1, 9, 93, 99)])
    assert [content for _, content in outcomes(path)] == ["unknown_compression"] * 4


def test_names_are_shown_on_one_line_without_tricks_and_shortened_in_the_middle() -> None:
    assert shown("Öküzgözü 葡萄 نیم‌فاصله.jpg") == "Öküzgözü 葡萄 نیم‌فاصله.jpg"
    assert shown("leaf\u202egpj.exe") == "leaf\N{REPLACEMENT CHARACTER}gpj.exe"
    assert shown("a\tb\x7f\u2028c") == "a�b��c"
    long = shown("IMG_" + "7" * 4000 + "_0042.jpg")
    assert len(long) == 120
    assert long.startswith("IMG_7")
    assert long.endswith("_0042.jpg")


names = st.one_of(
    st.sampled_from(HOSTILE).map(str.encode),
    st.lists(st.sampled_from(["..", ".", "a", "", "C:", "\\", "é", "\u202e", "~", "con", " ", "\0"]), max_size=5).map(
        lambda parts: "/".join(parts).encode()
    ),
    st.text(max_size=40).map(lambda text: text.encode("utf-8", "replace")),
    st.binary(max_size=40),
)


@given(listed=st.lists(st.tuples(names, st.booleans()), min_size=1, max_size=6))
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_name_touches_anything_outside_the_zip(
    tmp_path: Path, listed: list[tuple[bytes, bool]], monkeypatch: pytest.MonkeyPatch
) -> None:
    inside = tmp_path / "deep" / "empty"
    inside.mkdir(parents=True, exist_ok=True)
    (tmp_path / "deep" / "canary.png").write_bytes(b"canary")
    monkeypatch.chdir(inside)
    entries = [Entry(name, b"content %d" % k, flags=0x800 * utf8) for k, (name, utf8) in enumerate(listed)]
    path = by_hand(tmp_path / "z", entries)
    before = sorted(str(file) for file in tmp_path.rglob("*"))
    code = "no_image"
    with touching() as touched:
        try:
            found = outcomes(path)
        except Refusal as refusal:
            found, code = [], refusal.code
    assert code in ("damaged_zip", "no_image")
    assert {(event, str(name)) for event, name in touched} == {("open", str(path))}
    assert sorted(str(file) for file in tmp_path.rglob("*")) == before
    assert (tmp_path / "deep" / "canary.png").read_bytes() == b"canary"
    for name, content in found:
        assert not {unicodedata.category(letter) for letter in name} & {"Cc", "Cs", "Zl", "Zp"}
        assert len(name) <= 120
        if isinstance(content, bytes):  # by other means than the code's: a name that is read would lead nowhere else
            for flavour in (posixpath, ntpath):
                joined = flavour.normpath(flavour.join("root", name))
                assert joined == "root" or joined.startswith("root" + flavour.sep)
