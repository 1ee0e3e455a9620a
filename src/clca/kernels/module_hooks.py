"""What others have attached to a module, for code that computes a module's result without calling it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
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
    if torch.compiler.is_compiling():
        return _traced(module, forward, x)
    twin: Any = object.__new__(type(module))
    twin.__dict__ = {**module.__dict__, "forward": forward, "_compiled_call_impl": None}
    return twin(x)


def _traced(module: nn.Module, forward: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """`with_hooks` for the compiler, which sees no hooks of a module that was not there before; forward hooks alone."""
    given: Any = (x,)
    for key, hook in module._forward_pre_hooks.items():
        if key in module._forward_pre_hooks_with_kwargs:
            told = hook(module, given, {})
            given = given if told is None else told[0]
        else:
            told = hook(module, given)
            given = given if told is None else told if isinstance(told, tuple) else (told,)
    out = forward(*given)
    for key, hook in module._forward_hooks.items():
        told = hook(module, given, {}, out) if key in module._forward_hooks_with_kwargs else hook(module, given, out)
        out = out if told is None else told
    return out
