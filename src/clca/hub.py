"""A model in a folder or on the Hugging Face hub: `config.json` and `model.safetensors`."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from safetensors.torch import save_file

from clca.config import ModelConfig, one_line
from clca.errors import ClcaError
from clca.factory import build
from clca.model import TokenReducedViT
from clca.weights import _load_strict, read_state_dict

CONFIG, WEIGHTS = "config.json", "model.safetensors"


def save_pretrained(model: TokenReducedViT, folder: str | Path) -> None:
    """Write a model so that `from_pretrained` gives it back.

    Args:
        model: What to save, with its `classes` and `preprocess`.
        folder: Made if it is missing; what else its `config.json` says is kept.

    Raises:
        ClcaError: If the model was not made by name and cannot be made again, or the folder cannot be written.
    """
    folder = Path(folder)
    try:
        config = json.loads(model.config.model_dump_json())
    except (ValueError, TypeError) as error:
        raise ClcaError(f"the backbone's settings cannot be saved as JSON: {error}") from None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / CONFIG
        content = json.loads(file.read_text()) if file.is_file() else {}
        content |= {"format": "clca", "model": config, "classes": model.classes, "preprocess": model.preprocess}
        tensors = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
        _replace(folder / WEIGHTS, lambda path: save_file(tensors, path, metadata={"format": "pt"}))
        _replace(file, lambda path: Path(path).write_text(json.dumps(content, indent=2) + "\n"))
    except OSError as error:
        raise ClcaError(f"{folder} cannot be written: {error.strerror or error}") from None


def from_pretrained(folder_or_hub_id: str | Path) -> TokenReducedViT:
    """The model in a folder that `clca train` or `save_pretrained` wrote, or on the hub, in evaluation mode.

    Raises:
        ClcaError: If there is none, or its files do not belong together.
    """
    folder = Path(folder_or_hub_id)
    if not folder.is_dir():
        folder = _fetch(str(folder_or_hub_id))
    config_file, weights_file = folder / CONFIG, folder / WEIGHTS
    for file in (config_file, weights_file):
        if not file.is_file():
            raise ClcaError(f"{folder} is not a finished run or saved model: it has no {file.name}")
    try:
        content = json.loads(config_file.read_text())
        config = ModelConfig(**content["model"])
    except ValidationError as error:
        raise ClcaError(f"{config_file}: {one_line(error)}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise ClcaError(f"{config_file} does not describe a clca model ({type(error).__name__}: {error})") from None
    model = build(config)
    _load_strict(model, read_state_dict(weights_file), str(weights_file))
    model.classes, model.preprocess = content.get("classes"), content.get("preprocess")
    return model.eval()


def push_to_hub(model: TokenReducedViT, repo_id: str, *, private: bool = False, token: str | None = None) -> str:
    """Upload a model to the Hugging Face hub; returns the address of the commit."""
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    api.create_repo(repo_id, private=private, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(model, folder)
        return str(api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="Add a clca model"))


def _fetch(hub_id: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(hub_id, allow_patterns=[CONFIG, WEIGHTS]))
    except HFValidationError:
        raise ClcaError(f"no run or saved model at {hub_id}") from None
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ClcaError(
            f"{hub_id} is neither a folder here nor a model that the hub gave ({type(error).__name__}): check the path"
        ) from None


def _replace(target: Path, write: Any) -> None:
    """Write beside the target, then take its place at once, so that a reader never sees half a file."""
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    os.close(handle)
    try:
        write(temporary)
        os.chmod(temporary, 0o644)
        os.replace(temporary, target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def describe(folder: str | Path) -> Mapping[str, Any]:
    """The content of a saved model's `config.json`."""
    return json.loads((Path(folder) / CONFIG).read_text())
