"""Which timm models fit, why others do not, and that a model handed in stays as it was."""

from typing import Any

import pytest
import timm
import torch
from timm.models import VisionTransformer
from torch import Tensor, nn

import clca
from clca.models.backbones import PAPER_BACKBONES, check_architecture, check_img_size, resolve

TINY: dict[str, Any] = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "num_heads": 3, "depth": 4}


def one_line(refused: pytest.ExceptionInfo[clca.ClcaError]) -> None:
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 250


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("vit_base_patch16_siglip_224", "no CLS token"),
        ("vit_base_patch16_gap_224", "no CLS token"),
        ("eva02_tiny_patch14_224", "Eva with rotary positions"),
        ("vit_small_patch16_rope_224", "Eva with rotary positions"),
        ("vit_relpos_small_patch16_224", "VisionTransformerRelPos with relative positions"),
        ("beit_base_patch16_224", "Beit with relative positions"),
        ("samvit_base_patch16", "VisionTransformerSAM with relative positions"),
        ("swin_tiny_patch4_window7_224", "SwinTransformer with shifted windows"),
        ("swinv2_tiny_window8_256", "SwinTransformerV2 with shifted windows"),
        ("resnet18", "a timm ResNet, and clca needs a VisionTransformer"),
        ("convnext_atto", "a timm ConvNeXt, and clca needs"),
        ("cait_xxs24_224", "a timm Cait, and clca needs"),
        ("naflexvit_base_patch16_gap", "a timm NaFlexVit, and clca needs"),
    ],
)
def test_models_that_do_not_fit(name: str, why: str) -> None:
    with pytest.raises(
        clca.ClcaError, match=f"^{name} does not fit: it (is a timm|has) .*{why}|{name}.*{why}"
    ) as refused:
        check_architecture(resolve(name))
    one_line(refused)


def test_a_model_handed_in_that_does_not_fit() -> None:
    with pytest.raises(clca.ClcaError, match="resnet18 does not fit: it is a timm ResNet") as refused:
        clca.reduce_tokens(timm.create_model("resnet18"), num_classes=3)
    one_line(refused)
    with pytest.raises(clca.ClcaError, match="Linear does not fit"):
        clca.reduce_tokens(nn.Linear(1, 1), num_classes=3)
    with pytest.raises(clca.ClcaError, match="no CLS token"):
        clca.create_model("vit_tiny_patch16_224", **TINY, class_token=False, global_pool="avg")


def test_a_forward_of_its_own_is_refused() -> None:
    """What a subclass adds to the forward pass would be lost without a word."""

    class Gated(VisionTransformer):
        def forward_features(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            return super().forward_features(x) * 2

    with pytest.raises(clca.ClcaError, match=r"Gated has its own forward_features\(\), which would be lost") as refused:
        clca.reduce_tokens(Gated(**TINY), num_classes=3)
    one_line(refused)

    class Renamed(VisionTransformer):
        """Nothing of its own."""

    assert clca.reduce_tokens(Renamed(**TINY), num_classes=3)(torch.randn(2, 3, 16, 16)).shape == (2, 3)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("vit_bas_patch16_224", "did you mean vit_base_patch16_224"),
        ("deit3_bse_patch16_224.fb_in1k", "did you mean .*deit3_base_patch16_224"),
        ("nothing like it", "see timm.list_models"),
        ("", "see timm.list_models"),
        ("clca_vit", "unknown model 'clca_vit'"),
        ("hf-hub:timm/vit", "unknown model"),
        ("../vit", "unknown model"),
    ],
)
def test_an_unknown_name_suggests_close_ones(name: str, hint: str) -> None:
    with pytest.raises(clca.ClcaError, match=hint) as refused:
        clca.create_model(name)
    assert repr(name) in str(refused.value)
    one_line(refused)


def test_an_unknown_tag_lists_those_there_are() -> None:
    with pytest.raises(clca.ClcaError, match=r"unknown pretrained weights 'fb_in2k' of deit_tiny_patch16_224: choose"):
        resolve("deit_tiny_patch16_224.fb_in2k")
    with pytest.raises(clca.ClcaError, match="it has no pretrained weights"):
        resolve("vit_small_patch16_18x2_224.fb_in1k")


