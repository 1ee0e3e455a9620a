"""The worked example of the manual: its file is the formula, keeps every promise, and is used as the page says."""

from __future__ import annotations

import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

import clca
from clca.cli import main as cli
from clca.data.synthetic.leaves import write_leaves
from clca.demo.recipe import METHODS, DemoSettings, method_config
from clca.reductions import Evidence, KeepSchedule, TokenCounts, TokenState, registry
from clca.reductions import plugins as imported
from clca.study.plan.config import StudyConfig
from clca.testing import check_reduction
from clca.training.settings import flat_settings

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "docs" / "examples"
PAGE = ROOT / "docs" / "how-to" / "add-a-reduction.md"
BACKBONES: dict[str, tuple[str, dict[str, Any]]] = {
    "deit": ("deit_tiny_patch16_224", {}),
    "distilled": ("deit_tiny_distilled_patch16_224", {}),
    "registers": ("vit_small_patch14_reg4_dinov2", {}),
    "average": ("vit_tiny_patch16_224", {"qk_norm": True, "global_pool": "avg", "init_values": 0.1}),
}
SIZES: dict[str, Any] = {"patch_size": 4, "embed_dim": 24, "num_heads": 3, "depth": 5, "locations": (1, 2)}
MODULES: dict[str, dict[str, Any]] = {
    "clca": {},
    "clc, two carriers": {"cla": False, "num_clr": 2},
    "bare": {"cla": False, "clc": False},
}


@pytest.fixture(autouse=True)
def _nothing_stays(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Other tests find the registry, the modules and the environment as they were."""
    monkeypatch.setattr(registry, "_REDUCTIONS", dict(registry._REDUCTIONS))
    monkeypatch.setattr(imported, "_loaded", set())
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("CLCA_IMPORT", "")
    monkeypatch.delitem(sys.modules, "tps", raising=False)
    yield
    for name in ("tps", "test_tps"):
        sys.modules.pop(name, None)


@pytest.fixture
def tps(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The example's module, imported as CLCA_IMPORT has it imported."""
    monkeypatch.setenv("CLCA_IMPORT", str(EXAMPLES / "tps.py"))
    assert "tps" in clca.list_reductions()
    return sys.modules["tps"]


def model_of(style: str = "deit", *, img_size: Any = 16, **more: Any) -> clca.TokenReducedViT:
    """A model with random weights that make attention uneven, in double precision and evaluation mode."""
    name, extra = BACKBONES[style]
    arguments = {"reduction": "tps", "keep_rate": 0.4, "num_classes": 5, **SIZES, **extra, **more}
    model = clca.create_model(name, img_size=img_size, **arguments)
    with torch.no_grad():
        for parameter in model.blocks.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=2 / math.sqrt(parameter.shape[1]))
    return model.double().eval()


def in_loops(x: Tensor, attention: Tensor, prefix: int, rate: float) -> tuple[list[Tensor], list[int]]:
    """TPS of one image's tokens [N, C] by their CLS attention [H, N]: the tokens, and where each of the N went."""
    scores = [sum(float(head[i]) for head in attention) / len(attention) for i in range(len(x))]
    candidates = sorted(range(prefix, len(x)), key=lambda i: (-scores[i], i))
    count = math.ceil(rate * len(candidates))
    kept, pruned = candidates[:count], candidates[count:]
    went = {i: i for i in range(prefix)} | {i: prefix + place for place, i in enumerate(kept)}
    guests: dict[int, list[tuple[float, Tensor]]] = {i: [(math.e, x[i])] for i in kept}
    for i in pruned:
        similarity = {j: float(x[i] @ x[j] / (x[i].norm() * x[j].norm())) for j in kept}
        host = max(kept, key=lambda j: similarity[j])
        guests[host].append((math.exp(similarity[host]), x[i]))
        went[i] = went[host]
    tokens = [x[i] for i in range(prefix)]
    for i in kept:
        total = sum(weight for weight, _ in guests[i])
        tokens.append(sum((weight / total * token for weight, token in guests[i]), torch.zeros_like(x[i])))
    return tokens, [went[i] for i in range(len(x))]


