"""Answers of a model with a confidence: calibrated, and "none of these" for what it does not know."""

import copy
import csv
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from PIL import Image
from small_endpoint import CLASSES, photo, tiny_model

import clca
from clca.app import html
from clca.app.batch import Row
from clca.app.batch_table import cells, summary
from clca.app.i18n import Words
from clca.data.transforms import from_preprocess
from clca.evaluation import evaluate, predict
from clca.evaluation.prediction_files import write_predictions
from clca.models.confidence import AnsweringModel, Confidences
from clca.serve import ServeSettings, create_app
from clca.serve.service import Ranked
from clca.training import train
from clca.training.confidence import fit_confidence

STRANGE = (255, 0, 255)


def grey_pixels(count: int, seed: int) -> np.ndarray:
    """Grey images with a little noise, [N, H, W, 3]: all that the model knows."""
    noise = np.random.default_rng(seed).normal(115, 6, (count, 32, 32, 3))
    return noise.clip(0, 255).astype(np.uint8)


def known_model() -> clca.TokenReducedViT:
    model = tiny_model()
    transform = from_preprocess(model.preprocess or {})
    images = torch.stack([transform(Image.fromarray(pixels)) for pixels in grey_pixels(100, 0)])
    labels = torch.arange(100) % len(CLASSES)
    with torch.no_grad():
        features = model.forward_features(images)
        logits = model.forward_head(features)
    one = fit_confidence(
        model, model.keep_rate, features[:60].numpy(), labels[:60].numpy(), features[60:], logits[60:], labels[60:]
    )
    one.temperature.fill_(2.0)
    model.confidence = Confidences([one])
    return model