def test_the_papers_nine() -> None:
    names = clca.list_backbones()
    assert len(names) == 9
    for name in names:
        check_architecture(resolve(name))
        with torch.device("meta"):
            vit = timm.create_model(resolve(name).architecture)
        assert (vit.patch_embed.patch_size, vit.patch_embed.img_size, len(vit.blocks)) == ((16, 16), (224, 224), 12)
        assert vit.embed_dim == 768
    assert PAPER_BACKBONES["vit_base_patch16_224.mocov3"].url.endswith("/linear-vit-b-300ep.pth.tar")


@pytest.mark.parametrize(
    ("size", "patch", "words"),
    [
        ((30, 32), 16, "image size 30 is not a multiple of the patch size 16: use 16 or 32"),
        ((224, 225), 14, "image size 225 is not a multiple of the patch size 14: use 224 or 238"),
        ((8, 16), 16, "image size 8 is not a multiple of the patch size 16: use 16"),
    ],
)
def test_image_sizes_that_patches_do_not_tile(size: tuple[int, int], patch: int, words: str) -> None:
    with torch.device("meta"):
        embed = timm.create_model("vit_tiny_patch16_224", patch_size=patch, depth=1).patch_embed
    with pytest.raises(clca.ClcaError, match=f"tiny: {words}"):
        check_img_size("tiny", size, embed)
    check_img_size("tiny", (patch * 3, patch), embed)


@pytest.mark.parametrize("size", [18, (16, 18), 2])
def test_image_size_is_checked_either_way(size: Any) -> None:
    with pytest.raises(clca.ClcaError, match="not a multiple of the patch size 4"):
        clca.create_model("deit_tiny_patch16_224", **(TINY | {"img_size": size}))
    with pytest.raises(clca.ClcaError, match="not a multiple of the patch size 4"):
        clca.reduce_tokens(timm.create_model("deit_tiny_patch16_224", **TINY), img_size=size)


@pytest.mark.parametrize("reduction", clca.list_reductions())
@pytest.mark.parametrize("name", ["deit_tiny_patch16_224", "deit_tiny_distilled_patch16_224"])
def test_a_model_handed_in_is_left_alone(name: str, reduction: str) -> None:
    vit = timm.create_model(name, **TINY, num_classes=6).eval()
    images = torch.randn(2, 3, 16, 16)
    before, parameters = vit(images), dict(vit.named_parameters())
    attributes = {key: value for key, value in vars(vit).items() if not key.startswith("_")}
    model = clca.reduce_tokens(
        vit, num_classes=4, img_size=24, reduction=reduction, keep_rate=1.0 if reduction == "none" else 0.5
    ).eval()
    model(torch.randn(2, 3, 24, 24))
    model.set_grad_checkpointing()
    model.reset_classifier(9)
    assert torch.equal(vit(images), before)
    assert {key: value for key, value in vars(vit).items() if not key.startswith("_")} == attributes
    assert {n: id(p) for n, p in vit.named_parameters()} == {n: id(p) for n, p in parameters.items()}
    assert vit.head.out_features == 6
    assert vit.patch_embed.img_size == (16, 16)
    own = dict(model.named_parameters())
    for part in ("cls_token", "patch_embed.proj.weight", "blocks.3.mlp.fc2.bias"):
        assert own[part] is parameters[part]
    assert own["pos_embed"] is not parameters["pos_embed"]  # resampled


def test_own_head_is_kept_unless_asked_otherwise() -> None:
    vit = timm.create_model("deit_tiny_patch16_224", **TINY, num_classes=6).eval()
    kept = clca.reduce_tokens(vit, cla=False)
    assert kept.head is vit.head
    assert kept.num_classes == 6
    other = clca.reduce_tokens(vit, cla=False, num_classes=4)
    assert other.head.out_features == 4
    assert vit.head.out_features == 6
    assert clca.reduce_tokens(vit).num_classes == 6
