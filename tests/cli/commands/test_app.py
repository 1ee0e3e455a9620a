"""`clca app`: what it refuses before a model is loaded, and that it ends while a page is open."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from clca.app import PageSettings
from clca.cli import serving
from clca.cli.commands import app
from clca.errors import ClcaError

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("options", "told"),
    [([], "RUN is missing: Run folders"), (["x", "--batch-files", "0"], "--batch-files 0"),
     (["x", "--examples", "nowhere"], "nowhere"),
     (["x", "--words", "nowhere"], "no such folder of translations"), (["x", "--upload-mib", "-1"], "--upload-mib -1"),
     (["x", "--prot", "3"], "did you mean --port"), (["x", "--queue", "0"], "--queue 0")],
)  # fmt: skip
def test_a_mistake_is_one_line(options: list[str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ClcaError, match=told):
        app.run(options)


def test_a_missing_package_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(serving._PACKAGES, "app", ("no_such_package",))
    with pytest.raises(ClcaError, match=r"needs no_such_package: pip install 'clca\[app\]'"):
        app.run(["x"])


def test_examples_without_a_class_of_the_model_are_refused(vines: Path, tmp_path: Path) -> None:
    from small_page import draw

    from clca.app import create_app

    other = tmp_path / "photographs"
    for split in ("train", "val", "test"):
        for name in ("oak", "elm"):
            for number in range(3):
                draw(other / split / name / f"{number}.png", 0, number)
    with pytest.raises(ClcaError, match="no image of a class of vines"):
        create_app([vines], page=PageSettings(examples=other))


def test_it_ends_soon_while_a_page_is_open_and_leaves_nothing_behind(vines: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "clca", "app", str(vines), "--port", "0", "--no-browser", "--device", "cpu"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )  # fmt: skip
    try:
        assert process.stdout is not None
        address = None
        for line in process.stdout:
            if found := re.search(r"the page of vines is at (http://127\.0\.0\.1:\d+);", line):
                address = found.group(1)
                break
        assert address is not None
        assert len(list(tmp_path.glob("clca-page-*"))) == 1
        with httpx.stream("GET", f"{address}/gradio_api/heartbeat/abc", timeout=60) as stream:
            assert stream.status_code == 200
            began = time.monotonic()
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0
            assert time.monotonic() - began < 20
        assert list(tmp_path.glob("clca-page-*")) == []
        assert "Traceback" not in process.stdout.read()
    finally:
        process.kill()
