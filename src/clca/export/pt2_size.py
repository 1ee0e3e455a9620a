"""Estimate the memory and operations of a program without running it: a file may require tensors of any size."""

from __future__ import annotations

import math
import weakref
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from clca.models.cost import flop_counter

_LEAST, _PER_PIXEL, _MOST = 256 * 2**20, 8 * 2**10, 16 * 2**30
"""Bytes of memory, besides the weights, that a program may need for an image. The peak is where all pairs of tokens are
compared: ViT-B with patches of 8 pixels has 12 × 3137² scores per block at 448 × 448, 450 MiB of 1.8 GiB allowed."""

_PER_ELEMENT = 10
_OPERATIONS = 3 * 10**13
"""Operations that a program may need for an image: multiply-accumulates of matrix products and convolutions, plus
`_PER_ELEMENT` for each element that any operator reads or writes. For some backbones of timm, the counts are:

| backbone | pixels | multiply-accumulates | elements |
| --- | --- | --- | --- |
| deit3_small_patch16_224 | 448 | 2.3e10 | 9.4e8 |
| vit_large_patch14_clip_336 | 518 | 5.1e11 | 1.2e10 |
| vit_giant_patch14_reg4_dinov2 | 518 | 1.8e12 | 3.3e10 |
| vit_base_patch8_224 | 1024 | 6.3e12 | 4.0e11 |
"""

_BATCHES = (2, 64)  # two sizes show what grows faster than the batch


class TooLarge(Exception):
    """A program needs more than a model on such images does, or does not return logits."""


class _Counter(TorchDispatchMode):
    """Counts the bytes of live tensors, and the elements read and written."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self._limit, self._now = limit, 0
        self._users: dict[int, int] = {}
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        written = [value for value in tree_leaves(result) if isinstance(value, Tensor)]
        for value in written:
            self._count(value)
        # A pooling operator reads a window for each element.
        times = math.prod(args[1]) if func is torch.ops.aten.avg_pool2d.default else 1
        read = (value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor))
        self.elements += times * sum(value.numel() for value in written) + sum(value.numel() for value in read)
        return result

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        size, key = storage.nbytes(), storage._cdata
        # An operator may copy an expanded tensor temporarily.
        if max(self._now + size, tensor.numel() * tensor.element_size()) > self._limit:
            raise TooLarge(f"tensors of {max(size, tensor.numel() * tensor.element_size()):.2g} bytes")
        self._now += 0 if key in self._users else size
        self._users[key] = self._users.get(key, 0) + 1
        weakref.finalize(tensor, self._drop, key, size)

    def _drop(self, key: int, size: int) -> None:
        self._users[key] -= 1
        if not self._users[key]:
            self._now -= size
            del self._users[key]


def memory_limit(shape: tuple[int, ...]) -> int:
    """Bytes of memory, besides the weights, that a program may need for an image of shape [C, H, W]."""
    return min(_LEAST + _PER_PIXEL * shape[1] * shape[2], _MOST)


def check_operations(macs: int, elements: int, batch: int) -> None:
    """Refuse a program that needs many more operations than a model does.

    Args:
        macs: Multiply-accumulates of matrix products and convolutions.
        elements: Elements that all operators read and write.
        batch: Number of images.

    Raises:
        TooLarge: It needs more than a model on such images does.
    """
    operations = (macs + _PER_ELEMENT * elements) / batch
    if operations > _OPERATIONS:
        raise TooLarge(f"{operations:.2g} operations per image")


def check_size(program: ExportedProgram, shape: tuple[int, ...], outputs: int, confidence: bool = False) -> None:
    """Run a program on fake tensors, and refuse it if it needs more memory or operations than such a model does.

    Args:
        program: A program on images.
        shape: Shape of an image, [C, H, W].
        outputs: Number of logits; 0 if any number is accepted.
        confidence: Whether it also returns one number for each image.

    Raises:
        TooLarge: It needs too much memory or time for its images.
        Exception: An operator was called with inconsistent arguments.
    """
    limit = memory_limit(shape)
    weights = program.state_dict
    for batch in _BATCHES:
        mode = FakeTensorMode()
        inputs = [
            mode.from_tensor(
                torch.zeros(1).expand(batch, *shape)
                if spec.kind is InputKind.USER_INPUT
                else weights[str(spec.target)].detach()
            )
            for spec in program.graph_signature.input_specs
        ]
        with torch.no_grad(), mode, flop_counter() as flops, _Counter(batch * limit) as counter:
            logits, *others = torch.fx.Interpreter(program.graph_module).run(*inputs)
        check_operations(flops.get_total_flops() // 2, counter.elements, batch)
        if logits.dtype != torch.float32 or logits.ndim != 2 or logits.shape[0] != batch:
            raise TooLarge(f"logits {[*logits.shape]} for {batch} images")
        if [(other.dtype, *other.shape) for other in others] != [(torch.float32, batch)] * confidence:
            raise TooLarge(f"{len(others)} more results for {batch} images")
        if outputs and logits.shape[1] != outputs:
            raise TooLarge(f"{logits.shape[1]} logits for {outputs} classes")
