"""Token reductions, one file each."""

import lazy_loader

# The names alone need no torch.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
