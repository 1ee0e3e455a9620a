"""Load weights from files, with parameter names of timm, clca or the published program; without executing code."""

from __future__ import annotations

import argparse
import pathlib
import pickle
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import torch
from safetensors.torch import load_file
from timm.models import adapt_input_conv, clean_state_dict
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import Tensor

from clca.errors import ClcaError
from clca.models.timm_interface import TimmInterface
from clca.models.torch_files import check_torch_file
from clca.models.weight_headers import TensorHeader, check_npz, read_safetensors_header
from clca.system.paths import expanded, shown

StateDict = dict[str, Tensor]
Model = TypeVar("Model", bound=TimmInterface)

# The published program's names of what timm does not have, and ours.
_PUBLISHED = (
    (re.compile(r"^ifa_head\.0\.0\."), "cla_head.norm_in."),
    (re.compile(r"^ifa_head\.0\.1\."), "cla_head.depthwise."),
    (re.compile(r"^ifa_head\.0\.2\."), "cla_head.norm_out."),
    (re.compile(r"^ifa_head\.0\.4\."), "cla_head.classifier."),
    (re.compile(r"^score_predictor\.(\d+)\."), r"reductions.\1."),
    (re.compile(r"^cluster_layers\.(\d+)\."), r"reductions.\1."),
)
_ADDED = ("clr", "clr_pos_embed", "cla_head.", "rate_statistics.", "reductions.")
_HEADS = ("head.", "head_dist.", "cla_head.classifier.")
_FINAL = ("norm.", "fc_norm.", "attn_pool.")
# Types of settings that training scripts save beside the weights; safe to unpickle, and not used here.
_NUMPY_SCALAR = np.float64(0).__reduce__()[0]
_HARMLESS: list[Any] = [
    argparse.Namespace,
    pathlib.PosixPath,
    pathlib.PurePosixPath,
    (pathlib.PurePosixPath, "pathlib._local.PosixPath"),  # Python 3.13's name
    (pathlib.PureWindowsPath, "pathlib.WindowsPath"),  # paths of Windows, without their methods
    np.dtype,
    (_NUMPY_SCALAR, "numpy._core.multiarray.scalar"),
    (_NUMPY_SCALAR, "numpy.core.multiarray.scalar"),  # numpy 1's name
    *(type(np.dtype(kind)) for kind in ("f8", "f4", "i8", "i4", "?")),
]


def load_published(model: Model, checkpoint: str | Path | Mapping[str, Any]) -> Model:
    """Load a checkpoint of the published program into a model of the same settings and sizes.

    Args:
        model: The model to load into.
        checkpoint: A file, its content, or the state dict in it, with the authors' names.

    Returns:
        The model.

    Raises:
        ClcaError: If the file cannot be read without executing code, or if a tensor is missing, unknown or of another
            shape.
    """
    state = _state_dict(checkpoint) if isinstance(checkpoint, Mapping) else read_state_dict(checkpoint)
    where = "the state dict" if isinstance(checkpoint, Mapping) else str(checkpoint)
    load_strict(model, from_published(state, model), where)
    return model


