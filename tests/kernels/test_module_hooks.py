"""What users attach to a model's parts is called, on the fast paths of this machine as on plain ones."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.utils.prune
from timm.layers import set_reentrant_ckpt, use_reentrant_ckpt
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard

import clca
from clca.kernels import dispatch, onednn
from clca.kernels.linear import linear
from clca.models.config import validated

TINY: dict[str, Any] = {"img_size": 32, "patch_size": 4, "embed_dim": 24, "num_heads": 3, "depth": 4}
FROM_THE_FIRST_ON = (
    "clca.kernels.dispatch.MIN_MULTIPLICATIONS",
    "clca.kernels.dispatch.MIN_QUERIES_BFLOAT16",
    "clca.kernels.dispatch.MIN_QUERIES_FLOAT32",
)


@pytest.fixture(params=["as here", "all fast paths"], autouse=True)
def fast_paths(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine's way, and that of the processors that go through oneDNN even with few tokens."""
    if request.param == "all fast paths":
        if not onednn.HAS_ONEDNN:
            pytest.skip("this PyTorch has no oneDNN")
        for name in FROM_THE_FIRST_ON:
            monkeypatch.setattr(name, 1)
        monkeypatch.setattr(dispatch, "TRAIN_WITH_ONEDNN", True)
        monkeypatch.setattr(dispatch, "ONEDNN_TWICE_AS_FAST", True)


def _model(reduction: str, **more: Any) -> clca.TokenReducedViT:
    torch.manual_seed(0)
    rate = 1.0 if reduction == "none" else 0.5
    arguments: dict[str, Any] = {"num_classes": 5, "locations": (1, 2), "reduction": reduction, "keep_rate": rate}
    return clca.create_model("deit_tiny_patch16_224", **TINY, **arguments | more).eval()


def _plain(model: clca.TokenReducedViT, images: Tensor) -> Tensor:
    """The model's logits by PyTorch's own layers, all rows of them."""
    model.economical = False
    try:
        with clca.fast_kernels(False), torch.no_grad():
            return model(images)
    finally:
        model.economical = True


@pytest.fixture
def images() -> Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("reduction", clca.list_reductions())
def test_a_hook_sees_every_block_and_attention_and_may_change_it(reduction: str, grad: bool, images: Tensor) -> None:
    model = _model(reduction)
    seen: list[tuple[int, str, torch.Size]] = []
    for i, block in enumerate(model.blocks):
        for name, module in (("block", block), ("attn", block.attn)):
            module.register_forward_hook(lambda _, __, out, i=i, name=name: seen.append((i, name, out.shape)))
    with torch.set_grad_enabled(grad):
        logits = model(images)
        assert [(i, name) for i, name, _ in seen] == [(i, name) for i in range(4) for name in ("attn", "block")]
        assert seen[-1][2][1] > 1  # all tokens, though the aggregation head reads one
        model.blocks[-1].register_forward_hook(lambda _, __, out: 0 * out)
        assert not torch.allclose(model(images), logits)


@pytest.mark.parametrize("part", ["attn.qkv", "attn.proj", "mlp.fc1", "norm1", "mlp", "attn", ""])
@pytest.mark.parametrize("reduction", ["none", "topk", "evit"])
def test_a_hook_changes_what_it_changes_in_the_plain_model(reduction: str, part: str, images: Tensor) -> None:
    model = _model(reduction)
    for block in model.blocks:
        block.get_submodule(part).register_forward_hook(lambda _, __, out: out * 1.5)
    expected = _plain(model, images)
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            torch.testing.assert_close(model(images), expected, atol=1e-5, rtol=1e-4)
    for block in model.blocks:
        block.get_submodule(part)._forward_hooks.clear()
    assert not torch.allclose(model(images), expected, atol=1e-4)


