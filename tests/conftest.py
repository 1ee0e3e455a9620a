"""Shared fixtures: where the golden vectors and real images are, and tiny models that run in milliseconds."""

import gc
import os

# One thread a test process: the processes of pytest-xdist would fight over the same cores. Before torch is loaded.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
import torch
from shared_data import shared_folder

import clca

# Loaded libraries are a million objects that stay: going through them again and again is a tenth of all tests' time.
gc.set_threshold(50_000, 20, 20)

# How long an example takes says more about what else the machine does than about the code.
hypothesis.settings.register_profile("clca", deadline=None)
hypothesis.settings.load_profile("clca")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Import only files with tests of the tier that runs: importing all takes 15 seconds."""
    tier = config.getoption("-m")
    if tier not in ("slow", "not slow") or not collection_path.name.startswith("test_") or collection_path.is_dir():
        return None
    text = collection_path.read_text("utf-8")
    left_out = "pytest.mark.slow" not in text if tier == "slow" else "\npytestmark = pytest.mark.slow\n" in text
    return left_out or None


def pytest_collection_finish() -> None:
    """What is loaded by now stays: the garbage collector need not look at it again."""
    gc.freeze()


def pytest_unconfigure() -> None:
    gc.unfreeze()  # some libraries complain at the end about what could not be collected


@pytest.fixture(scope="session", autouse=True)
def _cache_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> None:
    """No test reads or writes the resized images that the user keeps."""
    os.environ["CLCA_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    os.environ.pop("CLCA_CACHE_GB", None)


@pytest.fixture(scope="session", autouse=True)
def _server_of_processes(request: pytest.FixtureRequest) -> None:
    """Slow tests fork dozens of processes from a server; one that has imported the library saves seconds for each."""
    if request.config.getoption("-m") == "slow":
        from bounded import start_server

        start_server()


@pytest.fixture(scope="session")
def shared() -> Path:
    folder = shared_folder()
    if folder is None:
        pytest.skip("no shared folder: set CLCA_SHARED to the folder that holds golden/ and data/")
    return folder


@pytest.fixture(scope="module", params=[True, False], ids=["fast kernels", "plain kernels"])
def either_kernels(request: pytest.FixtureRequest) -> Iterator[None]:
    """Run the tests of a module with this machine's fast paths, and again with plain modules alone."""
    with clca.fast_kernels(request.param):
        yield


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
