"""Export to ONNX: one self-contained file with classes and preprocessing as metadata, in float32 or int8."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from clca.errors import ClcaError, WorkError
from clca.export.metadata import BATCH, INPUT, OUTPUT, UNFAMILIARITY, confidence_of, describe
from clca.export.onnx_ops import translations
from clca.export.program import capture, failure_reason, model_name, quiet
from clca.models.token_reduced_vit import TokenReducedViT
from clca.system.files import replacing

OPSET = 18  # the default of the exporter; requires ONNX Runtime 1.14
_LARGEST = 2**31 - 2**20  # limit of protobuf, minus everything but weights

# The blocks are nearly all of the computation; modules that rank or group tokens, and the heads, stay in float.
_KEPT_IN_FLOAT = ("patch_embed", "reductions", "cla_head", "head", "attn_pool")
_NOT_QUANTIZED = "not to be quantised"

INT8 = (
    "dynamic: weights of the linear layers of the blocks in int8, by output channel, in 7 bits (so that sums cannot "
    "overflow on processors without VNNI); their inputs in uint8, scaled by batch; the rest in float32"
)


def export_onnx(model: TokenReducedViT, path: str | Path, *, int8: bool = False) -> Path:
    """Write a model in evaluation mode as one ONNX file: `images` [B, 3, H, W] → `logits` [B, K], for any batch size.

    Args:
        model: The model; it is exported in float32, and not modified.
        path: The file, usually `*.onnx`; an existing file is replaced once the new one is complete.
        int8: Quantise the linear layers of the blocks dynamically (see `INT8`), for a quarter of the size.

    Raises:
        ClcaError: The packages of `clca[onnx]` are missing, or the file cannot be written.
        WorkError: The model cannot be exported; the message names the operator or the cause.
    """
    proto = build_onnx(model)
    with replacing(Path(path), in_own_folder=True) as temporary:
        save_onnx(model, proto, temporary, int8=int8)
    return Path(path)


def build_onnx(model: TokenReducedViT) -> Any:
    """Convert the model to a ModelProto for `save_onnx`; raises the same errors as `export_onnx`."""
    require_onnx()
    name = model_name(model)
    size = sum(tensor.numel() for tensor in model.state_dict().values()) * 4
    if size > _LARGEST:
        raise WorkError(
            f"{name} cannot be exported: {size / 2**30:.1f} GB exceeds the ONNX limit of 2 GB per file; use --to pt2"
        )
    return to_onnx(capture(model, name), name, output_names(model))


def output_names(model: TokenReducedViT) -> tuple[str, ...]:
    """The names of what an exported model returns."""
    return (OUTPUT,) if confidence_of(model) is None else (OUTPUT, UNFAMILIARITY)


def save_onnx(model: TokenReducedViT, proto: Any, path: Path, *, int8: bool = False) -> None:
    """Write the result of `build_onnx` with the model's metadata; not atomic."""
    more = {"opset": OPSET, "quantization": INT8 if int8 else None}
    _save(quantized(proto, path.parent) if int8 else proto, path, describe(model, **more))


def require_onnx() -> None:
    """Raise an error if a package is missing."""
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        raise ClcaError(f"ONNX needs {', '.join(missing)}: pip install 'clca[onnx]'")


def to_onnx(program: ExportedProgram, name: str, outputs: tuple[str, ...] = (OUTPUT,)) -> Any:
    """Convert a program to an ONNX ModelProto with a named batch dimension and without local file names.

    Raises:
        WorkError: An operator has no equivalent in ONNX; the message names it.
    """
    try:
        with quiet(), torch.no_grad():
            exported = torch.onnx.export(
                program,
                dynamo=True,
                input_names=[INPUT],
                output_names=list(outputs),
                opset_version=OPSET,
                custom_translation_table=translations(),
            )
            assert exported is not None
            proto = exported.model_proto
    except Exception as error:  # the exception classes of the exporter are not public
        raise WorkError(f"{name} cannot be exported to ONNX: {failure_reason(error)}") from error
    symbol = proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param
    for value in (*proto.graph.input, *proto.graph.output, *proto.graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = dim.dim_param.replace(symbol, BATCH)
    for node in proto.graph.node:
        origin = {entry.key: entry.value for entry in node.metadata_props}.get("pkg.torch.onnx.name_scopes", "")
        kept = "'confidence" in origin or any(f"'model.{part}" in origin for part in _KEPT_IN_FLOAT)
        node.doc_string = _NOT_QUANTIZED if kept else ""
    for part in (proto.graph, *proto.graph.node, *proto.graph.value_info, *proto.graph.initializer, *proto.functions):
        del part.metadata_props[:]
    return proto


def quantized(proto: Any, folder: Path) -> Any:
    """A copy with int8 weights in the linear layers of the blocks; temporary files are written to `folder`."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    weights = {tensor.name for tensor in proto.graph.initializer}
    chosen = [
        node.name
        for node in proto.graph.node
        if node.op_type == "MatMul" and node.doc_string != _NOT_QUANTIZED and node.input[1] in weights
    ]
    if not chosen:
        raise WorkError("nothing to quantise: the blocks have no linear layers with constant weights")
    target = folder / "int8"
    with quiet():
        copy = onnx.ModelProto()
        copy.CopyFrom(proto)  # the quantiser modifies its input
        quantize_dynamic(
            copy,
            target,
            nodes_to_quantize=chosen,
            op_types_to_quantize=["MatMul"],
            per_channel=True,
            reduce_range=True,
            weight_type=QuantType.QInt8,
        )
        return onnx.load(target)


def _save(proto: Any, path: Path, metadata: dict[str, Any]) -> None:
    import onnx

    for node in proto.graph.node:
        node.doc_string = ""
    proto.producer_name, proto.producer_version = "clca", metadata["clca_version"]
    del proto.metadata_props[:]
    for key, value in metadata.items():
        entry = proto.metadata_props.add()
        entry.key, entry.value = key, json.dumps(value)
    with contextlib.redirect_stdout(io.StringIO()):
        onnx.checker.check_model(proto)
    path.write_bytes(proto.SerializeToString())
