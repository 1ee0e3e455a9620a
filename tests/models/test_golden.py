"""The published program's own numbers: every golden vector, for the package and for the plain reference."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from golden_vectors import BACKBONES, build_golden, published_gradient, read_golden
from plain_reference import PlainViT, Settings

import clca
from clca.errors import ClcaError


def relative_error(got: torch.Tensor, wanted: torch.Tensor) -> float:
    """Largest difference, in units of the largest absolute value wanted."""
    return float((got.double() - wanted.double()).abs().max() / wanted.abs().max())


DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


@pytest.mark.usefixtures("either_kernels")
@pytest.mark.parametrize("device", DEVICES)
def test_logits(golden_file: Path, device: str) -> None:
    golden = read_golden(golden_file)
    model = build_golden(golden).to(device)
    with torch.no_grad():
        logits = model(golden.images.to(device))
    assert relative_error(logits.cpu(), golden.logits) < 1e-4


@pytest.mark.usefixtures("either_kernels")
@pytest.mark.parametrize("device", DEVICES)
def test_token_counts_of_each_image_alone(golden_file: Path, device: str) -> None:
    golden = read_golden(golden_file)
    model = build_golden(golden).to(device)
    for image, wanted_tokens, wanted_logits in zip(golden.images, golden.tokens, golden.logits, strict=True):
        with torch.no_grad():
            logits, trace = model.forward_trace(image[None].to(device))
        assert relative_error(logits[0].cpu(), wanted_logits) < 1e-4
        assert [int(torch.as_tensor(count).max()) for count in trace.tokens] == wanted_tokens


@pytest.mark.usefixtures("either_kernels")
@pytest.mark.parametrize("device", DEVICES)
def test_gradients(golden_file: Path, device: str) -> None:
    golden = read_golden(golden_file)
    model = build_golden(golden).train().to(device)
    F.cross_entropy(model(golden.images.to(device)), golden.target.to(device)).backward()
    state = {name: tensor.to(device) for name, tensor in golden.state.items()}
    errors = {
        name: relative_error(published_gradient(model, state, name).cpu(), wanted)
        for name, wanted in golden.gradients.items()
    }
    # 1e-3: float32 rounding through BatchNorm over four images alone reaches 1.6e-4.
    assert {name: error for name, error in errors.items() if not error < 1e-3} == {}


def test_checkpoint_written_like_the_authors(golden_file: Path, tmp_path: Path) -> None:
    golden = read_golden(golden_file)
    torch.save({"model": golden.state, "args": {"keep_rate": [golden.case["keep_rate"]]}}, tmp_path / "published.pth")
    case = golden.case
    model = clca.create_model(
        BACKBONES[case["style"]],
        weights=str(tmp_path / "published.pth"),
        **{name: case[name] for name in ("num_classes", "img_size", "reduction", "keep_rate", "cla", "clc", "num_clr")},
        **{name: case[name] for name in ("clc_gap", "clc_recover_at_last", "embed_dim", "num_heads", "depth")},
        locations=case["reduction_loc"],
    ).eval()
    with torch.no_grad():
        assert relative_error(model(golden.images), golden.logits) < 1e-4


def test_plain_reference_agrees(golden_file: Path) -> None:
    """The reference that the other tests compare with is itself held to the vectors, gradients included."""
    golden = read_golden(golden_file)
    case = golden.case
    state = {
        name: tensor.double().requires_grad_("running" not in name) if tensor.is_floating_point() else tensor
        for name, tensor in golden.state.items()
    }
    reference = PlainViT(
        state,
        Settings(
            case["num_heads"],
            locations=tuple(case["reduction_loc"]),
            norm_eps=1e-5 if case["style"] == "clip" else 1e-6,
            **{name: case[name] for name in ("reduction", "keep_rate", "cla", "clc", "num_clr", "clc_gap")},
            clc_recover_at_last=case["clc_recover_at_last"],
        ),
    )
    with torch.no_grad():
        outcomes = reference(golden.images.double())
    assert relative_error(torch.stack([outcome.logits for outcome in outcomes]), golden.logits) < 1e-4
    assert [outcome.tokens for outcome in outcomes] == golden.tokens
    if golden.gradients:
        outcomes = reference(golden.images.double(), training=True)
        F.cross_entropy(torch.stack([outcome.logits for outcome in outcomes]), golden.target).backward()
        errors = {name: relative_error(state[name].grad, wanted) for name, wanted in golden.gradients.items()}
        assert {name: error for name, error in errors.items() if not error < 1e-3} == {}


@pytest.mark.usefixtures("shared")
def test_strict_loading_names_what_does_not_fit(shared: Path) -> None:
    golden = read_golden(shared / "golden" / "evit-deit-clca-k50.safetensors")
    model = build_golden(golden)
    short = {name: tensor for name, tensor in golden.state.items() if name != "blocks.5.mlp.fc1.weight"}
    with pytest.raises(ClcaError, match=r"blocks\.5\.mlp\.fc1\.weight"):
        clca.load_published(model, short)
    with pytest.raises(ClcaError, match=r"blocks\.12\.mlp\.fc1\.weight"):
        clca.load_published(model, golden.state | {"blocks.12.mlp.fc1.weight": torch.zeros(96, 24)})
    with pytest.raises(ClcaError, match="cls_token"):
        clca.load_published(model, golden.state | {"cls_token": torch.zeros(1, 1, 32)})
