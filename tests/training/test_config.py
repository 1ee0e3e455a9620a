"""The recipe, and what is refused before anything starts."""

import math
from pathlib import Path
from typing import Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

import clca
from clca.cli.commands.train import arguments
from clca.cli.parsing import read
from clca.errors import ClcaError
from clca.models.config import ModelConfig
from clca.training import DataConfig, TrainConfig
from clca.training.config import default_run_folder, identity
from clca.training.optim import freeze_backbone, freeze_blocks, make_optimizer, make_schedule, parameter_groups
from clca.training.settings import explain_flags, read_file, to_config


def config(**settings: object) -> TrainConfig:
    model = ModelConfig(backbone="vit_tiny_patch16_224")
    return TrainConfig.model_validate({"model": model, "data": DataConfig(root="photos"), **settings})


@pytest.fixture(scope="module")
def model() -> clca.TokenReducedViT:
    return clca.create_model("vit_tiny_patch16_224", num_classes=3, img_size=32, patch_size=8, embed_dim=32,
                             num_heads=2, depth=4, reduction="sit", keep_rate=0.5)  # fmt: skip


def test_the_default_is_the_published_recipe() -> None:
    c = config()
    assert (c.epochs, c.warmup, c.cooldown) == (52, 2, 5)
    assert (c.lr, c.warmup_lr, c.min_lr, c.weight_decay, c.batch_size) == (1e-4, 1e-6, 1e-5, 0.05, 32)
    assert (c.smoothing, c.drop_path_rate, c.clip_grad, c.augmentation) == (0, 0, None, "none")


def test_medium_augmentation_brings_its_regularisation() -> None:
    assert (config(augmentation="medium").smoothing, config(augmentation="medium").drop_path_rate) == (0.1, 0.1)
    assert config(augmentation="medium", drop_path=0.0).drop_path_rate == 0.0


def test_learning_rate_follows_the_published_schedule() -> None:
    c, per_epoch = config(), 10
    parameter = torch.nn.Parameter(torch.zeros(2, 2))
    optimizer = torch.optim.AdamW([parameter], lr=c.lr)
    schedule = make_schedule(optimizer, c, per_epoch)
    rates = []
    for step in range(c.epochs * per_epoch):
        schedule.step_update(step)
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates[0] == pytest.approx(1e-6)
    assert rates[10] == pytest.approx((1e-6 + 1e-4) / 2)
    assert rates[20] == pytest.approx(1e-4)
    for step in (20, 100, 245, 469):
        cosine = 1e-5 + 0.5 * (1e-4 - 1e-5) * (1 + math.cos(math.pi * (step - 20) / 450))
        assert rates[step] == pytest.approx(cosine)
    assert rates[470:] == pytest.approx([1e-5] * 50)


@given(epochs=st.integers(1, 200), per_epoch=st.integers(1, 50))
def test_schedule_of_any_length_stays_within_its_limits(epochs: int, per_epoch: int) -> None:
    c = config(epochs=epochs)
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=c.lr)
    schedule = make_schedule(optimizer, c, per_epoch)
    for step in range(epochs * per_epoch):
        schedule.step_update(step)
        assert 1e-6 <= optimizer.param_groups[0]["lr"] <= 1e-4 * (1 + 1e-9)
    assert optimizer.param_groups[0]["lr"] <= 1e-4


def test_weight_decay_spares_vectors_and_embeddings(model: clca.TokenReducedViT) -> None:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    spared, decayed = set(), set()
    for group in parameter_groups(model, config()):
        (decayed if group["weight_decay"] else spared).update(names[id(parameter)] for parameter in group["params"])
    assert decayed | spared == set(names.values())
    assert {"cls_token", "pos_embed", "clr", "clr_pos_embed"} <= spared
    assert {name for name, parameter in model.named_parameters() if parameter.ndim == 1} <= spared
    assert "blocks.0.attn.qkv.weight" in decayed


def test_layer_decay_and_head_scale_set_the_learning_rates(model: clca.TokenReducedViT) -> None:
    c = config(layer_decay=0.5, head_lr_scale=10.0)
    optimizer = make_optimizer(model, c)
    make_schedule(optimizer, c, 10).step_update(20)
    rate = {id(parameter): group["lr"] for group in optimizer.param_groups for parameter in group["params"]}
    rates = {name: rate[id(parameter)] for name, parameter in model.named_parameters()}
    assert rates["blocks.1.mlp.fc1.weight"] == pytest.approx(rates["blocks.2.mlp.fc1.weight"] / 2)
    assert rates["patch_embed.proj.weight"] < rates["blocks.0.mlp.fc1.weight"]
    head = [rates[name] for name in rates if name.startswith("cla_head.")]
    assert head == pytest.approx([10 * c.lr] * len(head))
    assert len(head) > 4


def test_a_frozen_backbone_leaves_what_is_new(model: clca.TokenReducedViT) -> None:
    freeze_backbone(model)
    learning = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    model.requires_grad_(True)
    assert {"clr", "clr_pos_embed"} < learning
    assert {name.split(".")[0] for name in learning} == {"clr", "clr_pos_embed", "cla_head", "reductions"}


