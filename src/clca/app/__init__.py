"""The web page for photographs: `create_app` is the endpoint of `clca.serve` with the page in it."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clca.app.page import create_app
    from clca.app.settings import PageSettings

__all__ = ["PageSettings", "create_app"]

_HOMES = {"PageSettings": "settings", "create_app": "page"}


def __getattr__(name: str) -> Any:
    """Load what is asked for when it is asked for: settings need neither torch nor Gradio."""
    if name in _HOMES:
        value = globals()[name] = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
