"""The command line: runs a command; an error ends in one line and an exit code."""

import errno
import gc
import io
import os
import signal
import sys
import warnings
from collections.abc import Sequence

from clca.cli.dispatch import Table, dispatch
from clca.cli.messages import format_warning, logging_to_stderr, print_error
from clca.errors import ClcaError, WorkError, reason

SUMMARY = "Token reduction with Cross-Layer Cache Aggregation on any timm ViT."
MORE = "With any of them: --import FILE.py for a token reduction of your own, --debug for the traceback of an error."
COMMANDS: Table = {
    "demo": ("demo", "See it work in a few minutes, without downloads"),
    "train": ("train", "Train a model on your images"),
    "evaluate": ("evaluate", "Accuracy of a run, overall and by class, and its cost"),
    "predict": ("predict", "Classify photographs"),
    "tune": ("tune", "Find the most accurate run and keep rate within a budget, on this machine"),
    "benchmark": ("benchmark", "Measure how much faster token reduction is on this machine"),
    "study": ("study", "Plan, run and follow many runs as one, here or on a cluster"),
    "report": ("report", "Turn a study, or one run, into a page of tables and figures"),
    "export": ("export", "Export a run to one ONNX or torch.export file, checked against PyTorch"),
    "app": ("app", "Serve a web page that classifies photographs and shows why"),
    "serve": ("serve", "Classify photographs over HTTP, in batches"),
    "data": ("data", "Check a data set, draw a synthetic one, or list cached images"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; an error ends in one line on stderr.

    Returns:
        0; 1 if the work failed, 2 if the request is wrong, 130 after Ctrl-C, 143 after SIGTERM.
    """
    # Loading torch makes a million objects that stay: going through them again and again is a fifth of the start.
    gc.set_threshold(50_000, 20, 20)
    argv = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in argv or os.environ.get("CLCA_DEBUG", "") not in ("", "0")
    argv = [word for word in argv if word != "--debug"]
    warnings.formatwarning = format_warning
    _escape_what_cannot_be_printed()
    try:
        with logging_to_stderr():
            return _run(_import_own_reductions(argv))
    except KeyboardInterrupt as stop:
        print_error(str(stop) or "interrupted")
        return 128 + getattr(stop, "signal", signal.SIGINT)
    except BrokenPipeError:  # the reader of our output has gone, as `head` does
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (the interpreter flushes it on the way out)
        return 1
    except Exception as error:
        if debug:
            raise
        code, line = _line(error)
        print_error(line)
        return code


def _run(argv: list[str]) -> int:
    """Run the command that the words name."""
    if argv and argv[0] in ("-V", "--version"):
        from importlib.metadata import version

        print(f"clca {version('clca')}")
        return 0
    ended: int | SystemExit
    try:
        ended = dispatch("clca", SUMMARY, COMMANDS, argv, MORE)
    except SystemExit as end:  # after --help
        ended = end
    if sys.stdout is not None:
        sys.stdout.flush()  # buffered output has to fail here, not when the interpreter exits
    if isinstance(ended, SystemExit):
        raise ended
    return ended


def _import_own_reductions(argv: list[str]) -> list[str]:
    """The words without `--import MODULE`, which may stand anywhere; its modules join those of `CLCA_IMPORT`."""
    words, modules = [], []
    rest = iter(argv)
    for word in rest:
        flag, has_value, value = word.partition("=")
        if flag != "--import":
            words.append(word)
            continue
        module = value if has_value else next(rest, "")
        if not module or module.startswith("-"):
            raise ClcaError("--import needs a Python file with a reduction of your own, such as --import tps.py")
        modules.append(module)
    if modules or os.environ.get("CLCA_IMPORT"):
        from clca.reductions.plugins import offer

        offer(modules)
    return words


def _escape_what_cannot_be_printed() -> None:
    """In a terminal of another encoding than UTF-8, print `\\u8d64` for a letter that it lacks, rather than fail."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and "utf" not in stream.encoding.lower():
            stream.reconfigure(errors="backslashreplace")


def _line(error: Exception) -> tuple[int, str]:
    """Exit code and line for an error: 2 for a wrong request, 1 for failed work."""
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, ClcaError):
        return 2, text
    if isinstance(error, WorkError):
        return 1, text
    if type(error).__name__ == "ValidationError":
        from clca.system.settings import explain

        return 2, explain(error)  # type: ignore[arg-type]
    if isinstance(error, OSError):
        wrong = isinstance(error, (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError))
        why = reason(error)
        if error.filename:
            return 2 if wrong else 1, f"{error.filename}: {why}"
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF) and _stdout_fails():
            return 1, f"standard output could not be written: {why}"
        return 1, why
    if type(error).__name__ == "OutOfMemoryError":
        return 1, "the device is out of memory: try a smaller --batch-size, --grad-accum 2 or --grad-checkpointing"
    return 1, f"{type(error).__name__}: {text} (--debug shows the traceback)"


def _stdout_fails() -> bool:
    """Whether not even an empty line can be written to standard output; what it still holds is dropped then."""
    try:
        print(flush=True)
    except OSError:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (the interpreter flushes it on the way out)
        return True
    return False
