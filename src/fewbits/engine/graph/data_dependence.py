"""Whether something in a forward pass can have put rows elsewhere because of their values.

A row is where a network's code puts it. It can only move with the values of the network where an
operation orders, chooses or counts by values: where it sorts, where an index or a mask was computed
from activations, or where values leave torch and Python decides. All that is watched here. Values
are what was computed from parameters; inputs, buffers and what is computed from them alone is the
same in the float and in the quantized network, and may index and decide.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from enum import Enum, auto
from functools import cache
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from ..network.isolation import plain_tensors
from ..network.shared_memory import StorageWeakRef, storage_of

__all__ = ["Choices", "Operator", "chooses", "is_real", "operator_of"]


_EXITS = frozenset(
    (
        *(Tensor.numpy, Tensor.tolist, Tensor.__array__, Tensor.__dlpack__, Tensor.data_ptr),
        Tensor.__cuda_array_interface__.__get__,
    )
)
_CHOOSING = frozenset(  # with values of any dtype: they order, count, or tell where something is
    (
        *("sort", "topk", "kthvalue", "median", "nanmedian", "mode", "argmax", "argmin"),
        *("nonzero", "nonzero_static", "_unique", "_unique2", "unique_dim", "unique_consecutive"),
        *("unique_dim_consecutive", "searchsorted", "bucketize", "bincount", "histc", "histogram"),
        *("multinomial", "bernoulli", "binomial", "poisson", "grid_sampler_2d", "grid_sampler_3d"),
        *("_linalg_eigh", "linalg_eig", "_linalg_svd", "linalg_lu", "linalg_lu_factor_ex"),
        *("linalg_lstsq", "_to_sparse", "_to_sparse_csr", "_to_sparse_bsr", "_to_sparse_csc"),
    )
)
_CARRYING = frozenset(("_to_copy", "clone", "copy", "cat", "stack", "any", "all"))
_FILLING = ("zeros", "ones", "full")  # the names of these factories, new_zeros, zeros_like
_SHAPES = frozenset(("_shape_as_tensor", "is_same_size", "is_pinned", "sym_size", "sym_numel"))
_PACKING = frozenset(("_pack_padded_sequence", "_pad_packed_sequence"))  # lengths come of lengths


class _Kind(Enum):
    """Where what is in a memory comes from."""

    CONSTANT = auto()  # the same in both networks
    FILLED = auto()  # so, as long as it is one number, as a factory made it
    EMPTY = auto()  # nothing was seen to write into it
    VALUES = auto()  # computed from parameters, or nobody knows


class Choices:
    """Watches forward passes of a network for the first thing in each that chooses by values.

    A pass is what happens inside ``with``. Constant is what modules hold when this is made, and
    what comes from elsewhere (a tensor in a closure) before a pass computes from parameters.

    Counted as such, as it cannot be followed: operators that are not torch's own, memory that
    something out of sight wrote (an extension), and scripted modules. Compiled code runs
    uncompiled here, and is seen. Not seen are hard steps in floats (``sign``) that weigh rows.

    Attributes:
        cause: what it was in the present or last pass, "" as long as there was none.

    Cost: about 20 us for each operation.
    """

    def __init__(self, network: nn.Module) -> None:
        scripted = any(isinstance(module, torch.jit.ScriptModule) for module in network.modules())
        self._first = "a scripted module" if scripted else ""
        self._held = _Origins()
        for tensor in (*network.buffers(), *plain_tensors(network)):
            self._held.put(tensor, _Kind.CONSTANT)
        for tensor in network.parameters():  # integers are not quantized
            self._held.put(tensor, _Kind.VALUES if is_real(tensor) else _Kind.CONSTANT)
        self._modes = ExitStack()
        self.cause = self._first

    def __enter__(self) -> Choices:
        self.cause, origins = self._first, self._held.copied()
        self._modes.enter_context(_Exits(self, origins))
        self._modes.enter_context(_Operations(self, origins))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._modes.__exit__(kind, error, trace)

    def note(self, cause: str) -> None:
        """Take note of something that chooses by values."""
        self.cause = self.cause or cause


class _Origins:
    """Where what is in each memory comes from; views of one memory are one.

    Attributes:
        begun: something was computed from values. What comes from out of sight before is constant.
    """

    def __init__(self, known: Mapping[StorageWeakRef, _Kind] | None = None) -> None:
        self.begun = False
        self._known = dict(known or {})

    def copied(self) -> _Origins:
        """Return what is known as that of a new pass."""
        return _Origins(self._known)

    def of(self, tensor: Tensor) -> _Kind | None:
        """Return the kind of a tensor; None for one from out of sight."""
        storage = storage_of(tensor)
        if storage is None:
            return None if self.begun else _Kind.CONSTANT
        if not self.begun:
            return self._known.setdefault(storage, _Kind.CONSTANT)
        return self._known.get(storage)

    def put(self, tensor: Tensor, kind: _Kind) -> None:
        """Set the kind of the memory of a tensor."""
        storage = storage_of(tensor)
        if storage is not None:
            self._known[storage] = kind

    def made(self, tensor: Tensor, kind: _Kind) -> None:
        """Set the kind of a result, which keeps that of the memory that it is a view of."""
        storage = storage_of(tensor)
        if storage is not None:
            self._known.setdefault(storage, kind)


class _Exits(TorchFunctionMode):
    """Notices values that leave torch other than number by number."""

    def __init__(self, choices: Choices, origins: _Origins) -> None:
        super().__init__()
        self._choices, self._origins = choices, origins

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call the function; look at what it is called with where it hands out values."""
        if func in _EXITS and self._origins.of(args[0]) in (_Kind.VALUES, _Kind.EMPTY, None):
            self._choices.note(getattr(func, "__name__", "an exit from torch"))
        return func(*args, **(kwargs or {}))


