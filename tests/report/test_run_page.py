"""The page of one run: its mistakes as a contact sheet, and the labels that are probably wrong."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from clca.report.run.page import run_report

ROWS = "1,photos/a & <b>.jpg,oak,elm,-0.800000,elm,0.900000\n2,photos/c.jpg,elm,oak,-0.100000,oak,0.500000\n"
HEADS = "rank,path,given_class,suggested_class,margin,predicted_class,probability\n"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run" / "evaluation" / "test"
    folder.mkdir(parents=True)
    (tmp_path / "run" / "config.json").write_text(json.dumps({"format": "clca", "train": {"lr": 0.1}}))
    put(folder)
    return tmp_path / "run"


def put(folder: Path, **numbers: Any) -> None:
    content = {"split": "test", "data": "photos", "images": 4, "top1": 0.5, "judged": "judging 4 test images of photos"}
    (folder / "evaluation.json").write_text(json.dumps(content | numbers))
    (folder / "label_errors.csv").write_text(HEADS + ROWS)
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(folder / "mistakes.jpg")


def text_of(run: Path) -> str:
    return run_report(run, run.parent / "out")[0].read_text()


def test_mistakes_and_probable_label_errors_are_on_the_page(run: Path) -> None:
    text = text_of(run)
    sheet = (run.parent / "out" / "figures" / "mistakes.jpg").read_bytes()
    assert sheet == (run / "evaluation" / "test" / "mistakes.jpg").read_bytes()
    assert "data:image/jpeg;base64," in text
    assert "photos/a &amp; &lt;b&gt;.jpg" in text
    assert "judging 4 test images of photos" in text
    assert "Probable label errors" in text
    assert "has learned their labels" not in text
    assert (run.parent / "out" / "tables" / "label_errors.csv").is_file()


def test_known_and_new_classes_and_a_warning_where_it_was_trained_on_them(run: Path) -> None:
    put(run / "evaluation" / "test", known={"top1": 0.75, "images": 3, "classes": 2}, trained_on=2,
        new={"top1": 0.25, "images": 1, "classes": 1})  # fmt: skip
    text = text_of(run)
    assert "top-1 on known classes" in text
    assert "75.00 % (3 images)" in text
    assert "25.00 % (1 images)" in text
    assert "has learned their labels" in text


@pytest.mark.parametrize("content", [b"", b"<svg/>", b"\x89PNG"])
def test_what_is_no_such_picture_or_table_is_left_out(run: Path, content: bytes) -> None:
    (run / "evaluation" / "test" / "mistakes.jpg").write_bytes(content)
    (run / "evaluation" / "test" / "label_errors.csv").write_text("a,b\n1\n")
    text = text_of(run)
    assert "data:image/jpeg" not in text
    assert "Probable label errors" not in text
    assert not (run.parent / "out" / "figures" / "mistakes.jpg").exists()