# -- what it computes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("modules", MODULES)
@pytest.mark.parametrize("style", BACKBONES)
def test_it_is_the_formula_wherever_a_model_calls_it(
    tps: ModuleType, monkeypatch: pytest.MonkeyPatch, style: str, modules: str
) -> None:
    model = model_of(style, keep_rate=[0.5, 0.3], **MODULES[modules])
    calls = []
    reduce = tps.TPS.reduce

    def held_against_loops(self: Any, x: Tensor, evidence: Evidence, state: TokenState) -> Tensor:
        before = state.owner
        assert before is not None
        assert evidence.cls_attention is not None
        reduced = reduce(self, x, evidence, state)
        for b in range(len(x)):
            rate = (0.5, 0.3)[self.index]
            tokens, went = in_loops(x[b], evidence.cls_attention[b], model.num_prefix_tokens, rate)
            torch.testing.assert_close(reduced[b], torch.stack(tokens))
            assert state.owner is not None
            assert state.owner[b].tolist() == [went[i] for i in before[b].tolist()]
        calls.append(x.shape[1])
        return reduced

    monkeypatch.setattr(tps.TPS, "reduce", held_against_loops)
    images = torch.randn(3, 3, 16, 16, dtype=torch.float64)
    with torch.no_grad():
        _, trace = model.forward_trace(images)
    assert len(calls) == 2
    assert all((owner >= model.num_prefix_tokens).all() for owner in trace.owner)  # nothing is ever dropped


def test_gradients_are_those_of_the_formula(tps: ModuleType) -> None:
    x = torch.randn(2, 12, 24, dtype=torch.float64)
    attention = torch.rand(2, 3, 12, dtype=torch.float64)
    goal = torch.randn(2, 6, 24, dtype=torch.float64)
    reduction = tps.TPS(24, 0, 1, 9, KeepSchedule(0.4, 1))
    gradients = []
    for plain in (False, True):
        leaf = x.clone().requires_grad_()
        if plain:
            # The same loops with a differentiable similarity: only the weights carry a gradient beside the tokens.
            out = torch.stack([_differentiable(leaf[b], attention[b], 2, 0.4) for b in range(2)])
        else:
            state = TokenState(prefix=2, num_patches=9, schedule=KeepSchedule(0.4, 1))
            out = reduction.reduce(leaf, Evidence(cls_attention=attention), state)
        (out * goal).sum().backward()
        gradients.append(leaf.grad)
    torch.testing.assert_close(gradients[0], gradients[1])


def _differentiable(x: Tensor, attention: Tensor, prefix: int, rate: float) -> Tensor:
    _, went = in_loops(x.detach(), attention, prefix, rate)
    order = sorted(range(prefix, len(x)), key=lambda i: (-float(attention[:, i].mean()), i))
    rows = [x[i] for i in range(prefix)]
    for host in order[: math.ceil(rate * (len(x) - prefix))]:
        members = [i for i in range(prefix, len(x)) if went[i] == went[host]]
        weights = torch.stack([F.cosine_similarity(x[i], x[host], dim=0).exp() for i in members])
        weights = torch.where(torch.tensor([i == host for i in members]), math.e, weights)
        rows.append((weights / weights.sum()) @ x[members])
    return torch.stack(rows)


def test_tokens_that_are_all_alike_stay_what_they_are(tps: ModuleType) -> None:
    """The weights of a host and its guests add up to 1."""
    one = torch.randn(24, dtype=torch.float64)
    squeezed, host = tps.squeeze(one.expand(2, 3, 24), one.expand(2, 7, 24))
    torch.testing.assert_close(squeezed, one.expand(2, 3, 24))
    assert host.shape == (2, 7)


def test_tokens_of_zeros_stay_finite(tps: ModuleType) -> None:
    kept, pruned = torch.zeros(1, 2, 8, requires_grad=True), torch.zeros(1, 3, 8, requires_grad=True)
    tps.squeeze(kept, pruned)[0].sum().backward()
    assert all(torch.isfinite(tokens.grad).all() for tokens in (kept, pruned))


def test_keeping_all_is_the_dense_model(tps: ModuleType) -> None:
    images = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    torch.manual_seed(0)
    kept = model_of(keep_rate=1.0)
    torch.manual_seed(0)
    dense = model_of(reduction="none", keep_rate=1.0)
    with torch.no_grad():
        assert torch.equal(kept(images), dense(images))


