"""`export_run(run)`: export a run to one file, which is compared with PyTorch on images before it is kept."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from clca.errors import ClcaError, WorkError
from clca.export.check import Agreement, check_exported
from clca.export.check_images import CheckImages, find_check_images
from clca.export.load import Exported, load_exported
from clca.export.metadata import TRUST
from clca.export.onnx_file import build_onnx, require_onnx, save_onnx
from clca.export.program import capture, model_name, save_pt2
from clca.models.token_reduced_vit import TokenReducedViT
from clca.system.files import replacing
from clca.system.timing import Spread, interleaved
from clca.training.run_folder import RunFolder, refuse_run_file

_log = logging.getLogger(__name__)

KINDS = ("onnx", "pt2")
INT8_AGREEMENT = 0.9
"""Least share of photographs for which int8 must predict the same class as float32."""

_TIMED_BATCH, _TIMED_ROUNDS = 8, 7


@dataclass(frozen=True)
class FileResult:
    """Size of a file in bytes, its agreement with PyTorch, and images per second (int8 exports only)."""

    size: int
    agreement: Agreement
    speed: Spread | None


@dataclass(frozen=True)
class ExportReport:
    """The result of an export.

    Attributes:
        path: The file.
        kind: "onnx" or "pt2".
        checked_on: Description of the images on which it was checked.
        files: Results for "float32" and, if requested, "int8".
        refusal: Why `load_exported` refuses the file without `trusted=True`; empty if it does not. A reduction that is
            not part of clca may use operators that are not on its lists.
    """

    path: Path
    kind: str
    checked_on: str
    files: dict[str, FileResult]
    refusal: str = ""

    def lines(self) -> list[str]:
        """The report as lines of text."""
        agreement = next(iter(self.files.values())).agreement
        batches = ", ".join(map(str, agreement.batches))
        lines = [f"checked against PyTorch on {agreement.images} images ({self.checked_on}), in batches of {batches}"]
        lines += [f"  {_line(name, result)}" for name, result in self.files.items()]
        if self.refusal:
            lines.append(f"load_exported loads this file only with trusted=True: {self.refusal}")
        return [*lines, f"written to {self.path}"]


def _line(name: str, result: FileResult) -> str:
    agreement = result.agreement
    parts = [
        f"{name:<7}  {result.size / 1e6:.1f} MB",
        f"logits differ by at most {agreement.largest:.1e} (largest {agreement.scale:.1f})",
        f"same class {agreement.top1:.1%}",
    ]
    if not math.isnan(agreement.accuracy):
        parts.append(f"top-1 {agreement.accuracy:.1%} (PyTorch {agreement.reference_accuracy:.1%})")
    if result.speed is not None:
        parts.append(f"{result.speed.median:.1f} images/s ({result.speed.p10:.1f} to {result.speed.p90:.1f})")
    return ", ".join(parts)


def export_run(
    run: str | Path,
    to: str = "onnx",
    out: str | Path | None = None,
    *,
    keep_rate: float | tuple[float, ...] | None = None,
    int8: bool = False,
    images: Sequence[str | Path] = (),
) -> ExportReport:
    """Export a run and check the file; it is written to its place only if the check succeeds.

    Args:
        run: Run folder, or folder or hub id of a saved model.
        to: "onnx" or "pt2".
        out: The file; None: `model.onnx`, `model-int8.onnx` or `model.pt2` in the run folder, or in the current folder
            for a hub id.
        keep_rate: Keep rate, or one per location, instead of that with which the run was trained.
        int8: Quantise the linear layers (ONNX only); the loss is measured against a float32 file.
        images: Images for the check, at most 256 of which are used; empty: the test images of the run, else synthetic
            ones.

    Raises:
        ClcaError: The run or an image does not exist, the arguments are inconsistent, or `out` is a file that belongs
            to the run.
        WorkError: The model cannot be exported, or the file does not agree with PyTorch and is removed.
    """
    if to not in KINDS:
        raise ClcaError(f"cannot export to {to!r}: choose from {', '.join(KINDS)}")
    if int8 and to != "onnx":
        raise ClcaError(f"int8 requires ONNX: export to onnx, or to {to} without int8")
    if to == "onnx":
        require_onnx()
    trained = RunFolder(run)
    folder = trained.path if trained.exists else Path()
    path = Path(out) if out is not None else folder / f"model{'-int8' if int8 else ''}.{to}"
    refuse_run_file(path, folder)
    model = trained.load_model()
    if model.classes is None or model.preprocess is None:
        raise ClcaError(f"{run}: the saved model has no classes or preprocessing: set both and save it again")
    if keep_rate is not None:
        model.keep_rate = keep_rate
    check_images = find_check_images(model, trained, images)
    with replacing(path, in_own_folder=True) as temporary:
        _log.info("exporting to %s …", to)
        if to == "pt2":
            files = {"float32": temporary}
            save_pt2(model, capture(model, model_name(model)), temporary)
        else:
            proto = build_onnx(model)
            files = {"float32": temporary.with_name(f"{temporary.name}.float32") if int8 else temporary}
            files |= {"int8": temporary} if int8 else {}
            for name, file in files.items():
                save_onnx(model, proto, file, int8=name == "int8")
        _log.info("checking on %d images (%s) …", len(check_images), check_images.description)
        loaded, refusal = _load_files(files)
        results = _check_files(model, files, loaded, check_images)
        return ExportReport(path, to, check_images.description, results, refusal)


def _load_files(files: dict[str, Path]) -> tuple[dict[str, Exported], str]:
    """Load each file untrusted or, if that is refused, trusted; also return the reason of the refusal."""
    loaded, refusal = {}, ""
    for name, file in files.items():
        try:
            loaded[name] = load_exported(file)
        except ClcaError as error:
            loaded[name], refusal = load_exported(file, trusted=True), _reason(error, file)
    return loaded, refusal


def _reason(error: ClcaError, file: Path) -> str:
    """The message without the path of the temporary file and without the advice to trust it."""
    return str(error).removeprefix(f"{file}: ").removesuffix(f"; {TRUST}")


def _check_files(
    model: TokenReducedViT, files: dict[str, Path], loaded: dict[str, Exported], images: CheckImages
) -> dict[str, FileResult]:
    """Check all files and, if there are two, measure their speed."""
    agreements = dict(zip(loaded, check_exported(model, list(loaded.values()), images), strict=True))
    agreements["float32"].require("the exported file")
    if "int8" in agreements:
        int8 = agreements["int8"]
        if not math.isfinite(int8.largest) or (images.real and int8.top1 < INT8_AGREEMENT):
            raise WorkError(
                f"int8 predicts the same class for only {int8.top1:.1%} of {int8.images} images, so it was not kept: "
                "export without int8"
            )
    speeds: dict[str, Spread] = {}
    if len(files) > 1:
        batch = torch.stack([images.read(i % len(images)) for i in range(_TIMED_BATCH)])
        times = interleaved({name: lambda file=file: file(batch) for name, file in loaded.items()}, _TIMED_ROUNDS)  # type: ignore[misc]
        speeds = {name: Spread.of([_TIMED_BATCH / t for t in seconds]) for name, seconds in times.items()}
    sizes = {name: file.stat().st_size for name, file in files.items()}
    return {name: FileResult(sizes[name], agreements[name], speeds.get(name)) for name in files}
