"""Answering over HTTP: `create_app` is the application, `serve` runs it until it is told to stop."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clca.serve.application import create_app
    from clca.serve.server import serve
    from clca.serve.settings import ServeSettings

__all__ = ["ServeSettings", "create_app", "serve"]

_HOMES = {"ServeSettings": "settings", "create_app": "application", "serve": "server"}


def __getattr__(name: str) -> Any:
    """Load what is asked for when it is asked for: settings need neither torch nor FastAPI."""
    if name in _HOMES:
        value = globals()[name] = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
