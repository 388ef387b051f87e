"""Install parametrizations of torch so that the state dict keeps the names of the network."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

from torch import nn
from torch.nn.utils import parametrize

from ...engine.layers.targets import Target
from ...errors import ConfigError, ModelError

__all__ = ["bypasses", "find_parameter", "install", "remove"]


def bypasses(model: nn.Module, name: str) -> bool:
    """Return whether the module of a parameter, a recurrent layer, bypasses parametrizations."""
    return isinstance(model.get_submodule(name.rpartition(".")[0]), nn.RNNBase)


def find_parameter(model: nn.Module, target: Target) -> nn.Parameter:
    """Return the parameter of a target.

    Raises:
        ModelError: it is a buffer or computed by a parametrization, so no optimizer trains it.
    """
    path, _, leaf = target.name.rpartition(".")
    parameter = model.get_submodule(path)._parameters.get(leaf)
    if not isinstance(parameter, nn.Parameter):
        raise ModelError(
            f"weight {target.name!r} is not a parameter of its module, so it cannot be trained. "
            "Remove what computes it (weight norm, pruning), or leave it in float: keep=[...]."
        )
    return parameter


def install(model: nn.Module, name: str, parametrization: nn.Module) -> None:
    """Apply ``parametrization`` to the parameter ``name`` of ``model``.

    The parameter object stays the same, so existing optimizers remain valid. Only
    ``named_parameters`` changes: it calls the parameter ``...parametrizations.NAME.original``.

    Raises:
        ConfigError: the module bypasses parametrizations (recurrent layers), or already uses the
            attribute that torch needs.
    """
    path, _, leaf = name.rpartition(".")
    module = model.get_submodule(path)
    if bypasses(model, name):
        raise ConfigError(
            f"weight {name!r}: a {type(module).__name__} bypasses parametrizations of its weights. "
            "Leave this layer in float with keep=[...], or use HEMP with forward='continuous'."
        )
    if not parametrize.is_parametrized(module) and hasattr(module, "parametrizations"):
        raise ConfigError(
            f"weight {name!r}: its {type(module).__name__} already has an attribute "
            "'parametrizations', which torch needs for training. Rename the attribute."
        )
    order = _order(module)
    parametrize.register_parametrization(module, leaf, parametrization, unsafe=True)
    module._register_state_dict_hook(_Renamed(leaf, order))  # type: ignore[no-untyped-call]
    module._register_load_state_dict_pre_hook(  # type: ignore[no-untyped-call]
        _Loaded(leaf), with_module=True
    )


def remove(model: nn.Module, parameter: str) -> None:
    """Undo :func:`install`: the parameter is a plain one again and keeps its values."""
    path, _, leaf = parameter.rpartition(".")
    module = model.get_submodule(path)
    order = _order(module)
    module.__class__ = _own_class(type(module))
    parametrize.remove_parametrizations(module, leaf, leave_parametrized=False)
    for name in sorted(module._parameters, key=order.index):
        module._parameters[name] = module._parameters.pop(name)
    for table in (module._state_dict_hooks, module._load_state_dict_pre_hooks):
        for key in [key for key, hook in table.items() if _is_ours(hook, leaf)]:
            del table[key]


class _Renamed:
    """A state-dict hook that stores the original parameter under its plain name and position."""

    def __init__(self, leaf: str, order: list[str]) -> None:
        self.leaf = leaf
        self.order = order

    def __call__(
        self, module: nn.Module, state: MutableMapping[str, Any], prefix: str, metadata: object
    ) -> None:
        inner = f"{prefix}parametrizations.{self.leaf}."
        original = state.pop(inner + "original", None)
        for key in [key for key in state if key.startswith(inner)]:
            del state[key]
        if original is None:
            return
        state[prefix + self.leaf] = original
        own = [prefix + name for name in self.order if prefix + name in state]
        rest = [key for key in state if key.startswith(prefix) and key not in own]
        for key in (*own, *rest):
            state[key] = state.pop(key)


class _Loaded:
    """A hook before loading that provides the names a parametrized module expects."""

    def __init__(self, leaf: str) -> None:
        self.leaf = leaf

    def __call__(
        self, module: nn.Module, state: MutableMapping[str, Any], prefix: str, *others: object
    ) -> None:
        if prefix + self.leaf in state:
            inside = module.get_submodule(f"parametrizations.{self.leaf}")
            inner = f"{prefix}parametrizations.{self.leaf}."
            own = inside.state_dict(prefix=inner)
            state.update({**own, inner + "original": state.pop(prefix + self.leaf)})


def _own_class(shared: type[nn.Module]) -> type[nn.Module]:
    """Return a copy of a module's class, which deep copies of the module share.

    Removing a parametrization deletes a property of the class, which would break these copies.
    """
    body = {k: v for k, v in vars(shared).items() if k not in ("__dict__", "__weakref__")}
    return type(shared.__name__, shared.__bases__, body)


def _order(module: nn.Module) -> list[str]:
    """Return the names of the parameters before the first installation."""
    known = [h.order for h in module._state_dict_hooks.values() if isinstance(h, _Renamed)]
    return known[0] if known else list(module._parameters)


def _is_ours(hook: Any, leaf: str) -> bool:
    inner = getattr(hook, "hook", hook)
    return isinstance(inner, (_Renamed, _Loaded)) and inner.leaf == leaf
