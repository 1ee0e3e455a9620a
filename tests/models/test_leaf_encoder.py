"""The encoder that comes with the library: it loads without a network, is timm's ViT, and tells leaves apart."""

import socket
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file

import clca
from clca.data.datasets import Leaves
from clca.data.transforms import eval_transform
from clca.models.leaf_encoder import WEIGHTS

NAME = "clca_leaf_tiny"


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise OSError("no network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def test_the_file_is_small_and_in_half_precision() -> None:
    state = load_file(WEIGHTS)
    assert WEIGHTS.stat().st_size < 8e6
    assert {tensor.dtype for tensor in state.values() if tensor.is_floating_point()} == {torch.float16}
    assert not [name for name in state if name.startswith("head")]


@pytest.mark.parametrize("reduction", ["none", "evit"])
def test_pretrained_weights_are_those_of_the_file(reduction: str) -> None:
    rate = {} if reduction == "none" else {"keep_rate": 0.25}
    model = clca.create_model(NAME, pretrained=True, num_classes=3, reduction=reduction, **rate)
    own = model.state_dict()
    stored = load_file(WEIGHTS)
    kept = {name for name in stored if name in own}
    assert set(stored) - kept <= {"norm.weight", "norm.bias"}  # the aggregation head has norms of its own
    for name in kept:
        torch.testing.assert_close(own[name], stored[name].to(own[name].dtype), rtol=0, atol=0, msg=name)


def test_dense_it_is_timm_s_model() -> None:
    vit = timm.create_model(NAME, pretrained=True).eval()
    model = clca.create_model(NAME, pretrained=True, num_classes=0, cla=False, clc=False).eval()
    images = torch.randn(2, 3, 160, 160)
    with torch.inference_mode(), clca.fast_kernels(False):
        assert torch.equal(model(images), vit(images))


@pytest.mark.parametrize("changes", [{"img_size": 224}, {"img_size": (96, 160)}, {"in_chans": 1}])
def test_it_takes_other_images(changes: dict[str, Any]) -> None:
    model = clca.create_model(NAME, pretrained=True, num_classes=3, reduction="evit", keep_rate=0.5, **changes).eval()
    height, width = model.patch_embed.img_size
    with torch.inference_mode():
        assert model(torch.randn(2, model.in_chans, height, width)).isfinite().all()


def test_leaves_of_cultivars_that_it_never_saw_lie_apart() -> None:
    """With a tenth of the tokens a leaf is nearest to the mean of its own cultivar, far above chance (1 in 6)."""
    leaves = Leaves(
        cultivars=6, images=15, size=183, seed=77, difficulty=0.25, split="all", transform=eval_transform(160)
    )
    model = clca.create_model(
        NAME, pretrained=True, num_classes=0, reduction="evit", keep_rate=0.1, cla=True, cla_head="linear"
    ).eval()
    with torch.inference_mode():
        features = torch.cat([model.forward_features(leaves[i][0][None]).flatten(1) for i in range(len(leaves))])
    features = (features - features.mean(0)) / features.std(0)
    labels = np.array(leaves.labels)
    half = np.arange(len(labels)) % 2 == 0
    means = torch.stack([features[half & (labels == label)].mean(0) for label in range(6)])
    nearest = torch.cdist(features[~half], means).argmin(1).numpy()
    assert (nearest == labels[~half]).mean() > 0.8
