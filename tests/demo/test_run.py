"""The demo in miniature: runs, table and picture are there, and what is there is not made again."""

import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from rich.console import Console

import clca.demo.run
from clca.demo.recipe import METHODS, DemoSettings
from clca.demo.run import PICTURE, RESULTS, TABLE, DemoResult, run
from clca.errors import ClcaError
from clca.evaluation import evaluate, predict
from clca.plots.survivors import paint

pytestmark = pytest.mark.slow

SMALL = DemoSettings(cultivars=3, images=10, img_size=64, batch_size=8, timed_images=4, timed_rounds=3, pictured=2)


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> tuple[DemoResult, str]:
    """The demo in small, and what it printed."""
    result = run(tmp_path_factory.mktemp("demo") / "new", 3, settings=SMALL)
    return result, rendered(result)


def rendered(result: DemoResult) -> str:
    console = Console(file=io.StringIO(), width=140)
    result.render(console)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_four_finite_rows_in_screen_markdown_and_json(shown: tuple[DemoResult, str]) -> None:
    result, printed = shown

    assert [row.name for row in result.rows] == [method.name for method in METHODS]
    for row in result.rows:
        assert all(math.isfinite(value) for value in (row.top1, row.gmacs, row.ms))
        assert 0 <= row.top1 <= 1
        assert 0 < row.ms_low <= row.ms <= row.ms_high
        assert row.name in printed
    assert "chance is 33.3%" in printed
    assert len(json.loads((result.folder / RESULTS).read_text())["rows"]) == 4
    markdown = (result.folder / TABLE).read_text().splitlines()
    assert [line.split("|")[1].strip() for line in markdown[2:6]] == [row.name for row in result.rows]


def test_tokens_fall_at_the_locations_and_cost_with_them(shown: tuple[DemoResult, str]) -> None:
    dense, evit, evit_clca, tome_clca = shown[0].rows

    assert set(dense.tokens) == {17}
    # CLS, ceil(k · candidates), the fused one; a depth of 12 reduces at 3, 6 and 9.
    assert evit.tokens == (17, 17, 17, 4, 4, 4, 3, 3, 3, 3, 3, 3)
    for row in (evit_clca, tome_clca):
        assert row.tokens[3] < row.tokens[2]
    assert evit.gmacs < evit_clca.gmacs < dense.gmacs


def test_its_runs_can_be_evaluated_and_used(shown: tuple[DemoResult, str]) -> None:
    result, _ = shown
    leaf = next((result.folder / "leaves" / "test" / "cultivar-002").iterdir())

    again = evaluate(result.folder / "tome-clca", workers=0, precision="no")
    (answer,) = predict(str(result.folder / "evit-clca"), leaf)

    assert again.top1 == result.rows[3].top1
    assert again.images == result.test_images == 3 * 2
    assert answer.error is None
    assert sum(answer.probabilities) == pytest.approx(1, abs=1e-4)


def test_the_picture_shows_something(shown: tuple[DemoResult, str]) -> None:
    with Image.open(shown[0].picture) as picture:
        pixels = np.asarray(picture.convert("RGB"))

    assert pixels.shape[1] > pixels.shape[0] > 300
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 1000


def test_a_second_call_repeats_nothing(
    shown: tuple[DemoResult, str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    first, printed = shown
    monkeypatch.setattr(clca.demo.run, "run_tasks", lambda *_, **__: pytest.fail("trained again"))

    with caplog.at_level("INFO", "clca"):
        second = run(first.folder, 3, settings=SMALL)

    assert second == first
    assert rendered(second) == printed
    assert "EViT + CLCA" in printed
    assert caplog.messages == [
        f"This demo has been run before; {first.folder} holds the runs. Remove the folder to run it again."
    ]


def test_an_interrupted_demo_makes_only_what_is_missing(
    shown: tuple[DemoResult, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = shown
    weights = {m.folder: (first.folder / m.folder / "model.safetensors").stat().st_mtime_ns for m in METHODS}
    (first.folder / RESULTS).unlink()
    (first.folder / PICTURE).unlink()
    monkeypatch.chdir(first.folder.parent)

    again = run(first.folder.name, 3, settings=SMALL)

    assert [row.top1 for row in again.rows] == [row.top1 for row in first.rows]
    assert (first.folder / PICTURE).is_file()
    for name, before in weights.items():
        assert (first.folder / name / "model.safetensors").stat().st_mtime_ns == before


def test_the_next_steps_include_training_on_photographs(shown: tuple[DemoResult, str]) -> None:
    assert "train PHOTOS --model deit3_small_patch16_224.fb_in1k --reduction evit --keep-rate 0.25" in shown[1]


def test_a_seed_that_no_run_takes_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="seed"):
        run(tmp_path / "demo", -1, settings=SMALL)
    assert not (tmp_path / "demo").exists()


def test_refuses_another_demo_other_files_and_a_file(shown: tuple[DemoResult, str], tmp_path: Path) -> None:
    with pytest.raises(ClcaError, match="demo with seed 3, not 4"):
        run(shown[0].folder, 4, settings=SMALL)
    (tmp_path / "holiday.jpg").write_bytes(b"")
    with pytest.raises(ClcaError, match="holds no demo"):
        run(tmp_path, settings=SMALL)
    with pytest.raises(ClcaError, match="is a file"):
        run(tmp_path / "holiday.jpg", settings=SMALL)
    with pytest.raises(ClcaError, match="nothing can be written"):
        run("/proc/clca-demo", settings=SMALL)


def test_paint_keeps_merges_and_fades() -> None:
    image = torch.rand(4, 8, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).numpy()
    owner = np.array([1, 2, 2, -1, 3, 2, 4, 4])  # 2 × 4 patches of 2 × 2 pixels

    merged, outlines = paint(image, owner, (2, 4), np.zeros(8, dtype=bool))
    fused, _ = paint(image, owner, (2, 4), owner == 2)

    np.testing.assert_array_equal(merged[:2, :2], image[:2, :2])
    members = np.concatenate([image[:2, 2:4], image[:2, 4:6], image[2:, 2:4]])
    np.testing.assert_allclose(merged[:2, 2:6], np.broadcast_to(members.mean(axis=(0, 1)), (2, 4, 3)))
    for faded in (merged[:2, 6:], fused[:2, 2:6]):
        assert faded.std() < 0.05
    np.testing.assert_array_equal(fused[2:, :2], image[2:, :2])
    edges = {tuple(map(tuple, segment + 0.5)) for segment in outlines}
    assert ((2, 0), (2, 2)) in edges  # between tokens 1 and 2
    assert ((4, 0), (4, 2)) not in edges  # inside token 2
