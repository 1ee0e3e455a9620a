"""Which tokens stay, for reductions that know it before attention is computed, and for the kernels that use it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Selection:
    """The tokens that stay, where they are known before their attention is computed.

    Attributes:
        kept: Positions of the tokens that stay, the prefix first, [B, M].
        fused: Weights of one more token Σ wᵢ xᵢ appended to them, [B, N]; None for none.
    """

    kept: Tensor
    fused: Tensor | None = None

    def of(self, x: Tensor) -> Tensor:
        """The selected rows of x [B, N, C]: [B, M, C], or [B, M + 1, C] with a fused one."""
        rows = take(x, self.kept)
        if self.fused is None:
            return rows
        return torch.cat([rows, (self.fused.to(x.dtype).unsqueeze(1) @ x).to(x.dtype)], dim=1)


def exact(x: Tensor) -> AbstractContextManager[None]:
    """Turn autocast off on the device of x, so that arithmetic runs in the precision of its operands."""
    return nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False)


def take(x: Tensor, index: Tensor) -> Tensor:
    """The tokens [B, M, C] of x [B, N, C] at `index` [B, M]."""
    return x.gather(1, index.unsqueeze(-1).expand(-1, -1, x.shape[-1]))
