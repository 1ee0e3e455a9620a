"""An exported file, loaded: labels, preprocessing and a forward pass, whichever kind it is."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from clca.errors import ClcaError
from clca.export.metadata import INPUT, TRUST, check_metadata
from clca.export.onnx_allowlist import checked_model
from clca.export.onnx_file import OPSET
from clca.export.program import METADATA_FILE, quiet
from clca.export.pt2_allowlist import checked_archive
from clca.export.pt2_size import TooLarge, check_size
from clca.system.timing import using_threads

Images = TypeVar("Images", Tensor, np.ndarray)


class Exported:
    """A model out of a file; call it on images [B, 3, H, W] in float32, a tensor or an array, for logits [B, K].

    Attributes:
        path: The file.
        kind: "onnx" or "pt2".
        metadata: What `clca.export.metadata.describe` wrote.
        classes: Names of the classes, or None.
        preprocess: What `clca.data.transforms.from_preprocess` takes, or None.
        threads: How many it computes on; None leaves that to the runtime.
    """

    def __init__(
        self, path: Path, kind: str, metadata: dict[str, Any], compute: Callable[[Any], Any], threads: int | None
    ) -> None:
        self.path, self.kind, self.metadata, self.threads = path, kind, metadata, threads
        self.classes: list[str] | None = metadata["classes"]
        self.preprocess: dict[str, Any] | None = metadata["preprocess"]
        self._shape = tuple(metadata["input"]["shape"][1:])
        self._compute = compute

    def __call__(self, images: Images) -> Images:
        """Images [B, 3, H, W] to logits [B, K], of the kind given.

        Raises:
            ClcaError: The images are of another size, or none.
        """
        if tuple(images.shape[1:]) != self._shape or len(images) == 0:
            raise ClcaError(f"{self.path} takes images [B, {', '.join(map(str, self._shape))}], not {[*images.shape]}")
        try:
            logits = self._compute(images)
        except (RuntimeError, ValueError, IndexError, MemoryError) as error:  # and the runtimes' own, which are these
            why = " ".join(str(error).split())[:200] or type(error).__name__
            raise ClcaError(f"{self.path} fails on images {[*images.shape]}: {why}") from None
        return logits


def load_exported(path: str | Path, threads: int | None = None, *, trusted: bool = False) -> Exported:
    """Load what `export_onnx`, `export_pt2` or `clca export` wrote.

    Args:
        path: The file; its content decides the kind.
        threads: How many threads it computes on; None: ONNX Runtime's or torch's own number.
        trusted: Skip the checks of operators, sizes and bytes, and run what the file brings. Files of reductions that
            do not come with this library may need it. Use it only for files from people whose programs you would run.

    Raises:
        ClcaError: There is no such file, it is not one that clca exported, or it may hold code, or asks for more
            memory or time than such a model needs.
    """
    path = Path(path)
    if not path.is_file():
        raise ClcaError(f"{path}: no such file")
    return (_load_pt2 if zipfile.is_zipfile(path) else _load_onnx)(path, threads, trusted)


def _load_onnx(path: Path, threads: int | None, trusted: bool) -> Exported:
    try:
        import onnxruntime
    except ImportError:
        raise ClcaError("ONNX files need onnxruntime: pip install 'clca[onnx]'") from None
    content, metadata = (str(path), {}) if trusted else checked_model(path, OPSET)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what fails is raised
    if threads is not None:
        options.intra_op_num_threads = threads
    try:
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its classes are not public
        raise ClcaError(f"{path}: ONNX Runtime cannot read it ({' '.join(str(error).split())[:200]})") from None
    if trusted:
        metadata = _metadata_of(session, path)

    def compute(images: Any) -> Any:
        array = images.detach().cpu().numpy() if isinstance(images, Tensor) else images
        logits = session.run(None, {INPUT: array})[0]
        return torch.from_numpy(logits) if isinstance(images, Tensor) else logits

    return Exported(path, "onnx", metadata, compute, threads)


def _metadata_of(session: Any, path: Path) -> dict[str, Any]:
    try:
        metadata = {key: json.loads(value) for key, value in session.get_modelmeta().custom_metadata_map.items()}
        check_metadata(metadata)
    except (ValueError, RecursionError):
        raise ClcaError(f"{path}: is an ONNX file, but not one that clca exported") from None
    return metadata


def _load_pt2(path: Path, threads: int | None, trusted: bool) -> Exported:
    extra = {METADATA_FILE: ""}
    source: Any = str(path)
    if not trusted:
        source, _ = checked_archive(path)
    try:
        with quiet():
            program = torch.export.load(source, extra_files=extra)
            metadata = json.loads(extra[METADATA_FILE])
            check_metadata(metadata)
            if not trusted:
                check_size(program, tuple(metadata["input"]["shape"][1:]), metadata["output"]["shape"][1])
            module = program.module()
    except TooLarge as error:
        reason = str(error).partition("\n")[0]  # torch.fx adds the node
        raise ClcaError(
            f"{path}: its program asks for {reason}, which no model of clca does, so it is not loaded; {TRUST}"
        ) from None
    except Exception:  # a damaged archive raises nearly anything
        raise ClcaError(f"{path}: is not a program that clca exported") from None

    def compute(images: Any) -> Any:
        given = images if isinstance(images, Tensor) else torch.from_numpy(images)
        with using_threads(threads), torch.no_grad():
            logits = module(given)
        return logits if isinstance(images, Tensor) else logits.numpy()

    return Exported(path, "pt2", metadata, compute, threads)
