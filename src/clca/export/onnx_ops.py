"""Translations of torch operators, used by reductions, that the ONNX exporter lacks or that it rounds differently."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """The `custom_translation_table` of `torch.onnx.export`: torch operator → function that builds its graph."""
    from onnx_ir import DataType
    from onnxscript import opset18

    op: Any = opset18  # its annotations accept graph values only as constants

    def sort(self, stable=None, dim=-1, descending=False):
        """TopK of all elements; ONNX puts the lower index first among equal values, so it is always stable."""
        # ONNX Runtime supports few integer types.
        supported = (DataType.FLOAT, DataType.DOUBLE, DataType.FLOAT16, DataType.INT64, DataType.INT32)
        values = self if self.dtype in supported else op.Cast(self, to=DataType.INT32.value)
        size = op.Gather(op.Shape(self), op.Constant(value_ints=[dim]), axis=0)
        values, indices = op.TopK(values, size, axis=dim, largest=int(descending), sorted=1)
        return (values if self.dtype in supported else op.Cast(values, to=self.dtype.value)), indices

    def searchsorted(sorted_sequence, self, out_int32=False, right=False, side=None, sorter=None):
        """Count the values of the sorted sequence that are below each value (or, from the right, not above it)."""
        if sorter is not None:
            raise NotImplementedError("searchsorted with a sorter")
        sequence = op.Unsqueeze(sorted_sequence, op.Constant(value_ints=[-2]))
        value = op.Unsqueeze(self, op.Constant(value_ints=[-1]))
        compare = op.LessOrEqual if right or side == "right" else op.Less
        below = op.Cast(compare(sequence, value), to=DataType.INT32.value)
        count = op.ReduceSum(below, op.Constant(value_ints=[-1]), keepdims=0)
        return count if out_int32 else op.Cast(count, to=DataType.INT64.value)

    def cumsum(self, dim, dtype=-1):
        """Accumulate in double precision, as torch does on the CPU: ATS compares the sums with its sample points."""
        if dtype != -1:
            self = op.Cast(self, to=dtype)
        axis = op.Constant(value_int=dim)
        if self.dtype != DataType.FLOAT:
            return op.CumSum(self, axis)
        return op.Cast(op.CumSum(op.Cast(self, to=DataType.DOUBLE.value), axis), to=DataType.FLOAT.value)

    aten = torch.ops.aten
    return {aten.sort.stable: sort, aten.searchsorted.Tensor: searchsorted, aten.cumsum.default: cumsum}
