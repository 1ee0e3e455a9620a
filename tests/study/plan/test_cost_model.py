"""The planned cost of settings equals what `clca.cost` measures for the model built from them."""

import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import clca
from clca.models.config import ModelConfig, validated
from clca.models.cost import flop_counter
from clca.models.factory import build
from clca.reductions import TokenCounts, reduction_class, reduction_rule, registry
from clca.reductions.evit import EViT
from clca.reductions.topk import TopK
from clca.study.plan import measured_cost
from clca.study.plan.backbone_cost import PLAIN_VITS, plain_vit_cost
from clca.study.plan.config import read_study, shipped
from clca.study.plan.cost_model import StudyCosts, forward_gmacs, training_gmacs
from clca.study.plan.expand import plan

pytestmark = pytest.mark.slow

SMALL: dict[str, Any] = {"patch_size": 4, "embed_dim": 24, "num_heads": 3, "depth": 4}
BACKBONES: dict[str, tuple[str, dict[str, Any]]] = {
    "deit": ("deit_tiny_patch16_224", {}),
    "deit3": ("deit3_small_patch16_224", {}),
    "clip": ("vit_base_patch16_clip_224", {}),
    "registers": ("vit_small_patch14_reg4_dinov2", {}),
    "distilled": ("deit_tiny_distilled_patch16_224", {}),
    "dinov2": ("vit_small_patch14_dinov2", {"patch_size": 14}),
    "swiglu": ("vit_giant_patch14_dinov2", {"patch_size": 14}),
    "average": ("vit_tiny_patch16_224", {"global_pool": "avg", "qk_norm": True}),
    "attention pool": ("vit_tiny_patch16_224", {"global_pool": "map"}),
    "every token": ("vit_tiny_patch16_224", {"global_pool": ""}),
    "any size": ("vit_tiny_patch16_224", {"dynamic_img_size": True, "in_chans": 1}),
    "parallel": ("vit_small_patch16_18x2_224", {}),
}
# The cost of ATS varies by image; only an upper bound is known.
REDUCTIONS = [name for name in clca.list_reductions() if name != "ats"]
ARMS = [(False, False), (True, False), (False, True), (True, True)]
# METHOD section 6: ViT-B/16, 80 classes, GMACs an image.
TABLE = {
    (448, False): (78.49, 50.16, 38.20, 28.55, 24.79),
    (448, True): (79.48, 50.85, 38.76, 28.98, 25.17),
    (224, False): (17.56, 11.61, 8.82, 6.53, 5.63),
    (224, True): (18.36, 12.17, 9.32, 6.96, 5.96),
}


def config_of(style: str = "deit", grid: int | tuple[int, int] = 5, **fields: Any) -> ModelConfig:
    backbone, extra = BACKBONES[style]
    kwargs = {**SMALL, **extra}
    rows, columns = (grid, grid) if isinstance(grid, int) else grid
    size = (rows * kwargs["patch_size"], columns * kwargs["patch_size"])
    return validated(backbone=backbone, img_size=size, backbone_kwargs=kwargs, **fields)


def measured(config: ModelConfig) -> float:
    with torch.device("meta"):
        model = build(config).requires_grad_(False)
    return clca.cost(model).gmacs


@pytest.mark.parametrize("style", BACKBONES)
def test_planned_equals_measured_on_every_backbone(style: str) -> None:
    reduction = "sit" if style == "parallel" else "evit"  # parallel blocks cannot be split
    for fields in ({"cla": False, "clc": False}, {"cla": False, "reduction": reduction, "keep_rate": 0.6}):
        config = config_of(style, num_classes=7, **fields)
        assert forward_gmacs(config, 7) == measured(config)


@pytest.mark.filterwarnings("ignore:reduction 'none'")
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_planned_equals_measured_with_every_reduction(reduction: str) -> None:
    for rate, (cla, clc) in zip((0.8, 0.3, (0.9, 0.2), 0.01), ARMS, strict=True):
        config = config_of("registers", reduction=reduction, keep_rate=rate, locations=(0, 2), cla=cla, clc=clc)
        assert forward_gmacs(config, 1000) == measured(config)


