"""Which kernel runs: whether a fast path may stand in for the plain modules, whether it pays, and one switch for all.

A fast path stands in only where its result is the same up to rounding and no hook, compiler, tracer, FLOP counter or
transform would notice. Whether it pays depends on the processor, the precision and the size of the input.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
from timm.layers import Attention, DropPath, LayerNorm, LayerScale, Mlp, PatchEmbed
from timm.models.vision_transformer import Block, ResPostBlock
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils._python_dispatch import _get_current_dispatch_mode

from clca.errors import ClcaError
from clca.kernels import prepack
from clca.kernels.module_hooks import has_global_hooks, has_hooks
from clca.kernels.onednn import HAS_ONEDNN
from clca.system.cpu_info import has_wide_avx512, this_cpu

# -- the switch --------------------------------------------------------------------------------------------------------

VARIABLE = "CLCA_FAST_KERNELS"
"""The environment variable that sets the default; 0 turns all fast paths off."""


def _default() -> bool:
    value = os.environ.get(VARIABLE, "1")
    if value not in ("0", "1"):
        raise ClcaError(f"{VARIABLE} = {value!r}: set it to 0 (off) or 1 (on, the default)")
    return value == "1"


@dataclass(eq=False)
class _Override:
    enabled: bool


_lock = threading.Lock()
_overrides: list[_Override] = []
_enabled = _default()


@contextmanager
def fast_kernels(enabled: bool) -> Iterator[None]:
    """Turn all fast paths of this library off, or on again, inside a `with` statement.

    With `fast_kernels(False)` a model calls the plain modules of timm and PyTorch one after another. The results agree
    to rounding. Use it to compare results or speed with the plain modules, or to find out whether a fast path causes a
    problem. The environment variable `CLCA_FAST_KERNELS=0` does the same for a whole process.

    The setting holds for the whole process, as those of `torch.backends` do: worker threads follow it, and a compiled
    or exported model keeps the paths with which it was traced (`torch.compile` traces anew when the setting changes).
    Where several threads use it at the same time, the block that was entered last decides until it is left.

    Args:
        enabled: Whether fast paths may run.

    Example:
        >>> with clca.fast_kernels(False):
        ...     logits = model(images)
    """
    override = _Override(enabled)
    with _lock:
        _overrides.append(override)
        _refresh()
    try:
        yield
    finally:
        with _lock:
            _overrides.remove(override)
            _refresh()


def _refresh() -> None:
    global _enabled
    # A separate global variable, because torch.compile guards on it.
    _enabled = _overrides[-1].enabled if _overrides else _default()


# -- what pays on this processor ---------------------------------------------------------------------------------------

MIN_MULTIPLICATIONS = 2**25
"""Fewer multiplications are left to PyTorch: the overhead of a call through oneDNN then outweighs its gain."""
MIN_QUERIES_BFLOAT16 = 32
"""Fewer queries are left to PyTorch's fused attention in bfloat16."""
MIN_QUERIES_FLOAT32 = 256
"""The same in float32, where every head is a separate call."""


def _mkl_avoids_avx512() -> bool:
    """Whether this is a processor on which oneDNN uses AVX-512 and MKL does not: one by AMD."""
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return (
        HAS_ONEDNN
        and torch.backends.mkl.is_available()
        and "AMD" in str(capabilities.get("cpu_name", ""))
        and bool(capabilities.get("avx512_f"))
    )


TRAIN_WITH_ONEDNN = _mkl_avoids_avx512()
"""Whether linear layers of a float32 training step go through oneDNN, which at least takes less memory."""
ONEDNN_TWICE_AS_FAST = TRAIN_WITH_ONEDNN and has_wide_avx512(this_cpu())
"""Whether oneDNN is so much faster than MKL that attention gains by it too, and fused branches in inference."""
TILED_BFLOAT16 = torch.cpu._is_avx512_bf16_supported() and not torch.cpu._is_amx_tile_supported()
"""Whether tiled attention is faster in bfloat16: PyTorch's fused kernel is written for AMX."""
LINEAR_BFLOAT16 = HAS_ONEDNN and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
"""Whether oneDNN multiplies bfloat16 here."""


# -- whole blocks ------------------------------------------------------------------------------------------------------


def can_split(block: nn.Module) -> bool:
    """Whether attention and MLP of the block can be run separately, so that a reduction can act between them."""
    # By the forward, not the class: fully_shard replaces the class of every block that it shards.
    return type(block).forward in (Block.forward, ResPostBlock.forward) and type(block.attn) is Attention


