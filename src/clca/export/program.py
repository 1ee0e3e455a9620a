"""torch.export: the forward pass in evaluation as one graph of torch's operators with a dynamic batch."""

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
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from clca.errors import ClcaError, WorkError
from clca.export.metadata import BATCH, describe
from clca.models.token_reduced_vit import TokenReducedViT
from clca.system.files import replacing

METADATA_FILE = "metadata.json"
_EXAMPLE_BATCH = 2  # 1 would be taken for a constant


class _Named(nn.Module):
    """A model whose input is called `images`."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = plain_copy(model)  # exporting leaves traces in the module

    def forward(self, images: Tensor) -> Any:
        return self.model(images)


def export_pt2(model: TokenReducedViT, path: str | Path) -> Path:
    """Write the model as a program of torch.export (`torch.export.load` reads it), for evaluation with any batch.

    Args:
        model: The model; it is exported in float32 and is itself left as it is.
        path: The file, by custom ending in .pt2; one that is there is replaced once the new one is whole.

    Raises:
        WorkError: The model cannot be exported, with the operator or line at fault; or the file cannot be written.
    """
    program = capture(model, called(model))
    with replacing(Path(path), in_own_folder=True) as temporary:
        save_pt2(model, program, temporary)
    return Path(path)


def save_pt2(model: TokenReducedViT, program: ExportedProgram, path: Path) -> None:
    """Write what `capture` made of the model, with its metadata; `path` is half-written if that fails."""
    content = io.BytesIO()  # writing a file itself, torch ends the whole process where the disk is full
    with quiet():
        torch.export.save(program, content, extra_files={METADATA_FILE: json.dumps(describe(model))})
    path.write_bytes(content.getbuffer())


def capture(model: nn.Module, name: str, img_size: tuple[int, int] | None = None, channels: int = 3) -> ExportedProgram:
    """The forward pass of a model as a program whose batch is dynamic.

    Args:
        model: A `TokenReducedViT`, or a module that takes the same images.
        name: What to call it where it cannot be exported.
        img_size: Height and width of the images; by default the model's own.
        channels: Of the images; by default the model's own.

    Raises:
        WorkError: It cannot be captured.
    """
    if isinstance(model, TokenReducedViT):
        img_size, channels = tuple(model.patch_embed.img_size), model.in_chans
    if img_size is None:
        raise ClcaError("say the image size of a model that is not a TokenReducedViT")
    images = torch.zeros(_EXAMPLE_BATCH, channels, *img_size)
    try:
        with quiet(), torch.no_grad():
            program = torch.export.export(
                _Named(model), (images,), dynamic_shapes={"images": {0: Dim(BATCH)}}, strict=False
            )
    except Exception as error:  # anything that tracing Python can raise
        raise WorkError(f"{name} cannot be exported: {at_fault(error)}") from error
    for module in program.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:
                node.meta.pop("stack_trace", None)  # names files of this machine
    return program


def plain_copy(model: nn.Module) -> nn.Module:
    """The model in evaluation mode, in float32, on the CPU."""
    return copy.deepcopy(model).float().cpu().eval()


def called(model: TokenReducedViT) -> str:
    """What a refusal calls a model."""
    return f"{model.config.backbone} with reduction {model.config.reduction!r}"


def at_fault(error: BaseException) -> str:
    """The operator or cause in a report of the exporters, in one line."""
    causes = [error]
    while (deeper := causes[-1].__cause__ or causes[-1].__context__) is not None and deeper not in causes:
        causes.append(deeper)
    text = re.sub(r"\x1b\[[0-9;]*m", "", " ".join(str(cause) for cause in causes))
    if found := re.search(r"No ONNX function found for <OpOverload\(op='([\w.:]+)', overload='(\w+)'\)>", text):
        return f"ONNX has nothing for the operator {found[1]}.{found[2]}"
    if "specialized it to be a constant" in text or "Constraints violated (batch)" in text:
        return "its code fixes the batch size (len(x) or int(x.shape[0]) do; x.shape[0] does not)"
    if found := re.search(r"data-dependent|GuardOnDataDependent|Could not extract specialized integer", text):
        return "what it computes decides about shapes or branches (.item(), .nonzero(), if tensor: do)"
    if found := re.search(r"translating node %\w+ : .*?target=torch\.ops\.([\w.]+)", text):
        return f"the operator {found[1]} could not be translated"
    first = next((line.strip() for line in str(causes[-1]).splitlines() if line.strip()), "")
    return f"{type(causes[-1]).__name__}: {first[:200]}" if first else type(causes[-1]).__name__


@contextmanager
def quiet() -> Iterator[None]:
    """Without the exporters' progress, warnings and log lines; errors come through."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
