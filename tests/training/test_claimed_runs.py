"""One process at a time trains a run, however close together two of them begin."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from clca.errors import ClcaError
from clca.training import TrainConfig, metrics_log, train, trainer
from clca.training.metrics_log import MetricsLog, locked_log
from clca.training.run_folder import RunFolder

pytestmark = pytest.mark.slow

pytest.importorskip("fcntl")
Make = Callable[..., TrainConfig]

HOLDS = """
import sys, pathlib
from clca.training.metrics_log import MetricsLog
log = MetricsLog(pathlib.Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


@contextmanager
def held_elsewhere(folder: Path) -> Iterator[None]:
    words = [sys.executable, "-c", HOLDS, str(folder / "metrics.jsonl")]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        yield
        other.kill()


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_run_is_trained_by_one_process_at_a_time(make_config: Make, tmp_path: Path) -> None:
    config = make_config(checkpoint_steps=1)
    train(config, quiet=True)
    (tmp_path / "run" / "summary.json").unlink()
    before = content(tmp_path / "run")
    with held_elsewhere(tmp_path / "run"):
        with pytest.raises(ClcaError, match="another process is training this run; wait until it ends, or"):
            train(config, quiet=True)
        assert content(tmp_path / "run") == before
    train(config, quiet=True)


def test_one_that_begins_beside_another_writes_nothing(
    make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run").mkdir()
    with monkeypatch.context() as patch, held_elsewhere(tmp_path / "run"):
        patch.setattr(trainer, "open_splits", lambda *_: pytest.fail("the images were looked at"))
        with pytest.raises(ClcaError, match="another process is training this run"):
            train(make_config(), quiet=True)
        assert content(tmp_path / "run") == {"metrics.jsonl": b""}
    train(make_config(), quiet=True)  # an empty log is no run, and no other file


@pytest.mark.parametrize(
    ("lr", "message"), [(1e-3, "another process has just trained there"), (1e-4, "holds a different run")]
)
def test_a_run_that_came_between_the_look_and_the_claim_stays(
    make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lr: float, message: str
) -> None:
    state_for, looks = RunFolder.state_for, 0

    def then_another_came(run: RunFolder, config: TrainConfig) -> str:
        nonlocal looks
        looks, state = looks + 1, state_for(run, config)
        if looks == 1:
            train(make_config(lr=lr), quiet=True)
        return state

    monkeypatch.setattr(RunFolder, "state_for", then_another_came)
    with pytest.raises(ClcaError, match=message):
        train(make_config(), quiet=True)
    assert json.loads((tmp_path / "run" / "config.json").read_text())["train"]["lr"] == lr
    assert "summary.json" in content(tmp_path / "run")


def test_a_lock_on_a_removed_file_is_taken_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, lock = tmp_path / "metrics.jsonl", metrics_log._lock

    def lock_after_its_end(file: Any) -> bool:
        monkeypatch.setattr(metrics_log, "_lock", lock)
        path.unlink()
        return lock(file)

    monkeypatch.setattr(metrics_log, "_lock", lock_after_its_end)
    log = MetricsLog(path)
    log.write({"step": 1})
    assert path.read_text() == '{"step": 1}\n'
    log.close()


@pytest.mark.parametrize("stop", [ClcaError("refused"), KeyboardInterrupt()])
@pytest.mark.parametrize(("name", "left"), [("config.json", set()), ("last.ckpt", {"last.ckpt", "metrics.jsonl"})])
def test_nothing_is_left_of_a_start_that_saved_nothing(
    tmp_path: Path, stop: BaseException, name: str, left: set[str]
) -> None:
    def begin_and_end() -> None:
        with locked_log(tmp_path):
            (tmp_path / name).write_text("{}")
            raise stop

    with pytest.raises(type(stop)):
        begin_and_end()
    assert set(content(tmp_path)) == left
