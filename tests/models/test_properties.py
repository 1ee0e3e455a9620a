"""What must hold for every reduction, backbone style and cache or head setting, whatever the weights."""

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from small_models import BACKBONES, CLASSES, PATCH, make_pair
from torch import Tensor
from torch.nn import functional as F

import clca
from clca.errors import ClcaError

REDUCTIONS = clca.list_reductions()
FIXED = ("patchmerger", "sit")  # parameters that depend on the keep rate
SETTINGS: dict[str, dict[str, Any]] = {
    "clca": {},
    "cla": {"clc": False},
    "clc, two carriers": {"cla": False, "num_clr": 2},
    "bare": {"cla": False, "clc": False},
}
every_reduction = pytest.mark.parametrize("reduction", REDUCTIONS)
every_setting = pytest.mark.parametrize("setting", SETTINGS)


def small(reduction: str, style: str = "deit", **more: Any) -> tuple[clca.TokenReducedViT, Tensor]:
    """A model with random weights in evaluation mode, and images for it."""
    rate = 1.0 if reduction == "none" else more.pop("keep_rate", 0.6)
    pair = make_pair(style, reduction=reduction, keep_rate=rate, **more)
    return pair.model, pair.images.to(pair.model.cls_token.dtype)


@pytest.mark.usefixtures("either_kernels")
@every_reduction
@every_setting
@pytest.mark.parametrize("style", ["deit", "registers", "average"])
def test_an_image_alone_gives_what_it_gives_in_a_batch(reduction: str, setting: str, style: str) -> None:
    model, images = small(reduction, style, images=4, grid=5, **SETTINGS[setting])
    images[1] *= 5  # very different ones: ATS samples another number of tokens from each
    images[2] *= 0.02
    images[3, :, :, :8] = 0
    with torch.no_grad():
        together, trace = model.forward_trace(images)
        for b, image in enumerate(images):
            logits, alone = model.forward_trace(image[None])
            torch.testing.assert_close(together[b], logits[0], rtol=1e-9, atol=1e-9)
            for batched, single in zip(trace.owner, alone.owner, strict=True):
                assert torch.equal(batched[b], single[0])
            counts = [int(torch.as_tensor(count).expand(4)[b]) for count in trace.tokens]
            assert counts == [int(torch.as_tensor(count).max()) for count in alone.tokens]


@pytest.mark.usefixtures("either_kernels")
@every_reduction
def test_padding_does_not_carry_gradient_between_images(reduction: str) -> None:
    model, images = small(reduction, images=3)
    images.requires_grad_()
    model(images)[1].sum().backward()
    assert images.grad is not None
    assert images.grad[1].abs().max() > 0
    assert images.grad[[0, 2]].abs().max() == 0


def permuted(images: Tensor, order: Tensor, grid: int) -> Tensor:
    """The images with their patches rearranged: patch i of the result is patch order[i]."""
    batch = len(images)
    patches = images.reshape(batch, 3, grid, PATCH, grid, PATCH).permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
    patches = patches[:, order].unflatten(1, (grid, grid)).permute(0, 3, 1, 4, 2, 5)
    return patches.reshape(images.shape)


