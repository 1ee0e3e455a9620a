"""Atomic writing of files; strict, bounded reading of JSON and CSV that may be truncated, edited or hostile."""

import csv
import io
import json
import math
import os
import shutil
import stat
import tempfile
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from numbers import Number
from pathlib import Path
from typing import IO, Any

from clca.errors import ClcaError, WorkError, reason


@contextmanager
def replacing(path: Path, *, in_own_folder: bool = False) -> Iterator[Path]:
    """A temporary file in the same folder that takes the place of `path` once the block ends without an error.

    A symlink stays, and what it points to is replaced. A FIFO or a device stays too: it is given the content of a
    temporary file that lies elsewhere.

    Args:
        path: The file, there or not.
        in_own_folder: The temporary file has the name of the file, in a folder in which other files may be left; they
            are removed with it. If it cannot be made, the error is raised before the block begins.

    Raises:
        ClcaError: With `in_own_folder`, `path` is a folder, or none can be made beside it.
        WorkError: It could not be written; what was there before is still there.
    """
    target, stream = Path(os.path.realpath(path)), _is_stream(path)
    if in_own_folder and target.is_dir():
        raise ClcaError(f"{path}: is a folder; name a file")
    whole = "" if stream else "; the previous one, if any, is whole"
    try:
        with _temporary_folder(target, stream, in_own_folder) as folder:
            temporary = Path(folder, target.name if in_own_folder else f".{target.name}.{os.getpid()}.tmp")
            try:
                yield temporary
                if stream:
                    with open(temporary, "rb") as content, open(path, "ab") as there:
                        shutil.copyfileobj(content, there)
                else:
                    with open(temporary, "rb+") as file:
                        os.fsync(file.fileno())
                    os.replace(temporary, target)
            finally:
                temporary.unlink(missing_ok=True)
    except OSError as error:
        raise WorkError(f"{path} could not be written ({reason(error)}){whole}") from error
    except RuntimeError as error:  # torch's own writer reports a full disk as this
        message = str(error)
        if isinstance(error, WorkError) or not any(
            word in message for word in ("PytorchStreamWriter", "inline_container", "write")
        ):
            raise
        raise WorkError(f"{path} could not be written (is the disk full?){whole}") from error


def _temporary_folder(target: Path, elsewhere: bool, own: bool) -> AbstractContextManager[str | Path]:
    if elsewhere:
        return tempfile.TemporaryDirectory()
    if not own:
        return nullcontext(target.parent)
    try:
        return tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent)
    except OSError as error:
        raise ClcaError(f"{target}: nothing can be written there ({reason(error)}); choose another place") from None


def _is_stream(path: Path) -> bool:
    """Whether a path is to be written to rather than replaced: a device, a FIFO, an open file such as /dev/stdout.

    An open file may be a regular one that the shell appends to.
    """
    return (os.path.exists(path) and not os.path.isfile(path)) or str(path).startswith(
        ("/dev/std", "/dev/fd/", "/proc/")
    )


@contextmanager
def temporary_beside(target: Path) -> Iterator[Path]:
    """A new file next to the target that replaces it atomically when the block ends without an error."""
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
    temporary.touch(exist_ok=False)
    mode = temporary.stat().st_mode & 0o777  # by the user's umask; safetensors makes files readable by their owner only
    try:
        yield temporary
        os.chmod(temporary, mode)
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_json(path: Path, content: dict[str, Any]) -> None:
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n")


MOST_BYTES = 4 * 2**20
"""Of a `config.json`, the header of a weights file, a line of metrics: names of 100,000 classes fit."""

_MOST_CONTAINERS = 200_000  # an empty list of two bytes takes 56 in memory
_DEEPEST = 64


def read_bounded(path: Path, most: int = MOST_BYTES) -> bytes:
    """The content of a file that is not larger than expected.

    Raises:
        ClcaError: It is larger, or no regular file: a FIFO has no end that one could wait for, nor a device.
        OSError: It cannot be read.
    """
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    with open(handle, "rb") as file:
        kind = os.fstat(handle)
        if stat.S_ISDIR(kind.st_mode):
            raise ClcaError("is a folder")
        if not stat.S_ISREG(kind.st_mode):
            raise ClcaError("is no regular file")
        content = file.read(most + 1) if kind.st_size <= most else b""
    if len(content) > most or kind.st_size > most:
        raise ClcaError(f"is larger than {most / 2**20:g} MiB, which no such file is")
    return content


