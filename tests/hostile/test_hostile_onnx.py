"""A stranger's `.onnx` loads as an export of ours or is refused in one line: no files, loops or memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from bounded import refused
from every_export import KINDS, build
from onnx import helper, numpy_helper
from pt2_files import load_and_run

from clca.export import export_onnx


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with reduction evit."""
    return export_onnx(build(**KINDS["evit"]), tmp_path_factory.mktemp("sound") / "sound.onnx")


def _external(model: Any) -> None:
    tensor = model.graph.initializer[0]
    onnx.external_data_helper.set_external_data(tensor, "../../../etc/passwd")
    tensor.data_location = onnx.TensorProto.EXTERNAL


def _huge(model: Any) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.array([10**11]), "huge"))
    model.graph.node.insert(0, helper.make_node("ConstantOfShape", ["huge"], ["much"]))


def _loop(model: Any) -> None:
    body = helper.make_graph([], "body", [], [])
    model.graph.node.append(helper.make_node("Loop", ["", ""], ["x"], body=body))


CHANGES: dict[str, Callable[[Any], Any]] = {
    "external data": _external,
    "huge constant": _huge,
    "loop": _loop,
    "domain": lambda model: setattr(model.graph.node[0], "domain", "com.stranger"),
    "operator": lambda model: setattr(model.graph.node[0], "op_type", "If"),
    "function": lambda model: model.functions.add(name="f", domain="x"),
    "sizes of a weight": lambda model: model.graph.initializer[0].dims.append(10**9),
    "classes": lambda m: next(e for e in m.metadata_props if e.key == "classes").__setattr__("value", '["a"]'),
    "metadata": lambda m: next(e for e in m.metadata_props if e.key == "input").__setattr__("value", "[" * 10**6),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_no_export_has_is_refused(sound: Path, tmp_path: Path, name: str) -> None:
    model = onnx.load(sound)
    CHANGES[name](model)
    path = tmp_path / "evil.onnx"
    path.write_bytes(model.SerializeToString())
    assert str(path) in refused(load_and_run, str(path), memory_mib=1024, cpu_seconds=60)
