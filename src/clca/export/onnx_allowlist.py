"""Check an untrusted `.onnx` before ONNX Runtime loads it: only what `export_onnx` would write is accepted.

ONNX Runtime opens external files that a model names for its weights, runs loops of any length, and allocates tensors of
any size. Therefore only the following are allowed: the operators in `onnx_operators`, weights inside the file, and
shapes that follow from that of the images and are no larger than such a model needs.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from clca.errors import ClcaError
from clca.export.metadata import INPUT, OUTPUT, TRUST, UNFAMILIARITY, check_metadata, one_line
from clca.export.onnx_operators import OPERATORS
from clca.export.pt2_size import TooLarge, check_operations, memory_limit

_MOST_NODES = 20_000
_LONGEST = 8 * 2**20
_GRAPH, _INITIALIZER, _RAW_DATA, _HEADER = 7, 5, 9, 2  # field numbers in onnx.proto; least bytes before a field
_SMALL = 64  # constants of up to this many elements are folded: shapes, counts and axes
_ROUNDS = 100
_BATCH = 2
# All other fields (functions, graphs in attributes, sparse or external tensors, training) are refused.
_FIELDS = {
    "ModelProto": {"ir_version", "producer_name", "producer_version", "graph", "opset_import", "metadata_props"},
    "GraphProto": {"node", "name", "initializer", "input", "output", "value_info"},
    "NodeProto": {"input", "output", "name", "op_type", "doc_string", "attribute"},
    "AttributeProto": {"name", "type", "i", "f", "s", "t", "ints"},
    "TensorProto": {"dims", "data_type", "name", "raw_data", "float_data", "int32_data", "int64_data", "data_location"},
}


class _Refused(Exception):
    """The model contains something that is not allowed."""


def checked_model(path: Path, opset: int) -> tuple[bytes, dict[str, Any]]:
    """Check a model of `export_onnx`, and return it with its metadata.

    Args:
        path: The file.
        opset: The expected version of the operator set.

    Returns:
        The checked model, serialized again, and its metadata.

    Raises:
        ClcaError: clca did not export the model, or it needs more memory or time than such a model does.
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
    except Exception:  # exceptions of protobuf
        raise ClcaError(f"{path}: ONNX Runtime cannot read it (not an ONNX model)") from None
    try:
        metadata = {entry.key: json.loads(entry.value) for entry in model.metadata_props}
        check_metadata(metadata)
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ClcaError(f"{path}: is an ONNX file that clca did not export") from None
    try:
        outputs = [OUTPUT] if metadata.get("confidence") is None else [OUTPUT, UNFAMILIARITY]
        _check_parts(model, opset, outputs)
        _check_shapes(model, tuple(metadata["input"]["shape"][1:]), metadata["output"]["shape"][1], outputs)
    except _Refused as error:
        raise ClcaError(
            f"{path}: {error}, which no export of a built-in reduction of clca does, so it is not loaded; {TRUST}"
        ) from None
    except Exception as error:  # onnx raises almost any exception on an inconsistent graph
        raise ClcaError(f"{path}: its graph is inconsistent ({type(error).__name__})") from None
    return model.SerializeToString(), metadata


def _check_length(message: memoryview) -> None:
    """Limit the size of everything but weights: an empty node takes fifty times its bytes once parsed."""
    rest = 0
    for length in _lengths(message):
        rest += length
        if rest > _LONGEST:
            raise _Refused(f"it has more than {_LONGEST / 2**20:g} MiB besides its weights")


def _lengths(message: memoryview) -> Iterator[int]:
    """Bytes of one part of a model after the other, the elements of its weights left out."""
    for field, value in _fields(message):
        if field != _GRAPH:
            yield _HEADER + len(value)
            continue
        yield _HEADER
        for inner, part in _fields(value):
            yield _HEADER + (0 if inner == _INITIALIZER else len(part))
            if inner == _INITIALIZER:
                yield from (_HEADER + (0 if name == _RAW_DATA else len(data)) for name, data in _fields(part))


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """The fields of an encoded protobuf message: number and content."""
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
                raise ValueError("groups, which ONNX does not use")
        yield key >> 3, message[at:end]
        at = end


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """Decode a variable-length integer; return it and the position after it."""
    value = 0
    for shift in range(0, 70, 7):
        byte = message[at]
        value |= (byte & 127) << shift
        at += 1
        if byte < 128:
            return value, at
    raise ValueError("an integer without an end")