@pytest.mark.parametrize("part", ["attn.qkv", "attn.proj", "mlp.fc1", "mlp.act", "norm1"])
@pytest.mark.parametrize("reduction", ["none", "topk", "evit"])
def test_a_forward_put_in_place_of_a_part_is_called(reduction: str, part: str, images: Tensor) -> None:
    model = _model(reduction)
    before = model(images)
    for block in model.blocks:
        module = block.get_submodule(part)
        module.forward = lambda x, old=module.forward: old(x) * 1.5
    with torch.no_grad():
        without_gradient = model(images)
    torch.testing.assert_close(model(images), without_gradient, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(without_gradient, before, atol=1e-4)


def test_a_forward_that_is_not_called_is_warned_of(images: Tensor) -> None:
    model = _model("tome")
    model.blocks[1].forward = lambda x: x
    with pytest.warns(UserWarning, match="new forward of block 1"):
        model(images)


@pytest.fixture
def global_hook() -> Iterator[list[str]]:
    called: list[str] = []
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: called.append(type(module).__name__))
    yield called
    handle.remove()


@pytest.mark.parametrize("grad", [False, True])
def test_a_hook_on_every_module_is_called_for_every_module(grad: bool, global_hook: list[str], images: Tensor) -> None:
    model = _model("tome", cla=False)
    with torch.set_grad_enabled(grad):
        model(images)
    assert {name: global_hook.count(name) for name in ("Block", "Attention", "Mlp", "GELU")} == dict.fromkeys(
        ("Block", "Attention", "Mlp", "GELU"), 4
    )


def test_pruned_weights_are_those_that_multiply(images: Tensor) -> None:
    model = _model("topk")
    for block in model.blocks:
        nn.utils.prune.random_unstructured(block.attn.qkv, "weight", 0.3)
    model.load_state_dict({k: v * 1.5 if k.endswith("weight_orig") else v for k, v in model.state_dict().items()})
    with torch.no_grad():
        torch.testing.assert_close(model(images), _plain(model, images), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("grad", [False, True])
def test_a_bias_with_strides(grad: bool, images: Tensor) -> None:
    model = _model("evit")
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter, std=0.1)
    expected = _plain(model, images)
    strided = {
        name: torch.stack([tensor, tensor], 1)[:, 0] if name.endswith("bias") else tensor
        for name, tensor in model.state_dict().items()
    }
    model.load_state_dict(strided, assign=True)
    with torch.set_grad_enabled(grad):
        torch.testing.assert_close(model(images), expected, atol=1e-5, rtol=1e-4)


def test_a_bias_of_one_number_expanded() -> None:
    layer, x = nn.Linear(24, 72), torch.randn(2, 37, 24)
    layer.bias = nn.Parameter(torch.tensor([0.5]).expand(72))
    with torch.no_grad():
        torch.testing.assert_close(linear(layer, x), layer(x))
    torch.testing.assert_close(linear(layer, x), layer(x))


