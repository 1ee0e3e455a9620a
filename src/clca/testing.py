"""Check that a reduction or a backbone meets its requirements, like scikit-learn's `check_estimator`."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clca.errors import ClcaError
from clca.kernels.dispatch import can_split
from clca.models.backbones import build_backbone, check_architecture, check_fits, resolve
from clca.models.config import validated
from clca.models.cost import cost
from clca.models.factory import create_model, reduce_tokens
from clca.models.token_reduced_vit import TokenReducedViT
from clca.reductions.registry import reduction_class
from clca.study.plan.cost_model import forward_gmacs

_PATCH, _GRID, _CLASSES = 4, 4, 5
_SIZES: dict[str, Any] = {"patch_size": _PATCH, "embed_dim": 24, "num_heads": 3, "depth": 5, "locations": (1, 2)}
_PREFIXES: tuple[dict[str, Any], ...] = ({}, {"reg_tokens": 3})
_MODULES: tuple[dict[str, Any], ...] = (
    {"cla": True, "clc": True},
    {"cla": False, "clc": True, "num_clr": 2},
    {"cla": False, "clc": False},
)
_RATES: tuple[Any, ...] = (1.0, 0.6, (0.9, 0.3), 0.01)


def check_reduction(name: str) -> None:
    """Check that a registered reduction meets the requirements of every reduction; takes seconds.

    With and without aggregation head and cache, with one and several prefix tokens, at keep rates from 0.01 to 1: the
    result of an image does not depend on its batch and is reproducible; the prefix stays in front, followed by at least
    one token; every patch is owned by an existing token, or by none from then on; a lower rate keeps no more tokens;
    the keep rate can be set at run time, unless `fixed_counts`; `tokens_after` and `macs`, if defined, agree with the
    measured cost; gradients are finite and reach all parameters; double precision, bfloat16 and autocast work. The
    formula itself is not checked: compare it with a plain loop.

    Args:
        name: Its registered name.

    Raises:
        AssertionError: A requirement is not met; the message has it and the settings.
        ClcaError: There is no such reduction.
    """
    if reduction_class(name) is None:
        raise ClcaError(f"reduction {name!r} reduces nothing: there is nothing to check")
    for modules in _MODULES:
        for prefix in _PREFIXES:
            for rate in _RATES:
                settings = {"keep_rate": rate, **modules, **prefix}
                with _naming(f"reduction {name!r}", settings):
                    _check_evaluation(name, settings)
            settings = {"keep_rate": 0.6, **modules, **prefix}
            with _naming(f"reduction {name!r}", settings):
                _check_training(name, settings)
                _check_precisions(name, settings)
                _check_run_time(name, settings)
                _check_cost(name, settings)
    for grid in (2, 3):
        with _naming(f"reduction {name!r}", {"patches": f"{grid}×{grid}", "keep_rate": 0.01}):
            _check_evaluation(name, {"keep_rate": 0.01}, grid)


def check_backbone(backbone: str | nn.Module) -> None:
    """Check that a backbone works with token reduction and Cross-Layer Cache Aggregation.

    Without reduction, head and cache, and at a keep rate of 1, the outputs equal those of timm's model bit for bit.
    With a reduction, and with and without head and cache, the result of an image does not depend on its batch, and
    gradients are finite and reach every parameter. Takes as long as a few training steps on four images. A given model
    is copied, not changed.

    Args:
        backbone: A timm VisionTransformer; or the name of one, which is created with random weights.

    Raises:
        AssertionError: A requirement is not met; the message has it and the settings.
        ClcaError: The backbone is not supported, with the reason.

    Example:
        >>> clca.testing.check_backbone(timm.create_model("vit_tiny_patch16_224", reg_tokens=4))
    """
    name, vit = _backbone_of(backbone)
    check_fits(vit, name)
    images = _random_images(vit)
    splits = all(can_split(block) for block in vit.get_submodule("blocks").children())
    reductions = ("evit", "tome") if splits else ("patchmerger",)
    with _naming(f"backbone {name!r}", {"reduction": "none", "cla": False, "clc": False}):
        _check_identity(vit, images, {})
    if "evit" in reductions:
        for reduction in ("topk", "evit"):
            settings: dict[str, Any] = {"reduction": reduction, "keep_rate": 1.0}
            with _naming(f"backbone {name!r}", settings):
                _check_identity(vit, images, settings)
    vit, images = vit.double(), images.double()
    for reduction in reductions:
        for modules in (True, False):
            settings = {"reduction": reduction, "keep_rate": 0.5, "cla": modules, "clc": modules}
            with _naming(f"backbone {name!r}", settings), torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                model = reduce_tokens(vit, **settings)
                _check_batch_independence(model.eval(), images)
                _check_gradients(model.train(), images)


def _backbone_of(backbone: str | nn.Module) -> tuple[str, nn.Module]:
    if not isinstance(backbone, str):
        return type(backbone).__name__, copy.deepcopy(backbone).eval()
    source = resolve(backbone)
    check_architecture(source)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return backbone, build_backbone(source, validated(backbone=backbone, cla=False)).eval()


def _random_images(vit: Any) -> Tensor:
    """Four images of the model's image size, on its device and in its precision."""
    like = next(vit.parameters())
    generator = torch.Generator().manual_seed(1)
    return torch.randn(4, vit.in_chans, *vit.patch_embed.img_size, generator=generator).to(like.device, like.dtype)


