"""Linear layers in inference on a CPU: oneDNN adds the bias and applies GELU while the product is still in the cache.

PyTorch's own linear layer first copies the bias over the whole result and reads it again for the activation; with the
short rows of a ViT these passes take a quarter of its time. The numbers agree to float32 rounding.
"""

from __future__ import annotations

from typing import Any

import torch
from timm.layers import Mlp
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import _get_current_dispatch_mode

_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def fuses(x: Tensor) -> bool:
    """Whether layers that read x may go through oneDNN here: float32 on a CPU, nobody differentiates or looks on."""
    return bool(
        _ONEDNN
        and type(x) in (Tensor, nn.Parameter)
        and x.device.type == "cpu"
        and x.dtype == torch.float32
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
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
        weight, bias = layer.weight[part], None if layer.bias is None else layer.bias[part]
        names: tuple[str, list[float], str] = ("gelu", [], "none") if gelu else ("none", [], "")
        rows = torch.ops.mkldnn._linear_pointwise(x.reshape(-1, x.shape[-1]), weight, bias, *names)
        return rows.view(*x.shape[:-1], weight.shape[0])
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


def _is_plain(layer: nn.Module) -> bool:
    return (
        type(layer) is nn.Linear
        and type(layer.weight) is nn.Parameter
        and layer.weight.dtype == torch.float32
        and not _has_hooks(layer)
    )


def _has_hooks(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks or hasattr(module, "parametrizations"))
