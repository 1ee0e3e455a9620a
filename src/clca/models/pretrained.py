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
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from clca.errors import ClcaError, WorkError, reason
from clca.models.backbones import PAPER_BACKBONES
from clca.models.config import ModelConfig
from clca.models.factory import OF_THIS_MACHINE, build
from clca.models.token_reduced_vit import TokenReducedViT
from clca.models.weights import differences, load_strict, read_state_dict
from clca.system.paths import expanded
from clca.system.settings import explain

CONFIG, WEIGHTS = "config.json", "model.safetensors"


def save_pretrained(model: TokenReducedViT, folder: str | Path, *, checked: bool = False) -> None:
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
        _check_can_be_made(model.config, state)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        content = _read_config(folder / CONFIG) if (folder / CONFIG).is_file() else {}
        content |= {"format": "clca", **config}
        tensors = _apart(state)
        # Both are written before either takes its place: a full disk leaves the old pair as it was.
        with _beside(folder / WEIGHTS) as weights, _beside(folder / CONFIG) as text:
            save_file(tensors, weights, metadata={"format": "pt"})
            text.write_text(json.dumps(content, indent=2) + "\n")
    except (PermissionError, FileExistsError, NotADirectoryError) as error:
        raise ClcaError(f"{folder} cannot be written: {reason(error)}") from None
    except (OSError, SafetensorError) as error:
        raise WorkError(f"{folder} could not be written: {reason(error)}") from None


def _as_json(model: TokenReducedViT) -> dict[str, Any]:
    """What `config.json` says of a model, in JSON's types."""
    _check_classes(model, "the model")
    try:
        config = json.loads(model.config.model_dump_json())
    except (ValueError, TypeError) as error:
        raise ClcaError(f"the backbone's settings cannot be saved as JSON: {error}") from None
    if not timm.is_model(config["backbone"].partition(".")[0]) and config["backbone"] not in PAPER_BACKBONES:
        raise ClcaError(f"{config['backbone']} was not made by timm.create_model and could not be made again by name")
    try:
        return json.loads(json.dumps({"model": config, "classes": model.classes, "preprocess": model.preprocess}))
    except (ValueError, TypeError) as error:
        raise ClcaError(f"the model's classes or preprocess cannot be saved as JSON: {error}") from None


def _check_can_be_made(config: ModelConfig, state: dict[str, Tensor]) -> None:
    """Refuse to save what `from_pretrained` would refuse to load: then the model is gone."""
    with torch.device("meta"), warnings.catch_warnings():  # where nothing is allocated or drawn
        warnings.simplefilter("ignore")
        try:
            again = build(config).state_dict()
        except ClcaError:
            raise
        except Exception:  # a reduction of one's own may compute what this device cannot
            return
    found = differences(again, state)
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
    if not isinstance(content.get("model"), dict):
        raise ClcaError(f"{config_file} does not describe a clca model: it has no settings under 'model'")
    try:
        config = ModelConfig(**content["model"])
    except ValidationError as error:
        raise ClcaError(f"{config_file}: {explain(error, ModelConfig)}") from None
    # `save_pretrained` writes none of these; a file by other hands would have no weights, on the device "meta".
    kwargs = {k: v for k, v in config.backbone_kwargs.items() if k not in OF_THIS_MACHINE}
    model = build(config.model_copy(update={"backbone_kwargs": kwargs}))
    load_strict(model, read_state_dict(weights_file), str(weights_file))
    model.classes, model.preprocess = content.get("classes"), content.get("preprocess")
    _check_classes(model, str(config_file))
    return model.eval()


def _check_classes(model: TokenReducedViT, where: str) -> None:
    """Refuse names of classes that are not one for each of the model's outputs; a model need not name them."""
    classes = model.classes
    if classes is None:
        return
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise ClcaError(f"{where}: classes must be a list of names, not {str(classes)[:60]!r}")
    if len(classes) != model.num_classes:
        found = f"classes has {len(classes)} names and the model {model.num_classes} outputs"
        raise ClcaError(f"{where}: {found}; name each output once")


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
        # The hub does not tell a private model from none.
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
    mode = beside.stat().st_mode & 0o777  # whom the user lets read new files; safetensors lets nobody else
    try:
        yield beside
        os.chmod(beside, mode)
        os.replace(beside, target)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def _read_config(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # RecursionError: a stranger's, nested without an end
        raise ClcaError(f"{file} is not a JSON file: {error}") from None
    if not isinstance(content, dict):
        raise ClcaError(f"{file} does not hold settings by name")
    return content
