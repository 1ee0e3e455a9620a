"""The benchmark: who is measured, what the numbers say of each other, what a failure or Ctrl-C leaves, the files."""

import csv
import io
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from rich.console import Console

import clca
from clca.benchmark import GROWTH, QUICK, Benchmark, BenchmarkConfig, BenchmarkRow, benchmark, running
from clca.benchmark.candidates import DENSE, OWN_DENSE, Candidate, CandidateBuilder
from clca.benchmark.requested import requested
from clca.benchmark.result import exponent
from clca.cli.main import main
from clca.errors import WorkError
from clca.plots.speedup import SpeedUp, SpeedUpPanel, speed_up_figure
from clca.system.timing import Spread

pytestmark = pytest.mark.slow

TINY: dict[str, Any] = {"patch_size": 8, "embed_dim": 24, "num_heads": 3, "depth": 6}
SMALL: dict[str, Any] = {"models": ("test_vit",), "img_sizes": (32,), "batch_sizes": (2,), "memory": False}


@pytest.fixture(autouse=True)
def _one_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine's rates, measured elsewhere."""
    monkeypatch.setattr(running, "matrix_rate", lambda dtype, device, others: 50.0)
    monkeypatch.setattr(running, "bandwidth", lambda device: 20.0)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    model = clca.create_model(
        "vit_tiny_patch16_224", **TINY, img_size=32, num_classes=5, reduction="evit", keep_rate=0.5
    )
    model.save_pretrained(str(tmp_path / "run"))
    return tmp_path / "run"


@pytest.fixture(scope="module")
def result() -> Benchmark:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(running, "matrix_rate", lambda dtype, device, others: 50.0)
        patch.setattr(running, "bandwidth", lambda device: 20.0)
        config = BenchmarkConfig(
            **(SMALL | {"img_sizes": (32, 64)}), reductions=("evit", "patchmerger"), keep_rates=(0.5, 0.1), rounds=3,
            precisions=("fp32", "bf16"), cla=False, clc=False,
        )  # fmt: skip
        return benchmark(config)


def test_every_candidate_is_beside_the_dense_model(result: Benchmark) -> None:
    assert not [row.error for row in result.rows if row.error]
    groups = [rows for _, rows in result.groups()]
    assert len(groups) == 4  # two sizes in two precisions
    for rows in groups:
        assert [(r.candidate.reduction, r.candidate.keep_rate) for r in rows] == [
            (DENSE, 1.0), (OWN_DENSE, 1.0), ("evit", 0.5), ("evit", 0.1), ("patchmerger", 0.5), ("patchmerger", 0.1)
        ]  # fmt: skip
        assert rows[0].speed_up == rows[1].over_own_dense == Spread(1.0, 1.0, 1.0)
        assert rows[0].mac_ratio == rows[1].mac_ratio == rows[1].share == 1.0
        assert rows[0].share is None
        assert all(row.rounds == 3 for row in rows)


def test_numbers_agree_with_each_other(result: Benchmark) -> None:
    for row in result.rows:
        assert row.milliseconds is not None
        assert row.speed_up is not None
        assert row.gmacs is not None
        assert row.milliseconds.p10 <= row.milliseconds.median <= row.milliseconds.p90
        assert row.images_per_second == pytest.approx(2000 / row.milliseconds.median)
        made = row.computed_gmacs or row.gmacs
        assert row.efficiency == pytest.approx(made * 2000 / row.milliseconds.median / 50)
        assert row.over_own_dense is not None
        if row.candidate.reduction != DENSE:
            assert row.share == pytest.approx(row.over_own_dense.median / row.mac_ratio)
        assert (row.over_fp32 is None) == (row.candidate.precision == "fp32")
    rate = {r.candidate.keep_rate: r.mac_ratio for r in result.rows if r.candidate.reduction == "evit"}
    assert 1 < rate[0.5] < rate[0.1]


def test_macs_are_those_of_cost(result: Benchmark) -> None:
    row = next(r for r in result.rows if (r.candidate.reduction, r.candidate.keep_rate) == ("evit", 0.1))
    model = clca.create_model("test_vit", img_size=32, reduction="evit", keep_rate=0.1, cla=False, clc=False)
    assert row.gmacs == clca.cost(model).gmacs


