"""A training run: reproducible, resumable, and what it leaves behind."""

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

import clca
from clca.errors import ClcaError, WorkError
from clca.models import saving
from clca.training import TrainConfig, device, resume, train, trainer
from clca.training.progress import Display
from clca.training.run_folder import RunFolder

pytestmark = pytest.mark.slow

Make = Callable[..., TrainConfig]


def weights(folder: Path | None) -> dict[str, torch.Tensor]:
    assert folder is not None
    return load_file(folder / "model.safetensors")


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def lines(folder: Path | None) -> list[dict[str, Any]]:
    assert folder is not None
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def without_time(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in line.items() if name != "images_per_second"} for line in found]


def test_a_run_leaves_a_complete_folder(make_config: Make) -> None:
    config = make_config(epochs=3)
    result = train(config, quiet=True)
    folder = result.folder
    assert {path.name for path in folder.iterdir()} == {
        "config.json", "images.csv", "metrics.jsonl", "model.safetensors", "last.ckpt", "summary.json"
    }  # fmt: skip
    steps = [line for line in lines(folder) if "loss" in line]
    epochs = [line for line in lines(folder) if "train" in line]
    assert [line["step"] for line in steps] == list(range(1, 10))
    assert set(steps[0]) == {"step", "epoch", "loss", "lr", "grad_max", "accuracy", "images_per_second"}
    assert [line["epoch"] for line in epochs] == [1, 2, 3]
    of_last = [line["loss"] for line in steps if line["epoch"] == 3]
    assert epochs[-1]["train"]["loss"] == pytest.approx(sum(of_last) / 3, rel=1e-5)
    best = max(epochs, key=lambda line: (line["val"]["top1"], -line["val"]["loss"]))
    assert (result.kept, result.kept_epoch) == ("best on val", best["epoch"])
    assert result.watched == best["val"]
    config_file = json.loads((folder / "config.json").read_text())
    assert TrainConfig.model_validate(config_file["train"]) == config
    assert config_file["resolved"]["steps_per_epoch"] == 3
    assert config_file["versions"]["torch"] == torch.__version__.split("+")[0]


def test_the_saved_model_answers_as_it_did_on_val(make_config: Make) -> None:
    result = train(make_config(), quiet=True)
    model = clca.from_pretrained(result.folder)
    assert model.classes == ["class0", "class1", "class2"]
    images = clca.data.open(
        result_root(result.folder), "val", transform=clca.data.transforms.from_preprocess(model.preprocess)
    )
    with torch.no_grad():
        logits = model(torch.stack([image for image, _ in images]))
    labels = torch.tensor(images.labels)
    assert result.watched is not None
    assert (logits.argmax(1) == labels).float().mean().item() == pytest.approx(result.watched["top1"])
    assert torch.nn.functional.cross_entropy(logits, labels).item() == pytest.approx(result.watched["loss"], abs=1e-5)


def result_root(folder: Path) -> str:
    return json.loads((folder / "config.json").read_text())["train"]["data"]["root"]


def test_it_learns(make_config: Make) -> None:
    result = train(make_config(epochs=12, lr=3e-3, data={"val_split": "none"}), quiet=True)
    assert result.train["top1"] > 0.9
    assert (result.kept, result.kept_epoch, result.watched) == ("last", 12, None)


def test_the_same_seed_gives_the_same_bits_with_any_number_of_workers(make_config: Make, tmp_path: Path) -> None:
    noisy = {"augmentation": "medium", "ema": 0.9}
    a = train(make_config(out=tmp_path / "a", **noisy), quiet=True)
    torch.manual_seed(7)
    b = train(make_config(out=tmp_path / "b", workers=2, **noisy), quiet=True)
    c = train(make_config(out=tmp_path / "c", seed=1, **noisy), quiet=True)
    assert same(weights(a.folder), weights(b.folder))
    assert without_time(lines(a.folder)) == without_time(lines(b.folder))
    assert not same(weights(a.folder), weights(c.folder))


