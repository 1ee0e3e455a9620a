"""One command trains and tests once for every part, can be stopped, and keeps the photographs of a plant together."""

import csv
import io
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import clca
from clca.cli.main import main
from clca.data.sources.listing import Grouping
from clca.errors import ClcaError
from clca.evaluation import cross_validate, evaluate
from clca.report.study.report import report
from clca.training import TrainConfig, train

Make = Callable[..., TrainConfig]
QUICK: dict[str, Any] = {"probe": "only", "probe_views": 1, "epochs": 1, "warmup_epochs": 0, "cooldown_epochs": 0}


def quick(make: Make, folds: int, **data: Any) -> TrainConfig:
    return make(model={"cla_head": "linear"}, data={"folds": folds, **data}, **QUICK)


def rows_of(file: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(file.read_text(encoding="utf-8-sig"))))


def plant_of(path: str) -> tuple[str, str]:
    """Class and plant of a photograph."""
    return Path(path).parent.name, Path(path).name.split("_")[0]


@pytest.fixture
def plants(draw_images: Callable[..., Path], tmp_path: Path) -> Path:
    """Three classes of six plants with two photographs each, without splits."""
    root = draw_images(tmp_path / "drawn", classes=3, images=12, splits=("all",)) / "all"
    for path in root.rglob("*.png"):
        number = int(path.stem)
        path.rename(path.with_name(f"plant{number // 2:02}_{number % 2}.png"))
    return root


@pytest.mark.slow
def test_every_image_is_tested_once(make_config: Make, plants: Path) -> None:
    result = cross_validate(quick(make_config, 3, root=str(plants), group_by=r"(plant\d+)_"), quiet=True)
    assert [one.images for one in result.folds] == [12, 12, 12]
    assert result.images == result.confusion.sum() == 36
    rows = rows_of(result.folder / "predictions.csv")
    assert len({row["path"] for row in rows}) == 36
    right = [row["true_class"] == row["predicted_class"] for row in rows]
    assert statistics.fmean(right) == pytest.approx(result.mean("top1"))
    for fold, one in enumerate(result.folds, start=1):
        tested = {plant_of(row["path"]) for row in rows if row["fold"] == str(fold)}
        images = [(row["split"], plant_of(row["path"])) for row in rows_of(one.folder / "images.csv")]
        trained, watched = ({plant for split, plant in images if split == part} for part in ("train", "watched"))
        assert len(tested) == 6
        assert trained
        assert watched
        assert not tested & (trained | watched)
        assert not trained & watched
    written = json.loads((result.folder / "cross-validation.json").read_text())
    assert written["top1"]["mean"] == result.mean("top1")
    low, high = written["top1"]["interval"]
    assert 0 <= low <= result.mean("top1") <= high <= 1
    assert result.deviation("loss") == pytest.approx(statistics.stdev(one.loss for one in result.folds))
    assert [row["fold"] for row in rows_of(result.folder / "folds.csv")] == ["1", "2", "3"]
    made = report(result.folder, result.folder.parent / "report")
    interval = f"95 % interval {100 * low:.1f} to {100 * high:.1f} %"
    assert made.answer == [
        f"Top-1 {100 * result.mean('top1'):.1f} % ({interval}) over 3 parts of 36 images, each tested once."
    ]
    assert (made.figures, made.tables) == (1, 1)
    assert "standard deviation" in made.page.read_text()
    again = cross_validate(quick(make_config, 3, root=str(plants), group_by=r"(plant\d+)_"), quiet=True)
    assert again.folds == result.folds


@pytest.mark.slow
def test_a_fold_is_evaluated_on_its_own_part(make_config: Make, plants: Path) -> None:
    config = quick(make_config, 3, root=str(plants), fold=2)
    run = train(config, quiet=True).folder
    expected = clca.data.open(plants, "test", grouping=Grouping(folds=3, fold=2))
    assert evaluate(run, workers=0, device="cpu", precision="no").images == len(expected) == 12
    assert evaluate(run, plants, workers=0, device="cpu", precision="no").images == 12


