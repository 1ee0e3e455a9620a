"""Run a piece of work in a child process with limits on its memory and its processor time.

The child is forked from a server that has imported the library and computed nothing, so that a case costs milliseconds
and its limits count what the work itself takes, not what importing does.
"""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
import resource
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from clca.errors import ClcaError

_MIB = 2**20
_RESERVED = 4 << 30  # bytes of address space, such as the arenas that pyarrow and glibc reserve for each process
_SPARE_SECONDS = 60.0  # on a busy machine, wall clock beyond the processor time that is allowed
_PRELOAD = [
    "sklearn.metrics",
    "torch",
    "timm",
    "clca",
    "clca.training",
    "clca.evaluation",
    "clca.cli.main",
    "clca.export.load",
    "clca.report.run.page",
    "clca.serve.application",
    "clca.training.settings",
    "clca.training.trainer",
    "hypothesis",
    "onnx",
    "pyarrow.parquet",
    "bounded",
    "frozen_server",  # the last: what has been imported before is left alone by the garbage collector
]

# pytest calls a test module tests.hostile.test_…; the child imports it by that name, from the parent's search path.
_ROOT = str(Path(__file__).parents[2])
if _ROOT not in sys.path:
    sys.path.append(_ROOT)


@dataclass(frozen=True)
class Outcome:
    """What became of a piece of work.

    Attributes:
        value: What the function returned, None if it raised.
        error: The class of what it raised, with its bases' names, outermost first; empty if it returned.
        message: The text of what it raised.
        trace: Its traceback, to read when a test fails.
        cpu_seconds: Processor time that it took.
        memory_mib: By how much the peak of its memory grew.
    """

    value: Any
    error: tuple[str, ...]
    message: str
    trace: str
    cpu_seconds: float
    memory_mib: float


def bounded(function: Callable[..., Any], *args: Any, memory_mib: int = 512, cpu_seconds: int = 20) -> Outcome:
    """Call `function(*args)` in a child process.

    Args:
        function: A function of a module's top level, with arguments and a result that pickle.
        memory_mib: Private writable memory it may map beyond what the imported library holds.
        cpu_seconds: Processor time it may take.

    Raises:
        pytest.fail.Exception: The child was ended by a limit, or by anything else than its own return.
    """
    start_server()
    context = multiprocessing.get_context("forkserver")
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=_work, args=(theirs, memory_mib, cpu_seconds, function, args), daemon=True)
    child.start()
    theirs.close()
    try:
        outcome = ours.recv() if ours.poll(cpu_seconds + _SPARE_SECONDS) else None
    except EOFError:
        outcome = None
    if outcome is None:
        child.join(1)
        ended = "it was still running" if child.exitcode is None else f"exit code {child.exitcode}"
        child.kill()
        child.join()
        where = f"{getattr(function, '__name__', function)}{args!r}"[:300]
        pytest.fail(f"{where} went beyond {memory_mib} MiB or {cpu_seconds} s, or crashed ({ended})")
    child.join(10)
    child.kill()
    return outcome


def refused(function: Callable[..., Any], *args: Any, memory_mib: int = 512, cpu_seconds: int = 20) -> str:
    """Assert that a call is refused by a ClcaError in one line, within its limits; returns the message."""
    outcome = bounded(function, *args, memory_mib=memory_mib, cpu_seconds=cpu_seconds)
    assert outcome.error, f"was not refused, but gave {outcome.value!r:.300}"
    assert ClcaError.__name__ in outcome.error, f"{outcome.error[0]}: {outcome.message}\n{outcome.trace}"
    assert outcome.message.strip(), "the refusal says nothing"
    assert "\n" not in outcome.message, f"more than one line: {outcome.message!r}"
    return outcome.message


def run_clca(*arguments: str) -> tuple[int, str, str]:
    """The command line in this process, for `bounded(run_clca, "train", …)`: exit code, stdout and stderr."""
    from clca.cli.main import main

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main(list(arguments)) or 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
    return code, out.getvalue(), err.getvalue()


def refused_by_command_line(*arguments: str, memory_mib: int = 512, cpu_seconds: int = 20) -> str:
    """Assert that a command ends with exit code 2 and one line on stderr, within its limits; returns the line."""
    outcome = bounded(run_clca, *arguments, memory_mib=memory_mib, cpu_seconds=cpu_seconds)
    assert not outcome.error, outcome.trace
    code, out, err = outcome.value
    assert code == 2, f"exit code {code}, stdout {out!r:.500}, stderr {err!r:.500}"
    assert "Traceback" not in err
    assert err.strip(), "the refusal says nothing"
    return err.strip()


@cache
def start_server() -> None:
    """Start the server that children are forked from, in place of one that has imported less; once a process."""
    forkserver._forkserver._stop()
    multiprocessing.get_context("forkserver").set_forkserver_preload(_PRELOAD)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)  # Python 3.11 does not pass it on
        patch.setenv("ARROW_DEFAULT_MEMORY_POOL", "system")  # the default one maps a gigabyte at once
        forkserver.ensure_running()


def _work(answer: Connection, memory_mib: int, cpu_seconds: int, function: Callable[..., Any], args: tuple) -> None:
    os.chdir(tempfile.mkdtemp(prefix="clca-hostile-"))
    spent, peak = _spent(), _peak_mib()
    soft = int(spent + cpu_seconds) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (soft, soft + 2))
    space, data = _memory()
    # Allocators and thread pools reserve address space that they never write: it has a limit of its own.
    for kind, limit in (
        (resource.RLIMIT_DATA, data + memory_mib * _MIB),
        (resource.RLIMIT_AS, space + memory_mib * _MIB + _RESERVED),
    ):
        resource.setrlimit(kind, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGXCPU, signal.SIG_DFL)
    value, error, message, trace = None, (), "", ""
    try:
        value = function(*args)
    except BaseException as raised:
        error = tuple(kind.__name__ for kind in type(raised).__mro__)
        message, trace = str(raised), traceback.format_exc()[-4000:]
    answer.send(Outcome(value, error, message, trace, _spent() - spent, _peak_mib() - peak))
    answer.close()


def _spent() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (_MIB if sys.platform == "darwin" else 1024)


def _memory() -> tuple[int, int]:
    """Address space and private writable memory that this process has mapped, in bytes; 0 where it is unknown."""
    pages = Path("/proc/self/statm").read_text().split() if sys.platform == "linux" else ["0"] * 7
    return int(pages[0]) * resource.getpagesize(), int(pages[5]) * resource.getpagesize()
