"""Weights of linear layers kept in the layout and precision in which they are multiplied.

oneDNN converts the weights to its own layout at every call, which for a few tokens takes longer than the product.
On a GPU autocast casts every weight and bias at every call. Inside `prepacked` either happens once.
"""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from clca.kernels.onednn import HAS_ONEDNN

HAS_PREPACKING = HAS_ONEDNN and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
"""Whether this PyTorch converts weights to oneDNN's layout on request."""
_PACKED_ROWS = 1024  # a layout for one row is slow for all other counts; the reverse does not hold


class _Packs:
    """What `prepacked` keeps of one weight: how many contexts use it, and its layouts by part and precision."""

    def __init__(self) -> None:
        self.users = 0
        self.layouts: dict[tuple[Any, ...], tuple[int, Tensor, Tensor]] = {}

    def get(self, source: Tensor, key: tuple[Any, ...], make: Callable[[], Tensor]) -> Tensor:
        """What `make` returned for the source, called again if the source has changed since."""
        entry = self.layouts.get(key)
        # The source is kept alive, so that its address cannot become that of other values.
        if entry is None or entry[0] != source._version or entry[1].data_ptr() != source.data_ptr():
            entry = self.layouts[key] = source._version, source.detach(), make()
        return entry[2]


_packs: MutableMapping[Tensor, _Packs] = WeakIdKeyDictionary()


def prepacked(model: nn.Module) -> AbstractContextManager[None]:
    """Inside `with prepacked(model):`, keep weights of linear layers as they are multiplied.

    That is, in the layout of oneDNN for inference in float32 or bfloat16 autocast on a CPU, and in the precision of
    autocast for inference on a GPU; elsewhere, and inside `clca.fast_kernels(False)`, it changes nothing. It takes up
    to the memory of the weights a second time, from the first call until the block is left. Weights changed by an
    optimizer or `load_state_dict` are packed again; a write through `.data` is not noticed, so avoid it inside.

    Args:
        model: The model whose linear layers are packed; models that share weights share the packed ones too.
    """
    weights = [module.weight for module in model.modules() if type(module) is nn.Linear]
    return _Prepacked([w for w in weights if not w.is_inference() and (HAS_PREPACKING or w.is_cuda)])


class _Prepacked(AbstractContextManager[None]):
    # No generator: one that is never left, as an endpoint's, would run its end while the interpreter shuts down.
    def __init__(self, weights: list[Tensor]) -> None:
        self.weights = weights

    def __enter__(self) -> None:
        for weight in self.weights:
            _packs.setdefault(weight, _Packs()).users += 1

    def __exit__(self, *_: object) -> None:
        for weight in self.weights:
            packs = _packs.get(weight)
            if packs is None:  # collected together with this context, when weak references are already cleared
                continue
            packs.users -= 1
            if not packs.users:
                del _packs[weight]


def is_active() -> bool:
    """Whether the weights of some model are prepacked."""
    return bool(_packs)


def operands(layer: nn.Linear, part: slice, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of the outputs `part` in `dtype`, prepacked where the layer is."""
    weight, bias = layer.weight, layer.bias
    packs = _packs.get(weight)
    if packs is None:
        return weight[part].to(dtype), None if bias is None else bias[part].to(dtype)
    packed = packs.get(weight, (part.start, part.stop, dtype), lambda: _pack(weight[part].to(dtype)))
    if bias is None or not bias.is_cuda:
        return packed, None if bias is None else bias[part].to(dtype)
    return packed, packs.get(bias, (part.start, part.stop, dtype, "bias"), lambda: bias[part].to(dtype))


def _pack(weight: Tensor) -> Tensor:
    return weight if weight.is_cuda else torch.ops.mkldnn._reorder_linear_weight(weight, _PACKED_ROWS)
