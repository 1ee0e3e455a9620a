"""A reduction of one's own: one class, one line to register it, and everything else works."""

import importlib.metadata
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import clca
from clca.reductions import Evidence, TokenState, reduction_class, registry

TINY: dict[str, Any] = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "num_heads": 3, "depth": 4}


@pytest.fixture(autouse=True)
def _own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_REDUCTIONS", dict(registry._REDUCTIONS))


class FirstHalf(clca.Reduction):
    """Keep the first half of the candidates, scaled by a learned weight."""

    place = "before"

    def __init__(self, dim: int, *args: Any) -> None:
        super().__init__(dim, *args)
        self.scale = nn.Parameter(torch.ones(dim))

    def reduce(self, x: Tensor, evidence: Evidence, state: TokenState) -> Tensor:
        prefix, num_tokens = state.prefix, x.shape[1]
        end = prefix + max(1, (num_tokens - prefix) // 2)
        index = torch.arange(num_tokens, device=x.device).expand(x.shape[0], -1)
        state.move(torch.where(index < end, index, -1))
        return torch.cat([x[:, :prefix], x[:, prefix:end] * self.scale], dim=1)


def test_a_new_reduction_works_everywhere(tmp_path: Any) -> None:
    assert clca.register_reduction("first_half")(FirstHalf) is FirstHalf
    assert "first_half" in clca.list_reductions()
    model = clca.create_model("deit_tiny_patch16_224", **TINY, num_classes=5, reduction="first_half", locations=[1, 2])
    images = torch.randn(2, 3, 16, 16)
    model(images).sum().backward()
    assert all(r.scale.grad.abs().sum() > 0 for r in model.reductions)
    logits, trace = model.eval().forward_trace(images)
    # CLS, 16 patches, a carrier. Block 1 halves 17 candidates, then recovers the 2 tokens that block 0 stored; block 2
    # halves 10, then recovers the 2 of block 1.
    assert trace.tokens == [18, 9, 6, 8]
    assert trace.owner[0].tolist() == [list(range(1, 17))] * 2
    assert trace.owner[1].tolist() == [[*range(1, 9), *[-1] * 8]] * 2
    assert clca.cost(model).tokens_per_block[1] == 9
    model.save_pretrained(tmp_path)
    assert torch.equal(clca.from_pretrained(tmp_path)(images), logits)


def test_names_are_taken_once() -> None:
    clca.register_reduction("mine")(FirstHalf)
    clca.register_reduction("mine")(FirstHalf)  # the same again, as a module that is reloaded does
    other = type("Other", (clca.Reduction,), {})
    for name in ("mine", "evit", "none"):
        with pytest.raises(clca.ClcaError, match=f"reduction '{name}' is registered already: choose another name"):
            clca.register_reduction(name)(other)
    assert reduction_class("evit") is not other


@pytest.mark.parametrize("wrong", [nn.Linear, lambda x: x, FirstHalf.reduce, 3])
def test_only_reductions_are_registered(wrong: Any) -> None:
    with pytest.raises(clca.ClcaError, match=r"reduction 'wrong': .* is not a subclass of clca.Reduction"):
        clca.register_reduction("wrong")(wrong)
    assert "wrong" not in clca.list_reductions()


def test_the_nine_of_the_method() -> None:
    expected = ["none", "ats", "dpcknn", "dynamicvit", "evit", "patchmerger", "sit", "tome", "topk"]
    assert clca.list_reductions() == expected
    assert reduction_class("none") is None
    for name in expected[1:]:
        assert issubclass(reduction_class(name), clca.Reduction)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "hint"), [("evti", "'evit'"), ("TopK", "topk"), ("", "none"), ("dynamic_vit", "'dynamicvit'")]
)
def test_an_unknown_name_lists_the_known(name: str, hint: str) -> None:
    with pytest.raises(clca.ClcaError, match=rf"unknown reduction '{name}'.*{hint}") as refused:
        clca.create_model("deit_tiny_patch16_224", **TINY, reduction=name)
    assert "\n" not in str(refused.value)
    assert all(known in str(refused.value) for known in clca.list_reductions())


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A package that offers reductions by entry point; the names that were loaded."""
    loaded: list[str] = []

    class Point:
        def __init__(self, name: str, value: Any) -> None:
            self.name, self.value = name, value

        def load(self) -> Any:
            loaded.append(self.name)
            return self.value

    points = [Point("plugged", FirstHalf), Point("broken", nn.Linear)]

    def entry_points(*, group: str, name: str | None = None) -> list[Point]:
        found = points if group == "clca.reductions" else []
        return [point for point in found if name in (None, point.name)]

    monkeypatch.setattr(importlib.metadata, "entry_points", entry_points)
    monkeypatch.setattr(registry, "entry_points", entry_points)
    return loaded


def test_entry_points(plugin: list[str]) -> None:
    assert "plugged" in clca.list_reductions()
    assert plugin == []  # listing does not import
    model = clca.create_model("deit_tiny_patch16_224", **TINY, reduction="plugged")
    assert isinstance(model.reductions[0], FirstHalf)
    assert plugin == ["plugged"]
    with pytest.raises(clca.ClcaError, match=r"'broken': .*Linear.* is not a subclass of clca.Reduction"):
        clca.create_model("deit_tiny_patch16_224", **TINY, reduction="broken")


def test_a_reduction_without_reduce_is_named() -> None:
    clca.register_reduction("empty")(type("Empty", (clca.Reduction,), {}))
    model = clca.create_model("deit_tiny_patch16_224", **TINY, reduction="empty")
    with pytest.raises(TypeError, match="Empty does not define reduce"):
        model(torch.randn(2, 3, 16, 16))