def test_growth_over_sizes(result: Benchmark) -> None:
    assert {g.patches for g in result.growth} == {(4, 16)}
    assert len(result.growth) == 12  # two dense models, and two reductions at two rates, in two precisions
    dense = next(g for g in result.growth if g.candidate.reduction == DENSE)
    assert 0.5 < dense.macs < 1.5
    assert exponent((196, 784, 3136), tuple(3 * p**1.25 for p in (196, 784, 3136))) == pytest.approx(1.25)


def test_growth_says_of_which_model_setting_and_patches(result: Benchmark, tmp_path: Path) -> None:
    first = Candidate("vit_small_patch16_224", 896, 1, "evit", 0.1)
    other = replace(first, model="vit_small_patch14_dinov2", batch_size=8, precision="bf16", mode="compiled")
    growth = [running.Growth(first, (196, 784), 1.1, 1.2, 0.3), running.Growth(other, (256, 1024), 1.3, 1.4, None)]
    found = replace(result, growth=growth)
    console = Console(width=80, record=True, file=io.StringIO())
    found.render(console)
    text = console.export_text()
    assert "vit_small_patch16_224: exponent in the number of patches (196, 784)" in text
    assert "vit_small_patch14_dinov2: exponent in the number of patches (256, 1024)" in text
    found.write(tmp_path)
    told = json.loads((tmp_path / "benchmark.json").read_text())["growth"]
    names = ("model", "batch_size", "precision", "mode", "training", "patches", "time")
    assert [[line[name] for name in names] for line in told] == [
        ["vit_small_patch16_224", 1, "fp32", "eager", False, [196, 784], 1.2],
        ["vit_small_patch14_dinov2", 8, "bf16", "compiled", False, [256, 1024], 1.4],
    ]


def test_a_title_wider_than_its_table_stays_a_line(result: Benchmark) -> None:
    named = [replace(row, candidate=replace(row.candidate, label="a name of a run " * 8)) for row in result.rows]
    console = Console(width=80, record=True, file=io.StringIO())
    replace(result, rows=named).render(console)
    assert f"{'a name of a run ' * 8}, 32 px, batch 2, fp32, eager, inference" in console.export_text().splitlines()


@pytest.mark.parametrize("width", [80, 120])
def test_tables_fit_the_terminal(result: Benchmark, width: int) -> None:
    console = Console(width=width, record=True, file=io.StringIO())
    full = Spread(1234.5, 1000.1, 2345.6)
    weighed = [
        replace(
            row,
            milliseconds=full,
            speed_up=Spread(12.34, 11.11, 13.33),
            over_own_dense=Spread(10, 10, 11),
            peak_mib=12345.0,
            memory_ratio=1.0,
        )
        for row in result.rows
    ]
    replace(result, rows=[*result.rows, *weighed[:12]]).render(console)
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    assert "patchmerger" in text
    assert "× timm" in text
    assert "× own" in text


def test_files_are_whole_and_say_the_same(result: Benchmark, tmp_path: Path) -> None:
    written = result.write(tmp_path / "out")
    assert {path.name for path in written} == {"benchmark.json", "benchmark.csv", "speedup.png", "speedup.pdf"}
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(path.name for path in written)
    content = json.loads((tmp_path / "out" / "benchmark.json").read_text())
    rows = list(csv.DictReader((tmp_path / "out" / "benchmark.csv").open(encoding="utf-8-sig")))
    assert len(content["rows"]) == len(rows) == len(result.rows)
    for ours, theirs in zip(content["rows"], rows, strict=True):
        assert float(theirs["speed_up_median"]) == ours["speed_up"]["median"]
        assert float(theirs["over_own_dense_median"]) == ours["over_own_dense"]["median"]
        assert theirs["reduction"] == ours["reduction"]
    assert content["config"]["rounds"] == 3
    assert content["matrix_rate_gmacs"] == {"fp32": 50.0, "bf16": 50.0}


@pytest.mark.parametrize(("low", "high"), [(0.9, 1.3), (0.9, 7.9), (0.05, 2.1), (0.2, 2.1), (0.9, 30), (0.001, 4)])
def test_labels_of_the_picture_s_axes_do_not_touch(low: float, high: float) -> None:
    points = [SpeedUp("evit", speed, speed, speed, speed) for speed in (low / 0.9, high / 1.08)]
    figure = speed_up_figure([SpeedUpPanel("vit, 224 px", "0.5, 0.1", points, kernels=1.4)])
    figure.canvas.draw()
    (axes,) = figure.axes
    (right,) = axes.child_axes
    for axis in (axes.xaxis, axes.yaxis, right.yaxis):
        boxes = [label.get_window_extent().padded(4) for label in axis.get_ticklabels()]
        assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))
    ticks = axes.get_xticks()
    assert 1 in ticks
    assert min(ticks) < 5 * axes.get_xlim()[0]


