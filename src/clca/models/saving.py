"""Write a model to a folder, `config.json` and `model.safetensors`, or push it to the Hugging Face hub."""

from __future__ import annotations

import json
import tempfile
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from clca.errors import ClcaError, WorkError, reason
from clca.models.backbones import PAPER_BACKBONES, build_backbone, resolve
from clca.models.confidence import CONFIDENCE, Confidences
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
    """Methods to save a model that is built from a backbone and a `ModelConfig`."""

    config: ModelConfig
    num_classes: int
    classes: list[str] | None
    preprocess: dict[str, Any] | None
    confidence: Confidences | None
    patch_embed: Any

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the files that `clca.from_pretrained` loads into the folder."""
        save_pretrained(self, folder)

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> str:
        """Upload the files of `save_pretrained` to the Hugging Face hub; returns the URL."""
        return push_to_hub(self, repo_id, **kwargs)


def save_pretrained(model: SavingMixin, folder: str | Path, *, checked: bool = False) -> None:
    """Write a model so that `from_pretrained` can load it.

    Args:
        model: The model, with its `classes` and `preprocess`.
        folder: Created if it does not exist, `~` is the home folder; other content of its `config.json` is kept.
        checked: Skip the check that the model can be built from its settings: it was saved before, and since then only
            the values of its parameters have changed.

    Raises:
        ClcaError: The model cannot be built again by name, was modified after it was built (a block removed, the head
            replaced), `classes` does not match its outputs, or the folder cannot be written.
        WorkError: Writing failed, for example on a full disk; previous files are intact.
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
        # Both are written before either is replaced, so that a full disk leaves the old pair intact.
        with ExitStack() as files:
            if model.confidence is not None:
                model.confidence.save(files.enter_context(temporary_beside(folder / CONFIDENCE)))
            weights, text = (files.enter_context(temporary_beside(folder / name)) for name in (WEIGHTS, CONFIG))
            save_file(tensors, weights, metadata={"format": "pt"})
            text.write_text(written, encoding="utf-8")
        if model.confidence is None:  # one that is there was set for other weights
            (folder / CONFIDENCE).unlink(missing_ok=True)
    except (PermissionError, FileExistsError, NotADirectoryError) as error:
        raise ClcaError(f"{folder} cannot be written: {reason(error)}") from None
    except (OSError, SafetensorError) as error:
        raise WorkError(f"{folder} could not be written: {reason(error)}") from None


def _as_json(model: SavingMixin) -> dict[str, Any]:
    """The content of `config.json` for a model, in types of JSON."""
    check_classes(model.classes, model.num_classes, "the model")
    try:
        config = json.loads(model.config.model_dump_json())
    except (ValueError, TypeError) as error:
        raise ClcaError(f"the backbone's settings cannot be saved as JSON: {error}") from None
    if not timm.is_model(config["backbone"].partition(".")[0]) and config["backbone"] not in PAPER_BACKBONES:
        raise ClcaError(f"{config['backbone']} was not created by timm.create_model and cannot be built again by name")
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
    """Refuse to save a model that `from_pretrained` could not load."""

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
        raise ClcaError(f"the model no longer matches its settings and could not be loaded again: {found}")


def on_meta(build: Callable[[ModelConfig], Model], config: ModelConfig) -> Model:
    """Build a model without allocating or initializing its tensors.

    A reduction of a plug-in that computes with values cannot be built like that and is omitted: the model then has
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
    seen: set[int] = set()
    for name, value in state.items():
        value = value.detach().cpu().contiguous()
        address = value.untyped_storage().data_ptr()
        tensors[name] = value.clone() if address in seen else value
        seen.add(address)
    return tensors


def push_to_hub(model: SavingMixin, repo_id: str, *, private: bool = False, token: str | None = None) -> str:
    """Upload a model to the Hugging Face hub; returns the URL of the commit."""
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    api.create_repo(repo_id, private=private, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(model, folder)
        return str(api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="Add a clca model"))