def _check_identity(vit: nn.Module, images: Tensor, settings: dict[str, Any]) -> None:
    model = reduce_tokens(vit, cla=False, clc=False, **settings).eval()
    with torch.no_grad():
        own, ours = vit(images), model(images)
    _require(torch.isfinite(own).all(), "the outputs of timm's model are not finite")
    _require(torch.equal(own, ours), "the outputs do not equal those of timm's model bit for bit")


def _check_batch_independence(model: nn.Module, images: Tensor) -> None:
    with torch.no_grad():
        together = model(images)
        alone = torch.cat([model(image[None]) for image in images])
    close = torch.allclose(alone, together, rtol=1e-7, atol=1e-9 * float(together.abs().max()))
    _require(close, "an image alone gives a different result than in a batch")


def _check_gradients(model: nn.Module, images: Tensor) -> None:
    model.zero_grad()
    model(images).square().mean().backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            grad = parameter.grad
            _require(grad is not None, f"no gradient reaches the parameter {name}")
            _require(grad is not None and torch.isfinite(grad).all(), f"the gradient of {name} is not finite")


@contextmanager
def _naming(subject: str, settings: dict[str, Any]) -> Iterator[None]:
    """Name the settings in errors."""
    where = f"{subject}, {', '.join(f'{key}={value}' for key, value in settings.items())}"
    try:
        yield
    except AssertionError as failure:
        raise AssertionError(f"{where}: {failure}") from None
    except Exception as error:
        error.add_note(where)
        raise


def _require(condition: bool | Tensor, failure: str) -> None:
    if not bool(condition):
        raise AssertionError(failure)


def _model(name: str, settings: dict[str, Any], grid: int = _GRID) -> TokenReducedViT:
    """A model in double precision and evaluation mode, with attention uneven enough to rank tokens."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = create_model(
            "vit_tiny_patch16_224",
            reduction=name,
            img_size=grid * _PATCH,
            num_classes=_CLASSES,
            **{**_SIZES, **settings},
        )
        with torch.no_grad():
            for parameter in model.blocks.parameters():
                if parameter.ndim > 1:
                    parameter.normal_(std=2 / math.sqrt(parameter.shape[1]))
    return model.double().eval()


def _images(grid: int = _GRID) -> Tensor:
    """Images [4, 3, H, W] that differ enough for a reduction to treat them differently."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(4, 3, grid * _PATCH, grid * _PATCH, generator=generator, dtype=torch.float64)
    images[1] *= 5
    images[2] *= 0.02
    images[3, :, :, :_PATCH] = 0
    return images


