"""Runs as a person or a cluster starts them: killed, interrupted, and spread over two processes."""

import copy
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from clca.training import TrainConfig, train

pytestmark = pytest.mark.slow

Make = Callable[..., TrainConfig]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def command(config: TrainConfig, file: Path, launcher: tuple[str, ...] = ()) -> list[str]:
    """The command line of a config, by way of a YAML file."""
    settings = {name: value for name, value in config.model_dump(mode="json").items() if value is not None}
    file.write_text(yaml.safe_dump(settings))
    return [sys.executable, "-m", *launcher, "clca", "train", "--config", str(file)]


def start(words: list[str]) -> subprocess.Popen:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    pipe = subprocess.PIPE
    return subprocess.Popen(words, stdout=pipe, stderr=pipe, text=True, env=environment, start_new_session=True)


def wait_for_step(process: subprocess.Popen, metrics: Path, step: int) -> None:
    deadline = time.monotonic() + 300
    while process.poll() is None and time.monotonic() < deadline:
        if metrics.is_file() and f'"step": {step},' in metrics.read_text():
            return
        time.sleep(0.002)
    pytest.fail(f"step {step} was not reached: {process.communicate()}")


def read_lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_killed_and_interrupted_at_random_steps_it_ends_with_the_same_bits(make_config: Make, tmp_path: Path) -> None:
    settings = {"epochs": 16, "checkpoint_steps": 4, "augmentation": "medium", "ema": 0.9}
    words = command(make_config(**settings), tmp_path / "run.yaml")
    folder = tmp_path / "run"
    steps = random.Random(time.time_ns())
    at = steps.randint(1, 15)

    process = start(words)
    wait_for_step(process, folder / "metrics.jsonl", at)
    process.send_signal(signal.SIGKILL)
    process.communicate()

    process = start(words)
    wait_for_step(process, folder / "metrics.jsonl", at + steps.randint(1, 15))
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=300)
    assert process.returncode == 130
    assert "Traceback" not in stderr
    assert stderr.splitlines()[-1].endswith(f"the same command, or clca train --resume {folder}, continues from there")

    process = start(words)
    printed, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr
    assert f"resuming {folder}" in stderr
    assert f"next: clca evaluate {folder}" in printed

    whole = train(make_config(out=tmp_path / "whole", **settings), quiet=True)
    a, b = load_file(folder / "model.safetensors"), load_file(whole.folder / "model.safetensors")
    assert all(torch.equal(a[name], b[name]) for name in b), f"killed at step {at}"
    for line, other in zip(read_lines(folder), read_lines(whole.folder), strict=True):
        line.pop("images_per_second", None), other.pop("images_per_second", None)
        assert line == other


def test_a_time_limit_that_reaches_the_workers_too_loses_nothing(make_config: Make, tmp_path: Path) -> None:
    words = command(make_config(epochs=200, workers=2), tmp_path / "run.yaml")
    folder = tmp_path / "run"
    process = start(words)
    wait_for_step(process, folder / "metrics.jsonl", 5)
    os.killpg(process.pid, signal.SIGTERM)
    _, stderr = process.communicate(timeout=300)
    assert process.returncode == 128 + signal.SIGTERM, stderr
    assert "Traceback" not in stderr
    assert f"clca train --resume {folder}" in stderr.splitlines()[-1]
    done = max(line["step"] for line in read_lines(folder))
    assert f"stopped after step {done};" in stderr


@pytest.mark.parametrize("model", [{}, {"keep_rates": (0.1, 0.3, 0.5, 1.0)}], ids=["one rate", "several rates"])
def test_two_processes_reach_what_one_does(make_config: Make, tmp_path: Path, model: dict[str, Any]) -> None:
    """The same batches and the same statistics, so the same numbers but for the order of float32 sums.

    Tolerance: losses 1e-4, running statistics and every matrix 1e-3 of its norm. Vectors are left out: softmax takes no
    notice of a key's bias and batch norm none of a shift, and of such gradients, which are rounding noise, Adam makes
    steps of full size; the losses show that they do not matter.
    """
    settings = {"epochs": 3, "augmentation": "medium", "drop_path": 0.0, "grad_accum": 1, "lr": 1e-4, "model": model}
    two_config = make_config(out=tmp_path / "two", **copy.deepcopy(settings))
    launcher = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m")
    process = start(command(two_config, tmp_path / "two.yaml", launcher))
    one = train(make_config(out=tmp_path / "one", **settings), quiet=True)
    _, stderr = process.communicate(timeout=180)
    assert process.returncode == 0, stderr

    lines_of_one, lines_of_two = read_lines(one.folder), read_lines(tmp_path / "two")
    for line, other in zip(lines_of_one, lines_of_two, strict=True):
        if "loss" in line:
            assert line["loss"] == pytest.approx(other["loss"], rel=1e-4)
            assert line["grad_max"] == pytest.approx(other["grad_max"], rel=1e-2)
            assert line["accuracy"] == pytest.approx(other["accuracy"], abs=1e-6)
        else:
            assert line["val"]["images"] == other["val"]["images"] == 18
            assert line["val"]["loss"] == pytest.approx(other["val"]["loss"], rel=1e-4)
    a, b = load_file(one.folder / "model.safetensors"), load_file(tmp_path / "two" / "model.safetensors")
    for name, tensor in a.items():
        if tensor.ndim > 1 or "running" in name:  # the statistics of several rates among them
            assert (b[name] - tensor).norm() <= 1e-3 * tensor.norm(), name
    assert json.loads((tmp_path / "two" / "config.json").read_text())["resolved"]["processes"] == 2
