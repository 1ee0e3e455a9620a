"""Load an exported file of either kind: classes, preprocessing and a forward pass."""

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
    """A model loaded from a file; calling it maps images [B, 3, H, W], a float32 tensor or array, to logits [B, K].

    Attributes:
        path: The file.
        kind: "onnx" or "pt2".
        metadata: Metadata written by `clca.export.metadata.describe`.
        classes: Class names, or None.
        preprocess: Settings for `clca.data.transforms.from_preprocess`, or None.
        threads: Number of threads; None uses the default of the runtime.
    """

    def __init__(
        self, path: Path, kind: str, metadata: dict[str, Any], compute: Callable[[Any], list[Any]], threads: int | None
    ) -> None:
        self.path, self.kind, self.metadata, self.threads = path, kind, metadata, threads
        self.classes: list[str] | None = metadata["classes"]
        self.preprocess: dict[str, Any] | None = metadata["preprocess"]
        self._shape = tuple(metadata["input"]["shape"][1:])
        self._compute = compute

    def __call__(self, images: Images) -> Images:
        """Compute logits [B, K] of images [B, 3, H, W], as a tensor for a tensor and an array for an array.

        Raises:
            ClcaError: The images have another size, the batch is empty, or the computation fails.
        """
        return self._run(images)[0]

    def with_confidence(self, images: Images) -> tuple[Images, Images]:
        """Compute calibrated probabilities [B, K], and unfamiliarity [B]: an image beyond 1 is none of the classes.

        Raises:
            ClcaError: As calling it, or the file has no confidence: the model was not calibrated at its keep rate.
        """
        found = self.metadata.get("confidence")
        if found is None:
            raise ClcaError(f"{self.path}: has no confidence: export a run with a val split, at its own keep rate")
        logits, unfamiliarity = self._run(images)
        scaled: Any = torch.as_tensor(logits) / found["temperature"]
        probabilities = scaled.softmax(1)
        return (probabilities if isinstance(images, Tensor) else probabilities.numpy()), unfamiliarity

    def _run(self, images: Images) -> list[Images]:
        if tuple(images.shape[1:]) != self._shape or len(images) == 0:
            raise ClcaError(
                f"{self.path} expects images [B, {', '.join(map(str, self._shape))}], got {[*images.shape]}"
            )
        try:
            return self._compute(images)
        except (
            RuntimeError,
            ValueError,
            IndexError,
            MemoryError,
        ) as error:  # the errors of the runtimes are subclasses of these
            why = " ".join(str(error).split())[:200] or type(error).__name__
            raise ClcaError(f"{self.path} fails on images {[*images.shape]}: {why}") from None


def load_exported(path: str | Path, threads: int | None = None, *, trusted: bool = False) -> Exported:
    """Load a file written by `export_onnx`, `export_pt2` or `clca export`.

    Args:
        path: The file; its kind is detected from its content.
        threads: Number of threads; None uses the default of ONNX Runtime or torch.
        trusted: Skip the checks of operators, sizes and bytes, and run the file as it is. Files with reductions that
            are not part of this library may need it. Use it only for files from people whose programs you would run.

    Raises:
        ClcaError: There is no such file, clca did not export it, or, unless trusted, it may contain code or needs more
            memory or time than such a model does.
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
    options.log_severity_level = 4  # errors are raised, not logged
    if threads is not None:
        options.intra_op_num_threads = threads
    try:
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exception classes are not public
        raise ClcaError(f"{path}: ONNX Runtime cannot read it ({' '.join(str(error).split())[:200]})") from None
    if trusted:
        metadata = _metadata_of(session, path)

    def compute(images: Any) -> list[Any]:
        array = images.detach().cpu().numpy() if isinstance(images, Tensor) else images
        results = session.run(None, {INPUT: array})
        return [torch.from_numpy(each) for each in results] if isinstance(images, Tensor) else results

    return Exported(path, "onnx", metadata, compute, threads)


def _metadata_of(session: Any, path: Path) -> dict[str, Any]:
    try:
        metadata = {key: json.loads(value) for key, value in session.get_modelmeta().custom_metadata_map.items()}
        check_metadata(metadata)
    except (ValueError, RecursionError):
        raise ClcaError(f"{path}: is an ONNX file that clca did not export") from None
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
                check_size(
                    program, tuple(metadata["input"]["shape"][1:]), metadata["output"]["shape"][1],
                    confidence=metadata.get("confidence") is not None,
                )  # fmt: skip
            module = program.module()
    except TooLarge as error:
        reason = str(error).partition("\n")[0]  # torch.fx adds the node
        raise ClcaError(
            f"{path}: its program needs {reason}, which no model of clca does, so it is not loaded; {TRUST}"
        ) from None
    except Exception:  # a damaged archive raises almost any exception
        raise ClcaError(f"{path}: is not a program that clca exported") from None

    def compute(images: Any) -> list[Any]:
        batch = images if isinstance(images, Tensor) else torch.from_numpy(images)
        with using_threads(threads), torch.no_grad():
            results = module(batch)
        results = list(results) if isinstance(results, tuple) else [results]
        return results if isinstance(images, Tensor) else [each.numpy() for each in results]

    return Exported(path, "pt2", metadata, compute, threads)
