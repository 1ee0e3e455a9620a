"""The calls that timm's own train.py and validate.py make, with the same keywords, on `clca_vit`."""

import argparse
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from timm import utils
from timm.data import create_dataset, create_loader, resolve_data_config, resolve_input_data_config
from timm.data.mixup import FastCollateMixup
from timm.layers import convert_sync_batchnorm
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.models import load_checkpoint, model_parameters, resolve_model_input_args, resume_checkpoint
from timm.optim import create_optimizer_v2, optimizer_kwargs
from timm.scheduler import create_scheduler_v2, scheduler_kwargs
from timm.task import ClassificationTask, LogitDistillationTask
from timm.utils import reparameterize_model
from torch import nn

import clca
import clca.timm

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")


def script_args(**changes: Any) -> argparse.Namespace:
    """What the scripts' parsers give without flags, as far as it reaches the model, and a tiny backbone."""
    backbone = changes.pop("backbone", "deit3_small_patch16_224")
    kwargs = {"backbone": backbone, "patch_size": 8, "embed_dim": 24, "num_heads": 3, "depth": 4}
    args = argparse.Namespace(
        model="clca_vit",
        model_kwargs=kwargs | changes.pop("model_kwargs", {}),
        **dict.fromkeys(("num_classes", "gp", "in_chans", "input_size", "drop_path", "drop_block", "bn_momentum")),
        **dict.fromkeys(("bn_eps", "crop_pct", "mean", "std", "layer_decay", "opt_eps", "opt_betas", "clip_grad")),
        **{"pretrained": False, "torchscript": False, "initial_checkpoint": "", "interpolation": "", "drop": 0.0},
        **{"opt": "adamw", "lr": 1e-3, "weight_decay": 0.05, "momentum": 0.9, "img_size": 32, "opt_kwargs": {}},
        **{"sched": "cosine", "epochs": 2, "warmup_epochs": 1, "warmup_lr": 1e-5, "min_lr": 0.0, "seed": 42},
        **{"cooldown_epochs": 0, "decay_rate": 0.1, "sched_on_updates": False, "clip_mode": "norm"},
    )
    return argparse.Namespace(**(vars(args) | changes))


def make(args: argparse.Namespace, **factory_kwargs: Any) -> clca.TokenReducedViT:
    """As train.py makes its model."""
    return timm.create_model(
        **resolve_model_input_args(
            args.model,
            vars(args),
            pretrained=args.pretrained,
            num_classes=args.num_classes,
            drop_rate=args.drop,
            drop_path_rate=args.drop_path,
            drop_block_rate=args.drop_block,
            global_pool=args.gp,
            bn_momentum=args.bn_momentum,
            bn_eps=args.bn_eps,
            scriptable=args.torchscript,
            checkpoint_path=args.initial_checkpoint,
            **factory_kwargs,
            **args.model_kwargs,
        )
    )


def reduced(reduction: str, **more: Any) -> dict[str, Any]:
    return {"reduction": reduction, "keep_rate": 1.0 if reduction == "none" else 0.5, **more}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images")
    for split, count in (("train", 4), ("validation", 3)):
        for c in range(3):
            (root / split / f"class{c}").mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (40, 36), (80 * c, 20 * i, 90)).save(root / split / f"class{c}" / f"{i}.png")
    return root


def loaders(folder: Path, args: argparse.Namespace, config: dict[str, Any], mixup: bool) -> Iterator[Any]:
    collate = FastCollateMixup(mixup_alpha=0.8, cutmix_alpha=1.0, num_classes=args.num_classes) if mixup else None
    for split, training in (("train", True), ("validation", False)):
        dataset = create_dataset("", root=str(folder), split=split, is_training=training, batch_size=4, seed=args.seed)
        yield create_loader(
            dataset,
            input_size=config["input_size"],
            batch_size=4,
            is_training=training,
            use_prefetcher=True,
            interpolation=config["interpolation"],
            mean=config["mean"],
            std=config["std"],
            num_workers=0,
            crop_pct=config["crop_pct"],
            collate_fn=collate if training else None,
            device=CPU,
        )


def validate(model: nn.Module, loader: Any, dtype: torch.dtype | None = None) -> float:
    """validate.py's loop: a warm-up on noise, then accuracy."""
    top1 = utils.AverageMeter()
    model.eval()
    with torch.inference_mode():
        model(torch.randn(4, 3, 32, 32).to(dtype=dtype))
        for images, target in loader:
            output = model(images.to(dtype=dtype))
            nn.functional.cross_entropy(output, target)
            acc1, _ = utils.accuracy(output.detach(), target, topk=(1, 5))
            top1.update(acc1.item(), output.shape[0])
    return top1.avg


