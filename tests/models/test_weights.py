"""Weights from files: three namings, resampling, strictness, and no pickled code."""

import argparse
import pathlib
import pickle
import random
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import Tensor

import clca
from clca.models.weights import read_state_dict

TINY: dict[str, Any] = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "num_heads": 3, "depth": 4}
DEIT = "deit_tiny_patch16_224"


def make(name: str = DEIT, **settings: Any) -> clca.TokenReducedViT:
    return clca.create_model(name, **{**TINY, "num_classes": 5, **settings}).eval()


def random_backbone(name: str = DEIT, **kwargs: Any) -> torch.nn.Module:
    """A timm model none of whose tensors are zeros or ones, so that a tensor not loaded shows."""
    vit = timm.create_model(name, **{**TINY, **kwargs}).eval()
    for tensor in vit.parameters():
        torch.nn.init.normal_(tensor, std=0.1)
    return vit


def as_published(model: clca.TokenReducedViT) -> dict[str, Tensor]:
    """Our state dict under the authors' names (METHOD section 8)."""
    names = (
        ("cla_head.norm_in.", "ifa_head.0.0."),
        ("cla_head.depthwise.", "ifa_head.0.1."),
        ("cla_head.norm_out.", "ifa_head.0.2."),
        ("cla_head.classifier.", "ifa_head.0.4."),
        ("reductions.", "score_predictor." if model.config.reduction == "dynamicvit" else "cluster_layers."),
    )
    state = dict(model.state_dict())
    if "clr_pos_embed" in state:
        state["pos_embed"] = torch.cat([state["pos_embed"], state.pop("clr_pos_embed")], dim=1)
    for ours, theirs in names:
        state = {n.replace(ours, theirs) if n.startswith(ours) else n: v for n, v in state.items()}
    if model.cla_head is not None:
        state |= {"head.weight": torch.randn(1000, 24), "head.bias": torch.randn(1000)}
    return state


def as_saved_by_a_script(state: dict[str, Tensor]) -> dict[str, Any]:
    args = argparse.Namespace(
        model=DEIT,
        output_dir=pathlib.Path("runs/1"),
        data=pathlib.PurePosixPath("data"),
        lr=np.float64(1e-4),
        decay=np.float32(0.05),
        seed=np.int64(3),
        ema=np.bool_(True),
        reduction_loc=[3, 6, 9],
        resume=None,
    )
    weight = torch.nn.Parameter(torch.ones(2))
    weight.sum().backward()
    optimizer = torch.optim.AdamW([weight])
    optimizer.step()
    return {"model": state, "args": args, "epoch": 49, "optimizer": optimizer.state_dict(), "max_accuracy": 81.5}


# -- load_published --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", clca.list_reductions())
@pytest.mark.parametrize(("name", "cla"), [(DEIT, True), ("deit3_small_patch16_224", False)])
def test_published_checkpoint_round_trip(reduction: str, name: str, cla: bool, tmp_path: Path) -> None:
    settings = {"reduction": reduction, "keep_rate": 1.0 if reduction == "none" else 0.5, "cla": cla, "num_clr": 2}
    source, target = make(name, **settings), make(name, **settings)
    file = tmp_path / "checkpoint.pth"
    torch.save(as_saved_by_a_script(as_published(source)), file)
    assert clca.load_published(target, file) is target
    for key, value in source.state_dict().items():
        assert torch.equal(target.state_dict()[key], value), key