def test_permuting_patches_permutes_owners(tps: ModuleType) -> None:
    model = model_of()
    with torch.no_grad():
        model.pos_embed.zero_()
    images = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    order = torch.randperm(16)
    patches = images.reshape(2, 3, 4, 4, 4, 4).permute(0, 2, 4, 1, 3, 5).flatten(1, 2)[:, order]
    moved = patches.unflatten(1, (4, 4)).permute(0, 3, 1, 4, 2, 5).reshape(images.shape)
    with torch.no_grad():
        logits, trace = model.forward_trace(images)
        again, moved_trace = model.forward_trace(moved)
    torch.testing.assert_close(again, logits)
    for owner, moved_owner in zip(trace.owner[1:], moved_trace.owner[1:], strict=True):
        assert torch.equal(moved_owner, owner[:, order])


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    rates=st.lists(st.floats(0.01, 1.0), min_size=2, max_size=2),
    size=st.tuples(st.integers(2, 5), st.integers(2, 5)),
    style=st.sampled_from(sorted(BACKBONES)),
    modules=st.sampled_from(sorted(MODULES)),
)
def test_any_setting(rates: list[float], size: tuple[int, int], style: str, modules: str) -> None:
    os.environ["CLCA_IMPORT"] = str(EXAMPLES / "tps.py")
    img_size = (4 * size[0], 4 * size[1])
    model = model_of(style, img_size=img_size, keep_rate=rates, **MODULES[modules])
    images = torch.randn(3, 3, *img_size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    model.train()(images).square().sum().backward()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in model.parameters())
    with torch.no_grad():
        _, trace = model.eval().forward_trace(images)
    tokens, candidates = trace.tokens, size[0] * size[1] + model.num_clr
    assert tokens[0] == model.num_prefix_tokens + candidates
    assert tokens[1] == model.num_prefix_tokens + max(1, math.ceil(rates[0] * candidates))
    for owner, count in zip(trace.owner, tokens, strict=True):
        assert ((owner >= model.num_prefix_tokens) & (owner < count)).all()


@pytest.mark.parametrize("precise", [torch.float32, torch.float64, torch.bfloat16])
def test_precisions(tps: ModuleType, precise: torch.dtype) -> None:
    model, images = model_of().to(precise), torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        logits = model(images.to(precise))
        assert logits.dtype == precise
        assert torch.isfinite(logits).all()
    kept, pruned = torch.randn(2, 4, 24), torch.randn(2, 9, 24)
    squeezed, host = tps.squeeze(kept, pruned)
    with torch.autocast("cpu", torch.bfloat16):  # decides and weighs in single precision all the same
        assert all(torch.equal(a, b) for a, b in zip(tps.squeeze(kept, pruned), (squeezed, host), strict=True))


