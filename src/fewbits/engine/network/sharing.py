"""Weights that two networks share until one of them changes: memory is used once, not twice.

A copy made by :func:`sharing` has parameters of its own over the memory of the original. Replacing
the values of such a parameter (:func:`assign`) leaves the original as it is. A forward pass that
writes to its weights would not: a :class:`Guard` gives a weight memory of its own before it is
written to.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from ...errors import ModelError
from .batches import Forward
from .copying import copied

__all__ = ["CopyOnWrite", "Guard", "assign", "assign_state", "shareable", "sharing"]

_WRITERS = frozenset(
    f"__{name}__"
    for name in (
        *("setitem", "iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow"),
        *("iand", "ior", "ixor", "ilshift", "irshift"),
    )
)


@dataclass(frozen=True, eq=False)
class _Shared:
    """A weight over memory of the caller; ``memory`` keeps its address from being used again."""

    name: str
    parameter: nn.Parameter
    memory: Tensor


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
    for parameter in shareable(network, names).values():  # data: the caller's versions stay
        memo[id(parameter)] = nn.Parameter(parameter.data, parameter.requires_grad)
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

    Sees torch functions and methods, and the functional forms that write (``inplace=True``, and
    embeddings with ``max_norm``). Writes of NumPy or of scripted code are not seen.

    Args:
        network: the network that is called inside the block.
        names: weights whose memory is not its own.

    Attributes:
        written: names of the weights that have been copied.
    """

    def __init__(self, network: nn.Module, names: Iterable[str]) -> None:
        super().__init__()
        self.written: set[str] = set()
        self._shared: defaultdict[int, list[_Shared]] = defaultdict(list)
        for name, parameter in shareable(network, names).items():
            if parameter.numel():  # others have no memory
                item = _Shared(name, parameter, parameter.data)
                self._shared[_address(parameter)].append(item)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call the function, after giving own memory to the shared weights that it writes to."""
        given = kwargs or {}
        for target in tree_leaves(_targets(getattr(func, "__name__", ""), args, given)):
            if isinstance(target, Tensor):
                self._own(target)
        return func(*args, **given)

    def _own(self, value: Tensor) -> None:
        """Give ``value``, and the weight over the same memory, memory of their own."""
        known = self._shared.get(_address(value), ()) if value.layout == torch.strided else ()
        for shared in known:
            if not _overlap(value, shared.memory):
                continue
            name, parameter = shared.name, shared.parameter
            if _form(value) != _form(shared.memory):
                raise ModelError(
                    f"the forward pass writes to a part of the weight {name!r}, which belongs to "
                    "the caller's network. Let it write to a buffer, or to all of the weight."
                )
            if _address(parameter) == _address(shared.memory):
                parameter.data = parameter.data.clone()
                self.written.add(name)
            if value is not parameter:  # another tensor over the memory, such as its ``data``
                value.data = parameter.data if name in self.written else value.data.clone()


class Guard:
    """Protects shared weights in every forward pass of the networks that have them.

    Args:
        names: weights that networks share with each other, or with the caller's.
    """

    def __init__(self, names: Collection[str]) -> None:
        self.names = frozenset(names)
        self._modes: WeakKeyDictionary[nn.Module, CopyOnWrite] = WeakKeyDictionary()

    @property
    def written(self) -> frozenset[str]:
        """Names of the weights that a pass has written to, in a network that is still alive."""
        return frozenset(name for mode in self._modes.values() for name in mode.written)

    def around(self, forward: Forward) -> Forward:
        """Return a function that calls ``forward``, which may be in several threads at once."""

        def call(network: nn.Module, batch: Any) -> Any:
            if network not in self._modes:
                self._modes[network] = CopyOnWrite(network, self.names)
            with self._modes[network]:
                return forward(network, batch)

        return call


def _targets(name: str, args: tuple[Any, ...], given: Mapping[str, Any]) -> list[Any]:
    """Return what a torch function of this name writes to, perhaps in lists."""
    first = args[0] if args else given.get("input", given.get("tensor"))
    targets = [given["out"]] if given.get("out") is not None else []
    in_place = name in _WRITERS or (name.endswith("_") and not name.endswith("__"))
    if in_place or given.get("inplace") is True:
        targets.append(first)
    elif given.get("max_norm") is not None and name in ("embedding", "embedding_bag"):
        targets.append(args[1] if len(args) > 1 else given.get("weight"))
    return targets


def _parameter(network: nn.Module, name: str) -> nn.Parameter | None:
    try:
        return network.get_parameter(name)
    except AttributeError:  # a name that a state-dict hook chose
        return None


def _is_plain(parameter: nn.Parameter) -> bool:
    plain = type(parameter) is nn.Parameter and parameter.layout == torch.strided
    return plain and not (parameter.is_inference() or parameter.is_meta or parameter.is_quantized)


def _form(tensor: Tensor) -> tuple[object, ...]:
    return tensor.dtype, tensor.shape, tensor.stride(), tensor.storage_offset()


def _overlap(one: Tensor, other: Tensor) -> bool:
    """Return whether two tensors over one storage may have bytes in common."""
    (begin, end), (start, stop) = _span(one), _span(other)
    return begin < stop and start < end


def _span(tensor: Tensor) -> tuple[int, int]:
    """Return the first byte of a tensor in its storage, and the one after its last."""
    size, start = tensor.element_size(), tensor.storage_offset()
    if not tensor.numel():
        return 0, 0
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    last = start + sum((n - 1) * step for n, step in steps)
    return int(start * size), int((last + 1) * size)


def _address(tensor: Tensor) -> int:
    try:
        return tensor.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):  # wrapper subclasses have none
        return 0
