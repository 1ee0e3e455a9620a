"""The contact sheet of mistakes."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clca.plots.contact_sheet import _wrapped, draw_contact_sheet

ODD = ["[red]a", "c$^$ $x", "d\x1b[31m\n", "x" * 300, "\udcff", ""]


@pytest.mark.parametrize(("count", "columns"), [(1, 1), (7, 7), (23, 10)])
def test_every_thumbnail_is_on_it(tmp_path: Path, count: int, columns: int) -> None:
    pictures = [np.full((40 + k, 60, 3), (200, 30, 30), np.uint8) for k in range(count)]
    names = [ODD[k % len(ODD)] for k in range(count)]
    draw_contact_sheet(tmp_path / "m.jpg", pictures, names, names, f"{count} mistakes")
    with Image.open(tmp_path / "m.jpg") as sheet:
        assert sheet.format == "JPEG"
        pixels = np.asarray(sheet).astype(int)
    red = (pixels[..., 0] > 150) & (pixels[..., 1] < 90) & (pixels[..., 2] < 90)
    assert red.sum() == pytest.approx(sum(p.shape[0] * p.shape[1] for p in pictures), rel=0.15)
    assert pixels.shape[1] >= columns * 132


@pytest.mark.parametrize("name", [*ODD, "Glycine max cv. Nongda 12345 (Hebei, 2019) number 17"])
def test_names_fit_below(name: str) -> None:
    lines = _wrapped(name).split("\n")
    assert len(lines) <= 2
    assert all(len(line) <= 23 for line in lines)