@pytest.fixture(scope="module")
def model() -> clca.TokenReducedViT:
    return known_model()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "photographs"
    place.mkdir()
    for number, pixels in enumerate(grey_pixels(3, 1)):
        Image.fromarray(pixels).save(place / f"{number}.png")
    Image.new("RGB", (32, 32), STRANGE).save(place / "strange.png")
    (place / "zz.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    return place


def test_probabilities_are_calibrated_and_strangers_are_found(model: clca.TokenReducedViT, folder: Path) -> None:
    found = {one.path.name: one for one in predict(model, folder, device="cpu", precision="no")}
    plain = copy.deepcopy(model)
    plain.confidence = None
    uncalibrated = {one.path.name: one for one in predict(plain, folder, device="cpu", precision="no")}
    assert found["strange.png"].is_unfamiliar
    assert not any(found[f"{number}.png"].is_unfamiliar for number in range(3))
    for number in range(3):
        name = f"{number}.png"
        assert uncalibrated[name].unfamiliarity is None
        assert not uncalibrated[name].is_unfamiliar
        logits = torch.tensor(uncalibrated[name].probabilities).log()
        assert found[name].classes == uncalibrated[name].classes
        assert found[name].probabilities == pytest.approx((logits / 2).softmax(0).tolist(), rel=1e-3)
    assert found["zz.png"].unfamiliarity is None


def test_at_another_keep_rate_nothing_is_said(folder: Path) -> None:
    found = list(predict(known_model(), folder / "strange.png", keep_rate=0.8, device="cpu", precision="no"))
    assert found[0].unfamiliarity is None


def test_every_form_says_it(model: clca.TokenReducedViT, folder: Path, tmp_path: Path) -> None:
    written = {}
    for form in ("table", "csv", "jsonl"):
        out = tmp_path / f"answers.{form}"
        write_predictions(predict(model, folder, 2, device="cpu", precision="no"), form, out)  # type: ignore[arg-type]
        written[form] = out.read_text(encoding="utf-8-sig")
    row = next(line for line in written["table"].splitlines() if "strange.png" in line)
    assert "none of these" in row
    assert float(re.findall(r"[0-9]+\.[0-9]{2}", row)[-1]) > 1
    rows = list(csv.DictReader(io.StringIO(written["csv"])))
    assert [(r["none_of_these"], r["rank"]) for r in rows if r["path"].endswith("strange.png")] == [
        ("yes", "1"),
        ("yes", "2"),
    ]
    assert {r["none_of_these"] for r in rows if r["path"].endswith("0.png")} == {"no"}
    assert all(r["error"] and not r["unfamiliarity"] for r in rows if r["path"].endswith("zz.png"))
    lines = {Path(line["path"]).name: line for line in map(json.loads, written["jsonl"].splitlines())}
    assert lines["strange.png"]["none_of_these"] is True
    assert lines["0.png"]["unfamiliarity"] < 1
    assert "unfamiliarity" not in lines["zz.png"]


def test_without_a_confidence_the_table_has_no_column_for_it(folder: Path, tmp_path: Path) -> None:
    write_predictions(predict(tiny_model(), folder, device="cpu", precision="no"), "table", tmp_path / "table")
    assert "unfamiliarity" not in (tmp_path / "table").read_text()


def test_the_endpoint_says_it(folder: Path) -> None:
    with TestClient(create_app({"known": known_model()}, ServeSettings(device="cpu", precision="no"))) as client:
        files = [("files", (path.name, path.read_bytes())) for path in sorted(folder.glob("*.png"))]
        results = {one["name"]: one for one in client.post("/v1/predict", files=files).json()["results"]}
        assert results["strange.png"]["none_of_these"] is True
        assert results["0.png"]["none_of_these"] is False
        assert 0 < results["0.png"]["unfamiliarity"] <= 1
        assert results["zz.png"]["unfamiliarity"] is None
        one = [("files", ("a.png", photo(1)))]
        (other,) = client.post("/v1/predict?keep_rate=0.9", files=one).json()["results"]
        assert other["none_of_these"] is None
        assert sum(other["probabilities"]) == pytest.approx(1, abs=1e-4)


def test_the_page_says_it_in_words() -> None:
    tr = Words().translator({})
    shares = (0.97, 0.03)
    strange = html.answer(tr, Ranked(("<Merlot>", "Syrah"), shares, 1.4), {}, 5, 0.05)
    assert "None of these" in strange
    assert "&lt;Merlot&gt;" in strange
    assert "role=status" in strange
    familiar = html.answer(tr, Ranked(("Merlot", "Syrah"), shares, 0.4), {}, 5, 0.05)
    assert "5%" in familiar
    assert "None of these" not in familiar
    assert "names one of them for any photograph" in html.answer(tr, Ranked(("Merlot",), (1.0,), None), {}, 5, 0.05)


def test_the_table_of_a_batch_says_it() -> None:
    rows = [
        Row("a", ("x", "y"), (0.9, 0.1), unfamiliarity=1.2),
        Row("b", ("x",), (1.0,), unfamiliarity=0.2),
        Row("c", ("x",), (1.0,)),
    ]
    assert [cells(row)[-3:-1] for row in rows] == [[1.2, "yes"], [0.2, "no"], ["", ""]]
    assert summary(rows)["none_of_these"] == 1
    assert summary(rows)["classes"] == {"x": 2}


@pytest.mark.slow
def test_it_can_be_compiled() -> None:
    model = known_model()
    images = torch.randn(3, 3, 32, 32)
    with torch.inference_mode():
        plain = AnsweringModel(model)(images)
        compiled = AnsweringModel(model, compile=True)(images)
    assert plain[1] is not None
    torch.testing.assert_close(compiled, plain, rtol=1e-4, atol=1e-5)
    assert len(CLASSES) == plain[0].shape[1]


@pytest.mark.slow
def test_evaluate_says_what_it_would_turn_away(
    draw_images: Callable[..., Path], make_config: Any, tmp_path: Path
) -> None:
    root = draw_images(tmp_path / "photographs", classes=3, images=8)
    run = train(make_config(data={"root": str(root)}), quiet=True).folder
    found = evaluate(run, workers=0, device="cpu", precision="no")
    assert found.trust is not None
    assert found.answers is not None
    assert found.answers.unfamiliarity is not None
    assert found.trust.turned_away == pytest.approx((found.answers.unfamiliarity > 1).mean())
    rows = list(csv.DictReader(io.StringIO((run / "evaluation/test/predictions.csv").read_text(encoding="utf-8-sig"))))
    assert [float(row["unfamiliarity"]) for row in rows] == pytest.approx(
        found.answers.unfamiliarity.tolist(), abs=1e-4
    )
    single = {one.path: one for one in predict(run, root / "test", device="cpu", precision="no")}
    for row in rows:
        one = single[Path(row["path"])]
        assert float(row["probability"]) == pytest.approx(one.probabilities[0], rel=1e-3)
        assert float(row["unfamiliarity"]) == pytest.approx(one.unfamiliarity, rel=1e-3)
    numbers = json.loads((run / "evaluation/test/evaluation.json").read_text())
    assert numbers["trust"]["ece"] == found.trust.ece
    assert sum(line["images"] for line in numbers["trust"]["bins"]) == 24
    other = evaluate(run, keep_rate=0.8, workers=0, device="cpu", precision="no")
    assert other.trust is not None
    assert other.trust.turned_away is None
    assert "not calibrated at this keep rate" in str(other.trust)
