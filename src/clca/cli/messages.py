"""What the command line writes to stderr: errors, warnings, and what the library logs, one line each."""

import contextlib
import logging
import os
import sys
import warnings
from collections.abc import Iterator

import clca
from clca.system.paths import shown
from clca.system.processes import is_first_on_its_machine

_python_format = warnings.formatwarning


class StderrHandler(logging.Handler):
    """Writes a record as one line to stderr, from the first process of each machine.

    It looks up `sys.stderr` for every record, which a progress bar replaces while it is shown.
    """

    def emit(self, record: logging.LogRecord) -> None:
        if is_first_on_its_machine():
            with contextlib.suppress(OSError, ValueError):  # stderr is closed or full
                prefix = "clca: warning: " if record.levelno >= logging.WARNING else ""
                print(f"{prefix}{shown(record.getMessage())}", file=sys.stderr)


@contextlib.contextmanager
def logging_to_stderr() -> Iterator[None]:
    """Write what the library logs, from INFO on, to stderr."""
    logger, handler = logging.getLogger("clca"), StderrHandler()
    level = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def print_at_once(line: str) -> None:
    """Print what a command is about to do as the first line of its output, before work that may take minutes."""
    print(line[:1].upper() + line[1:], flush=True)


def print_error(line: str) -> None:
    """Print one line on stderr, from the first process of each machine."""
    if is_first_on_its_machine():
        print(f"clca: {shown(line)}", file=sys.stderr)


def format_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """Format a warning of this library as one line without its place in the source; others as Python does."""
    if not filename.startswith(os.path.dirname(clca.__file__) + os.sep):
        return _python_format(message, category, filename, lineno, line)
    return f"clca: warning: {shown(str(message))}\n" if is_first_on_its_machine() else ""