def test_sparse_weights(images: Tensor) -> None:
    model = _model("topk", cla=False)
    expected = _plain(model, images)
    for block in model.blocks:
        block.mlp.fc1.weight = nn.Parameter(block.mlp.fc1.weight.detach().to_sparse_csr())
    with torch.no_grad():
        torch.testing.assert_close(model(images), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("reduction", ["topk", "evit", "tome"])
def test_checkpointing_keeps_every_gradient(reduction: str, reentrant: bool, images: Tensor) -> None:
    model, before = _model(reduction, cla=False), use_reentrant_ckpt()
    gradients = []
    try:
        set_reentrant_ckpt(reentrant)
        for checkpointing in (False, True):
            model.train().set_grad_checkpointing(checkpointing)
            model.zero_grad()
            model(images).square().sum().backward()
            gradients.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
    finally:
        set_reentrant_ckpt(before)
    assert gradients[0].keys() == gradients[1].keys() >= {"blocks.1.norm1.weight", "blocks.1.attn.qkv.weight"}
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


def test_a_gradient_of_a_gradient_is_right_or_refused(images: Tensor) -> None:
    model = _model("topk")

    def product(x: Tensor) -> Tensor:
        with nn.attention.sdpa_kernel(nn.attention.SDPBackend.MATH):
            return torch.autograd.functional.hvp(lambda x: model(x).square().sum(), x, torch.ones_like(x))[1]

    with clca.fast_kernels(False):
        expected = product(images)
    assert expected.norm() > 0
    if dispatch.ONEDNN_TWICE_AS_FAST or dispatch.MIN_MULTIPLICATIONS == 1:
        with pytest.raises(RuntimeError, match=r"gradients of gradients.*clca\.fast_kernels"):
            product(images)
    else:
        torch.testing.assert_close(product(images), expected)


def test_a_backward_pass_inside_autocast(images: Tensor) -> None:
    model = _model("evit")
    gradients = []
    for inside in (False, True):
        model.zero_grad()
        loss = model(images).square().sum()
        with torch.autocast("cpu", torch.bfloat16, enabled=inside):
            loss.backward()
        gradients.append(model.blocks[0].attn.qkv.weight.grad.clone())
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-3, rtol=5e-2)  # the head's are PyTorch's


def test_forward_mode_derivatives(images: Tensor) -> None:
    model = _model("topk")
    with nn.attention.sdpa_kernel(nn.attention.SDPBackend.MATH):
        expected = torch.func.jvp(model, (images,), (torch.ones_like(images),))[1]
    for grad in (False, True):
        with torch.set_grad_enabled(grad), torch.autograd.forward_ad.dual_level():
            with nn.attention.sdpa_kernel(nn.attention.SDPBackend.MATH):
                out = model(torch.autograd.forward_ad.make_dual(images, torch.ones_like(images)))
            tangent = torch.autograd.forward_ad.unpack_dual(out).tangent
        torch.testing.assert_close(tangent, expected, atol=1e-4, rtol=1e-3)


def test_parts_that_became_identities(images: Tensor) -> None:
    model = _model("evit").train()
    for block in model.blocks:
        block.attn.proj_drop = nn.Identity()
    assert model(images).isfinite().all()


def test_a_block_that_is_wrapped_is_refused_where_tokens_are_reduced_inside(images: Tensor) -> None:
    class Wrapper(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x)

    model = _model("tome")
    model.blocks[1] = Wrapper(model.blocks[1])
    with pytest.raises(clca.ClcaError, match="block 1 has become a Wrapper"):
        model(images)


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace.*:FutureWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # sizes are constants, as they should be
@pytest.mark.parametrize("reduction", clca.list_reductions())
def test_tracing_is_exact(reduction: str, images: Tensor) -> None:
    model = _model(reduction)
    with torch.no_grad():
        traced = torch.jit.trace(model, torch.randn_like(images), check_trace=False)
        torch.testing.assert_close(traced(images), _plain(model, images), atol=1e-5, rtol=1e-4)


def test_the_settings_are_a_dictionary_for_libraries_that_ask() -> None:
    model = _model("topk")
    assert validated(**model.config.to_dict()) == model.config


@pytest.fixture
def mesh() -> Iterator[Any]:
    """A mesh of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield dist.device_mesh.init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


@pytest.mark.parametrize("reduction", clca.list_reductions())
def test_blocks_that_are_sharded_are_gathered_before_their_parts_are_used(
    reduction: str, mesh: Any, images: Tensor
) -> None:
    model, whole = _model(reduction, cla=False).train(), _model(reduction, cla=False).train()
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    for each in (model, whole):
        torch.manual_seed(2)  # DynamicViT's noise
        each(images).square().sum().backward()
    for (name, shard), (_, parameter) in zip(model.named_parameters(), whole.named_parameters(), strict=True):
        if parameter.grad is not None:
            torch.testing.assert_close(shard.grad.full_tensor(), parameter.grad, atol=1e-4, rtol=1e-3, msg=name)
