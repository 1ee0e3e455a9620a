"""One answer for several photographs of a plant."""

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st
from small_endpoint import photo, tiny_model

import clca
from clca.cli.main import main
from clca.errors import ClcaError
from clca.evaluation import evaluate, predict, predict_together
from clca.evaluation.together import combined
from clca.serve import ServeSettings, create_app
from clca.training import TrainConfig, train


@pytest.fixture(scope="module")
def model() -> clca.TokenReducedViT:
    return tiny_model()


@pytest.fixture
def plants(tmp_path: Path) -> Path:
    """Two folders with photographs of plants 1 and 2 in both."""
    root = tmp_path / "plants"
    for number in range(8):
        folder = root / ("east" if number % 2 else "west")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"plant{number // 4 + 1}_{number}.png").write_bytes(photo(number))
    return root


@given(st.lists(st.lists(st.floats(0, 1), min_size=4, max_size=4), min_size=1, max_size=6))
def test_it_is_the_geometric_mean(rows: list[list[float]]) -> None:
    shares = [torch.tensor(row).add(1e-3).div(sum(row) + 4e-3) for row in rows]
    found = combined(shares)
    expected = torch.stack(shares).double().prod(0) ** (1 / len(shares))
    torch.testing.assert_close(found, (expected / expected.sum()).float(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(combined(shares[::-1]), found)
    torch.testing.assert_close(combined(shares * 3), found)  # more of the same makes it no surer


@pytest.mark.parametrize(
    ("by", "groups"),
    [("folder", {"east": 4, "west": 4}), (r"(plant\d)", {"plant1": 4, "plant2": 4}),
     (r"([a-z]+)/(plant\d)", {"west plant1": 2, "east plant1": 2, "west plant2": 2, "east plant2": 2})],
)  # fmt: skip
def test_groups_are_those_of_folders_or_a_pattern(
    model: clca.TokenReducedViT, plants: Path, by: str, groups: dict[str, int]
) -> None:
    found = predict_together(model, plants, by, device="cpu", precision="no")
    assert {Path(one.name).name: len(one.paths) for one in found} == groups
    single = {one.path: one for one in predict(model, plants, device="cpu", precision="no")}
    for one in found:
        shares = [
            torch.tensor(
                [dict(zip(single[path].classes, single[path].probabilities, strict=True))[name] for name in one.classes]
            )
            for path in one.paths
        ]
        assert one.probabilities == pytest.approx(combined(shares).tolist(), rel=1e-3)
        assert sum(one.probabilities) == pytest.approx(1, abs=1e-5)


def test_groups_may_be_a_column(model: clca.TokenReducedViT, plants: Path) -> None:
    lines = ["path;pot", "west/plant1_0.png;A", r"east\plant1_1.png;A", "west/plant2_4.png;B", "missing.png;B"]
    table = plants / "list.csv"
    table.write_text("\ufeff" + "\n".join(lines) + "\n")
    found = predict_together(model, table, "pot", device="cpu", precision="no")
    assert [(one.name, len(one.paths), len(one.errors)) for one in found] == [("A", 2, 0), ("B", 1, 1)]
    with pytest.raises(ClcaError, match="needs the columns path, plant; has path, pot"):
        predict_together(model, table, "plant", device="cpu", precision="no")


@pytest.mark.parametrize(
    ("by", "message"), [("(", "is not a regular expression"), ("tree", "is not found in 8 of 8 file names, such as")]
)
def test_a_pattern_that_groups_nothing_is_refused(
    model: clca.TokenReducedViT, plants: Path, by: str, message: str
) -> None:
    with pytest.raises(ClcaError, match=message):
        predict_together(model, plants, by, device="cpu", precision="no")


def test_the_command_writes_groups_in_every_form(
    model: clca.TokenReducedViT, plants: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model.save_pretrained(tmp_path / "model")
    (plants / "west" / "plant2_9.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    argv = [
        "predict",
        str(tmp_path / "model"),
        str(plants),
        "--together",
        r"(plant\d)",
        "--top-k",
        "2",
        "--device",
        "cpu",
    ]
    assert main(argv) == 1
    shown = capsys.readouterr()
    assert "plant2" in shown.out
    assert "4 (1 not read)" in shown.out
    assert "plant2_9.png" in shown.err
    assert main([*argv, "--format", "csv", "--out", str(tmp_path / "a.csv")]) == 1
    rows = list(csv.DictReader(io.StringIO((tmp_path / "a.csv").read_text(encoding="utf-8-sig"))))
    assert [(row["group"], row["photographs"], row["rank"]) for row in rows[:2]] == [
        ("plant1", "4", "1"),
        ("plant1", "4", "2"),
    ]
    assert rows[-1]["path"].endswith("plant2_9.png")
    assert rows[-1]["error"]
    assert main([*argv, "--format", "jsonl", "--out", str(tmp_path / "a.jsonl")]) == 1
    lines = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert [(line["group"], len(line["paths"]), len(line["errors"])) for line in lines] == [
        ("plant1", 4, 0),
        ("plant2", 4, 1),
    ]
    assert main([*argv, "--explain", str(tmp_path / "seen")]) == 2
    assert "omit --together" in capsys.readouterr().err


def test_the_endpoint_gives_one_answer_for_all(model: clca.TokenReducedViT) -> None:
    with TestClient(create_app({"m": model}, ServeSettings(device="cpu", precision="no"))) as client:
        files = [("files", (f"{seed}.png", photo(seed))) for seed in range(3)]
        files.append(("files", ("bad.png", b"\x89PNG\r\n\x1a\n")))
        found = client.post("/v1/predict?together=true&top_k=2", files=files).json()
        whole = client.post("/v1/predict?top_k=5", files=files).json()
    assert whole["together"] is None
    assert [len(one["classes"]) for one in found["results"]] == [2, 2, 2, 0]
    names = sorted(whole["results"][0]["classes"])
    shares = [
        torch.tensor([dict(zip(one["classes"], one["probabilities"], strict=True))[name] for name in names])
        for one in whole["results"][:3]
    ]
    expected = combined(shares)
    best = names[int(expected.argmax())]
    assert found["together"]["classes"][0] == best
    assert found["together"]["probabilities"][0] == pytest.approx(expected.max().item(), rel=1e-3)
    assert found["together"]["name"] == "3 photographs"


@pytest.mark.slow
def test_evaluate_says_what_it_brings(
    make_config: Callable[..., TrainConfig], draw_images: Callable[..., Path], tmp_path: Path
) -> None:
    root = draw_images(tmp_path / "photographs", classes=3, images=6)
    run = train(make_config(data={"root": str(root)}), quiet=True).folder
    with pytest.raises(ClcaError, match="is not found in"):
        evaluate(run, workers=0, device="cpu", precision="no", together=r"(class\d)/[0-2]\.")
    by_class = evaluate(run, workers=0, device="cpu", precision="no", together="folder").together
    assert by_class is not None
    assert (by_class.groups, by_class.images, by_class.mixed) == (3, 18, 0)
    groups = predict_together(run, root / "test", "folder", device="cpu", precision="no")
    right = [Path(one.name).name == one.classes[0] for one in groups]
    assert by_class.top1 == pytest.approx(sum(right) / 3)
    mixed = evaluate(run, workers=0, device="cpu", precision="no", together=r"/(\d)\.png").together
    assert mixed is not None
    assert (mixed.groups, mixed.top1, mixed.mixed) == (0, None, 6)
    assert "6 groups of several classes are left out" in str(mixed)
