"""How much faster a reduced model is than timm's own dense one, on this machine: `benchmark(config)`."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
