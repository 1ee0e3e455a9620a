"""Exported confidence: probabilities and unfamiliarity are those of the model, and files cannot lie about them."""

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from every_export import calibrated, uneven

import clca
from clca.errors import ClcaError
from clca.export import export_onnx, export_pt2, load_exported
from clca.models.confidence import Confidences, ModelWithConfidence
from clca.models.token_reduced_vit import TokenReducedViT

pytestmark = pytest.mark.slow

KINDS = {"onnx": export_onnx, "pt2": export_pt2}


def with_confidence(reduction: str = "evit", **chosen: Any) -> TokenReducedViT:
    settings = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "num_heads": 3, "depth": 3, "keep_rate": 0.5}
    if reduction == "none":
        del settings["keep_rate"]
    model = clca.create_model("deit_tiny_patch16_224", reduction=reduction, num_classes=4, **(settings | chosen))
    uneven(model, 0).eval()
    model.confidence = Confidences([calibrated(model)])
    return model


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("reduction", "chosen"),
    [
        ("evit", {}),
        ("none", {"cla_head": "linear", "cla_average": True}),
        ("ats", {"cla": False, "global_pool": "avg"}),
    ],
    ids=str,
)
def test_the_file_gives_what_the_model_gives(tmp_path: Path, kind: str, reduction: str, chosen: Any) -> None:
    model = with_confidence(reduction, **chosen)
    exported = load_exported(KINDS[kind](model, tmp_path / "model"))
    assert model.confidence is not None
    found = model.confidence.at(model.keep_rate)
    assert found is not None
    for count in (1, 5):
        images = torch.randn(count, 3, 32, 32)
        with torch.no_grad():
            logits, unfamiliarity = ModelWithConfidence(model, found)(images)
        probabilities, theirs = exported.with_confidence(images)
        torch.testing.assert_close(theirs, unfamiliarity, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(probabilities, (logits / found.temperature).softmax(1), rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(exported(images), logits, rtol=1e-3, atol=1e-3)
        as_array, also = exported.with_confidence(images.numpy())
        assert (as_array.shape, also.shape) == ((count, 4), (count,))
    described = exported.metadata["confidence"]
    assert described["images"] == 24
    assert described["temperature"] == pytest.approx(found.temperature.item())


def test_at_another_keep_rate_there_is_none(tmp_path: Path) -> None:
    model = with_confidence()
    model.keep_rate = 0.7
    exported = load_exported(export_onnx(model, tmp_path / "model.onnx"))
    assert exported.metadata["confidence"] is None
    with pytest.raises(ClcaError, match="has no confidence"):
        exported.with_confidence(torch.randn(1, 3, 32, 32))


def test_int8_leaves_it_in_float(tmp_path: Path) -> None:
    model = with_confidence()
    export_onnx(model, tmp_path / "model.onnx", int8=True)
    exported = load_exported(tmp_path / "model.onnx")
    held = {tensor.name: tensor.data_type for tensor in onnx.load(tmp_path / "model.onnx").graph.initializer}
    assert any("confidence" in name and kind == onnx.TensorProto.FLOAT for name, kind in held.items())
    assert not any("confidence" in name and kind == onnx.TensorProto.INT8 for name, kind in held.items())
    assert exported.with_confidence(torch.randn(2, 3, 32, 32))[1].shape == (2,)


@pytest.mark.parametrize(
    "confidence", [None, {}, 1, {"output": "logits", "temperature": 1.0}, {"output": "unfamiliarity", "temperature": 0}]
)
@pytest.mark.parametrize("kind", KINDS)
def test_a_file_whose_description_does_not_fit_is_refused(tmp_path: Path, kind: str, confidence: Any) -> None:
    file = KINDS[kind](with_confidence(), tmp_path / "model")
    if kind == "onnx":
        proto = onnx.load(file)
        (entry,) = (entry for entry in proto.metadata_props if entry.key == "confidence")
        entry.value = json.dumps(confidence)
        onnx.save(proto, file)
    else:
        content = io.BytesIO()
        with zipfile.ZipFile(file) as there, zipfile.ZipFile(content, "w") as copy:
            for name in there.namelist():
                data = there.read(name)
                if name.endswith("metadata.json"):
                    data = json.dumps(json.loads(data) | {"confidence": confidence}).encode()
                copy.writestr(name, data)
        file.write_bytes(content.getvalue())
    with pytest.raises(ClcaError):
        load_exported(file)