def test_published_content_and_state_dict_are_taken_too() -> None:
    source = make(reduction="sit", keep_rate=0.5)
    state = as_published(source)
    images = torch.randn(2, 3, 16, 16)
    for given in (state, {"model": state, "args": argparse.Namespace()}, {"module." + n: v for n, v in state.items()}):
        assert torch.equal(clca.load_published(make(reduction="sit", keep_rate=0.5), given)(images), source(images))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.pop("blocks.2.norm1.bias"), "missing: blocks.2.norm1.bias$"),
        (lambda s: s.pop("clr"), "missing: clr$"),
        (lambda s: s.pop("ifa_head.0.2.running_mean"), "missing: cla_head.norm_out.running_mean$"),
        (lambda s: s.update(extra=torch.ones(1)), "not in the model: extra$"),
        (lambda s: s.update({"norm.weight": torch.ones(24)}), "not in the model: norm.weight$"),
        (
            lambda s: s.update({"ifa_head.0.4.weight": torch.ones(9, 48, 1)}),
            "of another shape: cla_head.classifier.weight",
        ),
        (lambda s: s.update(cls_token=torch.ones(1, 1, 25)), "of another shape: cls_token$"),
        (
            lambda s: s.update({"cluster_layers.0.queries": torch.ones(9, 24)}),
            "of another shape: reductions.0.queries$",
        ),
        (lambda s: [s.pop(n) for n in list(s) if "blocks.3" in n], r"missing: blocks.3.\S+, \S+ and 10 more$"),
    ],
)
def test_published_is_strict(change: Any, words: str) -> None:
    settings = {"reduction": "patchmerger", "keep_rate": 0.5}
    model, state = make(**settings), as_published(make(**settings))
    before = {n: v.clone() for n, v in model.state_dict().items()}
    change(state)
    with pytest.raises(clca.ClcaError, match=f"of another model: {words}") as refused:
        clca.load_published(model, state)
    assert "\n" not in str(refused.value)
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())  # nothing half-loaded


def test_published_of_other_settings_is_refused(tmp_path: Path) -> None:
    state = as_published(make(cla=True, clc=True))
    for other in ({"clc": False}, {"cla": False}, {"num_clr": 2}, {"locations": [1]}, {"reduction": "sit"}):
        with pytest.raises(clca.ClcaError, match="of another model"):
            clca.load_published(make(**other), state)


# -- files that are not weights -------------------------------------------------------------------------------------