@st.composite
def configs(draw: st.DrawFn, reductions: list[str] = REDUCTIONS) -> ModelConfig:
    locations = draw(st.sampled_from([None, (0, 2), (1, 2), (2,)]))
    rate = st.sampled_from([1.0, 0.7, 0.5, 0.25, 0.1, 0.01])
    count = 3 if locations is None else len(locations)
    num_clr, gap = draw(st.sampled_from([(0, True), (1, True), (1, False), (4, True), (4, False)]))
    cla = draw(st.booleans())
    if locations is None and cla:
        count = 2  # of 1, 2 and 3 the last is left to the aggregation head
    return config_of(
        draw(st.sampled_from(["deit", "deit3", "registers"])),
        grid=draw(st.sampled_from([2, 3, 7, (2, 5), 12])),
        reduction=draw(st.sampled_from(reductions)),
        keep_rate=draw(rate | st.tuples(*[rate] * count)),
        locations=locations,
        num_classes=draw(st.sampled_from([0, 1, 80])),
        cla=cla,
        clc=draw(st.booleans()),
        num_clr=num_clr,
        clc_gap=gap,
        clc_recover_at_last=draw(st.booleans()),
        cla_width=draw(st.sampled_from([1, 2, 3])),
        cla_head=draw(st.sampled_from(["convolution", "linear"])),
        cla_average=draw(st.booleans()),
    )


@pytest.mark.filterwarnings("ignore:reduction 'none'")
@settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(config=configs())
def test_planned_equals_measured_for_any_settings(config: ModelConfig) -> None:
    assert forward_gmacs(config, config.num_classes) == measured(config)


@pytest.mark.parametrize("patches", [31, 33])
def test_distances_that_are_not_kept_are_counted_twice(patches: int) -> None:
    config = config_of(grid=patches, reduction="dpcknn", keep_rate=0.5)  # 961 and 1089 patches, 1024 are the limit
    assert forward_gmacs(config, 1000) == measured(config)


