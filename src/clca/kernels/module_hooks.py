"""Hooks and other changes users attach to a module, for code that computes its result without calling it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook


def has_hooks(module: nn.Module) -> bool:
    """Whether the module has a hook, a parametrisation, or a forward that is not that of its class."""
    return _has_own_hooks(module) or is_replaced(module) or hasattr(module, "parametrizations")


def is_hooked(module: nn.Module) -> bool:
    """Whether a call of the module runs hooks, its own or global ones."""
    return _has_own_hooks(module) or has_global_hooks()


def is_replaced(module: nn.Module) -> bool:
    """Whether the forward of this instance is replaced, as by accelerate's offloading."""
    return "forward" in module.__dict__


def has_global_hooks() -> bool:
    """Whether there are hooks for the calls of all modules, as FLOP counters register them."""
    return _has_any_global_hook()


def _has_own_hooks(module: nn.Module) -> bool:
    hooks = module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks
    return any(map(bool, hooks))


def with_hooks(module: nn.Module, forward: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """`forward(x)` in place of the module's own forward, with the hooks that a call of the module runs.

    The hooks receive a copy that shares the module's parameters and submodules: if the forward of the module itself
    were replaced meanwhile, other threads would call it too.
    """
    if not is_hooked(module):
        return forward(x)
    if torch.compiler.is_compiling():
        return _traced(module, forward, x)
    copy: Any = object.__new__(type(module))
    copy.__dict__ = {**module.__dict__, "forward": forward, "_compiled_call_impl": None}
    return copy(x)


def _traced(module: nn.Module, forward: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """`with_hooks` for the compiler, which ignores hooks of a module created while tracing; forward hooks alone."""
    args: Any = (x,)
    for key, hook in module._forward_pre_hooks.items():
        if key in module._forward_pre_hooks_with_kwargs:
            result = hook(module, args, {})
            args = args if result is None else result[0]
        else:
            result = hook(module, args)
            args = args if result is None else result if isinstance(result, tuple) else (result,)
    out = forward(*args)
    for key, hook in module._forward_hooks.items():
        result = hook(module, args, {}, out) if key in module._forward_hooks_with_kwargs else hook(module, args, out)
        out = out if result is None else result
    return out