class Bomb:
    """Pickles to a call that leaves a trace when it is executed."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return Path.touch, (self.trace,)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("where", ["alone", "beside", "as a tensor", "deep"])
def test_pickled_code_is_refused_and_not_executed(where: str, zipped: bool, tmp_path: Path) -> None:
    file, trace = tmp_path / "weights.pth", tmp_path / "executed"
    model = make()
    bomb, state = Bomb(trace), as_published(model)
    content: Any = {
        "alone": bomb,
        "beside": {"model": state, "args": bomb},
        "as a tensor": {"model": state | {"clr": bomb}},
        "deep": {"model": state, "args": argparse.Namespace(a=[{"b": (1, bomb)}])},
    }[where]
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    for load in (lambda: clca.load_published(model, file), lambda: make(weights=str(file))):
        with pytest.raises(clca.ClcaError, match=r"refused, it .*holds? pickled code.*use .safetensors$") as refused:
            load()
        assert str(file) in str(refused.value)
        assert "\n" not in str(refused.value)
    assert not trace.exists()
    torch.load(file, weights_only=False)
    assert trace.exists()  # the bomb was live


def test_a_bare_pickle_is_refused(tmp_path: Path) -> None:
    file, trace = tmp_path / "weights.pkl", tmp_path / "executed"
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        file.write_bytes(pickle.dumps(Bomb(trace), protocol=protocol))
        with pytest.raises(clca.ClcaError, match="refused, it"):
            read_state_dict(file)
    assert not trace.exists()


def _save_object_npz(file: Path) -> None:
    np.savez(file, a=np.array([Bomb(file.parent / "executed")], dtype=object))


@pytest.mark.parametrize(
    ("name", "write", "words"),
    [
        ("a.pth", lambda f: f.write_text("epoch 1 loss 2.3\n"), "not a readable weight file"),
        ("a.pth", lambda f: f.write_bytes(b""), "not a readable weight file"),
        ("a.safetensors", lambda f: f.write_bytes(b""), "not a readable weight file"),
        ("a.safetensors", lambda f: f.write_text("epoch 1 loss 2.3\n"), "not a readable weight file"),
        ("a.npz", lambda f: f.write_text("epoch 1 loss 2.3\n"), "not a readable weight file"),
        ("a.npz", _save_object_npz, "not a readable weight file"),
        ("a.pth", lambda f: torch.save({}, f), "holds no state dict"),
        ("a.pth", lambda f: torch.save({"model": {}}, f), "holds no state dict"),
        ("a.pth", lambda f: torch.save([torch.ones(2)], f), "holds no state dict"),
        ("a.pth", lambda f: torch.save(torch.ones(2), f), "holds no state dict"),
        ("a.pth", lambda f: torch.save({"a": 1}, f), "values other than tensors"),
        ("a.pth", lambda f: torch.save({1: torch.ones(1)}, f), "values other than tensors"),
        ("a.pth", lambda f: torch.save(torch.nn.Linear(1, 1), f), r"pickled code \(torch.nn.modules.linear.Linear\)"),
        ("a.pth", lambda f: f.mkdir(), "no weights at"),
        ("a.pth", lambda f: None, "no weights at"),
    ],
)
def test_what_is_no_weight_file(name: str, write: Any, words: str, tmp_path: Path) -> None:
    file = tmp_path / name
    write(file)
    with pytest.raises(clca.ClcaError, match=words) as refused:
        make(weights=str(file))
    assert str(file) in str(refused.value)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 250
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("name", ["a.pth", "old.pth", "a.safetensors", "a.npz"])
def test_damaged_files_never_raise_anything_else(name: str, tmp_path: Path) -> None:
    file, state = tmp_path / name, {"a": torch.randn(30, 30), "b": torch.ones(3)}
    if name.endswith(".npz"):
        np.savez(file, **{n: v.numpy() for n, v in state.items()})
    elif name.endswith(".safetensors"):
        save_file(state, file)
    else:
        torch.save(as_saved_by_a_script(state), file, _use_new_zipfile_serialization=name == "a.pth")
    whole = file.read_bytes()
    assert torch.equal(read_state_dict(file)["a"], state["a"])
    rng = random.Random(0)
    outcomes = []
    for trial in range(80):
        damaged = bytearray(whole)
        if trial % 4 == 0:
            damaged = damaged[: rng.randrange(len(whole))]
        else:
            for _ in range(rng.randint(1, 20)):
                damaged[rng.randrange(min(len(whole), 1500))] = rng.randrange(256)
        file.write_bytes(bytes(damaged))
        outcomes.append(_message_of(file))
    assert len(set(outcomes)) > 3
    assert not any("\n" in message for message in outcomes)


def _message_of(file: Path) -> str:
    try:
        read_state_dict(file)
    except clca.ClcaError as error:
        return str(error)
    return ""  # the damage hit a value, not the structure


# -- weights= -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrap", ["plain", "model", "state_dict", "ddp", "compiled", "compiled in ddp", "ddp compiled"])
@pytest.mark.parametrize("extension", ["pth", "safetensors"])
def test_timm_naming_in_every_wrapper(wrap: str, extension: str, tmp_path: Path) -> None:
    vit = random_backbone()
    state = {n: v.detach().clone() for n, v in vit.state_dict().items()}
    prefix = {"ddp": "module.", "compiled": "_orig_mod."}.get(wrap, "")
    prefix = {"compiled in ddp": "module._orig_mod.", "ddp compiled": "_orig_mod.module."}.get(wrap, prefix)
    content: Any = {prefix + n: v for n, v in state.items()}
    file = tmp_path / f"weights.{extension}"
    if extension == "safetensors":
        save_file(content, file)
    else:
        torch.save(
            as_saved_by_a_script(content) if wrap == "model" else {wrap: content} if wrap == "state_dict" else content,
            file,
        )
    model = make(weights=str(file))
    loaded = model.state_dict()
    for name, value in state.items():
        if not name.startswith(("head.", "norm.")):
            assert torch.equal(loaded[name], value), name
    assert torch.equal(model.clr, state["cls_token"])


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        (DEIT, {}),
        ("deit3_small_patch16_224", {}),
        ("vit_small_patch14_reg4_dinov2", {}),
        ("deit_tiny_distilled_patch16_224", {}),
        ("vit_tiny_patch16_224", {"reg_tokens": 2, "global_pool": "avg"}),
    ],
)
@pytest.mark.parametrize(
    "to", [{}, {"img_size": 32}, {"img_size": (16, 24)}, {"patch_size": 8}, {"img_size": 24, "patch_size": 6}]
)
def test_resampled_as_timm_does(name: str, kwargs: dict[str, Any], to: dict[str, Any], tmp_path: Path) -> None:
    """Without CLA, CLC and reduction the model must be timm's, with timm's own conversion of the same file."""
    vit = random_backbone(name, num_classes=5, **kwargs)
    file = tmp_path / "weights.safetensors"
    save_file(vit.state_dict(), file)
    wanted = timm.create_model(name, num_classes=5, **{**TINY, **kwargs, **to}).eval()
    wanted.load_state_dict(checkpoint_filter_fn(dict(vit.state_dict()), wanted))
    plain = make(name, weights=str(file), cla=False, clc=False, **kwargs, **to)
    size = plain.patch_embed.img_size
    images = torch.randn(2, 3, *size)
    with torch.no_grad():
        assert torch.equal(plain(images), wanted(images))
    full = make(name, weights=str(file), reduction="evit", keep_rate=0.5, num_clr=2, **kwargs, **to)
    assert torch.equal(full.pos_embed, wanted.pos_embed)
    assert torch.equal(full.patch_embed.proj.weight, wanted.patch_embed.proj.weight)
    assert torch.equal(full.clr, wanted.cls_token.expand(1, 2, 24))


@pytest.mark.parametrize("reduction", ["dynamicvit", "patchmerger"])
@pytest.mark.parametrize("naming", ["own", "published"])
@pytest.mark.parametrize("name", [DEIT, "vit_small_patch14_reg4_dinov2"])
def test_own_and_published_naming(naming: str, reduction: str, name: str, tmp_path: Path) -> None:
    settings = {"reduction": reduction, "keep_rate": 0.5}
    source = make(name, **settings)
    torch.nn.init.normal_(source.clr)
    file = tmp_path / "weights.pth"
    torch.save(source.state_dict() if naming == "own" else {"model": as_published(source)}, file)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = make(name, weights=str(file), **settings)
    images = torch.randn(2, 3, 16, 16)
    assert torch.equal(again(images), source(images))
    if reduction != "patchmerger":  # whose parameters depend on the number of patches
        larger = make(name, weights=str(file), img_size=32, **settings)
        assert torch.equal(larger.clr, source.clr)
        assert larger.pos_embed.shape[1] - source.pos_embed.shape[1] == 64 - 16
        if source.clr_pos_embed is not None:
            assert torch.equal(larger.clr_pos_embed, source.clr_pos_embed)


@pytest.mark.parametrize("cla", [True, False])
def test_head_for_other_classes_stays_random_with_a_warning(cla: bool, tmp_path: Path) -> None:
    source = make(cla=cla)
    file = tmp_path / "weights.pth"
    torch.save(source.state_dict(), file)
    head = "cla_head.classifier" if cla else "head"
    with pytest.warns(
        UserWarning, match=rf"weights.pth: {head} is for another number of classes and starts from random weights"
    ):
        model = make(cla=cla, num_classes=9, weights=str(file))
    assert model(torch.randn(2, 3, 16, 16)).shape == (2, 9)
    assert torch.equal(model.blocks[0].attn.qkv.weight, source.blocks[0].attn.qkv.weight)
    if cla:
        assert torch.equal(model.cla_head.depthwise.weight, source.cla_head.depthwise.weight)


def test_a_head_that_the_file_lacks_is_reported(tmp_path: Path) -> None:
    file = tmp_path / "weights.pth"
    torch.save(random_backbone(num_classes=0).state_dict(), file)
    with pytest.warns(UserWarning, match="head is not in it and starts from random weights"):
        make(cla=False, weights=str(file))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make(weights=str(file))  # the aggregation head is new to every backbone's file
    torch.save(make().state_dict(), file)
    with pytest.warns(UserWarning, match="head and norm are not in it and start from random weights"):
        make(cla=False, weights=str(file))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.pop("blocks.2.norm1.bias"), "missing: blocks.2.norm1.bias"),
        (lambda s: s.pop("pos_embed"), "missing: pos_embed"),
        (lambda s: s.update({"blocks.4.norm1.bias": torch.ones(24)}), "not in the model: blocks.4.norm1.bias"),
        (lambda s: s.update(cls_token=torch.ones(1, 1, 30)), "another shape: cls_token"),
        (lambda s: s.update(pos_embed=torch.ones(1, 16, 24)), "not weights of"),
        (
            lambda s: [s.pop(n) for n in list(s) if not n.startswith("blocks")],
            "missing: cls_token, pos_embed and 2 more",
        ),
        (lambda s: [s.pop(n) for n in list(s) if n != "head.bias"], "missing: cls_token"),
    ],
)
def test_weights_that_do_not_fit_are_refused(change: Any, words: str, tmp_path: Path) -> None:
    state = random_backbone().state_dict()
    change(state)
    file = tmp_path / "weights.pth"
    torch.save(state, file)
    with pytest.raises(clca.ClcaError, match=f"not weights of {DEIT}.*{words}|{words} {DEIT}") as refused:
        make(weights=str(file))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("deit_tiny_distilled_patch16_224", {}),
        ("deit3_small_patch16_224", {}),
        ("vit_small_patch14_reg4_dinov2", {}),
        ("vit_base_patch16_clip_224", {}),
        ("resnet18", {"img_size": None, "patch_size": None, "embed_dim": None, "num_heads": None, "depth": None}),
        (DEIT, {"embed_dim": 48}),
        (DEIT, {"depth": 3}),
        (DEIT, {"depth": 5}),
        (DEIT, {"mlp_ratio": 2.0}),
        (DEIT, {"qkv_bias": False}),
    ],
)
def test_weights_of_another_architecture_are_refused(name: str, kwargs: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    save_file(timm.create_model(name, **{**TINY, **kwargs}).state_dict(), file)
    with pytest.raises(clca.ClcaError, match=rf"weights.safetensors: not weights of {DEIT}") as refused:
        make(weights=str(file))
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 300


def test_original_dinov2_naming(tmp_path: Path) -> None:
    """The authors' file: a mask token, and for registers a table whose first row belongs to CLS."""
    plain = random_backbone("vit_small_patch14_dinov2")
    state = dict(plain.state_dict()) | {"mask_token": torch.zeros(1, 24)}
    torch.save(state, tmp_path / "dinov2.pth")
    model = make("vit_small_patch14_dinov2", weights=str(tmp_path / "dinov2.pth"))
    assert torch.equal(model.pos_embed, plain.pos_embed)
    registers = random_backbone("vit_small_patch14_reg4_dinov2")
    state = dict(registers.state_dict()) | {"mask_token": torch.zeros(1, 24)}
    state["register_tokens"] = state.pop("reg_token")
    row = torch.randn(1, 1, 24)
    state["pos_embed"] = torch.cat([row, state["pos_embed"]], dim=1)
    torch.save(state, tmp_path / "registers.pth")
    model = make("vit_small_patch14_reg4_dinov2", weights=str(tmp_path / "registers.pth"))
    assert torch.equal(model.pos_embed, registers.pos_embed)
    assert torch.equal(model.reg_token, registers.reg_token)
    torch.testing.assert_close(model.cls_token, registers.cls_token + row)
    assert torch.equal(model.clr, model.cls_token)


