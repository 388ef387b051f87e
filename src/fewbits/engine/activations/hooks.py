"""Quantized inputs and outputs of modules: hooks, and the grids of a file in a network.

A hook sits on a layer, or on a ReLU: quantizing the input of a ReLU on a grid from zero up is
quantizing its output. A module that is called several times in a forward pass has a grid for each
call (:class:`~fewbits.coded.ActivationSite`); the network's own pre-hook starts the count anew.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from ...coded import ActivationGrid, ActivationSite
from ...errors import ModelError

__all__ = [
    "FixedInput",
    "InputHook",
    "OutputHook",
    "apply_grid",
    "check_inputs",
    "count_inputs",
    "hooks_of",
    "install_inputs",
    "load_inputs",
    "remove_inputs",
]

Change: TypeAlias = Callable[[Tensor], Tensor]


def apply_grid(values: Tensor, grid: ActivationGrid) -> Tensor:
    """Return ``values`` on the levels of ``grid``, in their own dtype; see SPEC.md, 2.4."""
    device = values.device
    width = torch.promote_types(values.dtype, torch.float32)
    with torch.autocast(device.type, enabled=False):
        step = torch.full((), float(grid.step), device=device, dtype=width)
        index = (values.to(width) / step).round() + grid.zero
        return ((index.clamp(grid.low, grid.high) - grid.zero) * step).to(values.dtype)


class FixedInput:
    """Puts inputs on a grid that stays as it is."""

    def __init__(self, grid: ActivationGrid) -> None:
        self.grid = grid

    def __call__(self, values: Tensor) -> Tensor:
        """Return the levels of ``values``."""
        return apply_grid(values, self.grid)


class _Hook:
    """Changes a tensor, by the number of the call.

    Attributes:
        changes: by number of the call, from 0 in every forward pass; under None for all calls. What
            is not there stays as it is.
        calls: how often the module was called in this pass; None outside of one.
    """

    def __init__(self, changes: Mapping[int | None, Change]) -> None:
        self.changes = changes
        self.calls: int | None = None

    def _next(self) -> Change | None:
        if None in self.changes or not self.changes:
            return self.changes.get(None)
        if self.calls is None:
            raise ModelError(
                "a module with a grid for each of its calls was called outside of a forward pass "
                "of the network, so that it can not be told which call this is. Call the network "
                "itself, not a method or a part of it, and train it without activation "
                "checkpointing; or give it a module for each call."
            )
        self.calls += 1
        return self.changes.get(self.calls - 1)


class InputHook(_Hook):
    """A forward pre-hook that changes the first tensor a module is called with."""

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Return what the module is called with instead; None for no change."""
        change = self._next()
        if change is None:
            return None
        if args and isinstance(args[0], Tensor):
            return (change(args[0]), *args[1:]), kwargs
        for name, value in kwargs.items():
            if isinstance(value, Tensor):
                return args, {**kwargs, name: change(value)}
        return None


class OutputHook(_Hook):
    """A forward hook that changes the tensor a module gives."""

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Tensor | None:
        """Return what the module gives instead; None for no change."""
        change = self._next()
        return None if change is None or not isinstance(output, Tensor) else change(output)


