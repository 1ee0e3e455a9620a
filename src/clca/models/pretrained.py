"""Load a saved model from a folder or from the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clca.errors import ClcaError
from clca.models.confidence import CONFIDENCE, load_confidences
from clca.models.config import ModelConfig
from clca.models.factory import build
from clca.models.limits import LARGEST_STORED_SIDE, MOST_PATCHES
from clca.models.saving import CONFIG, WEIGHTS, on_meta
from clca.models.stored_model import check_classes, check_preprocess, read_config, stored_config
from clca.models.token_reduced_vit import TokenReducedViT
from clca.models.weight_headers import TensorHeader, check_memory
from clca.models.weights import differences, load_strict, read_header, read_state_dict
from clca.system.paths import expanded


def from_pretrained(
    folder_or_hub_id: str | Path, *, revision: str | None = None, token: str | bool | None = None
) -> TokenReducedViT:
    """The model in a folder that `clca train` or `save_pretrained` wrote, or on the hub, in evaluation mode.

    Args:
        folder_or_hub_id: The folder, where `~` is the home folder; or the name on the hub, such as `user/leaves`.
        revision: Branch, tag or commit on the hub; None for its main branch.
        token: Token for a private model; None for the stored one, False for none.

    Raises:
        ClcaError: There is no such model, its files do not belong together, or a revision is given for a folder.
    """
    folder = expanded(folder_or_hub_id)
    if not folder.is_dir():
        folder = _fetch(str(folder_or_hub_id), revision, token)
    elif revision is not None:
        raise ClcaError(f"{folder} is a local folder, which has no revision {revision!r}: omit the revision")
    return load_folder(folder)


def load_folder(folder: Path, content: dict[str, Any] | None = None) -> TokenReducedViT:
    """The model in a folder, as `from_pretrained`.

    Args:
        folder: A finished run or a saved model.
        content: That of its `config.json`, if it has been read already.

    Raises:
        ClcaError: A file is missing, or the two do not belong together.
    """
    config_file, weights_file = folder / CONFIG, folder / WEIGHTS
    for file in (config_file, weights_file):
        if not file.is_file():
            raise ClcaError(f"{folder} is not a finished run or saved model: it has no {file.name}")
    content = read_config(config_file) if content is None else content
    config = stored_config(content.get("model"), str(config_file))
    header = read_header(weights_file)
    try:
        described = _check_belongs(config, header, content, config_file, weights_file)
        model = _allocated(described) if described.config.reduction == config.reduction else build(config)
        load_strict(model, read_state_dict(weights_file), str(weights_file))
    except MemoryError:
        raise ClcaError(f"{folder}: this machine does not have enough memory for the model") from None
    model.classes, model.preprocess = content.get("classes"), content.get("preprocess")
    model.confidence = load_confidences(model, folder / CONFIDENCE)
    return model.eval()


def _check_belongs(
    config: ModelConfig, header: dict[str, TensorHeader], content: dict[str, Any], config_file: Path, weights_file: Path
) -> TokenReducedViT:
    """Compare a `config.json` with the header of a weights file, before memory is allocated for the model.

    Returns:
        The model, on the meta device.

    Raises:
        ClcaError: They do not belong to one model, or the model is too large in general or for this machine.
    """
    try:
        model = on_meta(build, config)
    except ClcaError as error:
        raise ClcaError(f"{config_file}: {error}") from None
    side = max(model.patch_embed.img_size)
    if side > LARGEST_STORED_SIDE or model.patch_embed.num_patches > MOST_PATCHES:
        found = f"{side} pixels and {model.patch_embed.num_patches} patches"
        raise ClcaError(f"{config_file}: images of {found}: at most {LARGEST_STORED_SIDE} and {MOST_PATCHES}")
    own: dict[str, Tensor] = model.state_dict()
    compared: dict[str, TensorHeader] = header
    if (
        model.config.reduction != config.reduction
    ):  # a reduction that cannot be built on the meta device; compared later
        compared = {name: value for name, value in header.items() if not name.startswith("reductions.")}
    if found := differences(own, compared):
        raise ClcaError(f"{weights_file} is of another model: {found}")
    check_memory(header, str(weights_file))
    check_classes(content.get("classes"), model.num_classes, str(config_file))
    check_preprocess(content.get("preprocess"), side, str(config_file))
    return model


def _allocated(described: TokenReducedViT) -> TokenReducedViT:
    """The model with uninitialised memory in place of the meta device, to be filled by a state dict.

    Initialising weights that are then overwritten takes most of the time of building a model. A model with a tensor
    that is in no state dict, such as in a reduction of a plug-in, is built again instead.
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


def _fetch(hub_id: str, revision: str | None, token: str | bool | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        folder = snapshot_download(hub_id, revision=revision, token=token, allow_patterns=[CONFIG, WEIGHTS, CONFIDENCE])
    except HFValidationError:
        raise ClcaError(f"no run or saved model at {hub_id}") from None
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        name = hub_id if revision is None else f"{hub_id} (revision {revision})"
        # The hub gives the same response for a private model and for one that does not exist.
        hint = ", or for a private model the token" if isinstance(error, RepositoryNotFoundError) else ""
        raise ClcaError(
            f"{name} is neither a local folder nor a model that the hub returned ({type(error).__name__}): "
            f"check the path{hint}"
        ) from None
    return Path(folder)
