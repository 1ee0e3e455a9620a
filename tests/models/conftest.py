"""Hands out the golden vectors one by one."""

import os
from pathlib import Path

import pytest


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that takes `golden_file` runs once for every file of the shared folder's `golden/`."""
    if "golden_file" in metafunc.fixturenames:
        folder = Path(os.environ.get("CLCA_SHARED", Path(__file__).resolve().parents[3] / "shared")) / "golden"
        files = sorted(folder.glob("*.safetensors"))
        metafunc.parametrize("golden_file", files, ids=[file.stem for file in files])