class _Operations(TorchDispatchMode):  # type: ignore[no-untyped-call, unused-ignore]
    """Follows values from operation to operation."""

    supports_higher_order_operators = True

    def __init__(self, choices: Choices, origins: _Origins) -> None:
        super().__init__()  # type: ignore[no-untyped-call, unused-ignore]
        self._choices, self._origins = choices, origins

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run the operation; note where its result comes from, and whether it chose by values."""
        kwargs = kwargs or {}
        operator = operator_of(func)
        if operator.composite:  # under torch.inference_mode: its parts are what is to be seen
            with self:
                return func.decompose(*args, **kwargs)
        given = list(_tensors((*args, *kwargs.values())))
        written = list(_tensors(operator.written(args, kwargs)))
        values = [] if operator.shapes else self._values(given, written, operator)
        self._origins.begun |= bool(values) and not operator.views
        result = func(*args, **kwargs)
        results = list(_tensors((result,)))
        if values and chooses(operator, values, results):
            self._choices.note(operator.name)
        self._record(operator, values, written, results)
        return result

    def _values(
        self, given: Sequence[Tensor], written: Sequence[Tensor], operator: Operator
    ) -> list[Tensor]:
        """Return those of the inputs that hold values; notice what came from out of sight."""
        found = []
        for tensor in given:
            kind = self._origins.of(tensor)
            if kind is None or kind in (_Kind.EMPTY, _Kind.FILLED):
                kind = self._settled(tensor, kind, operator, written)
            if kind is _Kind.VALUES:
                found.append(tensor)
        return found

    def _settled(
        self, tensor: Tensor, kind: _Kind | None, operator: Operator, written: Sequence[Tensor]
    ) -> _Kind:
        """Return the kind of an input that is not known, or may have been written out of sight."""
        if kind is None and operator.name == "lift_fresh":  # Python's or NumPy's numbers come in
            return _Kind.CONSTANT
        if kind is None:
            cause = "a tensor from out of sight"
        else:
            read = not operator.views and not any(tensor is other for other in written)
            if not read or not _is_strange(tensor, kind):
                return kind
            cause = "memory that was written out of sight"
        self._choices.note(cause)
        self._origins.put(tensor, _Kind.VALUES)
        return _Kind.VALUES

    def _record(
        self,
        operator: Operator,
        values: Sequence[Tensor],
        written: Iterable[Tensor],
        results: Iterable[Tensor],
    ) -> None:
        for tensor in written:
            before = self._origins.of(tensor)
            if values or before in (_Kind.EMPTY, _Kind.FILLED):
                self._origins.put(tensor, _Kind.VALUES if values else _Kind.CONSTANT)
        integers = not operator.packs or any(not is_real(tensor) for tensor in values)
        for tensor in results:
            depends = bool(values) and (integers or is_real(tensor))
            self._origins.made(tensor, _Kind.VALUES if depends else _made_by(operator))


def _made_by(operator: Operator) -> _Kind:
    """Return the kind of a result that no values went into."""
    if operator.allocates:
        return _Kind.EMPTY
    return _Kind.FILLED if operator.fills else _Kind.CONSTANT


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)


def _is_strange(tensor: Tensor, kind: _Kind) -> bool:
    """Tell whether a new memory holds what nothing was seen to write."""
    if tensor.numel() == 0:
        return False
    return kind is _Kind.EMPTY or bool((tensor != tensor[(0,) * tensor.dim()]).any())


@dataclass(frozen=True)
class Operator:
    """What is known of an operator by its name, tags and signature.

    Attributes:
        name: without its overload and the underscore of an operation in place.
        known: it is torch's own.
        composite: it is made of others.
        chooses: it does, whatever values it gets.
        pointwise: each result comes of the inputs at its place.
        views: results are views of inputs.
        shapes: only shapes and dtypes of inputs are looked at.
        allocates: results are memory that holds nothing yet.
        fills: results are one number.
        packs: results of integers come of integers alone.
        writes: places and names of the arguments that are written.
    """

    name: str
    known: bool = False
    composite: bool = False
    chooses: bool = True
    pointwise: bool = False
    views: bool = False
    shapes: bool = False
    allocates: bool = False
    fills: bool = False
    packs: bool = False
    writes: tuple[tuple[int, str], ...] = ()

    def written(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
        """Return the arguments that are written."""
        return [args[i] if i < len(args) else kwargs.get(name) for i, name in self.writes]


@cache
def operator_of(func: Any) -> Operator:
    """Return what is known of what a dispatch mode is called for."""
    if not isinstance(func, torch._ops.OpOverload):
        return Operator(str(func))
    name, known = func._opname.removesuffix("_"), func.namespace in ("aten", "prim", "prims")
    base = name.removeprefix("new_").removesuffix("_like")
    views, writes = False, []
    for place, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            writes.append((place, argument.name))
        elif argument.alias_info is not None:
            views = True
    return Operator(
        name,
        known=known,
        composite=known and _is_composite(func),
        chooses=name in _CHOOSING or torch.Tag.data_dependent_output in func.tags,
        pointwise=torch.Tag.pointwise in func.tags,
        views=views,
        shapes=base != name or name in _SHAPES,
        allocates=base.startswith("empty"),
        fills=base in _FILLING,
        packs=name in _PACKING,
        writes=tuple(writes),
    )


def _is_composite(func: Any) -> bool:
    name, key = func.name(), "CompositeImplicitAutograd"
    return bool(torch._C._dispatch_has_kernel_for_dispatch_key(name, key))


def chooses(operator: Operator, values: Sequence[Tensor], results: Sequence[Tensor]) -> bool:
    """Tell whether an operation can move rows by what it got.

    Integers and booleans that were computed from values may be compared, moved and combined, and a
    mask may meet the very elements that it was made for, as in ``x * (x > 0)``. All else that they
    can do is index, count, or take rows in and out.
    """
    if operator.chooses or not operator.known:
        return True
    discrete = [tensor for tensor in values if not is_real(tensor)]
    if not discrete:
        return False
    if not any(map(is_real, results)):
        return not (operator.pointwise or operator.views or operator.name in _CARRYING)
    size = max(tensor.numel() for tensor in results)
    met = any(is_real(tensor) and tensor.numel() == size for tensor in values)
    return not (operator.pointwise and met and all(mask.numel() == size for mask in discrete))


def is_real(tensor: Tensor) -> bool:
    """Tell whether numbers are no integers or booleans, but values that noise changes a little."""
    return tensor.is_floating_point() or tensor.is_complex()
