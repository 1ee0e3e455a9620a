"""Metadata of an exported file, which make it usable without clca and in other languages."""

from __future__ import annotations

import json
from dataclasses import asdict
from importlib.metadata import version
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, Strict

from clca.data.transforms import from_preprocess
from clca.errors import ClcaError
from clca.models.confidence import Confidence
from clca.models.cost import cost
from clca.models.limits import LARGEST_SIDE
from clca.models.token_reduced_vit import TokenReducedViT

INPUT, OUTPUT, UNFAMILIARITY, BATCH = "images", "logits", "unfamiliarity", "batch"
_FORMAT = "clca-export-1"

TRUST = "if you trust its source, load_exported(path, trusted=True) loads it"
"""End of the error message when a file that may be harmless is refused."""

_Side = Annotated[int, Field(ge=1, le=LARGEST_SIDE)]
_Channels = Annotated[int, Field(ge=1, le=1024)]
_Outputs = Annotated[int, Field(ge=0, le=1_000_000)]  # 0: a model without a classifier, which outputs features


class _Part(BaseModel):
    model_config = ConfigDict(strict=True)


class _Input(_Part):
    name: Literal[INPUT]  # type: ignore[valid-type]
    shape: Annotated[tuple[Literal[BATCH], _Channels, _Side, _Side], Strict(False)]  # type: ignore[valid-type]
    dtype: Literal["float32"]


class _Output(_Part):
    name: Literal[OUTPUT]  # type: ignore[valid-type]
    shape: Annotated[tuple[Literal[BATCH], _Outputs], Strict(False)]  # type: ignore[valid-type]
    dtype: Literal["float32"]


class _Confidence(_Part):
    output: Literal[UNFAMILIARITY]  # type: ignore[valid-type]
    temperature: Annotated[float, Field(gt=0, le=1e6)]


class _Metadata(_Part):
    """The entries that are read back; others are documentation."""

    format: Literal[_FORMAT]  # type: ignore[valid-type]
    classes: list[str] | None
    preprocess: dict[str, Any] | None
    input: _Input
    output: _Output
    confidence: _Confidence | None = None


def one_line(text: str) -> str:
    """Sanitise text from an untrusted file for an error message: one short, printable line."""
    line = "".join(letter if letter.isprintable() else "?" for letter in text)
    return line if len(line) <= 120 else f"{line[:120]}…"


def check_metadata(metadata: Any) -> None:
    """Validate metadata written by `describe`.

    Raises:
        ValueError: An entry is missing or invalid; a `ClcaError` if it is in `preprocess`.
    """
    found = _Metadata.model_validate(metadata)
    outputs = found.output.shape[1]
    if found.classes is not None and len(found.classes) != outputs:
        raise ClcaError(f"classes has {len(found.classes)} names for {outputs} outputs")
    if found.preprocess is not None:
        from_preprocess(found.preprocess)


def describe(model: TokenReducedViT, **more: Any) -> dict[str, Any]:
    """Describe a model as plain JSON values by name; in ONNX, each is an entry of `metadata_props`, as JSON text.

    Args:
        model: The exported model.
        **more: Further entries: opset, quantization.

    Returns:
        `classes` (in the order of the logits; None if the model has none), `preprocess` (its settings, and `steps`,
        which describe in words how to prepare an image file; None if the model has none), `input` and `output` (name,
        shape, type, meaning), `confidence` (temperature, and the second output; None if the model has none at its keep
        rate), `config`, `keep_rate`, `gmacs` (10⁹ multiply-accumulates per image), versions.
    """
    height, width = model.patch_embed.img_size
    config = json.loads(model.config.model_dump_json())
    return {
        "format": _FORMAT,
        "classes": model.classes,
        "preprocess": None if model.preprocess is None else model.preprocess | {"steps": steps(model.preprocess)},
        "input": {
            "name": INPUT,
            "shape": [BATCH, model.in_chans, height, width],
            "layout": "image, channel, row from the top, column from the left",
            "channels": "red, green, blue" if model.in_chans == 3 else f"{model.in_chans} channels",
            "dtype": "float32",
            "range": "0 to 1, minus mean, over std; see preprocess.steps",
        },
        "output": {
            "name": OUTPUT,
            "shape": [BATCH, model.num_classes],
            "dtype": "float32",
            "meaning": "scores before softmax, in the order of classes",
        },
        "confidence": _described_confidence(model),
        "config": config,
        "keep_rate": config["keep_rate"],
        "gmacs": round(cost(model).gmacs, 6),
        "clca_version": version("clca"),
        "torch_version": torch.__version__,
        **more,
    }


def confidence_of(model: TokenReducedViT) -> Confidence | None:
    """The confidence that is exported with a model: that of its keep rate."""
    return None if model.confidence is None else model.confidence.at(model.keep_rate)


def _described_confidence(model: TokenReducedViT) -> dict[str, Any] | None:
    found = confidence_of(model)
    if found is None:
        return None
    return {
        "temperature": found.temperature.item(),
        "probabilities": "softmax(logits / temperature)",
        "output": UNFAMILIARITY,
        "shape": [BATCH],
        "dtype": "float32",
        "meaning": "distance from the known classes; an image with more than 1 is none of them",
        **asdict(found.facts),
    }


def steps(preprocess: dict[str, Any]) -> list[str]:
    """Describe in words how an image file is prepared; `clca.data.images` and `clca.data.transforms` implement it."""
    size, side, how = preprocess["img_size"], preprocess["resize"], preprocess["interpolation"]
    resize = (
        f"Resize to {side} × {side} pixels, whatever the aspect ratio"
        if preprocess["square"]
        else f"Resize so that the shorter side has {side} pixels; the longer one has "
        f"floor({side} × longer / shorter), so the aspect ratio stays"
    )
    mean, std = (", ".join(f"{value:g}" for value in preprocess[name]) for name in ("mean", "std"))
    return [
        "Decode to 8-bit RGB (16-bit grey becomes round(value / 257), of 16-bit colour and of 16-bit grey with "
        "transparency the higher byte is taken); convert it from an embedded ICC profile to sRGB with perceptual "
        "intent and black point compensation, otherwise leave the values as stored; turn it upright by its EXIF "
        "orientation; lay transparency on white, rounded to 8 bits.",
        f"{resize}: {how}, antialiased as Pillow's Image.resize does when it shrinks (bicubic with a = -0.5), "
        "rounded to 8 bits.",
        f"Cut out the central {size} × {size} pixels: the first column kept is (width - {size}) / 2, the first row "
        f"(height - {size}) / 2, halves rounded to the even number.",
        "Divide by 255.",
        f"Subtract the mean ({mean}) and divide by the deviation ({std}) of each channel, in the order red, green, "
        "blue.",
        "Order as image, channel, row, column, in float32.",
    ]
