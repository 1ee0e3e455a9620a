"""A run at several keep rates, and reading back what was found."""

import csv
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console

import clca
from clca.cli import main as cli
from clca.errors import ClcaError
from clca.evaluation import evaluate, evaluations, sweep
from clca.evaluation import evaluator as evaluation
from clca.evaluation.keep_rate_sweep import Sweep, SweepPoint
from clca.evaluation.stored import standard_error
from clca.models.config import ModelConfig
from clca.models.saving import save_pretrained
from clca.plots.sweep import KeepRatePoint, draw_sweep
from clca.training import DataConfig, TrainConfig, train
from clca.training.run_folder import RunFolder

TINY = {"patch_size": 8, "embed_dim": 32, "num_heads": 2, "depth": 4}
USUAL: dict[str, Any] = {"workers": 0, "precision": "no", "device": "cpu", "batch_size": 9}


@pytest.fixture(scope="module")
def trained(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    tiny = {"img_size": 32, "reduction": "evit", "keep_rate": 0.5, "backbone_kwargs": TINY}
    model, out = ModelConfig(backbone="vit_tiny_patch16_224", **tiny), tmp_path_factory.mktemp("runs") / "run"
    recipe = {"epochs": 2, "batch_size": 6, "lr": 3e-3, "workers": 0, "precision": "no", "pretrained": False}
    train(TrainConfig(model=model, data=DataConfig(root=str(images)), out=out, **recipe), quiet=True)
    return out


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The keep rates at which a model was asked about the images."""
    rates: list[Any] = []
    original = evaluation.run_inference

    def answer(model: Any, *rest: Any, **more: Any) -> Any:
        rates.append(model.keep_rate)
        return original(model, *rest, **more)

    monkeypatch.setattr(evaluation, "run_inference", answer)
    return rates


def test_a_sweep_is_what_each_evaluation_finds_alone(
    run: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = []
    for owner, name in ((RunFolder, "load_model"), (evaluation, "_Relabelled")):
        original = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *a, f=original, n=name: loaded.append(n) or f(*a))
    found = sweep(run, [0.1, 1, 0.1], **USUAL)
    assert loaded == ["load_model", "_Relabelled"]
    assert [(point.keep_rate, point.own) for point in found.points] == [(1.0, False), (0.5, True), (0.1, False)]
    assert [path.parent for path in found.files] == [run / "evaluation"] * 3
    for point, name in zip(found.points, ("test-keep1", "test", "test-keep0.1"), strict=True):
        assert point.folder == run / "evaluation" / name
        alone = evaluate(run, keep_rate=point.keep_rate, out=tmp_path / name, **USUAL)
        stored = json.loads((point.folder / "evaluation.json").read_text())
        assert point.top1 == alone.top1 == stored["top1"]
        assert point.gmacs == alone.gmacs == stored["gmacs"]
        assert point.tokens == alone.tokens_per_block[-1]
        assert point.top1_error == pytest.approx(standard_error(alone.top1, 18))
        for file in ("classes.csv", "confusion.csv"):
            assert (point.folder / file).read_text() == (tmp_path / name / file).read_text()
    costs = [point.gmacs for point in found.points]
    assert costs == sorted(costs, reverse=True)
    assert len(set(costs)) == 3


def test_the_table_says_the_same_in_every_form(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--workers", "0", "--precision", "no", "--device", "cpu"]
    assert cli.main(["evaluate", str(run), "--sweep", "1", "0.25", *words]) == 0
    output = capsys.readouterr()
    room = run / "evaluation"
    assert "test-sweep.json, test-sweep.csv, test-sweep.png" in output.out
    assert output.err.splitlines() == ["keep rate 1: done", "keep rate 0.5: done", "keep rate 0.25: done"]
    content = json.loads((room / "test-sweep.json").read_text())
    assert (content["format"], content["reduction"], content["images"]) == ("clca-sweep-1", "evit", 18)
    rows = list(csv.DictReader((room / "test-sweep.csv").open(encoding="utf-8-sig")))
    assert [row["keep_rate"] for row in rows] == ["1", "0.5", "0.25"]
    for row, point in zip(rows, content["points"], strict=True):
        assert float(row["top1"]) == point["top1"]
        assert float(row["gmacs"]) == point["gmacs"]
        assert row["folder"] == point["folder"]
        assert f"{point['top1']:.1%} ± {point['top1_error']:.1%}" in output.out
    with Image.open(room / "test-sweep.png") as picture:
        assert 400 < picture.width < 1500
    assert not list(run.rglob("*.tmp"))


def test_interrupted_and_started_again_nothing_is_lost(
    run: Path, asked: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    counted = evaluation.run_inference

    def stopped(model: Any, *rest: Any, **more: Any) -> Any:
        if len(asked) == 2:
            raise KeyboardInterrupt
        return counted(model, *rest, **more)

    monkeypatch.setattr(evaluation, "run_inference", stopped)
    words = ["evaluate", str(run), "--sweep", "1", "0.7", "0.1", "--workers", "0", "--precision", "no"]
    assert cli.main(words) == 130
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == "clca: stopped with 2 of 4 keep rates done; the same command continues from there"
    assert not (run / "evaluation" / "test-sweep.json").exists()
    assert [each.keep_rate for each in evaluations(run)] == [0.7, 1.0]
    monkeypatch.setattr(evaluation, "run_inference", counted)
    assert cli.main(words) == 0
    assert asked == [1.0, 0.7, 0.5, 0.1]
    assert "keep rate 0.7: reused from" in capsys.readouterr().err
    once = json.loads((run / "evaluation" / "test-sweep.json").read_text())
    assert cli.main(words) == 0
    assert len(asked) == 4
    assert json.loads((run / "evaluation" / "test-sweep.json").read_text()) == once


def test_what_has_changed_is_evaluated_again(
    run: Path, images: Path, tmp_path: Path, asked: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation, "write_confusion_picture", lambda path, *_: path.touch())
    photos = Path(shutil.copytree(images, tmp_path / "photos"))

    def again(rate: float = 0.1, **changes: Any) -> list[Any]:
        asked.clear()
        sweep(run, [rate], photos, **(USUAL | changes))
        return list(asked)

    assert again() == [0.5, 0.1]
    assert again() == []
    assert again(0.3) == [0.3]  # a rate more costs that rate
    folder = run / "evaluation" / "photos-test-keep0.1"
    (folder / "confusion.csv").unlink()
    assert again() == [0.1]
    (folder / "evaluation.json").write_text("{")
    assert again() == [0.1]
    os.utime(next(photos.glob("test/*/*.png")), ns=(1, 1))
    assert again() == [0.5, 0.1]
    model = clca.from_pretrained(run)
    model.cla_head.classifier.bias.data += 1  # type: ignore[union-attr, operator]
    save_pretrained(model, run)
    assert again() == [0.5, 0.1]
    run = Path(shutil.copytree(run, tmp_path / "moved"))
    assert again() == []
    assert again(batch_size=3) == [0.5, 0.1]  # images a second are another's


def test_other_images_and_another_folder_keep_apart(run: Path, images: Path, tmp_path: Path) -> None:
    shutil.copytree(images, tmp_path / "photos")
    sweep(run, [0.1], tmp_path / "photos", "val", **USUAL)
    names = {path.name for path in (run / "evaluation").iterdir()}
    forms = {f"photos-val-sweep.{form}" for form in ("json", "csv", "png")}
    assert names == {"photos-val", "photos-val-keep0.1", *forms}
    assert evaluations(run) == []
    sweep(run, [0.1], out=tmp_path / "out", **USUAL)
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {"test", "test-keep0.1", "test-sweep.json"}
    assert not (run / "evaluation" / "test").exists()


@pytest.mark.parametrize("reduction", ["none", "sit", "patchmerger"])
def test_a_model_of_one_keep_rate_is_refused_in_a_line(
    reduction: str, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = clca.from_pretrained(trained)
    model = clca.create_model(
        "vit_tiny_patch16_224", num_classes=3, img_size=32, reduction=reduction, keep_rate=1.0, **TINY
    )
    model.classes, model.preprocess = own.classes, own.preprocess
    save_pretrained(model, tmp_path)
    with pytest.raises(ClcaError, match="keep rate"):
        sweep(tmp_path, [0.5], "no/such/images")  # refused before any image is looked for
    assert cli.main(["evaluate", str(tmp_path), "--sweep", "0.5"]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert str(tmp_path) in line


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--sweep", "1.5", "0.5"], "--sweep 1.5: a keep rate is a share"),
        (["--sweep", "0"], "--sweep 0: a keep rate is a share"),
        (["--sweep", "nan"], "a keep rate is a share"),
        (["--sweep"], "--sweep needs a value"),
        (["--sweep", "0.5", "--keep-rate", "0.1"], "--keep-rate and --sweep do not go together"),
        (["--sweep", "much"], "--sweep"),
    ],
)
def test_wrong_rates_are_refused_in_a_line(
    words: list[str], reason: str, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(trained.rglob("*"))
    assert cli.main(["evaluate", str(trained), *words]) == 2
    line = capsys.readouterr().err
    assert reason in line
    assert line.count("\n") == 1
    assert sorted(trained.rglob("*")) == before


def test_rates_by_location_and_the_own_rate_have_their_folders(run: Path) -> None:
    assert evaluate(run, keep_rate=0.5, **USUAL).folder == run / "evaluation" / "test"
    listed = evaluate(run, keep_rate=(0.5, 0.25), **USUAL)
    assert listed.folder == run / "evaluation" / "test-keep0.5-0.25"
    assert [each.keep_rate for each in evaluations(run)] == [(0.5, 0.25), 0.5]
    model = clca.from_pretrained(run)
    model.keep_rate = (0.5, 0.25)
    save_pretrained(model, run)
    found = sweep(run, [0.3, 0.5], **USUAL)
    assert [(point.rates, point.own) for point in found.points] == [("0.5", False), ("0.5 0.25", True), ("0.3", False)]
    assert [point.folder and point.folder.name for point in found.points] == ["test-keep0.5", "test", "test-keep0.3"]
    assert [each.keep_rate for each in evaluations(run)] == [0.3, (0.5, 0.25), 0.5]


# -- what is read back ---------------------------------------------------------------------------------------------


GOOD = {"data": "photos", "split": "test", "images": 40, "top1": 0.5, "top5": 1, "macro": 0.25, "gmacs": 2.5,
        "images_per_second": 10, "keep_rate": 0.5}  # fmt: skip


@pytest.fixture
def store(tmp_path: Path) -> Callable[..., Path]:
    """Puts an evaluation into a folder that looks like a run."""
    (tmp_path / "config.json").write_text(json.dumps({"train": {"data": {"root": "photos"}}}))

    def put(name: str, content: Any = None, **changes: Any) -> Path:
        (tmp_path / "evaluation" / name).mkdir(parents=True, exist_ok=True)
        text = content if isinstance(content, str) else json.dumps({**GOOD, **changes})
        (tmp_path / "evaluation" / name / "evaluation.json").write_text(text)
        return tmp_path

    return put


def test_what_was_evaluated_is_read_back_in_order(run: Path) -> None:
    assert evaluations(run) == []
    here = {(rate, split): evaluate(run, split=split, keep_rate=rate, **USUAL)
            for rate, split in ((1.0, "test"), (0.1, "test"), (None, "val"), (None, "test"))}  # fmt: skip
    found = evaluations(str(run))
    assert [(each.split, each.keep_rate) for each in found] == [
        ("test", 0.1), ("test", 0.5), ("test", 1.0), ("val", 0.5)
    ]  # fmt: skip
    for each in found:
        one = here[None if each.keep_rate == 0.5 else each.keep_rate, each.split]  # type: ignore[index]
        assert (each.top1, each.top5, each.macro, each.images) == (one.top1, one.top5, one.macro, one.images)
        assert (each.gmacs, each.images_per_second, each.folder) == (one.gmacs, one.images_per_second, one.folder)
        assert each.top1_error == standard_error(one.top1, 18)


def test_what_cannot_be_read_is_left_out(store: Callable[..., Path]) -> None:
    for number, content in enumerate(("", "{", "[]", "null", '{"split": "test"}', "[" * 100_000)):
        store(f"broken{number}", content)
    wrong = {"split": "all", "images": 0, "top1": 1.5, "top5": None, "macro": math.nan, "gmacs": -1,
             "images_per_second": math.inf, "keep_rate": [], "data": "other photos"}  # fmt: skip
    for name, value in wrong.items():
        store(name, **{name: value})
    for number, rate in enumerate(([0.5, "x"], "0.5", True, 0, 2, [0.5, 0])):
        store(f"rate{number}", keep_rate=rate)
    run = store("images2", images=True)
    (run / "evaluation" / "empty").mkdir()
    (run / "evaluation" / "test-sweep.json").write_text("{}")
    (run / "evaluation" / "folder" / "evaluation.json").mkdir(parents=True)
    assert evaluations(run) == []
    store("test")
    (found,) = evaluations(run)
    assert (found.split, found.keep_rate, found.top5, found.images) == ("test", 0.5, 1.0, 40)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    changes=st.dictionaries(
        st.sampled_from(sorted(GOOD)),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just(10**400),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
            max_leaves=4,
        ),
    )
)
def test_whatever_a_file_says_only_numbers_that_make_sense_come_back(
    store: Callable[..., Path], changes: dict[str, Any]
) -> None:
    for each in evaluations(store("test", **changes)):
        rates = each.keep_rate if isinstance(each.keep_rate, tuple) else (each.keep_rate,)
        assert rates
        assert all(0 < rate <= 1 for rate in rates)
        assert all(0 <= share <= 1 for share in (each.top1, each.top5, each.macro))
        assert all(math.isfinite(cost) and cost >= 0 for cost in (each.gmacs, each.images_per_second))
        assert each.images >= 1
        assert 0 < each.top1_error < 1


def test_of_two_the_newer_counts(store: Callable[..., Path]) -> None:
    store("test", top1=0.25)
    run = store("test-keep0.5", top1=0.75)
    for newer, older, top1 in (("test-keep0.5", "test", 0.75), ("test", "test-keep0.5", 0.25)):
        os.utime(run / "evaluation" / older / "evaluation.json", ns=(0, 10**9))
        os.utime(run / "evaluation" / newer / "evaluation.json", ns=(0, 2 * 10**9))
        assert [(each.top1, each.folder.name) for each in evaluations(run)] == [(top1, newer)]


def test_what_is_no_run_has_none(tmp_path: Path, store: Callable[..., Path]) -> None:
    run = store("test")
    assert len(evaluations(run)) == 1
    for text in ("{", "[]", "{}", '{"train": 1}', '{"train": {"data": []}}'):
        (run / "config.json").write_text(text)
        assert evaluations(run) == []
    assert evaluations(tmp_path / "nothing") == evaluations("someone/some-model") == []


@given(images=st.integers(1, 10**6), part=st.floats(0, 1))
def test_a_standard_error_is_never_nothing_and_falls_with_the_images(images: int, part: float) -> None:
    share = round(part * images) / images
    error = standard_error(share, images)
    assert 0 < error <= 0.5 / math.sqrt(images) + 1e-12
    assert error == pytest.approx(standard_error(1 - share, images))
    assert standard_error(share, 4 * images) < error


def test_reading_back_needs_no_torch() -> None:
    program = (
        "import sys; from clca.evaluation import evaluations; evaluations('nothing'); "
        "print([name for name in ('torch', 'timm', 'matplotlib', 'accelerate') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "[]", done.stderr


def test_names_in_the_table_and_the_picture_of_a_sweep_are_as_they_are(tmp_path: Path) -> None:
    point = SweepPoint(0.5, True, 0.5, 0.1, 1.0, 0.5, 1.0, 10.0, 5.0, None)
    found = Sweep(str(tmp_path / "x$^$"), "evit", "set[old]", "val", 4, "cpu", "no", (point,))
    draw_sweep(tmp_path / "s.png", [KeepRatePoint("0.5", 1.0, 0.5, 0.1, True)], "x$^$: evit, val, 4 images")
    found.write(tmp_path, "val")
    console = Console(record=True, width=200)
    found.render(console)
    assert "val of set[old]: 4 images, evit" in console.export_text()


@pytest.fixture(scope="module")
def several(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was trained for three keep rates."""
    tiny = {"img_size": 32, "reduction": "evit", "keep_rates": (0.1, 0.3, 1.0), "backbone_kwargs": TINY}
    model, out = ModelConfig(backbone="vit_tiny_patch16_224", **tiny), tmp_path_factory.mktemp("runs") / "several"
    recipe = {"epochs": 2, "batch_size": 6, "lr": 3e-3, "workers": 0, "precision": "no", "pretrained": False}
    train(TrainConfig(model=model, data=DataConfig(root=str(images)), out=out, **recipe), quiet=True)
    return out


def test_a_run_for_several_rates_is_evaluated_at_each(
    several: Path, asked: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    alone = evaluate(several, keep_rate=0.3, **USUAL)
    words = ["--workers", "0", "--precision", "no", "--device", "cpu", "--batch-size", "9"]
    asked.clear()
    assert cli.main(["evaluate", str(several), *words]) == 0
    assert asked == [1.0, 0.1]  # and the one at 0.3 is reused, whichever rate was in use when it was made
    assert capsys.readouterr().err.splitlines()[1].startswith("keep rate 0.3: reused from")
    stored = {each.keep_rate: each.top1 for each in evaluations(several)}
    assert list(stored) == [0.1, 0.3, 1.0]
    assert stored[0.3] == alone.top1
    content = json.loads((several / "evaluation" / "test-sweep.json").read_text())
    assert [point["own"] for point in content["points"]] == [True] * 3  # trained with all of them
    assert (several / "evaluation" / "test" / "evaluation.json").is_file()
    asked.clear()
    assert cli.main(["evaluate", str(several), "--keep-rate", "0.3", *words]) == 0
    assert asked == [0.3]


def test_other_rates_can_be_added_to_those_of_the_run(several: Path) -> None:
    found = sweep(several, [0.5], **USUAL)
    assert [(point.keep_rate, point.own) for point in found.points] == [(0.5, False), (0.1, True)]


def test_a_run_for_one_rate_needs_rates_to_sweep_over(run: Path) -> None:
    with pytest.raises(ClcaError, match="no keep rate to sweep over: list some"):
        sweep(run, **USUAL)
