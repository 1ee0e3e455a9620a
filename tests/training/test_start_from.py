"""`--from RUN`: a new class later, from the weights of a run, whose known classes keep their rows by name."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import draw

import clca
from clca.cli import main as cli
from clca.errors import ClcaError
from clca.evaluation import evaluate
from clca.models.config import ModelConfig
from clca.training import DataConfig, TrainConfig, resume, train, trainer
from clca.training.preflight import build_model
from clca.training.run_folder import RunFolder
from clca.training.settings import to_config

Make = Callable[..., TrainConfig]
PLAIN = ["--workers", "0", "--device", "cpu", "--precision", "no"]


@pytest.fixture
def first(make_config: Make, tmp_path: Path) -> Path:
    """A run with the published head, which knows class0 to class2."""
    return train(make_config(out=tmp_path / "first"), quiet=True).folder


@pytest.fixture
def more(tmp_path: Path) -> Path:
    """The same photographs and a class in the middle of the alphabet."""
    root = draw(tmp_path / "more", classes=3, images=6)
    for split in ("train", "val", "test"):
        shutil.copytree(root / split / "class2", root / split / "class0b")
    return root


def started(root: Path, first: Path, **given: Any) -> TrainConfig:
    settings = {"data": str(root), "start_from": str(first), "workers": 0, "device": "cpu", "precision": "no"}
    return to_config(settings | {"epochs": 2, "batch_size": 8, "out": str(first.parent / "second")} | given, {})


def test_rows_go_by_name_and_everything_else_is_that_of_the_run(first: Path, more: Path) -> None:
    config = started(more, first)
    assert config.model == RunFolder(first).config.model
    before = clca.from_pretrained(first)
    classes = ["class0", "class0b", "class1", "class2"]
    state, old = build_model(config, classes).state_dict(), before.state_dict()
    for name, value in state.items():
        if name.startswith("cla_head.classifier."):
            assert torch.equal(value[[0, 2, 3]], old[name])
        else:
            assert torch.equal(value, old[name]), name
    assert build_model(config, classes).preprocess == before.preprocess


def test_it_ends_with_known_and_new_classes_apart(
    first: Path, more: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["train", str(more), "--from", str(first), "--epochs", "2", "--batch-size", "8", *PLAIN]
    assert cli.main([*argv, "--out", str(tmp_path / "second")]) == 0
    output = capsys.readouterr().out
    line = next(line for line in output.splitlines() if line.startswith("known classes: top-1 "))
    assert "(18 images of 3 classes); new classes: top-1 " in line
    assert line.endswith("(6 images of 1 class)")
    numbers = json.loads((tmp_path / "second" / "evaluation" / "test" / "evaluation.json").read_text())
    assert (numbers["known"]["images"], numbers["new"]["images"], numbers["new"]["classes"]) == (18, 6, 1)
    whole = (18 * numbers["known"]["top1"] + 6 * numbers["new"]["top1"]) / 24
    assert numbers["top1"] == pytest.approx(whole)
    stored = json.loads((tmp_path / "second" / "config.json").read_text())
    assert stored["resolved"]["from"] == {"run": str(first), "classes": ["class0", "class1", "class2"]}
    assert stored["train"]["start_from"] == str(first)
    shutil.rmtree(first)
    assert evaluate(tmp_path / "second", workers=0, device="cpu").known is not None


def test_classes_without_photographs_keep_their_rows_with_a_warning(
    first: Path, more: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for split in ("train", "val", "test"):
        for name in ("class0", "class2"):
            shutil.rmtree(more / split / name)
    result = train(started(more, first, lr=1e-9, warmup_lr=0, min_lr=0, weight_decay=0), quiet=True)
    assert "no training images of 2 of the classes of" in caplog.text
    assert "'class0', 'class2'" in caplog.text
    old, new = clca.from_pretrained(first), clca.from_pretrained(result.folder)
    assert new.classes == ["class0b", "class1", "class0", "class2"]
    name = "cla_head.classifier.weight"
    assert new.state_dict()[name][[2, 1, 3]] == pytest.approx(old.state_dict()[name], abs=1e-4)
    found = evaluate(result.folder, workers=0, device="cpu")
    assert found.known is not None
    assert (found.known.classes, found.known.images) == (1, 6)


def test_photographs_of_the_new_class_alone_are_enough(first: Path, more: Path) -> None:
    for split in ("train", "val", "test"):
        for name in ("class0", "class1", "class2"):
            shutil.rmtree(more / split / name)
    result = train(started(more, first), quiet=True)
    assert clca.from_pretrained(result.folder).classes == ["class0b", "class0", "class1", "class2"]


@pytest.mark.parametrize("recipe", ["quick", "best"])
def test_where_the_head_is_fitted_anew_every_known_class_needs_photographs(
    first: Path, more: Path, recipe: str
) -> None:
    for split in ("train", "val", "test"):
        shutil.rmtree(more / split / "class1")
    config = started(more, first, recipe=recipe, epochs=1 if recipe == "quick" else 2)
    with pytest.raises(ClcaError, match=r"no training images of 1 of .*: 'class1'; .*--recipe published"):
        train(config, quiet=True)
    assert not (first.parent / "second").exists()


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["quick", "best"])
def test_quick_and_best_fit_the_head_to_all_classes(first: Path, more: Path, recipe: str) -> None:
    """The run has the published head: its encoder is taken, and the head is that of the recipe."""
    config = started(more, first, recipe=recipe, epochs=1 if recipe == "quick" else 2, probe_views=1)
    assert (config.model.cla_head, config.model.reduction) == ("linear", "evit")
    result = train(config, quiet=True)
    model, before = clca.from_pretrained(result.folder), clca.from_pretrained(first)
    assert model.classes == ["class0", "class0b", "class1", "class2"]
    if recipe == "quick":  # the encoder is that of the run
        name = "blocks.3.mlp.fc2.weight"
        assert torch.equal(model.state_dict()[name], before.state_dict()[name])
    assert evaluate(result.folder, workers=0, device="cpu").new is not None


def test_the_recipe_is_that_of_the_run_unless_one_is_chosen(first: Path, more: Path, tmp_path: Path) -> None:
    argv = ["train", str(more), "--from", str(first), "--epochs", "1", *PLAIN, "--out", str(tmp_path / "second")]
    assert cli.main(argv) == 0
    assert RunFolder(tmp_path / "second").config.recipe == "published"


def test_an_interrupted_one_goes_on_without_the_run_that_it_started_from(
    first: Path, more: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(more / "train" / "class1")
    shutil.rmtree(more / "val" / "class1")
    shutil.rmtree(more / "test" / "class1")
    one_step = trainer._Trainer._one_step
    with monkeypatch.context() as patch:
        patch.setattr(trainer._Trainer, "_one_step", lambda self, batches: one_step(self, batches) or True)
        with pytest.raises(trainer.Interrupted):
            train(started(more, first), quiet=True)
    shutil.rmtree(first)
    result = resume(first.parent / "second", quiet=True)
    assert clca.from_pretrained(result.folder).classes == ["class0", "class0b", "class2", "class1"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"keep_rate": "0.25"}, "--keep-rate: is 0.5 in .*first, whose model settings --from takes: leave it out"),
        ({"model": "vit_small_patch16_224"}, "--model: is vit_tiny_patch16_224 in"),
        ({"weights": "w.pth"}, "--weights: a run that starts from another one has its weights"),
        ({"start_from": "nowhere"}, "--from nowhere: no config.json there"),
    ],
)
def test_what_does_not_go_together_is_refused(first: Path, more: Path, given: dict[str, Any], message: str) -> None:
    with pytest.raises(ClcaError, match=message):
        started(more, first, **given)


def test_a_setting_that_is_that_of_the_run_may_be_named(first: Path, more: Path) -> None:
    assert started(more, first, keep_rate="0.5", reduction="evit").model == RunFolder(first).config.model


def test_from_is_part_of_what_a_run_is() -> None:
    from clca.training.config import default_run_folder, identity

    plain = TrainConfig(model=ModelConfig(backbone="vit_tiny_patch16_224"), data=DataConfig(root="photos"))
    other = plain.model_copy(update={"start_from": "runs/first"})
    assert "start_from" not in identity(plain)
    assert default_run_folder(plain) != default_run_folder(other)
