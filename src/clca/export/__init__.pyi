from .check import Agreement, check_exported
from .load import Exported, load_exported
from .onnx_file import export_onnx
from .program import export_pt2
from .run import ExportReport, export_run

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