def load_weights(model: Model, path: str | Path) -> Model:
    """Initialise a model from a file with parameter names of timm, clca or the published program.

    The position embedding and the patch embedding are resampled to the model's image and patch size. Every weight of
    the backbone must be in the file. Heads for another number of classes, and modules that the file lacks, keep their
    random weights, with a warning that lists them.

    Raises:
        ClcaError: The file is not readable, would execute code, or is of another model.
    """
    state = read_state_dict(path)
    if any("Transformer/" in name for name in state):
        raise ClcaError(
            f"{path}: has JAX's parameter names: load it with timm's model.load_pretrained(FILE) and save that model's "
            "state_dict as .safetensors"
        )
    if _is_published(state):
        state = from_published(state, model, strict=False)
    if any(name.startswith("gamma_") or ".gamma_" in name for name in state):
        state = {re.sub(r"gamma_([0-9])", r"ls\1.gamma", name): value for name, value in state.items()}
    own = model.state_dict()
    _check_before_resampling(state, own, f"{path}: not weights of {model.config.backbone}")
    try:
        state = checkpoint_filter_fn(cast(Any, state), cast(Any, model))
    except (RuntimeError, ValueError, IndexError, AssertionError, KeyError, AttributeError) as error:
        raise ClcaError(f"{path}: not weights of {model.config.backbone} ({_first_line(error)})") from None
    _adapt_channels(state, own["patch_embed.proj.weight"].shape if "patch_embed.proj.weight" in own else None)
    unused = [n for n in state if n not in own and not _is_optional(n, model)]
    # A file with an aggregation head has no final norm: it belongs to the plain head, and both stay random.
    new_head = (*_HEADS, *(_FINAL if any(n.startswith("cla_head.") for n in state) else ()))
    absent = [n for n in own if n not in state and not n.startswith((*_ADDED, *new_head))]
    wrong = [n for n in state if n in own and state[n].shape != own[n].shape and not n.startswith(_HEADS)]
    if unused or absent or wrong:
        raise ClcaError(f"{path}: not weights of {model.config.backbone}: {_differences(absent, unused, wrong)}")
    fits = {n: v for n, v in state.items() if n in own and v.shape == own[n].shape}
    fresh = [n for n in own if n not in fits]
    model.load_state_dict(fits, strict=False)
    if model.clr is not None and "clr" in fresh:
        with torch.no_grad():  # carriers start as copies of the loaded CLS token
            model.clr.copy_(cast(Tensor, model.cls_token).expand_as(model.clr))
        fresh.remove("clr")
    # A backbone's file never has the aggregation head; warn about any other head that keeps its random weights.
    heads = sorted(
        {n.rpartition(".")[0] for n in fresh if n.startswith(new_head) and (n in state or not model.cla_head)}
    )
    if heads:
        there = "for another number of classes" if any(n in state for n in fresh) else "not in it"
        be, start = ("is", "starts") if len(heads) == 1 else ("are", "start")
        warnings.warn(f"{path}: {' and '.join(heads)} {be} {there} and {start} from random weights", stacklevel=2)
    return model


# Pixels per side of a patch: resampling a kernel takes memory proportional to the product of the squared areas.
_LARGEST_PATCH = 64
_RESAMPLED = {"patch_embed.proj.weight": 4, "pos_embed": 3}


def _check_before_resampling(state: StateDict, own: StateDict, where: str) -> None:
    """Refuse a file whose patch or position embedding would take far more memory to resample than the file has bytes.

    Raises:
        ClcaError: A tensor has an implausible shape.
    """
    for name, dimensions in _RESAMPLED.items():
        value, wanted = state.get(name), own.get(name)
        if value is None or wanted is None:
            continue
        wide = value.shape[-1] != wanted.shape[-1] if name == "pos_embed" else value.shape[0] != wanted.shape[0]
        kernel = value.shape[2:] if name != "pos_embed" and value.ndim == dimensions else ()
        if value.ndim > dimensions or wide or any(not 1 <= side <= _LARGEST_PATCH for side in kernel):
            raise ClcaError(f"{where}: of another shape: {name}")


def _adapt_channels(state: StateDict, shape: torch.Size | None) -> None:
    """Fit the patch embedding of RGB weights to other image channels, as timm does for its own."""
    weight = state.get("patch_embed.proj.weight")
    if weight is None or shape is None or weight.ndim != 4 or weight.shape[1] == shape[1] or weight.shape[1] != 3:
        return
    state["patch_embed.proj.weight"] = adapt_input_conv(shape[1], weight)


def read_state_dict(path: str | Path) -> StateDict:
    """The tensors in a .safetensors, .npz or torch file, by name; no pickled code is executed.

    A file that declares more memory than it has bytes is rejected before it is loaded.

    Raises:
        ClcaError: The file is missing, damaged, not a checkpoint, would execute code, or needs too much memory.
    """
    path = expanded(path)
    if not path.is_file():
        raise ClcaError(f"no weights at {path}: name a .safetensors or torch file")
    content: Any
    try:
        if path.suffix == ".safetensors":
            read_safetensors_header(path)
            content = load_file(path)
        elif path.suffix == ".npz":
            check_npz(path)
            with np.load(path, allow_pickle=False) as arrays:
                content = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
        else:
            check_torch_file(path)
            with torch.serialization.safe_globals(_HARMLESS), warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # about pickle protocols; problems are raised as errors
                content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"(?:GLOBAL|global|class|Unsupported)\W+([\w]+\.[\w.]+)", str(error))
        what = f"it holds pickled code ({found.group(1)})" if found else "it may hold pickled code"
        raise ClcaError(f"{path}: refused, {what}, not only weights: use .safetensors") from None
    except Exception as error:  # a damaged file can raise any exception
        raise ClcaError(f"{path}: not a readable weight file ({_first_line(error)})") from None
    return _state_dict(content, path)


