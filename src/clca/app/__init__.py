"""The web page for photographs: `create_app` is the endpoint of `clca.serve` with the page in it."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