def parse_json(content: bytes) -> Any:
    """Parse JSON strictly: UTF-8, finite numbers, every name once, and at most 64 levels.

    Raises:
        ValueError: It is not such JSON.
    """
    if content.count(b"[") + content.count(b"{") > _MOST_CONTAINERS:
        raise ValueError(f"more than {_MOST_CONTAINERS} lists and objects")
    try:
        found = json.loads(
            content.decode("utf-8"),
            object_pairs_hook=_once,
            parse_constant=_no_number,
            parse_float=_finite,
            parse_int=_whole,
        )
    except RecursionError:
        raise ValueError(f"nested more than {_DEEPEST} deep") from None
    level, depth = [found], 0
    while level:
        level = [
            part
            for each in level
            if isinstance(each, (dict, list))
            for part in (each.values() if isinstance(each, dict) else each)
            if isinstance(part, (dict, list))
        ]
        depth += 1
        if depth > _DEEPEST:
            raise ValueError(f"nested more than {_DEEPEST} deep")
    return found


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"{twice[:60]!r} occurs twice")
    return found


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")


def _whole(text: str) -> int:
    """An integer that fits 64 bits: a longer one of up to 4,300 digits would overflow every float it is made into."""
    if len(text) > 20 or abs(value := int(text)) >= 2**64:
        raise ValueError(f"the number {text[:20]} is too large")
    return value


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:20]} is too large")
    return value


def read_json(path: Path, most: int = 4 * MOST_BYTES) -> dict[str, Any] | None:
    """The object in a file; None where there is none, no whole one, or one larger than `most` bytes."""
    try:
        content = parse_json(read_bounded(path, most))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def objects(lines: Iterable[str | bytes]) -> Iterator[dict[str, Any]]:
    """The objects in lines of a file that may still be growing: what is not whole is left out."""
    for line in lines:
        try:
            content = parse_json(line if isinstance(line, bytes) else line.encode())
        except ValueError:
            continue
        if isinstance(content, dict):
            yield content


def file_objects(path: Path, most: int = 16 * MOST_BYTES) -> Iterator[dict[str, Any]]:
    """The objects in the lines of a file, as `objects`; none where it cannot be read.

    Args:
        path: The file.
        most: Bytes of it that are read.
    """
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except OSError:
        return
    with open(handle, "rb") as file:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            return
        while most > 0 and (line := file.readline(min(most, MOST_BYTES))):
            most -= len(line)
            yield from objects([line])


def part(content: Mapping[str, Any], name: str) -> dict[str, Any]:
    """An object within an object; empty where there is none, or something else."""
    found = content.get(name)
    return found if isinstance(found, dict) else {}


def as_utf8(content: Any) -> Any:
    """Texts, also those in lists and dictionaries, with what of a file's name is not UTF-8 as \\udcf1."""
    if isinstance(content, str):
        return content if content.isascii() else content.encode(errors="backslashreplace").decode()
    if isinstance(content, dict):
        return {as_utf8(name): as_utf8(value) for name, value in content.items()}
    return [as_utf8(value) for value in content] if isinstance(content, list) else content


def write_csv(path: Path, heads: Sequence[str], rows: Iterable[Iterable[Any]], errors: str = "strict") -> None:
    """Write a table as `csv_writer` does, a line a row.

    Args:
        path: Replaced where it exists.
        heads: Names of the columns.
        rows: Cells; numbers as numbers.
        errors: What becomes of text that is not Unicode, as for `open`.

    Raises:
        WorkError: It could not be written; what was there before is still there.
    """
    encoding = csv_encoding(path)
    with replacing(path) as temporary, open(temporary, "w", newline="", encoding=encoding, errors=errors) as file:
        writer = csv_writer(file)
        writer.writerow(heads)
        writer.writerows(rows)


def csv_encoding(path: Path) -> str:
    """UTF-8 with a byte order mark for a file, without one for a pipe or device, or an open file that is appended to.

    Without the mark Excel reads names in the local code page. pandas, readr and LibreOffice skip it; Python's `csv`
    needs `encoding="utf-8-sig"`.
    """
    return "utf-8" if _is_stream(path) else "utf-8-sig"