def read_header(path: Path) -> dict[str, TensorHeader]:
    """Names, types and shapes of the tensors in a .safetensors file, wrappers' name prefixes removed.

    Raises:
        ClcaError: The file is damaged, or its header is invalid.
    """
    try:
        found = read_safetensors_header(path)
    except (OSError, ValueError) as error:
        raise ClcaError(f"{path}: not a readable weight file ({_first_line(error)})") from None
    return clean_state_dict(found)


def _state_dict(content: Any, where: str | Path = "the checkpoint") -> StateDict:
    """The state dict in a checkpoint of a training script, with name prefixes of wrappers removed."""
    for key in ("model", "state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not content:
        raise ClcaError(f"{where}: holds no state dict")
    if not all(isinstance(n, str) and isinstance(v, Tensor) for n, v in content.items()):
        raise ClcaError(f"{where}: holds values other than tensors by name")
    return clean_state_dict(dict(content))


def _is_published(state: Mapping[str, Tensor]) -> bool:
    names = ("ifa_head.", "score_predictor.", "cluster_layers.")
    ours = any(name.startswith(("cla_head.", "reductions.", "clr_pos_embed")) for name in state)
    return not ours and ("clr" in state or any(name.startswith(names) for name in state))


def from_published(state: Mapping[str, Tensor], model: TimmInterface, strict: bool = True) -> StateDict:
    """Rename the parameters of the published program to ours.

    Args:
        state: State dict with the authors' names; `pos_embed` has the rows of the carriers at its end.
        model: Determines whether the carriers have rows, and whether an unused head is expected.
        strict: Split off as many rows as this model has carriers; else as many as the state dict has.
    """
    carriers = model.num_clr if strict else (state["clr"].shape[1] if "clr" in state else 0)
    renamed: StateDict = {}
    for name, value in state.items():
        for pattern, ours in _PUBLISHED:
            name = pattern.sub(ours, name)
        if name.startswith("head.") and model.cla_head is not None:
            continue  # the authors' backbone keeps its head of 1000 outputs beside the aggregation head
        renamed[name] = value
    if carriers and not model.no_embed_class and "pos_embed" in renamed:
        table = renamed["pos_embed"]
        renamed["pos_embed"], renamed["clr_pos_embed"] = table[:, :-carriers], table[:, -carriers:]
    return renamed


def load_strict(model: TimmInterface, state: StateDict, where: str) -> None:
    """Load a state dict with our names, which must match tensor by tensor; `where` is its name in an error.

    Raises:
        ClcaError: If a tensor is missing, unknown or of another shape.
    """
    found = differences(model.state_dict(), state)
    if found:
        raise ClcaError(f"{where} is of another model: {found}")
    model.load_state_dict(state)


def differences(own: Mapping[str, Tensor], state: Mapping[str, Tensor | TensorHeader]) -> str:
    """The differences between a state dict and that of a model, `own`, in one line; empty if it fits."""
    absent = [n for n in own if n not in state]
    unused = [n for n in state if n not in own]
    wrong = [n for n in state if n in own and state[n].shape != own[n].shape]
    kind = [n for n in state if n in own and state[n].dtype.is_floating_point != own[n].dtype.is_floating_point]
    return _differences(absent, unused, wrong, kind)


def _is_optional(name: str, model: TimmInterface) -> bool:
    """Whether a tensor of a file may go unused: heads, and the final norm that CLA leaves out."""
    if name.startswith((*_ADDED, *_HEADS)) or name in ("mask_token", "n"):
        return True
    return model.cla_head is not None and name.startswith(_FINAL)


def _differences(absent: list[str], unused: list[str], wrong: list[str], kind: Sequence[str] = ()) -> str:
    parts = []
    titles = ("missing", "not in the model", "of another shape", "of another type")
    for what, names in zip(titles, (absent, unused, wrong, kind), strict=True):
        if names:
            more = f" and {len(names) - 2} more" if len(names) > 2 else ""
            parts.append(f"{what}: {', '.join(shown(name[:80]) for name in names[:2])}{more}")
    return "; ".join(parts)


def _first_line(error: BaseException) -> str:
    """The first sentence of an error; the rest is advice for developers, such as to allow pickled code."""
    line = (str(error).strip().splitlines() or [""])[0].partition(". ")[0]
    return line if " " in line else type(error).__name__
