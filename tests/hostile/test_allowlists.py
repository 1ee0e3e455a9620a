"""The lists of operators are those of our exports: run as a program, this file writes them anew."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from every_export import KINDS, build
from pt2_files import members

from clca.export import load_exported, onnx_operators, pt2_operators
from clca.export.onnx_file import save_onnx, to_onnx
from clca.export.program import capture, save_pt2
from clca.export.pt2_schema import Argument, Output


class Found:
    """What exports contain."""

    def __init__(self) -> None:
        self.operators: set[str] = set()
        self.onnx: set[str] = set()
        self.arguments: set[str] = set()
        self.outputs: set[str] = set()
        self.expressions: set[str] = set()

    def add_program(self, program: dict[str, Any]) -> None:
        for node in _nodes(program["graph_module"]["graph"]):
            self.operators.add(node["target"])
            self.arguments |= {kind for given in node["inputs"] for kind in given["arg"]}
            self.outputs |= {kind for given in node["outputs"] for kind in given}
        texts = re.findall(r'"expr_str": "(.*?)"', json.dumps(program))
        self.expressions |= {re.sub("[0-9]+", "0", text) for text in texts}


def _nodes(graph: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for node in graph["nodes"]:
        yield node
        for given in node["inputs"]:
            if "as_graph" in given["arg"]:
                yield from _nodes(given["arg"]["as_graph"]["graph"])


def export_all(folder: Path) -> Found:
    """Export each kind as both formats; every file loads as a stranger's and gives what the model gives."""
    found = Found()
    for number, (kind, settings) in enumerate(KINDS.items()):
        model = build(**settings)
        program = capture(model, kind)
        save_pt2(model, program, folder / "a.pt2")
        found.add_program(json.loads(members(folder / "a.pt2")["models/model.json"]))
        proto = to_onnx(program, kind)
        save_onnx(model, proto, folder / "a.onnx", int8=number == 0)
        found.onnx |= {node.op_type for node in _proto(folder / "a.onnx").graph.node}
    return found


def _proto(path: Path) -> Any:
    import onnx

    return onnx.load(path)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    return export_all(tmp_path_factory.mktemp("exports"))


def test_operators_of_pt2(found: Found) -> None:
    assert found.operators == pt2_operators.OPERATORS | pt2_operators.WITH_A_BODY


def test_operators_of_onnx(found: Found) -> None:
    assert found.onnx == onnx_operators.OPERATORS


def test_kinds_of_arguments_and_sizes(found: Found) -> None:
    assert found.arguments == {*Argument.model_fields, "as_graph"}
    assert found.outputs == set(Output.model_fields)
    symbol = "Symbol('s0', positive=True, integer=True)"
    assert found.expressions == {symbol, f"Mul(Integer(0), {symbol})"}


@pytest.mark.parametrize("kind", ["tome", "ats, plain head", "swiglu with evit", "pool map of padded tokens"])
@pytest.mark.parametrize("ending", ["pt2", "onnx"])
def test_what_is_exported_loads_and_computes_the_same(kind: str, ending: str, tmp_path: Path) -> None:
    model, path = build(**KINDS[kind]), tmp_path / f"a.{ending}"
    program = capture(model, kind)
    if ending == "pt2":
        save_pt2(model, program, path)
    else:
        save_onnx(model, to_onnx(program, kind), path)
    images = torch.randn(3, model.in_chans, *model.patch_embed.img_size)
    with torch.inference_mode():
        expected = model(images)
    torch.testing.assert_close(load_exported(path)(images), expected, rtol=0, atol=1e-4 * expected.abs().max().item())


def _rewrite(module: Any, name: str, values: set[str]) -> None:
    path = Path(module.__file__)
    rows = "".join(f'        "{value}",\n' for value in sorted(values))
    text = re.sub(
        rf"({name} = frozenset\(\n    \{{\n).*?(    \}}\n)", rf"\g<1>{rows}\g<2>", path.read_text(), flags=re.S
    )
    path.write_text(text)


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as place:
        everything = export_all(Path(place))
    with_a_body = {name for name in everything.operators if ".higher_order." in name}
    _rewrite(pt2_operators, "OPERATORS", everything.operators - with_a_body)
    _rewrite(onnx_operators, "OPERATORS", everything.onnx)
    sys.stdout.write(f"written; operators with a body, to enter by hand: {sorted(with_a_body)}\n")