@pytest.mark.parametrize(("blocks", "first"), [(0, 0), (2, 2), ("unreduced", 1)])
def test_frozen_blocks_have_no_backward_pass(
    model: clca.TokenReducedViT, blocks: int | Literal["unreduced"], first: int
) -> None:
    """Everything before block `first` stays; everything from there on has a gradient."""
    model.zero_grad()
    freeze_blocks(model, blocks)
    model(torch.randn(2, 3, *model.patch_embed.img_size)).square().sum().backward()
    reached = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    model.requires_grad_(True)
    after = {name for name, _ in model.named_parameters() if name.startswith(("cla_head.", "reductions."))}
    after |= {name for name, _ in model.named_parameters() if name.startswith("blocks.") and int(name[7]) >= first}
    assert reached == after


def test_a_model_of_which_nothing_is_left_to_train_is_refused(model: clca.TokenReducedViT) -> None:
    with pytest.raises(ClcaError, match=f"--freeze-blocks {model.depth}: .* has {model.depth} blocks"):
        freeze_blocks(model, model.depth)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": -1}, "--lr -1: should be greater than 0"),
        ({"lr": "fast"}, "--lr fast: should be a valid number"),
        ({"epochs": 0}, "--epochs 0: should be greater than or equal to 1"),
        ({"epochs": 3, "warmup_epochs": 3}, "--epochs: 3 leaves none for the cosine"),
        ({"batch_size": 32, "grad_accum": 5}, "--grad-accum: 5 does not divide batch_size 32"),
        ({"batch_size": 3, "mixup": 0.8}, "--batch-size: mixup and cutmix need an even number"),
        ({"min_lr": 1.0}, "--min-lr: 1 is above lr 0.0001"),
        ({"augmentation": "huge"}, "--augmentation huge: should be 'none', 'medium' or 'strong'"),
        ({"precision": "fp8"}, "--precision fp8: should be 'auto', 'no', 'bf16' or 'fp16'"),
        ({"ema": 1.5}, "--ema 1.5: should be less than 1"),
        ({"patience": 3, "data": {"root": "photos", "train_split": "train_val"}}, "--patience: stopping early needs"),
        ({"data": {"root": "photos", "train_split": "all"}}, "--train-split all: should be 'train' or 'train_val'"),
        ({"model": {"backbone": "vit", "keep_rate": 1.5}}, "--keep-rate 1.5: a keep rate is a share of tokens above 0"),
        ({"model": {"backbone": "vit", "keep_rate": "a"}}, "--keep-rate a: should be a valid number"),
        ({"model": {"backbone": "vit", "keep_rate": 0}}, "--keep-rate 0: a keep rate is a share of tokens above 0"),
        ({"model": {"backbone": "vit", "img_size": (64, 32)}}, "--img-size: 64 32 is oblong, and training uses square"),
        ({"model": {}}, "--model is missing"),
        ({"nonsense": 1}, "--nonsense: no such setting"),
    ],
)
def test_a_wrong_setting_is_reported_in_one_line(settings: dict, message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        config(**settings)
    line = explain_flags(caught.value)
    assert line.startswith(message)
    assert "\n" not in line


def test_the_run_folder_follows_from_what_makes_the_run() -> None:
    assert default_run_folder(config(workers=1)) == default_run_folder(config(workers=7, track="wandb"))
    assert default_run_folder(config(lr=1e-3)) != default_run_folder(config(lr=1e-4))
    assert default_run_folder(config()).name.startswith("photos-vit_tiny_patch16_224-none-s0-")


def test_identity_leaves_out_only_what_does_not_change_weights() -> None:
    flat = identity(config())
    assert not {"out", "workers", "track", "model.num_classes"} & set(flat)
    assert {"lr", "seed", "precision", "model.reduction", "data.root"} <= set(flat)


def of_file(text: str, tmp_path: Path, *words: str) -> TrainConfig:
    """The settings of `clca train --config FILE WORDS`."""
    file = tmp_path / "run.yaml"
    file.write_text(f"data: photos\nmodel: vit_tiny_patch16_224\n{text}\n")
    return to_config(read(arguments(), "clca train", list(words), ""), read_file(str(file)))


@pytest.mark.parametrize("off", ["false", "0", "'false'", "'no'", "off"])
def test_a_switch_is_off_however_a_file_says_so(off: str, tmp_path: Path) -> None:
    found = of_file(f"pretrained: {off}\nclc: {off}\ncompile: {off}", tmp_path)
    assert (found.pretrained, found.model.clc, found.compile) == (False, False, False)
    assert of_file(f"pretrained: {off}", tmp_path, "--pretrained").pretrained


def test_a_switch_that_is_neither_on_nor_off_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ClcaError, match=r"^--pretrained maybe: should be true or false$"):
        of_file("pretrained: maybe", tmp_path)
    assert of_file("pretrained:", tmp_path).pretrained  # left empty: left away


def test_yaml_may_write_precision_no_without_quotes(tmp_path: Path) -> None:
    assert of_file("precision: no", tmp_path).precision == "no"