@pytest.mark.parametrize(("rate", "arm"), list(zip([1.0, 0.5, (0.9, 0.2), 0.01], ARMS, strict=True)))
def test_ats_costs_at_most_what_is_planned(rate: Any, arm: tuple[bool, bool], monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of(reduction="ats", keep_rate=rate, locations=(1, 2), cla=arm[0], clc=arm[1], num_classes=7)
    model, most = build(config), forward_gmacs(config, 7)
    assert clca.cost(model).gmacs <= most
    # Where shapes must be static every image is padded to the most it could keep.
    monkeypatch.setattr("clca.reductions.ats.torch.compiler.is_compiling", lambda: True)
    assert clca.cost(model).gmacs == most


@pytest.mark.parametrize("name", sorted(PLAIN_VITS))
def test_a_plain_vit_is_what_timm_builds(name: str) -> None:
    smaller = {"patch_size": 8, "depth": 3, "embed_dim": 96, "weight_init": "jax"}
    for fields in ({}, {"img_size": (96, 64), "backbone_kwargs": smaller}):
        config = validated(backbone=name, **fields)
        known = plain_vit_cost(config)
        assert known is not None
        assert known == measured_cost.backbone_cost(config)


@pytest.mark.parametrize(
    "fields",
    [
        {"backbone": "vit_base_patch16_384"},
        {"backbone": "vit_tiny_patch16_224.nobody"},
        {"img_size": 225},
        {"backbone_kwargs": {"qk_norm": True}},
        {"backbone_kwargs": {"patch_size": (8, 16)}},
        {"backbone_kwargs": {"embed_dim": 50}},
        {"backbone_kwargs": {"depth": 0}},
    ],
    ids=str,
)
def test_nothing_is_assumed_about_other_backbones(fields: dict[str, Any]) -> None:
    assert plain_vit_cost(validated(**{"backbone": "vit_tiny_patch16_224", **fields})) is None


@pytest.mark.parametrize("reduction", [name for name in clca.list_reductions() if name != "none"])
def test_tokens_after_are_the_tokens_of_a_forward_pass(reduction: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Where shapes must be static ATS pads every image to the most that it can keep.
    monkeypatch.setattr("clca.reductions.ats.torch.compiler.is_compiling", lambda: True)
    rule = reduction_rule(reduction)
    assert rule is not None
    assert rule.has_cost()
    assert issubclass(reduction_class(reduction), rule)  # type: ignore[arg-type]  # the forward pass counts by it
    for rate, (cla, clc) in zip((1.0, 0.4, (0.9, 0.2), 0.01), ARMS, strict=True):
        config = config_of("registers", reduction=reduction, keep_rate=rate, locations=(0, 2), cla=cla, clc=clc)
        seen: list[tuple[int, int, int]] = []
        model = watched(build(config).eval(), seen)
        with torch.no_grad():
            model(torch.randn(2, 3, 20, 20))
        assert seen or rate == 1.0
        assert all(before >= planned == after for before, planned, after in seen)


def watched(model: clca.TokenReducedViT, seen: list[tuple[int, int, int]]) -> clca.TokenReducedViT:
    """The model, whose reductions note the tokens before, the tokens planned and the tokens after."""
    for reduction in model.reductions:

        def reduce(x: Tensor, evidence: Any, state: Any, own: Any = reduction, run: Any = reduction.reduce) -> Tensor:
            planned = own.tokens_after(x.shape[1], state)
            result = run(x, evidence, state)
            seen.append((x.shape[1], planned, result.shape[1]))
            return result

        reduction.reduce = reduce  # type: ignore[assignment]
    model.economical = False
    return model


@pytest.mark.parametrize(("size", "clca_on"), TABLE)
def test_the_papers_table(size: int, clca_on: bool) -> None:
    for rate, expected in zip((1.0, 0.7, 0.5, 0.25, 0.1), TABLE[size, clca_on], strict=True):
        config = validated(
            backbone="vit_base_patch16_224", img_size=size, reduction="evit", keep_rate=rate, cla=clca_on, clc=clca_on
        )
        assert forward_gmacs(config, 80) == pytest.approx(expected, rel=1e-3, abs=0.0051)


@pytest.mark.parametrize("backbone", clca.list_backbones())
def test_the_papers_backbones_by_their_full_names(backbone: str) -> None:
    fields = {"img_size": 64, "reduction": "tome", "keep_rate": 0.5, "num_classes": 80}
    config = validated(backbone=backbone, backbone_kwargs={"depth": 4}, **fields)
    assert forward_gmacs(config, 80) == measured(config)


def test_patch_size_alone_changes_the_cost() -> None:
    fine, coarse = (
        validated(backbone="vit_tiny_patch16_224", img_size=32, backbone_kwargs={**SMALL, "patch_size": patch})
        for patch in (4, 8)
    )
    assert forward_gmacs(fine, 5) > 2 * forward_gmacs(coarse, 5) > 0


def test_the_classes_of_the_argument_count_not_those_of_the_settings() -> None:
    config = config_of(cla=False, num_classes=10)
    assert forward_gmacs(config, 110) - forward_gmacs(config, 10) == pytest.approx(100 * 24 / 1e9, rel=1e-6)
    assert forward_gmacs(config, 10) == forward_gmacs(config.model_copy(update={"num_classes": 3}), 10)


# -- training --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clc", [False, True])
@pytest.mark.parametrize(("reduction", "extra"), [("dynamicvit", {}), ("tome", {}), ("topk", {"patch_drop_rate": 0.3})])
def test_a_training_step_is_three_forward_passes_as_training_runs_them(
    reduction: str, extra: dict[str, Any], clc: bool
) -> None:
    config = config_of(reduction=reduction, keep_rate=0.4, num_classes=7, clc=clc)
    config = config.model_copy(update={"backbone_kwargs": config.backbone_kwargs | extra})
    model = build(config).train()
    model.economical = False
    counter = flop_counter()
    with torch.no_grad(), counter:
        model(torch.randn(2, 3, 20, 20))
    assert training_gmacs(config, 7) == pytest.approx(3 * counter.get_total_flops() / 2 / 2 / 1e9, rel=1e-12)


def test_dynamicvit_trains_on_every_token() -> None:
    sparse, dense = (config_of(reduction="dynamicvit", keep_rate=rate, clc=False) for rate in (0.1, 1.0))
    assert training_gmacs(sparse, 5) == training_gmacs(dense, 5) == 3 * forward_gmacs(dense, 5)
    assert forward_gmacs(sparse, 5) < forward_gmacs(dense, 5)


@pytest.mark.parametrize("reduction", ["evit", "dynamicvit"])
def test_a_step_for_several_keep_rates_costs_the_passes_that_it_makes(reduction: str) -> None:
    rates = (0.1, 0.3, 1.0)
    config = config_of(reduction=reduction, keep_rates=rates, keep_rate=0.1)
    each = {rate: training_gmacs(config_of(reduction=reduction, keep_rate=rate), 5) for rate in rates}
    if reduction == "evit":
        assert training_gmacs(config, 5) == pytest.approx(sum(each.values()))
    else:  # all cost the same: two of the three
        assert training_gmacs(config, 5) == pytest.approx(2 * each[1.0])
    assert training_gmacs(config, 5) <= 2 * each[1.0] * (1 + 1e-9)
    assert StudyCosts().of(config, 5) == (training_gmacs(config, 5), forward_gmacs(config, 5))
    assert forward_gmacs(config, 5) == forward_gmacs(config_of(reduction=reduction, keep_rate=0.1), 5)


def test_rates_of_a_reduction_with_parameters_for_one_are_refused_in_the_plan() -> None:
    with pytest.raises(clca.ClcaError, match="keep_rates: the parameters of sit depend on the keep rate"):
        StudyCosts().of(config_of(reduction="sit", keep_rates=(0.1, 1.0)), 5)


# -- without cost methods -------------------------------------------------------------------------------------


@pytest.fixture
def every_other() -> Iterator[str]:
    name = "every-other"

    @clca.register_reduction(name)
    class EveryOther(clca.Reduction):
        place = "before"

        def reduce(self, x: Tensor, evidence: Any, state: Any) -> Tensor:
            state.owner = None if state.owner is None else state.owner.clamp(max=0)
            return torch.cat([x[:, : state.prefix], x[:, state.prefix :: 2]], dim=1)

    yield name
    del registry._REDUCTIONS[name]


def test_a_reduction_without_cost_methods_is_measured_once(every_other: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of(reduction=every_other)
    truth = [measured(config_of(reduction=every_other, num_classes=k)) for k in (6, 9)]
    built: list[Any] = []
    original: Callable[..., float] = measured_cost.measured_gmacs
    monkeypatch.setattr(measured_cost, "measured_gmacs", lambda *args: built.append(args) or original(*args))
    assert [forward_gmacs(config, k) for k in (6, 9, 6)] == [*truth, truth[0]]
    assert truth[0] < forward_gmacs(config_of(), 6)
    assert [num_classes for _, num_classes in built] == [1, 1000]  # cost is linear in the number of classes


def test_no_random_numbers_are_drawn(every_other: str) -> None:
    before = torch.get_rng_state()
    forward_gmacs(config_of("clip", grid=3, reduction="dynamicvit"), 3)
    forward_gmacs(config_of("clip", grid=3, reduction=every_other), 3)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.fixture
def every_third() -> Iterator[type[clca.Reduction]]:
    """A reduction of another package, with parameters and cost methods."""
    name = "every-third"

    @clca.register_reduction(name)
    class EveryThird(clca.Reduction):
        place = "before"

        def __init__(self, dim: int, *args: Any) -> None:
            super().__init__(dim, *args)
            self.mix = nn.Linear(dim, dim)

        def tokens_after(self, num_tokens: int, state: TokenCounts) -> int:
            return state.prefix + -(-(num_tokens - state.prefix) // 3)

        def macs(self, num_tokens: int, state: TokenCounts, head_dim: int) -> int:
            return num_tokens * self.dim**2

        def reduce(self, x: Tensor, evidence: Any, state: Any) -> Tensor:
            state.owner = None if state.owner is None else state.owner.clamp(max=0)
            x = self.mix(x)
            return torch.cat([x[:, : state.prefix], x[:, state.prefix :: 3]], dim=1)

    yield EveryThird
    del registry._REDUCTIONS[name]


def test_cost_methods_of_another_package_spare_the_measurement(
    every_third: type[clca.Reduction], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(reduction="every-third", num_classes=6)
    truth, before = measured(config), torch.get_rng_state()
    monkeypatch.setattr(measured_cost, "measured_gmacs", lambda *_: pytest.fail("it has cost methods"))
    assert forward_gmacs(config, 6) == truth
    assert torch.equal(torch.get_rng_state(), before)


def test_a_subclass_that_reduces_otherwise_does_not_inherit_the_cost(every_third: type[clca.Reduction]) -> None:
    class Same(every_third):  # type: ignore[misc, valid-type]
        pass

    class Other(every_third):  # type: ignore[misc, valid-type]
        def reduce(self, x: Tensor, evidence: Any, state: Any) -> Tensor:
            return x

    class OtherTopK(TopK):
        def select(self, num_tokens: int, evidence: Any, state: Any) -> Any:
            return super().select(num_tokens, evidence, state)

    class WithoutMacs(every_third):  # type: ignore[misc, valid-type]
        def reduce(self, x: Tensor, evidence: Any, state: Any) -> Tensor:
            return x

        def tokens_after(self, num_tokens: int, state: TokenCounts) -> int:
            return num_tokens

    assert all(cls.has_cost() for cls in (every_third, Same, TopK, EViT))
    assert not any(cls.has_cost() for cls in (Other, OtherTopK, WithoutMacs, clca.Reduction))


@pytest.mark.parametrize(
    "fields",
    [
        {"backbone": "vit_tiny_patch17_224"},
        {"backbone": "vit_tiny_patch16_224.nobody"},
        {"backbone": "resnet18"},
        {"backbone": "vit_tiny_patch16_224", "reduction": "evti"},
        {"backbone": "vit_tiny_patch16_224", "backbone_kwargs": {"no_such_setting": 1}},
        {"backbone": "vit_tiny_patch16_224", "img_size": 100},
        {"backbone": "vit_tiny_patch16_224", "locations": (3, 12)},
        {"backbone": "vit_tiny_patch16_224", "locations": (3, 11)},
        {"backbone": "vit_tiny_patch16_224", "reduction": "topk", "locations": ()},
        {"backbone": "vit_tiny_patch16_224", "reduction": "topk", "keep_rate": (0.5, 0.5)},
        {"backbone": "vit_tiny_patch16_224", "num_clr": 0, "clc_gap": False},
        {"backbone": "vit_tiny_patch16_224", "locations": (), "clc_recover_at_last": False},
        {"backbone": "vit_small_patch16_18x2_224", "reduction": "topk"},
    ],
    ids=lambda fields: " ".join(f"{k}={v}" for k, v in fields.items()),
)
def test_what_cannot_be_built_is_refused_as_by_create_model(fields: dict[str, Any]) -> None:
    config = validated(**fields)
    with pytest.raises(clca.ClcaError) as wrong, torch.device("meta"):
        build(config)
    with pytest.raises(clca.ClcaError) as planned:
        forward_gmacs(config, 1000)
    assert str(planned.value) == str(wrong.value)


def test_a_negative_number_of_classes_is_refused() -> None:
    with pytest.raises(clca.ClcaError, match="num_classes = -1"):
        forward_gmacs(config_of(), -1)


# -- the costs of a study --------------------------------------------------------------------------------------


def test_a_study_costs_what_its_models_cost() -> None:
    planned = plan(read_study("paper"), "data")
    for run in random.Random(0).sample(planned.runs, 20):
        config = planned.config(run).model
        found = StudyCosts().of(config, 80)
        assert found == (training_gmacs(config, 80), forward_gmacs(config, 80))


def test_a_cost_that_needs_torch_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLCA_CACHE", str(tmp_path))
    config = config_of("registers", reduction="evit", keep_rate=0.37)
    costs = StudyCosts()
    first = costs.of(config, 7)
    assert first == (training_gmacs(config, 7), forward_gmacs(config, 7))
    costs.save()
    monkeypatch.setattr("clca.study.plan.cost_model._model_macs", lambda *_, **__: pytest.fail("it was kept"))
    assert StudyCosts().of(config, 7) == first
    (tmp_path / "costs.json").write_text("damaged")
    assert not StudyCosts().kept


def test_a_model_that_does_not_exist_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLCA_CACHE", str(tmp_path))
    with pytest.raises(clca.ClcaError, match="unknown model"):
        StudyCosts().of(ModelConfig(backbone="vit_tyni_patch16_224"), 7)


@pytest.mark.parametrize("name", sorted(shipped()))
def test_planning_a_shipped_study_with_its_cost_needs_no_torch(name: str, tmp_path: Path) -> None:
    program = (
        "import sys, clca.cli.main\n"
        f"words = ['study', 'plan', {name!r}, '--data-folder', 'nowhere', '--gmacs-per-second', '1000']\n"
        "code = clca.cli.main.main(words)\n"
        "print(code, [name for name in ('torch', 'timm', 'pandas', 'ray') if name in sys.modules], file=sys.stderr)\n"
    )
    environment = {**os.environ, "CLCA_CACHE": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stderr.splitlines()[-1] == "0 []"
    assert "MACs in all" in done.stdout
    assert "device time left" in done.stdout
    assert name != "paper" or "12,960 runs" in done.stdout
