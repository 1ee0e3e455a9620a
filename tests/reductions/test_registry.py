"""A new reduction: one class, one line to register it, and everything else works."""

import importlib
import importlib.metadata
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import clca
from clca.cli import main as cli
from clca.reductions import Evidence, TokenState, reduction_class, registry
from clca.reductions import plugins as imported
from clca.testing import check_reduction

pytestmark = pytest.mark.slow

TINY: dict[str, Any] = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "num_heads": 3, "depth": 4}


@pytest.fixture(autouse=True)
def _own_registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Other tests find the registry, the modules and the environment as they were."""
    monkeypatch.setattr(registry, "_REDUCTIONS", dict(registry._REDUCTIONS))
    monkeypatch.setattr(imported, "_loaded", set())
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("CLCA_IMPORT", "")
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.partition(".")[0].startswith(("own_", "pack_")):
            del sys.modules[name]


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
    clca.register_reduction("mine")(FirstHalf)
    # Once more from the same place, as a notebook's cell or a module that is reloaded does: the newest counts.
    again = type("FirstHalf", (clca.Reduction,), {"__module__": __name__})
    assert clca.register_reduction("mine")(again) is reduction_class("mine")
    other = type("Other", (clca.Reduction,), {})
    for name in ("mine", "evit", "none"):
        with pytest.raises(clca.ClcaError, match=f"reduction '{name}' is already registered: choose another name"):
            clca.register_reduction(name)(other)
    assert reduction_class("evit") is not other


@pytest.mark.parametrize("wrong", [nn.Linear, lambda x: x, FirstHalf.reduce, 3])
def test_only_reductions_are_registered(wrong: Any) -> None:
    with pytest.raises(clca.ClcaError, match=r"reduction 'wrong': .* is not a subclass of clca.Reduction"):
        clca.register_reduction("wrong")(wrong)
    assert "wrong" not in clca.list_reductions()


@pytest.mark.parametrize("wrong", [FirstHalf, 3, "", None])
def test_a_name_is_a_name(wrong: Any) -> None:
    """@clca.register_reduction without its brackets would leave a function in the place of the class."""
    with pytest.raises(clca.ClcaError, match=r'needs a name, as in @clca\.register_reduction\("mine"\), not '):
        clca.register_reduction(wrong)
    assert all(isinstance(name, str) and name for name in clca.list_reductions())


@pytest.mark.parametrize(
    ("attributes", "words"),
    [
        ({"place": "Before"}, "place must be 'inside' or 'before', not 'Before'"),
        ({"needs": {"keys"}}, "needs must be a set of cls_attention, mean_keys, value_norms, not {'keys'}"),
        ({"needs": "cls_attention"}, "needs must be a set of .*, not 'cls_attention'"),
    ],
)
def test_what_a_class_says_of_itself_is_possible(attributes: dict[str, Any], words: str) -> None:
    """A place that is misspelt would be taken for inside."""
    with pytest.raises(clca.ClcaError, match=f"reduction 'wrong': {words}"):
        clca.register_reduction("wrong")(type("Wrong", (clca.Reduction,), attributes))
    assert "wrong" not in clca.list_reductions()


def test_the_nine_of_the_method() -> None:
    expected = ["none", "ats", "dpcknn", "dynamicvit", "evit", "patchmerger", "sit", "tome", "topk"]
    assert clca.list_reductions() == expected
    assert reduction_class("none") is None
    for name in expected[1:]:
        assert issubclass(reduction_class(name), clca.Reduction)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", registry.SHIPPED)
def test_each_of_ours_keeps_what_is_asked_of_ones_own(name: str) -> None:
    check_reduction(name)


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
    with pytest.raises(TypeError, match="Empty defines neither reduce"):
        model(torch.randn(2, 3, 16, 16))


# -- modules of the user, without a package ------------------------------------------------------------------------

HALF = """
import clca

