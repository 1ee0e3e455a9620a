"""The model as timm's tools and Python's see it: parts of the forward pass, copies, files, optimisers."""

import copy
import io
import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from small_models import CLASSES, make_pair
from timm.optim import create_optimizer_v2
from torch.nn import functional as F

import clca
import clca.timm

REDUCTIONS = clca.list_reductions()
every_reduction = pytest.mark.parametrize("reduction", REDUCTIONS)
SMALL: dict[str, Any] = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "num_heads": 3, "depth": 4}


def rate_of(reduction: str) -> float:
    return 1.0 if reduction == "none" else 0.5


@every_reduction
@pytest.mark.parametrize(("style", "cla"), [("deit", True), ("distilled", False), ("average", False)])
def test_forward_is_features_then_head(reduction: str, style: str, cla: bool) -> None:
    pair = make_pair(style, reduction=reduction, keep_rate=rate_of(reduction), cla=cla)
    model, images = pair.model, pair.images
    with torch.no_grad():
        logits = model(images)
        features = model.forward_features(images)
        assert torch.equal(model.forward_head(features), logits)
        assert torch.equal(model.forward_trace(images)[0], logits)
        pooled = model.forward_head(features, pre_logits=True)
        assert pooled.shape == (2, model.num_features)
        classifier = model.get_classifier()
        if not isinstance(classifier, tuple):
            again = classifier(pooled.unsqueeze(-1)).squeeze(-1) if cla else classifier(pooled)
            torch.testing.assert_close(again, logits)


@every_reduction
def test_copies_and_state_dicts(reduction: str) -> None:
    pair = make_pair(reduction=reduction, keep_rate=rate_of(reduction))
    model, images = pair.model.train(), pair.images
    (model(images).sum() + model.auxiliary_loss).backward()  # leaves a graph behind, which must not be copied
    model.eval()
    wanted = model(images)
    assert torch.equal(copy.deepcopy(model)(images), wanted)
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    buffer.seek(0)
    other = make_pair(reduction=reduction, keep_rate=rate_of(reduction), seed=5).model
    assert not torch.equal(other(images), wanted)
    other.load_state_dict(torch.load(buffer, weights_only=True))
    assert torch.equal(other(images), wanted)


@every_reduction
@pytest.mark.parametrize("style", ["deit", "registers", "average"])
@pytest.mark.parametrize("cla", [True, False])
def test_saved_and_loaded_again(reduction: str, style: str, cla: bool, tmp_path: Path) -> None:
    pair = make_pair(
        style, reduction=reduction, keep_rate=rate_of(reduction), cla=cla, num_clr=2, dtype=torch.float32, by_name=True
    )
    model, images = pair.model, pair.images.float()
    model.classes = [f"cultivar {i}" for i in range(CLASSES)]
    model.preprocess = {"img_size": 16, "mean": [0.5, 0.5, 0.5]}
    (tmp_path / "config.json").write_text(json.dumps({"training": {"lr": 1e-4}}))
    model.save_pretrained(tmp_path)
    again = clca.from_pretrained(tmp_path)
    assert torch.equal(again.eval()(images), model(images))
    assert (again.classes, again.preprocess, again.config) == (model.classes, model.preprocess, model.config)
    assert json.loads((tmp_path / "config.json").read_text())["training"] == {"lr": 1e-4}
    assert sorted(file.name for file in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("deit3_small_patch16_224", {}),
        ("vit_tiny_patch16_224", {"qk_norm": True, "global_pool": "avg"}),
        ("vit_giant_patch14_dinov2", {"patch_size": 4}),
        ("vit_base_patch16_clip_quickgelu_224", {}),
    ],
)
@pytest.mark.parametrize("img_size", [None, 24])
def test_a_wrapped_model_saved_and_loaded_again(name: str, kwargs: Any, img_size: int | None, tmp_path: Path) -> None:
    """`reduce_tokens` was handed a model, not a name: what was asked of timm must be remembered."""
    vit = timm.create_model(name, **(SMALL | kwargs), num_classes=3)
    model = clca.reduce_tokens(vit, num_classes=5, img_size=img_size, reduction="tome", keep_rate=0.5).eval()
    images = torch.randn(2, 3, *model.patch_embed.img_size)
    model.save_pretrained(tmp_path)
    assert torch.equal(clca.from_pretrained(tmp_path)(images), model(images))


