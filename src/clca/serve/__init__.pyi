from .application import create_app
from .server import serve
from .settings import ServeSettings

__all__ = [
    "ServeSettings",
    "create_app",
    "serve",
]
