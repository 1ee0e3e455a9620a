"""A stranger's `.pt2` loads as an export of ours or is refused in one line: nothing runs, hangs or fills memory."""

from __future__ import annotations

import copy
import json
import random
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from bounded import bounded, refused, refused_by_command_line
from every_export import KINDS, build
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pt2_files import METADATA, PROGRAM, WEIGHTS, changed, graph, load_all, load_and_run, members, mutated, write
from pydantic import TypeAdapter, ValidationError

from clca.errors import ClcaError
from clca.export import export_pt2, load_exported, onnx_allowlist, pt2_allowlist, pt2_schema, pt2_size
from clca.export.pt2_operators import HIGHER_ORDER, OPERATORS
from clca.export.pt2_schema import Argument, Program, UnknownOperator

pytestmark = pytest.mark.slow

MEMORY, SECONDS = 512, 25  # a refusal takes up to 45 MiB and 2 s, loading a sound file 70 MiB and 3 s


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with reduction evit."""
    return export_pt2(build(**KINDS["evit"]), tmp_path_factory.mktemp("sound") / "sound.pt2")


def _refused(path: Path) -> str:
    return refused(load_and_run, str(path), memory_mib=MEMORY, cpu_seconds=SECONDS)


def _call(target: str, **arguments: Any) -> dict[str, Any]:
    inputs = [{"name": name, "arg": arg, "kind": 1} for name, arg in arguments.items()]
    origin = {"nn_module_stack": "", "torch_fn": ""}
    outputs: list[Any] = [{"as_tensor": {"name": "stranger"}}]
    return {"target": target, "inputs": inputs, "outputs": outputs, "metadata": origin,
            "is_hop_single_tensor_return": None, "name": "stranger"}  # fmt: skip


def _image(name: str = "images") -> dict[str, Any]:
    return {"as_tensor": {"name": name}}


def _insert(program: dict[str, Any], call: dict[str, Any]) -> None:
    graph(program)["nodes"].insert(0, call)
    graph(program)["tensor_values"]["stranger"] = copy.deepcopy(graph(program)["tensor_values"]["images"])


def test_a_sound_file_gives_the_logits_of_its_model(sound: Path) -> None:
    outcome = bounded(load_and_run, str(sound), memory_mib=MEMORY, cpu_seconds=SECONDS)
    assert not outcome.error, outcome.trace
    assert len(outcome.value) == 14


def test_files_are_neither_written_nor_read(sound: Path, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    call = _call("torch.ops.image.write_file.default", filename={"as_string": str(mark)}, data=_image())
    for target in ("image.write_file.default", "image.read_file.default", "aten.from_file.default"):
        call["target"] = f"torch.ops.{target}"
        message = _refused(changed(sound, tmp_path / "evil.pt2", PROGRAM, lambda program: _insert(program, call)))
        assert target in message
        assert "trusted=True" in message
    assert not mark.exists()


def test_no_other_registered_operator_is_accepted(sound: Path) -> None:
    import torchvision  # noqa: F401  # registers operators on files

    program = json.loads(members(sound)[PROGRAM])
    first = graph(program)["nodes"][0]
    Program.model_validate(program)
    call = TypeAdapter(pt2_schema._Call)
    names = [name.replace("::", ".") for name in torch._C._dispatch_get_all_op_names()]
    targets = {f"torch.ops.{name}" if name.count(".") == 2 else f"torch.ops.{name}.default" for name in names}
    assert len(targets) > 2000
    more = {"_operator.mul", "_operator.pow", "math.ceil", "torch.sym_max", "torch.os.system", "builtins.eval",
            "torch.ops.higher_order.cond", "torch.ops.higher_order.while_loop", "", "torch.ops.aten.add.Tensor\n",
            "torch.ops.higher_order.wrap_with_set_grad_enabled", "torch.ops.aten.add"}  # fmt: skip
    for target in (targets | more) - OPERATORS - HIGHER_ORDER:
        first["target"] = target
        with pytest.raises(UnknownOperator):
            call.validate_python(first)
    with pytest.raises(UnknownOperator):
        Program.model_validate(program)


@pytest.mark.parametrize(
    "text",
    [
        "Pow(Integer(9), Pow(Integer(9), Integer(9)))",
        "Mul(Integer(9), Mul(Integer(9), Symbol('s0', positive=True, integer=True)))",
        f"Integer({'9' * 5000})",
        f"Mul(Integer({'9' * 13}), Symbol('s0', positive=True, integer=True))",
        "Symbol('s0', positive=True, integer=True)\n",
        "Symbol('s٣', positive=True, integer=True)",
        "9**9**9",
        "(" * 10_000,
        "Symbol('s99999', positive=True, integer=True)",
        "factorial(Integer(99999999))",
        "__import__('os').system('true')",
    ],
    ids=lambda text: text[:20],
)  # fmt: skip
@pytest.mark.parametrize("place", ["sizes", "strides", "sym_int_values"])
def test_a_size_is_the_batch_or_a_number(sound: Path, tmp_path: Path, text: str, place: str) -> None:
    def change(program: dict[str, Any]) -> None:
        value = {"as_expr": {"expr_str": text, "hint": {"as_int": 2}}}
        if place == "sym_int_values":
            found = graph(program)["sym_int_values"]
            found[next(iter(found))] = value
        else:
            graph(program)["tensor_values"]["images"][place][0] = value

    _quickly_refused(changed(sound, tmp_path / "evil.pt2", PROGRAM, change), PROGRAM)


def _quickly_refused(path: Path, part: str) -> None:
    """In this process, for what cannot go beyond limits once it is refused where it is read."""
    with pytest.raises(ClcaError, match="may contain code") as raised:
        load_exported(path)
    assert f"{part} in it" in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1


def _graph_module(program: Any) -> Any:
    return program["graph_module"]


def _first(program: Any) -> Any:
    return graph(program)["nodes"][0]


CHANGES: dict[str, Callable[[Any], Any]] = {
    "guards": lambda p: p.update(guards_code=["print(1)"]),
    "ranges": lambda p: p.update(range_constraints={"s0": {"min_val": 0, "max_val": 10**4000}}),
    "two ranges": lambda p: p["range_constraints"].update(s1={"min_val": 0, "max_val": None}),
    "range of text": lambda p: p.update(range_constraints={"9**9**9": {"min_val": 0, "max_val": None}}),
    "hint": lambda p: next(iter(graph(p)["sym_int_values"].values()))["as_expr"].update(hint={"as_int": 10**4000}),
    "no hint": lambda p: next(iter(graph(p)["sym_int_values"].values()))["as_expr"].update(hint=None),
    "custom object": lambda p: _first(p)["inputs"].append({"name": "x", "arg": {"as_custom_obj": {}}, "kind": 1}),
    "operator as argument": lambda p: _first(p)["inputs"][0].update(arg={"as_operator": "torch.os.system"}),
    "graph as argument": lambda p: _first(p)["inputs"][0].update(
        arg={"as_graph": {"name": "g", "graph": copy.deepcopy(graph(p))}}
    ),
    "complex": lambda p: _first(p)["inputs"][0].update(arg={"as_complex": {"real": 0.0, "imag": 0.0}}),
    "two kinds": lambda p: _first(p)["inputs"][0]["arg"].update(as_int=1),
    "no kind": lambda p: _first(p)["inputs"][0].update(arg={}),
    "truth for a number": lambda p: _first(p)["inputs"][0].update(arg={"as_int": True}),
    "path as text": lambda p: _first(p)["inputs"][0].update(arg={"as_string": "/etc/passwd"}),
    "device": lambda p: graph(p)["tensor_values"]["images"].update(device={"type": "cuda", "index": 0}),
    "layout": lambda p: graph(p)["tensor_values"]["images"].update(layout=1),
    "type": lambda p: graph(p)["tensor_values"]["images"].update(dtype=9),
    "objects": lambda p: graph(p)["custom_obj_values"].update(x={"class_fqn": "os.system", "name": "x"}),
    "named tuples": lambda p: _graph_module(p)["treespec_namedtuple_fields"].update({"os": {"fields": []}}),
    "spec": lambda p: _graph_module(p)["module_call_graph"][0]["signature"].update(in_spec="[" * 100_000),
    "type of a spec": lambda p: _graph_module(p)["module_call_graph"][0]["signature"].update(
        out_spec='[1, {"type": "os.system", "context": "null", "children_spec": []}]'
    ),
    "name of an argument": lambda p: _graph_module(p)["module_call_graph"][0]["signature"].update(
        forward_arg_names=["images, a=print(1)"]
    ),
    "name with code": lambda p: _first(p).update(name="x = print(1)"),
    "function": lambda p: _first(p)["metadata"].update(torch_fn="f(" * 1000),
    "more metadata": lambda p: _first(p)["metadata"].update(custom='{"a": 1}'),
    "another field": lambda p: p.update(another=1),
    "another verifier": lambda p: p.update(verifiers=["os.system"]),
    "a module of Python's": lambda p: _graph_module(p)["module_call_graph"][1].update(fqn="model.__class__"),
    "too many nodes": lambda p: graph(p).update(nodes=[_first(p)] * 20_001),
}


@pytest.mark.parametrize("name", CHANGES)
def test_the_program_has_the_fields_that_exports_have(sound: Path, tmp_path: Path, name: str) -> None:
    content = members(sound)
    program = json.loads(content[PROGRAM])
    CHANGES[name](program)
    _quickly_refused(write(tmp_path / "evil.pt2", content | {PROGRAM: json.dumps(program).encode()}), PROGRAM)


@pytest.mark.parametrize(
    "arg", [{"as_sym_bool": {"as_bool": True}}, {"as_optional_tensor": {"as_none": True}}, {"as_path": "x"}]
)
def test_other_kinds_of_arguments(arg: Any) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(Argument).validate_python(arg)


@pytest.mark.parametrize(
    "call",
    [
        _call("torch.ops.aten.zeros.default", size={"as_ints": [10**11]}),
        _call("torch.ops.aten.ones.default", size={"as_ints": [10**6, 10**6]}),
        _call("torch.ops.aten.arange.default", end={"as_int": 10**11}),
        _call("torch.ops.aten.new_full.default", self=_image(), size={"as_ints": [10**11]}, fill_value={"as_int": 1}),
        _call("torch.ops.aten.repeat.default", self=_image(), repeats={"as_ints": [1, 1, 10**5, 10**5]}),
        _call("torch.ops.aten.pad.default", self=_image(), pad={"as_ints": [0, 10**10]}),
        _call("torch.ops.aten.expand.default", self=_image(), size={"as_ints": [10**10, -1, -1, -1, -1]}),
    ],
    ids=lambda call: call["target"],
)
def test_no_more_memory_than_images_explain(sound: Path, tmp_path: Path, call: dict[str, Any]) -> None:
    message = _refused(changed(sound, tmp_path / "evil.pt2", PROGRAM, lambda program: _insert(program, call)))
    assert "bytes" in message


def _weight(config: Any) -> Any:
    return next(iter(config["config"].values()))


@pytest.mark.parametrize(
    "change",
    [
        lambda c: _weight(c).update(use_pickle=True),
        lambda c: _weight(c).update(path_name="../../etc/passwd"),
        lambda c: _weight(c).update(path_name="weight_99999"),
        lambda c: _weight(c)["tensor_meta"].update(sizes=[{"as_int": 2**40}], strides=[{"as_int": 0}]),
        lambda c: _weight(c)["tensor_meta"].update(sizes=[{"as_int": 10**6}], strides=[{"as_int": 1}]),
        lambda c: _weight(c)["tensor_meta"].update(storage_offset={"as_int": 10**9}),
        lambda c: _weight(c)["tensor_meta"].update(storage_offset={"as_int": -1}),
        lambda c: _weight(c)["tensor_meta"].update(strides=[{"as_int": 2**40}] * 3),
        lambda c: _weight(c)["tensor_meta"].update(dtype=8),
    ],
)
def test_weights_lie_within_their_files(sound: Path, tmp_path: Path, change: Callable[[Any], Any]) -> None:
    _quickly_refused(changed(sound, tmp_path / "evil.pt2", WEIGHTS, change), WEIGHTS)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.update(classes=["a"]),
        lambda m: m.update(classes="abcdefg"),
        lambda m: m.update(classes=[1] * 7),
        lambda m: m["input"].update(shape=["batch", 3, 2**31, 2**31]),
        lambda m: m["input"].update(shape=None),
        lambda m: m["input"].update(shape=["batch", 3, -1, 32]),
        lambda m: m["output"].update(shape=["batch", 10**12]),
        lambda m: m.update(preprocess={"img_size": 10**9}),
        lambda m: m.update(preprocess=[1]),
        lambda m: m.update(format="other"),
        lambda m: m.clear(),
    ],
)
def test_metadata_are_those_of_an_export(sound: Path, tmp_path: Path, change: Callable[[Any], Any]) -> None:
    _quickly_refused(changed(sound, tmp_path / "evil.pt2", METADATA, change), METADATA)


ENDLESS = {
    "lists": b"[" * 1_000_000,
    "objects": b'{"a":' * 1_000_000,
    "digits": b"9" * 1_000_000,
    "bytes": b"\xff",
    "null": b"null",
    "list": b"[[],[]]",
}


@pytest.mark.parametrize("member", [PROGRAM, WEIGHTS, METADATA])
@pytest.mark.parametrize("kind", ENDLESS)
def test_json_without_an_end(sound: Path, tmp_path: Path, member: str, kind: str) -> None:
    _quickly_refused(write(tmp_path / "evil.pt2", members(sound) | {member: ENDLESS[kind]}), member)


def test_zip_bombs(sound: Path, tmp_path: Path) -> None:
    content, evil = members(sound), tmp_path / "evil.pt2"
    assert "compressed" in _refused(
        write(evil, content | {"data/weights/weight_0": bytes(2**28)}, zipfile.ZIP_DEFLATED)
    )
    write(evil, content)
    with zipfile.ZipFile(evil, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr(f"archive/{PROGRAM}", b"{}")
    assert "twice" in _refused(evil)
    raw = bytearray(write(evil, content).read_bytes())
    (entry,) = struct.unpack("<I", raw[-6:-2])
    raw[entry + 20 : entry + 28] = struct.pack("<II", 2**31, 2**31)  # declared sizes of the first member
    evil.write_bytes(raw)
    assert "more than the file can contain" in _refused(evil)
    assert "more than" in _refused(write(evil, content | {PROGRAM: b"[" + b"[]," * 2**23 + b"[]]"}))


def test_sample_inputs_of_a_stranger_are_never_read(sound: Path, tmp_path: Path) -> None:
    evil = write(
        tmp_path / "evil.pt2", members(sound) | {"data/sample_inputs/model.pt": b"cos\nsystem\n(S'false'\ntR."}
    )
    assert load_exported(evil).classes is not None


@pytest.mark.parametrize(
    "command", [("evaluate",), ("serve",), ("export",), ("predict", "photo.png", "--run")], ids=lambda words: words[0]
)
def test_commands_take_runs_and_read_no_exported_file(sound: Path, command: tuple[str, ...]) -> None:
    refused_by_command_line(*command, str(sound), memory_mib=MEMORY, cpu_seconds=SECONDS)


def _repeated(program: dict[str, Any]) -> None:
    """A product of weights, over and over: little memory, and much work."""
    nodes, values = graph(program)["nodes"], graph(program)["tensor_values"]
    linear = next(node for node in nodes if node["target"] == "torch.ops.aten.linear.default")
    place = nodes.index(linear)
    meta = values[linear["outputs"][0]["as_tensor"]["name"]]
    for number in range(1_000):
        name = f"again_{number}"
        values[name] = meta
        nodes.insert(place, linear | {"name": name, "outputs": [{"as_tensor": {"name": name}}]})


def test_no_more_work_than_images_explain(sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clca.export.pt2_size._OPERATIONS", 3 * 10**7)
    load_exported(sound)
    with pytest.raises(ClcaError, match="operations per image"):
        load_exported(changed(sound, tmp_path / "evil.pt2", PROGRAM, _repeated))


def test_a_directory_is_limited_before_it_is_read(sound: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "evil.pt2", members(sound) | {f"{'x' * 60_000}{n}": b"" for n in range(150)})
    assert "the directory in it" in _refused(path)


def test_a_reduction_of_a_third_party_is_named(sound: Path, tmp_path: Path) -> None:
    call = _call("torch.ops.aten.special_bessel_j0.default", self=_image())
    path = changed(sound, tmp_path / "evil.pt2", PROGRAM, lambda program: _insert(program, call))
    with pytest.raises(
        ClcaError, match=r"calls torch\.ops\.aten\.special_bessel_j0\.default.*load_exported\(path, trusted=True\)"
    ):
        load_exported(path)


def _replaced(value: Any, rng: random.Random) -> None:
    """Replace one leaf of a JSON value by something else."""
    while True:
        keys = list(value) if isinstance(value, dict) else range(len(value))
        if not keys:
            return
        key = rng.choice(list(keys))
        if isinstance(value[key], dict | list) and value[key] and rng.random() < 0.95:
            value = value[key]
            continue
        value[key] = rng.choice([0, 1, -1, 2, 2**31, 2**40, 2**63, 1e308, "", "images", None, True, [], {}, "x" * 99])
        return


@settings(max_examples=2, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**20))
@example(seed=0)
def test_any_change_is_refused_or_harmless(sound: Path, tmp_path: Path, seed: int) -> None:
    paths, content = [], members(sound)
    for number in range(seed * 20, seed * 20 + 20):
        path, rng = tmp_path / f"{number}.pt2", random.Random(number)
        if number % 2:
            path.write_bytes(mutated(sound.read_bytes(), number))
        else:
            member = rng.choice([PROGRAM, PROGRAM, WEIGHTS, METADATA])
            value = json.loads(content[member])
            _replaced(value, rng)
            write(path, content | {member: json.dumps(value).encode()})
        paths.append(str(path))
    outcome = bounded(load_all, paths, memory_mib=2 * MEMORY, cpu_seconds=10 * SECONDS)
    assert not outcome.error, outcome.trace
    for path, result in zip(paths, outcome.value, strict=True):
        assert result == "loaded" or result.startswith(f"ClcaError {path}"), (path, result)
        assert "\n" not in result
        Path(path).unlink()
    assert not list(tmp_path.iterdir())


def test_the_manual_states_the_limits() -> None:
    page = (Path(__file__).parents[2] / "docs" / "how-to" / "strangers-files.md").read_text()
    nodes = pt2_schema._MOST_NODES
    assert nodes == onnx_allowlist._MOST_NODES
    json_part, directory = pt2_allowlist._LONGEST_JSON >> 20, pt2_allowlist._LONGEST_DIRECTORY >> 20
    assert f"{json_part} MiB a JSON part, {directory} MiB of zip directory, {nodes:,} nodes" in page
    assert f"{onnx_allowlist._LONGEST >> 20} MiB beside the weights, {nodes:,} nodes" in page
    least, each, most = pt2_size._LEAST >> 20, pt2_size._PER_PIXEL >> 10, pt2_size._MOST >> 30
    assert f"{least} MiB + {each} KiB a pixel, at most {most} GiB, and 3 × 10¹³ operations" in page
    assert pt2_size._OPERATIONS == 3 * 10**13
