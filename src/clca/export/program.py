"""Export with torch.export: the forward pass in evaluation mode as a graph of torch operators with a dynamic batch."""

from __future__ import annotations

import copy
import io
import json
import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from clca.errors import ClcaError, WorkError
from clca.export.metadata import BATCH, confidence_of, describe
from clca.models.confidence import read_by_head
from clca.models.token_reduced_vit import TokenReducedViT
from clca.system.files import replacing

METADATA_FILE = "metadata.json"
Module = TypeVar("Module", bound=nn.Module)
_EXAMPLE_BATCH = 2  # torch.export treats 1 as a constant


class _Named(nn.Module):
    """A wrapper that names the input of a model `images`, and adds its unfamiliarity to what it returns."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model: Any = plain_copy(model)  # exporting modifies the module
        found = confidence_of(model) if isinstance(model, TokenReducedViT) else None
        self.confidence = None if found is None else plain_copy(found)

    def forward(self, images: Tensor) -> Any:
        if self.confidence is None:
            return self.model(images)
        features = self.model.forward_features(images)
        unfamiliarity = self.confidence(read_by_head(self.model, features))
        return self.model.forward_head(features), unfamiliarity


def export_pt2(model: TokenReducedViT, path: str | Path) -> Path:
    """Write a model in evaluation mode as a program of torch.export (see `torch.export.load`), for any batch size.

    Args:
        model: The model; it is exported in float32, and not modified.
        path: The file, usually `*.pt2`; an existing file is replaced once the new one is complete.

    Raises:
        WorkError: The model cannot be exported (the message names the operator or the cause), or the file cannot be
            written.
    """
    program = capture(model, model_name(model))
    with replacing(Path(path), in_own_folder=True) as temporary:
        save_pt2(model, program, temporary)
    return Path(path)


def save_pt2(model: TokenReducedViT, program: ExportedProgram, path: Path) -> None:
    """Write the result of `capture` with the model's metadata; not atomic."""
    content = io.BytesIO()  # if torch writes to a file and the disk is full, the process is killed
    with quiet():
        torch.export.save(program, content, extra_files={METADATA_FILE: json.dumps(describe(model))})
    path.write_bytes(content.getbuffer())


def capture(model: nn.Module, name: str, img_size: tuple[int, int] | None = None, channels: int = 3) -> ExportedProgram:
    """Capture the forward pass of a model as a program with a dynamic batch.

    Args:
        model: A `TokenReducedViT`, or another module with images as input.
        name: Name of the model in error messages.
        img_size: Height and width of the images; for a `TokenReducedViT`, those of the model.
        channels: Channels of the images; for a `TokenReducedViT`, those of the model.

    Raises:
        WorkError: It cannot be captured.
    """
    if isinstance(model, TokenReducedViT):
        img_size, channels = tuple(model.patch_embed.img_size), model.in_chans
    if img_size is None:
        raise ClcaError("a model that is not a TokenReducedViT needs img_size: pass height and width")
    images = torch.zeros(_EXAMPLE_BATCH, channels, *img_size)
    try:
        with quiet(), torch.no_grad():
            program = torch.export.export(
                _Named(model), (images,), dynamic_shapes={"images": {0: Dim(BATCH)}}, strict=False
            )
    except Exception as error:  # tracing can raise any exception
        raise WorkError(f"{name} cannot be exported: {failure_reason(error)}") from error
    for module in program.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:
                node.meta.pop("stack_trace", None)  # contains local file names
    return program


def plain_copy(model: Module) -> Module:
    """A copy of the model in evaluation mode, in float32, on the CPU."""
    return copy.deepcopy(model).float().cpu().eval()


def model_name(model: TokenReducedViT) -> str:
    """The name of a model in error messages."""
    return f"{model.config.backbone} with reduction {model.config.reduction!r}"


def failure_reason(error: BaseException) -> str:
    """Extract the operator or the cause from an error of the exporters, in one line."""
    causes = [error]
    while (deeper := causes[-1].__cause__ or causes[-1].__context__) is not None and deeper not in causes:
        causes.append(deeper)
    text = re.sub(r"\x1b\[[0-9;]*m", "", " ".join(str(cause) for cause in causes))
    if found := re.search(r"No ONNX function found for <OpOverload\(op='([\w.:]+)', overload='(\w+)'\)>", text):
        return f"ONNX has no equivalent of the operator {found[1]}.{found[2]}"
    if "specialized it to be a constant" in text or "Constraints violated (batch)" in text:
        return "its code fixes the batch size (use x.shape[0], not len(x) or int(x.shape[0]))"
    if found := re.search(r"data-dependent|GuardOnDataDependent|Could not extract specialized integer", text):
        return "shapes or branches depend on computed values (as with .item(), .nonzero() or `if tensor:`)"
    if found := re.search(r"translating node %\w+ : .*?target=torch\.ops\.([\w.]+)", text):
        return f"the operator {found[1]} could not be translated"
    first = next((line.strip() for line in str(causes[-1]).splitlines() if line.strip()), "")
    return f"{type(causes[-1]).__name__}: {first[:200]}" if first else type(causes[-1]).__name__


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress the output, warnings and logging of the exporters, but not their errors."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
