"""torch.compile: no graph break, no second compilation for another batch size, the numbers of the eager model."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

import clca

pytestmark = pytest.mark.slow

SIZES: dict[str, Any] = {
    "img_size": 32,
    "patch_size": 4,
    "embed_dim": 24,
    "num_heads": 3,
    "depth": 3,
    "locations": (0, 1),
}


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def _model(reduction: str, **more: Any) -> clca.TokenReducedViT:
    torch.manual_seed(0)
    rate = 1.0 if reduction == "none" else 0.5
    model = clca.create_model(
        "deit3_small_patch16_224", **{**SIZES, **more}, num_classes=5, reduction=reduction, keep_rate=rate
    )
    for name, parameter in model.named_parameters():
        if name.endswith("gamma"):  # LayerScale starts so small that no image would differ from another
            torch.nn.init.ones_(parameter)
    return model


@pytest.mark.parametrize("reduction", clca.list_reductions())
def test_inference_is_one_graph_for_every_batch(reduction: str) -> None:
    model = _model(reduction).eval()
    graphs = CompileCounterWithBackend("eager")
    for size, batch in enumerate((4, 1, 7)):
        images = torch.randn(batch, 3, 32, 32)
        with torch.no_grad():
            eager = model.forward(images)
            if not size:
                model.compile(backend=graphs)
            torch.testing.assert_close(model(images), eager)
    # Before PyTorch 2.13 fused attention with a mask takes one image for a case of its own (docs/performance.md).
    apart = reduction in ("ats", "tome") and torch.__version__ < (2, 13)
    assert graphs.frame_count == 1 + apart


@pytest.mark.parametrize("reduction", clca.list_reductions())
def test_training_is_one_graph_with_the_gradients_of_the_eager_model(reduction: str) -> None:
    model = _model(reduction, depth=2, locations=(0,)).train()
    graphs = CompileCounterWithBackend("aot_eager")
    grads = []
    for compiled in (False, True):
        if compiled:
            model.compile(backend=graphs)
        for batch in (4, 3):
            model.zero_grad()
            torch.manual_seed(1)  # the images, and the noise of DynamicViT
            loss = model(torch.randn(batch, 3, 32, 32)).square().mean() + model.auxiliary_loss
            loss.backward()
        grads.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    assert graphs.frame_count == 1
    assert grads[0].keys() == grads[1].keys()
    for name, grad in grads[0].items():
        # Float32 rounding through BatchNorm over three images.
        torch.testing.assert_close(grads[1][name], grad, atol=1e-4, rtol=1e-3, msg=name)


def test_inductor_gives_the_logits_of_the_eager_model() -> None:
    model, images = _model("evit", depth=2, locations=(0,)).eval(), torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        eager = model(images)
        model.compile()
        torch.testing.assert_close(model(images), eager, atol=1e-4, rtol=1e-3)


def test_a_compiled_model_is_saved_and_copied_like_any_other(tmp_path: Any) -> None:
    import copy

    model, images = _model("topk").eval(), torch.randn(2, 3, 32, 32)
    model.compile(backend="eager")
    with torch.no_grad():
        logits = model(images)
        torch.testing.assert_close(copy.deepcopy(model)(images), logits)
        model.save_pretrained(str(tmp_path))
        torch.testing.assert_close(clca.from_pretrained(str(tmp_path)).eval()(images), logits)


def test_a_new_keep_rate_holds_for_a_compiled_model() -> None:
    model, images = _model("topk").eval(), torch.randn(2, 3, 32, 32)
    model.compile(backend="eager")
    with torch.no_grad():
        before = model(images)
        model.keep_rate = 0.2
        torch.testing.assert_close(model(images), model.forward(images))
        assert not torch.allclose(model(images), before)


def test_a_compiled_model_takes_more_keep_rates_than_the_usual_limit_of_compilations() -> None:
    model, images = _model("topk", depth=2, locations=(0,)).eval(), torch.randn(2, 3, 32, 32)
    model.compile(backend="eager")
    with torch.no_grad():
        for rate in range(1, 10):
            model.keep_rate = rate / 9
            torch.testing.assert_close(model(images), model.forward(images))


def test_images_that_do_not_fit_are_told_as_by_the_eager_model() -> None:
    model = _model("evit").eval()
    model.compile(backend="eager")
    with pytest.raises(clca.ClcaError, match="images of 40×40 pixels given to a model for 32×32"):
        model(torch.zeros(2, 3, 40, 40))


def test_what_the_compiler_cannot_do_is_a_line_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    model = _model("evit").eval()
    monkeypatch.setattr(type(model.blocks[1].mlp), "forward", lambda self, x: (torch._dynamo.graph_break(), x)[1])
    model.compile(backend="eager")
    with pytest.raises(clca.WorkError, match=r"torch\.compile failed .*: go on without --compile"):
        model(torch.zeros(2, 3, 32, 32))


@pytest.mark.parametrize(
    ("reduction", "parts"),
    [
        ("topk", ["blocks.1"]),
        ("tome", ["blocks.1.attn"]),
        ("topk", ["blocks.1.attn.qkv", "blocks.2"]),
        ("tome", ["blocks.1.attn.qkv", "blocks.2"]),
    ],
)
def test_a_compiled_model_calls_the_hooks_of_its_parts(reduction: str, parts: list[str]) -> None:
    model, images = _model(reduction).eval(), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        plain = model(images)
        for part in parts:
            module = model.get_submodule(part)
            module.register_forward_pre_hook(lambda _, given: given[0] * 1.5)
            module.register_forward_pre_hook(lambda _, given, more: ((given[0] * 1.5,), more), with_kwargs=True)
            module.register_forward_hook(lambda _, given, out: out + given[0].mean())
            module.register_forward_hook(lambda _, given, more, out: out * 1.5, with_kwargs=True)
        hooked = model(images)
        assert not torch.allclose(hooked, plain, atol=1e-4)
        model.compile(backend="eager")
        torch.testing.assert_close(model(images), hooked)
