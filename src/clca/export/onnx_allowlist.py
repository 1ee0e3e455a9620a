"""A stranger's `.onnx`, looked at before ONNX Runtime loads it: what `export_onnx` would not have written is refused.

ONNX Runtime opens files that a model names for its weights, runs loops as often as a model asks, and takes memory for
tensors of any size. What may be there is stated: operators of `onnx_operators`, weights within the file, and shapes
that follow from the images' and are no larger than such a model needs.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from clca.errors import ClcaError
from clca.export.metadata import INPUT, OUTPUT, TRUST, check_metadata
from clca.export.onnx_operators import OPERATORS
from clca.export.pt2_size import TooLarge, check_operations, memory_limit

_MOST_NODES = 20_000
_LONGEST = 8 * 2**20
_GRAPH, _INITIALIZER, _RAW_DATA, _HEADER = 7, 5, 9, 2  # numbers of fields in onnx.proto; bytes before a field, at least
_SMALL = 64  # elements, up to which a value is computed: shapes, counts and axes
_ROUNDS = 100
_BATCH = 2
# Whatever else a part can have (functions, graphs in attributes, sparse or external tensors, training) is refused.
_FIELDS = {
    "ModelProto": {"ir_version", "producer_name", "producer_version", "graph", "opset_import", "metadata_props"},
    "GraphProto": {"node", "name", "initializer", "input", "output", "value_info"},
    "NodeProto": {"input", "output", "name", "op_type", "doc_string", "attribute"},
    "AttributeProto": {"name", "type", "i", "f", "s", "t", "ints"},
    "TensorProto": {"dims", "data_type", "name", "raw_data", "float_data", "int32_data", "int64_data", "data_location"},
}


class _Refused(Exception):
    """The model is not as it must be."""


def checked_model(path: Path, opset: int) -> tuple[bytes, dict[str, Any]]:
    """A model of `export_onnx` for ONNX Runtime, and its metadata.

    Args:
        path: A file.
        opset: The version of the operators.

    Returns:
        What was checked, serialized; the metadata.

    Raises:
        ClcaError: It is not a model of ours, or asks for more than one.
    """
    try:
        import onnx
    except ImportError:
        raise ClcaError("ONNX files need onnx and onnxruntime: pip install 'clca[onnx]'") from None
    model = onnx.ModelProto()
    try:
        content = path.read_bytes()
        _check_length(memoryview(content))
        model.ParseFromString(content)
        model.DiscardUnknownFields()
    except _Refused as error:
        raise ClcaError(f"{path}: {error}, so it is not loaded") from None
    except Exception:  # protobuf's own classes
        raise ClcaError(f"{path}: ONNX Runtime cannot read it (not an ONNX model)") from None
    try:
        metadata = {entry.key: json.loads(entry.value) for entry in model.metadata_props}
        check_metadata(metadata)
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ClcaError(f"{path}: is an ONNX file, but not one that clca exported") from None
    try:
        _check_parts(model, opset)
        _check_shapes(model, tuple(metadata["input"]["shape"][1:]), metadata["output"]["shape"][1])
    except _Refused as error:
        raise ClcaError(
            f"{path}: {error}, which no export of clca's own reductions does, so it is not loaded; {TRUST}"
        ) from None
    except Exception as error:  # onnx raises nearly anything on a graph that does not fit together
        raise ClcaError(f"{path}: its graph does not fit together ({type(error).__name__})") from None
    return model.SerializeToString(), metadata


def _check_length(content: memoryview) -> None:
    """Limit what is not weights: parsed, a node without content takes fifty times its bytes."""
    rest = 0
    for length in _lengths(content):
        rest += length
        if rest > _LONGEST:
            raise _Refused(f"it has more than {_LONGEST / 2**20:g} MiB beside its weights")


def _lengths(content: memoryview) -> Iterator[int]:
    """Bytes of one part of a model after the other, the elements of its weights left out."""
    for field, value in _fields(content):
        if field != _GRAPH:
            yield _HEADER + len(value)
            continue
        yield _HEADER
        for inner, part in _fields(value):
            yield _HEADER + (0 if inner == _INITIALIZER else len(part))
            if inner == _INITIALIZER:
                yield from (_HEADER + (0 if name == _RAW_DATA else len(piece)) for name, piece in _fields(part))


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """The fields of a message in protobuf's encoding: number, and content."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        match key & 7:
            case 0:
                end = _varint(message, at)[1]
            case 1:
                end = at + 8
            case 2:
                length, at = _varint(message, at)
                end = at + length
            case 5:
                end = at + 4
            case _:
                raise ValueError("groups, which ONNX has none of")
        yield key >> 3, message[at:end]
        at = end


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """A number, and the place behind it."""
    value = 0
    for shift in range(0, 70, 7):
        byte = message[at]
        value |= (byte & 127) << shift
        at += 1
        if byte < 128:
            return value, at
    raise ValueError("a number without an end")


