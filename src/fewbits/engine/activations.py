"""Quantized inputs of layers: forward pre-hooks, and the grids of a file in a network.

A hook sits on a layer, or on a ReLU: quantizing the input of a ReLU on a grid from zero up is
quantizing its output. A module that is called several times in a forward pass has a grid for each
call, under the name ``module@k``; the network's own pre-hook starts the count anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from ..coded import ActivationGrid
from ..errors import ModelError

__all__ = [
    "FixedInput",
    "InputHook",
    "apply_grid",
    "check_inputs",
    "hooks_of",
    "install_inputs",
    "load_inputs",
    "remove_inputs",
    "site_name",
    "split_site",
]

Change: TypeAlias = Callable[[Tensor], Tensor]


def apply_grid(values: Tensor, grid: ActivationGrid) -> Tensor:
    """Return ``values`` on the levels of ``grid``, in their own dtype; see SPEC.md, 2.4."""
    device = values.device
    with torch.autocast(device.type, enabled=False):
        step = torch.full((), float(grid.step), device=device)
        index = (values.float() / step).round() + grid.zero
        return ((index.clamp(grid.low, grid.high) - grid.zero) * step).to(values.dtype)


class FixedInput:
    """Puts inputs on a grid that stays as it is."""

    def __init__(self, grid: ActivationGrid) -> None:
        self.grid = grid

    def __call__(self, values: Tensor) -> Tensor:
        """Return the levels of ``values``."""
        return apply_grid(values, self.grid)


class InputHook:
    """A forward pre-hook that changes the first tensor a module is called with.

    Attributes:
        changes: by number of the call; None there leaves the input as it is. One entry is for all
            calls.
    """

    def __init__(self, changes: list[Change | None]) -> None:
        self.changes = changes
        self.calls = 0

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Return what the module is called with instead; None for no change."""
        change = self.changes[0]
        if len(self.changes) > 1:
            change = self.changes[self.calls % len(self.changes)]
            self.calls += 1
        if change is None:
            return None
        if args and isinstance(args[0], Tensor):
            return (change(args[0]), *args[1:]), kwargs
        for name, value in kwargs.items():
            if isinstance(value, Tensor):
                return args, {**kwargs, name: change(value)}
        return None


class _Restart:
    """A pre-hook of the network: calls are counted from zero in every forward pass."""

    def __init__(self, hooks: list[InputHook]) -> None:
        self.hooks = hooks

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        for hook in self.hooks:
            hook.calls = 0


def site_name(module: str, call: int, calls: int) -> str:
    """Return the name of a quantized input: the module's, with the call where there are several."""
    return module if calls == 1 else f"{module}@{call}"


def split_site(name: str) -> tuple[str, int | None]:
    """Return the module of a site, and the number of the call; None for all calls."""
    module, mark, call = name.rpartition("@")
    return (module, int(call)) if mark and call.isdecimal() else (name, None)


def check_inputs(model: nn.Module, names: Iterable[str]) -> None:
    """Refuse sites of modules that the network does not have (ModelError)."""
    modules = dict(model.named_modules())
    for name in names:
        if name not in modules and split_site(name)[0] not in modules:
            raise ModelError(
                f"the quantized input {name!r} is of a module that the network does not have. "
                "Build the network with the settings it was compressed with."
            )


def install_inputs(model: nn.Module, changes: Mapping[str, Change]) -> None:
    """Let layers of ``model`` see changed inputs; ``changes`` by site. Replaces earlier ones.

    Raises:
        ModelError: a site's module is not in the network. ``model`` is unchanged.
    """
    by_module: dict[str, dict[int | None, Change]] = {}
    modules = dict(model.named_modules())
    check_inputs(model, changes)
    for name, change in changes.items():
        path, call = (name, None) if name in modules else split_site(name)
        by_module.setdefault(path, {})[call] = change
    remove_inputs(model)
    counting = []
    for path, known in by_module.items():
        if None in known:
            ordered: list[Change | None] = [known[None]]
        else:
            calls = 1 + max(call for call in known if call is not None)
            # One call more than is known: what comes after stays as it is.
            ordered = [known.get(call) for call in range(calls)] + [None]
        hook = InputHook(ordered)
        modules[path].register_forward_pre_hook(hook, with_kwargs=True)
        if len(ordered) > 1:
            counting.append(hook)
    if counting:
        model.register_forward_pre_hook(_Restart(counting), prepend=True)


def load_inputs(model: nn.Module, grids: Mapping[str, ActivationGrid]) -> None:
    """Quantize the inputs of ``model`` as a file says; without grids, remove what there was."""
    install_inputs(model, {name: FixedInput(grid) for name, grid in grids.items()})


def remove_inputs(model: nn.Module) -> None:
    """Let all layers see their inputs as they are."""
    for module in model.modules():
        hooks = module._forward_pre_hooks
        for key in [key for key, hook in hooks.items() if isinstance(hook, (InputHook, _Restart))]:
            del hooks[key]
            module._forward_pre_hooks_with_kwargs.pop(key, None)


def hooks_of(model: nn.Module) -> dict[str, InputHook]:
    """Return the hooks of a network by module name."""
    return {
        name: hook
        for name, module in model.named_modules()
        for hook in module._forward_pre_hooks.values()
        if isinstance(hook, InputHook)
    }