def use_fast_path(block: Any, x: Tensor) -> bool:
    """True if our kernels beat the block's own forward on x [B, N, C], and no hook, tracer or compiler would notice."""
    if not can_split(block) or has_hooks(block) or has_hooks(block.attn):
        return False
    return use_fused_linear(x) or use_onednn_in_training(x) or use_tiled_attention(x, x.shape[1])


def use_row_selection(block: nn.Module, fuses: bool) -> bool:
    """Whether attention may be computed for the selected tokens of a block alone.

    The projections must be plain linear layers without hooks. To fuse tokens before the output projection, nothing may
    come between attention and that projection, and no dropout of single entries behind it.

    Args:
        block: The block.
        fuses: Whether the selection has a fused token.
    """
    if not _enabled or type(block) is not Block or type(block.attn) is not Attention:
        return False
    attn = block.attn
    if attn.gate is not None or type(attn.qkv) is not nn.Linear or type(attn.proj) is not nn.Linear:
        return False
    if any(map(has_hooks, (block, attn, attn.qkv, attn.proj))):
        return False
    return not fuses or (isinstance(attn.norm, nn.Identity) and is_identity(attn.proj_drop))


def use_fused_attention_branch(block: Any, x: Tensor) -> bool:
    """Whether `fused_block` runs the attention branch of the block on x [B, N, C]."""
    if type(block) is not Block or type(block.attn) is not Attention or has_hooks(block.attn):
        return False
    attn = block.attn
    absent = attn.q_norm, attn.k_norm, attn.norm, attn.attn_drop, attn.proj_drop
    return (
        _use_fused_branch(block.norm1, block.ls1, block.drop_path1, x)
        and use_tiled_attention(x, x.shape[1])
        and x.numel() * len(attn.qkv.weight) >= MIN_MULTIPLICATIONS
        and attn.gate is None
        and is_plain_linear(attn.qkv)
        and is_plain_linear(attn.proj)
        and all(map(is_identity, absent))
    )


def use_fused_mlp_branch(block: Any, x: Tensor) -> bool:
    """Whether `fused_block` runs the MLP branch of the block on x [B, N, C]."""
    return (
        type(block) is Block
        and _use_fused_branch(block.norm2, block.ls2, block.drop_path2, x)
        and is_fusable_mlp(block.mlp, x)
    )


def _use_fused_branch(norm: Any, scale: nn.Module, drop_path: nn.Module, x: Tensor) -> bool:
    if use_onednn_in_training(x):
        return True
    # In inference norm and scale are called for a few rows at a time.
    return (
        ONEDNN_TWICE_AS_FAST
        and use_fused_linear(x)
        and not torch.is_autocast_enabled("cpu")
        and is_plain_norm(norm, x)
        and (is_identity(scale) or is_plain_scale(scale))
        and is_identity(drop_path)
    )


# -- layers ------------------------------------------------------------------------------------------------------------


def use_tiled_attention(x: Tensor, queries: int) -> bool:
    """Whether tiled attention of `queries` tokens, computed from x, beats PyTorch's fused kernel."""
    threshold = min(MIN_QUERIES_BFLOAT16, MIN_QUERIES_FLOAT32)
    if queries < threshold or not _is_unobserved_on_cpu(x):
        return False
    if not torch.is_autocast_enabled("cpu"):
        return ONEDNN_TWICE_AS_FAST and queries >= MIN_QUERIES_FLOAT32 and x.dtype == torch.float32
    return (
        TILED_BFLOAT16
        and queries >= MIN_QUERIES_BFLOAT16
        and torch.get_autocast_dtype("cpu") == torch.bfloat16
        and x.dtype in (torch.float32, torch.bfloat16)
    )


def use_onednn_in_training(x: Tensor) -> bool:
    """Whether linear layers that read x may run through oneDNN with a gradient: float32, on a CPU where that pays."""
    return (
        TRAIN_WITH_ONEDNN and torch.is_grad_enabled() and compute_dtype(x) == torch.float32 and _is_unobserved_on_cpu(x)
    )


def use_onednn_linear(x: Tensor, out_features: int) -> bool:
    """Whether a plain linear layer on x [..., C] runs through oneDNN in training: allowed, and large enough to pay."""
    return use_onednn_in_training(x) and x.numel() * out_features >= MIN_MULTIPLICATIONS


def use_fused_linear(x: Tensor) -> bool:
    """Whether linear layers that read x may run with bias and GELU fused, or prepacked: in inference alone.

    On a CPU in float32, or in bfloat16 where autocast asks for it; on a GPU in autocast's precision inside `prepacked`.
    """
    if torch.is_grad_enabled() or compute_dtype(x) is None:
        return False
    if x.is_cuda:
        return prepack.is_active() and _is_unobserved(x)
    return HAS_ONEDNN and _is_unobserved_on_cpu(x)