def _check_parts(model: Any, opset: int) -> None:
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.initializer):
        _check_fields(part)
    if [(entry.domain, entry.version) for entry in model.opset_import] != [("", opset)]:
        raise _Refused(f"it has other operators than those of opset {opset}")
    if len(graph.node) > _MOST_NODES:
        raise _Refused(f"it has {len(graph.node)} nodes")
    if [value.name for value in graph.input] != [INPUT] or [value.name for value in graph.output] != [OUTPUT]:
        raise _Refused(f"its input or output is not {INPUT} and {OUTPUT}")
    for node in graph.node:
        if node.domain or node.op_type not in OPERATORS:
            raise _Refused(f"it calls {_short(f'{node.domain}.{node.op_type}'.lstrip('.'))}")
        for attribute in node.attribute:
            _check_fields(attribute)
            if attribute.HasField("t"):
                _check_fields(attribute.t)
                _check_bytes(attribute.t)
    for tensor in graph.initializer:
        _check_bytes(tensor)


def _check_fields(part: Any) -> None:
    for field, _ in part.ListFields():
        if field.name not in _FIELDS[type(part).__name__]:
            raise _Refused(f"a {type(part).__name__} in it has {field.name}")


def _check_bytes(tensor: Any) -> None:
    """A tensor has its elements in the file."""
    if tensor.data_location or any(size < 0 for size in tensor.dims) or len(tensor.dims) > 8:
        raise _Refused("a tensor of it lies elsewhere or has no size")
    width = _width(tensor.data_type)
    held = len(tensor.raw_data) // width
    held = held or len(tensor.float_data) or len(tensor.int32_data) or len(tensor.int64_data)
    if math.prod(tensor.dims) != held:
        raise _Refused(f"a tensor of it has sizes {[*tensor.dims]} and {held} elements")


def _width(data_type: int) -> int:
    from onnx import TensorProto, helper

    if data_type not in (1, 2, 3, 6, 7, 9, 11):  # float, uint8, int8, int32, int64, bool, double
        raise _Refused(f"it has tensors of type {TensorProto.DataType.Name(data_type)}")
    return helper.tensor_dtype_to_np_dtype(data_type).itemsize


def _check_shapes(model: Any, shape: tuple[int, ...], outputs: int) -> None:
    """Follow the sizes of two images through the graph; refuse where they are unknown, or too large at one time."""
    graph = _inferred(model, shape)
    values = (*graph.input, *graph.value_info, *graph.output)
    shapes = {value.name: _shape(value) for value in values} | {t.name: (*t.dims,) for t in graph.initializer}
    _check_operations(graph, shapes)
    sizes = {value.name: _bytes(value) for value in (*graph.value_info, *graph.output)}
    last = {name: index for index, node in enumerate(graph.node) for name in node.input}
    limit, now = _BATCH * memory_limit(shape), 0
    for index, node in enumerate(graph.node):
        now += sum(sizes[name] for name in node.output if name)
        if now > limit:
            raise _Refused(f"{node.op_type} asks for tensors of {now:.2g} bytes")
        now -= sum(sizes.get(name, 0) for name in {*node.input} if last[name] == index)
        now -= sum(sizes[name] for name in node.output if name and name not in last)
    (logits,) = graph.output
    found = [dim.dim_value for dim in logits.type.tensor_type.shape.dim]
    if len(found) != 2 or found[0] != _BATCH or found[1] != (outputs or found[1]):
        raise _Refused(f"it gives {found} for {_BATCH} images")


