"""What is wrong is told before the long work, and a start that came to nothing stands in nobody's way."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from clca import cli
from clca.errors import ClcaError, WorkError
from clca.training import TrainConfig, train
from clca.training import loop as loop_of

Make = Callable[..., TrainConfig]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"model": {"backbone": "vit_tinny_patch16_224"}}, "vit_tinny"),
        ({"model": {"locations": (9,)}}, "location"),
        ({"model": {"img_size": 30}}, "30"),
        ({"weights": "nowhere.pth"}, "nowhere.pth"),
    ],
)
def test_a_setting_is_refused_before_an_image_is_read(
    make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], told: str
) -> None:
    monkeypatch.setattr(loop_of, "verify_images", lambda *_, **__: pytest.fail("images were read"))
    with pytest.raises(ClcaError, match=told):
        train(make_config(**changes), quiet=True)
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


def test_weights_that_answer_nonsense_on_val_are_told_as_such(make_config: Make) -> None:
    # One update an epoch: the loss before it is finite, and that of the watched images comes next.
    with pytest.raises(WorkError, match=r"the val loss is not finite at step 1 \(epoch 1\); no checkpoint"):
        train(make_config(lr=1e30, warmup_epochs=0, batch_size=18), quiet=True)


def test_after_a_checkpoint_a_failure_keeps_the_run(make_config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    step = loop_of._Loop._one_step

    def failing(self: Any, batches: Any) -> bool:
        if self.progress.step == 2:
            raise torch.OutOfMemoryError("no memory")
        return step(self, batches)

    with monkeypatch.context() as patch:
        patch.setattr(loop_of._Loop, "_one_step", failing)
        config = make_config(checkpoint_steps=1)
        with pytest.raises(torch.OutOfMemoryError):
            train(config, quiet=True)
    with pytest.raises(ClcaError, match="holds a different run"):
        train(make_config(lr=1e-4), quiet=True)
    train(config, quiet=True)


def test_a_tracker_that_does_not_begin_says_why(
    make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def init_trackers(self: Any, *_: object) -> None:
        self.trackers = [object()]  # half made
        raise RuntimeError("api_key not configured (no-tty)")

    monkeypatch.setattr("accelerate.Accelerator.init_trackers", init_trackers)
    with pytest.raises(ClcaError, match=r"--track tensorboard: it did not begin \(api_key not configured"):
        train(make_config(track="tensorboard"), quiet=True)
    assert not (tmp_path / "run" / "config.json").exists()


def test_an_early_stop_and_a_finished_run_say_so(make_config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop_of._Loop, "_note_if_best", lambda self, _: setattr(self.progress, "stale", 9) or False)
    console = Console(record=True, width=120)
    config = make_config(epochs=9, patience=9)
    train(config, console=console)
    assert "no better on val for 9 epochs: stopped early" in console.export_text()
    train(config, console=console)
    assert "is finished already" in console.export_text()


@pytest.mark.parametrize(
    ("words", "told"), [(["--epochs", "9"], "--epochs"), (["--lr=1"], "--lr"), (["photos"], r"DATA \(photos\)")]
)
def test_resume_refuses_what_it_would_not_heed(
    words: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = cli.main(["train", "--resume", str(tmp_path), *words])
    assert code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"leave {told} away".replace("\\", "") in error


@pytest.mark.parametrize("words", [["--no-cache"], ["--cache"]])
def test_resume_takes_what_changes_no_result(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["train", f"--resume={tmp_path}", *words]) == 2
    assert "config.json" in capsys.readouterr().err  # no run there: that it looked
