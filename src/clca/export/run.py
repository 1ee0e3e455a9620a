"""`export_run(run)`: a run in one file, checked against PyTorch on images before it takes its place."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from clca.errors import ClcaError, WorkError
from clca.export.check import Agreement, check_exported
from clca.export.load import Exported, load_exported
from clca.export.metadata import TRUST
from clca.export.onnx_file import build_onnx, need_onnx, save_onnx
from clca.export.check_images import Pictures, find_pictures
from clca.export.program import called, capture, save_pt2
from clca.models.pretrained import from_pretrained
from clca.models.token_reduced_vit import TokenReducedViT
from clca.system.files import replacing
from clca.system.timing import Spread, interleaved
from clca.training.run_folder import refuse_run_file

_log = logging.getLogger(__name__)

KINDS = ("onnx", "pt2")
INT8_AGREEMENT = 0.9
"""Share of photographs whose most likely class int8 must leave as it is; less is taken for damage."""

_TIMED_BATCH, _TIMED_ROUNDS = 8, 7


@dataclass(frozen=True)
class FileResult:
    """One file: its bytes, how it agrees with PyTorch, and images per second (int8 exports only)."""

    size: int
    agreement: Agreement
    speed: Spread | None


@dataclass(frozen=True)
class ExportReport:
    """What an export came to.

    Attributes:
        path: The file.
        kind: "onnx" or "pt2".
        pictures: What it was checked on, in words.
        files: "float32", and where it was asked for "int8".
        refusal: Why `load_exported` does not load the file without `trusted=True`; empty if it does. A reduction that
            does not come with clca may use operators that are not on its lists.
    """

    path: Path
    kind: str
    pictures: str
    files: dict[str, FileResult]
    refusal: str = ""

    def lines(self) -> list[str]:
        """To print."""
        agreement = next(iter(self.files.values())).agreement
        batches = ", ".join(map(str, agreement.batches))
        told = [f"checked against PyTorch on {agreement.images} images ({self.pictures}), in batches of {batches}"]
        told += [f"  {_line(name, result)}" for name, result in self.files.items()]
        if self.refusal:
            told.append(f"load_exported loads this file only with trusted=True: {self.refusal}")
        return [*told, f"written to {self.path}"]


def _line(name: str, result: FileResult) -> str:
    found = result.agreement
    parts = [
        f"{name:<7}  {result.size / 1e6:.1f} MB",
        f"logits differ by at most {found.largest:.1e} (largest {found.scale:.1f})",
        f"same class {found.top1:.1%}",
    ]
    if not math.isnan(found.accuracy):
        parts.append(f"right {found.accuracy:.1%} (PyTorch {found.reference_accuracy:.1%})")
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
    """Export a run, check the file, and only then put it in its place.

    Args:
        run: Run folder, or a saved model's folder or hub id.
        to: "onnx" or "pt2".
        out: The file; None: `model.onnx`, `model-int8.onnx` or `model.pt2` in the run folder, or here for a hub id.
        keep_rate: Keep this share of tokens, or one a location, instead of what the run was trained with.
        int8: Quantise the linear layers (ONNX only); what it costs is measured beside the float file.
        images: What to check on; empty: the run's test images, else synthetic ones. At most 256 are looked at.

    Raises:
        ClcaError: There is no such run or image, what is asked for does not go together, or `out` is one of the files
            that a run is made of.
        WorkError: The model cannot be exported, or the file does not agree with PyTorch; nothing is left of it.
    """
    if to not in KINDS:
        raise ClcaError(f"cannot export to {to!r}: choose from {', '.join(KINDS)}")
    if int8 and to != "onnx":
        raise ClcaError(f"int8 is made for ONNX only: export to onnx, or to {to} without int8")
    if to == "onnx":
        need_onnx()
    folder = Path(run) if Path(run).is_dir() else Path()
    path = Path(out) if out is not None else folder / f"model{'-int8' if int8 else ''}.{to}"
    refuse_run_file(path, folder)
    model = from_pretrained(run)
    if model.classes is None or model.preprocess is None:
        raise ClcaError(
            f"{run}: the saved model does not say its classes and preprocessing: set both and save it again"
        )
    if keep_rate is not None:
        model.keep_rate = keep_rate
    pictures = find_pictures(model, run, images)
    with replacing(path, in_own_folder=True) as temporary:
        _log.info("exporting to %s …", to)
        if to == "pt2":
            files = {"float32": temporary}
            save_pt2(model, capture(model, called(model)), temporary)
        else:
            proto = build_onnx(model)
            files = {"float32": temporary.with_name(f"{temporary.name}.float32") if int8 else temporary}
            files |= {"int8": temporary} if int8 else {}
            for name, file in files.items():
                save_onnx(model, proto, file, int8=name == "int8")
        _log.info("checking on %d images (%s) …", len(pictures), pictures.what)
        loaded, refusal = _loaded(files)
        return ExportReport(path, to, pictures.what, _examined(model, files, loaded, pictures), refusal)


def _loaded(files: dict[str, Path]) -> tuple[dict[str, Exported], str]:
    """Each file as others load it, or as trusted where they cannot; and why they cannot."""
    loaded, refusal = {}, ""
    for name, file in files.items():
        try:
            loaded[name] = load_exported(file)
        except ClcaError as error:
            loaded[name], refusal = load_exported(file, trusted=True), _reason(error, file)
    return loaded, refusal


def _reason(error: ClcaError, file: Path) -> str:
    """A refusal without the name of a file that is there for a moment, and without how to go past it."""
    return str(error).removeprefix(f"{file}: ").removesuffix(f"; {TRUST}")


def _examined(
    model: TokenReducedViT, files: dict[str, Path], loaded: dict[str, Exported], pictures: Pictures
) -> dict[str, FileResult]:
    """Check every file, and where there are two time them too."""
    agreements = dict(zip(loaded, check_exported(model, list(loaded.values()), pictures), strict=True))
    agreements["float32"].require("the exported file")
    if "int8" in agreements:
        found = agreements["int8"]
        if not math.isfinite(found.largest) or (pictures.real and found.top1 < INT8_AGREEMENT):
            raise WorkError(
                f"int8 leaves the class of only {found.top1:.1%} of {found.images} images as it was, so it was not "
                "kept: export without int8"
            )
    speeds: dict[str, Spread] = {}
    if len(files) > 1:
        batch = torch.stack([pictures.read(i % len(pictures)) for i in range(_TIMED_BATCH)])
        times = interleaved({name: lambda file=file: file(batch) for name, file in loaded.items()}, _TIMED_ROUNDS)  # type: ignore[misc]
        speeds = {name: Spread.of([_TIMED_BATCH / t for t in seconds]) for name, seconds in times.items()}
    sizes = {name: file.stat().st_size for name, file in files.items()}
    return {name: FileResult(sizes[name], agreements[name], speeds.get(name)) for name in files}