def test_reset_classifier_is_remembered(tmp_path: Path) -> None:
    for cla in (True, False):
        model = clca.create_model("deit_tiny_patch16_224", **SMALL, reduction="evit", keep_rate=0.5, cla=cla).eval()
        images = torch.randn(2, 3, 16, 16)
        model.reset_classifier(9)
        assert model(images).shape == (2, 9)
        assert model.num_classes == 9
        model.save_pretrained(tmp_path)
        assert torch.equal(clca.from_pretrained(tmp_path)(images), model(images))
        model.reset_classifier(0)
        assert model(images).shape == (2, model.num_features)


@pytest.mark.parametrize("before", ["token", "avg"])
@pytest.mark.parametrize("after", ["", "token", "avg", "avgmax", "max"])
@pytest.mark.parametrize("of_timm", [False, True])
def test_another_pool_is_remembered(before: str, after: str, of_timm: bool, tmp_path: Path) -> None:
    """Every pool but that by attention has the same parameters: a wrong one would be loaded without a word."""
    settings = {"reduction": "evit", "keep_rate": 0.5, "cla": False}
    if of_timm:
        vit = timm.create_model("vit_tiny_patch16_224", **SMALL, num_classes=3, global_pool=before)
        vit.reset_classifier(3, after)
        model = clca.reduce_tokens(vit, **settings)
    else:
        model = clca.create_model("vit_tiny_patch16_224", **SMALL, num_classes=3, global_pool=before, **settings)
        model.reset_classifier(3, after)
    model.save_pretrained(tmp_path)
    images = torch.randn(2, 3, 16, 16)
    assert torch.equal(clca.from_pretrained(tmp_path)(images), model.eval()(images))


@pytest.mark.parametrize(
    ("before", "cla", "pool"), [("token", True, "avg"), ("token", False, "mean"), ("map", False, "avg")]
)
def test_a_refused_pool_leaves_the_model_as_it_was(before: str, cla: bool, pool: str) -> None:
    """The number of classes was noted before the pool was refused: such a model could not be saved."""
    model = clca.create_model("vit_tiny_patch16_224", **SMALL, num_classes=3, global_pool=before, cla=cla)
    model.classes = ["a", "b", "c"]
    config = model.config
    with pytest.raises(clca.ClcaError, match="global_pool"):
        model.reset_classifier(9, pool)
    assert (model.config, model.num_classes, model.classes) == (config, 3, ["a", "b", "c"])
    assert model(torch.randn(2, 3, 16, 16)).shape == (2, 3)


@every_reduction
@pytest.mark.parametrize("kwargs", [{}, {"reg_tokens": 2, "no_embed_class": True}, {"dynamic_img_size": True}])
def test_another_image_size(reduction: str, kwargs: Any, tmp_path: Path) -> None:
    """As a model made for that size with the same weights, and timm's own table; what shares weights stays."""
    vit = timm.create_model("vit_tiny_patch16_224", **SMALL, num_classes=5, **kwargs).eval()
    vit.pos_embed.requires_grad_(False)
    model = clca.reduce_tokens(vit, reduction=reduction, keep_rate=rate_of(reduction)).eval()
    small = torch.randn(2, 3, 16, 16)
    before, of_timm = model(small), vit(small)
    model.preprocess = {"img_size": 16, "resize": 18, "mean": [0.5]}
    if reduction in ("patchmerger", "sit"):
        with pytest.raises(clca.ClcaError, match=f"parameters of {reduction} are for the patches of 16×16 pixels"):
            model.set_input_size((24, 32))
        assert torch.equal(model(small), before)
        return
    model.set_input_size((24, 32))
    images = torch.randn(2, 3, 24, 32)
    logits, trace = model.forward_trace(images)
    assert trace.owner[0].shape == (2, 48)
    assert model.preprocess["img_size"] == 16  # for square images: the user's to say
    assert not model.pos_embed.requires_grad
    assert torch.equal(vit(small), of_timm)
    model.save_pretrained(tmp_path)
    assert torch.equal(clca.from_pretrained(tmp_path)(images), logits)
    assert model._traits["img_size"] == (24, 32)  # what timm makes its loaders by
    vit.set_input_size((24, 32))
    assert torch.equal(model.pos_embed, vit.pos_embed)
    with pytest.raises(clca.ClcaError, match="image size 33 is not a multiple of the patch size 4: use 32 or 36"):
        model.set_input_size(33)
    with pytest.raises(clca.ClcaError, match="img_size = "):
        model.set_input_size(None)
    assert torch.equal(model(images), logits)
    model.set_input_size(32)
    assert model.preprocess == {"img_size": 32, "resize": 36, "mean": [0.5]}
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 5)


