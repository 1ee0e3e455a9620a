"""Tuning: what is chosen within a budget, that accuracies are those of evaluate, and what is refused."""

import csv
import json
import shlex
import shutil
from collections.abc import Callable
from dataclasses import replace
from io import StringIO
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console

import clca
from clca.cli.main import main
from clca.data.transforms import preprocess_dict
from clca.errors import ClcaError
from clca.evaluation import evaluate
from clca.evaluation.stored import standard_error
from clca.models.config import spelled
from clca.plots.frontier import frontier_figure
from clca.reductions import registry
from clca.reductions.ats import ATS
from clca.system.timing import Spread
from clca.tune import Budget, Point, Tuning, at_size, choose, frontier, tune

pytestmark = pytest.mark.slow

TINY: dict[str, Any] = {"patch_size": 8, "embed_dim": 24, "num_heads": 3, "depth": 6}
CLASSES = ["alder", "birch", "cedar"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("photos")
    draw = torch.Generator().manual_seed(3)
    for split in ("train", "val"):
        for name in CLASSES:
            (root / split / name).mkdir(parents=True)
            for number in range(4):
                pixels = torch.randint(0, 255, (36, 36, 3), generator=draw, dtype=torch.uint8)
                Image.fromarray(pixels.numpy()).save(root / split / name / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def make_run(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    def make(reduction: str = "evit", classes: list[str] = CLASSES, **settings: Any) -> str:
        torch.manual_seed(0)
        settings = {"keep_rate": 0.5, "img_size": 32} | settings
        model = clca.create_model(
            "vit_tiny_patch16_224", **TINY, num_classes=len(classes), reduction=reduction, **settings
        )
        model.classes, model.preprocess = classes, preprocess_dict(settings["img_size"])
        folder = tmp_path_factory.mktemp("runs") / reduction
        model.save_pretrained(str(folder))
        return str(folder)

    return make


@pytest.fixture(scope="module")
def run(make_run: Callable[..., str]) -> str:
    return make_run()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clca.tune.running.MOST_ROUNDS", 5)


@pytest.fixture(scope="module")
def tuned(run: str, make_run: Callable[..., str], photos: Path) -> Tuning:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("clca.tune.running.MOST_ROUNDS", 5)
        runs = [run, make_run("patchmerger"), make_run("none", keep_rate=1.0)]
        return tune(
            runs, Budget("latency_ms", 1e6), data=photos, keep_rates=(0.1, 1.0, 0.5), img_sizes=(48,), workers=0,
            device="cpu", precision="no",
        )  # fmt: skip


def test_every_run_rate_and_size_is_a_candidate(tuned: Tuning) -> None:
    found = [(p.reduction, p.keep_rate, p.img_size, p.trained_size) for p in tuned.points]
    assert found == [
        ("evit", 1.0, 32, True), ("evit", 0.5, 32, True), ("evit", 0.1, 32, True),
        ("evit", 1.0, 48, False), ("evit", 0.5, 48, False), ("evit", 0.1, 48, False),
        ("patchmerger", 0.5, 32, True), ("none", 1.0, 32, True), ("none", 1.0, 48, False),
    ]  # fmt: skip
    assert any("patchmerger depend on the keep rate" in note for note in tuned.notes)
    assert any("patchmerger depend on the image size" in note for note in tuned.notes)
    assert tuned.images == 12


@pytest.mark.parametrize("own", [0.3, (0.8, 0.6, 0.4)])
def test_the_rate_that_a_run_was_trained_with_is_a_candidate(
    own: Any, make_run: Callable[..., str], photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clca.tune.running.MOST_ROUNDS", 1)
    found = tune(
        [make_run(keep_rate=own)], Budget("gmacs", 1), data=photos, keep_rates=(1.0, 0.1), workers=0, device="cpu",
        precision="no",
    )  # fmt: skip
    assert [point.keep_rate for point in found.points] == [1.0, own, 0.1]
    console = Console(width=80, record=True, file=StringIO())
    found.render(console)
    assert spelled(own) in console.export_text()


@pytest.mark.usefixtures("quick")
def test_the_rates_that_a_run_was_trained_for_are_the_candidates(make_run: Callable[..., str], photos: Path) -> None:
    run = make_run(keep_rates=(0.1, 0.4, 1.0), keep_rate=0.4)
    model = clca.from_pretrained(run)
    for name, rows in model.rate_statistics.named_buffers():  # type: ignore[union-attr]
        rows.normal_() if name.endswith("mean") else rows.uniform_(0.5, 2)
    model.save_pretrained(run)
    found = tune([run], Budget("gmacs", 1), data=photos, workers=0, device="cpu", precision="no")
    assert [point.keep_rate for point in found.points] == [1.0, 0.4, 0.1]
    for point in found.points:  # each with the statistics of its rate
        told = evaluate(
            run, photos, "val", keep_rate=point.keep_rate, workers=0, device="cpu", precision="no", cache=False
        )
        assert point.top1 == pytest.approx(told.top1)


def test_accuracy_is_that_of_evaluate(tuned: Tuning, run: str, photos: Path) -> None:
    for point in tuned.points[:3]:
        told = evaluate(
            run, photos, "val", keep_rate=point.keep_rate, workers=0, device="cpu", precision="no", cache=False
        )
        assert point.top1 == pytest.approx(told.top1)
        assert point.gmacs == pytest.approx(told.gmacs)
        assert point.tokens == told.tokens_per_block[-1]
        assert point.error == standard_error(told.top1, told.images)


def test_numbers_of_cost(tuned: Tuning) -> None:
    dense, half, tenth = tuned.points[:3]
    assert dense.gmacs > half.gmacs > tenth.gmacs
    assert tuned.points[3].gmacs > dense.gmacs  # the larger image
    assert dense.images_per_second == pytest.approx(1000 / dense.latency.median)


@pytest.mark.parametrize("reduction", ["ats", "one_of_its_own"])
def test_a_cost_that_depends_on_the_images_is_that_of_evaluate(
    reduction: str, make_run: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of sixteen images spread over all, not the first of the first class, for whatever reduction pads its batches."""
    monkeypatch.setattr(registry, "_REDUCTIONS", {})
    clca.register_reduction("one_of_its_own")(type("Own", (ATS,), {}))
    draw = torch.Generator().manual_seed(1)
    for name, contrast in zip(CLASSES, (1, 40, 255), strict=True):
        for split in ("train", "val"):
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(20):
                pixels = (torch.rand(36, 36, 3, generator=draw) * contrast).to(torch.uint8)
                Image.fromarray(pixels.numpy()).save(tmp_path / split / name / f"{number:02}.png")
    run, seen = make_run(reduction), []

    def spied(model: Any, *, images: torch.Tensor) -> clca.Cost:
        seen.append(images.clone())
        return clca.cost(model, images=images)

    for module in ("clca.evaluation.evaluator", "clca.tune.running"):
        monkeypatch.setattr(f"{module}.cost", spied)
    own = evaluate(run, tmp_path, "val", workers=0, device="cpu", precision="no", cache=False)
    settings: Any = {"keep_rates": (0.5,), "workers": 0, "device": "cpu", "precision": "no"}
    (found,) = tune([run], Budget("gmacs", 1), data=tmp_path, **settings).points
    torch.testing.assert_close(seen[1], seen[0])
    assert (found.gmacs, found.tokens) == (own.gmacs, own.tokens_per_block[-1])


def test_a_run_named_twice_is_one_candidate(run: str, photos: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("clca.tune.running.MOST_ROUNDS", 1)
        found = tune(
            [run, f"{run}/", run], Budget("gmacs", 1), data=photos, keep_rates=(0.5, 0.5), workers=0, device="cpu",
            precision="no",
        )  # fmt: skip
    assert [(point.run, point.keep_rate) for point in found.points] == [(run, 0.5)]
    with pytest.raises(ClcaError, match="the name of a run or model is empty"):
        tune([run, ""], Budget("gmacs", 1))


def test_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    runs = [tmp_path / name / "run" for name in ("a", "b")]
    for folder in runs:
        folder.mkdir(parents=True)
    points = [replace(point(0.9, 10), run=str(folder)) for folder in runs]
    found = Tuning(Budget("gmacs", 9), points, points[1], points[1], "photos", 9, 1, {}, []).as_dict()
    assert [row["run"] for row in found["points"]] == ["a", "b"]
    assert found["chosen"]["run"] == "b"
    assert found["chosen"]["path"] == str(runs[1])


def test_another_size_resamples_positions_and_nothing_else(run: str) -> None:
    model = clca.from_pretrained(run)
    larger = at_size(model, 48)
    assert larger.pos_embed.shape[1] == 1 + 36
    assert larger(torch.randn(2, 3, 48, 48)).shape == (2, 3)
    assert larger.preprocess is not None
    assert larger.preprocess["img_size"] == 48
    assert model.patch_embed.img_size == (32, 32)
    rest = {name: tensor for name, tensor in larger.state_dict().items() if name != "pos_embed"}
    torch.testing.assert_close(rest, {name: model.state_dict()[name] for name in rest}, rtol=0, atol=0)
    same = at_size(model, 32)
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(same(x), model(x))
    with pytest.raises(ClcaError, match="33 is not a multiple"):
        at_size(model, 33)


def point(top1: float, ms: float, error: float = 0.01, **changes: Any) -> Point:
    made = Point("run", "evit", 0.5, 224, True, top1, error, Spread(ms, ms, ms), 1000 / ms, ms / 10, 50)
    return replace(made, **changes)


def test_the_most_accurate_within_the_budget_is_chosen() -> None:
    points = [point(0.95, 100), point(0.92, 50), point(0.90, 20), point(0.91, 60)]
    for budget in (Budget("latency_ms", 60), Budget("gmacs", 6), Budget("images_per_second", 1000 / 60)):
        top, chosen = choose(points, budget)
        assert top is chosen is points[1]
    assert choose(points, Budget("latency_ms", 200))[1] is points[0]
    assert choose(points, Budget("latency_ms", 50))[1] is points[1]  # exactly the budget is within it
    assert choose(points, Budget("latency_ms", 19)) == (None, None)


def test_of_those_not_told_apart_the_cheaper_is_chosen() -> None:
    points = [point(0.92, 50, error=0.02), point(0.905, 20), point(0.89, 10)]
    top, chosen = choose(points, Budget("latency_ms", 60))
    assert (top, chosen) == (points[0], points[1])
    found = Tuning(Budget("latency_ms", 60), points, chosen, top, "photos", 100, 1, {}, [])
    assert "within the standard error but costs more" in str(found.reason())
    assert found.advice() == "clca predict run IMAGES --keep-rate 0.5"


def test_one_that_is_just_as_far_off_as_the_error_is_as_good() -> None:
    best, cheaper, worse = point(0.75, 50, error=0.25), point(0.5, 20), point(0.49, 10)
    assert choose([best, cheaper, worse], Budget("latency_ms", 100)) == (best, cheaper)


def test_of_those_just_as_accurate_the_cheaper_is_the_most_accurate() -> None:
    dear, cheap = point(0.75, 50), point(0.75, 20)
    assert choose([dear, cheap], Budget("latency_ms", 100)) == (cheap, cheap)


def test_of_those_just_as_cheap_the_more_accurate_is_chosen() -> None:
    best, good, better = point(0.75, 50, error=0.25), point(0.6, 20), point(0.7, 20)
    assert choose([best, good, better], Budget("latency_ms", 100)) == (best, better)


def test_the_advice_fits_what_was_chosen() -> None:
    dense, other = point(0.9, 10, reduction="none", keep_rate=1.0), point(0.9, 10, trained_size=False)
    several = point(0.9, 10, keep_rate=(0.5, 0.25, 0.1))
    advice = [Tuning(Budget("gmacs", 9), [p], p, p, "photos", 9, 1, {}, []).advice() for p in (dense, other, several)]
    assert advice[0] == "clca predict run IMAGES"
    assert advice[1] == "train at this size: clca train … --reduction evit --keep-rate 0.5 --img-size 224 --out NEW"
    assert advice[2].endswith("--keep-rate 0.5 0.25 0.1")


def test_the_advice_can_be_pasted(tmp_path: Path) -> None:
    folder = tmp_path / ("a folder of vines " * 6)
    chosen = point(0.9, 10, run=str(folder))
    found = Tuning(
        Budget("gmacs", 9), [chosen], chosen, chosen, "photos", 9, 1, {}, [], options=("--precision", "bf16")
    )
    console = Console(width=80, file=StringIO())
    found.render(console)
    words = ["clca", "predict", str(folder), "IMAGES", "--keep-rate", "0.5", "--precision", "bf16"]
    assert words in [shlex.split(line) for line in console.file.getvalue().splitlines()]  # type: ignore[attr-defined]


def test_a_run_is_trained_at_another_size_with_the_settings_it_has(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"model": {"backbone": "vit_tiny_patch16_224", "reduction": "evit"}, "data": {"root": str(photos)}}
    folder = tmp_path / "my run"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"train": settings}))
    chosen = point(0.9, 10, run=str(folder), keep_rate=(0.8, 0.6, 0.4), img_size=32, trained_size=False)
    advice = Tuning(Budget("gmacs", 9), [chosen], chosen, chosen, "photos", 9, 1, {}, []).advice()
    words = shlex.split(advice.removeprefix("train at this size: clca "))
    assert words == [
        *("train", "--config", str(folder / "config.json"), "--keep-rate", "0.8", "0.6", "0.4"),
        *("--img-size", "32", "--out", "NEW"),
    ]
    assert main([*words[:-1], str(tmp_path / "new"), "--epochs", "0"]) == 2  # all else is understood
    assert capsys.readouterr().err.startswith("clca: --epochs 0: ")


def test_a_budget_is_told_in_plain_numbers() -> None:
    assert str(Budget("images_per_second", 1e6)) == "at least 1000000 images/s"


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(1, 20)), min_size=1, max_size=12))
def test_the_frontier_is_what_nothing_beats(pairs: list[tuple[int, int]]) -> None:
    points = [point(share / 20, ms) for share, ms in pairs]
    best = frontier(points, "latency_ms")
    for one, other in pairwise(best):
        assert one.latency.median < other.latency.median
        assert one.top1 < other.top1
    for other in points:
        assert any(b.top1 >= other.top1 and b.latency.median <= other.latency.median for b in best)


@pytest.mark.parametrize(("runs", "sizes"), [(3, 1), (9, 1), (8, 2), (8, 3)])
def test_the_picture_has_room_for_many_runs_and_sizes(runs: int, sizes: int) -> None:
    points = []
    for run, size, rate in product(range(runs), range(sizes), (1.0, 0.5, 0.1)):
        changes = {"run": f"run-{run}", "keep_rate": rate, "img_size": 224 + 16 * size, "trained_size": size == 0}
        points.append(point(0.5 + 0.02 * run, 5 + run + 3 * size + 9 * rate, **changes))
    budget = Budget("latency_ms", 15)
    top, chosen = choose(points, budget)
    figure = frontier_figure(Tuning(budget, points, chosen, top, "photos", 9, 1, {}, []).picture())
    figure.canvas.draw()
    (axes,), (legend,) = figure.axes, figure.legends
    assert axes.get_window_extent().height / figure.dpi > 2.8  # inches
    box = legend.get_window_extent()
    assert box.x0 >= 0
    assert box.x1 <= figure.bbox.x1
    assert not box.overlaps(axes.get_window_extent())
    drawn = [container.lines[0] for container in axes.containers]
    looks = {(line.get_color(), line.get_marker(), line.get_markerfacecolor(), line.get_linestyle()) for line in drawn}
    assert len(looks) == len(drawn) == runs * sizes


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_fits_the_terminal(tuned: Tuning, width: int) -> None:
    console = Console(width=width, record=True, file=StringIO())
    slow = [replace(p, latency=Spread(1234.5, 1000.0, 2345.6), gmacs=123.45) for p in tuned.points]
    replace(tuned, points=slow).render(console)
    text = console.export_text()
    paths = [*(f"{number}: {run}" for number, run in enumerate(tuned.names, start=1)), tuned.advice()]
    lines = text.splitlines()
    assert set(paths) <= set(lines)  # each on a line of its own
    assert max(len(line) for line in lines if line not in paths) <= width
    assert "48*" in text
    assert "patchmerger" in text
    assert "1234.5" in text


@pytest.mark.usefixtures("quick")
def test_the_command_writes_and_advises(run: str, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["tune", run, "--data", str(photos), "--keep-rates", "1", "0.1", "--workers", "0", "--device", "cpu"]
    assert main([*argv, "--gmacs", "1000"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "clca predict" in printed
    assert "--keep-rate" in printed
    folder = Path(run) / "tune"
    assert {path.name for path in folder.iterdir()} == {"tune.json", "tune.csv", "frontier.png"}
    content = json.loads((folder / "tune.json").read_text())
    rows = list(csv.DictReader((folder / "tune.csv").open(encoding="utf-8-sig")))
    assert [float(row["top1"]) for row in rows] == [p["top1"] for p in content["points"]]
    assert content["chosen"] in content["points"]
    assert {(row["run"], row["path"]) for row in rows} == {("evit", run)}
    assert content["budget"] == {"measure": "gmacs", "value": 1000.0}
    assert content["data"] == str(photos)
    assert content["device"] == "cpu"
    assert content["precision"] in ("no", "bf16")  # what auto is here
    assert content["advice"].endswith("--device cpu")  # as asked for; no precision was


@pytest.mark.usefixtures("quick")
def test_a_budget_that_nothing_meets_names_the_closest(
    run: str, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["tune", run, "--data", str(photos), "--keep-rates", "1", "0.1", "--workers", "0", "--out", str(tmp_path)]
    assert main([*argv, "--device", "cpu", "--gmacs", "1e-6"]) == 2
    told = capsys.readouterr().err
    assert "nothing meets the budget of at most 1e-06 GMACs: closest is" in told
    assert "at keep rate 0.1" in told
    assert json.loads((tmp_path / "tune.json").read_text())["chosen"] is None


@pytest.mark.parametrize(
    ("argv", "what"),
    [
        ([], "give one budget, not 0"),
        (["--gmacs", "5", "--latency-ms", "40"], "give one budget, not 2"),
        (["--gmacs", "0"], "number above 0"),
        (["--gmacs", "5", "--batch-size", "0"], "batch size of at least 1"),
        (["--gmacs", "5", "--threads", "0"], "threads = 0"),
    ],
)
def test_wrong_requests_are_refused_in_one_line(
    argv: list[str], what: str, run: str, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["tune", run, "--data", str(photos), "--device", "cpu", "--workers", "0", *argv]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert what in told


def test_images_that_have_moved_are_asked_for(make_run: Callable[..., str], photos: Path, tmp_path: Path) -> None:
    run = Path(make_run())
    saved = json.loads((run / "config.json").read_text())
    settings = {"model": saved["model"], "data": {"root": str(tmp_path / "gone")}}
    (run / "config.json").write_text(json.dumps(saved | {"train": settings}))
    budget, here = Budget("gmacs", 5), {"workers": 0, "device": "cpu"}
    with pytest.raises(ClcaError, match=r"no longer at .*gone; pass their new location: .*--data"):
        tune([str(run)], budget, **here)  # type: ignore[arg-type]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("clca.tune.running.MOST_ROUNDS", 1)
        assert tune([str(run)], budget, data=photos, keep_rates=(0.5,), **here).images == 12  # type: ignore[arg-type]


def test_runs_and_images_that_do_not_belong_together_are_refused(
    run: str, make_run: Callable[..., str], photos: Path, tmp_path: Path
) -> None:
    budget = Budget("gmacs", 5)
    with pytest.raises(ClcaError, match="its training data is not known"):
        tune([run], budget)
    with pytest.raises(ClcaError, match="no run to tune"):
        tune([], budget)
    with pytest.raises(ClcaError, match="no run or saved model at"):
        tune([str(tmp_path / "missing")], budget)
    with pytest.raises(ClcaError, match=r"classes that .* lack"):
        tune([make_run(classes=["lime", "elm"])], budget, data=photos, workers=0, device="cpu")


@pytest.mark.usefixtures("quick")
def test_images_without_splits_are_all_judged_also_of_one_class(
    run: str, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(photos / "val" / "birch", tmp_path / "field" / "birch")
    argv = ["tune", run, "--data", str(tmp_path / "field"), "--keep-rates", "0.5", "--workers", "0", "--device", "cpu"]
    assert main([*argv, "--gmacs", "1000", "--out", str(tmp_path / "out")]) == 0
    first = capsys.readouterr().out.splitlines()[0]
    assert first.startswith(f"Judging all 4 images of {tmp_path / 'field'}, which has no splits")
    assert "of 1 of the run's 3 classes (none of 'alder', 'cedar')" in first
    assert json.loads((tmp_path / "out" / "tune.json").read_text())["images"] == 4
