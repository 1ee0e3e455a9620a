"""Errors are reported before the long work, and a failed start leaves nothing that blocks the next one."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from clca.cli import main as cli
from clca.errors import ClcaError, WorkError
from clca.system.processes import require_torchrun
from clca.system.signals import Interrupted
from clca.training import TrainConfig, train, trainer
from clca.training.device import make_accelerator
from clca.training.run_folder import RunFolder
from clca.training.trainer import _Trainer, finished_run

pytestmark = pytest.mark.slow

Make = Callable[..., TrainConfig]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"backbone": "vit_tinny_patch16_224"}}, "vit_tinny"),
        ({"model": {"locations": (9,)}}, "location"),
        ({"model": {"img_size": 30}}, "30"),
        ({"weights": "nowhere.pth"}, "nowhere.pth"),
    ],
)
def test_a_setting_is_refused_before_an_image_is_read(
    make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], message: str
) -> None:
    monkeypatch.setattr(trainer, "verify_images", lambda *_, **__: pytest.fail("images were read"))
    with pytest.raises(ClcaError, match=message):
        train(make_config(**changes), quiet=True)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["red\x1b[31m", "leaf\u202egnp", "x" * 200 + "\x07"])
def test_class_folders_that_no_model_could_name_are_refused_first(
    make_config: Make, tmp_path: Path, draw_images: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(trainer, "verify_images", lambda *_, **__: pytest.fail("images were read"))
    root = draw_images(tmp_path / "odd", classes=2, images=2)
    for split in ("train", "val", "test"):
        (root / split / "class1").rename(root / split / name)
    with pytest.raises(ClcaError, match="has control characters: rename it") as stopped:
        train(make_config(data={"root": str(root)}), quiet=True)
    message = str(stopped.value)
    assert message.isprintable()
    assert message.startswith(f"{root}: ")
    assert repr(name[:60])[1:-1] in message
    assert not (tmp_path / "run").exists()


def test_a_folder_that_was_there_stays(make_config: Make, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with pytest.raises(ClcaError):
        train(make_config(weights="nowhere.pth"), quiet=True)
    assert (tmp_path / "run").is_dir()


def test_after_a_failure_before_the_first_checkpoint_another_setting_may_follow(
    make_config: Make, tmp_path: Path
) -> None:
    with pytest.raises(WorkError, match="not finite"):
        train(make_config(lr=1e30, warmup_epochs=0), quiet=True)
    assert not (tmp_path / "run").exists()
    assert train(make_config(), quiet=True).folder == tmp_path / "run"


def test_weights_with_a_loss_on_val_that_is_not_finite_are_reported(make_config: Make) -> None:
    # One update an epoch: the loss before it is finite, and that of the watched images comes next.
    with pytest.raises(WorkError, match=r"the val loss is not finite at step 1 \(epoch 1\); no checkpoint"):
        train(make_config(lr=1e30, warmup_epochs=0, batch_size=18), quiet=True)


def test_after_a_checkpoint_a_failure_keeps_the_run(make_config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    step = trainer._Trainer._one_step

    def failing(self: Any, batches: Any) -> bool:
        if self.progress.step == 2:
            raise torch.OutOfMemoryError("no memory")
        return step(self, batches)

    with monkeypatch.context() as patch:
        patch.setattr(trainer._Trainer, "_one_step", failing)
        config = make_config(checkpoint_steps=1)
        with pytest.raises(torch.OutOfMemoryError):
            train(config, quiet=True)
    with pytest.raises(ClcaError, match="holds a different run"):
        train(make_config(lr=1e-4), quiet=True)
    train(config, quiet=True)


def test_a_tracker_that_cannot_start_is_reported(
    make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def init_trackers(self: Any, *_: object) -> None:
        self.trackers = [object()]  # half made
        raise RuntimeError("api_key not configured (no-tty)")

    monkeypatch.setattr("accelerate.Accelerator.init_trackers", init_trackers)
    with pytest.raises(ClcaError, match=r"--track tensorboard: could not be started \(api_key not configured"):
        train(make_config(track="tensorboard"), quiet=True)
    assert not (tmp_path / "run" / "config.json").exists()


def test_an_early_stop_and_a_finished_run_are_logged(
    make_config: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "clca")
    monkeypatch.setattr(trainer._Trainer, "_note_if_best", lambda self, _: setattr(self.progress, "stale", 9) or False)
    config = make_config(epochs=9, patience=9)
    train(config)
    assert "no improvement on val for 9 epochs: stopped early" in caplog.text
    train(config)
    assert "already finished" in caplog.text


@pytest.mark.parametrize(
    ("words", "message"), [(["--epochs", "9"], "--epochs"), (["--lr=1"], "--lr"), (["--recipe", "best"], "--recipe")]
)
def test_resume_refuses_what_it_would_not_heed(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = cli.main(["train", "--resume", str(tmp_path), *words])
    assert code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"omit {message}," in error


@pytest.mark.parametrize("words", [["--no-cache"], ["--cache"], ["photos"]])
def test_resume_takes_what_changes_no_result(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["train", f"--resume={tmp_path}", *words]) == 2
    assert "config.json" in capsys.readouterr().err  # no run there: that it looked


def test_resuming_an_fp16_run_without_a_gpu_reports_what_to_do(make_config: Make, tmp_path: Path) -> None:
    config = make_config(precision="fp16")
    with pytest.raises(ClcaError, match="on a CPU choose bf16 or no"):
        make_accelerator(config, tmp_path)
    with pytest.raises(
        ClcaError, match=r"started with --precision fp16.* resume it on a machine with a GPU, or choose another"
    ):
        make_accelerator(config, tmp_path, precision="fp16")


@pytest.mark.parametrize("name", ["OMPI_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS"])
def test_processes_of_mpirun_that_know_nothing_of_each_other_are_refused(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setenv(name, "1")
    require_torchrun()
    monkeypatch.setenv(name, "4")
    with pytest.raises(ClcaError, match=r"one of 4 processes .* torchrun"):
        require_torchrun()
    monkeypatch.setenv("RANK", "0")
    require_torchrun()


@pytest.mark.parametrize("text", ["3", "[" * 100_000, '{"train": 3}', '{"train": {"model": 3}, "resolved": 4}'])
def test_a_config_of_others_is_refused_in_a_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ClcaError) as caught:
        RunFolder(tmp_path).images  # noqa: B018
    assert str(tmp_path / "config.json") in str(caught.value)


def test_an_incomplete_summary_is_reported(tmp_path: Path) -> None:
    for text in ("[", "3", "[" * 100_000, '{"epochs": 3}'):
        (tmp_path / "summary.json").write_text(text)
        with pytest.raises(WorkError, match="remove it, and the same command writes it again"):
            finished_run(tmp_path)


def test_a_full_disk_is_reported_with_the_file_and_a_partial_line_is_removed(make_config: Make, tmp_path: Path) -> None:
    config = make_config(checkpoint_steps=1, log_every=1)
    script = (
        "import resource, sys; from clca.training import metrics_log; from clca.cli.main import main\n"
        "def shut(self, line, write=metrics_log.MetricsLog.write):\n"
        "    if line['step'] == 3:\n"
        "        size = self.path.stat().st_size + 20\n"
        "        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))\n"
        "    write(self, line)\n"
        "metrics_log.MetricsLog.write = shut\n"
        "sys.exit(main(['train', '--config', sys.argv[1]]))\n"
    )
    settings = {name: value for name, value in config.model_dump(mode="json").items() if value is not None}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings))
    words = [sys.executable, "-c", script, str(tmp_path / "run.yaml")]
    ended = subprocess.run(words, capture_output=True, text=True, timeout=300)
    log = tmp_path / "run" / "metrics.jsonl"
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1] == f"clca: {log} could not be written (file too large)"
    train(config, quiet=True)
    assert [json.loads(line)["step"] for line in log.read_text().splitlines() if '"lr"' in line] == list(range(1, 7))


def test_a_signal_in_the_first_step_ends_it_at_once_and_leaves_nothing(
    make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compiles(self: _Trainer, *_: object) -> None:
        signal.raise_signal(signal.SIGTERM)
        pytest.fail("the step went on")

    with monkeypatch.context() as patch:
        patch.setattr(_Trainer, "_forward_backward", compiles)
        with pytest.raises(Interrupted, match="stopped in the first step; the same command begins anew") as caught:
            train(make_config(), quiet=True)
        assert caught.value.signal == signal.SIGTERM
        assert not (tmp_path / "run").exists()
    train(make_config(), quiet=True)