def _check_operations(graph: Any, shapes: dict[str, tuple[int, ...]]) -> None:
    products = elements = 0
    for node in graph.node:
        read = [shapes[name] for name in node.input if name]
        written = sum(math.prod(shapes[name]) for name in node.output if name)
        elements += written + sum(math.prod(sizes) for sizes in read)
        if node.op_type in ("MatMul", "MatMulInteger"):
            products += written * read[0][-1]
        elif node.op_type == "Gemm":
            products += written * max(read[0])  # the one or the other side of it, as it is transposed or not
        elif node.op_type == "Conv":
            products += written * math.prod(read[1][1:])
        elif window := [attribute.ints for attribute in node.attribute if attribute.name == "kernel_shape"]:
            elements += written * math.prod(window[0])
    try:
        check_operations(products, elements, _BATCH)
    except TooLarge as error:
        raise _Refused(f"it asks for {error}") from None


def _bytes(value: Any) -> int:
    return math.prod(_shape(value)) * _width(value.type.tensor_type.elem_type)


def _shape(value: Any) -> tuple[int, ...]:
    kind = value.type.tensor_type
    if not kind.HasField("shape") or any(not dim.HasField("dim_value") for dim in kind.shape.dim):
        raise _Refused("it has tensors whose sizes do not follow from the image's")
    return tuple(dim.dim_value for dim in kind.shape.dim)


def _inferred(model: Any, shape: tuple[int, ...]) -> Any:
    """The graph without its weights, for two images, with the shape of each value as far as it follows."""
    import onnx

    bare = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    graph = bare.graph
    graph.name = "shapes"
    graph.node.extend(model.graph.node)
    info = onnx.helper.make_tensor_value_info
    graph.input.append(info(INPUT, onnx.TensorProto.FLOAT, [_BATCH, *shape]))
    graph.output.append(onnx.ValueInfoProto(name=OUTPUT, type=info("", onnx.TensorProto.FLOAT, None).type))
    known = {}
    for tensor in model.graph.initializer:
        if math.prod(tensor.dims) <= _SMALL:
            graph.initializer.append(tensor)
            known[tensor.name] = onnx.numpy_helper.to_array(tensor)
        else:
            graph.input.append(info(tensor.name, tensor.data_type, [*tensor.dims]))
    for _ in range(_ROUNDS):
        found = onnx.shape_inference.infer_shapes(bare, data_prop=True, strict_mode=True).graph
        if not _fold(graph, found, known):
            break
    return found


def _fold(graph: Any, found: Any, known: dict[str, Any]) -> bool:
    """Compute small values that no pixel decides, since sizes depend on them; whether there was a new one."""
    import numpy as np
    import onnx
    from onnx.reference import ReferenceEvaluator

    shapes = {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*found.input, *found.value_info)
        if value.type.tensor_type.HasField("shape")
        and all(dim.HasField("dim_value") for dim in value.type.tensor_type.shape.dim)
    }
    new, rest = [], []
    for node in graph.node:
        inputs = [name for name in node.input if name]
        small = all(math.prod(shapes.get(name, [_SMALL + 1])) <= _SMALL for name in node.output)
        if node.op_type == "Shape" and inputs[0] in shapes:
            ends = {attribute.name: attribute.i for attribute in node.attribute}
            results: Any = [np.array(shapes[inputs[0]][ends.get("start", 0) : ends.get("end")], dtype=np.int64)]
        elif small and inputs and all(name in known for name in inputs):
            results = ReferenceEvaluator(node).run(None, {name: known[name] for name in inputs})
        else:
            rest.append(node)
            continue
        for name, value in zip(node.output, results, strict=True):
            known[name] = np.asarray(value)
            new.append(onnx.numpy_helper.from_array(known[name], name))
    if not new:
        return False
    del graph.node[:]
    graph.node.extend(rest)
    graph.initializer.extend(new)
    return True


def _short(text: str) -> str:
    line = "".join(letter if letter.isprintable() else "?" for letter in text)
    return line if len(line) <= 120 else f"{line[:120]}…"
