"""Hooks that quantize inputs and outputs of modules, and loading a file's grids into a network.

A hook sits on a layer or on a ReLU: quantizing the input of a ReLU to an unsigned grid is the same
as quantizing its output. A module that is called several times in a forward pass has a grid for
each call (:class:`~fewbits.coded.ActivationSite`); a pre-hook of the network resets the count.
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
    """Quantize ``values`` to the levels of ``grid``, in their own dtype; see SPEC.md, 2.4."""
    device = values.device
    width = torch.promote_types(values.dtype, torch.float32)
    with torch.autocast(device.type, enabled=False):
        step = torch.full((), float(grid.step), device=device, dtype=width)
        index = (values.to(width) / step).round() + grid.zero
        return ((index.clamp(grid.low, grid.high) - grid.zero) * step).to(values.dtype)


class FixedInput:
    """Quantizes values to a fixed grid."""

    def __init__(self, grid: ActivationGrid) -> None:
        self.grid = grid

    def __call__(self, values: Tensor) -> Tensor:
        """Return ``values`` quantized to the grid."""
        return apply_grid(values, self.grid)


class _Hook:
    """Changes a tensor, depending on the number of the call.

    Attributes:
        changes: change by number of the call, from 0 in every forward pass, or under None for all
            calls. Calls without an entry are left unchanged.
        calls: number of calls so far in this forward pass; None outside of one.
    """

    def __init__(self, changes: Mapping[int | None, Change]) -> None:
        self.changes = changes
        self.calls: int | None = None

    def _next(self) -> Change | None:
        if None in self.changes or not self.changes:
            return self.changes.get(None)
        if self.calls is None:
            raise ModelError(
                "a module with a grid per call was called outside of a forward pass of the "
                "network, so the number of the call is unknown. Call the network itself rather "
                "than a method or part of it, and train it without activation checkpointing; or "
                "give it a separate module for each call."
            )
        self.calls += 1
        return self.changes.get(self.calls - 1)


class InputHook(_Hook):
    """A forward pre-hook that changes the first tensor argument of a module."""

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Return the changed arguments, or None for no change."""
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
    """A forward hook that changes the tensor output of a module."""

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Tensor | None:
        """Return the changed output, or None for no change."""
        change = self._next()
        return None if change is None or not isinstance(output, Tensor) else change(output)


class _CallCounter:
    """Hooks on the network that restart the count of calls in each of its forward passes."""

    def __init__(self, hooks: list[_Hook]) -> None:
        self.hooks = hooks

    def begin(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """Start counting at zero."""
        for hook in self.hooks:
            hook.calls = 0

    def end(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Stop counting."""
        for hook in self.hooks:
            hook.calls = None


def check_inputs(model: nn.Module, names: Iterable[str]) -> None:
    """Raise ModelError for sites whose modules are missing, or one module under two names."""
    modules = dict(model.named_modules(remove_duplicate=False))
    first: dict[tuple[int, int | None, bool], str] = {}
    for name in names:
        place = ActivationSite.of(name, modules)
        if place.module not in modules:
            raise ModelError(
                f"the quantized {'output' if place.output else 'input'} {name!r} belongs to a "
                "module that the network lacks. Build the network with the settings with which "
                "it was compressed."
            )
        other = first.setdefault((id(modules[place.module]), place.call, place.output), name)
        if other != name:
            raise ModelError(
                f"{other!r} and {name!r} have separate quantized inputs or outputs in the file, "
                "but are one module in the network. Build it with a module for each."
            )


def install_inputs(model: nn.Module, changes: Mapping[str, Change]) -> None:
    """Install hooks that change inputs and outputs of ``model``; ``changes`` by site.

    Replaces all hooks installed before.

    Raises:
        ModelError: the network lacks the module of a site. ``model`` is then unchanged.
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
        counted = _CallCounter(counting)
        model.register_forward_pre_hook(counted.begin, prepend=True)
        model.register_forward_hook(counted.end)
    if changes:
        _reset_compiled()


def _reset_compiled() -> None:
    """Make torch.compile recompile: compiled code ignores hooks that were added later.

    By default it does not check for new hooks.
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
    """Quantize inputs and outputs of ``model`` to a file's grids; without any, remove old hooks."""
    install_inputs(model, {name: FixedInput(grid) for name, grid in grids.items()})


def remove_inputs(model: nn.Module) -> int:
    """Remove all hooks that change inputs or outputs of modules.

    Returns:
        The number of those that came from a file's grids.
    """
    removed = 0
    for module in model.modules():
        before, after = module._forward_pre_hooks, module._forward_hooks
        for key in [key for key, hook in before.items() if _is_ours(hook)]:
            removed += _is_fixed(before.pop(key))
            module._forward_pre_hooks_with_kwargs.pop(key, None)
        for key in [key for key, hook in after.items() if _is_ours(hook)]:
            removed += _is_fixed(after.pop(key))
    return removed


def count_inputs(model: nn.Module) -> int:
    """Return how many inputs and outputs of modules are quantized to a file's grids."""
    modules = list(model.modules())
    hooks = [hook for module in modules for hook in module._forward_pre_hooks.values()]
    hooks += [hook for module in modules for hook in module._forward_hooks.values()]
    return sum(map(_is_fixed, hooks))


def _is_fixed(hook: object) -> bool:
    changes = hook.changes.values() if isinstance(hook, _Hook) else ()
    return any(isinstance(change, FixedInput) for change in changes)


def _is_ours(hook: object) -> bool:
    return isinstance(getattr(hook, "__self__", hook), (_Hook, _CallCounter))


def hooks_of(model: nn.Module) -> dict[str, InputHook]:
    """Return the input hooks of a network by module name."""
    return {
        name: hook
        for name, module in model.named_modules(remove_duplicate=False)
        for hook in module._forward_pre_hooks.values()
        if isinstance(hook, InputHook)
    }
