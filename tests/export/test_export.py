"""Exported files: they compute what the model does, say how to be used, and are there whole or not at all."""

import io
import json
import math
import pickle
import re
import struct
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from every_export import uneven
from image_files import rgb_profile
from PIL import ExifTags, Image
from shared_data import shared_folder
from torch import Tensor, nn
from torch.export import ExportedProgram

import clca
from clca.cli.main import main
from clca.data.datasets import Leaves
from clca.data.images import read_image
from clca.data.transforms import eval_transform, preprocess_dict
from clca.errors import ClcaError, WorkError
from clca.export import check_exported, export_onnx, export_pt2, export_run, load_exported
from clca.export.check import Agreement
from clca.export.onnx_file import to_onnx
from clca.export.program import capture
from clca.models.config import ModelConfig
from clca.reductions import TokenState
from clca.reductions.registry import _REDUCTIONS
from clca.system.files import replacing
from clca.training import DataConfig, TrainConfig, train

pytestmark = pytest.mark.slow

STYLES = {
    "deit": ("deit_tiny_patch16_224", {}),
    "deit3": ("deit3_small_patch16_224", {}),  # LayerScale, position table without CLS
    "clip": ("vit_base_patch16_clip_224", {}),  # norm before the blocks
    "registers": ("vit_small_patch14_reg4_dinov2", {}),
}
SIZE, CLASSES = 32, 7


def small(reduction: str, style: str = "deit", on: bool = True, seed: int = 0) -> clca.TokenReducedViT:
    """A model of three narrow blocks with random weights that make attention uneven."""
    backbone, extra = STYLES[style]
    shape = {"img_size": SIZE, "patch_size": 4, "embed_dim": 24, "num_heads": 3, "depth": 3, **extra}
    rate = {} if reduction == "none" else {"keep_rate": 0.5}
    model = clca.create_model(
        backbone, reduction=reduction, num_classes=CLASSES, locations=[0, 1], cla=on, clc=on, **rate, **shape
    )
    return uneven(model, seed).eval()


def hard_images() -> Tensor:
    """Leaves and photographs, noise, one colour, black: each is its own image of the batch."""
    transform = eval_transform(SIZE)
    leaves = Leaves(cultivars=2, images=3, size=64, split="all", transform=transform)
    found = [leaves[i][0] for i in range(3)] + [torch.randn(3, SIZE, SIZE)]
    for colour in ((120, 130, 90), (0, 0, 0)):
        found.append(transform(Image.new("RGB", (64, 64), colour)))
    folder = shared_folder()
    photos = sorted((folder / "data").glob("*/test/*/*.jpg"))[::40][:3] if folder is not None else []
    return torch.stack([*found, *(transform(read_image(photo)) for photo in photos)])


class Traced(nn.Module):
    """A model that also says which token holds each patch at the end."""

    def __init__(self, model: clca.TokenReducedViT) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        logits, trace = self.model.forward_trace(images)
        return logits, trace.owner[-1]


# One of each way to reduce: fused, sampled (with padding), merged, clustered. The logits of all are compared in
# tests/hostile/test_allowlists.py.
CASES = [
    ("evit", "deit", True),
    ("ats", "registers", False),
    ("tome", "deit3", True),
    ("dpcknn", "clip", True),
]