def test_it_exports_with_any_batch(tps: ModuleType) -> None:
    model = model_of().float()
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(model, (torch.randn(2, 3, 16, 16),), dynamic_shapes={"x": {0: batch}})
    images = torch.randn(5, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(program.module()(images), model(images))


# -- what the page shows -------------------------------------------------------------------------------------------


def test_the_tests_that_the_page_shows_pass(tps: ModuleType) -> None:
    import test_tps

    tests = [value for name, value in vars(test_tps).items() if name.startswith("test_")]
    assert len(tests) == 2
    for test in tests:
        test()


def test_every_section_that_the_page_includes_is_there_and_nothing_of_the_file_is_left_out() -> None:
    shown: dict[str, list[str]] = {}
    for path, section in re.findall(r'^ *--8<-- "([^":]+):([\w-]+)"$', PAGE.read_text(), re.MULTILINE):
        shown.setdefault(path, []).append(section)
    for path, sections in shown.items():
        text = (ROOT / path).read_text()
        there = re.findall(r"--8<-- \[start:([\w-]+)\]", text)
        assert there == re.findall(r"--8<-- \[end:([\w-]+)\]", text)
        assert sections == there, path
    assert set(shown) == {"docs/examples/tps.py", "docs/examples/test_tps.py"}


def test_the_file_is_short() -> None:
    lines = (EXAMPLES / "tps.py").read_text().splitlines()
    assert 40 <= len([line for line in lines if line.strip() and "--8<--" not in line]) <= 90


def test_the_study_that_the_page_shows_is_the_recipe_of_the_demo(tps: ModuleType) -> None:
    (shown,) = re.findall(
        r'^```{ .yaml title="tps-study.yaml" }\n(.*?)^```', PAGE.read_text(), re.MULTILINE | re.DOTALL
    )
    study = StudyConfig.model_validate(yaml.safe_load(shown))
    assert [value.label for value in study.axes["reduction"]] == ["evit", "tps"]
    method = next(method for method in METHODS if method.folder == "evit-clca")
    sizes = DemoSettings()
    demo = method_config(method, Path("out"), Path("demo/leaves"), 0, sizes)
    leaves = f"leaves:cultivars={sizes.cultivars},images={sizes.images},size={sizes.leaf_size}"
    assert [value.label for value in study.axes["data"]] == [
        f"{leaves},seed={seed},difficulty={sizes.difficulty}" for seed in range(3)
    ]
    wanted = flat_settings(demo.model_dump(mode="json"), "demo")
    shown_settings = {**study.base, "reduction": "evit"}
    assert {name: wanted.get(name) for name in shown_settings} == shown_settings


def train(folder: Path) -> int:
    """`clca --import tps train …` from the folder that tps.py is in: one epoch on two cultivars."""
    sizes = "{patch_size: 8, embed_dim: 24, depth: 4, num_heads: 3}"
    (folder / "tiny.yaml").write_text(f"{{model: vit_tiny_patch16_224, img_size: 32, backbone_kwargs: {sizes}}}")
    words = "--import tps train leaves --config tiny.yaml --no-pretrained --reduction tps --keep-rate 0.25"
    words += " --epochs 1 --batch-size 4 --workers 0 --device cpu --out runs/tps"
    return cli.main(words.split())


def test_train_here_and_predict_in_another_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(EXAMPLES / "tps.py", tmp_path)
    write_leaves(tmp_path / "leaves", 2, 10, 37, 0, 0.0, progress=False)
    monkeypatch.chdir(tmp_path)
    assert train(tmp_path) == 0, capsys.readouterr().err
    run = tmp_path / "runs" / "tps"
    assert clca.from_pretrained(run).config.reduction == "tps"

    # A process started now inherits where the file is, wherever it works.
    assert os.environ["CLCA_IMPORT"] == str(tmp_path / "tps.py")
    (tmp_path / "elsewhere").mkdir()
    words = [sys.executable, "-m", "clca", "predict", str(run), str(tmp_path / "leaves" / "test"), "--device", "cpu"]
    done = subprocess.run(words, cwd=tmp_path / "elsewhere", capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("cultivar-00") >= 4

    # Without the module one line says how to give it.
    monkeypatch.setenv("CLCA_IMPORT", "")
    monkeypatch.setattr(registry, "_REDUCTIONS", {})
    with pytest.raises(clca.ClcaError, match=r"unknown reduction 'tps'.*--import FILE\.py.*CLCA_IMPORT") as refused:
        clca.from_pretrained(run)
    assert "\n" not in str(refused.value)


# -- the checks that the page recommends ---------------------------------------------------------------------------


class Broken(clca.Reduction):
    """Keeps the first half, in one of the ways in which a reduction may go wrong."""

    place = "before"
    wrong = ""

    def reduce(self, x: Tensor, evidence: Evidence, state: TokenState) -> Tensor:
        n, prefix = x.shape[1], state.prefix
        count = max(1, math.ceil(state.schedule.rate(self.index) * (n - prefix)))
        if self.wrong == "rate":
            count = max(1, n - prefix - count)
        end = prefix + count
        index = torch.arange(n, device=x.device).expand(len(x), -1)
        if self.wrong == "owner":
            return x[:, :end]
        state.move(torch.where(index < end, index, -1))
        if self.wrong == "batch":
            x = x - x.mean(dim=0)
        elif self.wrong == "random":
            x = x + torch.randn_like(x)
        elif self.wrong == "empty":
            return x[:, : prefix + count - 1]
        elif self.wrong == "dtype":
            x = x.float()
        elif self.wrong == "root":
            x = (x - x).abs().sqrt() + x
        return x[:, :end]


@pytest.mark.parametrize(
    ("wrong", "promise"),
    [
        ("owner", "a token that does not exist"),
        ("batch", "an image alone gives a different result"),
        ("random", "a different result the second time"),
        ("empty", "a token that does not exist"),
        ("dtype", "dtype"),
        ("root", "gradient of .* is not finite"),
        ("rate", "lower keep rates keep more tokens"),
    ],
)
def test_a_broken_promise_is_named(wrong: str, promise: str) -> None:
    clca.register_reduction(f"broken-{wrong}")(type(f"Broken{wrong}", (Broken,), {"wrong": wrong}))
    with pytest.raises((AssertionError, RuntimeError), match=promise):
        check_reduction(f"broken-{wrong}")


def test_a_wrong_cost_is_named() -> None:
    class BrokenCost(Broken):
        def tokens_after(self, num_tokens: int, state: TokenCounts) -> int:
            return num_tokens

        def macs(self, num_tokens: int, state: TokenCounts, head_dim: int) -> int:
            return 0

    clca.register_reduction("broken-cost")(BrokenCost)
    with pytest.raises(AssertionError, match=r"tokens_after and macs give .* GMACs, but .* are measured"):
        check_reduction("broken-cost")


def test_the_one_that_is_not_broken_passes() -> None:
    clca.register_reduction("first-half")(Broken)
    check_reduction("first-half")


@pytest.mark.parametrize("name", ["none", "no-such"])
def test_what_there_is_no_check_of(name: str) -> None:
    with pytest.raises(clca.ClcaError, match=name):
        check_reduction(name)
