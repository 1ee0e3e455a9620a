"""The switch of all fast paths: a context manager, an environment variable, and what it turns off."""

import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from timm.layers import Mlp
from timm.models.vision_transformer import Attention, Block
from torch import nn

import clca
from clca.kernels import dispatch, onednn, prepack
from clca.kernels.dispatch import fast_kernels

TINY: dict[str, Any] = {"img_size": 32, "patch_size": 4, "embed_dim": 24, "num_heads": 3, "depth": 4, "num_classes": 5}


@pytest.fixture
def every_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a CPU where every fast path pays, for inputs of any size."""
    for name in ("TRAIN_WITH_ONEDNN", "ONEDNN_TWICE_AS_FAST", "TILED_BFLOAT16", "LINEAR_BFLOAT16"):
        monkeypatch.setattr(dispatch, name, True)
    for name in ("MIN_MULTIPLICATIONS", "MIN_QUERIES_BFLOAT16", "MIN_QUERIES_FLOAT32"):
        monkeypatch.setattr(dispatch, name, 1)


def _predicates() -> dict[str, Callable[[], bool]]:
    block = Block(12, 3).train()
    x = torch.randn(2, 9, 12)

    def without_gradient(predicate: Callable[..., bool], *args: Any) -> Callable[[], bool]:
        return lambda: torch.no_grad()(predicate)(*args)

    return {
        "fast path": lambda: dispatch.use_fast_path(block, x),
        "row selection": lambda: dispatch.use_row_selection(block, fuses=True),
        "attention branch": lambda: dispatch.use_fused_attention_branch(block, x),
        "MLP branch": lambda: dispatch.use_fused_mlp_branch(block, x),
        "attention branch in inference": without_gradient(dispatch.use_fused_attention_branch, block, x),
        "MLP branch in inference": without_gradient(dispatch.use_fused_mlp_branch, block, x),
        "tiled attention": lambda: dispatch.use_tiled_attention(x, 9),
        "linear layers in training": lambda: dispatch.use_onednn_linear(x, 12),
        "linear layers in inference": without_gradient(dispatch.use_fused_linear, x),
    }


@pytest.mark.skipif(not onednn.HAS_ONEDNN, reason="this torch has no oneDNN")
@pytest.mark.usefixtures("every_path")
@pytest.mark.parametrize("path", _predicates())
def test_the_switch_turns_each_path_off(path: str) -> None:
    decides = _predicates()[path]
    with fast_kernels(True):
        assert decides()
    with fast_kernels(False):
        assert not decides()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_switch_turns_the_embedding_by_matmul_off() -> None:
    model = clca.create_model("deit_tiny_patch16_224", **TINY).cuda()
    images = torch.randn(2, 3, 32, 32, device="cuda")
    with fast_kernels(True):
        assert dispatch.use_matmul_embedding(model.patch_embed, images)
    with fast_kernels(False):
        assert not dispatch.use_matmul_embedding(model.patch_embed, images)


@pytest.mark.skipif(not onednn.HAS_ONEDNN, reason="this torch has no oneDNN")
@pytest.mark.usefixtures("every_path")
@pytest.mark.parametrize("reduction", ["evit", "tome"])
def test_without_fast_kernels_the_plain_modules_run(reduction: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every linear layer, and every MLP, is called as a module; with fast paths almost none is."""
    called: list[str] = []
    for kind in (nn.Linear, Mlp):
        forward = kind.forward

        def noted(module: Any, *args: Any, forward: Any = forward, name: str = kind.__name__) -> Any:
            called.append(name)
            return forward(module, *args)

        monkeypatch.setattr(kind, "forward", noted)
    model = clca.create_model(
        "deit_tiny_patch16_224", **TINY, reduction=reduction, keep_rate=0.5, locations=(1, 2)
    ).eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        with fast_kernels(True):
            fast = model(images)
        assert called.count("Mlp") == 0
        called.clear()
        with fast_kernels(False), prepack.prepacked(model):
            plain = model(images)
    assert called.count("Mlp") == 4
    assert called.count("Linear") == 4 * 4  # qkv, proj, fc1 and fc2 of four blocks
    torch.testing.assert_close(fast, plain, rtol=1e-4, atol=1e-5)


def test_a_plain_block_calls_its_own_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[int] = []
    forward = Attention.forward
    monkeypatch.setattr(Attention, "forward", lambda *args, **more: called.append(1) or forward(*args, **more))
    model = clca.create_model("deit_tiny_patch16_224", **TINY).eval()
    with fast_kernels(False), torch.no_grad():
        model(torch.randn(1, 3, 32, 32))
    assert len(called) == 4


def _is_on() -> bool:
    return dispatch.use_row_selection(Block(12, 3), fuses=False)


def test_contexts_nest_and_end_with_errors() -> None:
    with fast_kernels(True):
        with fast_kernels(False):
            with fast_kernels(True):
                assert _is_on()
            assert not _is_on()
        assert _is_on()
        with pytest.raises(KeyError), fast_kernels(False):
            raise KeyError
        assert _is_on()


def test_threads_that_overlap_leave_the_default_behind() -> None:
    """One thread enters first and leaves first: a stored "previous value" would switch fast paths off for good."""
    before = _is_on()
    first, second = fast_kernels(not before), fast_kernels(not before)
    first.__enter__()
    second.__enter__()
    found: list[bool] = []
    worker = threading.Thread(target=lambda: found.append(_is_on()))
    worker.start()
    worker.join()
    assert found == [not before]  # worker threads follow the setting of the process
    first.__exit__(None, None, None)
    assert _is_on() == (not before)
    second.__exit__(None, None, None)
    assert _is_on() == before


def test_a_compiled_model_is_traced_again_when_the_setting_changes() -> None:
    traced: list[Any] = []

    def backend(graph: Any, inputs: Any) -> Any:
        traced.append(graph)
        return graph.forward

    block = Block(12, 3)

    def run(x: torch.Tensor) -> torch.Tensor:
        return x + 1 if dispatch.use_row_selection(block, fuses=False) else x - 1

    compiled = torch.compile(run, backend=backend, fullgraph=True)
    x = torch.zeros(2)
    with fast_kernels(True):
        assert compiled(x).tolist() == [1, 1]
    with fast_kernels(False):
        assert compiled(x).tolist() == [-1, -1]
    with fast_kernels(True):
        assert compiled(x).tolist() == [1, 1]
    assert len(traced) == 2


@pytest.mark.parametrize(("value", "printed"), [("0", "False"), ("1", "True"), (None, "True")])
def test_the_environment_variable_sets_the_default(
    value: str | None, printed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CLCA_FAST_KERNELS", raising=False)
    if value is not None:
        monkeypatch.setenv("CLCA_FAST_KERNELS", value)
    assert str(dispatch._default()) == printed


def test_another_value_of_the_variable_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLCA_FAST_KERNELS", "maybe")
    with pytest.raises(clca.ClcaError, match=r"CLCA_FAST_KERNELS = 'maybe': set it to 0 .off. or 1"):
        dispatch._default()


def test_the_environment_variable_in_a_process_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    program = "from clca.kernels import dispatch; print(dispatch._enabled)"
    monkeypatch.setenv("CLCA_FAST_KERNELS", "0")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