@pytest.mark.parametrize("reduction", ["none", "topk", "evit", "dynamicvit", "patchmerger", "sit", "dpcknn"])
@every_setting
def test_permuting_patches_permutes_owners(reduction: str, setting: str) -> None:
    """Without positions a permutation changes only names. (ATS sums in order; ToMe pairs by place: see below.)"""
    model, images = small(reduction, locations=(1, 3), **SETTINGS[setting])
    with torch.no_grad():
        model.pos_embed.zero_()
    order = torch.randperm(16, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        logits, trace = model.forward_trace(images)
        again, trace_again = model.forward_trace(permuted(images, order, 4))
    torch.testing.assert_close(again, logits, rtol=1e-9, atol=1e-9)
    if reduction != "none":
        for owner, owner_again in zip(trace.owner[1:], trace_again.owner[1:], strict=True):
            assert torch.equal(owner_again, owner[:, order])


def test_permuting_patches_for_tome() -> None:
    """ToMe merges even places into odd ones: a permutation that keeps parity keeps the groups, and so the logits."""
    model, images = small("tome", locations=(2,), cla=False, clc=False, keep_rate=0.7)
    with torch.no_grad():
        model.pos_embed.zero_()
    even, odd = torch.randperm(8) * 2, torch.randperm(8) * 2 + 1
    order = torch.stack([even, odd], dim=1).flatten()
    with torch.no_grad():
        logits, trace = model.forward_trace(images)
        again, trace_again = model.forward_trace(permuted(images, order, 4))
    torch.testing.assert_close(again, logits, rtol=1e-9, atol=1e-9)
    for owner, owner_again in zip(trace.owner[-1][:, order], trace_again.owner[-1], strict=True):
        assert torch.equal(owner[:, None] == owner, owner_again[:, None] == owner_again)


# What has no gradient in exact arithmetic: a constant before BatchNorm, or before a softmax over tokens.
CONSTANT = {"cla_head.depthwise.bias", "cla_head.norm_in.bias"}
SHIFTED = {"sit": ".weight.3.bias", "dpcknn": ".score.bias"}


@pytest.mark.usefixtures("either_kernels")
@every_reduction
@every_setting
@pytest.mark.parametrize("style", ["distilled", "registers"])
def test_gradient_flows_to_every_parameter(reduction: str, setting: str, style: str) -> None:
    model, images = small(reduction, style, images=4, **SETTINGS[setting])
    model.train()
    loss = F.cross_entropy(model(images), torch.tensor([0, 1, 2, 3])) + model.auxiliary_loss
    loss.backward()
    named = dict(model.named_parameters())
    assert [name for name, p in named.items() if p.grad is None] == []
    assert [name for name, p in named.items() if not torch.isfinite(p.grad).all()] == []
    still = {name for name, p in named.items() if p.grad.abs().max() < 1e-9}
    expected = {name for name in CONSTANT if name in named}
    assert {name for name in still - expected if not name.endswith(SHIFTED.get(reduction, "?"))} == set()


@every_reduction
@every_setting
def test_an_image_of_one_colour(reduction: str, setting: str) -> None:
    """Without positions all patches are the same token: every score a tie, every distance zero."""
    model, images = small(reduction, grid=6, dtype=torch.float32, **SETTINGS[setting])
    images = torch.ones_like(images)
    with torch.no_grad():
        model.pos_embed.zero_()
        logits, trace = model.forward_trace(images)
    assert torch.isfinite(logits).all()
    assert all((owner >= -1).all() for owner in trace.owner)
    model.train()(images).sum().backward()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in model.parameters())


rates = st.floats(0.01, 1.0)


@st.composite
def cases(draw: st.DrawFn) -> dict[str, Any]:
    """Any settings that are allowed, on images from 2x2 patches."""
    depth = draw(st.integers(2, 6))
    cla = draw(st.booleans())
    blocks = st.integers(0, depth - 2 if cla else depth - 1)
    locations = sorted(draw(st.sets(blocks, min_size=1, max_size=4)))
    one_each = st.lists(rates, min_size=len(locations), max_size=len(locations))
    reduction = draw(st.sampled_from(REDUCTIONS))
    return {
        "style": draw(st.sampled_from(sorted(BACKBONES))),
        "img_size": (PATCH * draw(st.integers(2, 5)), PATCH * draw(st.integers(2, 5))),
        "depth": depth,
        "locations": locations,
        "cla": cla,
        "reduction": reduction,
        "keep_rate": 1.0 if reduction == "none" else draw(st.one_of(rates, one_each)),
        "clc": draw(st.booleans()),
        "num_clr": draw(st.integers(0, 4)),
        "clc_gap": draw(st.booleans()),
        "clc_recover_at_last": draw(st.booleans()),
    }