@every_reduction
def test_maps_of_features_are_refused_by_name(reduction: str) -> None:
    model = clca.create_model("vit_tiny_patch16_224", **SMALL, reduction=reduction, keep_rate=rate_of(reduction))
    images = torch.randn(2, 3, 16, 16)
    for name in ("forward_intermediates", "get_intermediate_layers"):
        with pytest.raises(clca.ClcaError, match=rf"{name}\(\) is not supported.*forward_trace"):
            getattr(model, name)(images, indices=[1], output_fmt="NCHW")


def test_features_only_is_refused_by_name() -> None:
    for make in (clca.create_model, lambda name, **more: timm.create_model("clca_vit", backbone=name, **more)):
        with pytest.raises(clca.ClcaError, match="features_only=True returns feature maps"):
            make("vit_tiny_patch16_224", features_only=True)


@pytest.mark.parametrize("reduction", ["none", "evit", "ats"])
def test_no_image_at_all(reduction: str) -> None:
    model = clca.create_model(
        "vit_tiny_patch16_224", **SMALL, num_classes=5, reduction=reduction, keep_rate=rate_of(reduction),
        dynamic_img_size=True,
    ).eval()  # fmt: skip
    assert model(torch.zeros(0, 3, 16, 16)).shape == (0, 5)


@every_reduction
@pytest.mark.parametrize("cla", [True, False])
def test_gradient_checkpointing_changes_no_gradient(reduction: str, cla: bool) -> None:
    pair = make_pair("deit3", reduction=reduction, keep_rate=rate_of(reduction), cla=cla, images=3)
    model, images = pair.model.train(), pair.images
    gradients = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        torch.manual_seed(1)
        loss = F.cross_entropy(model(images), torch.tensor([0, 1, 2])) + model.auxiliary_loss
        loss.backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("style", ["deit", "distilled", "registers"])
def test_what_weight_decay_leaves_alone(style: str) -> None:
    model = make_pair(style, reduction="dynamicvit", keep_rate=0.5).model
    names = {name for name, p in model.named_parameters() if p.ndim > 1}
    left = names & model.no_weight_decay()
    prefix = {"deit": set(), "distilled": {"dist_token"}, "registers": {"reg_token"}}[style]
    carriers = {"clr"} | ({"clr_pos_embed"} if style != "registers" else set())
    assert left == {"cls_token", "pos_embed"} | prefix | carriers
    optimizer = create_optimizer_v2(model, "adamw", lr=1e-3, weight_decay=0.1)
    named = {id(p): name for name, p in model.named_parameters()}
    plain = {named[id(p)] for g in optimizer.param_groups if g["weight_decay"] == 0 for p in g["params"]}
    assert plain == left | {name for name, p in model.named_parameters() if p.ndim <= 1}