def test_the_picture_shows_what_reduction_gives_and_what_kernels_give(result: Benchmark) -> None:
    panel = result.panels()[0]
    rows = next(iter(result.groups()))[1]
    own, reduced = rows[1], rows[2:]
    assert panel.kernels == own.speed_up.median
    assert panel.keep_rates == "0.5, 0.1"
    drawn = {(point.reduction, point.mac_ratio): point.median for point in panel.speed_ups}
    assert drawn == {(row.candidate.reduction, row.mac_ratio): row.over_own_dense.median for row in reduced}
    (axes,) = speed_up_figure([replace(panel, kernels=2.0)]).axes
    (right,) = axes.child_axes
    axes.figure.canvas.draw()
    assert right.get_ylim() == pytest.approx([2 * end for end in axes.get_ylim()])
    assert "kernels alone: 2.00×" in right.get_ylabel()


def made_up(speed: float, ratio: float, **changes: Any) -> BenchmarkRow:
    candidate = replace(Candidate("vit", 224, 8, "evit", 0.1), **changes)
    spread = Spread(speed, speed, speed)
    return BenchmarkRow(
        candidate, mac_ratio=ratio, milliseconds=Spread(1, 1, 1), speed_up=Spread(9, 9, 9), over_own_dense=spread
    )


def test_it_says_where_reduction_loses(result: Benchmark) -> None:
    rows = [made_up(0.9, 3.0), made_up(2.3, 3.0, keep_rate=0.2), made_up(2.5, 3.0, keep_rate=0.3)]
    rows += [made_up(0.9, 1.0, reduction=DENSE)]
    lines = replace(result, rows=rows).falls_short()
    assert len(lines) == 2
    assert (
        "evit 0.1 (vit, 224 px, batch 8, fp32, eager, inference) is slower than dense with the same kernels: 0.90 ×"
        in lines[0]
    )
    assert "evit 0.2" in lines[1]
    assert "falls behind its MACs: 2.30 × faster for 3.00 × fewer" in lines[1]


def test_what_is_shown_as_once_the_speed_is_not_called_slower(result: Benchmark) -> None:
    assert replace(result, rows=[made_up(0.996, 1.0)]).falls_short() == []
    (line,) = replace(result, rows=[made_up(0.994, 1.0)]).falls_short()
    assert "is slower than dense with the same kernels: 0.99 ×" in line


def test_macs_of_small_models_can_be_told_apart(result: Benchmark) -> None:
    shown = Console(file=io.StringIO(), width=140)
    rows = [replace(made_up(2, 2, keep_rate=rate), gmacs=gmacs) for rate, gmacs in ((0.5, 0.01257), (0.25, 0.009292))]
    replace(result, rows=[*rows, replace(made_up(2, 2), gmacs=78.494)]).render(shown)
    text = shown.file.getvalue()  # type: ignore[attr-defined]
    assert "0.0126" in text
    assert "0.00929" in text
    assert "78.49" in text


def test_a_failure_is_a_row_with_its_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    genuine = CandidateBuilder.work

    def failing(self: CandidateBuilder, candidate: Candidate, model: Any = None) -> Callable[[], Any]:
        if candidate.reduction == "topk":
            raise RuntimeError("cannot be\ncompiled")
        return genuine(self, candidate, model)

    monkeypatch.setattr(CandidateBuilder, "work", failing)
    found = benchmark(BenchmarkConfig(**SMALL, reductions=("topk", "evit"), keep_rates=(0.5,), rounds=1))
    assert [row.error for row in found.rows] == [None, None, "RuntimeError: cannot be compiled", None]
    assert found.rows[3].speed_up is not None
    console = Console(width=80, record=True, file=io.StringIO())
    found.render(console)
    assert "topk 0.5 failed: RuntimeError: cannot be compiled" in console.export_text()
    assert (tmp_path / "x" / "benchmark.csv") in found.write(tmp_path / "x")
    only = replace(found, rows=found.rows[:3])  # the dense models, and one that failed: nothing to draw
    assert {path.name for path in only.write(tmp_path / "y")} == {"benchmark.json", "benchmark.csv"}


