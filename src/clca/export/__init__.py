"""Export models to files that do not need clca, ONNX or a program of torch.export, and check and load them.

    from clca.export import export_onnx, load_exported

    export_onnx(clca.from_pretrained("runs/leaves"), "leaves.onnx")
    logits = load_exported("leaves.onnx", threads=2)(images)  # [B, 3, H, W] float32 → [B, K]

The files contain classes and preprocessing (`metadata.describe`). `export_run` implements `clca export`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
