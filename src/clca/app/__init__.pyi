from .page import create_app
from .settings import PageSettings

__all__ = [
    "PageSettings",
    "create_app",
]
