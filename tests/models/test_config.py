"""Settings: what is refused, in one line that names the field, the value and what is allowed."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

import clca
from clca.models.config import ModelConfig, validated

TINY: dict[str, Any] = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "num_heads": 3, "depth": 4}


def test_a_value_without_an_end_is_told_by_its_beginning() -> None:
    with pytest.raises(clca.ClcaError) as refused:
        validated(backbone="vit_tiny_patch16_224", locations=[-1] * 100_000)
    assert len(str(refused.value)) < 400


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"keep_rate": 0}, ["keep_rate", "0", "above 0 and at most 1"]),
        ({"keep_rate": 1.5}, ["keep_rate", "1.5", "above 0 and at most 1"]),
        ({"keep_rate": -0.1}, ["keep_rate", "-0.1", "above 0 and at most 1"]),
        ({"keep_rate": math.nan}, ["keep_rate", "nan", "above 0 and at most 1"]),
        ({"keep_rate": math.inf}, ["keep_rate", "inf", "above 0 and at most 1"]),
        ({"keep_rate": "a"}, ["keep_rate", "a:", "number"]),
        ({"keep_rate": None}, ["keep_rate", "None", "number"]),
        ({"keep_rate": [0.5, 2.0, 0.1]}, ["keep_rate", "2.0", "above 0 and at most 1"]),
        ({"keep_rate": [0.5, "b", 0.1]}, ["keep_rate", "b:", "number"]),
        ({"keep_rate": {"a": 1}}, ["keep_rate", "{'a': 1}"]),
        ({"locations": [-1, 3]}, ["locations", "-1", "numbered from 0"]),
        ({"locations": [3, 1]}, ["locations", "3", "ascending"]),
        ({"locations": [1, 1]}, ["locations", "ascending"]),
        ({"locations": ["x"]}, ["locations", "x:", "integer"]),
        ({"locations": [1.5]}, ["locations", "1.5", "integer"]),
        ({"locations": 3}, ["locations", "3", "tuple"]),
        ({"num_classes": -1}, ["num_classes", "-1", "greater than or equal to 0"]),
        ({"num_classes": "many"}, ["num_classes", "many:", "integer"]),
        ({"num_classes": 10**12}, ["num_classes", "1000000000000", "less than or equal to 1000000"]),
        ({"num_clr": 10**12}, ["num_clr", "less than or equal to 1024"]),
        ({"cla_width": 10**12}, ["cla_width", "less than or equal to 1024"]),
        ({"img_size": 10**30}, ["img_size", "less than or equal to 16384"]),
        ({"img_size": (224, 10**9)}, ["img_size", "less than or equal to 16384"]),
        ({"num_clr": -1}, ["num_clr", "-1", "greater than or equal to 0"]),
        ({"cla_width": 0}, ["cla_width", "0", "greater than or equal to 1"]),
        ({"img_size": "big"}, ["img_size", "big:", "integer"]),
        ({"img_size": 0}, ["img_size", "0", "greater than"]),
        ({"img_size": (-16, 16)}, ["img_size", "-16", "greater than"]),
        ({"img_size": (16, 16, 16)}, ["img_size", "16"]),
        ({"cla": "perhaps"}, ["cla", "perhaps:", "true or false"]),
        ({"reduction": 3}, ["reduction", "3", "string"]),
    ],
)
def test_a_bad_value_is_refused_in_one_line(fields: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(clca.ClcaError) as refused:
        validated(backbone="deit_tiny_patch16_224", **fields)
    message = str(refused.value)
    assert "\n" not in message
    assert len(message) < 200
    assert all(word in message for word in words), message
    assert "pydantic" not in message


def test_a_bad_image_size_is_told_once() -> None:
    for size in (0, "big", (16, 0)):
        with pytest.raises(clca.ClcaError) as refused:
            validated(backbone="deit_tiny_patch16_224", img_size=size)
        assert str(refused.value).count("img_size") == 1
        assert "constrained" not in str(refused.value)


def test_two_bad_values_are_both_told() -> None:
    with pytest.raises(clca.ClcaError, match=r"keep_rate 2.*; num_clr -1"):
        validated(backbone="x", keep_rate=2.0, num_clr=-1)


def test_unknown_field_is_named() -> None:
    with pytest.raises(clca.ClcaError, match=r"^keep_ratio: no such setting; did you mean keep_rate"):
        validated(backbone="x", keep_ratio=0.5)
    # Through create_model an unknown name goes to timm, which does not know it either.
    with pytest.raises(clca.ClcaError, match="keep_ratio"):
        clca.create_model("deit_tiny_patch16_224", **TINY, keep_ratio=0.5)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"locations": [1, 4]}, "location 4 is outside .* 0 to 3"),
        ({"locations": [3]}, "location 3 is the last block"),
        ({"num_clr": 0, "clc_gap": False}, "num_clr of at least 1, or clc_gap"),
        ({"reduction": "evit", "locations": []}, "'evit' has no locations"),
        ({"reduction": "evit", "keep_rate": [0.5, 0.5, 0.5]}, r"3 rates for the 2 locations \[1, 2\]: give one rate"),
        ({"reduction": "evitt"}, "unknown reduction 'evitt' .did you mean 'evit'.*patchmerger"),
        ({"img_size": 18}, "18 is not a multiple of the patch size 4: use 16 or 20"),
        ({"img_size": (16, 3)}, "3 is not a multiple of the patch size 4: use 4"),
        ({"keep_rate": 1.5}, "^keep_rate 1.5: a keep rate is a share"),
        ({"act_layer": "swish2"}, "does not take these settings: timm has no layer 'swish2'"),
        ({"num_heads": 0}, "does not take these settings: .*zero"),
        ({"checkpoint_path": "vit.pth"}, "weights=FILE instead"),
    ],
)
def test_settings_that_do_not_go_together(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(clca.ClcaError, match=words) as refused:
        clca.create_model("deit_tiny_patch16_224", **{**TINY, **settings})
    assert "\n" not in str(refused.value)


def test_keep_rate_that_does_nothing_warns() -> None:
    with pytest.warns(UserWarning, match="'none' keeps every token"):
        clca.create_model("deit_tiny_patch16_224", **TINY, keep_rate=0.5)


rates = st.floats(0.01, 1.0)


@given(
    keep_rate=st.one_of(rates, st.lists(rates, min_size=1, max_size=4).map(tuple)),
    locations=st.one_of(st.none(), st.sets(st.integers(0, 30), max_size=5).map(lambda s: tuple(sorted(s)))),
    img_size=st.one_of(st.none(), st.integers(1, 999), st.tuples(st.integers(1, 999), st.integers(1, 999))),
    kwargs=st.dictionaries(st.text(max_size=5), st.one_of(st.integers(), st.text(max_size=5), st.booleans())),
)
def test_json_round_trip(keep_rate: Any, locations: Any, img_size: Any, kwargs: dict[str, Any]) -> None:
    config = validated(
        backbone="deit", keep_rate=keep_rate, locations=locations, img_size=img_size, backbone_kwargs=kwargs
    )
    again = ModelConfig.model_validate_json(config.model_dump_json())
    assert again == config
    assert type(again.keep_rate) is type(config.keep_rate)


def test_settings_cannot_be_changed_behind_the_model() -> None:
    config = validated(backbone="x")
    with pytest.raises(ValidationError):
        config.keep_rate = 0.5
    model = clca.create_model("deit_tiny_patch16_224", **TINY, reduction="evit", keep_rate=0.5)
    with pytest.raises(clca.ClcaError, match=r"keep_rate 0\.0"):
        model.keep_rate = 0.0
    assert model.keep_rate == 0.5
    model.keep_rate = 1
    assert model.keep_rate == 1.0
    assert model.config.keep_rate == 1.0


@pytest.mark.parametrize(
    ("depth", "settings", "locations", "recover_at"),
    [
        (12, {}, (3, 6, 9), (3, 6, 9, 10)),
        (12, {"clc_recover_at_last": False}, (3, 6, 9), (3, 6, 9)),
        (12, {"clc": False}, (3, 6, 9), ()),
        (12, {"locations": (2, 10)}, (2, 10), (2, 10)),
        (12, {"locations": ()}, (), (10,)),
        (2, {}, (0,), (0,)),  # block 1, the last, is read by the aggregation head anyway
        (2, {"cla": False}, (0, 1), (0, 1)),
    ],
)
def test_resolved_at_the_depth_of_a_backbone(
    depth: int, settings: dict[str, Any], locations: tuple[int, ...], recover_at: tuple[int, ...]
) -> None:
    resolved = validated(backbone="x", **settings).resolved(depth)
    assert (resolved.locations, resolved.recover_at) == (locations, recover_at)
    assert resolved.num_clr == (1 if settings.get("clc", True) else 0)


@pytest.mark.parametrize(
    ("settings", "backbone", "words"),
    [
        ({"reduction": "evit"}, {"opaque_block": "a ParallelBlock"}, "works inside attention, and a ParallelBlock is"),
        ({"reduction": "ats", "cla": False}, {"global_pool": "prr"}, "cannot leave out the padding of ats"),
        ({"keep_rate": (0.5, 0.5)}, {}, r"2 rates for the 3 locations \[3, 6, 9\]"),
        ({"locations": (), "clc_recover_at_last": False}, {}, "no block to recover at"),
    ],
)
def test_settings_that_do_not_fit_a_backbone(settings: dict[str, Any], backbone: dict[str, Any], words: str) -> None:
    with pytest.raises(clca.ClcaError, match=words):
        validated(backbone="x", **settings).resolved(12, **backbone)
    fitting = {"reduction": "sit"} if "opaque_block" in backbone else {"reduction": "ats", "cla": True}
    assert validated(backbone="x", **fitting).resolved(12, **backbone).locations == (3, 6, 9)