def test_without_the_dense_models_there_are_times_and_no_speed_ups(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    genuine = CandidateBuilder.work

    def failing(self: CandidateBuilder, candidate: Candidate, model: Any = None) -> Callable[[], Any]:
        if candidate.is_dense:
            raise MemoryError
        return genuine(self, candidate, model)

    monkeypatch.setattr(CandidateBuilder, "work", failing)
    found = benchmark(BenchmarkConfig(**SMALL, reductions=("evit",), keep_rates=(0.5,), rounds=1))
    assert found.rows[0].error == found.rows[1].error == "MemoryError"
    assert found.rows[2].milliseconds is not None
    assert found.rows[2].speed_up is found.rows[2].share is None
    assert {path.name for path in found.write(tmp_path / "x")} == {"benchmark.json", "benchmark.csv"}


def interrupt_after(monkeypatch: pytest.MonkeyPatch, rounds: int) -> None:
    genuine = running.rounds

    def ending(*args: Any, **kwargs: Any) -> Any:
        for number, found in enumerate(genuine(*args, **kwargs)):
            if number == rounds:
                raise KeyboardInterrupt
            yield found

    monkeypatch.setattr(running, "rounds", ending)


def test_ctrl_c_keeps_what_was_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupt_after(monkeypatch, 2)
    argv = ["benchmark", "--models", "vit_tiny_patch16_224", "--img-sizes", "32", "--batch-sizes", "2", "1",
            "--reductions", "evit", "--keep-rates", "0.5", "--memory", "no", "--device", "cpu"]  # fmt: skip
    assert main([*argv, "--out", str(tmp_path / "out")]) == 130
    told = capsys.readouterr()
    assert "interrupted; the rounds until then are kept" in told.err
    assert "batch 2: interrupted after 2 rounds" in " ".join(told.out.split())
    content = json.loads((tmp_path / "out" / "benchmark.json").read_text())
    assert content["interrupted"] is True
    assert [row["batch_size"] for row in content["rows"]] == [2, 2, 2]  # the second group had not begun
    assert all(row["rounds"] == 2 for row in content["rows"])


def test_too_little_time_gives_three_rounds_and_says_so() -> None:
    found = benchmark(BenchmarkConfig(**SMALL, reductions=("evit",), keep_rates=(0.5,), minutes=1e-6))
    assert {row.rounds for row in found.rows} == {3}
    assert any("only 3 rounds fitted" in note for note in found.notes)
    plenty = benchmark(BenchmarkConfig(**SMALL, reductions=("evit",), keep_rates=(0.5,), minutes=0.5))
    assert {row.rounds for row in plenty.rows} == {running.MOST_ROUNDS}
    assert plenty.notes == []


def test_with_rounds_given_progress_is_the_share_of_the_calls_and_not_of_the_minutes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shares: list[float] = []
    monkeypatch.setattr(running.Meter, "show", lambda _, share, text: shares.append(share))
    benchmark(
        BenchmarkConfig(
            **(SMALL | {"batch_sizes": (2, 1)}), reductions=("evit",), keep_rates=(0.5,), rounds=4, minutes=99
        )
    )
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(1)
    assert len(set(shares)) >= 2 * 3 * (1 + 4)  # two batch sizes, three candidates, a call to warm up and four rounds


def test_training_steps_leave_the_shared_weights_alone() -> None:
    builder, base = CandidateBuilder(), Candidate("vit_tiny_patch16_224", 32, 2, DENSE, 1.0, training=True)
    models = {name: builder.model(replace(base, reduction=name, keep_rate=0.5)) for name in ("evit", "dynamicvit")}
    before = {name: value.clone() for name, value in models["evit"].named_parameters()}
    for name, model in models.items():
        builder.work(replace(base, reduction=name, keep_rate=0.5), model)()
    assert models["evit"].blocks[0].attn.qkv.weight is models["dynamicvit"].blocks[0].attn.qkv.weight
    assert all(torch.equal(value, before[name]) for name, value in models["evit"].named_parameters())
    assert all(value.grad is None for model in models.values() for value in model.parameters())
    found = benchmark(BenchmarkConfig(**SMALL, reductions=("evit",), keep_rates=(0.5,), rounds=1, training=True))
    assert [row.error for row in found.rows] == [None, None, None]
    made = found.rows[2].computed_gmacs or found.rows[2].gmacs
    assert found.rows[2].efficiency == pytest.approx(3 * made * found.rows[2].images_per_second / 50)


def test_the_own_dense_model_is_timm_s_with_the_kernels_of_a_reduced_one(monkeypatch: pytest.MonkeyPatch) -> None:
    builder, dense = CandidateBuilder(), Candidate("vit_tiny_patch16_224", 32, 2, DENSE, 1.0)
    theirs, ours = builder.model(dense), builder.model(dense.own_dense)
    assert ours.blocks[0].attn.qkv.weight is theirs.blocks[0].attn.qkv.weight
    asked: list[Any] = []
    monkeypatch.setattr("clca.kernels.dispatch.use_fast_path", lambda block, x: bool(asked.append(block)))
    images = builder.images(dense)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images), rtol=1e-4, atol=1e-5)
        assert asked == list(ours.blocks)
        ours.bit_exact = True
        assert torch.equal(ours(images), theirs(images))
    assert len(asked) == len(ours.blocks)  # then it is timm's to the bit, so no kernel of ours is asked


