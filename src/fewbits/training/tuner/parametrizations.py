"""Stock parametrizations whose state dict has the names of the float network."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

from torch import nn
from torch.nn.utils import parametrize

from ...engine.layers.targets import Target
from ...errors import ConfigError, ModelError

__all__ = ["find_parameter", "install", "remove"]


def find_parameter(model: nn.Module, target: Target) -> nn.Parameter:
    """Return the parameter of a target.

    Raises:
        ModelError: it is a buffer, or made by a parametrization, and no optimizer trains it.
    """
    path, _, leaf = target.name.rpartition(".")
    found = model.get_submodule(path)._parameters.get(leaf)
    if not isinstance(found, nn.Parameter):
        raise ModelError(
            f"weight {target.name!r} is no parameter of its module, so it cannot be trained. "
            "Remove what makes it (weight norm, pruning), or keep it: keep=[...]."
        )
    return found


def install(model: nn.Module, name: str, parametrization: nn.Module) -> None:
    """Let the parameter ``name`` of ``model`` be seen through ``parametrization``.

    The parameter object stays the one that optimizers know. Only ``named_parameters`` tells of it:
    there the parameter is called ``...parametrizations.NAME.original``.

    Raises:
        ConfigError: the module reads its parameters past its attributes (recurrent layers), or has
            the name that torch needs.
    """
    path, _, leaf = name.rpartition(".")
    module = model.get_submodule(path)
    if isinstance(module, nn.RNNBase):
        raise ConfigError(
            f"weight {name!r}: a {type(module).__name__} computes with its parameters past any "
            "parametrization. Keep this layer: keep=[...]; HEMP with forward='continuous' takes it."
        )
    if not parametrize.is_parametrized(module) and hasattr(module, "parametrizations"):
        raise ConfigError(
            f"weight {name!r}: its {type(module).__name__} has an attribute 'parametrizations' of "
            "its own, the name under which torch keeps what a training puts on a weight. Rename it."
        )
    order = _order(module)
    parametrize.register_parametrization(module, leaf, parametrization, unsafe=True)
    module._register_state_dict_hook(_Renamed(leaf, order))  # type: ignore[no-untyped-call]
    module._register_load_state_dict_pre_hook(  # type: ignore[no-untyped-call]
        _Loaded(leaf), with_module=True
    )


def remove(model: nn.Module, parameter: str) -> None:
    """Undo :func:`install`: the parameter is a plain one again, with the values that it has."""
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
    """A state-dict hook: the original under its plain name and in its place, the rest left out."""

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
    """A hook before loading: gives the parametrized module what it looks for."""

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
    """Return a copy of the class that a parametrized module shares with deep copies of itself.

    Removing a parametrization deletes a property of the class, and would break the copies.
    """
    body = {k: v for k, v in vars(shared).items() if k not in ("__dict__", "__weakref__")}
    return type(shared.__name__, shared.__bases__, body)


def _order(module: nn.Module) -> list[str]:
    """Return the names of the parameters as they were before the first installation."""
    known = [h.order for h in module._state_dict_hooks.values() if isinstance(h, _Renamed)]
    return known[0] if known else list(module._parameters)


def _is_ours(hook: Any, leaf: str) -> bool:
    inner = getattr(hook, "hook", hook)
    return isinstance(inner, (_Renamed, _Loaded)) and inner.leaf == leaf
