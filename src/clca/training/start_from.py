"""`--from RUN`: start a run from the weights of another one, with more classes than that had."""

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from clca.errors import ClcaError
from clca.models.config import ModelConfig
from clca.models.stored_model import check_classes, stored_config
from clca.system.files import part
from clca.system.paths import expanded, shown
from clca.training.run_folder import RunFolder

if TYPE_CHECKING:
    from clca.models.token_reduced_vit import TokenReducedViT

_log = logging.getLogger(__name__)

RECORD = "from"
"""Of `resolved` in `config.json`: the run that this one was started from, and its classes."""

_CLASSIFIERS = ("head.", "head_dist.", "cla_head.classifier.")
_HEADS = ("head.", "head_dist.", "cla_head.", "rate_statistics.", "norm.", "fc_norm.")


def origin(run: str) -> RunFolder:
    """The run or saved model to start from.

    Raises:
        ClcaError: There is none in this folder.
    """
    folder = RunFolder(expanded(run))
    if not folder.config_file.is_file():
        raise ClcaError(f"--from {run}: no config.json there, so it is no run; name the folder that clca train wrote")
    return folder


def model_of(run: str) -> ModelConfig:
    """The settings of the model to start from.

    Raises:
        ClcaError: There is no such run, or its settings cannot be read.
    """
    folder = origin(run)
    if "train" in folder.content:
        return folder.config.model
    return stored_config(folder.content.get("model"), str(folder.config_file)).model_copy(update={"num_classes": 1000})


def recipe_of(run: str) -> str:
    """The recipe that the run to start from was trained with; "published" for a saved model."""
    folder = origin(run)
    return folder.config.recipe if "train" in folder.content else "published"


def known_classes(start_from: str | None, run: RunFolder) -> list[str]:
    """The classes of the run that a run was, or is to be, started from; none without such a run.

    Args:
        start_from: Folder of the run to start from.
        run: The run that starts there. What it has recorded comes first: the other run may have been removed.
    """
    if start_from is None:
        return []
    recorded = recorded_classes(run) if run.config_file.is_file() else None
    return recorded if recorded is not None else classes_of(start_from)


def recorded_classes(run: RunFolder) -> list[str] | None:
    """The classes of the run that a run was started from, as its `config.json` has them; None without such a run."""
    if not run.exists or not run.config_file.is_file():
        return None
    classes = part(run.resolved, RECORD).get("classes")
    return classes if isinstance(classes, list) and all(isinstance(name, str) for name in classes) else None


def classes_of(run: str) -> list[str]:
    """The classes of the run to start from.

    Raises:
        ClcaError: It does not name them.
    """
    folder = origin(run)
    classes = folder.content.get("classes")
    check_classes(classes, len(classes) if isinstance(classes, list) else 0, str(folder.config_file))
    if classes is None:
        raise ClcaError(f"--from {run}: the saved model lacks its classes, so that rows cannot be kept by their names")
    return list(classes)


def check_untrained(known: Sequence[str], trained: Sequence[str], start_from: str, root: str, *, probes: bool) -> None:
    """Warn about classes of a run that there are no images of; refuse them where the head is fitted anew.

    Args:
        known: Classes of the run to start from.
        trained: Classes with training images.
        start_from, root: The run and the images, for the message.
        probes: Whether the head is fitted anew.

    Raises:
        ClcaError: It is, and there are such classes.
    """
    present = set(trained)
    absent = [name for name in known if name not in present]
    if not absent:
        return
    names = ", ".join(repr(shown(name)) for name in absent[:5]) + (f" and {len(absent) - 5} more" * (len(absent) > 5))
    lacking = f"{root} has no training images of {len(absent)} of the classes of {start_from}: {names}"
    if probes:
        raise ClcaError(
            f"--from: {lacking}; the recipes quick and best fit the head anew to images of every class: add images of "
            "these, or choose --recipe published, which keeps the rows of known classes"
        )
    _log.warning("%s; their rows of the classifier are kept, but nothing is trained on them", lacking)


def load_origin(model: "TokenReducedViT", start_from: str) -> None:
    """Give a model the weights and the preprocessing of a run; rows of the classifier go by the names of classes.

    Rows of new classes keep their initial values. A head of another kind keeps its initial weights.

    Args:
        model: With its classes, and otherwise the settings of the run.
        start_from: Folder of the run.

    Raises:
        ClcaError: The run has no weights, or they do not fit.
    """
    import torch

    from clca.data.transforms import preprocess_dict

    source = origin(start_from).load_model()
    classes, known = model.classes or [], source.classes or []
    row_of = {name: row for row, name in enumerate(known)}
    pairs = [(row, row_of[name]) for row, name in enumerate(classes) if name in row_of]
    here, there = [row for row, _ in pairs], [row for _, row in pairs]
    state = source.state_dict()
    with torch.no_grad():
        for name, value in model.state_dict().items():
            found = state.get(name)
            by_class = name.startswith(_CLASSIFIERS) and value.ndim > 0 and len(value) == len(classes)
            if found is not None and by_class and found.shape[1:] == value.shape[1:]:
                value[here] = found[there].to(value.dtype)
            elif found is not None and found.shape == value.shape:
                value.copy_(found)
            elif not name.startswith(_HEADS):
                raise ClcaError(f"--from {start_from}: its weights do not fit the model: {name}")
    if model.rate_statistics is not None:
        model.use_rate_statistics()
    size = (model.preprocess or {}).get("img_size")
    preprocess: dict[str, Any] = source.preprocess or {}
    if size is not None and preprocess:
        own = preprocess_dict(size, preprocess["mean"], preprocess["std"])
        if preprocess != own:
            raise ClcaError(f"--from {start_from}: its images are resized in another way than training resizes them")
        model.preprocess = own