@pytest.mark.parametrize(
    "settings",
    [
        {"augmentation": "strong", "mixup": 0.8, "cutmix": 1.0, "clip_grad": 1.0, "grad_accum": 3, "drop_path": 0.2},
        {"ema": 0.9, "layer_decay": 0.7, "head_lr_scale": 5.0, "channels_last": True, "precision": "bf16"},
        {"freeze_backbone": True, "data": {"train_split": "train_val"}},
        {"model": {"reduction": "dynamicvit", "cla": False}, "grad_checkpointing": True},
        {"model": {"reduction": "ats"}, "data": {"val_split": "test"}},
    ],
    ids=["mixed", "ema", "frozen", "dynamicvit", "ats"],
)
def test_interrupted_anywhere_it_ends_as_if_it_had_not_been(
    make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    whole = train(make_config(out=tmp_path / "whole", **settings), quiet=True)
    config = make_config(**settings)
    step, stop_after = trainer._Trainer._one_step, iter([1, 2, 1, 1])

    def stopping(self: Any, batches: Any) -> bool:
        wanted = next(stop_after, None) if self.progress.step == self.state.saved_step else None
        self.wanted = wanted + self.progress.step if wanted else getattr(self, "wanted", None)
        step(self, batches)
        return self.progress.step == self.wanted

    monkeypatch.setattr(trainer._Trainer, "_one_step", stopping)
    for _ in range(4):
        with pytest.raises(trainer.Interrupted, match="continues from there"):
            train(config, quiet=True)
    result = resume(tmp_path / "run", quiet=True)
    assert same(weights(result.folder), weights(whole.folder))
    assert without_time(lines(result.folder)) == without_time(lines(whole.folder))
    assert (result.train, result.watched, result.kept) == (whole.train, whole.watched, whole.kept)


def stop_after(step: int, config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave a run that was asked to stop in its update number `step`."""
    one_step = trainer._Trainer._one_step

    def stopping(self: Any, batches: Any) -> bool:
        return one_step(self, batches) or self.progress.step == step

    with monkeypatch.context() as patch:
        patch.setattr(trainer._Trainer, "_one_step", stopping)
        with pytest.raises(trainer.Interrupted):
            train(config, quiet=True)


@pytest.mark.parametrize(
    ("split", "old", "new", "message"),
    [
        ("train", "class1/0.png", "class1/more.png", "18 train images then and 19 now"),
        ("val", "class1/0.png", "class1/more.png", "18 watched images then and 19 now"),
        ("*", "class0", "zinnia", "classes now without 'class0' and with 'zinnia'"),
    ],
)
def test_a_run_does_not_go_on_with_other_images(
    make_config: Make, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    split: str, old: str, new: str, message: str,
) -> None:  # fmt: skip
    root = shutil.copytree(images, tmp_path / "copy")
    config = make_config(data={"root": str(root)})
    stop_after(4, config, monkeypatch)
    for part in root.glob(split):
        (shutil.copy if (part / old).is_file() else shutil.move)(part / old, part / new)
    before = {path: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    with pytest.raises(ClcaError, match=f"have changed since it was started .{message}.; restore them to resume, or"):
        train(config, quiet=True)
    assert {path: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before
    for part in root.glob(split):
        (part / new).unlink() if (part / new).is_file() else shutil.move(part / new, part / old)
    train(config, quiet=True)


@pytest.mark.parametrize(("split", "message"), [("train", "train"), ("val", "watched")])
def test_a_run_does_not_go_on_with_as_many_other_images(
    make_config: Make, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, split: str, message: str
) -> None:
    root = shutil.copytree(images, tmp_path / "copy")
    config = make_config(data={"root": str(root)})
    stop_after(4, config, monkeypatch)
    one, kept = root / split / "class1" / "0.png", tmp_path / "kept.png"
    for name, content in (("0.png", "val/class0/1.png"), ("9.png", f"{split}/class1/0.png")):
        shutil.copy2(images / content, kept)
        one.rename(tmp_path / "away.png")
        shutil.copy2(kept, one.with_name(name))
        with pytest.raises(
            ClcaError, match=f"started .as many {message} images, with other names, sizes or classes.; restore"
        ):
            train(config, quiet=True)
        one.with_name(name).unlink()
        (tmp_path / "away.png").rename(one)
    shutil.copytree(root, tmp_path / "moved")
    shutil.rmtree(root)
    (tmp_path / "moved").rename(root)  # the same images, copied
    train(config, quiet=True)


def test_a_run_of_before_that_names_no_images_goes_on(
    make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, file = make_config(), tmp_path / "run" / "config.json"
    stop_after(4, config, monkeypatch)
    content = json.loads(file.read_text())
    for name in ("train_digest", "watched_digest", "precision"):
        assert content["resolved"].pop(name)
    file.write_text(json.dumps(content))
    assert train(config, quiet=True).steps == 6


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_run_keeps_the_precision_that_auto_was_when_it_began(
    make_config: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    precision: str,
) -> None:
    whole = train(make_config(out=tmp_path / "whole", precision=precision), quiet=True)
    config = make_config(precision="auto")
    monkeypatch.setattr(device, "_bf16_is_fast", lambda _: precision == "bf16")
    stop_after(4, config, monkeypatch)
    monkeypatch.setattr(device, "_bf16_is_fast", lambda _: precision != "bf16")
    caplog.set_level("INFO", "clca")
    result = resume(tmp_path / "run")
    assert f"continues with precision {precision}, as it was started" in caplog.text
    assert same(weights(result.folder), weights(whole.folder))


def test_a_run_with_a_relative_path_goes_on_from_another_folder(
    make_config: Make, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(images.parent)
    config = make_config(data={"root": images.name})
    stop_after(4, config, monkeypatch)
    monkeypatch.chdir(tmp_path)
    assert resume(tmp_path / "run", quiet=True).steps == 6
    with pytest.raises(ClcaError, match="no such file or folder"):
        train(config.model_copy(update={"out": tmp_path / "new"}), quiet=True)


def terminal(monkeypatch: pytest.MonkeyPatch, width: int) -> io.StringIO:
    """What a progress bar draws on stderr, which is taken for a terminal of this width."""
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, color_system=None, width=width)
    monkeypatch.setattr("clca.training.progress.Console", lambda stderr: console)
    return file


@pytest.mark.parametrize(("done", "epoch"), [(0, 1), (25, 3), (30, 3)])
def test_the_bar_of_a_resumed_run_begins_at_its_epoch(done: int, epoch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    file = terminal(monkeypatch, 120)
    shown = Display(3, 10, done, True)
    shown.start()
    shown.close()
    assert f"epoch {epoch}/3" in file.getvalue()


@pytest.mark.parametrize("width", [120, 80, 79, 60, 59, 50, 49, 40])
def test_the_bar_keeps_its_counts_in_a_narrow_terminal(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    file = terminal(monkeypatch, width)
    shown = Display(52, 183, 0, True)
    shown.step(4321, 1.2345, 123.4)
    shown.close()
    last = file.getvalue()[file.getvalue().rindex("epoch") :]
    assert "epoch 24/52" in last
    assert "4321/9516 loss 1.234" in last
    assert "…" not in last
    assert ("left –" in last) is (width >= 50)  # after one step nobody knows yet
    assert ("images/s" in last) is (width >= 80)


def test_what_a_killed_process_was_writing_is_removed(
    make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, folder = make_config(), tmp_path / "run"
    stop_after(4, config, monkeypatch)
    for name in (".last.ckpt.4711.tmp", ".model.safetensors.ab3_x9kq", ".last.ckpt.mine", "notes.tmp"):
        (folder / name).write_text("half")
    train(config, quiet=True)
    assert {path.name for path in folder.iterdir()} == {
        "config.json", "images.csv", "metrics.jsonl", "model.safetensors", "last.ckpt", "summary.json",
        ".last.ckpt.mine", "notes.tmp",
    }  # fmt: skip


def test_metrics_that_were_removed_begin_again(
    make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config()
    stop_after(4, config, monkeypatch)
    (tmp_path / "run" / "metrics.jsonl").unlink()
    assert [line["step"] for line in lines(train(config, quiet=True).folder)] == [5, 6, 6]


def test_a_finished_run_is_not_run_again(make_config: Make) -> None:
    first = train(make_config(), quiet=True)
    before = {path: path.stat().st_mtime_ns for path in first.folder.iterdir()}
    assert train(make_config(), quiet=True) == first
    assert {path: path.stat().st_mtime_ns for path in first.folder.iterdir()} == before


def test_a_different_run_is_never_written_over(make_config: Make) -> None:
    train(make_config(), quiet=True)
    with pytest.raises(ClcaError, match=r"holds a different run \(lr is 0.001 there and 0.5 now\)"):
        train(make_config(lr=0.5), quiet=True)


def test_a_folder_with_other_files_is_left_alone(make_config: Make, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("precious")
    with pytest.raises(ClcaError, match="holds other files and no run"):
        train(make_config(), quiet=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(ClcaError, match="is a file"):
        train(make_config(out=tmp_path / "file"), quiet=True)
    with pytest.raises(ClcaError, match="nothing can be written there"):
        train(make_config(out=tmp_path / "file" / "run"), quiet=True)


def test_a_full_disk_is_found_before_training(make_config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("usage", (), {"free": 1000})
    monkeypatch.setattr("clca.system.files.shutil.disk_usage", lambda _: usage)
    with pytest.raises(ClcaError, match=r"needs .* MB and the disk has 0 MB left"):
        train(make_config(), quiet=True)


@pytest.mark.parametrize(
    "failure", [OSError(28, "No space left on device"), RuntimeError("inline_container.cc:671 . unexpected pos 9 vs 8")]
)
def test_a_disk_that_fills_up_leaves_the_last_checkpoint_whole(
    make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    whole = torch.save

    def full_at_the_third(content: Any, path: Path) -> None:
        whole(content, path)
        if content["progress"]["step"] == 3:
            raise failure

    monkeypatch.setattr("clca.training.checkpoints.torch.save", full_at_the_third)
    with pytest.raises(WorkError, match=r"last\.ckpt could not be written .*; the previous one, if any, is whole"):
        train(make_config(checkpoint_steps=1), quiet=True)
    assert torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)["progress"]["step"] == 2
    assert not list((tmp_path / "run").glob(".*"))


def test_a_loss_that_is_not_finite_stops_with_step_and_checkpoint(make_config: Make) -> None:
    with pytest.raises(
        WorkError, match=r"not finite at step \d+ \(epoch \d+\); the last good checkpoint is .*last.ckpt"
    ):
        train(make_config(lr=1e30, min_lr=0.0, epochs=9, checkpoint_steps=1, warmup_epochs=1.0), quiet=True)


def test_it_stops_early_without_progress(make_config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer._Trainer, "_note_if_best", _never_better)
    result = train(make_config(epochs=9, patience=2), quiet=True)
    assert result.epochs == 2


def _never_better(self: Any, numbers: dict[str, Any]) -> bool:
    self.progress.best, self.progress.best_epoch = numbers, 1
    self.progress.stale += 1
    return True


def test_that_the_weights_can_be_loaded_is_checked_once_a_run(
    make_config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    checks, check = [], saving._check_can_be_made
    monkeypatch.setattr(saving, "_check_can_be_made", lambda *given: (checks.append(given), check(*given)))
    monkeypatch.setattr(trainer._Trainer, "_note_if_best", _never_better)  # but saved each time
    result = train(make_config(epochs=3), quiet=True)
    assert len(checks) == 1
    model = clca.from_pretrained(result.folder)
    model.save_pretrained(str(result.folder))
    model.save_pretrained(str(result.folder))
    assert len(checks) == 3


def test_a_damaged_or_dangerous_checkpoint_is_refused(make_config: Make, tmp_path: Path) -> None:
    config = make_config()
    train(config, quiet=True)
    (tmp_path / "run" / "summary.json").unlink()
    checkpoint = tmp_path / "run" / "last.ckpt"
    whole = checkpoint.read_bytes()
    checkpoint.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(WorkError, match="is damaged or no checkpoint"):
        train(config, quiet=True)
    torch.save(_Bomb(tmp_path / "exploded"), checkpoint)
    with pytest.raises(WorkError, match="is damaged or no checkpoint"):
        train(config, quiet=True)
    assert not (tmp_path / "exploded").exists()


class _Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


def test_unreadable_images_are_named_before_training(make_config: Make, images: Path, tmp_path: Path) -> None:
    root = shutil.copytree(images, tmp_path / "copy")
    (root / "train" / "class1" / "0.png").write_bytes(b"")
    (root / "val" / "class2" / "1.png").write_text("hello")
    with pytest.raises(ClcaError, match=r"2 of 36 images cannot be used: .*0\.png: .*empty.*1\.png: is text"):
        train(make_config(data={"root": str(root)}), quiet=True)
    assert RunFolder(tmp_path / "run").state_for(make_config()) == "new"


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CLCA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "resized"


def refuse_to_decode(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, *_: Any) -> None:
        raise AssertionError(f"{path} was decoded")

    monkeypatch.setattr("clca.data.datasets.read_image", refuse)
    monkeypatch.setattr("clca.data.decoding.Decoders._request", lambda _, operation, path, *more: refuse(path))


@pytest.mark.parametrize("workers", [0, 2])
def test_with_and_without_cached_images_the_weights_are_the_same_bytes(
    make_config: Make, tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    settings = {"workers": workers, "model": {"reduction": "dynamicvit"}, "drop_path": 0.1}
    plain = train(make_config(out=tmp_path / "plain", cache=False, **settings), quiet=True)
    assert not own_cache.exists()
    first = train(make_config(out=tmp_path / "first", **settings), quiet=True)
    assert len(list(own_cache.glob("*.rows"))) == 1
    refuse_to_decode(monkeypatch)  # neither to verify nor to learn nor to watch
    second = train(make_config(out=tmp_path / "second", **settings), quiet=True)
    expected = (plain.folder / "model.safetensors").read_bytes()
    assert (first.folder / "model.safetensors").read_bytes() == expected
    assert (second.folder / "model.safetensors").read_bytes() == expected
    assert without_time(lines(plain.folder)) == without_time(lines(second.folder))


def test_a_run_can_go_on_with_the_cache_switched(make_config: Make, tmp_path: Path, own_cache: Path) -> None:
    whole = train(make_config(out=tmp_path / "whole", cache=False), quiet=True)
    train(make_config(cache=False, checkpoint_steps=1), quiet=True)
    (tmp_path / "run" / "summary.json").unlink()
    config = make_config(cache=True, cache_gb=1.0)
    assert RunFolder(tmp_path / "run").state_for(config) == "started"
    assert same(weights(train(config, quiet=True).folder), weights(whole.folder))


def test_with_strong_augmentation_only_the_watched_images_are_kept(make_config: Make, own_cache: Path) -> None:
    train(make_config(augmentation="strong"), quiet=True)
    [one] = clca.data.cache.limits.cached_sets()
    assert one.images == 18


def test_a_cache_that_cannot_be_written_is_reported_once_and_training_continues(
    make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    plain = train(make_config(out=tmp_path / "plain", cache=False), quiet=True)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CLCA_CACHE", str(tmp_path / "file"))
    caplog.clear()
    result = train(make_config())
    message = [line for line in caplog.messages if "cache" in line]
    where = tmp_path / "file" / "resized"
    assert message == [
        f"the resized images are not cached: {where} cannot be written (not a directory); the images are read from "
        "their original files"
    ]
    assert same(weights(result.folder), weights(plain.folder))


def test_unreadable_images_are_named_the_same_with_part_of_them_cached(
    make_config: Make, images: Path, tmp_path: Path, own_cache: Path
) -> None:
    root = shutil.copytree(images, tmp_path / "copy")
    train(make_config(out=tmp_path / "first", data={"root": str(root)}), quiet=True)
    (root / "val" / "class2" / "1.png").write_text("hello")
    (root / "train" / "class1" / "0.png").write_bytes(b"")
    (root / "train" / "class1" / "0.png").unlink()
    (root / "train" / "class1" / "0.png").symlink_to("nowhere.png")
    message = []
    for cache in (True, True, False):
        with pytest.raises(ClcaError) as refused:
            train(make_config(data={"root": str(root)}, cache=cache), quiet=True)
        message.append(str(refused.value))
    assert message[0] == message[1] == message[2]
    assert "of 36 images cannot be used" in message[0] or "of 35 images cannot be used" in message[0]


def test_one_class_and_missing_classes_are_refused(
    make_config: Make, tmp_path: Path, draw_images: Callable[..., Path]
) -> None:
    one = draw_images(tmp_path / "one", classes=1, images=3)
    with pytest.raises(ClcaError, match="only one class"):
        train(make_config(data={"root": str(one)}), quiet=True)
    (draw_images(tmp_path / "more", classes=3, images=3) / "train" / "class2").rename(tmp_path / "elsewhere")
    with pytest.raises(ClcaError, match="class2"):
        train(make_config(data={"root": str(tmp_path / "more")}), quiet=True)
    with pytest.raises(ClcaError):
        train(make_config(data={"root": str(tmp_path / "nowhere")}), quiet=True)


def test_metrics_go_to_tensorboard_too(make_config: Make) -> None:
    pytest.importorskip("tensorboard")
    result = train(make_config(track="tensorboard"), quiet=True)
    assert list(result.folder.rglob("events.out.tfevents.*"))


def test_a_tracker_that_fails_on_the_way_ends_nothing(
    make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("tensorboard")
    sent = []

    def log(self: Any, values: dict[str, float], step: int) -> None:
        sent.append(step)
        if step == 2:
            raise ConnectionError("the server\nhas gone")

    plain = train(make_config(out=tmp_path / "plain"), quiet=True)
    monkeypatch.setattr("accelerate.Accelerator.log", log)
    caplog.set_level("INFO", "clca")
    result = train(make_config(track="tensorboard"))
    assert sent == [1, 2]
    message = [line for line in caplog.messages if "--track" in line]
    assert message == [
        "--track tensorboard: the server has gone; nothing more is sent there; metrics.jsonl has all metrics"
    ]
    assert without_time(lines(result.folder)) == without_time(lines(plain.folder))


def test_a_tracker_that_does_not_end_hides_no_result(
    make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("tensorboard")

    def end_training(self: Any) -> None:
        raise ConnectionError("gone")

    monkeypatch.setattr("accelerate.Accelerator.end_training", end_training)
    caplog.set_level("INFO", "clca")
    assert train(make_config(track="tensorboard")).steps == 6
    assert "--track tensorboard: did not close properly (gone)" in caplog.text
    with pytest.raises(WorkError, match="not finite"):
        train(make_config(track="tensorboard", lr=1e30, warmup_epochs=0, out=tmp_path / "failing"), quiet=True)


def test_a_compiled_run_learns_the_same(
    make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    plain = train(make_config(out=tmp_path / "plain", precision="bf16"), quiet=True)
    calls, compile_model = [], torch.compile

    def with_fast_backend(call: Any, **options: Any) -> Any:
        calls.append(options)
        return compile_model(call, backend="eager", **options)

    monkeypatch.setattr(torch, "compile", with_fast_backend)
    caplog.set_level("INFO", "clca")
    compiled = train(make_config(out=tmp_path / "compiled", precision="bf16", compile=True))
    assert "compiling in the first step, which takes minutes" in caplog.text
    assert calls == [{"fullgraph": True}]
    assert compiled.train["loss"] == pytest.approx(plain.train["loss"], rel=1e-5)
    expected = weights(plain.folder)
    for name, tensor in weights(compiled.folder).items():
        torch.testing.assert_close(tensor, expected[name], msg=name)
