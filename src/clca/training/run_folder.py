"""A run is a folder: `config.json`, `metrics.jsonl`, `model.safetensors`, `last.ckpt`, `summary.json`.

Every file but the growing `metrics.jsonl` is written beside its place and then renamed, so that an interruption or a
full disk leaves the previous one whole.
"""

import csv
import io
import json
import os
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

from clca.errors import ClcaError, WorkError, reason
from clca.models.stored_model import check_count
from clca.system.files import parse_json, part, read_bounded
from clca.training.config import TrainConfig, identity

CONFIG, METRICS, WEIGHTS, CHECKPOINT, SUMMARY = (
    "config.json",
    "metrics.jsonl",
    "model.safetensors",
    "last.ckpt",
    "summary.json",
)
FILES = (CONFIG, METRICS, WEIGHTS, CHECKPOINT, SUMMARY)

State = Literal["new", "started", "finished"]


@contextmanager
def replacing(path: Path, *, in_own_folder: bool = False) -> Iterator[Path]:
    """A temporary file in the same folder that takes the place of `path` once the block ends without an error.

    A symlink stays, and what it points to is replaced. A FIFO or a device stays too: it is given the content of a
    temporary file that lies elsewhere.

    Args:
        path: The file, there or not.
        in_own_folder: The temporary file has the name of the file, in a folder in which other files may be left; they
            are removed with it. Whether that can be made is told before the block begins.

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
        told = str(error)
        if isinstance(error, WorkError) or not any(
            word in told for word in ("PytorchStreamWriter", "inline_container", "write")
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
    """Whether it is there to be written to and not to be replaced: a device, a FIFO, an open file such as /dev/stdout.

    An open file may be a regular one that the shell appends to.
    """
    return (os.path.exists(path) and not os.path.isfile(path)) or str(path).startswith(
        ("/dev/std", "/dev/fd/", "/proc/")
    )


def refuse_run_file(out: Path, run: Path) -> None:
    """Refuse a file to write to that is one of those a run or a saved model is made of, also through links.

    Args:
        out: The file, there or not.
        run: The run at hand; others are known by the `config.json` beside `out`.

    Raises:
        ClcaError: It is one.
    """
    target = Path(os.path.realpath(out))
    for folder in (run, out.parent, target.parent):
        if (folder / CONFIG).is_file() and str(target) in (os.path.realpath(folder / name) for name in FILES):
            raise ClcaError(f"--out {out}: is a file of the run or saved model in {folder}; choose another name")


def write_json(path: Path, content: dict[str, Any]) -> None:
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n")


def write_csv(path: Path, heads: Sequence[str], rows: Iterable[Iterable[Any]]) -> None:
    """Write a table as UTF-8, a line a row.

    Raises:
        WorkError: It could not be written; what was there before is still there.
    """
    with replacing(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv_writer(file)
        writer.writerow(heads)
        writer.writerows(rows)


_LARGEST_CSV, _MOST_CELLS = 16 << 20, 2_000_000


def read_csv(path: Path) -> list[list[str]]:
    """Lines of a table; none where there is no such file, it cannot be read, or is larger than an evaluation leaves.

    A table of the confusions of 1,400 classes has two million cells.
    """
    try:
        content = read_bounded(path, _LARGEST_CSV)
        if content.count(b",") + content.count(b"\n") > _MOST_CELLS:
            return []
        return [line for line in csv.reader(io.StringIO(content.decode("utf-8"), newline="")) if line]
    except (OSError, ValueError, csv.Error):
        return []


def csv_writer(file: IO[str]) -> Any:
    """A writer of `csv` whose lines end in a line feed alone.

    Told to end them so, `csv` would not quote a carriage return in a name.
    """
    return csv.writer(_LineFeeds(file))


class _LineFeeds:
    def __init__(self, file: IO[str]) -> None:
        self._file = file

    def write(self, line: str) -> None:
        self._file.write(line.removesuffix("\r\n") + "\n")


@contextmanager
def left_as_it_was(folder: Path) -> Iterator[None]:
    """When the block fails or is interrupted and has left a new folder empty, remove it."""
    new = not folder.exists()
    try:
        yield
    except BaseException:
        if new:
            with suppress(OSError):
                folder.rmdir()
        raise


def make_writable(folder: Path) -> None:
    """Make the folder and prove that files can be written there.

    Raises:
        ClcaError: They cannot, with the reason.
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
    """Refuse a folder whose disk has not `size` bytes left.

    Raises:
        ClcaError: With what is needed and what there is.
    """
    free = shutil.disk_usage(folder).free
    if free < size:
        raise ClcaError(
            f"--out {folder}: a checkpoint of this model needs {size / 2**20:.0f} MB and the disk has "
            f"{free / 2**20:.0f} MB left; make room or choose another folder"
        )


