"""Which images `clca evaluate RUN OTHER` and `clca tune` judge, and that their first line says so."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import TINY, draw

from clca.cli import main as cli
from clca.errors import ClcaError
from clca.evaluation import evaluate
from clca.evaluation.judged import choose_images
from clca.models.config import ModelConfig
from clca.training import DataConfig, TrainConfig, train
from clca.training.run_folder import RunFolder

CLASSES = ["class0", "class1", "class2"]
Where = dict[str, list[str]]


@pytest.fixture(scope="module")
def run(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(images, tmp_path_factory.mktemp("runs") / "run")


def trained(images: Path, out: Path) -> Path:
    model = ModelConfig(
        backbone="vit_tiny_patch16_224", img_size=32, reduction="evit", keep_rate=0.5, backbone_kwargs=TINY
    )
    settings: dict[str, Any] = {"epochs": 2, "batch_size": 6, "lr": 3e-3, "workers": 0, "precision": "no"}
    data = DataConfig(root=str(images))
    train(TrainConfig(model=model, data=data, out=out, pretrained=False, device="cpu", **settings), quiet=True)
    return out


def unsplit(images: Path, folder: Path, classes: dict[str, int]) -> Path:
    """A folder without splits: so many images of each class, those of the test split of `images`."""
    for number, (name, count) in enumerate(classes.items()):
        (folder / name).mkdir(parents=True)
        source = images / "test" / (name if name in CLASSES else f"class{number % 3}")
        for each in range(count):
            shutil.copy(source / f"{each}.png", folder / name / f"n{each}.png")
    return folder


def judged(run: Path, data: Path | None, split: str | None = None) -> Any:
    return choose_images(RunFolder(run), CLASSES, None if data is None else str(data), split)


@pytest.mark.parametrize(
    ("classes", "count", "says"),
    [
        ({"class0": 5, "class1": 5, "class2": 4}, 14, ["all 14 images", "no splits", "all 3 classes"]),
        ({"class1": 3}, 3, ["all 3 images", "1 of the run's 3 classes", "none of 'class0', 'class2'"]),
        ({"class2": 1}, 1, ["all 1 image of", "none of 'class0', 'class1'"]),
        ({"class0": 2, "oak": 4}, 2, ["not judged: 4 images of a class that the run does not know ('oak')"]),
        ({"class0": 2, "oak": 1, "elm": 2}, 2, ["3 images of 2 classes that the run does not know ('elm', 'oak')"]),
    ],
)  # fmt: skip
def test_of_a_folder_without_splits_all_images_are_judged(
    run: Path, images: Path, tmp_path: Path, classes: dict[str, int], count: int, says: list[str]
) -> None:
    found = judged(run, unsplit(images, tmp_path / "photos", classes))
    assert (found.split, len(found.images), found.trained_on) == ("all", count, 0)
    assert all(part in found.text for part in says), found.text
    assert "\n" not in found.text


def test_a_csv_file_without_splits_is_judged_whole_too(run: Path, images: Path, tmp_path: Path) -> None:
    photos = unsplit(images, tmp_path / "photos", {"class1": 4})
    rows = [f"{path.relative_to(tmp_path)},class1" for path in sorted(photos.rglob("*.png"))]
    (tmp_path / "list.csv").write_text("\n".join(["path,label", *rows]))
    assert (judged(run, tmp_path / "list.csv").split, len(judged(run, tmp_path / "list.csv").images)) == ("all", 4)


def test_splits_that_are_there_are_kept_to(run: Path, images: Path, tmp_path: Path) -> None:
    shutil.copytree(images, tmp_path / "photos")
    shutil.rmtree(tmp_path / "photos" / "train" / "class1")  # a rule of training alone
    found = judged(run, tmp_path / "photos")
    assert (found.split, len(found.images)) == ("test", 18)
    assert "judging 18 test images" in found.text
    assert "not judged: 30 images of other splits (train 12, val 18)" in found.text
    assert "trained on" not in found.text
    assert len(judged(run, tmp_path / "photos", "all").images) == 48
    assert judged(run, tmp_path / "photos", "all").trained_on == 12


def test_a_split_by_rule_that_is_asked_for_is_called_one(run: Path, images: Path, tmp_path: Path) -> None:
    photos = unsplit(images, tmp_path / "photos", {name: 5 for name in CLASSES})
    found = judged(run, photos, "test")
    assert len(found.images) == 3
    assert "by a fixed rule" in found.text
    assert "12 images of other splits (train 9, val 3)" in found.text


def test_the_own_set_of_a_run_is_not_judged_whole_wherever_it_is(images: Path, tmp_path: Path) -> None:
    """Nor its training images, which a folder without splits holds too."""
    photos = unsplit(images, tmp_path / "photos", {name: 6 for name in CLASSES})
    run = trained(photos, tmp_path / "run")
    moved = Path(shutil.copytree(photos, tmp_path / "moved"))
    for data in (None, photos, moved):
        found = judged(run, data)
        assert (found.split, len(found.images), found.trained_on) == ("test", 3, 0)
    train_split = judged(run, photos, "train")
    assert train_split.trained_on == len(train_split.images) == 12
    assert "all of them were trained on" in train_split.text
    shutil.copy(photos / "class0" / "n1.png", moved / "class0" / "zz.png")
    shutil.rmtree(moved / "class1")
    mixed = judged(run, moved)  # other images by now, some of which were trained on
    assert mixed.split == "all"
    assert 0 < mixed.trained_on < len(mixed.images)


def test_images_of_unknown_classes_alone_are_refused(run: Path, images: Path, tmp_path: Path) -> None:
    with pytest.raises(ClcaError, match="has classes that the run's training images lack: 'elm', 'oak'"):
        judged(run, unsplit(images, tmp_path / "photos", {"oak": 2, "elm": 3}))


def test_the_command_says_it_first_and_answers_for_each_image(
    run: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = unsplit(images, tmp_path / "photos", {"class1": 4, "oak": 2})
    argv = ["evaluate", str(run), str(photos), "--workers", "0", "--device", "cpu", "--out", str(tmp_path / "e")]
    assert cli.main(argv) == 0
    output = capsys.readouterr().out
    first = output.splitlines()[0]
    assert first.startswith("Judging all 4 images of ")
    assert "'oak'" in first
    numbers = json.loads((tmp_path / "e" / "evaluation.json").read_text())
    assert numbers["judged"].lower() == first.lower()
    assert (numbers["images"], numbers["split"]) == (4, "all")
    rows = list(csv.DictReader((tmp_path / "e" / "predictions.csv").open(encoding="utf-8-sig")))
    assert [row["path"] for row in rows] == [str(path) for path in sorted((photos / "class1").iterdir())]
    assert {row["true_class"] for row in rows} == {"class1"}
    right = sum(row["predicted_class"] == "class1" for row in rows)
    assert right / 4 == numbers["top1"]
    for row in rows:
        assert {row["predicted_class"], row["second_class"]} < set(CLASSES)
        assert row["predicted_class"] != row["second_class"]
        assert 1 >= float(row["probability"]) >= float(row["second_probability"]) > 0
        assert row["unfamiliarity"] == ""
    assert (tmp_path / "e" / "mistakes.jpg").is_file() is (right < 4)


def test_results_on_training_images_carry_a_warning(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["evaluate", str(run), "--split", "train", "--workers", "0", "--device", "cpu"]
    assert cli.main(argv) == 0
    output = " ".join(capsys.readouterr().out.split())
    assert "all of them were trained on, so the accuracy is too good" in output
    assert "the model was trained on all of these images" in output


def test_images_that_are_gone_are_asked_for(images: Path, tmp_path: Path) -> None:
    photos = draw(tmp_path / "photos", classes=3, images=2)
    run = trained(photos, tmp_path / "run")
    shutil.move(photos, tmp_path / "elsewhere")
    with pytest.raises(ClcaError, match=r"no longer at .*photos.*clca evaluate RUN DATA"):
        evaluate(run, workers=0)
    assert evaluate(run, tmp_path / "elsewhere", workers=0, device="cpu").images == 6