@pytest.mark.slow
def test_it_goes_on_after_it_was_killed_twice(plants: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "folds"
    settings = {
        "data": str(plants), "folds": 5, "model": "vit_tiny_patch16_224", "img_size": 32, "reduction": "evit",
        "keep_rate": 0.5, "backbone_kwargs": {"patch_size": 8, "embed_dim": 32, "num_heads": 2, "depth": 4},
        "pretrained": False, "cla_head": "linear", "workers": 0, "device": "cpu", "precision": "no", "out": str(out),
        **QUICK,
    }  # fmt: skip
    file = tmp_path / "settings.yaml"
    file.write_text(json.dumps(settings))
    argv = ["train", "--config", str(file)]
    for wanted in (1, 3):
        process = subprocess.Popen([sys.executable, "-m", "clca", *argv], stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while not (out / f"fold-{wanted}" / "config.json").exists() and time.monotonic() < deadline:
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not (out / "fold-5").exists()
    before = (out / "fold-1" / "model.safetensors").stat().st_mtime_ns
    assert main(argv) == 0
    shown = capsys.readouterr().out
    assert "5 parts of 36 images in 3 classes" in shown
    assert "95 % interval" in shown
    assert (out / "fold-1" / "model.safetensors").stat().st_mtime_ns == before
    assert os.listdir(out / "fold-5")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"folds": 3, "fold": 4}, "is not one of the folds"),
        ({"fold": 1}, "is not one of the folds"),
        ({"folds": 1}, "greater than or equal to 2"),
        ({"group": "plant", "group_by": "plant"}, "give either a column"),
    ],
)
def test_settings_that_do_not_fit_are_refused(make_config: Make, data: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_config(data=data)


def test_too_many_parts_and_unknown_groups_are_refused(make_config: Make, plants: Path) -> None:
    for data, message in (
        ({"folds": 13, "root": str(plants)}, "a class has only 12 images"),
        ({"folds": 7, "root": str(plants), "group_by": r"(plant\d+)_"}, "a class has only 6 groups"),
        ({"folds": 2, "root": str(plants), "group": "plant"}, "is no CSV file with columns"),
        ({"folds": 2, "root": str(plants), "group_by": "tree"}, "is not found in 36 of 36 file names"),
        ({"folds": 2, "root": "leaves:cultivars=2,images=10,size=32"}, "neither groups nor folds"),
    ):
        with pytest.raises(ClcaError, match=message):
            cross_validate(quick(make_config, **data), quiet=True)  # type: ignore[arg-type]
    with pytest.raises(ClcaError, match="a single run is one of them"):
        train(quick(make_config, 3, root=str(plants)), quiet=True)


def test_groups_of_a_table_stay_together(plants: Path, tmp_path: Path) -> None:
    lines = ["path,label,plant"]
    for path in sorted(plants.rglob("*.png")):
        lines.append(f"{path},{path.parent.name},{path.parent.name}-{path.stem.split('_')[0]}")
    table = tmp_path / "plants.csv"
    table.write_text("\n".join(lines) + "\n")
    sides: dict[str, set[str]] = {}
    for split in ("train", "val", "test"):
        images = clca.data.open(table, split, grouping=Grouping(column="plant"))
        assert images.groups is not None
        for group in images.groups:
            sides.setdefault(group, set()).add(split)
    assert len(sides) == 18
    assert all(len(found) == 1 for found in sides.values())


def test_a_group_in_two_given_splits_is_a_problem(draw_images: Callable[..., Path], tmp_path: Path) -> None:
    root = draw_images(tmp_path / "set", classes=2, images=5)
    with pytest.raises(ClcaError, match="5 groups are in more than one split, such as 0 in test and train and val"):
        clca.data.open(root, "train", grouping=Grouping(pattern=r"/(\d)\.png"))