def test_a_run_is_measured_with_its_own_weights_and_settings(saved: Path) -> None:
    config = BenchmarkConfig(
        **(SMALL | {"models": (str(saved),)}), reductions=("topk",), keep_rates=(1.0, 0.25), rounds=1
    )
    found = benchmark(config)
    assert [(r.candidate.reduction, r.candidate.keep_rate) for r in found.rows] == [
        (DENSE, 1.0), (OWN_DENSE, 1.0), ("evit", 1.0), ("evit", 0.25)
    ]  # fmt: skip
    builder = CandidateBuilder()
    one, other = (builder.model(row.candidate) for row in found.rows[2:])
    own = clca.from_pretrained(saved)
    assert (
        one.head is other.head if hasattr(one, "head") else one.blocks[0].norm1.weight is other.blocks[0].norm1.weight
    )
    torch.testing.assert_close(one.cla_head.state_dict(), own.cla_head.state_dict())
    assert (one.keep_rate, other.keep_rate) == (1.0, 0.25)
    assert found.as_dict()["config"]["models"] == [saved.parent.name]  # and not where it lies


def test_a_run_is_measured_at_its_own_rate_where_none_is_named(tmp_path: Path) -> None:
    clca.create_model(
        "vit_tiny_patch16_224", **TINY, img_size=32, num_classes=5, reduction="evit", keep_rate=(0.6, 0.3, 0.3)
    ).save_pretrained(str(tmp_path))
    own = (0.6, 0.3, 0.3)
    for more, rates in (({}, [0.7, 0.5, own, 0.25, 0.1]), ({"keep_rates": (0.25,)}, [0.25])):
        groups, _ = requested(BenchmarkConfig(**(SMALL | {"models": (str(tmp_path),)} | more)), "cpu")
        assert [candidate.keep_rate for candidate in groups[0] if not candidate.is_dense] == rates


def test_runs_of_one_name_are_told_apart(saved: Path) -> None:
    again = saved.parent / "again" / "run"
    shutil.copytree(saved, again)
    config = BenchmarkConfig(**(SMALL | {"models": (str(saved), str(again))}), keep_rates=(0.5,), rounds=1)
    found = benchmark(config)
    assert [len(rows) for _, rows in found.groups()] == [3, 3]
    names = [saved.parent.name, "again"]
    assert found.as_dict()["config"]["models"] == names
    assert [row["model"] for row in found.as_dict()["rows"]] == [names[0]] * 3 + [names[1]] * 3
    assert "label" not in found.as_dict()["rows"][0]


def test_what_is_named_twice_is_measured_once(saved: Path) -> None:
    runs = (str(saved), f"{saved}/")
    config = BenchmarkConfig(
        models=runs, reductions=("evit", "topk", "evit"), keep_rates=(0.5, 0.1, 0.5), img_sizes=(32, 32),
        batch_sizes=(1, 2, 1), precisions=("fp32", "fp32"), modes=("eager", "eager"),
    )  # fmt: skip
    assert (config.models, config.reductions, config.keep_rates) == (runs[:1], ("evit", "topk"), (0.5, 0.1))
    assert (config.img_sizes, config.batch_sizes) == ((32,), (1, 2))
    assert (config.precisions, config.modes) == (("fp32",), ("eager",))


