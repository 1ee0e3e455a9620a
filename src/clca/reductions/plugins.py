"""Reductions in modules of the user, named by `clca --import` and passed to child processes in `CLCA_IMPORT`."""

from __future__ import annotations

import os
import re
import sys
import threading
import traceback
from collections.abc import Iterable, Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from clca.errors import ClcaError
from clca.system.paths import expanded

VARIABLE = "CLCA_IMPORT"
"""Modules or .py files, separated by commas or as in PATH; processes that a command starts inherit the variable."""

_SEPARATORS = re.compile(f"[,{re.escape(os.pathsep)}]")
_loaded: set[str] = set()
_loading = threading.RLock()


def offer(given: Iterable[str] = ()) -> None:
    """Add modules to `CLCA_IMPORT`; they are imported when a reduction is looked up that is not part of this package.

    A file becomes an absolute path, because a process that inherits the variable may run in another folder.

    Args:
        given: Paths of .py files, or names of modules, in the current folder or installed; each may list several,
            separated by commas.

    Raises:
        ClcaError: If one of them does not exist. Modules that the variable named before are not checked: a command that
            does not need them must not fail because of them.
    """
    names = {_located(name) or name: None for name in _split(os.environ.get(VARIABLE, ""))}
    for name in (name for text in given for name in _split(text)):
        found = _located(name)
        if found is None:
            missing = "no such file" if _is_path(name) else f"no {name}.py in this folder and no such module"
            raise _refusal(name, missing)
        if found != name and _SEPARATORS.search(found):
            raise _refusal(name, f"its path {found} must not contain a comma or {os.pathsep!r}")
        names[found] = None
    os.environ[VARIABLE] = os.pathsep.join(names)


def load(registered: Mapping[str, type]) -> None:
    """Import the modules of `CLCA_IMPORT` that are not imported yet.

    Args:
        registered: The reductions by name, to which the modules add.

    Raises:
        ClcaError: If one does not exist, fails, or registers no reduction.
    """
    with _loading:  # other threads wait until the modules are imported
        for name in _split(os.environ.get(VARIABLE, "")):
            if name not in _loaded:
                _loaded.add(name)  # before the import: the module may look up reductions itself
                try:
                    _load(name, registered)
                except BaseException:
                    _loaded.discard(name)
                    raise


def _load(name: str, registered: Mapping[str, type]) -> None:
    found = _located(name)
    if found is None:
        raise _refusal(name, "no such file" if _is_path(name) else "no such module")
    module, path = (found, None) if found == name and not _is_path(name) else _as_module(Path(found))
    before = len(registered)
    try:
        spec = find_spec(module)
        if path is not None and (spec is None or spec.origin is None or not _same(Path(spec.origin), path)):
            problem = f"{module!r} is not a module name" if spec is None else f"another module has the name {module!r}"
            raise _refusal(name, f"{problem}: rename the file")
        import_module(module)
    except ClcaError as error:
        raise error if str(error).startswith("cannot import") else _refusal(name, str(error)) from error
    except (Exception, SystemExit) as error:
        raise _refusal(name, _failure(error, path)) from error
    theirs = any(f"{cls.__module__}.".startswith(f"{module}.") for cls in registered.values())
    if not theirs and len(registered) == before:
        raise _refusal(name, 'it registers no reduction: put @clca.register_reduction("NAME") above its class')


def _split(text: str) -> list[str]:
    return [name.strip() for name in _SEPARATORS.split(text) if name.strip()]


def _is_path(name: str) -> bool:
    return name.endswith(".py") or "/" in name or os.sep in name


def _located(name: str) -> str | None:
    """The absolute path of a file or module in this folder, or the name of an installed module; None if neither."""
    beside = expanded(name) if _is_path(name) else Path(*name.split("."))
    files = [beside] if beside.suffix == ".py" else [beside.with_name(f"{beside.name}.py"), beside / "__init__.py"]
    for file in files:
        if file.is_file():
            return str(file.absolute())
    if _is_path(name):
        return None
    try:
        return name if find_spec(name.partition(".")[0]) is not None else None
    except (ImportError, ValueError):
        return None


def _as_module(file: Path) -> tuple[str, Path]:
    """The name by which a file is imported, within its package if it has one; appends its folder to `sys.path`.

    It is imported by name because pickles of its classes, and imports of modules beside it, need one.
    """
    parts = [] if file.name == "__init__.py" else [file.stem]
    folder = file.parent
    while (folder / "__init__.py").is_file():
        parts.insert(0, folder.name)
        folder = folder.parent
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
    return ".".join(parts), file


def _same(one: Path, other: Path) -> bool:
    return one.exists() and one.samefile(other)


def _failure(error: BaseException, path: Path | None) -> str:
    """An error in one line, with the line of the file that raised it."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    frames = [f for f in traceback.extract_tb(error.__traceback__) if path is not None and f.filename == str(path)]
    return f"line {frames[-1].lineno}: {text}" if frames else text


def _refusal(name: str, why: str) -> ClcaError:
    return ClcaError(f"cannot import {name} (given by --import or {VARIABLE}): {why}")
