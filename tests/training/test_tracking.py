"""`--track` with the real libraries: every number arrives, and a run that was interrupted goes on in the same place."""

import json
import os
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from waiting import until

from clca.training import TrainConfig, train, trainer

pytestmark = pytest.mark.slow

Make = Callable[..., TrainConfig]


def train_in_two_parts(config: TrainConfig, monkeypatch: pytest.MonkeyPatch, stop: int = 4) -> list[dict[str, Any]]:
    """Fail before update `stop` + 1, one past the last checkpoint, go on; the lines of metrics.jsonl."""
    step = trainer._Trainer._one_step

    def failing(self: Any, batches: Any) -> bool:
        if self.progress.step == stop:
            raise RuntimeError("the power has gone")
        return step(self, batches)

    with monkeypatch.context() as patch:
        patch.setattr(trainer._Trainer, "_one_step", failing)
        with pytest.raises(RuntimeError, match="the power"):
            train(config, quiet=True)
    train(config, quiet=True)
    return [json.loads(line) for line in (config.out / "metrics.jsonl").read_text().splitlines()]  # type: ignore[operator]


def flat(lines: list[dict[str, Any]]) -> set[tuple[str, int]]:
    """(name, step) of all that was sent."""
    found = set()
    for line in lines:
        for name, value in line.items():
            if isinstance(value, dict):
                found |= {(f"{name}/{key}", line["step"]) for key in value}
            elif name != "step" and value is not None:
                found.add((name, line["step"]))
    return found


def test_mlflow_goes_on_in_the_same_run(make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/store.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/store.db")
    lines = train_in_two_parts(make_config(track="mlflow", checkpoint_steps=3), monkeypatch)
    client = mlflow.MlflowClient()
    [experiment] = client.search_experiments(filter_string="name = 'clca'")
    [run] = client.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.info.status) == ("run", "FINISHED")
    assert run.data.params["lr"] == "0.001"
    sent = {
        (name, point.step) for name in run.data.metrics for point in client.get_metric_history(run.info.run_id, name)
    }
    assert sent == flat(lines)


def test_a_store_that_knows_the_run_no_more_gets_a_new_one(
    make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts = []

    def init_trackers(self: Any, project: str, settings: dict[str, Any], more: dict[str, Any]) -> None:
        starts.append(more["mlflow"])
        if "run_id" in more["mlflow"]:
            raise RuntimeError("no such run")

    monkeypatch.setattr("accelerate.Accelerator.init_trackers", init_trackers)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: object())
    load = trainer.RunState._resume

    def resume(self: Any) -> None:
        load(self)
        self.progress.tracked = "gone"

    monkeypatch.setattr(trainer.RunState, "_resume", resume)
    train(make_config(track="mlflow"), quiet=True)
    assert starts == [{"run_id": "gone"}, {"run_name": "run"}]


def log_records(content: bytes) -> Iterator[bytes]:
    """The records of a .wandb file: LevelDB's log (blocks of 32 KiB; checksum, length and type before each piece)."""
    at, held = 7, b""  # after wandb's own header
    while at + 7 <= len(content):
        if 32768 - at % 32768 < 7:  # too little for another piece: filled up
            at += 32768 - at % 32768
            continue
        length, kind = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
        held += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or its last piece
            yield held
            held = b""


def test_wandb_goes_on_in_the_same_run(make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    records = pytest.importorskip("wandb.proto.wandb_internal_pb2")
    for name, value in {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "WANDB_DIR": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    lines = train_in_two_parts(make_config(track="wandb", checkpoint_steps=3), monkeypatch)
    files = sorted(tmp_path.glob("wandb/offline-run-*/run-*.wandb"))
    assert len(files) >= 2  # older versions of accelerate begin twice where it is offline
    assert len({file.name for file in files}) == 1, "a part is another run"
    settings = {}

    def sent() -> set[tuple[str, int]]:
        found = set()
        for data in (data for file in files for data in log_records(file.read_bytes())):
            record = records.Record.FromString(data)
            if record.HasField("history"):
                items = {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
                found |= {(key, int(items["_step"])) for key in items if not key.startswith("_")}
            for item in (*record.config.update, *record.run.config.update):
                settings[item.key] = item.value_json
        return found

    # Another process writes, and may not be through yet.
    assert until(lambda: (found := sent()) >= flat(lines) and found) == flat(lines)
    assert json.loads(settings["lr"]) == 0.001


def test_tensorboard_shows_no_step_twice(make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = make_config(track="tensorboard", checkpoint_steps=3)
    lines = train_in_two_parts(config, monkeypatch)
    seen = EventAccumulator(str(tmp_path / "run" / "clca")).Reload()
    sent = Counter((name, event.step) for name in seen.Tags()["scalars"] for event in seen.Scalars(name))
    assert set(sent) == flat(lines)
    # The line of an epoch's last step and that of the epoch both name the epoch.
    assert all(count == 1 for (name, _), count in sent.items() if name != "epoch")


@pytest.fixture
def silent_server() -> Iterator[str]:
    """The address of a server that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=50) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def refused_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize(("track", "where"), [("mlflow", "silent"), ("wandb", "silent"), ("mlflow", "refused")])
def test_a_tracker_without_an_answer_fails_within_seconds(
    tmp_path: Path, images: Path, silent_server: str, track: str, where: str
) -> None:
    """As a command of its own, since such a library may also hold up the end of the program."""
    pytest.importorskip(track)
    address = {"silent": silent_server, "refused": refused_port()}[where]
    variables = {"MLFLOW_TRACKING_URI": address, "WANDB_BASE_URL": address, "WANDB_API_KEY": "0" * 40}
    variables |= {"WANDB_DIR": str(tmp_path), "WANDB_SILENT": "true", "NO_PROXY": "*"}
    code = (
        "import sys, time, importlib; importlib.import_module(sys.argv[1]); import clca.training.trainer\n"
        "begin = time.monotonic(); from clca.cli.main import main\n"
        "code = main(sys.argv[2:]); print(time.monotonic() - begin); sys.exit(code)"
    )
    model = ["--model", "vit_tiny_patch16_224", "--no-pretrained", "--img-size", "32", "--epochs", "1"]
    argv = ["train", str(images), *model, "--workers", "0", "--device", "cpu", "--track", track]
    done = subprocess.run(
        [sys.executable, "-c", code, track, *argv, "--out", str(tmp_path / "run")],
        env=os.environ | variables, capture_output=True, text=True, timeout=90,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert f"--track {track}: could not be started" in done.stderr
    assert float(done.stdout.split()[-1]) < 15
    assert not (tmp_path / "run" / "config.json").exists()


def test_a_tracker_that_stops_answering_ends_nothing(
    make_config: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("tensorboard")
    gate = threading.Event()
    monkeypatch.setattr("clca.training.state._SEND_SECONDS", 0.2)
    monkeypatch.setattr("accelerate.Accelerator.log", lambda *_, **__: gate.wait(60))
    caplog.set_level("INFO", "clca")
    assert train(make_config(track="tensorboard")).steps == 6
    assert [line for line in caplog.messages if "--track" in line] == [
        "--track tensorboard: no answer within 0.2 seconds; nothing more is sent there; metrics.jsonl has all metrics"
    ]
    gate.set()
