"""Schema of the JSON files in an archive of `export_pt2`; other fields, kinds of arguments and texts are refused.

torch evaluates the text of sizes with sympy, imports types named in specifications, and looks up functions by name.
Therefore every text must have the form that our exports write, and every number has limits.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    StringConstraints,
    Tag,
    model_validator,
)

from clca.export.metadata import INPUT
from clca.export.pt2_operators import HIGHER_ORDER, OPERATORS

BYTES = {1: 1, 5: 8, 7: 4, 8: 8, 12: 1}
"""Bytes per element, by the codes of torch.export for uint8, int64, float32, float64 and bool."""

_MOST_NODES = 20_000  # 12 blocks with three reductions have 489
_LARGEST = 2**63 - 1  # the end of a slice without an end


class UnknownOperator(Exception):
    """A program calls an operator that is not allowed; the message is its name."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


def _entry() -> Any:
    """Define a field of a `_OneOf`."""
    return Field(default=None)


class _OneOf(_Strict):
    """An object of which exactly one field is set."""

    @model_validator(mode="after")
    def _single(self) -> _OneOf:
        if len(self.model_fields_set) != 1:
            raise ValueError("expected exactly one entry")
        return self


def _text(pattern: str, longest: int) -> Any:
    # Rust's syntax: \w and \d match beyond ASCII, and $ matches only at the end of the text.
    return StringConstraints(pattern=f"^(?:{pattern})$", max_length=longest)


def _operator(target: str) -> str:
    if target not in OPERATORS:
        raise UnknownOperator(target)
    return target


_SYMBOL_NAME = "s[0-9]{1,9}"
_SYMBOL = rf"Symbol\('{_SYMBOL_NAME}', positive=True, integer=True\)"
_PART = "_?[A-Za-z0-9][A-Za-z0-9_]*"  # of a module name; names with leading __ are special in Python

# Specification of input (images) and output (logits, unfamiliarity): torch imports the types that such a text names.
_TENSOR = '{"type": null, "context": null, "children_spec": []}'
_ONE_RESULT = f"[1, {_TENSOR}]"
_TWO_RESULTS = f'[1, {{"type": "builtins.tuple", "context": "null", "children_spec": [{_TENSOR}, {_TENSOR}]}}]'
_ONE_ARGUMENT = (
    '[1, {"type": "builtins.tuple", "context": "null", "children_spec": [{"type": "builtins.tuple", "context": "null", '
    f'"children_spec": [{_TENSOR}]}}, {{"type": "builtins.dict", "context": "[]", "children_spec": []}}]}}]'
)

_Symbol = Annotated[str, _text(_SYMBOL_NAME, 10)]
_Name = Annotated[str, _text("[A-Za-z_][A-Za-z0-9_]*", 200)]
_Path = Annotated[str, _text(rf"{_PART}(?:\.{_PART})*", 300)]
_Expression = Annotated[str, _text(rf"{_SYMBOL}|Mul\(Integer\([0-9]{{1,12}}\), {_SYMBOL}\)", 100)]
_Operator = Annotated[str, AfterValidator(_operator)]
_Int = Annotated[int, Field(ge=-_LARGEST, le=_LARGEST)]
_Size = Annotated[int, Field(ge=0, le=2**40)]
_Empty = Annotated[list[None], Field(max_length=0)]
_Nothing = Annotated[dict[str, None], Field(max_length=0)]


class _Named(_Strict):
    name: _Name


class _ByName(_Strict):
    as_name: _Name


class _AsSize(_Strict):
    as_int: _Size


class _Expr(_Strict):
    expr_str: _Expression
    hint: _AsSize


class _AsExpr(_Strict):
    as_expr: _Expr


class _SymInts(_OneOf):
    as_int: _Int = _entry()
    as_name: _Name = _entry()


class _Device(_Strict):
    type: Literal["cpu"]
    index: None


class _TensorBase(_Strict):
    dtype: Literal[1, 5, 7, 8, 12]
    requires_grad: bool
    device: _Device
    storage_offset: _AsSize
    layout: Literal[7]


class _TensorMeta(_TensorBase):
    sizes: Annotated[list[_AsSize | _AsExpr], Field(max_length=8)]
    strides: Annotated[list[_AsSize | _AsExpr], Field(max_length=8)]


class StoredMeta(_TensorBase):
    """A stored tensor: its type, and its place in the file."""

    sizes: Annotated[list[_AsSize], Field(max_length=8)]
    strides: Annotated[list[_AsSize], Field(max_length=8)]


class Payload(_Strict):
    """A parameter or buffer, and its file."""

    path_name: Annotated[str, _text("weight_[0-9]{1,6}", 13)]
    is_param: bool
    use_pickle: Literal[False]
    tensor_meta: StoredMeta


class Weights(_Strict):
    """`data/weights/model_weights_config.json`."""

    config: Annotated[dict[_Path, Payload], Field(max_length=_MOST_NODES)]


class Constants(_Strict):
    """`data/constants/model_constants_config.json`: our exports have no constants."""

    config: _Nothing


class Argument(_OneOf):
    """An argument of an operator, by its kind."""

    as_bool: bool = _entry()
    as_device: _Device = _entry()
    as_float: float | Literal["-Infinity"] = _entry()
    as_int: _Int = _entry()
    as_ints: Annotated[list[_Int], Field(max_length=64)] = _entry()
    as_layout: Literal[7] = _entry()
    as_none: Literal[True] = _entry()
    as_scalar_type: Literal[1, 5, 7, 8, 12, 13] = _entry()  # 13, bfloat16, occurs for autocast, which is off
    as_string: Literal["constant", "cpu", "tanh"] = _entry()
    as_sym_int: _ByName = _entry()
    as_sym_ints: Annotated[list[_SymInts], Field(max_length=64)] = _entry()
    as_tensor: _Named = _entry()
    as_tensors: Annotated[list[_Named], Field(max_length=1000)] = _entry()


