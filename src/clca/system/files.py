"""Atomic writing of files; tolerant reading of JSON and CSV that may be truncated or edited."""

import csv
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
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


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a file; None where there is none, or no whole one."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):  # RecursionError: nested too deeply
        return None
    return content if isinstance(content, dict) else None


def objects(lines: Iterable[str | bytes]) -> Iterator[dict[str, Any]]:
    """The objects in lines of a file that may still be growing: what is not whole is left out."""
    for line in lines:
        try:
            content = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(content, dict):
            yield content


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


def write_csv(path: Path, heads: Sequence[str], rows: Iterable[Iterable[Any]]) -> None:
    """Write a table as UTF-8, a line a row.

    Raises:
        WorkError: It could not be written; what was there before is still there.
    """
    with replacing(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv_writer(file)
        writer.writerow(heads)
        writer.writerows(rows)


def read_csv(path: Path) -> list[list[str]]:
    """Lines of a table; none where there is no such file, or it cannot be read."""
    try:
        with open(path, newline="", encoding="utf-8") as file:
            return [line for line in csv.reader(file) if line]
    except (OSError, ValueError, csv.Error):
        return []


def csv_writer(file: IO[str]) -> Any:
    """A writer of `csv` whose lines end in a line feed alone.

    With `lineterminator` set to that, `csv` would not quote a carriage return in a name.
    """
    return csv.writer(_LineFeeds(file))


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
