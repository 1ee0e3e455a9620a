"""A stranger's `.onnx` loads as an export of ours or is refused in one line: no files, loops or memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from bounded import bounded, refused
from every_export import KINDS, build
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper
from pt2_files import load_all, load_and_run, mutated

from clca.errors import ClcaError
from clca.export import export_onnx, load_exported

pytestmark = pytest.mark.slow

MEMORY, SECONDS = 512, 25  # a refusal takes up to 45 MiB and 2 s, loading a sound file 70 MiB and 3 s


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


def _aliases(model: Any) -> None:
    """Each value is the sum of the one before with itself, a billion times as wide in the end."""
    for number in range(30):
        model.graph.node.append(
            helper.make_node("Concat", [f"v{number - 1}" if number else "images"] * 2, [f"v{number}"], axis=0)
        )


CHANGES: dict[str, Callable[[Any], Any]] = {
    "external data": _external,
    "huge constant": _huge,
    "loop": _loop,
    "doubled again and again": _aliases,
    "unknown sizes": lambda model: model.graph.node.append(helper.make_node("NonZero", ["images"], ["x"])),
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
    assert str(path) in refused(load_and_run, str(path), memory_mib=MEMORY, cpu_seconds=SECONDS)


def test_a_sound_file_gives_the_logits_of_its_model(sound: Path) -> None:
    outcome = bounded(load_and_run, str(sound), memory_mib=MEMORY, cpu_seconds=SECONDS)
    assert not outcome.error, outcome.trace
    assert len(outcome.value) == 14


def test_no_more_work_than_images_explain(sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Little memory, and much work: products of one weight, over and over."""
    model, path = onnx.load(sound), tmp_path / "evil.onnx"
    monkeypatch.setattr("clca.export.pt2_size._OPERATIONS", 10**8)
    load_exported(sound)
    model.graph.initializer.append(numpy_helper.from_array(np.zeros((32, 32), dtype=np.float32), "square"))
    for number in range(2_000):
        name = f"v{number - 1}" if number else "images"
        model.graph.node.append(helper.make_node("MatMul", [name, "square"], [f"v{number}"]))
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ClcaError, match="operations per image"):
        load_exported(path)


@pytest.mark.parametrize("part", ["node", "initializer", "value_info"])
def test_a_file_of_small_parts_is_refused_before_it_is_parsed(tmp_path: Path, part: str) -> None:
    """Two bytes of a file become a hundred of memory."""
    number = {"node": 1, "initializer": 5, "value_info": 13}[part]
    parts = bytes([number << 3 | 2, 0]) * 10_000_000
    length, left = b"", len(parts)
    while left:
        length, left = length + bytes([left & 127 | (128 if left > 127 else 0)]), left >> 7
    path = tmp_path / "evil.onnx"
    path.write_bytes(bytes([7 << 3 | 2]) + length + parts)
    assert "besides its weights" in refused(load_and_run, str(path), memory_mib=MEMORY, cpu_seconds=SECONDS)


@settings(max_examples=3, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**20))
def test_any_change_is_refused_or_harmless(sound: Path, tmp_path: Path, seed: int) -> None:
    paths = []
    for number in range(seed * 20, seed * 20 + 20):
        paths.append(str(tmp_path / f"{number}.onnx"))
        Path(paths[-1]).write_bytes(mutated(sound.read_bytes(), number))
    outcome = bounded(load_all, paths, memory_mib=2 * MEMORY, cpu_seconds=10 * SECONDS)
    assert not outcome.error, outcome.trace
    for path, result in zip(paths, outcome.value, strict=True):
        assert result == "loaded" or result.startswith(f"ClcaError {path}"), (path, result)
        assert "\n" not in result
        Path(path).unlink()
    assert not list(tmp_path.iterdir())
