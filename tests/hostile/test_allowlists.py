"""The lists of operators are those of our exports: run as a program, this file writes them anew."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from every_export import INT8, KINDS, build
from pt2_files import members

from clca.export import load_exported, onnx_operators, pt2_operators
from clca.export.onnx_file import output_names, save_onnx, to_onnx
from clca.export.program import capture, save_pt2
from clca.export.pt2_schema import Argument, Output

pytestmark = pytest.mark.slow

# What exports contain, by sort: what the lists and the schema have of it.
_SYMBOL = "Symbol('s0', positive=True, integer=True)"
LISTS = {
    "pt2": {*pt2_operators.OPERATORS, *pt2_operators.HIGHER_ORDER},
    "onnx": set(onnx_operators.OPERATORS),
    "arguments": {*Argument.model_fields, "as_graph"},
    "outputs": set(Output.model_fields),
    "expressions": {_SYMBOL, f"Mul(Integer(0), {_SYMBOL})"},
}


def export_kind(kind: str, folder: Path) -> tuple[Any, list[Path], dict[str, set[str]]]:
    """Export one of `KINDS` as both formats.

    Returns:
        The model; its files; what they contain, sorted as `LISTS`.
    """
    import onnx

    model = build(**KINDS[kind])
    program = capture(model, kind)
    files = [folder / "a.pt2", folder / "a.onnx"]
    save_pt2(model, program, files[0])
    proto = to_onnx(program, kind, output_names(model))
    save_onnx(model, proto, files[1])
    if kind in INT8:
        files.append(folder / "int8.onnx")
        save_onnx(model, proto, files[2], int8=True)
    found = _in_program(json.loads(members(files[0])["models/model.json"]))
    found["onnx"] = {node.op_type for file in files[1:] for node in onnx.load(file).graph.node}
    return model, files, found


def _in_program(program: dict[str, Any]) -> dict[str, set[str]]:
    nodes = [*_nodes(program["graph_module"]["graph"])]
    return {
        "pt2": {node["target"] for node in nodes},
        "arguments": {kind for node in nodes for given in node["inputs"] for kind in given["arg"]},
        "outputs": {kind for node in nodes for given in node["outputs"] for kind in given},
        "expressions": {
            re.sub("[0-9]+", "0", text) for text in re.findall(r'"expr_str": "(.*?)"', json.dumps(program))
        },
    }


def _nodes(graph: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for node in graph["nodes"]:
        yield node
        for given in node["inputs"]:
            if "as_graph" in given["arg"]:
                yield from _nodes(given["arg"]["as_graph"]["graph"])


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all processes of a test run share."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "seen_in_exports"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_an_export_has_listed_parts_only_and_loads_as_a_strangers(kind: str, tmp_path: Path, seen: Path) -> None:
    model, files, found = export_kind(kind, tmp_path)
    temporary = seen / f"{kind}.part"
    temporary.write_text(json.dumps({sort: sorted(values) for sort, values in found.items()}))
    temporary.rename(seen / f"{kind}.json")
    for sort, values in found.items():
        assert values <= LISTS[sort], f"{sort}: not listed"
    images = torch.randn(4, model.in_chans, *model.patch_embed.img_size)
    images[2:] = torch.tensor([0.5, -2.0])[:, None, None, None]  # of one colour
    loaded = {file: load_exported(file) for file in files}
    for batch in (images[:1], images, torch.cat([images, images]).flip(0)):  # 1, and more than the example had
        with torch.inference_mode():
            expected = model(batch)
        for file, program in loaded.items():
            assert program.classes == model.classes
            # Float32, added in another order: some units in the last place of the largest logit.
            share = 0.2 if file.name == "int8.onnx" else 2e-5
            torch.testing.assert_close(program(batch), expected, rtol=0, atol=share * expected.abs().max().item())
    _nothing_listed_in_vain(seen)


def _nothing_listed_in_vain(seen: Path) -> None:
    """The test of the last kind that is exported compares all of them with the lists."""
    everything = [json.loads(file.read_text()) for file in seen.glob("*.json")]
    if len(everything) < len(KINDS):
        return
    for sort, values in LISTS.items():
        assert set().union(*(found[sort] for found in everything)) == values, f"{sort}: listed, and in no export"


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
        exports = [export_kind(kind, Path(place))[2] for kind in KINDS]
    operators = set().union(*(found["pt2"] for found in exports))
    with_a_body = {name for name in operators if ".higher_order." in name}
    _rewrite(pt2_operators, "OPERATORS", operators - with_a_body)
    _rewrite(onnx_operators, "OPERATORS", set().union(*(found["onnx"] for found in exports)))
    sys.stdout.write(f"written; operators with a body, to enter by hand: {sorted(with_a_body)}\n")
