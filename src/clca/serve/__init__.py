"""Answering over HTTP: `create_app` is the application, `serve` runs it until it is stopped."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
