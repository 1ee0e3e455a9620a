"""The bound from the settings alone: what it lets pass is small."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import clca
from clca.errors import ClcaError
from clca.models.config import validated
from clca.models.factory import build
from clca.models.memory import may_be_large

SETTINGS = st.fixed_dictionaries(
    {"reduction": st.sampled_from(clca.list_reductions()), "num_classes": st.sampled_from([0, 5, 100_000])},
    optional={
        "img_size": st.sampled_from([32, 512, 2048]),
        "patch_size": st.sampled_from([8, [16, 32]]),
        "embed_dim": st.sampled_from([24, 768, 3072]),
        "depth": st.integers(3, 8),
        "mlp_ratio": st.sampled_from([0.5, 4.0, 30.0]),
        "in_chans": st.sampled_from([1, 64]),
        "reg_tokens": st.sampled_from([0, 500]),
        "cla": st.booleans(),
        "cla_width": st.sampled_from([1, 300]),
        "num_clr": st.sampled_from([1, 300]),
    },
)


@settings(max_examples=40, deadline=None)
@given(chosen=SETTINGS)
def test_what_may_not_be_large_takes_less_than_a_gibibyte(chosen: dict[str, Any]) -> None:
    names = ("img_size", "reduction", "num_classes", "cla", "cla_width", "num_clr")
    own = {name: chosen[name] for name in names if name in chosen}
    more = {name: value for name, value in chosen.items() if name not in names}
    config = validated(backbone="vit_tiny_patch16_224", keep_rate=1.0, backbone_kwargs=more, **own)
    if may_be_large(config):
        return
    with torch.device("meta"):
        model = build(config)
    assert 4 * sum(math.prod(tensor.shape) for tensor in model.state_dict().values()) < 2**30


@pytest.mark.parametrize("more", [{"depth": 64, "embed_dim": 2048}, {"embed_dim": 60_000}, {"img_size": 16_000}])
def test_large_models_may_be_large(more: dict[str, Any]) -> None:
    assert may_be_large(validated(backbone="vit_tiny_patch16_224", backbone_kwargs=more))


@pytest.mark.parametrize("patch_size", [[], [4, "a"], [[4], [4]], "4", 0])
def test_a_patch_that_is_none_is_refused(patch_size: Any) -> None:
    with pytest.raises(ClcaError, match="does not take these settings"):
        clca.create_model("vit_tiny_patch16_224", patch_size=patch_size)
