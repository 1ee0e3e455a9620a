"""Linear layers in inference on a CPU: oneDNN adds the bias and applies GELU while the product is still in the cache.

PyTorch's own linear layer first copies the bias over the whole result and reads it again for the activation; with the
short rows of a ViT these passes take a quarter of its time. oneDNN also lays the weights out anew at every call, which
for a few tokens takes longer than the product: inside `prepacked` it does so once. The numbers agree to the rounding of
the precision that is computed in.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from timm.layers import Mlp
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import _get_current_dispatch_mode
from torch.utils.weak import WeakIdKeyDictionary

_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
_PACKS = _ONEDNN and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
_PACKED_FOR = 1024  # rows; laid out for one row, weights serve all other counts badly, and the reverse does not hold
_BF16 = _ONEDNN and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


class _Packs:
    """What `prepacked` keeps of one weight: how many blocks hold it open, and its layouts by part and precision."""

    def __init__(self) -> None:
        self.holders = 0
        self.layouts: dict[tuple[Any, ...], tuple[int, Tensor, Tensor]] = {}


_packs: MutableMapping[Tensor, _Packs] = WeakIdKeyDictionary()


def prepacked(model: nn.Module) -> AbstractContextManager[None]:
    """Inside `with prepacked(model):`, keep weights of linear layers in the layout in which oneDNN multiplies.

    For inference in float32 or bfloat16 autocast on a CPU; elsewhere it changes nothing. It takes the memory of the
    weights a second time, from the first call on to the end of the block. Weights that an optimiser or
    `load_state_dict` changes are laid out again; a write through `.data` goes unnoticed, so make none in there.

    Args:
        model: Whose linear layers; models that share weights share their layouts too.
    """
    layers = [module for module in model.modules() if type(module) is nn.Linear] if _PACKS else []
    return _Prepacked([layer.weight for layer in layers if not layer.weight.is_inference()])


class _Prepacked(AbstractContextManager[None]):
    # No generator: one that is never left, as an endpoint's, would run its end while the interpreter shuts down.
    def __init__(self, weights: list[Tensor]) -> None:
        self.weights = weights

    def __enter__(self) -> None:
        for weight in self.weights:
            _packs.setdefault(weight, _Packs()).holders += 1

    def __exit__(self, *_: object) -> None:
        for weight in self.weights:
            packs = _packs[weight]
            packs.holders -= 1
            if not packs.holders:
                del _packs[weight]


def fuses(x: Tensor) -> bool:
    """Whether layers that read x may go through oneDNN here: in inference, and where `unobserved` holds.

    In float32, or in bfloat16 where autocast asks for it.
    """
    return bool(_ONEDNN and not torch.is_grad_enabled() and unobserved(x) and _precision(x) is not None)


def unobserved(x: Tensor) -> bool:
    """Whether x is an ordinary tensor on a CPU with oneDNN, and no compiler, tracer, counter or transform looks on."""
    return bool(
        type(x) in (Tensor, nn.Parameter)
        and x.device.type == "cpu"
        and torch.backends.mkldnn.enabled
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and _get_current_dispatch_mode() is None
        and torch._C._functorch.maybe_current_level() is None
    )


def linear(layer: Any, x: Tensor, part: slice = slice(None), gelu: bool = False) -> Tensor:
    """`layer(x)`, or the outputs `part` of it, and GELU of that if asked for; x [B, N, C].

    Args:
        layer: A linear layer; `part` needs a plain one.
        x: Rows.
        part: Which outputs to compute.
        gelu: Whether the exact GELU follows.
    """
    if fuses(x) and _is_plain(layer):
        rows = x.reshape(-1, x.shape[-1]).to(_precision(x))
        weight, bias = _operands(layer, part, rows.dtype)
        names: tuple[str, list[float], str] = ("gelu", [], "none") if gelu else ("none", [], "")
        rows = torch.ops.mkldnn._linear_pointwise(rows, weight, bias, *names)
        return rows.view(*x.shape[:-1], rows.shape[-1])
    if part == slice(None):
        x = layer(x)
    else:
        x = F.linear(x, layer.weight[part], None if layer.bias is None else layer.bias[part])
    return F.gelu(x) if gelu else x


def feed_forward(mlp: nn.Module, x: Tensor) -> Tensor:
    """`mlp(x)`, its first layer and GELU in one where it is timm's Mlp and may be fused; x [B, N, C]."""
    if not fuses(x) or type(mlp) is not Mlp or _has_hooks(mlp):
        return mlp(x)
    act: Any = mlp.act
    if type(act) is not nn.GELU or act.approximate != "none" or _has_hooks(act) or not _is_plain(mlp.fc1):
        return mlp(x)
    x = mlp.norm(mlp.drop1(linear(mlp.fc1, x, gelu=True)))
    return mlp.drop2(linear(mlp.fc2, x))


def _precision(x: Tensor) -> torch.dtype | None:
    """In which precision a linear layer would compute on x, if it is one that may go through oneDNN."""
    if not torch.is_autocast_enabled("cpu"):
        return x.dtype if x.dtype == torch.float32 else None
    if _BF16 and torch.get_autocast_dtype("cpu") == torch.bfloat16 and x.dtype in (torch.float32, torch.bfloat16):
        return torch.bfloat16
    return None


def _operands(layer: nn.Linear, part: slice, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of the outputs `part`, the weight laid out for oneDNN in `prepacked`."""
    bias = None if layer.bias is None else layer.bias[part].to(dtype)
    packs = _packs.get(layer.weight)
    if packs is None:
        return layer.weight[part].to(dtype), bias
    key, version = (part.start, part.stop, dtype), layer.weight._version
    found = packs.layouts.get(key)
    # What was laid out is kept alive, so that its address cannot become that of other values.
    if found is None or found[0] != version or found[1].data_ptr() != layer.weight.data_ptr():
        layout = torch.ops.mkldnn._reorder_linear_weight(layer.weight[part].to(dtype), _PACKED_FOR)
        found = packs.layouts[key] = version, layer.weight.detach(), layout
    return found[2], bias


def _is_plain(layer: nn.Module) -> bool:
    return (
        type(layer) is nn.Linear
        and type(layer.weight) is nn.Parameter
        and layer.weight.dtype == torch.float32
        and not _has_hooks(layer)
    )


def _has_hooks(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks or hasattr(module, "parametrizations"))
