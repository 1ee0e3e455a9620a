"""What is not read is not computed: the same numbers as computing everything, with fewer operations."""

from typing import Any

import pytest
import torch

import clca
from clca.kernels.dispatch import use_row_selection
from clca.models.cost import flop_counter

SIZES: dict[str, Any] = {"img_size": 32, "patch_size": 4, "embed_dim": 24, "num_heads": 3, "depth": 6}
STYLES: dict[str, dict[str, Any]] = {
    "deit": {"backbone": "deit_tiny_patch16_224"},
    "deit3": {"backbone": "deit3_small_patch16_224"},  # LayerScale
    "registers": {"backbone": "vit_small_patch14_reg4_dinov2"},  # five prefix tokens
    "clip": {"backbone": "vit_base_patch16_clip_224"},
    "qk-norm": {"backbone": "deit_tiny_patch16_224", "qk_norm": True},
    "no-bias": {"backbone": "deit_tiny_patch16_224", "qkv_bias": False, "proj_bias": False},
    "scale-norm": {"backbone": "deit_tiny_patch16_224", "scale_attn_norm": True},
    "dropout": {"backbone": "deit_tiny_patch16_224", "proj_drop_rate": 0.1},
    "drop-path": {"backbone": "deit_tiny_patch16_224", "drop_path_rate": 0.3},
}


def _model(reduction: str, style: str, **more: Any) -> clca.TokenReducedViT:
    torch.manual_seed(0)
    rate = 1.0 if reduction == "none" else 0.4
    model = clca.create_model(**STYLES[style], **SIZES, num_classes=5, reduction=reduction, keep_rate=rate, **more)
    for name, parameter in model.named_parameters():
        if name.endswith(("gamma", "bias")):  # small or zero at first, which would hide a mistake
            torch.nn.init.normal_(parameter, mean=0.5, std=0.5)
    return model


@pytest.mark.parametrize("reduction", clca.list_reductions())
@pytest.mark.parametrize("style", [s for s in STYLES if s != "dropout"])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_same_logits_and_gradients(reduction: str, style: str, training: bool) -> None:
    model = _model(reduction, style).double().train(training)
    images = torch.randn(3, 3, 32, 32, dtype=torch.float64)
    results = []
    for model.economical in (True, False):
        model.zero_grad()
        torch.manual_seed(1)
        logits = model(images)
        logits.square().sum().backward()
        results.append((logits.detach(), {n: p.grad for n, p in model.named_parameters()}))
    (logits, grads), (plain_logits, plain_grads) = results
    torch.testing.assert_close(logits, plain_logits)
    for name, plain in plain_grads.items():
        grad = grads[name]
        assert (grad is None) == (plain is None), name
        if plain is not None:
            # In double precision the two orders of summation agree far below this.
            torch.testing.assert_close(grad, plain, atol=1e-9, rtol=1e-7, msg=name)


@pytest.mark.parametrize("reduction", ["topk", "evit", "ats"])
@pytest.mark.parametrize("checkpointing", [True, False])
def test_same_with_gradient_checkpointing(reduction: str, checkpointing: bool) -> None:
    model = _model(reduction, "deit3").train()
    model.set_grad_checkpointing(checkpointing)
    images, grads = torch.randn(3, 3, 32, 32), []
    for model.economical in (True, False):
        model.zero_grad()
        model(images).square().sum().backward()
        grads.append(model.patch_embed.proj.weight.grad)
    torch.testing.assert_close(*grads, atol=1e-4, rtol=1e-3)


def test_falls_back_where_fusing_first_is_not_the_same() -> None:
    normed, dropping = _model("evit", "scale-norm").blocks[0], _model("evit", "dropout").blocks[0]
    assert use_row_selection(normed, fuses=False)
    assert not use_row_selection(normed, fuses=True)
    assert not use_row_selection(dropping.train(), fuses=True)
    assert use_row_selection(dropping.eval(), fuses=True)
    wrapped = _model("evit", "deit").blocks[0]
    wrapped.attn.qkv = torch.nn.Sequential(wrapped.attn.qkv)
    assert not use_row_selection(wrapped, fuses=False)


@pytest.mark.parametrize("reduction", ["topk", "ats"])
def test_rows_of_dropped_tokens_are_not_computed(reduction: str) -> None:
    """At the reduction block: queries, attention rows and output projection of the dropped tokens are left out."""
    model = _model(reduction, "deit", locations=(2,), cla=False, clc=False).eval()
    image = torch.randn(1, 3, 32, 32)
    n, c, counts = 65, 24, {}
    for model.economical in (True, False):
        with torch.no_grad(), flop_counter() as counter:
            _, trace = model.forward_trace(image)
        counts[model.economical] = counter.get_total_flops() // 2
    dropped = n - int(torch.as_tensor(trace.tokens[2]).max())
    saved = dropped * (c * c + 2 * n * c + c * c)
    own_query = c * c  # the CLS token's, which is computed once more with the selected ones
    assert counts[False] - counts[True] == saved - own_query
