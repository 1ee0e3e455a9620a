"""Keep rates as settings: ranges, lists, and what is refused."""

import json
from typing import Any

import pytest
from pydantic import ValidationError

import clca
from clca.models.config import ModelConfig, validated

NAME = "vit_tiny_patch16_224"
TINY: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "num_heads": 3, "depth": 4}


def config(keep_rates: Any, **settings: Any) -> ModelConfig:
    return validated(backbone=NAME, **{"reduction": "evit", **settings}, keep_rates=keep_rates)


@pytest.mark.parametrize(
    ("given", "rates"),
    [
        ("0.05..1", (0.05, 0.106, 0.224, 0.473, 1.0)),
        (["0.05..1"], (0.05, 0.106, 0.224, 0.473, 1.0)),
        (" 0.1 .. 0.5 ", (0.1, 0.15, 0.224, 0.334, 0.5)),
        ([1, 0.5, "0.25", 0.1, 0.5], (0.1, 0.25, 0.5, 1.0)),
        ((1.0, 0.1), (0.1, 1.0)),
    ],
)
def test_a_range_becomes_five_rates_and_a_list_stays(given: Any, rates: tuple[float, ...]) -> None:
    found = config(given)
    assert found.keep_rates == rates
    assert found.keep_rate == rates[0]
    assert ModelConfig(**json.loads(found.model_dump_json())) == found


def test_the_rate_in_use_can_be_chosen() -> None:
    assert config("0.1..1", keep_rate=0.5).keep_rate == 0.5


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("0.05", "range such as 0.05..1"),
        ("1..0.05", "range such as 0.05..1"),
        ("0..1", "range such as 0.05..1"),
        ("0.1..2", "range such as 0.05..1"),
        ("a..b", "range such as 0.05..1"),
        ("0.1..0.2..0.3", "range such as 0.05..1"),
        ("1_0..1", "range such as 0.05..1"),
        ("0.5..0.5", "range such as 0.05..1"),
        ([0.5], "at least two"),
        (["0.5"], "at least two"),
        ([0.5, 0.5], "at least two"),
        ([], "at least two"),
        ([0, 1], "above 0 and at most 1"),
        ([0.1, "b"], "number"),
        ([0.1, "1_0"], "plain digits"),
        ([0.1, "0.2..1"], "plain digits"),
        ([i / 100 for i in range(1, 101)], "at most 64"),
        (0.5, "tuple"),
        ({"a": 1}, "tuple"),
    ],
)
def test_what_is_no_list_of_rates_is_refused_in_one_line(given: Any, words: str) -> None:
    with pytest.raises(clca.ClcaError, match=words) as refused:
        config(given)
    assert "keep_rates" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_no_reduction_has_no_rates() -> None:
    with pytest.raises(ValidationError, match="reduction none keeps every token"):
        ModelConfig(backbone=NAME, keep_rates=(0.1, 1.0))


@pytest.mark.parametrize("reduction", ["sit", "patchmerger"])
def test_a_reduction_with_parameters_for_one_rate_is_refused_by_name(reduction: str) -> None:
    with pytest.raises(clca.ClcaError, match=f"keep_rates: the parameters of {reduction} depend on the keep rate"):
        clca.create_model(NAME, reduction=reduction, keep_rates=(0.1, 1.0), **TINY)


@pytest.mark.parametrize("reduction", sorted(set(clca.list_reductions()) - {"none", "sit", "patchmerger"}))
def test_every_other_reduction_takes_them(reduction: str) -> None:
    model = clca.create_model(NAME, reduction=reduction, keep_rates="0.1..1", **TINY)
    assert model.keep_rate == 0.1
    assert model.config.keep_rates == (0.1, 0.178, 0.316, 0.562, 1.0)
