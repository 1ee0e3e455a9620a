"""`torch.compile` for a `TokenReducedViT`: one graph without breaks, for every batch size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
import torch.fx.experimental._config
from torch import Tensor, nn

from clca.errors import WorkError

_MOST_COMPILATIONS = 200  # more than a model has keep rates, in training and evaluation


def compiled_call(module: nn.Module, **options: Any) -> Callable[[Tensor], Any]:
    """The module's call, compiled once for all batch sizes.

    Training, evaluation, each precision and each keep rate are compiled once each.

    Args:
        module: Takes images [B, 3, H, W].
        options: For `torch.compile`; `fullgraph` is on by default.
    """
    # Their types do not declare `patch`.
    shapes, dynamo = cast(Any, torch.fx.experimental._config), cast(Any, torch._dynamo.config)
    call = torch.compile(module._call_impl, **{"fullgraph": True, **options})

    def run(images: Tensor) -> Any:
        torch._dynamo.maybe_mark_dynamic(images, 0)
        # Without the first a batch of one is specialised and compiled separately; without the second a keep rate that
        # was changed once becomes a variable, and with it the number of tokens. The usual limit is eight compilations.
        settings = {"specialize_float": True, "recompile_limit": _MOST_COMPILATIONS}
        with shapes.patch(backed_size_oblivious=True), dynamo.patch(settings):
            try:
                return call(images)
            except torch._dynamo.exc.TorchDynamoException as error:
                with torch.no_grad():
                    module.forward(images)  # raises the model's own error if the images do not fit
                reason = (str(error).strip() or type(error).__name__).splitlines()[0]
                raise WorkError(f"torch.compile failed ({reason}): go on without --compile") from error

    return run