def find_run(folder: Path, config: TrainConfig) -> State:
    """What the folder holds: nothing yet, this run begun, or this run finished.

    Raises:
        ClcaError: It holds another run, or files that are not a run's.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return "new"
    if not folder.is_dir():
        raise ClcaError(f"--out {folder}: is a file; choose another folder")
    if not (folder / CONFIG).is_file():
        if all(entry.name.startswith(".") or _is_mere_claim(entry) for entry in folder.iterdir()):
            return "new"
        raise ClcaError(f"--out {folder}: holds other files and no run; choose a new folder")
    stored = read_config(folder)
    if "train" not in stored:
        raise ClcaError(f"--out {folder}: holds a saved model, not a run; choose another folder")
    there, here = identity(stored_config(folder)), identity(config)
    different = [name for name in here if here[name] != there.get(name)]
    if different:
        listed = ", ".join(f"{name} is {there.get(name)!r} there and {here[name]!r} now" for name in different[:3])
        more = f" and {len(different) - 3} more" if len(different) > 3 else ""
        raise ClcaError(f"--out {folder}: holds a different run ({listed}{more}); choose another folder")
    return "finished" if (folder / SUMMARY).is_file() else "started"


def _is_mere_claim(path: Path) -> bool:
    """Whether it is all that a run has left which ended before it was described."""
    return path.name == METRICS and path.is_file() and not path.stat().st_size


def read_config(folder: Path) -> dict[str, Any]:
    """The content of `config.json`.

    Raises:
        ClcaError: There is none, or it cannot be read.
    """
    path = folder / CONFIG
    try:
        content = parse_json(read_bounded(path))
    except (FileNotFoundError, NotADirectoryError):
        raise ClcaError(
            f"{folder}: no {CONFIG} there, so it is no run; name the folder that clca train wrote"
        ) from None
    except (OSError, ValueError) as error:
        raise ClcaError(f"{path}: cannot be read ({reason(error)})") from None
    if not isinstance(content, dict):
        raise ClcaError(f"{path}: is not a run's configuration")
    return content


def stored_config(folder: Path) -> TrainConfig:
    """The `TrainConfig` that a run was started with.

    Raises:
        ClcaError: The folder is no run, or one of another version of this program.
    """
    stored = read_config(folder)
    check_count(stored.get("train"), str(folder / CONFIG))
    try:
        return TrainConfig.model_validate(stored["train"])
    except KeyError:
        raise ClcaError(f"{folder}: holds a saved model, not a run") from None
    except ValueError as error:
        raise ClcaError(f"{folder / CONFIG}: settings of another version of clca ({type(error).__name__})") from None


def begun_precision(folder: Path) -> str:
    """The precision that a run was begun with: "no", "bf16" or "fp16"; "auto" where its folder does not say."""
    precision = part(read_config(folder), "resolved").get("precision")
    return precision if precision in ("no", "bf16", "fp16") else "auto"


@dataclass(frozen=True)
class OwnImages:
    """The images that a run was made from."""

    name: str
    """As the run's settings name them."""
    root: str
    """Where they are read from here."""
    source: str | None
    train_split: str


def own_images(run: str | Path) -> OwnImages | None:
    """The images that a run was made from, or None for what is no run: a hub id, a saved model.

    A relative path is looked for here, then in the folder that the run was started in.

    Raises:
        ClcaError: The run's settings cannot be read.
    """
    run = Path(run)
    stored = read_config(run) if run.is_dir() else {}
    if "train" not in stored:
        return None
    own = stored_config(run).data
    root, started_in = own.root, part(stored, "resolved").get("started_in")
    there = os.path.join(started_in, root) if isinstance(started_in, str) else root
    if not os.path.exists(root) and os.path.exists(there):
        root = there
    return OwnImages(own.root, root, own.source, own.train_split)


def distinct(runs: Iterable[str]) -> tuple[str, ...]:
    """Runs and models without those that were named before; two paths of one folder name one run.

    Raises:
        ClcaError: A name is empty.
    """
    found: dict[str, str] = {}
    for run in runs:
        if not run.strip():
            raise ClcaError("the name of a run or model is empty: name a folder or a model")
        found.setdefault(os.path.realpath(run) if os.path.isdir(run) else run, run)
    return tuple(found.values())


def told_apart(runs: Iterable[str]) -> dict[str, str]:
    """A name for each that no other has: its folder's, with as many of the folders above as that takes.

    A folder called `run`, as a study makes them, goes by the one above. What is no folder here keeps its name.
    """
    tails = {run: _tails(run) for run in runs}
    chosen = dict.fromkeys(tails, 0)
    while True:
        names = {run: tails[run][number] for run, number in chosen.items()}
        count = Counter(names.values())
        alike = [run for run, name in names.items() if count[name] > 1 and chosen[run] + 1 < len(tails[run])]
        if not alike:
            return names
        for run in alike:
            chosen[run] += 1


def _tails(run: str) -> list[str]:
    """What a run may be called, shortest first."""
    if not os.path.isdir(run):
        return [run]
    parts = Path(run).resolve().parts
    tails = ["/".join(parts[-count:]) for count in range(1, len(parts))]
    if parts[-1] == "run" and len(parts) > 2:
        return [name for tail in tails[1:] for name in (tail.removesuffix("/run"), tail)]
    return tails or [run]


def remove_leftovers(folder: Path) -> None:
    """Remove what a process that was killed while it wrote a file of the run has left beside it."""
    names = "|".join(map(re.escape, FILES))
    ours = re.compile(rf"\.({names})\.(\d+\.tmp|[a-z0-9_]{{8}})")  # of `replacing` and of `save_pretrained`
    for path in folder.iterdir():
        if ours.fullmatch(path.name):
            with suppress(OSError):
                path.unlink()