def use_matmul_embedding(embed: nn.Module, x: Tensor) -> bool:
    """Whether the patch embedding of images x [B, 3, H, W] runs as a matrix product, which pays on a GPU."""
    return _enabled and x.is_cuda and is_matmul_embedding(embed, x)


def compute_dtype(x: Tensor) -> torch.dtype | None:
    """In which precision a linear layer computes on x; None if this library has no kernel for it."""
    device = x.device.type
    if device not in ("cpu", "cuda"):
        return None
    if not torch.is_autocast_enabled(device):
        return x.dtype if x.dtype == torch.float32 and device == "cpu" else None
    dtype = torch.get_autocast_dtype(device)
    supported = (
        dtype in (torch.bfloat16, torch.float16) if device == "cuda" else LINEAR_BFLOAT16 and dtype == torch.bfloat16
    )
    return dtype if supported and x.dtype in (torch.float32, dtype) else None


# -- what modules and tensors are --------------------------------------------------------------------------------------


def is_plain_linear(layer: nn.Module) -> bool:
    """Whether this is PyTorch's linear layer in float32, without hooks."""
    return (
        type(layer) is nn.Linear
        and type(layer.weight) is nn.Parameter
        and layer.weight.dtype == torch.float32
        and layer.weight.layout == torch.strided
        and not has_hooks(layer)
    )


def is_plain_norm(norm: Any, x: Tensor) -> bool:
    """Whether this is a layer norm over the channels of x, with weight and bias, without hooks."""
    return (
        type(norm) in (nn.LayerNorm, LayerNorm)
        and norm.normalized_shape == x.shape[-1:]
        and norm.weight is not None
        and norm.bias is not None
        and norm.weight.dtype == norm.bias.dtype == x.dtype
        and not has_hooks(norm)
    )


def is_plain_scale(scale: nn.Module) -> TypeGuard[LayerScale]:
    """Whether this is timm's layer scale, without hooks."""
    return type(scale) is LayerScale and not has_hooks(scale)


def is_plain_mlp(mlp: nn.Module) -> TypeGuard[Any]:
    """Whether this is timm's Mlp whose first layer is plain, followed by the exact GELU."""
    if type(mlp) is not Mlp or has_hooks(mlp):
        return False
    act: Any = mlp.act
    return type(act) is nn.GELU and act.approximate == "none" and not has_hooks(act) and is_plain_linear(mlp.fc1)


def is_fusable_mlp(mlp: nn.Module, x: Tensor) -> TypeGuard[Any]:
    """Whether the MLP is two plain layers with the exact GELU between them, and large enough on x to pay."""
    return (
        is_plain_mlp(mlp)
        and x.numel() * mlp.fc1.out_features >= MIN_MULTIPLICATIONS
        and is_plain_linear(mlp.fc2)
        and all(map(is_identity, (mlp.drop1, mlp.norm, mlp.drop2)))
    )


def is_matmul_embedding(embed: nn.Module, x: Tensor) -> bool:
    """Whether the patch embedding of x [B, 3, H, W] is a matrix product: patches do not overlap and tile the images."""
    if type(embed) is not PatchEmbed or not embed.flatten or has_hooks(embed):
        return False
    proj: Any = embed.proj
    if type(proj) is not nn.Conv2d or proj.stride != proj.kernel_size or has_hooks(proj):
        return False
    if proj.padding != (0, 0) or proj.dilation != (1, 1) or proj.groups != 1:
        return False
    return x.shape[2] % proj.kernel_size[0] == 0 and x.shape[3] % proj.kernel_size[1] == 0


def is_identity(module: Any) -> bool:
    """Whether the module returns its input: an identity, or a dropout that drops nothing."""
    if type(module) is DropPath:
        return (not module.training or not module.drop_prob) and not has_hooks(module)
    if type(module) is nn.Dropout:
        return (not module.training or module.p == 0) and not has_hooks(module)
    return type(module) is nn.Identity and not has_hooks(module)


def _is_unobserved_on_cpu(x: Tensor) -> bool:
    return bool(x.device.type == "cpu" and torch.backends.mkldnn.enabled) and _is_unobserved(x)


def _is_unobserved(x: Tensor) -> bool:
    """Whether fast paths are on, x is an ordinary tensor, and no compiler, tracer, counter or transform is at work."""
    return bool(
        _enabled
        and type(x) in (Tensor, nn.Parameter)
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and _get_current_dispatch_mode() is None
        and torch._C._functorch.maybe_current_level() is None
        and forward_ad._current_level < 0
        and not has_global_hooks()
    )