def test_runs_with_a_keep_rate_per_location_are_measured_and_drawn(tmp_path: Path) -> None:
    rates = (0.8, 0.6, 0.4)
    for reduction, size in (("patchmerger", 32), ("sit", 64)):
        clca.create_model(
            "vit_tiny_patch16_224", **TINY, img_size=size, num_classes=5, reduction=reduction, keep_rate=rates
        ).save_pretrained(str(tmp_path / f"run{size}"))
    runs = tuple(str(tmp_path / f"run{size}") for size in (32, 64))
    found = benchmark(BenchmarkConfig(**(SMALL | {"models": runs}), rounds=1))
    assert [(row.candidate.keep_rate, row.error) for row in found.rows] == [(1.0, None), (1.0, None), (rates, None)] * 2
    found.growth = [running.Growth(found.rows[2].candidate, (4, 16), 1.0, 1.0, None)]
    found.rows[2] = replace(found.rows[2], over_own_dense=Spread(0.5, 0.5, 0.5))
    console = Console(width=80, record=True, file=io.StringIO(), force_terminal=True)
    found.render(console)
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= 80
    assert "patchmerger 0.8 0.6 0.4 is slower than dense" in text
    assert "speedup.png" in [path.name for path in found.write(tmp_path / "out")]
    content = json.loads((tmp_path / "out" / "benchmark.json").read_text())
    assert content["rows"][2]["keep_rate"] == content["growth"][0]["keep_rate"] == list(rates)
    rows = list(csv.DictReader((tmp_path / "out" / "benchmark.csv").open(encoding="utf-8-sig")))
    assert [row["keep_rate"] for row in rows] == ["1", "1", "0.8 0.6 0.4"] * 2


def test_memory_is_weighed_alone() -> None:
    models = {"models": ("vit_tiny_patch16_224",), "memory": True}
    found = benchmark(BenchmarkConfig(**(SMALL | models), reductions=("evit",), keep_rates=(0.5,), rounds=1))
    dense, _, evit = found.rows
    assert dense.peak_mib is not None
    # The weights of ViT-Ti in float32 and a little more.
    assert 20 < dense.peak_mib < 200
    assert evit.memory_ratio == pytest.approx(evit.peak_mib / dense.peak_mib)


