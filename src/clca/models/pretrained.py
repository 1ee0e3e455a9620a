"""Load a model from a folder or the Hugging Face hub: `config.json` and `model.safetensors`."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from clca.errors import ClcaError
from clca.models.config import ModelConfig, one_line
from clca.models.factory import OF_THIS_MACHINE, build
from clca.models.saving import CONFIG, WEIGHTS, check_classes, read_config
from clca.models.token_reduced_vit import TokenReducedViT
from clca.models.weights import load_strict, read_state_dict
from clca.system.paths import expanded


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
    content = read_config(config_file)
    if not isinstance(content.get("model"), dict):
        raise ClcaError(f"{config_file} does not describe a clca model: it has no settings under 'model'")
    try:
        config = ModelConfig(**content["model"])
    except ValidationError as error:
        raise ClcaError(f"{config_file}: {one_line(error)}") from None
    # `save_pretrained` writes none of these; a file by other hands would have no weights, on the device "meta".
    kwargs = {k: v for k, v in config.backbone_kwargs.items() if k not in OF_THIS_MACHINE}
    model = build(config.model_copy(update={"backbone_kwargs": kwargs}))
    load_strict(model, read_state_dict(weights_file), str(weights_file))
    model.classes, model.preprocess = content.get("classes"), content.get("preprocess")
    check_classes(model, str(config_file))
    return model.eval()


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
