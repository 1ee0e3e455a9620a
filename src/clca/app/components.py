"""Gradio components that take uploads as they come: nothing of a file is believed before our own reader has seen it."""

from pathlib import Path
from typing import Any

import gradio as gr

_LEAST = 0.01


def photograph(label: Any, elem_id: str) -> gr.Image:
    """Drop, choose, paste or take one; events get the path of the uploaded file."""
    image = gr.Image(
        label=label,
        sources=["upload", "clipboard", "webcam"],
        type="filepath",
        image_mode=None,
        height=340,
        elem_id=elem_id,
        buttons=["fullscreen"],
        webcam_options=gr.WebcamOptions(mirror=False),
    )
    image.preprocess = _path  # type: ignore[method-assign]  # a subclass would make Gradio write beside this file
    return image


def files(label: Any, elem_id: str) -> gr.File:
    """Files to choose or drop; events get [(name, path)]."""
    chosen = gr.File(file_count="multiple", label=label, height=220, elem_id=elem_id)
    chosen.preprocess = _names_and_paths  # type: ignore[method-assign, assignment]
    return chosen


def _path(payload: Any) -> str | None:
    """Gradio's own would decode the image first, without our limits."""
    return None if payload is None or payload.path is None else str(payload.path)


def _names_and_paths(payload: Any) -> list[tuple[str, Path]]:
    """Gradio's own would open a temporary file for each, and judge them by their names."""
    if payload is None:
        return []
    listed = payload.root if hasattr(payload, "root") else [payload]
    return [(file.orig_name or Path(file.path).name, Path(file.path)) for file in listed]


def keep_rate(label: Any, info: Any, value: float, free: bool, elem_id: str) -> gr.Slider:
    """The share of tokens that a model keeps."""
    return gr.Slider(
        _LEAST, 1.0, value=value, step=_LEAST, label=label, info=info, interactive=free, elem_id=elem_id, buttons=[]
    )