def _check_evaluation(name: str, settings: dict[str, Any], grid: int = _GRID) -> None:
    model, images = _model(name, settings, grid), _images(grid)
    with torch.no_grad():
        logits, trace = model.forward_trace(images)
        _require(torch.isfinite(logits).all(), "the outputs are not finite")
        _require(torch.equal(model(images), logits), "the same images give a different result the second time")
        for b in range(len(images)):
            alone, own = model.forward_trace(images[b : b + 1])
            close = torch.allclose(alone[0], logits[b], rtol=1e-7, atol=1e-9)
            _require(close, "an image alone gives a different result than in a batch")
            same = all(torch.equal(one[b], other[0]) for one, other in zip(trace.owner, own.owner, strict=True))
            _require(same, "the owners of an image's patches depend on the other images of the batch")
    prefix, patches = model.num_prefix_tokens, grid * grid
    dropped = torch.zeros(len(images), patches, dtype=torch.bool)
    for owner, tokens in zip(trace.owner, trace.tokens, strict=True):
        _require(torch.as_tensor(tokens).min() > prefix, "no token is left after the prefix")
        _require(owner.shape == dropped.shape, "the owner map has lost its shape: call state.move with [B, N]")
        exists = (owner >= prefix) & (owner < torch.as_tensor(tokens).view(-1, 1))
        _require((exists | (owner == -1)).all(), "a patch is owned by the prefix or by a token that does not exist")
        _require((owner[dropped] == -1).all(), "a patch that was dropped is owned again")
        dropped = owner == -1


def _check_cost(name: str, settings: dict[str, Any]) -> None:
    cls = reduction_class(name)
    if cls is None or not cls.has_cost():
        return
    model = _model(name, settings)
    planned = forward_gmacs(model.config, _CLASSES)
    measured = cost(model, images=_images()).gmacs
    agree = measured <= planned * (1 + 1e-12) if cls.pads else math.isclose(measured, planned, rel_tol=1e-12)
    _require(agree, f"tokens_after and macs give {planned:.9g} GMACs, but {measured:.9g} are measured")


def _check_training(name: str, settings: dict[str, Any]) -> None:
    model, images = _model(name, settings).train(), _images()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        loss = F.cross_entropy(model(images), torch.arange(4) % _CLASSES) + model.auxiliary_loss
    loss.backward()
    for parameter_name, parameter in model.named_parameters():
        finite = parameter.grad is None or torch.isfinite(parameter.grad).all()
        _require(finite, f"the gradient of {parameter_name} is not finite")
    for parameter_name, parameter in model.reductions.named_parameters():
        _require(parameter.grad is not None, f"no gradient reaches its parameter {parameter_name}")


def _check_precisions(name: str, settings: dict[str, Any]) -> None:
    images = _images()
    with torch.no_grad():
        logits = _model(name, settings)(images)
        _require(logits.dtype == torch.float64, "it does not keep double precision")
        single = _model(name, settings).float()
        with torch.autocast("cpu", torch.bfloat16):
            _require(torch.isfinite(single(images.float())).all(), "not finite under bfloat16 autocast")
        logits = single.bfloat16()(images.bfloat16())
        _require(logits.dtype == torch.bfloat16, "it does not keep bfloat16: return tokens of the dtype of x")
        _require(torch.isfinite(logits).all(), "not finite in bfloat16")


def _check_run_time(name: str, settings: dict[str, Any]) -> None:
    model, images = _model(name, settings), _images()
    cls = reduction_class(name)
    assert cls is not None
    kept: list[int] = []
    for rate in (0.9, 0.5, 0.2):
        built = _model(name, {**settings, "keep_rate": rate})
        with torch.no_grad():
            logits, trace = built.forward_trace(images)
            if not cls.fixed_counts:
                model.keep_rate = rate
                again = model(images)
                _require(
                    torch.equal(again, logits),
                    "a keep rate set at run time gives a different result than one set at construction",
                )
        kept.append(int(torch.as_tensor(trace.tokens[model.locations[0]]).max()))
    _require(kept == sorted(kept, reverse=True), f"lower keep rates keep more tokens: {kept} at 0.9, 0.5 and 0.2")
