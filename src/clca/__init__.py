"""Ultra-fine-grained image recognition at a fraction of the cost: token reduction with cross-layer aggregation."""

import sys

import lazy_loader

from clca.errors import ClcaError, WorkError

__version__ = "0.1.0"

# torch and timm take seconds to import, and plans, settings and `--help` need neither.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__all__ += ["ClcaError", "WorkError"]

if sys.modules.get("timm") is not None:  # None: blocked
    import clca.timm  # noqa: F401 (registers `clca_vit`)
