"""Small random models in pairs: the package's and the plain reference's, from one state dict in the published names."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import timm
import torch
from plain_reductions import Settings
from plain_reference import PlainViT
from torch import Tensor

import clca

# timm name and further arguments; together: one or several prefix tokens, tables with and without prefix rows,
# LayerScale, pre-norm, q/k-norm, either pooling.
BACKBONES: dict[str, tuple[str, dict[str, Any]]] = {
    "deit": ("deit_tiny_patch16_224", {}),
    "deit3": ("deit3_small_patch16_224", {}),
    "clip": ("vit_base_patch16_clip_224", {}),
    "distilled": ("deit_tiny_distilled_patch16_224", {}),
    "registers": ("vit_small_patch14_reg4_dinov2", {}),
    "registers_in_table": ("vit_tiny_patch16_224", {"reg_tokens": 2}),
    "average": ("vit_tiny_patch16_224", {"qk_norm": True, "global_pool": "avg", "init_values": 0.1}),
}
CLASSES = 7
PATCH = 4


@dataclass
class Pair:
    """The same weights twice, and images that fit."""

    model: clca.TokenReducedViT
    reference: PlainViT
    state: dict[str, Tensor]
    images: Tensor


def make_pair(
    style: str = "deit",
    *,
    grid: int | tuple[int, int] = 4,
    depth: int = 6,
    locations: tuple[int, ...] = (1, 3, 4),
    images: int = 2,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    by_name: bool = False,
    **settings: Any,
) -> Pair:
    """Build both models with random weights that make attention uneven, so that rankings are far from ties.

    Args:
        style: Key of `BACKBONES`.
        grid: Patches a side, or down and across.
        depth: Number of blocks.
        locations: Reduction blocks.
        images: How many random images to draw.
        seed: Of weights and images.
        dtype: Of the package's model; the reference always computes in double precision.
        by_name: Through `clca.create_model`, which checks the name first, instead of `clca.reduce_tokens`.
        **settings: Further fields of `Settings`.
    """
    backbone, extra = BACKBONES[style]
    kwargs = {"patch_size": PATCH, "embed_dim": 24, "num_heads": 3, "depth": depth, **extra}
    rows, columns = (grid, grid) if isinstance(grid, int) else grid
    size = (PATCH * rows, PATCH * columns)
    vit = timm.create_model(backbone, img_size=size, num_classes=CLASSES, **kwargs)
    plain = Settings(
        num_heads=3,
        locations=locations,
        norm_eps=vit.blocks[0].norm1.eps,
        pool=vit.global_pool,
        **settings,
    )
    state = random_state(vit, plain, torch.Generator().manual_seed(seed))
    # The reference reads only what the carriers of this setting need.
    reference = PlainViT({name: tensor.clone() for name, tensor in state.items()}, plain)
    arguments = {"num_classes": CLASSES, "locations": list(locations), **as_arguments(settings)}
    if by_name:
        model = clca.create_model(backbone, img_size=size, **arguments, **kwargs)
    else:
        model = clca.reduce_tokens(vit, **arguments)
    model = model.to(dtype)
    clca.load_published(model, state)
    pixels = torch.randn(images, 3, *size, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64)
    return Pair(model.eval(), reference, state, pixels)


def as_arguments(settings: dict[str, Any]) -> dict[str, Any]:
    """`Settings` fields as `clca.create_model` takes them: a tuple of rates becomes a list."""
    rates = settings.get("keep_rate", 1.0)
    return {**settings, "keep_rate": list(rates) if isinstance(rates, tuple) else rates}


def random_state(vit: torch.nn.Module, settings: Settings, generator: torch.Generator) -> dict[str, Tensor]:
    """A state dict in the published names for this backbone and these settings, in double precision."""
    width, patches = vit.embed_dim, vit.patch_embed.num_patches
    shapes = {name: tuple(tensor.shape) for name, tensor in vit.state_dict().items()}
    num_clr = settings.num_clr if settings.clc else 0
    if num_clr:
        shapes["clr"] = (1, num_clr, width)
        if shapes["pos_embed"][1] > patches:
            shapes["pos_embed"] = (1, shapes["pos_embed"][1] + num_clr, width)
    if settings.cla:
        shapes = {n: s for n, s in shapes.items() if not n.startswith(("norm.", "fc_norm.", "head.", "head_dist."))}
        shapes |= {"head.weight": (1000, width), "head.bias": (1000,)}
        groups = len(settings.locations) + 1
        for name, features in (("0", width), ("2", 2 * width)):
            for part in ("weight", "bias", "running_mean", "running_var"):
                shapes[f"ifa_head.0.{name}.{part}"] = (features,)
            shapes[f"ifa_head.0.{name}.num_batches_tracked"] = ()
        shapes |= {"ifa_head.0.1.weight": (2 * width, 1, groups), "ifa_head.0.1.bias": (2 * width,)}
        shapes |= {"ifa_head.0.4.weight": (CLASSES, 2 * width, 1), "ifa_head.0.4.bias": (CLASSES,)}
    for j in range(len(settings.locations)):
        shapes |= reduction_shapes(j, settings, width, max(1, math.floor(patches * settings.cumulative(j))))
    return {name: random_tensor(name, shape, generator) for name, shape in shapes.items()}


def reduction_shapes(j: int, settings: Settings, width: int, count: int) -> dict[str, tuple[int, ...]]:
    """What the reduction of location j learns."""
    layers: dict[str, tuple[int, int]] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    if settings.reduction == "dynamicvit":
        name, norm = f"score_predictor.{j}.", "in_conv.0"
        layers = {"in_conv.1": (width, width), "out_conv.0": (width // 2, width)}
        layers |= {"out_conv.2": (width // 4, width // 2), "out_conv.4": (2, width // 4)}
    elif settings.reduction == "patchmerger":
        name, norm = f"cluster_layers.{j}.", "norm"
        shapes[name + "queries"] = (count, width)
    elif settings.reduction == "sit":
        name, norm = f"cluster_layers.{j}.", "weight.0"
        layers = {"weight.1": (width // 2, width), "weight.3": (count, width // 2)}
        shapes[name + "scale"] = (1, 1, 1)
    elif settings.reduction == "dpcknn":
        return {f"cluster_layers.{j}.score.weight": (1, width), f"cluster_layers.{j}.score.bias": (1,)}
    else:
        return {}
    shapes |= {f"{name}{norm}.weight": (width,), f"{name}{norm}.bias": (width,)}
    for layer, (outputs, inputs) in layers.items():
        shapes |= {f"{name}{layer}.weight": (outputs, inputs), f"{name}{layer}.bias": (outputs,)}
    return shapes


def random_tensor(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Values of a sensible size for the parameter of this name."""
    if name.endswith("num_batches_tracked"):
        return torch.tensor(3)
    noise = torch.randn(shape, generator=generator, dtype=torch.float64)
    if name.endswith(("running_var", "gamma")):
        return 0.3 + noise.abs()
    if name.endswith("scale") or (name.endswith("weight") and len(shape) == 1):
        return 1 + 0.3 * noise
    if name.endswith(("bias", "running_mean")):
        return 0.2 * noise
    if name.endswith("weight"):
        sharper = 2.0 if "qkv" in name else 1.0
        return sharper * noise / math.sqrt(math.prod(shape[1:]))
    return 0.5 * noise
