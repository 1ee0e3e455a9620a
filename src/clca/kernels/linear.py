"""Linear layers in inference, without the work that a plain one repeats at every call.

On a CPU oneDNN adds the bias and applies GELU while the product is still in the cache. PyTorch's own linear layer first
copies the bias over the whole result and reads it again for the activation; with the short rows of a ViT these passes
take a quarter of its time. oneDNN also lays the weights out anew at every call, which for a few tokens takes longer
than the product: inside `prepacked` it does so once. The numbers agree to the rounding of the precision that is
computed in.

On a GPU autocast casts every weight and bias anew at every call: inside `prepacked` it happens once. The patch
embedding, a convolution whose places do not overlap, is a matrix product there: the libraries' convolution takes much
longer for strides of 14 and 16.
"""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from contextlib import AbstractContextManager
from typing import Any, TypeGuard

import torch
from timm.layers import DropPath, Mlp, PatchEmbed
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.utils._python_dispatch import _get_current_dispatch_mode
from torch.utils.weak import WeakIdKeyDictionary

from clca.kernels import onednn as products
from clca.kernels.module_hooks import has_global_hooks, has_hooks

_PACKS = products.ONEDNN and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
_PACKED_FOR = 1024  # rows; laid out for one row, weights serve all other counts badly, and the reverse does not hold
_BF16 = products.ONEDNN and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


class _Packs:
    """What `prepacked` keeps of one weight: how many blocks hold it open, and its layouts by part and precision."""

    def __init__(self) -> None:
        self.holders = 0
        self.layouts: dict[tuple[Any, ...], tuple[int, Tensor, Tensor]] = {}

    def kept(self, source: Tensor, key: tuple[Any, ...], make: Callable[[], Tensor]) -> Tensor:
        """What `make` made of the source, made anew if the source has changed since."""
        found = self.layouts.get(key)
        # What it was made of is kept alive, so that its address cannot become that of other values.
        if found is None or found[0] != source._version or found[1].data_ptr() != source.data_ptr():
            found = self.layouts[key] = source._version, source.detach(), make()
        return found[2]


_packs: MutableMapping[Tensor, _Packs] = WeakIdKeyDictionary()


def prepacked(model: nn.Module) -> AbstractContextManager[None]:
    """Inside `with prepacked(model):`, keep weights of linear layers as they are multiplied.

    That is, in the layout of oneDNN for inference in float32 or bfloat16 autocast on a CPU, and in the precision of
    autocast for inference on a GPU; elsewhere it changes nothing. It takes up to the memory of the weights a second
    time, from the first call on to the end of the block. Weights that an optimiser or `load_state_dict` changes are
    made anew; a write through `.data` goes unnoticed, so make none in there.

    Args:
        model: Whose linear layers; models that share weights share what is kept too.
    """
    weights = [module.weight for module in model.modules() if type(module) is nn.Linear]
    return _Prepacked([w for w in weights if not w.is_inference() and (_PACKS or w.is_cuda)])


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


def trains_by_products(x: Tensor) -> bool:
    """Whether layers that read x may be computed by `products`: with a gradient, in float32, on a CPU it is for."""
    return products.BY_ONEDNN and torch.is_grad_enabled() and _precision(x) == torch.float32 and unobserved(x)


def fuses(x: Tensor) -> bool:
    """Whether layers that read x may be computed here: in inference, and where nobody looks on.

    On a CPU in float32, or in bfloat16 where autocast asks for it; on a GPU in autocast's precision inside `prepacked`.
    """
    if torch.is_grad_enabled() or _precision(x) is None:
        return False
    if x.is_cuda:
        return bool(_packs) and _ordinary(x)
    return products.ONEDNN and unobserved(x)


def unobserved(x: Tensor) -> bool:
    """Whether x is an ordinary tensor on a CPU with oneDNN, and no compiler, tracer, counter or transform looks on."""
    return bool(x.device.type == "cpu" and torch.backends.mkldnn.enabled) and _ordinary(x)


def _ordinary(x: Tensor) -> bool:
    return bool(
        type(x) in (Tensor, nn.Parameter)
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and _get_current_dispatch_mode() is None
        and torch._C._functorch.maybe_current_level() is None
        and forward_ad._current_level < 0
        and not has_global_hooks()
    )


def linear(layer: Any, x: Tensor, part: slice = slice(None), gelu: bool = False) -> Tensor:
    """`layer(x)`, or the outputs `part` of it, and GELU of that if asked for; x [B, N, C].

    Args:
        layer: A linear layer; `part` needs a plain one.
        x: Rows.
        part: Which outputs to compute.
        gelu: Whether the exact GELU follows.
    """
    if fuses(x) and is_plain(layer):
        dtype = _precision(x)
        assert dtype is not None
        weight, bias = _operands(layer, part, dtype)
        if x.is_cuda:
            x = F.linear(x.to(dtype), weight, bias)
            return F.gelu(x) if gelu else x
        rows = x.reshape(-1, x.shape[-1]).to(dtype)
        names: tuple[str, list[float], str] = ("gelu", [], "none") if gelu else ("none", [], "")
        rows = torch.ops.mkldnn._linear_pointwise(rows, weight, products.dense(bias), *names)
        return rows.view(*x.shape[:-1], rows.shape[-1])
    if trains_by_products(x) and is_plain(layer):
        weight, bias = layer.weight[part], None if layer.bias is None else layer.bias[part]
        if x.numel() * len(weight) >= products.FEWEST:
            x = products.linear(x, weight, bias)
            return F.gelu(x) if gelu else x
    if part == slice(None):
        x = layer(x)
    else:
        x = F.linear(x, layer.weight[part], None if layer.bias is None else layer.bias[part])
    return F.gelu(x) if gelu else x