class _Input(_Strict):
    name: _Name
    arg: Argument
    kind: Literal[1, 2]


class Output(_OneOf):
    """A result of an operator, by its kind."""

    as_none: Literal[True] = _entry()
    as_sym_int: _ByName = _entry()
    as_tensor: _Named = _entry()
    as_tensors: Annotated[list[_Named], Field(max_length=1000)] = _entry()


class _Origin(_Strict):
    nn_module_stack: Annotated[str, _text("[A-Za-z0-9_.,;@<>-]*", 10_000)]
    torch_fn: Annotated[str, _text("[A-Za-z0-9_.;<>]*", 500)]


class _Call(_Strict):
    target: _Operator
    inputs: Annotated[list[_Input], Field(max_length=64)]
    outputs: Annotated[list[Output], Field(max_length=1000)]
    metadata: _Origin
    is_hop_single_tensor_return: None
    name: _Name


class _SymIntValue(_Strict):
    as_expr: _Expr


class _ValueInBody(_OneOf):
    as_sym_int: _ByName = _entry()
    as_tensor: _Named = _entry()


class _AsTensor(_Strict):
    as_tensor: _Named


class _GraphBase(_Strict):
    outputs: Annotated[list[_AsTensor], Field(max_length=1000)]
    tensor_values: Annotated[dict[_Name, _TensorMeta], Field(max_length=2 * _MOST_NODES)]
    sym_int_values: Annotated[dict[_Name, _SymIntValue], Field(max_length=1000)]
    sym_bool_values: _Nothing
    sym_float_values: _Nothing
    custom_obj_values: _Nothing
    is_single_tensor_return: Literal[False]


class _BodyGraph(_GraphBase):
    inputs: Annotated[list[_ValueInBody], Field(max_length=1000)]
    nodes: Annotated[list[_Call], Field(max_length=_MOST_NODES)]


class _Body(_Strict):
    name: _Name
    graph: _BodyGraph


class _ArgumentOrBody(Argument):
    as_graph: _Body = _entry()


class _InputOrBody(_Strict):
    name: Literal[""]
    arg: _ArgumentOrBody
    kind: Literal[1]


class _CallOfBody(_Call):
    target: Literal[tuple(sorted(HIGHER_ORDER))]  # type: ignore[valid-type]
    inputs: Annotated[list[_InputOrBody], Field(max_length=1000)]  # type: ignore[assignment]
    is_hop_single_tensor_return: Literal[False]  # type: ignore[assignment]


def _has_body(call: Any) -> str:
    return "body" if isinstance(call, dict) and call.get("target") in HIGHER_ORDER else "plain"


class _Graph(_GraphBase):
    inputs: Annotated[list[_AsTensor], Field(max_length=_MOST_NODES)]
    nodes: Annotated[
        list[Annotated[Annotated[_Call, Tag("plain")] | Annotated[_CallOfBody, Tag("body")], Discriminator(_has_body)]],
        Field(max_length=_MOST_NODES),
    ]


class _Parameter(_Strict):
    arg: _Named
    parameter_name: _Path


class _Buffer(_Strict):
    arg: _Named
    buffer_name: _Path
    persistent: Literal[True]


class _Images(_Strict):
    name: Literal[INPUT]  # type: ignore[valid-type]


class _AsImages(_Strict):
    as_tensor: _Images


class _UserInput(_Strict):
    arg: _AsImages


class _UserOutput(_Strict):
    arg: _AsTensor


class _InputSpec(_OneOf):
    parameter: _Parameter = _entry()
    buffer: _Buffer = _entry()
    user_input: _UserInput = _entry()


class _OutputSpec(_Strict):
    user_output: _UserOutput


class _Signature(_Strict):
    input_specs: Annotated[list[_InputSpec], Field(max_length=_MOST_NODES)]
    output_specs: Annotated[list[_OutputSpec], Field(min_length=1, max_length=2)]


class _CallSignature(_Strict):
    inputs: _Empty
    outputs: _Empty
    in_spec: Literal[_ONE_ARGUMENT]  # type: ignore[valid-type]
    out_spec: Literal[_ONE_RESULT, _TWO_RESULTS]  # type: ignore[valid-type]
    forward_arg_names: Annotated[list[Literal[INPUT]], Field(min_length=1, max_length=1)]  # type: ignore[valid-type]


class _Module(_Strict):
    fqn: _Path | Literal[""]
    signature: _CallSignature | None


class _GraphModule(_Strict):
    graph: _Graph
    signature: _Signature
    module_call_graph: Annotated[list[_Module], Field(max_length=_MOST_NODES)]
    metadata: _Nothing
    treespec_namedtuple_fields: _Nothing


class _Opset(_Strict):
    aten: Annotated[int, Field(ge=1, le=1000)]


class _Range(_Strict):
    min_val: Annotated[int, Field(ge=0, le=2)]
    max_val: None


class _Version(_Strict):
    major: Annotated[int, Field(ge=1, le=1000)]
    minor: Annotated[int, Field(ge=0, le=1000)]


class Program(_Strict):
    """`models/model.json`."""

    graph_module: _GraphModule
    opset_version: _Opset
    range_constraints: Annotated[dict[_Symbol, _Range], Field(min_length=1, max_length=1)]
    schema_version: _Version
    verifiers: Annotated[list[Literal["TRAINING"]], Field(min_length=1, max_length=1)]
    torch_version: Annotated[str, _text("[A-Za-z0-9_.+-]*", 60)]
    guards_code: _Empty
