"""A model in a folder or on the Hugging Face hub: `config.json` and `model.safetensors`."""

from __future__ import annotations

import json
import os
import tempfile
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from clca.errors import ClcaError, WorkError, reason
from clca.models.backbones import PAPER_BACKBONES
from clca.models.config import ModelConfig
from clca.models.factory import build
from clca.models.limits import LARGEST_STORED_SIDE, MOST_PATCHES
from clca.models.stored_model import check_classes, check_preprocess, check_storable, stored_config
from clca.models.token_reduced_vit import TokenReducedViT
from clca.models.weight_headers import TensorHeader, check_memory
from clca.models.weights import differences, load_strict, read_header, read_state_dict
from clca.reductions.registry import SHIPPED
from clca.system.files import MOST_BYTES, parse_json, read_bounded
from clca.system.paths import expanded

CONFIG, WEIGHTS = "config.json", "model.safetensors"


def save_pretrained(model: TokenReducedViT, folder: str | Path, *, checked: bool = False) -> None:
    """Write a model so that `from_pretrained` gives it back.

    Args:
        model: What to save, with its `classes` and `preprocess`.
        folder: Made if it is missing, `~` is the home folder; other entries of its `config.json` are kept.
        checked: Whether this very model was saved before and nothing but the values of its parameters has changed: then
            none is made to compare it with, which takes longer than a small one takes to write.

    Raises:
        ClcaError: If the model was not made by name and cannot be made again, has become another since it was made
            (a block removed, another head), `classes` does not name each of its outputs, or the folder cannot
            be written.
        WorkError: If writing fails half-way (a full disk); what was there before is then whole.
    """
    folder = expanded(folder)
    config = _as_json(model)
    state = model.state_dict()
    if not checked:
        _check_can_be_made(model.config, state)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        content = _read_config(folder / CONFIG) if (folder / CONFIG).is_file() else {}
        content |= {"format": "clca", **config}
        written = json.dumps(content, indent=2, allow_nan=False) + "\n"
        if len(written) > MOST_BYTES:
            raise ClcaError(f"{folder / CONFIG} would be larger than {MOST_BYTES / 2**20:g} MiB: shorten the classes")
        tensors = _apart(state)
        # Both are written before either takes its place: a full disk leaves the old pair as it was.
        with _beside(folder / WEIGHTS) as weights, _beside(folder / CONFIG) as text:
            save_file(tensors, weights, metadata={"format": "pt"})
            text.write_text(written, encoding="utf-8")
    except (PermissionError, FileExistsError, NotADirectoryError) as error:
        raise ClcaError(f"{folder} cannot be written: {reason(error)}") from None
    except (OSError, SafetensorError) as error:
        raise WorkError(f"{folder} could not be written: {reason(error)}") from None


def _as_json(model: TokenReducedViT) -> dict[str, Any]:
    """The entries of `config.json` that describe a model, in JSON's types."""
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


def _check_can_be_made(config: ModelConfig, state: dict[str, Tensor]) -> None:
    """Refuse to save what `from_pretrained` would refuse to load: then the model is gone."""
    again = _on_meta(config)
    if again.config.reduction != config.reduction:
        return
    if max(again.patch_embed.img_size) > LARGEST_STORED_SIDE or again.patch_embed.num_patches > MOST_PATCHES:
        raise ClcaError(f"images of more than {LARGEST_STORED_SIDE} pixels or {MOST_PATCHES} patches cannot be stored")
    found = differences(again.state_dict(), state)
    if found:
        raise ClcaError(f"the model is no longer what its settings make, and could not be loaded again: {found}")