def feed_forward(mlp: nn.Module, x: Tensor) -> Tensor:
    """`mlp(x)`, its first layer and GELU in one where it is timm's Mlp and may be fused; x [B, N, C]."""
    if trains_by_products(x) and is_one(mlp, x):
        return products.feed_forward(x, mlp.fc1.weight, mlp.fc1.bias, mlp.fc2.weight, mlp.fc2.bias)
    if not fuses(x) or not _is_plain_mlp(mlp):
        return mlp(x)
    x = mlp.norm(mlp.drop1(linear(mlp.fc1, x, gelu=True)))
    return mlp.drop2(linear(mlp.fc2, x))


def is_one(mlp: nn.Module, x: Tensor) -> TypeGuard[Any]:
    """Whether the MLP is two plain layers and the exact GELU between them, and on x large enough to pay here."""
    return (
        _is_plain_mlp(mlp)
        and x.numel() * mlp.fc1.out_features >= products.FEWEST
        and is_plain(mlp.fc2)
        and all(map(does_nothing, (mlp.drop1, mlp.norm, mlp.drop2)))
    )


def _is_plain_mlp(mlp: nn.Module) -> TypeGuard[Any]:
    """Whether this is timm's Mlp, its first layer and the exact GELU plain."""
    if type(mlp) is not Mlp or has_hooks(mlp):
        return False
    act: Any = mlp.act
    return type(act) is nn.GELU and act.approximate == "none" and not has_hooks(act) and is_plain(mlp.fc1)


def embed_patches(embed: nn.Module, x: Tensor) -> Tensor:
    """`embed(x)`: images [B, 3, H, W] to patches [B, N, C], on a GPU as a matrix product where it is one."""
    return patches_by_product(embed, x) if x.is_cuda and is_product(embed, x) else embed(x)


def is_product(embed: nn.Module, x: Tensor) -> bool:
    """Whether `patches_by_product` may stand for `embed(x)`: a plain patch embedding, and images of whole patches."""
    if type(embed) is not PatchEmbed or not embed.flatten or has_hooks(embed):
        return False
    proj: Any = embed.proj
    if type(proj) is not nn.Conv2d or proj.stride != proj.kernel_size or has_hooks(proj):
        return False
    if proj.padding != (0, 0) or proj.dilation != (1, 1) or proj.groups != 1:
        return False
    return x.shape[2] % proj.kernel_size[0] == 0 and x.shape[3] % proj.kernel_size[1] == 0


def patches_by_product(embed: Any, x: Tensor) -> Tensor:
    """Images [B, 3, H, W] to patches [B, N, C] without a convolution."""
    proj = embed.proj
    high, wide = proj.kernel_size
    patches = x.unflatten(3, (-1, wide)).unflatten(2, (-1, high)).permute(0, 2, 4, 1, 3, 5)  # [B, H/h, W/w, 3, h, w]
    return embed.norm(F.linear(patches.flatten(3).flatten(1, 2), proj.weight.flatten(1), proj.bias))


def _precision(x: Tensor) -> torch.dtype | None:
    """In which precision a linear layer would compute on x, if it is one that is computed here."""
    device = x.device.type
    if device not in ("cpu", "cuda"):
        return None
    if not torch.is_autocast_enabled(device):
        return x.dtype if x.dtype == torch.float32 and device == "cpu" else None
    dtype = torch.get_autocast_dtype(device)
    possible = dtype in (torch.bfloat16, torch.float16) if device == "cuda" else _BF16 and dtype == torch.bfloat16
    return dtype if possible and x.dtype in (torch.float32, dtype) else None


def _operands(layer: nn.Linear, part: slice, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of the outputs `part`; in `prepacked` kept as they are multiplied."""
    weight, bias = layer.weight, layer.bias
    packs = _packs.get(weight)
    if packs is None:
        return weight[part].to(dtype), None if bias is None else bias[part].to(dtype)
    found = packs.kept(weight, (part.start, part.stop, dtype), lambda: _laid_out(weight[part].to(dtype)))
    if bias is None or not bias.is_cuda:
        return found, None if bias is None else bias[part].to(dtype)
    return found, packs.kept(bias, (part.start, part.stop, dtype, "bias"), lambda: bias[part].to(dtype))


def _laid_out(weight: Tensor) -> Tensor:
    return weight if weight.is_cuda else torch.ops.mkldnn._reorder_linear_weight(weight, _PACKED_FOR)


def is_plain(layer: nn.Module) -> bool:
    """Whether this is a linear layer as PyTorch has it, in float32, and nobody looks on."""
    return (
        type(layer) is nn.Linear
        and type(layer.weight) is nn.Parameter
        and layer.weight.dtype == torch.float32
        and layer.weight.layout == torch.strided
        and not has_hooks(layer)
    )


def does_nothing(module: Any) -> bool:
    """Whether this gives back what it gets: an identity, or a dropout that drops nothing."""
    if type(module) is DropPath:
        return (not module.training or not module.drop_prob) and not has_hooks(module)
    if type(module) is nn.Dropout:
        return (not module.training or module.p == 0) and not has_hooks(module)
    return type(module) is nn.Identity and not has_hooks(module)
