"""A model in a file that needs no clca: ONNX, or torch.export's program; written whole, checked, and loaded again.

    from clca.export import export_onnx, load_exported

    export_onnx(clca.from_pretrained("runs/leaves"), "leaves.onnx")
    logits = load_exported("leaves.onnx", threads=2)(images)  # [B, 3, H, W] float32 to [B, K]

The files carry classes and preprocessing (`metadata.describe`); `export_run` is what `clca export` does.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clca.export.check import Agreement, check_exported
    from clca.export.loaded import Exported, load_exported
    from clca.export.onnx_file import export_onnx
    from clca.export.program import export_pt2
    from clca.export.run import ExportReport, export_run

__all__ = [
    "Agreement",
    "ExportReport",
    "Exported",
    "check_exported",
    "export_onnx",
    "export_pt2",
    "export_run",
    "load_exported",
]

_HOMES = {
    "Agreement": "check",
    "check_exported": "check",
    "Exported": "loaded",
    "load_exported": "loaded",
    "export_onnx": "onnx_file",
    "export_pt2": "program",
    "ExportReport": "run",
    "export_run": "run",
}


def __getattr__(name: str) -> Any:
    """Load what is asked for when it is asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