@pytest.mark.parametrize(("reduction", "style", "on"), CASES)
def test_the_same_tokens_are_kept(reduction: str, style: str, on: bool) -> None:
    model = small(reduction, style, on)
    program = capture(Traced(model), reduction, (SIZE, SIZE))
    session = onnxruntime.InferenceSession(to_onnx(program, reduction, ("logits", "owner")).SerializeToString())
    images = hard_images()
    for batch in (images[:1], images, torch.cat([images, images]).flip(0)):  # 1, and more than the example had
        with torch.inference_mode():
            logits, trace = model.forward_trace(batch)
        scale = logits.abs().max().item()
        captured, onnx_found = program.module()(batch), session.run(None, {"images": batch.numpy()})
        for found, owner in (captured, map(torch.from_numpy, onnx_found)):
            # Both compute in float32 and add in another order: some units in the last place of the largest logit.
            torch.testing.assert_close(found, logits, rtol=0, atol=2e-5 * scale)
            assert torch.equal(owner, trace.owner[-1])


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise whose darkest channel tells the class."""
    root, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for split in ("train", "val", "test"):
        for label, name in enumerate(("alder", "birch")):
            (root / split / name).mkdir(parents=True)
            for number in range(6):
                pixels = rng.integers(0, 255, (44, 36, 3), dtype=np.uint8)
                pixels[..., label] //= 4
                Image.fromarray(pixels).save(root / split / name / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def run(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    kwargs = {"patch_size": 8, "embed_dim": 32, "num_heads": 2, "depth": 4}
    settings: dict[str, Any] = {"img_size": 32, "reduction": "evit", "keep_rate": 0.5, "backbone_kwargs": kwargs}
    model = ModelConfig(backbone="vit_tiny_patch16_224", **settings)
    recipe: dict[str, Any] = {"epochs": 8, "batch_size": 6, "lr": 3e-3, "workers": 0, "precision": "no"}
    out = tmp_path_factory.mktemp("runs") / "run"
    data = DataConfig(root=str(photos))
    train(TrainConfig(model=model, data=data, out=out, pretrained=False, device="cpu", **recipe), quiet=True)
    return out


@pytest.fixture(scope="module")
def exported(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_run(run, out=tmp_path_factory.mktemp("exported") / "leaf.onnx").path


def _as_png(pixels: np.ndarray, **more: Any) -> bytes:
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG", **more)
    return content.getvalue()


def _deep_colour(pixels: np.ndarray) -> bytes:
    """A PNG of 16 bits a channel [H, W, C], two channels being grey with alpha, which Pillow does not write."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    height, width, channels = pixels.shape
    head = struct.pack(">IIBBBBB", width, height, 16, {2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    parts = chunk(b"IHDR", head), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def _all_kinds() -> dict[str, bytes]:
    """A dark leaf on bright ground as each kind of image that has to be brought to 8-bit RGB; none of them square."""
    rng = np.random.default_rng(0)
    rgba = rng.integers(0, 120, (44, 60, 4), dtype=np.uint8)
    rgba[10:30, 20:50, 3] = rng.integers(200, 255, (20, 30))
    deep = rgba.astype(np.uint16) * 257
    turned = Image.Exif()
    turned[ExifTags.Base.Orientation] = 6
    palette = Image.fromarray(rgba[..., :3]).quantize(16)
    content = io.BytesIO()
    palette.save(content, "PNG", transparency=3)
    return {
        "RGB": _as_png(rgba[..., :3]),
        "turned": _as_png(rgba[..., :3], exif=turned),
        "RGBA": _as_png(rgba),
        "LA": _as_png(rgba[..., [0, 3]]),
        "palette": content.getvalue(),
        "Display P3": _as_png(rgba[..., :3], icc_profile=rgb_profile("Display P3")),
        "16-bit grey": _as_png(deep[..., 0] + 77),
        "16-bit LA": _deep_colour(deep[..., [0, 3]] + 77),
        "16-bit RGB": _deep_colour(deep[..., :3] + 77),
        "16-bit RGBA": _deep_colour(deep + 77),
    }


@pytest.mark.parametrize("changed", [{}, {"square": False, "interpolation": "bilinear"}])
def test_the_manuals_own_lines_give_the_scores_of_predict(
    changed: dict[str, Any], run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = Path(__file__).parents[2] / "docs" / "how-to" / "export.md"
    found = re.search(r"```python\n(import json\n\nimport numpy .*?)```", page.read_text(), re.DOTALL)
    assert found is not None
    monkeypatch.chdir(tmp_path)
    for folder in ("runs/vines", "new"):
        Path(folder).mkdir(parents=True)
    model = clca.from_pretrained(run)
    assert model.preprocess is not None
    model.preprocess |= changed
    export_onnx(model, "runs/vines/model.onnx")
    for kind, content in _all_kinds().items():
        Path("new/leaf.jpg").write_bytes(content)
        names: dict[str, Any] = {}
        exec(found[1], names)
        (answer,) = clca.predict(model, "new/leaf.jpg", device="cpu", precision="no")
        assert answer.error is None
        scores = dict(zip(names["metadata"]["classes"], names["probabilities"], strict=True))
        expected = dict(zip(answer.classes, answer.probabilities, strict=True))
        assert scores == pytest.approx(expected, abs=1e-5), kind


def test_the_file_says_what_it_is_and_nothing_of_this_machine(run: Path, exported: Path) -> None:
    model, file = clca.from_pretrained(run), load_exported(exported, threads=1)
    assert file.kind == "onnx"
    assert file.classes == ["alder", "birch"]
    assert model.preprocess is not None
    assert file.preprocess is not None
    assert model.preprocess.items() <= file.preprocess.items()
    assert any("37 × 37" in step and "bicubic" in step for step in file.preprocess["steps"])
    assert "round(value / 257)" in file.preprocess["steps"][0]
    assert file.metadata["config"]["reduction"] == "evit"
    assert file.metadata["gmacs"] == pytest.approx(clca.cost(model).gmacs, abs=1e-6)
    assert (file.metadata["opset"], file.metadata["keep_rate"]) == (18, 0.5)
    proto = onnx.load(exported)
    (images,), (logits,) = proto.graph.input, proto.graph.output
    assert (images.name, logits.name) == ("images", "logits")
    assert [dim.dim_param or dim.dim_value for dim in images.type.tensor_type.shape.dim] == ["batch", 3, 32, 32]
    assert [dim.dim_param or dim.dim_value for dim in logits.type.tensor_type.shape.dim] == ["batch", 2]
    assert str(Path(clca.__file__).parent).encode() not in exported.read_bytes()


def test_pt2_is_the_same_model(run: Path, tmp_path: Path) -> None:
    model = clca.from_pretrained(run).train().double()
    path = export_pt2(model, tmp_path / "leaf.pt2")
    assert model.training  # it is left as it was
    assert next(model.parameters()).dtype == torch.float64
    file, images = load_exported(path, threads=1), torch.randn(3, 3, 32, 32)
    assert (file.kind, file.classes) == ("pt2", ["alder", "birch"])
    with torch.no_grad():
        torch.testing.assert_close(file(images), clca.from_pretrained(run)(images), rtol=0, atol=1e-5)
    assert np.array_equal(file(images[:1].numpy()), file(images[:1]).numpy())
    assert str(Path(clca.__file__).parent).encode() not in b"".join(_contents(path))
    with pytest.raises(ClcaError, match="expects images"):
        file(torch.randn(1, 3, 48, 48))


class Bessel(clca.Reduction):
    """A reduction of another package, with an operator that none of this library's has."""

    place = "inside"
    needs = frozenset({"cls_attention"})

    def keeps_all(self, num_tokens: int, state: TokenState) -> bool:
        return False

    def reduce(self, x: Tensor, evidence: Any, state: TokenState) -> Tensor:
        return torch.special.bessel_j0(x)


def test_the_report_says_which_files_load_only_as_trusted(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = clca.from_pretrained(run)
    monkeypatch.setitem(_REDUCTIONS, "bessel", Bessel)
    foreign = clca.create_model(
        "deit_tiny_patch16_224", reduction="bessel", keep_rate=0.5, locations=[0], num_classes=2, img_size=32,
        patch_size=8, embed_dim=24, num_heads=3, depth=2,
    )  # fmt: skip
    foreign.classes, foreign.preprocess = model.classes, model.preprocess
    foreign.save_pretrained(tmp_path / "foreign")
    report = export_run(tmp_path / "foreign", "pt2", tmp_path / "a.pt2")
    assert "special_bessel_j0" in report.refusal
    (line,) = [line for line in report.lines() if "trusted=True" in line]
    assert "\n" not in line
    assert str(tmp_path) not in line
    with pytest.raises(ClcaError, match=r"special_bessel_j0.*trusted=True"):
        load_exported(report.path)
    assert load_exported(report.path, trusted=True).classes == ["alder", "birch"]
    own = export_run(run, "pt2", tmp_path / "b.pt2")
    assert own.refusal == ""
    assert not any("trusted" in line for line in own.lines())


def _contents(path: Path) -> list[bytes]:
    with zipfile.ZipFile(path) as archive:
        return [archive.read(name) for name in archive.namelist()]


def test_command_checks_on_the_test_images_and_leaves_one_file(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new.pt2"
    out.write_text("what was there before")
    assert main(["export", str(run), "--to", "pt2", "--out", str(out)]) == 0
    output = capsys.readouterr().out
    assert "12 images (test images of the run), in batches of 1, 3, 8" in output
    assert "same class 100.0%" in output
    assert f"written to {out}" in output
    assert load_exported(out).classes == ["alder", "birch"]
    assert [file.name for file in tmp_path.iterdir()] == ["new.pt2"]


def test_int8_is_checked_beside_the_float_file(
    run: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "small.onnx"
    assert main(["export", str(run), "--int8", "--out", str(out), "--images", str(photos / "val")]) == 0
    output = capsys.readouterr().out
    assert "12 images (given images)" in output
    for name in ("float32", "int8"):
        line = next(line for line in output.splitlines() if line.strip().startswith(name))
        assert "images/s" in line
        assert "top-1" in line  # the folders are called as the classes
    proto = onnx.load(out)
    weights = {tensor.name: tensor.data_type for tensor in proto.graph.initializer}
    multiplied = [node for node in proto.graph.node if node.op_type == "MatMulInteger"]
    assert len(multiplied) >= 4 * 4  # the linear layers of four blocks, the last of which the cache head reads too
    assert all(weights[node.input[1]] == onnx.TensorProto.INT8 for node in multiplied)
    assert load_exported(out).metadata["quantization"].startswith("dynamic")
    assert [file.name for file in tmp_path.iterdir()] == ["small.onnx"]


def test_check_sees_another_model(tmp_path: Path) -> None:
    model, other = small("none"), small("none", seed=1)
    file = load_exported(export_pt2(model, tmp_path / "model.pt2"))
    images = [(image, None) for image in hard_images()]
    (same,), (different,) = check_exported(model, [file], images), check_exported(other, [file], images)
    assert same.holds
    assert not different.holds
    with pytest.raises(WorkError, match="does not agree with PyTorch on"):
        different.require("the file")


@pytest.mark.parametrize(
    ("images", "outside", "largest", "holds"),
    [(9, 0, 0.1, True), (9, 1, 0.1, False), (10, 1, 0.1, True), (10, 2, 0.1, False), (40, 2, 0.1, True),
     (40, 3, 0.1, False), (40, 1, math.inf, False)],
)  # fmt: skip
def test_one_image_in_twenty_may_be_off(images: int, outside: int, largest: float, holds: bool) -> None:
    found = Agreement(images, (1,), largest, 9.0, outside, top1=1.0, accuracy=math.nan, reference_accuracy=math.nan)
    assert found.holds == holds


def test_a_file_that_disagrees_is_not_kept(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import clca.export.run as module

    def wrong(model: clca.TokenReducedViT, name: str) -> ExportedProgram:
        with torch.no_grad():
            other = clca.from_pretrained(run)
            other.get_classifier().bias.add_(1.0)  # type: ignore[union-attr,operator,arg-type]
        return capture(other, name)

    monkeypatch.setattr(module, "capture", wrong)
    before = tmp_path / "model.pt2"
    before.write_text("whole")
    with pytest.raises(WorkError, match="was not kept"):
        export_run(run, "pt2", before)
    assert [file.read_text() for file in tmp_path.iterdir()] == ["whole"]


def _halving(compute: Any) -> type[clca.Reduction]:
    class Halving(clca.Reduction):
        place = "before"

        def reduce(self, x: Tensor, evidence: Any, state: TokenState) -> Tensor:
            return compute(x)[:, : x.shape[1] // 2]

    return Halving


@pytest.mark.parametrize(
    ("compute", "reason"),
    [
        (lambda x: torch.special.bessel_j0(x), "prims.bessel_j0.default"),
        (lambda x: x + torch.zeros(len(x), 1, 1), "fixes the batch size"),
        (lambda x: x if x.sum() > 0 else -x, "shapes or branches depend on computed values"),
    ],
)
def test_what_cannot_be_exported_is_refused_by_name(
    compute: Any, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(_REDUCTIONS, "halving", _halving(compute))
    model = small("halving")
    with pytest.raises(WorkError, match=r"deit_tiny_patch16_224 with reduction 'halving' cannot be exported") as output:
        export_onnx(model, tmp_path / "model.onnx")
    assert reason in str(output.value)
    assert "\n" not in str(output.value)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def nameless(tmp_path: Path) -> Path:
    small("none").save_pretrained(str(tmp_path / "nameless"))
    return tmp_path / "nameless"


def test_requests_that_cannot_be_met(
    run: Path, nameless: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    empty, torn = tmp_path / "empty", tmp_path / "torn.png"
    empty.mkdir()
    torn.write_bytes(b"\x89PNG\r\n\x1a\n")
    for argv, reason in [
        (["no/such/run"], "no run or saved model"),
        ([str(run), "--to", "tflite"], "tflite"),
        ([str(run), "--to", "pt2", "--int8"], "int8 requires ONNX"),
        ([str(run), "--to", "pt2", "--out", str(empty)], "is a folder"),
        ([str(run), "--to", "pt2", "--out", str(tmp_path / "no" / "file.pt2")], "nothing can be written there"),
        ([str(run), "--images", str(empty)], "no images in this folder"),
        ([str(run), "--images", str(torn)], "torn.png"),
        ([str(run), "--keep-rate", "1.5"], "--keep-rate 1.5"),
        ([str(nameless)], "no classes or preprocessing"),
    ]:
        assert main(["export", *argv]) == 2, argv
        error = capsys.readouterr().err
        assert len(error.splitlines()) == 1, error
        assert reason in error, (argv, error)
    assert {file.name for file in tmp_path.iterdir()} == {"empty", "torn.png", "nameless"}


def test_a_missing_package_is_named_with_the_command_that_installs_it(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ClcaError, match=r"pip install 'clca\[onnx\]'"):
        export_run(run)


class _Boom:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("code of a stranger",))


def test_files_of_others_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, foreign, evil = tmp_path / "a.onnx", tmp_path / "b.onnx", tmp_path / "c.pt2"
    text.write_text("not a model")
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["x"], ["y"])], "g", [value], [
        onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    ])  # fmt: skip
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10), foreign)
    stolen = io.BytesIO()
    pickle.dump(_Boom(), stolen)
    with zipfile.ZipFile(evil, "w") as archive:
        archive.writestr("c/data/sample_inputs/model.pt", stolen.getvalue())
    for path, reason in [
        (tmp_path / "none.onnx", "no such file"),
        (text, "ONNX Runtime cannot read it"),
        (foreign, "clca did not export"),
        (evil, "may contain code"),
    ]:
        with pytest.raises(ClcaError, match=reason):
            load_exported(path)
    assert "stranger" not in capsys.readouterr().out


def _code_for_guards(program: dict[str, Any], code: str) -> None:
    program["guards_code"] = [f"{code} is None"]


def _code_for_sizes(program: dict[str, Any], code: str) -> None:
    for value in program["graph_module"]["graph"]["sym_int_values"].values():
        value["as_expr"]["expr_str"] = f"[{value['as_expr']['expr_str']}, {code}][0]"


def _function_for_an_operator(program: dict[str, Any], code: str) -> None:
    program["graph_module"]["graph"]["nodes"][0]["target"] = "torch.os.system"


def _code_for_an_input(program: dict[str, Any], code: str) -> None:
    renamed = json.dumps(program).replace('"images"', json.dumps(f"images, a={code}"))
    program.update(json.loads(renamed))


def _pickled_weight(payloads: dict[str, Any], code: str) -> None:
    next(iter(payloads["config"].values()))["use_pickle"] = True


def _pickled_object(payloads: dict[str, Any], code: str) -> None:
    payloads["config"]["x"] = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": False, "tensor_meta": None}


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("models/model.json", _code_for_guards),
        ("models/model.json", _code_for_sizes),
        ("models/model.json", _function_for_an_operator),
        ("models/model.json", _code_for_an_input),
        ("data/weights/model_weights_config.json", _pickled_weight),
        ("data/constants/model_constants_config.json", _pickled_object),
        ("data/aotinductor/model/model.so", None),
    ],
)
def test_a_program_with_code_in_it_is_refused(tmp_path: Path, part: str, change: Any) -> None:
    sound, evil, mark = tmp_path / "a.pt2", tmp_path / "b.pt2", tmp_path / "mark"
    export_pt2(small("topk"), sound)
    with zipfile.ZipFile(sound) as given, zipfile.ZipFile(evil, "w") as archive:
        for name in given.namelist():
            content = given.read(name)
            if name.endswith(part):
                found = json.loads(content)
                change(found, f"open({str(mark)!r}, 'w')")
                content = json.dumps(found, separators=(",", ":")).encode()
            archive.writestr(name, content)
        if change is None:
            archive.writestr(given.namelist()[0].partition("/")[0] + "/" + part, b"")
    with pytest.raises(ClcaError, match=f"b.pt2: {part} in it .* may contain code"):
        load_exported(evil)
    assert not mark.exists()
    load_exported(sound)


def test_an_interrupted_file_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_text("whole")

    def interrupted() -> None:
        with replacing(path, in_own_folder=True) as temporary:
            temporary.write_text("ha")
            temporary.with_name("beside").write_text("more")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [file.read_text() for file in tmp_path.iterdir()] == ["whole"]


def test_a_disk_without_room_ends_in_one_line(run: Path, tmp_path: Path) -> None:
    # A largest size of files stands for the full disk; in a process of its own, which torch's writer would end.
    code = (
        "import resource, sys; from clca.cli.main import main\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, 2**16))\n"
        "for file in sys.argv[2:]: print(main(['export', sys.argv[1], '--to', file[-4:].strip('.'), '--out', file]))"
    )
    files = [tmp_path / "new.pt2", tmp_path / "new.onnx"]
    ended = subprocess.run([sys.executable, "-c", code, run, *files], capture_output=True, text=True)
    assert ended.stdout.split() == ["1", "1"], ended.stderr
    output = [line for line in ended.stderr.splitlines() if not line.endswith("…")]
    whole = "could not be written (file too large); the previous one, if any, is whole"
    assert output == [f"clca: {file} {whole}" for file in files]
    assert not list(tmp_path.iterdir())


def test_without_images_it_is_checked_on_synthetic_ones(nameless: Path, tmp_path: Path) -> None:
    model = clca.from_pretrained(nameless)
    model.classes, model.preprocess = [str(k) for k in range(CLASSES)], preprocess_dict(SIZE)
    model.save_pretrained(str(nameless))
    report = export_run(nameless, "pt2", tmp_path / "model.pt2")
    assert report.checked_on == "synthetic leaves and noise"
    assert report.files["float32"].agreement.images == 16
    assert report.files["float32"].agreement.holds


@pytest.mark.parametrize("kind", ["onnx", "pt2"])
@pytest.mark.parametrize("rate", [0.2, 0.5, 1.0])
def test_a_model_for_several_rates_is_exported_at_each(kind: str, rate: float, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = clca.create_model(
        "deit_tiny_patch16_224", img_size=SIZE, patch_size=4, embed_dim=24, num_heads=3, depth=3, locations=[0, 1],
        reduction="evit", keep_rates=(0.2, 1.0), num_classes=CLASSES,
    )  # fmt: skip
    for name, rows in model.rate_statistics.named_buffers():  # type: ignore[union-attr]
        rows.normal_() if name.endswith("mean") else rows.uniform_(0.5, 2)
    model.classes, model.preprocess = [f"c{k}" for k in range(CLASSES)], preprocess_dict(SIZE)
    model.save_pretrained(tmp_path / "run")
    report = export_run(tmp_path / "run", kind, keep_rate=rate)
    images = torch.randn(3, 3, SIZE, SIZE)
    model.eval().keep_rate = rate
    with torch.no_grad():
        torch.testing.assert_close(load_exported(report.path)(images), model(images), atol=2e-4, rtol=1e-3)