def test_original_clip_naming(tmp_path: Path) -> None:
    vit = random_backbone("vit_base_patch16_clip_224", num_classes=5)
    names = (
        ("blocks.", "transformer.resblocks."),
        ("attn.qkv.", "attn.in_proj_"),
        ("attn.proj.", "attn.out_proj."),
        ("mlp.fc1", "mlp.c_fc"),
        ("mlp.fc2", "mlp.c_proj"),
        ("norm1", "ln_1"),
        ("norm2", "ln_2"),
        ("norm_pre", "ln_pre"),
        ("patch_embed.proj", "conv1"),
        ("cls_token", "class_embedding"),
        ("pos_embed", "positional_embedding"),
    )
    state: dict[str, Tensor] = {"logit_scale": torch.ones(()), "token_embedding.weight": torch.ones(3, 2)}
    for name, value in vit.state_dict().items():
        if name.startswith("head."):
            continue
        for ours, theirs in names:
            name = name.replace(ours, theirs)
        name = name.replace("norm.", "ln_post.")
        value = value[0, 0] if name == "class_embedding" else value[0] if name == "positional_embedding" else value
        state["visual." + name] = value
    state["visual.proj"] = vit.state_dict()["head.weight"].T.contiguous()
    torch.save(state, tmp_path / "clip.pth")
    for cla in (True, False):
        model = make("vit_base_patch16_clip_224", cla=cla, weights=str(tmp_path / "clip.pth"))
        for name, value in model.state_dict().items():
            if name in vit.state_dict() and name != "head.bias":
                assert torch.equal(value, vit.state_dict()[name]), name


