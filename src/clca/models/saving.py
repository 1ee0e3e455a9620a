"""Write a model to a folder, `config.json` and `model.safetensors`, or push it to the Hugging Face hub."""

from __future__ import annotations

import json
import os
import tempfile
import uuid
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from clca.errors import ClcaError, WorkError, reason
from clca.models.backbones import PAPER_BACKBONES, build_backbone, resolve
from clca.models.config import ModelConfig
from clca.models.weights import differences
from clca.system.paths import expanded

CONFIG, WEIGHTS = "config.json", "model.safetensors"


class SavingMixin(nn.Module):
    """Methods that save a model which is made from a backbone and a `ModelConfig`."""

    config: ModelConfig
    num_classes: int
    classes: list[str] | None
    preprocess: dict[str, Any] | None

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
        _check_can_be_made(lambda: _build_again(model), state)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        content = read_config(folder / CONFIG) if (folder / CONFIG).is_file() else {}
        content |= {"format": "clca", **config}
        tensors = _separate(state)
        # Both are written before either takes its place: a full disk leaves the old pair as it was.
        with _beside(folder / WEIGHTS) as weights, _beside(folder / CONFIG) as text:
            save_file(tensors, weights, metadata={"format": "pt"})
            text.write_text(json.dumps(content, indent=2) + "\n")
    except (PermissionError, FileExistsError, NotADirectoryError) as error:
        raise ClcaError(f"{folder} cannot be written: {reason(error)}") from None
    except (OSError, SafetensorError) as error:
        raise WorkError(f"{folder} could not be written: {reason(error)}") from None


def _as_json(model: SavingMixin) -> dict[str, Any]:
    """What `config.json` says of a model, in JSON's types."""
    check_classes(model, "the model")
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


def _build_again(model: SavingMixin) -> nn.Module:
    make: Callable[[nn.Module, ModelConfig], nn.Module] = type(model)
    return make(build_backbone(resolve(model.config.backbone), model.config), model.config)


def _check_can_be_made(build: Callable[[], nn.Module], state: dict[str, Tensor]) -> None:
    """Refuse to save what `from_pretrained` would refuse to load: then the model is gone."""
    with torch.device("meta"), warnings.catch_warnings():  # where nothing is allocated or drawn
        warnings.simplefilter("ignore")
        try:
            again = build().state_dict()
        except ClcaError:
            raise
        except Exception:  # a reduction of one's own may compute what this device cannot
            return
    found = differences(again, state)
    if found:
        raise ClcaError(f"the model is no longer what its settings make, and could not be loaded again: {found}")


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


def check_classes(model: SavingMixin, where: str) -> None:
    """Refuse names of classes that are not one for each of the model's outputs; a model need not name them."""
    classes = model.classes
    if classes is None:
        return
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise ClcaError(f"{where}: classes must be a list of names, not {str(classes)[:60]!r}")
    if len(classes) != model.num_classes:
        found = f"classes has {len(classes)} names and the model {model.num_classes} outputs"
        raise ClcaError(f"{where}: {found}; name each output once")


def push_to_hub(model: SavingMixin, repo_id: str, *, private: bool = False, token: str | None = None) -> str:
    """Upload a model to the Hugging Face hub; returns the address of the commit."""
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    api.create_repo(repo_id, private=private, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(model, folder)
        return str(api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="Add a clca model"))


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


def read_config(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # RecursionError: a stranger's, nested without an end
        raise ClcaError(f"{file} is not a JSON file: {error}") from None
    if not isinstance(content, dict):
        raise ClcaError(f"{file} does not hold settings by name")
    return content
