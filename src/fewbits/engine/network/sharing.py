"""Weights that two networks share until one of them changes: memory is used once, not twice.

A copy made by :func:`~.copying.copied` with ``shared`` names has parameters of its own over the
memory of the original. Replacing the values of such a parameter (:func:`assign`) leaves the
original as it is. A forward pass that writes to its weights would not: :class:`CopyOnWrite` gives
a weight memory of its own before it is written to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ...errors import ModelError
from .copying import copied

__all__ = ["CopyOnWrite", "assign", "assign_state", "shareable", "sharing"]

_ITEMS = ("__setitem__", "__iadd__", "__isub__", "__imul__", "__itruediv__", "__ipow__")


def shareable(network: nn.Module, names: Iterable[str]) -> dict[str, nn.Parameter]:
    """Return those of the named parameters whose memory two networks can share."""
    known = {name: _parameter(network, name) for name in names}
    return {name: value for name, value in known.items() if value is not None and _is_plain(value)}


def sharing(network: nn.Module, names: Iterable[str]) -> nn.Module:
    """Return a copy whose parameters ``names`` share memory with those of ``network``.

    Everything else is copied. Parameters that cannot be shared (subclasses, inference tensors) are
    copied too.

    Raises:
        ModelError: an attribute cannot be copied; names it and its module.
    """
    memo: dict[int, Any] = {}
    for parameter in shareable(network, names).values():
        memo[id(parameter)] = nn.Parameter(parameter.detach(), parameter.requires_grad)
    return copied(network, memo)


def assign(parameter: Tensor, values: Tensor) -> None:
    """Give a parameter other values in new memory of the same strides; the old stays as it is."""
    with torch.no_grad():
        parameter.data = torch.empty_like(parameter).copy_(values)


def assign_state(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Set parameters and buffers of one module (not of its children), sharing no memory."""
    for name, values in state.items():
        if module._parameters.get(name) is not None:
            assign(module._parameters[name], values)  # type: ignore[arg-type]
        elif module._buffers.get(name) is not None:
            module._buffers[name] = values.clone()


class CopyOnWrite(TorchFunctionMode):
    """Copies a shared weight when a torch function is about to write to it.

    Attributes:
        written: names of the weights that have been copied.
    """

    def __init__(self, network: nn.Module, names: Iterable[str]) -> None:
        super().__init__()
        self.written: set[str] = set()
        self._shared = {
            _address(parameter): (name, parameter)
            for name, parameter in shareable(network, names).items()
        }

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call the function, on copies of the shared weights that it writes to."""
        given = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        if (name.endswith("_") and not name.endswith("__")) or name in _ITEMS or "out" in given:
            args = tuple(self._own(value) for value in args)
            given = {key: self._own(value) for key, value in given.items()}
        return func(*args, **given)

    def _own(self, value: Any) -> Any:
        if not isinstance(value, Tensor) or _address(value) not in self._shared:
            return value
        name, parameter = self._shared.pop(_address(value))
        if value is not parameter and _form(value) != _form(parameter):
            raise ModelError(
                f"the forward pass writes to a part of the weight {name!r}, which belongs to the "
                "caller's network. Let it write to a buffer, or to all of the weight."
            )
        self.written.add(name)
        with torch._C.DisableTorchFunctionSubclass():
            parameter.data = parameter.data.clone()
        return value if value is parameter else parameter.data


def _parameter(network: nn.Module, name: str) -> nn.Parameter | None:
    try:
        return network.get_parameter(name)
    except AttributeError:  # a name that a state-dict hook chose
        return None


def _is_plain(parameter: nn.Parameter) -> bool:
    plain = type(parameter) is nn.Parameter and parameter.layout == torch.strided
    return plain and not (parameter.is_inference() or parameter.is_meta or parameter.is_quantized)


def _form(tensor: Tensor) -> tuple[object, ...]:
    return tensor.shape, tensor.stride(), tensor.storage_offset()


def _address(tensor: Tensor) -> int:
    try:
        return tensor.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):  # wrapper subclasses have none
        return 0
