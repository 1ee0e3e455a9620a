"""Tells timm of `clca_vit`: at once where timm is loaded already, else as soon as anybody loads it.

To import timm takes seconds, which `import clca` does not spend on those who want settings, a plan or a report.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


def register_with_timm() -> None:
    """Make `timm.create_model("clca_vit", …)` work from now on, without importing timm. Twice is as good as once."""
    watch = next((finder for finder in sys.meta_path if isinstance(finder, _Watch)), None)
    if watch is None:
        watch = _Watch()
        sys.meta_path.insert(0, watch)
    # Only now, so that a thread which begins with timm meanwhile is seen either by the watch or here.
    if sys.modules.get("timm") is not None and not watch.sees_it_loaded:
        watch.end()
        _register()


def _register() -> None:
    import_module("clca.timm_model")


class _Watch:
    """A finder on `sys.meta_path` that waits for timm, lets the others find it, and leaves once it is loaded."""

    sees_it_loaded = False

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != "timm":
            return None
        for finder in sys.meta_path:
            if finder is self or not hasattr(finder, "find_spec"):
                continue
            spec = finder.find_spec(name, path, target)
            if spec is not None:
                # A loader of the old kind, and the none of a folder without code, are left as they are.
                if hasattr(spec.loader, "exec_module") and not isinstance(spec.loader, _ThenRegister):
                    spec.loader = _ThenRegister(spec.loader, self)  # type: ignore[assignment]
                return spec
        return None

    def end(self) -> None:
        """Leave. The list is replaced, not changed: another thread that goes through it would miss a finder."""
        sys.meta_path = [finder for finder in sys.meta_path if finder is not self]


class _ThenRegister:
    """timm's own loader, which after its work registers the model. Where timm is only looked for, nothing happens."""

    def __init__(self, loader: Any, watch: _Watch) -> None:
        self._loader, self._watch = loader, watch

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "_loader":  # a copy that is being made has no loader yet
            raise AttributeError(name)
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        self._watch.sees_it_loaded = True
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        # timm shall look as if it had been loaded without us.
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        try:
            self._loader.exec_module(module)
        except BaseException:  # it may be tried again
            self._watch.sees_it_loaded = False
            raise
        self._watch.end()
        _register()
