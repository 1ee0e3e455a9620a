"""`clca.testing`: `check_backbone` passes on backbones that fit, and names what a broken one gets wrong."""

from typing import Any

import pytest
import timm
import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

import clca
from clca.testing import check_backbone

TINY: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "num_heads": 3, "depth": 4, "num_classes": 5}


def tiny(name: str = "vit_tiny_patch16_224", **settings: Any) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(name, **{**TINY, **settings})


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("vit_tiny_patch16_224", {}),
        ("vit_tiny_patch16_224", {"reg_tokens": 3, "init_values": 0.1, "qk_norm": True}),
        ("vit_tiny_patch16_224", {"global_pool": "avg", "num_classes": 0, "in_chans": 4}),
        ("deit_tiny_distilled_patch16_224", {}),
        ("vit_base_patch16_clip_224", {"drop_path_rate": 0.1}),
    ],
)
def test_backbones_that_fit(name: str, settings: dict[str, Any]) -> None:
    check_backbone(tiny(name, **settings))


def test_a_backbone_by_name() -> None:
    check_backbone("test_vit")


def test_a_backbone_is_not_changed() -> None:
    vit = tiny().train()
    before = {name: value.clone() for name, value in vit.state_dict().items()}
    check_backbone(vit)
    assert vit.training
    assert all(torch.equal(value, before[name]) for name, value in vit.state_dict().items())
    assert all(parameter.grad is None and parameter.dtype == torch.float32 for parameter in vit.parameters())


class ReadsItsBatch(Block):
    def forward(self, x: Tensor, **more: Any) -> Tensor:
        return super().forward(x, **more) + x.mean(dim=0)


class StopsGradients(Block):
    def forward(self, x: Tensor, **more: Any) -> Tensor:
        return super().forward(x.detach(), **more)


@pytest.mark.parametrize(
    ("block", "words"),
    [
        (ReadsItsBatch, "'VisionTransformer', reduction=patchmerger.*an image alone gives a different result"),
        (StopsGradients, "no gradient reaches the parameter"),
    ],
)
def test_a_block_that_breaks_a_promise(block: type[Block], words: str) -> None:
    with pytest.raises(AssertionError, match=words):
        check_backbone(tiny(block_fn=block))


def test_a_forward_that_would_be_lost() -> None:
    vit: Any = tiny()
    pool = vit.forward_head
    vit.forward_head = lambda x, **more: 2 * pool(x, **more)
    with pytest.raises(AssertionError, match=r"reduction=none.*do not equal those of timm's model bit for bit"):
        check_backbone(vit)


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_2224"])
def test_what_does_not_fit_is_refused(name: str) -> None:
    with pytest.raises(clca.ClcaError, match=name):
        check_backbone(name)