@pytest.mark.usefixtures("either_kernels")
@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(case=cases())
def test_any_setting_runs_and_stays_finite(case: dict[str, Any]) -> None:
    assume(not case["clc"] or case["num_clr"] or case["clc_gap"])
    name, extra = BACKBONES[case.pop("style")]
    kwargs = {"patch_size": PATCH, "embed_dim": 24, "num_heads": 3} | extra
    model = clca.create_model(name, num_classes=CLASSES, **case, **kwargs)
    images = torch.randn(3, 3, *case["img_size"], generator=torch.Generator().manual_seed(0))
    loss = model(images).square().sum() + model.auxiliary_loss
    loss.backward()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in model.parameters())
    assert torch.isfinite(loss)
    with torch.no_grad():
        logits, trace = model.eval().forward_trace(images)
    assert logits.shape == (3, CLASSES)
    assert torch.isfinite(logits).all()
    patches = case["img_size"][0] * case["img_size"][1] // PATCH**2
    for owner, tokens in zip(trace.owner, trace.tokens, strict=True):
        tokens = torch.as_tensor(tokens).expand(3)
        assert owner.shape == (3, patches)
        assert (tokens > model.num_prefix_tokens).all()
        assert ((owner == -1) | (owner >= model.num_prefix_tokens)).all()
        assert (owner < tokens[:, None]).all()


@pytest.mark.usefixtures("either_kernels")
@every_reduction
@every_setting
def test_precisions(reduction: str, setting: str) -> None:
    """Single precision and bfloat16 autocast run, count the same tokens, and agree where no ranking decides."""
    model, images = small(reduction, images=3, **SETTINGS[setting])
    with torch.no_grad():
        double, wanted = model.forward_trace(images)
        assert double.dtype == torch.float64
        single, trace = model.float().forward_trace(images.float())
        assert single.dtype == torch.float32
        with torch.autocast("cpu", torch.bfloat16):
            half, half_trace = model.forward_trace(images.float())
    assert torch.isfinite(half).all()
    if reduction != "ats":
        assert wanted.tokens == trace.tokens == half_trace.tokens
    torch.testing.assert_close(single.double(), double, rtol=1e-4, atol=1e-4)
    if reduction in ("none", "sit", "patchmerger"):
        assert (half - double).abs().max() < 0.15 * double.abs().max()


@every_reduction
def test_training_under_bfloat16_autocast(reduction: str) -> None:
    model, images = small(reduction, images=4, dtype=torch.float32)
    model.train()
    with torch.autocast("cpu", torch.bfloat16):
        loss = F.cross_entropy(model(images), torch.tensor([0, 1, 2, 3])) + model.auxiliary_loss
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


@every_reduction
@every_setting
def test_a_model_of_half_precision_runs(reduction: str, setting: str) -> None:
    model, images = small(reduction, dtype=torch.bfloat16, **SETTINGS[setting])
    with torch.no_grad():
        logits = model(images)
    assert logits.dtype == torch.bfloat16
    assert torch.isfinite(logits).all()


@pytest.mark.usefixtures("either_kernels")
@pytest.mark.parametrize("reduction", [name for name in REDUCTIONS if name not in (*FIXED, "none")])
@pytest.mark.parametrize("rate", [0.25, 1.0, [0.9, 0.5, 0.3]])
def test_keep_rate_at_run_time(reduction: str, rate: Any) -> None:
    made, images = small(reduction, keep_rate=tuple(rate) if isinstance(rate, list) else rate)
    changed, _ = small(reduction, keep_rate=0.6)
    changed.keep_rate = rate
    with torch.no_grad():
        wanted, trace = made.forward_trace(images)
        got, trace_changed = changed.forward_trace(images)
    assert torch.equal(got, wanted)
    assert [torch.as_tensor(n).tolist() for n in trace.tokens] == [
        torch.as_tensor(n).tolist() for n in trace_changed.tokens
    ]
    assert changed.config.keep_rate == made.config.keep_rate


@pytest.mark.parametrize("reduction", FIXED)
def test_keep_rate_that_parameters_depend_on(reduction: str) -> None:
    model, images = small(reduction)
    before = model(images)
    with pytest.raises(ClcaError, match=reduction):
        model.keep_rate = 0.25
    assert torch.equal(model(images), before)