class _Pass:
    """Hooks of the network: calls of its modules are counted in each of its forward passes."""

    def __init__(self, hooks: list[_Hook]) -> None:
        self.hooks = hooks

    def begin(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """Count from zero."""
        for hook in self.hooks:
            hook.calls = 0

    def end(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Count no more."""
        for hook in self.hooks:
            hook.calls = None


def check_inputs(model: nn.Module, names: Iterable[str]) -> None:
    """Refuse sites of modules that the network does not have, or has as one (ModelError)."""
    modules = dict(model.named_modules(remove_duplicate=False))
    first: dict[tuple[int, int | None, bool], str] = {}
    for name in names:
        place = ActivationSite.of(name, modules)
        if place.module not in modules:
            raise ModelError(
                f"the quantized {'output' if place.output else 'input'} {name!r} is of a module "
                "that the network does not have. Build the network with the settings it was "
                "compressed with."
            )
        other = first.setdefault((id(modules[place.module]), place.call, place.output), name)
        if other != name:
            raise ModelError(
                f"{other!r} and {name!r} have quantized inputs or outputs of their own in the "
                "file, and are one module in the network. Build it with a module for each."
            )


def install_inputs(model: nn.Module, changes: Mapping[str, Change]) -> None:
    """Let modules of ``model`` see and give changed tensors; ``changes`` by site. Replaces earlier.

    Raises:
        ModelError: a site's module is not in the network. ``model`` is unchanged.
    """
    by_module: dict[tuple[int, bool], dict[int | None, Change]] = {}
    modules = dict(model.named_modules(remove_duplicate=False))
    known = {id(module): module for module in modules.values()}
    check_inputs(model, changes)
    for name, change in changes.items():
        place = ActivationSite.of(name, modules)
        key = (id(modules[place.module]), place.output)
        by_module.setdefault(key, {})[place.call] = change
    remove_inputs(model)
    counting: list[_Hook] = []
    for (number, output), calls in by_module.items():
        hook = _install(known[number], calls, output)
        if None not in calls:
            counting.append(hook)
    if counting:
        counted = _Pass(counting)
        model.register_forward_pre_hook(counted.begin, prepend=True)
        model.register_forward_hook(counted.end)
    if changes:
        _forget_compiled()


def _forget_compiled() -> None:
    """Let torch.compile look again: code that it made for such a class knows of no hooks.

    By default it does not check whether hooks have come since.
    """
    dynamo = sys.modules.get("torch._dynamo")
    if dynamo is not None:
        dynamo.reset()


def _install(module: nn.Module, changes: Mapping[int | None, Change], output: bool) -> _Hook:
    if output:
        after = OutputHook(changes)
        module.register_forward_hook(after)
        return after
    before = InputHook(changes)
    module.register_forward_pre_hook(before, with_kwargs=True)
    return before


def load_inputs(model: nn.Module, grids: Mapping[str, ActivationGrid]) -> None:
    """Quantize inputs and outputs of ``model`` as a file says; without grids, remove what was."""
    install_inputs(model, {name: FixedInput(grid) for name, grid in grids.items()})


def remove_inputs(model: nn.Module) -> int:
    """Let modules see their inputs, and give their outputs, as they are.

    Returns:
        How many of them a file had put on grids.
    """
    found = 0
    for module in model.modules():
        before, after = module._forward_pre_hooks, module._forward_hooks
        for key in [key for key, hook in before.items() if _is_ours(hook)]:
            found += _is_fixed(before.pop(key))
            module._forward_pre_hooks_with_kwargs.pop(key, None)
        for key in [key for key, hook in after.items() if _is_ours(hook)]:
            found += _is_fixed(after.pop(key))
    return found


def count_inputs(model: nn.Module) -> int:
    """Return how many inputs and outputs of modules a file has put on grids."""
    modules = list(model.modules())
    hooks = [hook for module in modules for hook in module._forward_pre_hooks.values()]
    hooks += [hook for module in modules for hook in module._forward_hooks.values()]
    return sum(map(_is_fixed, hooks))


def _is_fixed(hook: object) -> bool:
    changes = hook.changes.values() if isinstance(hook, _Hook) else ()
    return any(isinstance(change, FixedInput) for change in changes)


def _is_ours(hook: object) -> bool:
    return isinstance(getattr(hook, "__self__", hook), (_Hook, _Pass))


def hooks_of(model: nn.Module) -> dict[str, InputHook]:
    """Return the hooks on inputs of a network by module name."""
    return {
        name: hook
        for name, module in model.named_modules(remove_duplicate=False)
        for hook in module._forward_pre_hooks.values()
        if isinstance(hook, InputHook)
    }