_LARGEST_CSV, _MOST_CELLS = 16 << 20, 2_000_000


def read_csv(path: Path) -> list[list[str]]:
    """Lines of a table; none where there is no such file, it cannot be read, or is larger than an evaluation leaves.

    A table of the confusions of 1,400 classes has two million cells. Names are as they were before `csv_writer` made
    them harmless in a spreadsheet.
    """
    try:
        content = read_bounded(path, _LARGEST_CSV)
        if content.count(b",") + content.count(b"\n") > _MOST_CELLS:
            return []
        lines = csv.reader(io.StringIO(content.decode("utf-8-sig"), newline=""))
        return [[original_cell(cell) for cell in line] for line in lines if line]
    except (OSError, ValueError, csv.Error):
        return []


class CsvWriter:
    """Writes the rows of a table as CSV: harmless in a spreadsheet, and with lines that end in a line feed alone.

    All tables of the library are written here. A text that a spreadsheet would take for a formula gets an apostrophe
    before it (`original_cell` takes it away); numbers stay numbers, negative ones too. A cell of None is empty.

    Args:
        file: Opened with `newline=""`; for a file on disk in `csv_encoding`.
    """

    def __init__(self, file: IO[str]) -> None:
        # With `lineterminator` set to a line feed, `csv` would not quote a carriage return in a name.
        self._writer = csv.writer(_LineFeeds(file))

    def writerow(self, cells: Iterable[Any]) -> None:
        self._writer.writerow([harmless_cell(cell) for cell in cells])

    def writerows(self, rows: Iterable[Iterable[Any]]) -> None:
        for row in rows:
            self.writerow(row)


def csv_writer(file: IO[str]) -> CsvWriter:
    """A writer with the `writerow` and `writerows` of Python's `csv`, for texts of any origin."""
    return CsvWriter(file)


# Beginnings that a spreadsheet takes for a formula; the wide ones too, which some change into the others.
_FORMULA = tuple("=+-@\t\r\n＝＋－＠")


def harmless_cell(cell: Any) -> Any:
    """A number or None as it is; anything else as text, with an apostrophe before what a spreadsheet would execute."""
    if cell is None or isinstance(cell, Number):
        return cell
    text = str(cell)
    return f"'{text}" if _needs_apostrophe(text) else text


def original_cell(text: str) -> str:
    """The text from which `harmless_cell` made this one."""
    return text[1:] if text.startswith("'") and _needs_apostrophe(text[1:]) else text


def _needs_apostrophe(text: str) -> bool:
    # Those with apostrophes of their own too, so that the original can be told. Blanks before it do not keep every
    # program from seeing a formula.
    text = text.lstrip("'")
    return text.startswith(_FORMULA) or text.lstrip().startswith(_FORMULA)


class _LineFeeds:
    def __init__(self, file: IO[str]) -> None:
        self._file = file

    def write(self, line: str) -> None:
        self._file.write(line.removesuffix("\r\n") + "\n")


@contextmanager
def left_as_it_was(folder: Path) -> Iterator[None]:
    """Remove a folder that did not exist before, if the block fails or is interrupted and leaves it empty."""
    new = not folder.exists()
    try:
        yield
    except BaseException:
        if new:
            with suppress(OSError):
                folder.rmdir()
        raise


def make_writable(folder: Path) -> None:
    """Create the folder and check that files can be written there.

    Raises:
        ClcaError: They cannot.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".probe") as probe:
            probe.write(b"\0" * 2**16)
            probe.flush()
            os.fsync(probe.fileno())
    except OSError as error:
        raise ClcaError(
            f"--out {folder}: nothing can be written there ({reason(error)}); choose another folder"
        ) from None


def need_space(folder: Path, size: int) -> None:
    """Check that the disk of a folder has `size` bytes left.

    Raises:
        ClcaError: It has not.
    """
    free = shutil.disk_usage(folder).free
    if free < size:
        raise ClcaError(
            f"--out {folder}: a checkpoint of this model needs {size / 2**20:.0f} MB and the disk has "
            f"{free / 2**20:.0f} MB left; free some space or choose another folder"
        )
