"""The command line: finds the command, and ends what goes wrong in one line and an exit code."""

import errno
import os
import signal
import sys
import warnings
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from importlib import import_module

import clca
from clca.errors import ClcaError, WorkError, reason
from clca.system.paths import shown
from clca.system.processes import is_first_on_its_machine

_python_format = warnings.formatwarning

Table = Mapping[str, tuple[str, str]]
"""Name of a command → its module in `clca.cli.commands`, and what it does."""

COMMANDS: Table = {
    "demo": ("demo", "See it work in a few minutes, nothing downloaded"),
    "train": ("train", "Train a model on your images"),
    "evaluate": ("evaluate", "How good a run is, by class, and what it costs"),
    "predict": ("predict", "What is in these photographs"),
    "tune": ("tune", "The most accurate run and keep rate within a budget, on this machine"),
    "benchmark": ("benchmark", "How much faster token reduction is on this machine"),
    "study": ("study", "Many runs as one: plan them, make them here or on a cluster, see how far they are"),
    "report": ("report", "The tables and figures of a study, or of one run, as a page"),
    "export": ("export", "Write a run as one ONNX or torch.export file, checked"),
    "app": ("app", "A web page that says what is in a photograph, and why"),
    "serve": ("serve", "Answer over HTTP what is in a photograph, for many at once"),
    "data": ("data", "Look at a data set (check), or draw a synthetic one (leaves)"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; what goes wrong ends in one line on stderr.

    Returns:
        0; 1 where the work failed, 2 where what was asked for is wrong, 130 after Ctrl-C, 143 after SIGTERM.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in argv or os.environ.get("CLCA_DEBUG", "") not in ("", "0")
    argv = [word for word in argv if word != "--debug"]
    warnings.formatwarning = _format_warning
    try:
        argv = _import_own_reductions(argv)
        ended: int | SystemExit
        try:
            ended = dispatch(
                "clca", "Token reduction with Cross-Layer Cache Aggregation on any timm ViT.", COMMANDS, argv
            )
        except SystemExit as end:  # after --help
            ended = end
        if sys.stdout is not None:
            sys.stdout.flush()  # what is still buffered shall fail here and not as the interpreter goes
        if isinstance(ended, SystemExit):
            raise ended
        return ended
    except KeyboardInterrupt as stop:
        _tell(str(stop) or "interrupted")
        return 128 + getattr(stop, "signal", signal.SIGINT)
    except BrokenPipeError:  # the reader of our output has gone, as `head` does
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (the interpreter flushes it on the way out)
        return 1
    except Exception as error:
        if debug:
            raise
        code, line = _line(error)
        _tell(line)
        return code


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


def _line(error: Exception) -> tuple[int, str]:
    """Exit code and line for an error: 2 for a wrong request, 1 for failed work."""
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, ClcaError):
        return 2, text
    if isinstance(error, WorkError):
        return 1, text
    if type(error).__name__ == "ValidationError":
        from clca.training.settings import explain

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
        return 1, "the device has not enough memory: try a smaller --batch-size, --grad-accum 2 or --grad-checkpointing"
    return 1, f"{type(error).__name__}: {text} (--debug shows where)"


def _stdout_fails() -> bool:
    """Whether not even an empty line can be written to standard output; what it still holds is then given up."""
    try:
        print(flush=True)
    except OSError:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (the interpreter flushes it on the way out)
        return True
    return False


def _format_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """A warning of our own as one line without the place in the source, from the first process of each machine."""
    if not filename.startswith(os.path.dirname(clca.__file__) + os.sep):
        return _python_format(message, category, filename, lineno, line)
    return f"clca: warning: {shown(str(message))}\n" if is_first_on_its_machine() else ""


def _tell(line: str) -> None:
    """One line on stderr, from the first process of each machine."""
    if is_first_on_its_machine():
        print(f"clca: {shown(line)}", file=sys.stderr)


def dispatch(prog: str, summary: str, commands: Table, argv: Sequence[str]) -> int:
    """Call the command that `argv` names with the rest of it; or say what there is."""
    if argv and argv[0] in commands:
        return import_module(f"clca.cli.commands.{commands[argv[0]][0]}").run(argv[1:])
    from clca.cli.help_text import wrapped

    width = max(map(len, commands))
    listed = "\n".join(
        wrapped(f"{name:<{width}}  {what}", "  ", " " * (width + 4)) for name, (_, what) in commands.items()
    )
    usage = f"{wrapped(summary)}\n\nusage: {prog} COMMAND …\n\n{listed}\n\n{prog} COMMAND --help says more."
    if prog == "clca":
        more = "With any of them: --import FILE.py for a token reduction of your own, --debug to see where it failed."
        usage += f"\n{wrapped(more)}"
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(usage)
        return 0 if argv else 2
    if prog == "clca" and argv[0] in ("-V", "--version"):
        from importlib.metadata import version

        print(f"clca {version('clca')}")
        return 0
    near = get_close_matches(argv[0], commands, 1)
    hint = f"did you mean {near[0]}?" if near else f"choose from {', '.join(commands)}"
    raise ClcaError(f"no command {argv[0]!r}: {hint}")