def test_layer_scale_in_the_original_deit3_naming(tmp_path: Path) -> None:
    vit = random_backbone("deit3_small_patch16_224")
    state = {n.replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2"): v for n, v in vit.state_dict().items()}
    assert "blocks.0.gamma_1" in state
    torch.save({"model": state}, tmp_path / "deit3.pth")
    model = make("deit3_small_patch16_224", weights=str(tmp_path / "deit3.pth"))
    assert torch.equal(model.blocks[1].ls2.gamma, vit.blocks[1].ls2.gamma)


def test_other_image_channels_as_timm_adapts_them(tmp_path: Path) -> None:
    vit = random_backbone()
    torch.save(vit.state_dict(), tmp_path / "rgb.pth")
    weight = vit.patch_embed.proj.weight
    gray = make(in_chans=1, weights=str(tmp_path / "rgb.pth"))
    torch.testing.assert_close(gray.patch_embed.proj.weight, weight.sum(dim=1, keepdim=True))
    six = make(in_chans=6, weights=str(tmp_path / "rgb.pth"))
    torch.testing.assert_close(six.patch_embed.proj.weight, weight.repeat(1, 2, 1, 1) / 2)


def test_jax_naming_says_what_to_do(tmp_path: Path) -> None:
    names = ("cls", "embedding/kernel", "Transformer/encoderblock_0/LayerNorm_0/scale")
    np.savez(tmp_path / "augreg.npz", **{name: np.ones(3, dtype=np.float32) for name in names})
    with pytest.raises(
        clca.ClcaError, match=r"augreg.npz: has JAX's parameter names: load it with timm.*\.safetensors$"
    ):
        make(weights=str(tmp_path / "augreg.npz"))


def test_npz_in_timm_naming(tmp_path: Path) -> None:
    vit = random_backbone()
    np.savez(tmp_path / "weights.npz", **{name: value.numpy() for name, value in vit.state_dict().items()})
    assert torch.equal(make(weights=str(tmp_path / "weights.npz")).pos_embed, vit.pos_embed)


def test_weights_into_a_wrapped_model(tmp_path: Path) -> None:
    torch.save(random_backbone(num_classes=5).state_dict(), tmp_path / "weights.pth")
    vit = timm.create_model(DEIT, **TINY, num_classes=5)
    model = clca.reduce_tokens(vit, weights=str(tmp_path / "weights.pth"), cla=False)
    assert torch.equal(model.clr, vit.cls_token)  # the parameters are shared, so both have the file's
    assert torch.equal(vit.head.weight, read_state_dict(tmp_path / "weights.pth")["head.weight"])