@clca.register_reduction("{name}")
class Half(clca.Reduction):
    place = "before"

    def reduce(self, x, evidence, state):
        return x[:, : max(2, x.shape[1] // 2)]
"""


def own(folder: Path, file: str, name: str, before: str = "") -> Path:
    """A file that registers a reduction by that name."""
    path = folder / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(before + HALF.format(name=name))
    return path


def test_a_file_named_in_the_environment_is_imported_when_its_name_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLCA_IMPORT", str(own(tmp_path, "own_half.py", "half")))
    assert issubclass(reduction_class("evit"), clca.Reduction)  # type: ignore[arg-type]
    assert "own_half" not in sys.modules
    model = clca.create_model("deit_tiny_patch16_224", **TINY, reduction="half", cla=False, clc=False)
    assert model.eval()(torch.randn(2, 3, 16, 16)).shape == (2, 1000)
    assert type(model.reductions[0]).__module__ == "own_half"
    assert clca.list_reductions().count("half") == 1


@pytest.mark.parametrize("separator", [",", os.pathsep, " , "])
def test_several_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, separator: str) -> None:
    files = [str(own(tmp_path, f"own_{name}.py", name)) for name in ("one", "two")]
    monkeypatch.setenv("CLCA_IMPORT", separator.join(files))
    assert {"one", "two"} <= set(clca.list_reductions())


def test_a_module_in_a_package_and_one_that_needs_what_lies_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_beside.py").write_text("SHARE = 0.5\n")
    one = own(tmp_path, "own_needy.py", "needy", "from own_beside import SHARE\n")
    two = own(tmp_path, "pack_age/half.py", "packed", "from . import __name__ as package\n")
    (tmp_path / "pack_age" / "__init__.py").touch()
    monkeypatch.setenv("CLCA_IMPORT", f"{one},{two}")
    assert reduction_class("packed").__module__ == "pack_age.half"
    assert reduction_class("needy").__module__ == "own_needy"


def test_a_package_that_registers_in_its_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own(tmp_path, "pack_parts/half.py", "part")
    (tmp_path / "pack_parts" / "__init__.py").write_text("from . import half\n")
    monkeypatch.chdir(tmp_path)
    for named in ("pack_parts", "pack_parts/", "pack_parts.half", "./pack_parts/half.py"):
        monkeypatch.setattr(imported, "_loaded", set())
        monkeypatch.setenv("CLCA_IMPORT", named)
        assert reduction_class("part").__module__ == "pack_parts.half"


def test_an_installed_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own(tmp_path / "site", "own_installed.py", "installed")
    sys.path.append(str(tmp_path / "site"))
    importlib.invalidate_caches()
    assert cli.main(["--import", "own_installed", "--version"]) == 0
    assert os.environ["CLCA_IMPORT"] == "own_installed"
    assert "installed" in clca.list_reductions()


def test_the_flag_stands_anywhere_and_adds_to_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [own(tmp_path, f"own_{name}.py", name) for name in ("a", "b", "c", "d")]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CLCA_IMPORT", "own_a")
    words = ["--import", "own_b", "train", "--import=own_c.py,own_a.py", "--help", "--import", str(files[3])]
    with pytest.raises(SystemExit):
        cli.main(words)
    assert "usage: clca train" in capsys.readouterr().out
    # By absolute path: a process that inherits it may work elsewhere. None is imported for a help text.
    assert os.environ["CLCA_IMPORT"].split(os.pathsep) == [str(file) for file in files]
    assert not [name for name in sys.modules if name.startswith("own_")]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--import", "own_missing.py", "train"], "cannot import own_missing.py .*no such file"),
        (["--import", "folder/own_missing", "train"], "cannot import folder/own_missing .*no such file"),
        (
            ["train", "--import", "own_missing"],
            r"cannot import own_missing .*no own_missing\.py in this folder and no such module",
        ),
        (["train", "--import=..own"], r"cannot import \.\.own"),
        (["train", "--import"], "--import needs a Python file"),
        (["--import", "--help"], "--import needs a Python file"),
        (["--import=", "train"], "--import needs a Python file"),
    ],
)
def test_a_module_that_is_not_there_is_told_at_once(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(words) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.count("\n") == 1
    assert importlib.import_module("re").search(message, told.err), told.err


def test_a_path_that_cannot_be_passed_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    own(tmp_path / "a,b", "own_comma.py", "comma")
    monkeypatch.chdir(tmp_path / "a,b")
    assert cli.main(["--import", "own_comma", "--version"]) == 2
    assert "must not contain a comma" in capsys.readouterr().err


def test_what_the_environment_names_is_not_missed_by_who_does_not_need_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CLCA_IMPORT", "/gone/own_gone.py")
    assert cli.main(["--help"]) == 0
    assert issubclass(reduction_class("evit"), clca.Reduction)  # type: ignore[arg-type]
    for ask in (clca.list_reductions, lambda: reduction_class("gone")):
        with pytest.raises(clca.ClcaError, match=r"cannot import /gone/own_gone\.py .*no such file"):
            ask()


BROKEN = {
    "own_raises": ("x = 1\nraise OSError('no luck\\ntoday')\n", "line 2: OSError: no luck today"),
    "own_exits": ("import sys\n\nsys.exit(3)\n", "line 3: SystemExit: 3"),
    "own_syntax": ("def broken(:\n", r"SyntaxError: .*line 1"),
    "own_needs": ("import no_such_thing\n", "line 1: ModuleNotFoundError: No module named 'no_such_thing'"),
    "own_empty": ("x = 1\n", r"it registers no reduction: put @clca.register_reduction\("),
    "own_taken": (HALF.format(name="evit"), "reduction 'evit' is already registered: choose another name"),
    "json": (HALF.format(name="half"), "another module has the name 'json': rename the file"),
    "my.half": (HALF.format(name="half"), "No module named 'my'"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_module_that_fails_is_one_line_each_time(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text, message = BROKEN[name]
    path = tmp_path / f"{name}.py"
    path.write_text(text)
    monkeypatch.setenv("CLCA_IMPORT", str(path))
    for _ in range(2):
        with pytest.raises(clca.ClcaError, match=rf"cannot import \S+{name}\.py .*{message}") as refused:
            reduction_class("half")
        assert "\n" not in str(refused.value)
    words = ["train", "leaves:cultivars=2,images=10,size=32", "--model", "deit_tiny_patch16_224", "--reduction", "half"]
    assert cli.main([*words, "--no-pretrained", "--out", str(tmp_path / "run")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_module_that_is_mended_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = own(tmp_path, "own_mended.py", "mended", "raise ValueError\n")
    monkeypatch.setenv("CLCA_IMPORT", str(path))
    with pytest.raises(clca.ClcaError, match="ValueError"):
        reduction_class("mended")
    own(tmp_path, "own_mended.py", "mended", "# mended, and of another length than before\n")
    assert reduction_class("mended").__module__ == "own_mended"


def test_a_module_may_ask_for_reductions_while_it_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asks = "import clca\nknown = clca.list_reductions()\nfrom clca.reductions import evit\n"
    monkeypatch.setenv("CLCA_IMPORT", str(own(tmp_path, "own_asks.py", "asks", asks)))
    assert reduction_class("asks").__module__ == "own_asks"
    assert "evit" in sys.modules["own_asks"].known


def test_two_threads_ask_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = own(tmp_path, "own_slow.py", "slow", "import time\ntime.sleep(0.3)\n")
    monkeypatch.setenv("CLCA_IMPORT", str(slow))
    with ThreadPoolExecutor(4) as pool:
        classes = set(pool.map(reduction_class, ["slow"] * 4))
    assert len(classes) == 1


def test_an_unknown_name_says_how_ones_own_is_given() -> None:
    with pytest.raises(clca.ClcaError, match=r"unknown reduction 'tps'.*clca --import FILE\.py.*CLCA_IMPORT=FILE\.py"):
        clca.create_model("deit_tiny_patch16_224", **TINY, reduction="tps")
