"""Write a model to a folder, `config.json` and `model.safetensors`, or push it to the Hugging Face hub."""

from __future__ import annotations

import json
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from clca.errors import ClcaError, WorkError, reason
from clca.models.backbones import PAPER_BACKBONES, build_backbone, resolve
from clca.models.config import ModelConfig
from clca.models.limits import LARGEST_STORED_SIDE, MOST_PATCHES
from clca.models.stored_model import check_classes, check_preprocess, check_storable, read_config
from clca.models.weights import differences
from clca.reductions.registry import SHIPPED
from clca.system.files import MOST_BYTES, temporary_beside
from clca.system.paths import expanded

CONFIG, WEIGHTS = "config.json", "model.safetensors"
Model = TypeVar("Model", bound=nn.Module)


class SavingMixin(nn.Module):
    """Methods that save a model which is made from a backbone and a `ModelConfig`."""

    config: ModelConfig
    num_classes: int
    classes: list[str] | None
    preprocess: dict[str, Any] | None
    patch_embed: Any

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `config.json` and `model.safetensors` into the folder; see `clca.from_pretrained`."""
        save_pretrained(self, folder)

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> str:
        """Upload to the Hugging Face hub what `save_pretrained` writes; returns the address."""
        return push_to_hub(self, repo_id, **kwargs)


def save_pretrained(model: SavingMixin, folder: str | Path, *, checked: bool = False) -> None:
    """Write a model so that `from_pretrained` gives it back.

    Args:
        model: What to save, with its `classes` and `preprocess`.
        folder: Made if it is missing, `~` is the home folder; what else its `config.json` says is kept.
        checked: Whether this very model was saved before and nothing but the values of its parameters has changed: then
            none is made to compare it with, which takes longer than a small one takes to write.

    Raises:
        ClcaError: If the model was not made by name and cannot be made again, has become another since it was made
            (a block taken out, a head of one's own), `classes` does not name each of its outputs, or the folder cannot
            be written.
        WorkError: If writing fails half-way (a full disk); what was there before is then whole.
    """
    folder = expanded(folder)
    config = _as_json(model)
    state = model.state_dict()
    if not checked:
        _check_can_be_made(model, state)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        content = read_config(folder / CONFIG) if (folder / CONFIG).is_file() else {}
        content |= {"format": "clca", **config}
        written = json.dumps(content, indent=2, allow_nan=False) + "\n"
        if len(written) > MOST_BYTES:
            raise ClcaError(f"{folder / CONFIG} would be larger than {MOST_BYTES / 2**20:g} MiB: shorten the classes")
        tensors = _separate(state)
        # Both are written before either takes its place: a full disk leaves the old pair as it was.
        with temporary_beside(folder / WEIGHTS) as weights, temporary_beside(folder / CONFIG) as text:
            save_file(tensors, weights, metadata={"format": "pt"})
            text.write_text(written, encoding="utf-8")
    except (PermissionError, FileExistsError, NotADirectoryError) as error:
        raise ClcaError(f"{folder} cannot be written: {reason(error)}") from None
    except (OSError, SafetensorError) as error:
        raise WorkError(f"{folder} could not be written: {reason(error)}") from None


def _as_json(model: SavingMixin) -> dict[str, Any]:
    """What `config.json` says of a model, in JSON's types."""
    check_classes(model.classes, model.num_classes, "the model")
    try:
        config = json.loads(model.config.model_dump_json())
    except (ValueError, TypeError) as error:
        raise ClcaError(f"the backbone's settings cannot be saved as JSON: {error}") from None
    if not timm.is_model(config["backbone"].partition(".")[0]) and config["backbone"] not in PAPER_BACKBONES:
        raise ClcaError(f"{config['backbone']} was not made by timm.create_model and could not be made again by name")
    check_storable(ModelConfig(**config), "the model")
    try:
        content = json.loads(
            json.dumps({"model": config, "classes": model.classes, "preprocess": model.preprocess}, allow_nan=False)
        )
    except (ValueError, TypeError) as error:
        raise ClcaError(f"the model's classes or preprocess cannot be saved as JSON: {error}") from None
    check_preprocess(content["preprocess"], max(model.patch_embed.img_size), "the model")
    return content


def _check_can_be_made(model: SavingMixin, state: dict[str, Tensor]) -> None:
    """Refuse to save what `from_pretrained` would refuse to load: then the model would be lost."""

    def build(config: ModelConfig) -> nn.Module:
        make: Callable[[nn.Module, ModelConfig], nn.Module] = type(model)
        return make(build_backbone(resolve(config.backbone), config), config)

    again: Any = on_meta(build, model.config)
    if again.config.reduction != model.config.reduction:
        return
    if max(again.patch_embed.img_size) > LARGEST_STORED_SIDE or again.patch_embed.num_patches > MOST_PATCHES:
        raise ClcaError(f"images of more than {LARGEST_STORED_SIDE} pixels or {MOST_PATCHES} patches cannot be stored")
    found = differences(again.state_dict(), state)
    if found:
        raise ClcaError(f"the model is no longer what its settings make, and could not be loaded again: {found}")


def on_meta(build: Callable[[ModelConfig], Model], config: ModelConfig) -> Model:
    """Build a model without allocating or initializing its tensors.

    A plug-in's reduction that computes with values cannot be built like that and is left out: the model then has
    reduction "none".
    """
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return build(config)
        except ClcaError:
            raise
        except Exception:
            if config.reduction in (*SHIPPED, "none"):
                raise
            return build(config.model_copy(update={"reduction": "none", "keep_rate": 1.0}))


def _separate(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies on the CPU that share no memory, as the file format requires: layers may share a parameter."""
    tensors: dict[str, Tensor] = {}
    taken: set[int] = set()
    for name, value in state.items():
        value = value.detach().cpu().contiguous()
        place = value.untyped_storage().data_ptr()
        tensors[name] = value.clone() if place in taken else value
        taken.add(place)
    return tensors


def push_to_hub(model: SavingMixin, repo_id: str, *, private: bool = False, token: str | None = None) -> str:
    """Upload a model to the Hugging Face hub; returns the address of the commit."""
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    api.create_repo(repo_id, private=private, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(model, folder)
        return str(api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="Add a clca model"))
