"""Reading the golden vectors: tensors that the authors' published program produced, one case a file."""

from __future__ import annotations

import copy
import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

import clca

BACKBONES = {
    "deit": "deit_tiny_patch16_224",
    "deit3": "deit3_small_patch16_224",
    "clip": "vit_base_patch16_clip_224",
}


@dataclass
class Golden:
    """One file: the case, the state dict in the published names, and what the program gave for it."""

    case: dict[str, Any]
    state: dict[str, Tensor]
    gradients: dict[str, Tensor]
    images: Tensor
    target: Tensor
    logits: Tensor

    @property
    def tokens(self) -> list[list[int]]:
        """Tokens after each block, one list an image."""
        tokens = self.case["tokens_per_block"]
        return tokens if isinstance(tokens[0], list) else [tokens] * len(self.images)


def read_golden(file: Path) -> Golden:
    """Read one file; tensors stored in half precision come back in single."""
    with safe_open(file, "pt") as stored:
        case = json.loads(stored.metadata()["case"])
        tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 - safe_open is no mapping
    tensors = {name: t.float() if t.is_floating_point() else t for name, t in tensors.items()}

    def under(prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}

    return Golden(case, under("state/"), under("grad/"), tensors["input"], tensors["target"], tensors["logits"])


def build_golden(golden: Golden) -> clca.TokenReducedViT:
    """The case's model through the public API, with the case's weights, in evaluation mode."""
    model = copy.deepcopy(_empty(json.dumps(golden.case)))
    clca.load_published(model, golden.state)
    return model.eval()


@functools.lru_cache(maxsize=2)
def _empty(text: str) -> clca.TokenReducedViT:
    case = json.loads(text)
    return clca.create_model(
        BACKBONES[case["style"]],
        num_classes=case["num_classes"],
        img_size=case["img_size"],
        reduction=case["reduction"],
        keep_rate=case["keep_rate"],
        locations=case["reduction_loc"],
        cla=case["cla"],
        clc=case["clc"],
        num_clr=case["num_clr"],
        clc_gap=case["clc_gap"],
        clc_recover_at_last=case["clc_recover_at_last"],
        embed_dim=case["embed_dim"],
        num_heads=case["num_heads"],
        depth=case["depth"],
    )


def published_gradient(model: nn.Module, state: dict[str, Tensor], name: str) -> Tensor:
    """The gradient of the parameter that the published program calls `name`, in its shape.

    Parameters are found by their values, which are random and so tell them apart: a wrong mapping in `load_published`
    cannot hide behind the same wrong mapping here. Only the position table is split: CLR has its own rows.
    """
    if name == "pos_embed" and getattr(model, "clr_pos_embed", None) is not None:
        named = dict(model.named_parameters())
        backbone = next(p for n, p in named.items() if n.endswith("pos_embed") and not n.endswith("clr_pos_embed"))
        return torch.cat([_gradient(backbone), _gradient(model.clr_pos_embed)], dim=1)
    wanted = state[name]
    found = [
        parameter
        for parameter in model.parameters()
        if parameter.numel() == wanted.numel()
        and torch.equal(parameter.detach().flatten(), wanted.flatten().to(parameter.dtype))
    ]
    assert len(found) == 1, f"{len(found)} parameters hold the values of {name}"
    return _gradient(found[0]).reshape(wanted.shape)


def _gradient(parameter: Tensor) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