@pytest.mark.parametrize("rate", [0, 0.0, 1.5, -0.1, "a", float("nan"), [0.5], [0.5, 0.5, 0.5, 0.5], [0.5, 0.5, 2.0]])
def test_wrong_keep_rates(rate: Any) -> None:
    model, images = small("evit")
    before = model(images)
    with pytest.raises(ClcaError, match="keep_rate"):
        model.keep_rate = rate
    assert torch.equal(model(images), before)
    with pytest.raises(ClcaError, match="keep_rate"):
        clca.create_model("deit_tiny_patch16_224", depth=4, locations=[0, 1, 2], reduction="evit", keep_rate=rate)


def test_none_leaves_the_default_to_a_new_model_and_is_no_rate_for_an_existing_one() -> None:
    model, _ = small("evit")
    with pytest.raises(ClcaError, match="keep_rate"):
        model.keep_rate = None
    assert clca.create_model("deit_tiny_patch16_224", depth=4, reduction="evit", keep_rate=None).keep_rate == 1


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"locations": [12]}, "12"),
        ({"locations": [11]}, "11"),
        ({"locations": [-1]}, "locations"),
        ({"locations": [3, 3]}, "locations"),
        ({"locations": [6, 3]}, "locations"),
        ({"num_clr": 0, "clc_gap": False}, "clc"),
        ({"num_clr": -1}, "num_clr"),
        ({"img_size": 100}, "100"),
        ({"cla_width": 0}, "cla_width"),
        ({"num_classes": -2}, "num_classes"),
    ],
)
def test_wrong_settings_are_refused_in_one_line(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ClcaError, match=message) as refusal:
        clca.create_model("deit_tiny_patch16_224", reduction="evit", keep_rate=0.5, **wrong)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("dynamic", [False, True])
def test_images_that_do_not_fit_are_refused_in_one_line(dynamic: bool) -> None:
    model = clca.create_model("deit_tiny_patch16_224", depth=4, img_size=32, dynamic_img_size=dynamic)
    with pytest.raises(ClcaError, match=r"expected images \[B, 3, H, W\], got \[3, 32, 32\]; add a batch dimension"):
        model(torch.zeros(3, 32, 32))
    with pytest.raises(ClcaError, match=r"40 is not a multiple of .*: use 32 or 48|of 32×40 pixels given"):
        model(torch.zeros(2, 3, 32, 40))


@pytest.mark.parametrize("cla", [False, True])
@pytest.mark.parametrize("classes", [-1, 2.5, None])
def test_a_wrong_number_of_classes_leaves_the_model_as_it_was(cla: bool, classes: Any) -> None:
    """-1 made a model that could be saved and not be loaded."""
    model, images = small("evit", keep_rate=0.5, cla=cla)
    before = model(images)
    with pytest.raises(ClcaError, match=r"^num_classes "):
        model.reset_classifier(classes)
    assert torch.equal(model(images), before)


@pytest.mark.parametrize("reduction", ["tome", "dpcknn"])
def test_chunks_of_pairs_change_nothing(reduction: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from clca.reductions import dpcknn, tome

    torch.manual_seed(0)
    model = clca.create_model(
        "deit_tiny_patch16_224", img_size=48, patch_size=4, embed_dim=24, num_heads=3, depth=6,
        num_classes=5, reduction=reduction, keep_rate=0.4,
    ).double().eval()  # fmt: skip
    images = torch.randn(2, 3, 48, 48, dtype=torch.float64)
    images[1] = images[1, :, :1, :1]  # one colour: patches that only their places tell apart
    logits, trace = model.forward_trace(images)
    monkeypatch.setattr(tome, "_ROWS", 7)
    monkeypatch.setattr(dpcknn, "_ROWS", 7)
    monkeypatch.setattr(dpcknn, "_CHUNK", 5)
    again, second = model.forward_trace(images)
    torch.testing.assert_close(again, logits)
    assert all(torch.equal(a, b) for a, b in zip(trace.owner, second.owner, strict=True))