def test_where_memory_cannot_be_measured_the_times_stay(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def weigh(_: Any, candidate: Candidate, *args: Any, **kwargs: Any) -> int:
        if candidate.reduction == "evit":
            raise WorkError("its process ended with code -9; out of memory?")
        return 2**20

    monkeypatch.setattr(running, "peak_memory", weigh)
    found = benchmark(BenchmarkConfig(**(SMALL | {"memory": True}), reductions=("evit",), keep_rates=(0.5,), rounds=1))
    dense, _, evit = found.rows
    assert (dense.peak_mib, dense.error, evit.error) == (1.0, None, None)
    assert evit.speed_up is not None
    assert (evit.peak_mib, evit.memory_ratio) == (None, None)
    console = Console(width=120, record=True, file=io.StringIO())
    found.render(console)
    told = "evit 0.5: its memory could not be measured: its process ended with code -9; out of memory?"
    assert told in console.export_text()
    found.write(tmp_path)
    assert "code -9" in json.loads((tmp_path / "benchmark.json").read_text())["rows"][2]["memory_error"]


@pytest.mark.parametrize(
    ("field", "value", "what"),
    [
        ("reductions", ("evid",), "did you mean 'evit'"),
        ("keep_rates", (0.0,), "above 0 and at most 1"),
        ("batch_sizes", (0,), "greater than 0"),
        ("img_sizes", (), "at least 1 item"),
        ("precisions", ("int8",), "'fp32'"),
        ("modes", ("lazy",), "'eager'"),
        ("minutes", 0, "greater than 0"),
        ("rounds", 0, "greater than or equal to 1"),
        ("threads", 0, "greater than or equal to 1"),
    ],
)
def test_wrong_settings_are_refused_by_name(field: str, value: Any, what: str) -> None:
    with pytest.raises(ValidationError, match=f"(?s){field}.*{what}"):
        BenchmarkConfig(**{field: value})


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"models": ("vit_tony_patch16_224",)}, "vit_tony_patch16_224"),
        ({"models": ("resnet18",)}, "resnet18"),
        ({"img_sizes": (33,)}, "33 is not a multiple"),
        ({"precisions": ("fp16",), "device": "cpu"}, "fp16 needs a GPU"),
        ({"modes": ("eager", "cudagraph"), "device": "cpu"}, "cudagraph needs an NVIDIA GPU"),
        ({"modes": ("onnx",), "precisions": ("bf16",)}, "--precisions bf16 and --modes onnx cannot be combined"),
        ({"modes": ("onnx",), "training": True}, "--training and --modes onnx cannot be combined"),
        ({"batch_sizes": (1,), "training": True}, "--training and --batch-sizes 1 cannot be combined.*--no-cla"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_measured(
    changes: dict[str, Any], what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "rounds", lambda *_, **__: pytest.fail("measured"))
    with pytest.raises(clca.ClcaError, match=what):
        benchmark(BenchmarkConfig(**(SMALL | {"device": "cpu"} | changes), reductions=("evit",)))


def test_onnx_without_its_packages_is_refused_before_anything_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "rounds", lambda *_, **__: pytest.fail("measured"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(clca.ClcaError, match=r"onnxruntime: pip install 'clca\[onnx\]'"):
        benchmark(BenchmarkConfig(**SMALL, modes=("onnx",), reductions=("evit",), device="cpu"))


@pytest.mark.parametrize(
    ("changes", "measured", "told"),
    [
        (
            {"precisions": ("bf16", "fp32"), "modes": ("eager", "onnx")},
            {("bf16", "eager", 2), ("fp32", "eager", 2), ("fp32", "onnx", 2)},
            "left out: --precisions bf16 and --modes onnx cannot be combined",
        ),
        (  # not even the dense model in bf16, which nothing would be compared with
            {"precisions": ("bf16", "fp32"), "modes": ("onnx",)},
            {("fp32", "eager", 2), ("fp32", "onnx", 2)},
            "left out: --precisions bf16 and --modes onnx cannot be combined",
        ),
        ({"batch_sizes": (2, 1), "training": True}, {("fp32", "eager", 2)}, "left out: --training and --batch-sizes 1"),
        ({"batch_sizes": (2, 1), "training": True, "cla": False}, {("fp32", "eager", 2), ("fp32", "eager", 1)}, None),
    ],
)
def test_of_a_mixed_request_what_cannot_be_is_left_out_and_said(
    changes: dict[str, Any],
    measured: set[Any],
    told: str | None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "clca")
    settings = SMALL | {"reductions": ("evit",), "keep_rates": (0.5,), "rounds": 1} | changes
    monkeypatch.setattr(CandidateBuilder, "_onnx", lambda *_: lambda: None)  # exported in tests/export/test_export.py
    found = benchmark(BenchmarkConfig(**settings, device="cpu"))
    assert {(c.precision, c.mode, c.batch_size) for c in (row.candidate for row in found.rows)} == measured
    assert [row.error for row in found.rows] == [None] * len(found.rows)
    lines = caplog.messages
    assert [line for line in lines if line.startswith("left out")] == [n for n in found.notes if n.startswith("left")]
    assert any(line.startswith(told) for line in lines) if told else not any(map(str.strip, lines))


@pytest.mark.parametrize(
    ("argv", "batches"),
    [
        ([], (8, 1)),
        (["--training"], (8,)),
        (["--training", "--quick"], (8,)),
        (["--growth"], (1,)),
        (["--training", "--growth"], (2,)),
        (["--training", "--growth", "--batch-sizes", "4"], (4,)),
    ],
)
def test_training_is_not_measured_with_one_image_unless_asked(
    argv: list[str], batches: tuple[int, ...], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[BenchmarkConfig] = []

    def stop(config: BenchmarkConfig) -> Benchmark:
        asked.append(config)
        raise clca.ClcaError("enough")

    monkeypatch.setattr("clca.benchmark.benchmark", stop)
    assert main(["benchmark", *argv, "--out", str(tmp_path)]) == 2
    assert [config.batch_sizes for config in asked] == [batches]


def test_presets_are_settings() -> None:
    assert BenchmarkConfig(**QUICK).minutes < 2
    assert BenchmarkConfig(**GROWTH).img_sizes == (224, 448, 896)


def test_the_command_refuses_in_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["benchmark", "--reductions", "evid", "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert main(["benchmark", "--models", "", "--out", str(tmp_path)]) == 2
    assert "--models '': the name of a run or model is empty" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert main(["benchmark", "--quick", "--out", str(tmp_path / "file")]) == 2
    assert "nothing can be written there" in capsys.readouterr().err
