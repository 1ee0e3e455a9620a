"""A model in a file that needs no clca: ONNX, or torch.export's program; written whole, checked, and loaded again.

    from clca.export import export_onnx, load_exported

    export_onnx(clca.from_pretrained("runs/leaves"), "leaves.onnx")
    logits = load_exported("leaves.onnx", threads=2)(images)  # [B, 3, H, W] float32 to [B, K]

The files carry classes and preprocessing (`metadata.describe`); `export_run` is what `clca export` does.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