@pytest.mark.parametrize("reduction", clca.list_reductions())
def test_train_and_validate(reduction: str, folder: Path, tmp_path: Path) -> None:
    """train.py with --layer-decay --model-ema --mixup --amp --channels-last --drop-path; then resumed, validated."""
    args = script_args(num_classes=3, layer_decay=0.75, drop_path=0.1, clip_grad=1.0, model_kwargs=reduced(reduction))
    model = make(args)
    config = resolve_data_config(vars(args), model=model, verbose=False)
    assert config["input_size"] == (3, 32, 32)
    model.to(device=CPU)
    model.to(memory_format=torch.channels_last)
    optimizer = create_optimizer_v2(model, **optimizer_kwargs(cfg=args), **args.opt_kwargs)
    ema = utils.ModelEmaV3(model, decay=0.5)
    saver = utils.CheckpointSaver(
        model=model, optimizer=optimizer, args=args, model_ema=ema, checkpoint_dir=str(tmp_path), max_history=2
    )
    train_loader, val_loader = loaders(folder, args, config, mixup=True)
    scheduler, epochs = create_scheduler_v2(optimizer, **scheduler_kwargs(args), updates_per_epoch=len(train_loader))
    loss_fn = SoftTargetCrossEntropy()
    autocast = partial(torch.autocast, device_type="cpu", dtype=torch.bfloat16)
    for epoch in range(epochs):
        model.train()
        for images, target in train_loader:
            optimizer.zero_grad()
            with autocast():
                loss = loss_fn(model(images.contiguous(memory_format=torch.channels_last)), target)
            loss.backward()
            utils.dispatch_clip_grad(model_parameters(model, exclude_head=False), value=args.clip_grad, mode="norm")
            optimizer.step()
            ema.update(model)
            assert torch.isfinite(loss)
        metric = validate(ema.module, val_loader)
        saver.save_checkpoint(epoch, metric=metric)
        scheduler.step(epoch + 1, metric)

    last = str(tmp_path / "last.pth.tar")
    again = make(args)
    other = create_optimizer_v2(again, **optimizer_kwargs(cfg=args))
    assert resume_checkpoint(again, last, optimizer=other, log_info=False) == epochs
    averaged = make(args)
    load_checkpoint(averaged, last, use_ema=True)  # validate.py --checkpoint --use-ema
    initial = make(script_args(num_classes=3, initial_checkpoint=last, model_kwargs=reduced(reduction)))
    ours = clca.create_model(weights=last, num_classes=3, img_size=32, **args.model_kwargs)
    images = torch.randn(2, 3, 32, 32)
    wanted = model.eval()(images)
    assert torch.equal(again.eval()(images), wanted)
    assert torch.equal(ours.eval()(images), wanted)
    assert torch.equal(averaged.eval()(images), ema.module.eval()(images))
    assert torch.equal(initial.eval()(images), ema.module(images))  # timm prefers averaged weights
    assert not torch.equal(ema.module(images), wanted)
    validate(again, val_loader)
    validate(again.to(dtype=torch.bfloat16), val_loader, torch.bfloat16)  # --model-dtype bfloat16


@pytest.mark.parametrize("reduction", clca.list_reductions())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_training_task(reduction: str, dtype: torch.dtype) -> None:
    """Newer scripts train through timm.task; with --grad-checkpointing, and the whole model in --model-dtype."""
    args = script_args(num_classes=3, model_kwargs=reduced(reduction))
    model = make(args).to(dtype=dtype)
    model.set_grad_checkpointing(enable=True)
    task = ClassificationTask(model, LabelSmoothingCrossEntropy(0.1), device=CPU, dtype=dtype, verbose=False)
    task.setup_ema(decay=0.9)
    optimizer = create_optimizer_v2(task.get_trainable_module(), **optimizer_kwargs(cfg=args))
    task.train()
    result = task(torch.randn(2, 3, 32, 32, dtype=dtype), torch.tensor([0, 2]))
    result["loss"].backward()
    optimizer.step()
    task.update_ema(step=1)
    assert result["output"].dtype == dtype
    assert torch.isfinite(result["loss"])
    silent = {name for name, p in model.named_parameters() if p.grad is None}
    # The ratio loss alone reaches no further than the scripts' loss does.
    assert not silent, silent
    assert task.get_eval_model(ema=True).module.eval()(torch.randn(1, 3, 32, 32, dtype=dtype)).shape == (1, 3)


@pytest.mark.parametrize(
    "request_",
    [
        {"img_size": 64},
        {"img_size": None, "input_size": [3, 64, 64]},
        {"img_size": None, "model_kwargs": {"img_size": 64}},
    ],
)
def test_the_image_size_reaches_model_and_data(request_: dict[str, Any]) -> None:
    args = script_args(num_classes=3, **request_)
    model = make(args)
    assert model.patch_embed.img_size == (64, 64)
    config = resolve_input_data_config(model, vars(args), use_test_size=True, verbose=False)
    assert config["input_size"] == (3, 64, 64)
    assert model(torch.randn(2, 3, 64, 64)).shape == (2, 3)


