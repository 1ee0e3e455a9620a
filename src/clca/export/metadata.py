"""What an exported file says of itself, so that a stranger can use it in another language."""

from __future__ import annotations

import json
from importlib.metadata import version
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, Strict

from clca.data.transforms import from_preprocess
from clca.errors import ClcaError
from clca.models.cost import cost
from clca.models.limits import LARGEST_SIDE
from clca.models.token_reduced_vit import TokenReducedViT

INPUT, OUTPUT, BATCH = "images", "logits", "batch"
_FORMAT = "clca-export-1"

TRUST = "if you trust its source, load_exported(path, trusted=True) loads it"
"""How a refusal of what may be an honest file ends."""

_Side = Annotated[int, Field(ge=1, le=LARGEST_SIDE)]
_Channels = Annotated[int, Field(ge=1, le=1024)]
_Outputs = Annotated[int, Field(ge=0, le=1_000_000)]  # 0: features, of a model without a classifier


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


class _Metadata(_Part):
    """What is read back; further entries are for people."""

    format: Literal[_FORMAT]  # type: ignore[valid-type]
    classes: list[str] | None
    preprocess: dict[str, Any] | None
    input: _Input
    output: _Output


def check_metadata(metadata: Any) -> None:
    """Refuse what `describe` would not have written.

    Raises:
        ValueError: With the entry at fault; a `ClcaError` if it is one of `preprocess`.
    """
    found = _Metadata.model_validate(metadata)
    outputs = found.output.shape[1]
    if found.classes is not None and len(found.classes) != outputs:
        raise ClcaError(f"classes has {len(found.classes)} names, and there are {outputs} outputs")
    if found.preprocess is not None:
        from_preprocess(found.preprocess)


def describe(model: TokenReducedViT, **more: Any) -> dict[str, Any]:
    """Plain JSON values by name; in ONNX each is one entry of `metadata_props`, as JSON text.

    Args:
        model: What is exported.
        **more: Further entries: opset, quantization.

    Returns:
        `classes` (label k is the k-th; None if the model does not say), `preprocess` (the numbers, and `steps` that say
        in words how a file becomes the input; None likewise), `input` and `output` (name, shape, type, meaning),
        `config`, `keep_rate`, `gmacs` (10⁹ multiply-accumulates of one image), versions.
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
        "config": config,
        "keep_rate": config["keep_rate"],
        "gmacs": round(cost(model).gmacs, 6),
        "clca_version": version("clca"),
        "torch_version": torch.__version__,
        **more,
    }


def steps(preprocess: dict[str, Any]) -> list[str]:
    """How an image file becomes the input, in words; `clca.data.images` and `clca.data.transforms` in Python."""
    size, side, how = preprocess["img_size"], preprocess["resize"], preprocess["interpolation"]
    resize = (
        f"Resize to {side} × {side} pixels, whatever the aspect ratio"
        if preprocess["square"]
        else f"Resize so that the shorter side has {side} pixels; the longer one has "
        f"floor({side} × longer / shorter), so the aspect ratio stays"
    )
    mean, std = (", ".join(f"{value:g}" for value in preprocess[name]) for name in ("mean", "std"))
    return [
        "Decode to 8-bit RGB (sRGB values as stored; 16-bit grey becomes round(value / 257), of 16-bit colour and of "
        "16-bit grey with transparency the higher byte is taken); turn it upright by its EXIF orientation; lay "
        "transparency on white, rounded to 8 bits.",
        f"{resize}: {how}, antialiased as Pillow's Image.resize does when it shrinks (bicubic with a = -0.5), "
        "rounded to 8 bits.",
        f"Cut out the central {size} × {size} pixels: the first column kept is (width - {size}) / 2, the first row "
        f"(height - {size}) / 2, halves rounded to the even number.",
        "Divide by 255.",
        f"Subtract the mean ({mean}) and divide by the deviation ({std}) of each channel, in the order red, green, "
        "blue.",
        "Order as image, channel, row, column, in float32.",
    ]