@every_reduction
def test_layer_decay(reduction: str) -> None:
    """Deeper is faster; what a location learns is as fast as its block, the head fastest."""
    model = make_pair(reduction=reduction, keep_rate=rate_of(reduction)).model
    optimizer = create_optimizer_v2(model, "adamw", lr=1.0, weight_decay=0.0, layer_decay=0.5)
    named = {id(p): name for name, p in model.named_parameters()}
    scale = {named[id(p)]: g.get("lr_scale", 1.0) for g in optimizer.param_groups for p in g["params"]}
    assert set(scale) == set(named.values())
    assert scale["cls_token"] == scale["clr"] == scale["clr_pos_embed"] == scale["patch_embed.proj.weight"]
    depths = [scale[f"blocks.{i}.attn.qkv.weight"] for i in range(6)]
    assert depths == sorted(depths)
    assert scale["cls_token"] < depths[0] < depths[-1] <= scale["cla_head.classifier.weight"] == 1.0
    for name, value in scale.items():
        if name.startswith("reductions."):
            assert value == depths[(1, 3, 4)[int(name.split(".")[1])]], name


def test_carrier_starts_as_a_copy_of_cls() -> None:
    vit = timm.create_model("deit_tiny_patch16_224", **SMALL)
    torch.nn.init.normal_(vit.cls_token)
    model = clca.reduce_tokens(vit, num_classes=5, num_clr=3)
    assert torch.equal(model.clr, vit.cls_token.expand(1, 3, 24))
    assert model.clr is not vit.cls_token
    assert 0.01 < model.clr_pos_embed.std() < 0.03
    assert clca.reduce_tokens(vit, num_classes=5, num_clr=0).clr is None


def test_dropout_before_the_head_acts_without_cla_and_is_told_with_it() -> None:
    images = torch.randn(2, 3, 16, 16)
    with pytest.warns(UserWarning, match=r"no dropout, as published: drop_rate=0\.5 has no effect"):
        told = clca.create_model("deit_tiny_patch16_224", **SMALL, num_classes=5, drop_rate=0.5)
    acts = clca.create_model("deit_tiny_patch16_224", **SMALL, num_classes=5, drop_rate=0.5, cla=False)
    for model, same in ((told, True), (acts, False)):
        features = model.train().forward_features(images)
        assert torch.equal(model.forward_head(features), model.forward_head(features)) is same


def test_the_backbone_is_shared_and_unchanged() -> None:
    vit = timm.create_model("deit3_small_patch16_224", **SMALL, num_classes=6).eval()
    images = torch.randn(2, 3, 16, 16)
    wanted, before = vit(images), {name: id(p) for name, p in vit.named_parameters()}
    model = clca.reduce_tokens(vit, num_classes=6, reduction="tome", keep_rate=0.3)
    model(images)
    assert torch.equal(vit(images), wanted)
    assert {name: id(p) for name, p in vit.named_parameters()} == before
    shared = {name for name, p in model.named_parameters() if id(p) in before.values()}
    assert shared == {name for name in before if not name.startswith(("norm.", "head.", "fc_norm."))}


@pytest.mark.parametrize("reduction", ["none", "evit", "ats", "dynamicvit"])
def test_through_timm(reduction: str) -> None:
    """With the keywords that timm's own train.py passes."""
    model = timm.create_model(
        "clca_vit",
        pretrained=False,
        in_chans=3,
        num_classes=5,
        drop_rate=0.0,
        drop_path_rate=0.1,
        drop_block_rate=None,
        global_pool=None,
        bn_momentum=None,
        bn_eps=None,
        scriptable=False,
        checkpoint_path="",
        backbone="deit3_small_patch16_224",
        reduction=reduction,
        keep_rate=rate_of(reduction),
        **SMALL,
    )
    assert isinstance(model, clca.TokenReducedViT)
    assert "clca_vit" in timm.list_models()
    assert model(torch.randn(2, 3, 16, 16)).shape == (2, 5)
    assert model.default_cfg["mean"]
    plain = timm.create_model("deit3_small_patch16_224", **SMALL)
    assert timm.data.resolve_data_config({}, model=model) == timm.data.resolve_data_config({}, model=plain)
    assert model.blocks[-1].drop_path1.drop_prob == pytest.approx(0.1)
