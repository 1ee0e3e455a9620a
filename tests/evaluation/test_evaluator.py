"""Evaluating a run and classifying images with it."""

import csv
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from forbidden import forbidden, readable_folder
from PIL import Image
from rich.console import Console
from sklearn.metrics import balanced_accuracy_score
from torch import nn

import clca
from clca.data.sources.photographs import find_images
from clca.errors import ClcaError
from clca.evaluation import evaluate, predict
from clca.evaluation.evaluator import ClassResult, Evaluation
from clca.evaluation.stored import evaluations
from clca.models.config import ModelConfig
from clca.plots.confusion import most_confused, write_confusion_picture
from clca.training import DataConfig, TrainConfig, device, train
from clca.training.run_folder import RunFolder, RunImages
from clca.training.validation import InferenceResult, run_inference


@pytest.fixture(scope="module")
def run(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    tiny = {"patch_size": 8, "embed_dim": 32, "num_heads": 2, "depth": 4}
    settings = {"img_size": 32, "reduction": "evit", "keep_rate": 0.5, "backbone_kwargs": tiny}
    model = ModelConfig(backbone="vit_tiny_patch16_224", **settings)
    out = tmp_path_factory.mktemp("runs") / "run"
    data = DataConfig(root=str(images))
    recipe = {"epochs": 8, "batch_size": 6, "lr": 3e-3, "workers": 0, "precision": "no", "pretrained": False}
    train(TrainConfig(model=model, data=data, out=out, **recipe), quiet=True)
    return out


def test_evaluation_counts_every_image_and_writes_its_files(run: Path) -> None:
    result = evaluate(run, workers=0, batch_size=5, precision="no")
    assert result.images == 18 == result.confusion.sum()
    assert result.confusion.sum(1).tolist() == [6, 6, 6]
    assert result.top1 == pytest.approx(np.trace(result.confusion) / 18)
    assert result.top5 == 1.0
    assert result.images_per_second > 0
    assert result.gmacs == pytest.approx(clca.cost(clca.from_pretrained(run)).gmacs)
    assert result.folder == run / "evaluation" / "test"
    assert {path.name for path in result.folder.iterdir()} == {
        "evaluation.json", "classes.csv", "confusion.csv", "confusion.png", "predictions.csv", "label_errors.csv",
        "reliability.png",
        *(["mistakes.jpg"] if result.top1 < 1 else []),
    }  # fmt: skip
    assert json.loads((result.folder / "evaluation.json").read_text())["top1"] == result.top1
    rows = list(csv.reader((result.folder / "confusion.csv").open(encoding="utf-8-sig")))
    assert rows[0][1:] == ["class0", "class1", "class2"]
    assert [[int(cell) for cell in row[1:]] for row in rows[1:]] == result.confusion.tolist()


def test_evaluation_at_another_keep_rate_costs_less(run: Path) -> None:
    usual, fewer = evaluate(run, workers=0), evaluate(run, workers=0, keep_rate=0.1)
    assert fewer.gmacs < usual.gmacs
    assert fewer.folder == run / "evaluation" / "test-keep0.1"
    assert usual.folder is not None
    assert (usual.folder / "evaluation.json").is_file()


def test_a_run_finds_its_own_images_from_another_folder(
    run: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(run, moved)
    stored = json.loads((moved / "config.json").read_text())
    assert stored["resolved"]["started_in"] == str(Path.cwd())
    stored["train"]["data"]["root"] = images.name
    stored["resolved"]["started_in"] = str(images.parent)
    (moved / "config.json").write_text(json.dumps(stored))
    monkeypatch.chdir(tmp_path)
    found = evaluate(moved, workers=0)
    assert (found.data, found.images) == (images.name, 18)
    assert [stored.split for stored in evaluations(moved)] == ["test"]
    assert RunFolder(moved).images == RunImages(images.name, str(images), None, "train")

    (tmp_path / images.name).mkdir()  # what is here goes first
    assert RunFolder(moved).images == RunImages(images.name, images.name, None, "train")


def test_what_is_no_run_has_no_images_of_its_own(run: Path, tmp_path: Path) -> None:
    clca.from_pretrained(run).save_pretrained(tmp_path)
    assert RunFolder(tmp_path).images is None
    assert RunFolder("hf-hub:someone/model").images is None


def test_evaluation_goes_by_class_names_not_by_numbers(run: Path, images: Path, tmp_path: Path) -> None:
    """A folder without class0 numbers its classes otherwise; the answers must not shift."""
    shutil.copytree(images, tmp_path / "photos")
    for split in ("train", "val", "test"):
        shutil.rmtree(tmp_path / "photos" / split / "class0")
    whole, part = evaluate(run, workers=0), evaluate(run, tmp_path / "photos", workers=0)
    assert part.confusion[1:].tolist() == whole.confusion[1:].tolist()
    assert part.confusion[0].sum() == 0
    assert part.folder == run / "evaluation" / "photos-test"


def test_images_of_other_classes_alone_are_refused(run: Path, images: Path, tmp_path: Path) -> None:
    shutil.copytree(images, tmp_path / "photos")
    for split in ("train", "val", "test"):
        (tmp_path / "photos" / split / "class1").rename(tmp_path / "photos" / split / "oak")
        for name in ("class0", "class2"):
            shutil.rmtree(tmp_path / "photos" / split / name)
    with pytest.raises(ClcaError, match="has classes that the run's training images lack: 'oak'"):
        evaluate(run, tmp_path / "photos", workers=0)


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ClcaError, match=r"config\.json"):
        evaluate(tmp_path)


def test_shares_are_exact_and_of_equal_logits_the_lower_class_comes_first() -> None:
    """As `argmax` has it: half precision makes many logits equal, and evaluation and tuning must count alike."""

    class Flat(nn.Module):
        preprocess = {"mean": [0.5] * 3, "std": [0.5] * 3}  # noqa: RUF012

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.zeros(len(x), 80).index_fill_(1, torch.tensor([7, 33, 60]), 1.0)

    labels = torch.tensor([7] * 84 + [60] * 41)
    batch: Any = [(torch.zeros(125, 3, 4, 4), labels)]
    model: Any = Flat()
    found = run_inference(model, batch, Accelerator(cpu=True))
    assert found.ranked[0].tolist() == [7, 33, 60, 0, 1]
    assert found.top(1) == 84 / 125
    assert found.top(5) == 1
    assert found.loss == pytest.approx(math.log(3 * math.e + 77) - 1)


def test_macro_accuracy_is_the_mean_over_classes() -> None:
    labels = torch.tensor([0, 0, 0, 1, 2, 2])
    ranked = torch.tensor([[0, 1], [1, 0], [0, 2], [1, 2], [0, 2], [0, 1]])
    answers = InferenceResult(labels, ranked, loss=0.0, images_per_second=1.0)
    assert answers.macro_accuracy() == pytest.approx(balanced_accuracy_score(labels, ranked[:, 0]))
    assert (answers.top(1), answers.top(2)) == (pytest.approx(3 / 6), pytest.approx(5 / 6))
    absent = InferenceResult(labels, torch.where(ranked == 1, 3, ranked), loss=0.0, images_per_second=1.0)
    assert absent.macro_accuracy() == pytest.approx((2 / 3 + 0 + 0) / 3)  # over those that occur, not the fourth


@pytest.mark.parametrize("classes", [2, 25, 60, 200])
def test_the_confusion_picture_can_be_read(tmp_path: Path, classes: int) -> None:
    rng = np.random.default_rng(0)
    confusion = np.diag(rng.integers(3, 9, classes)) + (rng.random((classes, classes)) < 0.02)
    write_confusion_picture(tmp_path / "c.png", confusion, [f"a rather long cultivar name {k}" for k in range(classes)])
    with Image.open(tmp_path / "c.png") as picture:
        assert 300 < picture.width < 4000
        assert 0.5 < picture.width / picture.height < 2


ODD_NAMES = ["[red]a", "b[/b]", ":herb:", "c$^$", "d\x1b[31m\n"]


def test_names_of_classes_are_neither_markup_nor_formulas(tmp_path: Path) -> None:
    results = [ClassResult(name, 1, 0.0, 0.0, 0.0) for name in ODD_NAMES]
    confusion = np.roll(np.eye(5, dtype=int), 1, axis=1)
    write_confusion_picture(tmp_path / "c.png", confusion, ODD_NAMES)
    found = Evaluation("set[old]", "test", 5, 0.0, 0.0, 0.0, 1.0, results, confusion, 1.0, 1.0, 1, (1.0,), 1.0, 1.0,
                       "cpu", "no", "", None)  # fmt: skip
    console = Console(record=True, width=400)
    found.render(console)
    output = console.export_text()
    assert "test of set[old]: 5 images" in output
    for name in ("[red]a", "b[/b]", ":herb:", "c$^$", r"d\x1b[31m\n"):
        assert output.count(name) == 3  # in the table, and twice among those that are confused


def test_most_confused_pairs_come_first() -> None:
    confusion = np.array([[5, 1, 0], [3, 2, 0], [0, 0, 9]])
    assert most_confused(confusion, ["a", "b", "c"]) == [("b", "a", 3), ("a", "b", 1)]


def test_predictions_come_in_order_with_probabilities(run: Path, images: Path) -> None:
    model = clca.from_pretrained(run)
    answers = list(predict(model, images / "test", top_k=2, batch_size=4, precision="no"))
    assert [answer.path for answer in answers] == sorted((images / "test").rglob("*.png"))
    transform = clca.data.transforms.from_preprocess(model.preprocess)
    with torch.no_grad():
        for answer in answers:
            expected = model(transform(Image.open(answer.path))[None]).softmax(1)[0]
            assert model.classes is not None
            assert answer.classes[0] == model.classes[int(expected.argmax())]
            assert list(answer.probabilities) == pytest.approx(expected.topk(2).values.tolist(), abs=1e-5)
    right = [answer.classes[0] == answer.path.parent.name for answer in answers]
    assert np.mean(right) == pytest.approx(evaluate(run, workers=0, precision="no").top1)


def test_on_a_cpu_freed_memory_is_kept_for_the_next_batch(
    run: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    monkeypatch.setattr(device, "keep_freed_memory", lambda: calls.append("kept"))
    evaluate(run, workers=0, device="cpu")
    assert list(predict(run, sorted(images.rglob("*.png"))[:2], device="cpu"))
    assert calls == ["kept", "kept"]
    device.make_accelerator(device="cpu", serving=True)
    assert calls == ["kept", "kept"]


def test_bad_files_are_reported_among_good_ones(run: Path, images: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.jpg").write_text("hello")
    good = images / "test" / "class0" / "0.png"
    answers = list(predict(run, [tmp_path / "empty.png", good, tmp_path / "text.jpg", tmp_path / "none.png"]))
    assert [bool(answer.error) for answer in answers] == [True, False, True, True]
    assert "0 bytes" in str(answers[0].error)
    assert answers[1].classes


def test_what_is_hidden_in_a_folder_is_no_image_but_what_is_named_is(tmp_path: Path) -> None:
    names = ["a/leaf.jpg", "a/_aside/leaf.png", "a/~leaf.jpg"]
    hidden = ["a/._leaf.jpg", ".leaf.jpg", ".thumbs/leaf.jpg", "__MACOSX/a/leaf.jpg"]
    for name in names + hidden:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "back").symlink_to(".")

    assert find_images([tmp_path]) == sorted(tmp_path / name for name in names)
    assert find_images([tmp_path / name for name in hidden]) == [tmp_path / name for name in hidden]
    assert find_images([tmp_path / ".thumbs"]) == [tmp_path / ".thumbs" / "leaf.jpg"]


def test_missing_files_are_reported_with_unreadable_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_images(["~leaf.jpg", "x" * 300, "zero\0byte"]) == [
        Path("~leaf.jpg"),
        Path("x" * 300),
        Path("zero\0byte"),
    ]


def test_a_folder_that_cannot_be_read_is_refused() -> None:
    with readable_folder() as parent:
        (parent / "sub").mkdir()
        (parent / "leaf.jpg").touch()
        with (
            forbidden(parent / "sub"),
            pytest.raises(ClcaError, match=r"/sub: this folder cannot be read \(permission"),
        ):
            find_images([parent])


def test_patterns_are_expanded_and_nothing_is_refused(run: Path, images: Path, tmp_path: Path) -> None:
    pattern = str(images / "test" / "*" / "[01].png")
    assert len(list(predict(run, [pattern, images / "test" / "class0" / "0.png"]))) == 6
    with pytest.raises(ClcaError, match="no file matches"):
        predict(run, "nothing/*.jpg")
    with pytest.raises(ClcaError, match="no images in this folder"):
        predict(run, tmp_path)
    with pytest.raises(ClcaError, match="top_k 0"):
        predict(run, pattern, top_k=0)
