"""`Archive`: the files of a zip, read into memory one at a time; no name from it ever reaches the file system."""

import io
import os
import re
import stat
import struct
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from types import TracebackType
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile, ZipInfo

from clca.data.sources.leftovers import is_leftover_name
from clca.errors import ClcaError
from clca.serve.errors import Refusal
from clca.serve.settings import MIB

_LOCAL, _CENTRAL, _END, _END64_PLACE = b"PK\3\4", b"PK\1\2", b"PK\5\6", b"PK\6\7"
_ONE_OF_SEVERAL = b"PK\7\x08"
_BEGINNINGS = (_LOCAL, _END, _ONE_OF_SEVERAL, b"PK00")
_OTHER_ARCHIVES = (b"7z\xbc\xaf\x27\x1c", b"Rar!\x1a\x07", b"\x1f\x8b\x08", b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd")
_TAR = slice(257, 262)
_END_BYTES, _LONGEST_COMMENT, _LOCAL_BYTES = 22, 0xFFFF, 30

# Bits of a member's flags: encrypted, strongly encrypted, its name hidden; and its name in UTF-8.
_ENCRYPTED, _UTF8 = 0x1 | 0x40 | 0x2000, 0x800

# Deflate makes at most 1,032 of one byte. Pictures of one colour come near that, photographs do not, so the ratio is
# that of the whole zip, and little ones are free of it.
_FREE_OF_THE_RATIO = 256 * MIB

_CHUNK = 64 * 1024
_ENTRY_BYTES = 1024  # of the directory: 46, the name, what the system adds
_SHOWN_LENGTH = 120
_BIDI_AND_BLANKS = frozenset(
    "\u061c\u200b\u200e\u200f\u2060\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\ufeff"
)


@dataclass(frozen=True)
class ArchiveLimits:
    """What a zip may hold.

    Attributes:
        files: Files that get an answer or a reason.
        entries: All that its directory lists: folders and what macOS adds as well.
        member_bytes: One file, unpacked.
        total_bytes: All files, unpacked.
        ratio: All files, unpacked, over the length of the zip, once they are more than 256 MiB.

    Raises:
        ClcaError: Where a number is not positive.
    """

    files: int = 2000
    entries: int = 5000
    member_bytes: int = 16 * MIB
    total_bytes: int = 4096 * MIB
    ratio: int = 200

    def __post_init__(self) -> None:
        for field in fields(self):
            if getattr(self, field.name) < 1:
                raise ClcaError(f"{field.name} = {getattr(self, field.name)}: has to be at least 1")


@dataclass(frozen=True, eq=False)
class Member:
    """One file of a zip.

    Attributes:
        name: For people to read, and used for nothing else.
        refusal: Why it is not read, as far as the zip's directory shows that.
    """

    name: str
    refusal: Refusal | None
    _info: ZipInfo


class Archive:
    """The files of a zip.

    Everything is read from the opened file and kept in memory; nothing is unpacked to a disk, so that names and links
    lead nowhere. Sizes in the zip are not trusted: reading stops at the limits and at the length it names.
    Used in one thread at a time.

        with Archive(path) as archive:
            for member in archive.members:
                data = archive.read(member)

    Args:
        path: A file whose name is not the user's.
        limits: What it may hold.

    Attributes:
        members: Its files, in the order of its directory; those that are refused among them.
        left_out: How many entries are folders or what desktops add (`__MACOSX`, `.DS_Store`, `Thumbs.db`).

    Raises:
        Refusal: 415 for what is no zip, 413 beyond a limit, 422 where it is damaged, encrypted, one of several parts,
            empty, or where its files share their bytes.
    """

    def __init__(self, path: Path, limits: ArchiveLimits | None = None) -> None:
        self._limits = limits or ArchiveLimits()
        if not is_zip(path):
            raise Refusal(415, "not_a_zip", "is not a zip: pack the photographs as .zip")
        self._file = _File(path, self._limits)
        try:
            self._zip = self._open()
            self.members, self.left_out = self._list()
            self._left = self._most_unpacked(os.fstat(self._file.fileno()).st_size)
            self._refuse_shared_bytes()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> "Archive":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Nothing can be read any more."""
        self._zip.close()
        self._file.close()

    def read(self, member: Member) -> bytearray:
        """The content of a file, complete and with the check sum that the zip names.

        Raises:
            Refusal: 422 where it is damaged, not of the length in the directory, or an archive itself, 413 beyond a
                limit, and whatever `member.refusal` is.
        """
        if member.refusal is not None:
            raise member.refusal
        data = bytearray()
        try:
            with self._zip.open(member._info) as file:
                while chunk := file.read(_CHUNK):
                    data += chunk
                    self._left -= len(chunk)
                    if self._left < 0:
                        raise self._too_much()
                    if len(data) == len(chunk) and is_archive(data):
                        raise Refusal(
                            422,
                            "archive_in_archive",
                            "is an archive inside the zip: unpack it and send its photographs",
                        )
        except Refusal:
            raise
        except Exception:  # a damaged zip raises nearly anything, and names of this machine may be in it
            raise _damaged_member("it cannot be unpacked, or its check sum is another") from None
        if len(data) != member._info.file_size:
            raise _damaged_member("its length differs from the one in the directory")
        return data

    # -- the directory --------------------------------------------------------------------------------------------

    def _open(self) -> ZipFile:
        _refuse_parts(self._file)
        try:
            found = ZipFile(self._file)
        except Refusal:
            raise
        except UnicodeDecodeError:
            raise _damaged("a name marked as UTF-8 is not UTF-8") from None
        except NotImplementedError:
            raise Refusal(422, "unknown_zip", "needs a newer unpacker: save it as a plain zip") from None
        except Exception:
            raise _damaged("its directory cannot be read; was it copied completely?") from None
        self._file.looks = False
        return found

    def _list(self) -> tuple[list[Member], int]:
        limits = self._limits
        names: set[str] = set()
        members = []
        encrypted = False
        for info in self._zip.infolist():
            name = _name(info)
            refusal = _refuse_name(name) or _refuse_kind(name, info)
            if refusal is None and _goes_unsaid(name, info):
                continue
            encrypted |= bool(info.flag_bits & _ENCRYPTED)
            refusal = refusal or _refuse_content(info, limits)
            if refusal is None and name in names:
                refusal = Refusal(422, "duplicate_name", "there is another of this name before it in the zip")
            names.add(name)
            members.append(Member(shown(name), refusal, info))
        if not members:
            raise Refusal(422, "no_image", "holds no files: put photographs into it")
        if len(members) > limits.files:
            raise Refusal(
                413, "too_many_files", f"holds {len(members)} files, over the limit of {limits.files}: split it"
            )
        if encrypted:
            raise Refusal(422, "encrypted", "is encrypted: save it without a password")
        return members, len(self._zip.infolist()) - len(members)

    def _most_unpacked(self, length: int) -> int:
        """How many bytes may be unpacked in all."""
        most = min(self._limits.total_bytes, max(_FREE_OF_THE_RATIO, self._limits.ratio * length))
        if sum(info.file_size for info in self._read_infos()) > most:
            raise self._too_much()
        return most

    def _refuse_shared_bytes(self) -> None:
        """Files that lie on top of each other: each of a thousand may then be a gigabyte in one zip of a megabyte.

        Source: D. Fifield, "A better zip bomb", WOOT 2019.
        """
        last = 0
        for begin, end in sorted(self._extent(info) for info in self._read_infos()):
            if begin < last:
                raise Refusal(422, "shared_bytes", "is a trap: files in it share the same bytes")
            last = end

    def _extent(self, info: ZipInfo) -> tuple[int, int]:
        """From where to where a file lies, header and data, as `read` will read it."""
        begin = info.header_offset
        try:
            self._file.seek(begin)
            header = self._file.read(_LOCAL_BYTES)
        except (OSError, ValueError, OverflowError):
            header = b""
        if len(header) < _LOCAL_BYTES or not header.startswith(_LOCAL):
            return begin, begin  # nothing will be read
        name_length, extra_length = struct.unpack("<HH", header[26:30])
        return begin, begin + _LOCAL_BYTES + name_length + extra_length + info.compress_size

    def _read_infos(self) -> Iterator[ZipInfo]:
        return (member._info for member in self.members if member.refusal is None)

    def _too_much(self) -> Refusal:
        return Refusal(
            413, "zip_too_long", "unpacks to more than is allowed: send fewer or smaller photographs at once"
        )


def is_zip(path: Path) -> bool:
    """Whether a file begins as a zip does, whatever it is called; False where it cannot be read."""
    return beginning(path, 4) in _BEGINNINGS


def is_archive(data: bytes | bytearray) -> bool:
    """Whether something begins as an archive of a usual kind."""
    return bytes(data[:4]) in _BEGINNINGS or data.startswith(_OTHER_ARCHIVES) or data[_TAR] == b"ustar"


def beginning(path: Path, length: int) -> bytes:
    """The first bytes of a regular file; none where there is none, or it cannot be read."""
    try:
        if not stat.S_ISREG(os.lstat(path).st_mode):  # a link, or a pipe that would never end
            return b""
        with open(path, "rb") as file:
            return file.read(length)
    except OSError:
        return b""


def shown(name: str) -> str:
    """A name as it may be shown: on one line, without what hides or turns round its letters, and not too long."""
    clean = "".join("\N{REPLACEMENT CHARACTER}" if _is_hidden(letter) else letter for letter in name)
    if len(clean) <= _SHOWN_LENGTH:
        return clean
    half = _SHOWN_LENGTH // 2
    return f"{clean[: half - 1]}…{clean[-half:]}"  # numbers and endings are at the end


class _File(io.FileIO):
    """A zip whose directory is looked at before `zipfile` makes an object of each entry."""

    def __init__(self, path: Path, limits: ArchiveLimits) -> None:
        super().__init__(path)
        self._entries, self.looks = limits.entries, True

    def read(self, size: int | None = -1, /) -> bytes:
        if not self.looks:
            return super().read(size) or b""
        most = _END_BYTES + _LONGEST_COMMENT + _ENTRY_BYTES * self._entries
        data = super().read(most + 1 if size is None or size < 0 else min(size, most + 1)) or b""
        # The count that the zip names may be forged; what it lists cannot be fewer.
        if len(data) > most or (data.startswith(_CENTRAL) and data.count(_CENTRAL) > self._entries):
            raise Refusal(413, "too_many_files", f"lists more than {self._entries} files and folders: split it")
        return data


def _refuse_parts(file: _File) -> None:
    """Refuse zips in several files (.z01, .z02 …) with a clearer message than that of `zipfile`."""
    refusal = Refusal(422, "one_of_several", "is one part of a zip in several files: save it as a single one")
    file.seek(0)
    if file.read(4) == _ONE_OF_SEVERAL:
        raise refusal
    length = file.seek(0, os.SEEK_END)
    file.seek(max(0, length - _END_BYTES - _LONGEST_COMMENT))
    tail = file.read(_END_BYTES + _LONGEST_COMMENT)
    end, place = tail.rfind(_END), tail.rfind(_END64_PLACE)
    if 0 <= end <= len(tail) - _END_BYTES and struct.unpack_from("<H", tail, end + 4)[0] not in (0, 0xFFFF):
        raise refusal
    if 0 <= place == end - 20 and struct.unpack_from("<L", tail, place + 16)[0] > 1:
        raise refusal


def _name(info: ZipInfo) -> str:
    """The name as it was meant: macOS writes UTF-8 without saying so."""
    if not info.flag_bits & _UTF8:
        try:
            return info.orig_filename.encode("cp437").decode("utf-8")
        except UnicodeError:
            pass
    return info.orig_filename


def _refuse_name(name: str) -> Refusal | None:
    """Refuse names that would lead out of a folder, or are not what they look like."""
    if not name:
        return Refusal(422, "unsafe_name", "has no name")
    if any(unicodedata.category(letter) == "Cc" for letter in name):
        return Refusal(422, "unsafe_name", "has control characters in its name: rename it")
    if name.startswith(("/", "\\")) or name[1:2] == ":":  # Windows takes any character before it for a drive
        return Refusal(422, "unsafe_name", "names a place of its own on the disk: pack it again by its name alone")
    if any(part.strip() == ".." for part in re.split(r"[/\\]", name)):
        return Refusal(422, "unsafe_name", "its name leads out of the folder (..): pack it again without")
    if "\\" in name:
        return Refusal(422, "unsafe_name", "has a backslash in its name: rename it, or pack it with another program")
    return None


def _refuse_kind(name: str, info: ZipInfo) -> Refusal | None:
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind == stat.S_IFLNK:
        return Refusal(422, "link", "is a link, not a photograph: links are not followed")
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        return Refusal(422, "not_a_file", "is a device or pipe, not a photograph")
    if (kind == stat.S_IFDIR or name.endswith("/")) and info.file_size:
        return Refusal(422, "not_a_file", "is marked as a folder, but has content")
    return None


def _goes_unsaid(name: str, info: ZipInfo) -> bool:
    """Folders, and what desktops and storage devices put into them unasked."""
    *folders, file = name.split("/")
    return (
        not file
        or stat.S_ISDIR(info.external_attr >> 16)
        or folders[:1] == ["__MACOSX"]
        or any(map(is_leftover_name, folders))
        or file in (".DS_Store", "Thumbs.db")
    )


def _refuse_content(info: ZipInfo, limits: ArchiveLimits) -> Refusal | None:
    # zipfile reads further methods, but unpacks theirs without a bound.
    if info.compress_type not in (ZIP_STORED, ZIP_DEFLATED):
        return Refusal(422, "unknown_compression", "is packed by an unusual method: save the zip with plain deflate")
    if info.file_size > limits.member_bytes:
        return Refusal(413, "file_too_long", f"is over the limit of {limits.member_bytes / MIB:g} MiB")
    return None


def _is_hidden(letter: str) -> bool:
    return unicodedata.category(letter) in ("Cc", "Cs", "Co", "Zl", "Zp") or letter in _BIDI_AND_BLANKS


def _damaged(why: str) -> Refusal:
    return Refusal(422, "damaged_zip", f"is a damaged zip: {why}")


def _damaged_member(why: str) -> Refusal:
    return Refusal(422, "damaged", f"damaged in the zip: {why}")