def _check_parts(model: Any, opset: int, outputs: list[str]) -> None:
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.initializer):
        _check_fields(part)
    if [(entry.domain, entry.version) for entry in model.opset_import] != [("", opset)]:
        raise _Refused(f"its operators are not those of opset {opset}")
    if len(graph.node) > _MOST_NODES:
        raise _Refused(f"it has {len(graph.node)} nodes")
    if [value.name for value in graph.input] != [INPUT] or [value.name for value in graph.output] != outputs:
        raise _Refused(f"its input is not {INPUT}, or its output not {' and '.join(outputs)}")
    for node in graph.node:
        if node.domain or node.op_type not in OPERATORS:
            raise _Refused(f"it calls {one_line(f'{node.domain}.{node.op_type}'.lstrip('.'))}")
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
    """Require that the file contains all elements of a tensor."""
    if tensor.data_location or any(size < 0 for size in tensor.dims) or len(tensor.dims) > 8:
        raise _Refused("one of its tensors is stored elsewhere or has an invalid shape")
    width = _width(tensor.data_type)
    count = len(tensor.raw_data) // width
    count = count or len(tensor.float_data) or len(tensor.int32_data) or len(tensor.int64_data)
    if math.prod(tensor.dims) != count:
        raise _Refused(f"one of its tensors has shape {[*tensor.dims]} but {count} elements")


def _width(data_type: int) -> int:
    from onnx import TensorProto, helper

    if data_type not in (1, 2, 3, 6, 7, 9, 11):  # float, uint8, int8, int32, int64, bool, double
        raise _Refused(f"it has tensors of type {TensorProto.DataType.Name(data_type)}")
    return helper.tensor_dtype_to_np_dtype(data_type).itemsize


def _check_shapes(model: Any, shape: tuple[int, ...], classes: int, outputs: list[str]) -> None:
    """Infer all shapes for two images; refuse shapes that are unknown, and tensors that need too much memory."""
    graph = _inferred(model, shape, outputs)
    values = (*graph.input, *graph.value_info, *graph.output)
    shapes = {value.name: _shape(value) for value in values} | {t.name: (*t.dims,) for t in graph.initializer}
    _check_operations(graph, shapes)
    sizes = {value.name: _bytes(value) for value in (*graph.value_info, *graph.output)}
    last = {name: index for index, node in enumerate(graph.node) for name in node.input}
    limit, now = _BATCH * memory_limit(shape), 0
    for index, node in enumerate(graph.node):
        now += sum(sizes[name] for name in node.output if name)
        if now > limit:
            raise _Refused(f"{node.op_type} needs tensors of {now:.2g} bytes")
        now -= sum(sizes.get(name, 0) for name in {*node.input} if last[name] == index)
        now -= sum(sizes[name] for name in node.output if name and name not in last)
    found, *others = ([dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in graph.output)
    if len(found) != 2 or found[0] != _BATCH or found[1] != (classes or found[1]) or others not in ([], [[_BATCH]]):
        raise _Refused(f"its output for {_BATCH} images has shape {' and '.join(map(str, (found, *others)))}")


def _check_operations(graph: Any, shapes: dict[str, tuple[int, ...]]) -> None:
    macs = elements = 0
    for node in graph.node:
        read = [shapes[name] for name in node.input if name]
        written = sum(math.prod(shapes[name]) for name in node.output if name)
        elements += written + sum(math.prod(sizes) for sizes in read)
        if node.op_type in ("MatMul", "MatMulInteger"):
            macs += written * read[0][-1]
        elif node.op_type == "Gemm":
            macs += written * max(read[0])  # the larger side, as it may be transposed
        elif node.op_type == "Conv":
            macs += written * math.prod(read[1][1:])
        elif window := [attribute.ints for attribute in node.attribute if attribute.name == "kernel_shape"]:
            elements += written * math.prod(window[0])
    try:
        check_operations(macs, elements, _BATCH)
    except TooLarge as error:
        raise _Refused(f"it needs {error}") from None


def _bytes(value: Any) -> int:
    return math.prod(_shape(value)) * _width(value.type.tensor_type.elem_type)


def _shape(value: Any) -> tuple[int, ...]:
    kind = value.type.tensor_type
    if not kind.HasField("shape") or any(not dim.HasField("dim_value") for dim in kind.shape.dim):
        raise _Refused("it has tensors whose shapes do not follow from that of the images")
    return tuple(dim.dim_value for dim in kind.shape.dim)


def _inferred(model: Any, shape: tuple[int, ...], outputs: list[str]) -> Any:
    """The graph for two images, without weights, with all shapes that can be inferred."""
    import onnx

    bare = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    graph = bare.graph
    graph.name = "shapes"
    graph.node.extend(model.graph.node)
    info = onnx.helper.make_tensor_value_info
    graph.input.append(info(INPUT, onnx.TensorProto.FLOAT, [_BATCH, *shape]))
    for name in outputs:
        graph.output.append(onnx.ValueInfoProto(name=name, type=info("", onnx.TensorProto.FLOAT, None).type))
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
    """Fold small constants, on which shapes depend; return whether there was a new one."""
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