def _apart(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors on the CPU, each in memory of its own as the format asks: layers may share a parameter."""
    tensors: dict[str, Tensor] = {}
    taken: set[int] = set()
    for name, value in state.items():
        value = value.detach().cpu().contiguous()
        place = value.untyped_storage().data_ptr()
        tensors[name] = value.clone() if place in taken else value
        taken.add(place)
    return tensors


def from_pretrained(
    folder_or_hub_id: str | Path, *, revision: str | None = None, token: str | bool | None = None
) -> TokenReducedViT:
    """The model in a folder that `clca train` or `save_pretrained` wrote, or on the hub, in evaluation mode.

    Args:
        folder_or_hub_id: The folder, `~` being the home folder; or the name on the hub, as `user/leaves`.
        revision: Branch, tag or commit on the hub; None for its main branch.
        token: For a private model: the token, or False for none even where one is stored; None for the stored one.

    Raises:
        ClcaError: If there is none, its files do not belong together, or a revision is asked of a folder.
    """
    folder = expanded(folder_or_hub_id)
    if not folder.is_dir():
        folder = _fetch(str(folder_or_hub_id), revision, token)
    elif revision is not None:
        raise ClcaError(f"{folder} is a folder here, which has no revision {revision!r}: leave the revision out")
    config_file, weights_file = folder / CONFIG, folder / WEIGHTS
    for file in (config_file, weights_file):
        if not file.is_file():
            raise ClcaError(f"{folder} is not a finished run or saved model: it has no {file.name}")
    content = _read_config(config_file)
    config = stored_config(content.get("model"), str(config_file))
    header = read_header(weights_file)
    try:
        described = _check_belongs(config, header, content, config_file, weights_file)
        model = _allocated(described) if described.config.reduction == config.reduction else build(config)
        load_strict(model, read_state_dict(weights_file), str(weights_file))
    except MemoryError:
        raise ClcaError(f"{folder}: this machine has not the memory for the model") from None
    model.classes, model.preprocess = content.get("classes"), content.get("preprocess")
    return model.eval()


def _check_belongs(
    config: ModelConfig, header: dict[str, TensorHeader], content: dict[str, Any], config_file: Path, weights_file: Path
) -> TokenReducedViT:
    """Compare a `config.json` with the header of a weights file, before memory is taken for either.

    Returns:
        The model that it describes, on the meta device.

    Raises:
        ClcaError: They are not of one model, or the model is beyond all use or what this machine holds.
    """
    try:
        model = _on_meta(config)
    except ClcaError as error:
        raise ClcaError(f"{config_file}: {error}") from None
    side = max(model.patch_embed.img_size)
    if side > LARGEST_STORED_SIDE or model.patch_embed.num_patches > MOST_PATCHES:
        found = f"{side} pixels and {model.patch_embed.num_patches} patches"
        raise ClcaError(f"{config_file}: images of {found}: at most {LARGEST_STORED_SIDE} and {MOST_PATCHES}")
    own: dict[str, Tensor] = model.state_dict()
    compared: dict[str, TensorHeader] = header
    if model.config.reduction != config.reduction:  # one that cannot be made without memory; it is compared later
        compared = {name: value for name, value in header.items() if not name.startswith("reductions.")}
    if found := differences(own, compared):
        raise ClcaError(f"{weights_file} is of another model: {found}")
    check_memory(header, str(weights_file))
    check_classes(content.get("classes"), model.num_classes, str(config_file))
    check_preprocess(content.get("preprocess"), side, str(config_file))
    return model


def _allocated(described: TokenReducedViT) -> TokenReducedViT:
    """The model with memory of its own in place of the meta device, all of which a state dict is going to fill.

    To draw weights that are then overwritten takes most of the time of making a model. What holds a tensor that no
    state dict has, as a reduction of a plug-in may, is made anew instead.
    """
    filled = described.state_dict().keys()
    tensors = (*described.named_parameters(remove_duplicate=False), *described.named_buffers(remove_duplicate=False))
    others = [
        name
        for module in described.modules()
        for name, value in vars(module).items()
        if isinstance(value, Tensor) and name != "auxiliary_loss"
    ]
    if others or any(name not in filled for name, _ in tensors):
        return build(described.config)
    model = described.to_empty(device=torch.get_default_device())
    model.auxiliary_loss = torch.zeros(())
    return model


def _on_meta(config: ModelConfig) -> TokenReducedViT:
    """A model of which nothing is allocated or drawn; without its reduction where that, of a plug-in, computes."""
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


def push_to_hub(model: TokenReducedViT, repo_id: str, *, private: bool = False, token: str | None = None) -> str:
    """Upload a model to the Hugging Face hub; returns the address of the commit."""
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    api.create_repo(repo_id, private=private, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(model, folder)
        return str(api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="Add a clca model"))


def _fetch(hub_id: str, revision: str | None, token: str | bool | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        folder = snapshot_download(hub_id, revision=revision, token=token, allow_patterns=[CONFIG, WEIGHTS])
    except HFValidationError:
        raise ClcaError(f"no run or saved model at {hub_id}") from None
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        name = hub_id if revision is None else f"{hub_id} (revision {revision})"
        # The hub answers in the same way for a private model and for none.
        hint = ", or for a private model the token" if isinstance(error, RepositoryNotFoundError) else ""
        raise ClcaError(
            f"{name} is neither a folder here nor a model that the hub gave ({type(error).__name__}): "
            f"check the path{hint}"
        ) from None
    return Path(folder)


@contextmanager
def _beside(target: Path) -> Iterator[Path]:
    """A file to write beside the target, which takes its place at once, so that a reader never sees half a file."""
    beside = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
    beside.touch(exist_ok=False)
    mode = beside.stat().st_mode & 0o777  # as the user's umask has it; safetensors writes files for the owner only
    try:
        yield beside
        os.chmod(beside, mode)
        os.replace(beside, target)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def _read_config(file: Path) -> dict[str, Any]:
    try:
        content = parse_json(read_bounded(file))
    except (OSError, ValueError) as error:
        raise ClcaError(f"{file} is not a JSON file: {reason(error)}") from None
    if not isinstance(content, dict):
        raise ClcaError(f"{file} does not hold settings by name")
    return content
