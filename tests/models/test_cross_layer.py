"""The linear head over the depths; the published head is tested against the golden vectors and plain formulas."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import layer_norm

import clca
from clca.models.cross_layer import LinearAggregationHead
from clca.reductions import reduction_class

TINY: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "num_heads": 3, "depth": 4}


def filled(depths: int = 3, classes: int = 5) -> LinearAggregationHead:
    head = LinearAggregationHead(8, depths, classes)
    linear: Any = head.classifier
    torch.nn.init.normal_(linear.weight)
    torch.nn.init.normal_(linear.bias)
    return head


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("depths", [1, 3])
def test_it_is_the_plain_formula(depths: int, training: bool) -> None:
    head, tokens = filled(depths).train(training), torch.randn(6, depths, 8) * 3 + 1
    head.norm.running_mean.normal_()
    mean, variance = head.norm.running_mean.clone(), head.norm.running_var.clone()
    u = layer_norm(tokens, (8,)).flatten(1)
    if training:
        mean, variance = u.mean(0), u.var(0, unbiased=False)
    u = (u - mean) / (variance + head.norm.eps).sqrt()
    linear: Any = head.classifier
    torch.testing.assert_close(head(tokens), u @ linear.weight.T + linear.bias)
    head.eval()
    torch.testing.assert_close(head(tokens), head.classifier(head(tokens, pre_logits=True)))


def test_a_new_one_prefers_no_class() -> None:
    head = LinearAggregationHead(8, 3, 5).eval()
    assert (head(torch.randn(4, 3, 8)) == 0).all()
    filled_head = filled()
    filled_head.reset(7)
    assert (filled_head.eval()(torch.randn(4, 3, 8)) == torch.zeros(4, 7)).all()


def test_one_image_in_training_is_refused() -> None:
    with pytest.raises(clca.ClcaError, match="train on at least two images at once"):
        filled().train()(torch.randn(1, 3, 8))


@pytest.mark.parametrize("reduction", clca.list_reductions())
def test_a_model_with_it_trains_and_is_saved(reduction: str, tmp_path: Path) -> None:
    rate = 1.0 if reduction == "none" else 0.5
    model = clca.create_model(
        "vit_tiny_patch16_224", **TINY, num_classes=5, cla_head="linear", reduction=reduction, keep_rate=rate
    )
    images = torch.randn(3, 3, 32, 32)
    model.train()(images).square().mean().backward()
    assert model.get_classifier().weight.grad.abs().sum() == 0  # its logits are all zero, and so is their gradient
    torch.nn.init.normal_(model.get_classifier().weight)
    model.train()(images).square().mean().backward()
    for name, parameter in model.named_parameters():
        if name.startswith("blocks.0."):
            assert parameter.grad is not None, name
    model.eval()
    assert model.num_features == model.embed_dim * (len(model.locations) + 1)
    assert model.forward_head(model.forward_features(images), pre_logits=True).shape == (3, model.num_features)
    model.save_pretrained(str(tmp_path))
    loaded = clca.from_pretrained(str(tmp_path)).eval()
    assert isinstance(loaded.cla_head, LinearAggregationHead)
    torch.testing.assert_close(loaded(images), model(images))
    model.reset_classifier(2)
    assert model(images).shape == (3, 2)


@pytest.mark.parametrize("head", ["linear", "convolution"])
@pytest.mark.parametrize("locations", [(0, 2), (1, 2)])
@pytest.mark.parametrize("reduction", clca.list_reductions())
def test_it_reads_the_average_of_the_patches_before_the_first_reduction(
    reduction: str, locations: tuple[int, ...], head: str
) -> None:
    settings = {**TINY, "reduction": reduction, "keep_rate": 1.0 if reduction == "none" else 0.5, "num_clr": 2}
    model = clca.create_model(
        "deit_tiny_distilled_patch16_224", **settings, num_classes=5, locations=locations, cla_head=head,
        cla_average=True,
    ).eval()  # fmt: skip
    seen: list[torch.Tensor] = []
    model.blocks[locations[0]].norm1.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        read = model.forward_features(images)
    assert read.shape == (3, 2 + len(locations), 24)
    if getattr(reduction_class(reduction), "place", "") != "before":  # where the hook would be too late
        assert seen[0].shape[1] == 2 + 16 + 2  # CLS and distillation token, patches, carriers
        torch.testing.assert_close(read[:, 0], seen[0][:, 2:18].mean(1))
    own = clca.create_model(
        "deit_tiny_distilled_patch16_224", **settings, num_classes=5, locations=locations, cla_head=head
    ).eval()  # fmt: skip
    own.load_state_dict({name: value for name, value in model.state_dict().items() if "cla_head" not in name}, False)
    with torch.no_grad():
        torch.testing.assert_close(own.forward_features(images), read[:, 1:])
    model.train()(images).square().mean().backward()


def test_an_image_does_not_depend_on_its_batch() -> None:
    model = clca.create_model(
        "vit_tiny_patch16_224", **TINY, num_classes=5, cla_head="linear", reduction="ats", keep_rate=0.5
    ).eval()
    torch.nn.init.normal_(model.get_classifier().weight)
    images = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(model(images)[1:2], model(images[1:2]), atol=1e-4, rtol=1e-4)
