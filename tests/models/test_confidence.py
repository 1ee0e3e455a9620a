"""Calibrated probabilities and unfamiliarity, against the plain formulas, and in files."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from sklearn.covariance import ledoit_wolf

import clca
from clca.errors import ClcaError
from clca.models.confidence import (
    CONFIDENCE,
    Confidences,
    ModelWithConfidence,
    confidence_rows,
    load_confidences,
    read_by_head,
)
from clca.models.token_reduced_vit import TokenReducedViT
from clca.training.confidence import calibration_error, fit_confidence, fit_temperature, reliability

CLASSES = 3


def make_model(**settings: Any) -> TokenReducedViT:
    torch.manual_seed(0)
    chosen = {"reduction": "evit", "keep_rate": 0.5, "img_size": 32, "depth": 4, "embed_dim": 24, "num_heads": 2}
    model = clca.create_model("vit_tiny_patch16_224", num_classes=CLASSES, patch_size=8, **(chosen | settings))
    return model.eval()


def tokens_of(model: TokenReducedViT, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.no_grad():
        features = model.forward_features(images)
        return read_by_head(model, features), model.forward_head(features)


def fitted(model: TokenReducedViT, train: int = 40, watched: int = 30) -> tuple[Any, torch.Tensor]:
    images = torch.randn(train + watched, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    tokens, logits = tokens_of(model, images)
    labels = torch.arange(train + watched) % CLASSES
    found = fit_confidence(
        model, model.keep_rate, tokens[:train].numpy(), labels[:train].numpy(), tokens[train:], logits[train:],
        labels[train:],
    )  # fmt: skip
    return found, images


@pytest.mark.parametrize(
    "chosen",
    [
        {},
        {"cla_head": "linear"},
        {"cla_head": "linear", "cla_average": True},
        {"cla": False},
        {"reduction": "none", "keep_rate": 1.0},
        {"reduction": "tome", "cla": False, "global_pool": "avg"},
    ],
    ids=str,
)
def test_unfamiliarity_is_the_mahalanobis_distance_to_the_nearest_class(chosen: dict[str, Any]) -> None:
    model = make_model(**chosen)
    found, images = fitted(model)
    tokens, _ = tokens_of(model, images)
    rows = confidence_rows(model)
    labels = np.arange(40) % CLASSES
    squared = np.zeros((70, CLASSES))
    for row in rows:
        x = tokens[:, row].double().numpy()
        x = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-6)
        x = (x - x[:40].mean(0)) / (x[:40].std(0) + 1e-6)
        centers = np.stack([x[:40][labels == k].mean(0) for k in range(CLASSES)])
        covariance, _ = ledoit_wolf(x[:40] - centers[labels], assume_centered=True)
        precision = np.linalg.inv(covariance)
        for k in range(CLASSES):
            away = x - centers[k]
            squared[:, k] += np.einsum("nf,fg,ng->n", away, precision, away)
    expected = np.sqrt(squared.min(1))
    expected /= np.sort(expected[40:])[int(np.ceil(31 * 0.95)) - 1]
    torch.testing.assert_close(found(tokens).double(), torch.from_numpy(expected), rtol=1e-3, atol=1e-4)


def test_the_tokens_are_cls_of_the_first_two_depths() -> None:
    assert confidence_rows(make_model()) == (0, 1)
    assert confidence_rows(make_model(cla_head="linear", cla_average=True)) == (1, 2)
    assert confidence_rows(make_model(cla=False)) == (0,)


@settings(max_examples=20, deadline=None)
@given(count=st.integers(20, 120), seed=st.integers(0, 1000))
def test_at_most_the_stated_share_of_watched_images_is_beyond_the_limit(count: int, seed: int) -> None:
    model = make_model()
    generator = np.random.default_rng(seed)
    tokens = generator.normal(size=(30 + count, len(model.aggregate_at), model.embed_dim)).astype(np.float32)
    labels = np.arange(30 + count) % CLASSES
    logits = torch.from_numpy(generator.normal(size=(count, CLASSES))).float()
    watched = torch.from_numpy(tokens[30:])
    found = fit_confidence(model, 0.5, tokens[:30], labels[:30], watched, logits, torch.from_numpy(labels[30:]))
    beyond = int((found(watched) > 1 + 1e-5).sum())
    assert beyond == count - int(np.ceil((count + 1) * 0.95)) <= 0.05 * count


def test_an_image_counts_alone_as_in_a_batch_and_logits_are_those_of_the_model() -> None:
    model = make_model()
    found, images = fitted(model)
    with torch.no_grad():
        logits, unfamiliarity = ModelWithConfidence(model, found)(images[:5])
        torch.testing.assert_close(logits, model(images[:5]))
        alone = torch.cat([ModelWithConfidence(model, found)(image[None])[1] for image in images[:5]])
    torch.testing.assert_close(alone, unfamiliarity, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.probabilities(logits), (logits / found.temperature).softmax(1))
    torch.testing.assert_close(found(tokens_of(model, images[:5])[0]), unfamiliarity)


def test_other_images_are_less_familiar() -> None:
    model = make_model()
    found, images = fitted(model)
    strange = tokens_of(model, 5 * torch.rand(20, 3, 32, 32).round())[0]
    known = tokens_of(model, images[40:])[0]
    assert found(strange).min() > found(known).max()


@pytest.mark.parametrize("factor", [0.3, 1.0, 4.0])
def test_temperature_undoes_a_factor_of_the_logits(factor: float) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4000, 5, generator=generator) * 2
    labels = torch.multinomial(logits.softmax(1), 1, generator=generator).squeeze(1)
    assert fit_temperature(factor * logits, labels) == pytest.approx(factor, rel=0.1)
    right = logits.argmax(1) == labels
    assert calibration_error(logits.softmax(1).amax(1), right) < 0.03
    assert calibration_error((4 * logits).softmax(1).amax(1), right) > 0.1


def test_calibration_error_is_the_weighted_gap_of_its_bins() -> None:
    probabilities, right = torch.tensor([0.9, 0.92, 0.55, 1.0]), torch.tensor([True, False, True, True])
    lines = reliability(probabilities, right)
    assert [line.images for line in lines] == [1, 2, 1]
    assert calibration_error(probabilities, right) == pytest.approx((0.45 + 2 * (0.91 - 0.5) + 0) / 4)


def test_it_is_saved_and_loaded_with_the_model(tmp_path: Path) -> None:
    model = make_model()
    found, images = fitted(model)
    model.confidence = Confidences([found])
    model.save_pretrained(tmp_path)
    loaded = clca.from_pretrained(tmp_path)
    assert loaded.confidence is not None
    again = loaded.confidence.at(loaded.keep_rate)
    assert again is not None
    assert (again.facts, again.rows) == (found.facts, found.rows)
    tokens, logits = tokens_of(model, images)
    torch.testing.assert_close(again(tokens), found(tokens))
    torch.testing.assert_close(again.probabilities(logits), found.probabilities(logits))
    assert loaded.confidence.at(0.3) is None
    assert (tmp_path / CONFIDENCE).stat().st_mode & 0o777 == (tmp_path / "config.json").stat().st_mode & 0o777


def test_other_weights_do_not_keep_it(tmp_path: Path) -> None:
    model = make_model()
    model.confidence = Confidences([fitted(model)[0]])
    model.save_pretrained(tmp_path)
    model.set_input_size(48)
    assert model.confidence is None
    model.confidence = Confidences([fitted(make_model())[0]])
    model.reset_classifier(4)
    assert model.confidence is None
    model.save_pretrained(tmp_path)
    assert not (tmp_path / CONFIDENCE).exists()


def _described(**changes: Any) -> dict[str, Any]:
    facts = {"images": 30, "false_alarms": 0.05, "loss": 1.0, "ece": 0.1, "scaled_loss": 1.0, "scaled_ece": 0.1}
    return {"keep_rate": 0.5, "rows": [0, 1], "facts": facts} | changes


@pytest.mark.parametrize(
    "rates",
    [
        "no json", "null", "[]", "[1]", "{}", "[" * 5000,
        json.dumps([_described()] * 2), json.dumps([_described()] * 101),
        json.dumps([_described(keep_rate=0)]), json.dumps([_described(keep_rate="0.5")]),
        json.dumps([_described(keep_rate=[0.5, 2])]), json.dumps([_described(keep_rate=None)]),
        json.dumps([_described(rows=[])]), json.dumps([_described(rows=[0, 9])]), json.dumps([_described(rows=[0])]),
        json.dumps([_described(rows=[0.5, 1])]), json.dumps([_described(rows="01")]),
        json.dumps([_described(facts={})]), json.dumps([_described(facts=_described()["facts"] | {"ece": -1})]),
        json.dumps([_described(facts=_described()["facts"] | {"images": True})]),
        json.dumps([_described(facts=_described()["facts"] | {"more": 1})]),
        "[NaN]", json.dumps([_described()]).replace("0.05", "NaN"), json.dumps([_described()]).replace("1.0", "1e999"),
    ],
)  # fmt: skip
def test_unsound_descriptions_are_refused(tmp_path: Path, rates: str) -> None:
    model = make_model()
    tensors = {f"0.{name}": value for name, value in fitted(model)[0].state_dict().items()}
    save_file(tensors, tmp_path / CONFIDENCE, metadata={"clca-confidence-1": rates})
    with pytest.raises(ClcaError, match="is not the confidence of this model"):
        load_confidences(model, tmp_path / CONFIDENCE)


@pytest.mark.parametrize(
    "change", ["nan", "infinite", "cold", "narrow", "missing", "more", "half", "classes", "cut", "text"]
)
def test_unsound_tensors_are_refused(tmp_path: Path, change: str) -> None:
    model = make_model()
    file = tmp_path / CONFIDENCE
    Confidences([fitted(model)[0]]).save(file)
    assert load_confidences(model, file) is not None
    tensors = load_file(file)
    if change == "nan":
        tensors["0.mean"][0, 0] = torch.nan
    elif change == "infinite":
        tensors["0.whitening"][0, 0, 0] = torch.inf
    elif change == "cold":
        tensors["0.temperature"].zero_()
    elif change == "narrow":
        tensors["0.mean"] = tensors["0.mean"][:, :-1].contiguous()
    elif change == "missing":
        del tensors["0.centers"]
    elif change == "more":
        tensors["0.extra"] = torch.zeros(1)
    elif change == "half":
        tensors = {name: value.to(torch.int32) for name, value in tensors.items()}
    elif change == "classes":
        tensors["0.centers"] = tensors["0.centers"][:1].repeat(CLASSES + 1, 1, 1)
    save_file(tensors, file, metadata={"clca-confidence-1": json.dumps([_described()])})
    if change == "cut":
        file.write_bytes(file.read_bytes()[:-100])
    elif change == "text":
        file.write_text("hello")
    with pytest.raises(ClcaError, match="is not the confidence of this model"):
        load_confidences(model, file)


def test_without_a_file_there_is_none(tmp_path: Path) -> None:
    assert load_confidences(make_model(), tmp_path / CONFIDENCE) is None
