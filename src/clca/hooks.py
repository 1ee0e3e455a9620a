"""What others have attached to a module, for code that computes a module's result without calling it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook


def has_hooks(module: nn.Module) -> bool:
    """Whether this module has what others do not: a hook, a parametrisation, a forward in place of its class's."""
    return _has_own_hooks(module) or is_replaced(module) or hasattr(module, "parametrizations")


def is_hooked(module: nn.Module) -> bool:
    """Whether a call of it would run hooks, its own or those of every module."""
    return _has_own_hooks(module) or has_global_hooks()


def is_replaced(module: nn.Module) -> bool:
    """Whether this one module has another forward than its class, as accelerate's offloading gives it."""
    return "forward" in module.__dict__


def has_global_hooks() -> bool:
    """Whether every module's call runs a hook; a counter of FLOPs is one who sets such."""
    return _has_any_global_hook()


def _has_own_hooks(module: nn.Module) -> bool:
    hooks = module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks
    return any(map(bool, hooks))


def with_hooks(module: nn.Module, forward: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """`forward(x)` in place of the module's own forward, with the hooks that a call of the module runs.

    The hooks are handed a twin that shares the module's parameters and parts: were the forward of the module itself
    replaced meanwhile, other threads would call it too.
    """
    if not is_hooked(module):
        return forward(x)
    twin: Any = object.__new__(type(module))
    twin.__dict__ = {**module.__dict__, "forward": forward, "_compiled_call_impl": None}
    return twin(x)