def test_dynamic_image_size() -> None:
    args = script_args(num_classes=3, img_size=64, model_kwargs=reduced("evit", dynamic_img_size=True))
    model = make(args)
    config = resolve_input_data_config(model, vars(args), use_test_size=True, verbose=False)
    assert model(torch.randn(2, *config["input_size"])).shape == (2, 3)
    assert model(torch.randn(2, 3, 32, 48).contiguous(memory_format=torch.channels_last)).shape == (2, 3)


@pytest.mark.parametrize("cla", [True, False])
def test_flags_that_touch_the_model(cla: bool) -> None:
    args = script_args(num_classes=None, in_chans=1, model_kwargs=reduced("tome", cla=cla))
    model = make(args)
    assert model.num_classes == 1000  # --num-classes left out
    config = resolve_input_data_config(model, vars(args), verbose=False)
    assert config["input_size"] == (1, 32, 32)
    weight = model.get_classifier().weight.detach().clone()
    with torch.no_grad():  # --head-init-scale, --head-init-bias
        model.get_classifier().weight.mul_(0.5)
        model.get_classifier().bias.mul_(0.5)
    nn.init.constant_(model.get_classifier().bias, -3.0)
    assert torch.equal(model.get_classifier().weight, weight * 0.5)
    images = torch.randn(2, 1, 32, 32)
    wanted = model.eval()(images)
    assert torch.equal(reparameterize_model(model)(images), wanted)  # --reparam
    assert torch.equal(convert_sync_batchnorm(model).eval()(images), wanted)  # --sync-bn
    compiled = torch.compile(model, backend="eager")  # --torchcompile
    torch.testing.assert_close(compiled(images), wanted)
    assert list(utils.get_state_dict(compiled, utils.unwrap_model)) == list(model.state_dict())


@pytest.mark.parametrize("reduction", ["evit", "dynamicvit"])  # tests/models/test_compile.py has all
def test_torchcompile_trains(reduction: str) -> None:
    """--torchcompile aot_eager: the whole forward and backward is traced; the loss is that of the plain model."""
    torch._dynamo.reset()
    model = make(script_args(num_classes=3, model_kwargs=reduced(reduction)))
    images, target = torch.randn(2, 3, 32, 32), torch.tensor([0, 1])
    losses = []
    for forward in (model, torch.compile(model, backend="aot_eager")):
        model.zero_grad()
        torch.manual_seed(0)
        loss = nn.functional.cross_entropy(forward.train()(images), target)
        loss.backward()
        losses.append((loss.detach(), model.patch_embed.proj.weight.grad.clone()))
    if reduction != "dynamicvit":  # whose decisions are drawn at random, in another order when compiled
        torch.testing.assert_close(losses[0], losses[1], rtol=1e-4, atol=1e-5)
    assert torch.isfinite(losses[1][0])


def test_global_pool_and_distillation() -> None:
    pooled = make(script_args(num_classes=3, gp="avg", model_kwargs=reduced("evit", cla=False)))
    assert pooled.global_pool == "avg"
    args = script_args(
        num_classes=3, backbone="deit_tiny_distilled_patch16_224", model_kwargs=reduced("evit", cla=False)
    )
    student, teacher = make(args), make(args)
    task = LogitDistillationTask(
        student, teacher, criterion=nn.CrossEntropyLoss(), distill_loss_weight=0.5, device=CPU, verbose=False
    )
    result = task(torch.randn(2, 3, 32, 32), torch.tensor([0, 1]))
    result["loss"].backward()
    assert student.head.weight.grad is not None
    assert student.head_dist.weight.grad is not None


def test_pretrained_path_is_heeded(tmp_path: Path) -> None:
    """--pretrained --pretrained-path FILE: the file, with another head, and never random weights in silence."""
    source = timm.create_model("deit3_small_patch16_224", img_size=32, patch_size=8, embed_dim=24, num_heads=3, depth=4)
    nn.init.normal_(source.cls_token)
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    overlay = {"file": str(tmp_path / "weights.pth"), "num_classes": -1}
    model = make(script_args(num_classes=3, pretrained=True), pretrained_cfg_overlay=overlay)
    assert torch.equal(model.cls_token, source.cls_token)
    assert torch.equal(model.clr, source.cls_token)
    with pytest.raises(clca.ClcaError, match="no weights at"):
        make(script_args(pretrained=True), pretrained_cfg_overlay={"file": str(tmp_path / "missing.pth")})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_kwargs": {"backbone": "resnet18"}}, "resnet18 does not fit"),
        ({"model_kwargs": {"reduction": "x"}}, "unknown reduction 'x'"),
        ({"img_size": 33}, "33 is not a multiple"),
        ({"bn_momentum": 0.1}, "does not take these settings.*bn_momentum"),
        ({"drop_block": 0.1}, "does not take these settings.*drop_block_rate"),
    ],
)
def test_what_does_not_fit_is_one_line(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(clca.ClcaError, match=words) as refused:
        make(script_args(**changes))
    assert "\n" not in str(refused.value)
