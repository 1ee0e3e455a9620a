"""A stranger's `.pt2`, looked at before torch loads it: whatever `export_pt2` would not have written is refused.

`torch.export.load` runs what an archive brings: it unpickles objects, loads compiled libraries, evaluates the text of
shapes and guards, and takes any function of torch's modules for an operator. To look for each would never be complete,
so it is said what may be there: plain tensors, and a program of torch's operators with names for all else.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from clca.errors import ClcaError

_MEMBER = re.compile(
    r"archive_(format|version)|byteorder|\.data/(version|serialization_id)|extra/metadata\.json|models/model\.json|"
    r"data/sample_inputs/model\.pt|data/(weights/(model_weights_config\.json|weight_[0-9]+)|"
    r"constants/(model_constants_config\.json|tensor_[0-9]+))"
)
_TENSOR_FILE = re.compile(r"(weight|tensor)_[0-9]+")

# Arithmetic of sizes is called for by its function's name in Python, an operator of torch by its own.
_ARITHMETIC = re.compile(
    r"_operator\.(add|sub|mul|floordiv|truediv|mod|neg|pow|eq|ne|lt|le|gt|ge|and_|or_|not_|getitem)|"
    r"math\.(ceil|floor|trunc)|torch\.sym_(max|min|not|ite|sum|float|int)"
)
_OPERATOR = re.compile(r"torch\.ops\.(\w+)\.(\w+)\.(\w+)", re.ASCII)
_WITH_A_BODY = re.compile(r"torch\.ops\.higher_order\.wrap_with_(autocast|set_grad_enabled)")
_FUNCTIONS = ("target", "as_operator")

_NAME = re.compile(r"[\w.]*", re.ASCII)
_SPEC = re.compile(r'("(type|context|children_spec|null|\[\]|builtins\.(tuple|list|dict))"|null|[\[\]{}:, 0-9])*')
# What is more than a name, by its key.
_TEXTS = {
    "as_float": re.compile(r"[\w.+-]*", re.ASCII),
    "as_string": re.compile(r".*", re.DOTALL),  # stays a text: the separators of an einsum, a mode of padding
    "expr_str": re.compile(
        r"(Symbol\('[a-z][0-9]+'|(positive|nonnegative|integer)=True|"
        r"(Integer|Add|Mul|Pow|Max|Min|Mod|FloorDiv|CeilDiv|PythonMod|CleanDiv)\(|[0-9(), -])*"
    ),
    "in_spec": _SPEC,
    "out_spec": _SPEC,
    "nn_module_stack": re.compile(r"[\w.,;@<>-]*", re.ASCII),
    "torch_fn": re.compile(r"[\w.;<>]*", re.ASCII),
    "torch_version": re.compile(r"[\w.+-]*", re.ASCII),
}


def refuse_code(path: Path) -> None:
    """Refuse an archive in which is more than tensors and a program of torch's operators.

    Args:
        path: A zip.

    Raises:
        ClcaError: It may hold code, with the part at fault, or cannot be read.
    """
    try:
        archive = torch._C.PyTorchFileReader(str(path))  # what torch.export.load reads it with, so it sees the same
    except Exception:  # its classes are not public
        raise ClcaError(f"{path}: is not a program that clca exported and may hold code, so it is not loaded") from None
    name = ""
    try:
        for name in archive.get_all_records():
            if not _MEMBER.fullmatch(name):
                raise ValueError(name)
            if name.endswith(".pt"):
                torch.load(io.BytesIO(archive.get_record(name)), weights_only=True)
            elif name.endswith("_config.json"):
                _check_payloads(json.loads(archive.get_record(name)))
            elif name.startswith("models/"):
                _check_program(json.loads(archive.get_record(name)))
    except Exception:  # a damaged archive raises nearly anything
        raise ClcaError(
            f"{path}: {name} in it is not as clca writes it and may hold code, so it is not loaded"
        ) from None


def _check_payloads(payloads: Any) -> None:
    """Tensors are raw bytes in a file by torch's naming, never pickles."""
    for payload in payloads["config"].values():
        if payload["use_pickle"] is not False or not _TENSOR_FILE.fullmatch(payload["path_name"]):
            raise ValueError(payload["path_name"])


def _check_program(program: Any) -> None:
    if program.get("guards_code"):
        raise ValueError("guards_code")  # is compiled
    for key, text in _texts(program, ""):
        if key in _FUNCTIONS and not _is_operator(text):
            raise ValueError(text)
        if not _TEXTS.get(key, _NAME).fullmatch(text):
            raise ValueError(text)


def _texts(value: Any, key: str) -> Iterator[tuple[str, str]]:
    """Every text below a value, names of entries too, with the key that it is under."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield "", name
            yield from _texts(inner, name)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner, key)
    elif isinstance(value, str):
        yield key, value


def _is_operator(name: str) -> bool:
    if _ARITHMETIC.fullmatch(name) or _WITH_A_BODY.fullmatch(name):
        return True
    found = _OPERATOR.fullmatch(name)
    if found is None or found[2] == "from_file":  # which opens files, and makes them
        return False
    packet = getattr(getattr(torch.ops, found[1]), found[2], None)
    return isinstance(getattr(packet, found[3], None), torch._ops.OpOverload)
