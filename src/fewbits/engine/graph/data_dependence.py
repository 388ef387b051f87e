"""Detect whether a forward pass can have reordered rows depending on their values.

Rows can depend on the values of the network only where an operation sorts, selects or counts by
values, where an index or a mask was computed from activations, or where values leave torch and
Python decides. All of these are detected here. "Values" are results computed from parameters.
Inputs, buffers and anything computed from them alone are the same in the float and in the quantized
network, so they may index and decide.
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
_CHOOSING = frozenset(  # for any dtype: these sort, count, or return positions
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
_FILLING = ("zeros", "ones", "full")  # also in new_zeros, zeros_like and so on
_SHAPES = frozenset(("_shape_as_tensor", "is_same_size", "is_pinned", "sym_size", "sym_numel"))
_PACKING = frozenset(("_pack_padded_sequence", "_pad_packed_sequence"))  # lengths stay lengths


class _Kind(Enum):
    """Origin of the contents of a storage."""

    CONSTANT = auto()  # the same in both networks
    FILLED = auto()  # constant, as long as it is the one number that a factory wrote
    EMPTY = auto()  # no write was observed
    VALUES = auto()  # computed from parameters, or unknown


class Choices:
    """Watches forward passes of a network for the first operation that depends on values.

    A pass is the body of a ``with`` block. Constant is what modules hold when the watch is created,
    and what comes from elsewhere (a tensor in a closure) before the pass computes from parameters.

    Counted as value-dependent, because they cannot be followed: operators that are not torch's own,
    memory written out of sight (by an extension), and scripted modules. Compiled code runs
    uncompiled here, and is observed. Not observed are hard steps in floats (``sign``) that weight
    rows.

    Attributes:
        cause: the first such operation in the current or last pass; "" if there is none.

    Cost: about 20 us per operation.
    """

    def __init__(self, network: nn.Module) -> None:
        scripted = any(isinstance(module, torch.jit.ScriptModule) for module in network.modules())
        self._first = "a scripted module" if scripted else ""
        self._held = _Origins()
        for tensor in (*network.buffers(), *plain_tensors(network)):
            self._held.set(tensor, _Kind.CONSTANT)
        for tensor in network.parameters():  # integers are not quantized
            self._held.set(tensor, _Kind.VALUES if is_real(tensor) else _Kind.CONSTANT)
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
        """Record an operation that depends on values."""
        self.cause = self.cause or cause


class _Origins:
    """Origin of the contents of each storage; views share one.

    Attributes:
        begun: whether anything was computed from values; unseen tensors are constant until then.
    """

    def __init__(self, known: Mapping[StorageWeakRef, _Kind] | None = None) -> None:
        self.begun = False
        self._known = dict(known or {})

    def copied(self) -> _Origins:
        """Return the initial state for a new pass."""
        return _Origins(self._known)

    def of(self, tensor: Tensor) -> _Kind | None:
        """Return the kind of a tensor; None if its origin was not seen."""
        storage = storage_of(tensor)
        if storage is None:
            return None if self.begun else _Kind.CONSTANT
        if not self.begun:
            return self._known.setdefault(storage, _Kind.CONSTANT)
        return self._known.get(storage)

    def set(self, tensor: Tensor, kind: _Kind) -> None:
        """Set the kind of a tensor's storage."""
        storage = storage_of(tensor)
        if storage is not None:
            self._known[storage] = kind

    def made(self, tensor: Tensor, kind: _Kind) -> None:
        """Set the kind of a result; a view keeps the kind of its storage."""
        storage = storage_of(tensor)
        if storage is not None:
            self._known.setdefault(storage, kind)


class _Exits(TorchFunctionMode):
    """Detects values that leave torch other than as single numbers."""

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
        """Call the function, after checking whether it exports values."""
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
        """Run the operation; record the origin of its result and whether it depends on values."""
        kwargs = kwargs or {}
        operator = operator_of(func)
        if operator.composite:  # under torch.inference_mode: decompose it to see its parts
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
        """Return the inputs that contain values; detect tensors from unseen sources."""
        values = []
        for tensor in given:
            kind = self._origins.of(tensor)
            if kind is None or kind in (_Kind.EMPTY, _Kind.FILLED):
                kind = self._resolve(tensor, kind, operator, written)
            if kind is _Kind.VALUES:
                values.append(tensor)
        return values

    def _resolve(
        self, tensor: Tensor, kind: _Kind | None, operator: Operator, written: Sequence[Tensor]
    ) -> _Kind:
        """Return the kind of an input whose origin is unknown or may have been written unseen."""
        if kind is None and operator.name == "lift_fresh":  # numbers from Python or NumPy
            return _Kind.CONSTANT
        if kind is None:
            cause = "a tensor of unknown origin"
        else:
            read = not operator.views and not any(tensor is other for other in written)
            if not read or not _is_foreign(tensor, kind):
                return kind
            cause = "memory that was written out of sight"
        self._choices.note(cause)
        self._origins.set(tensor, _Kind.VALUES)
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
                self._origins.set(tensor, _Kind.VALUES if values else _Kind.CONSTANT)
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


def _is_foreign(tensor: Tensor, kind: _Kind) -> bool:
    """Return whether new memory has contents that no observed operation wrote."""
    if tensor.numel() == 0:
        return False
    return kind is _Kind.EMPTY or bool((tensor != tensor[(0,) * tensor.dim()]).any())


@dataclass(frozen=True)
class Operator:
    """Facts about an operator from its name, tags and signature.

    Attributes:
        name: without its overload and the underscore of an in-place operation.
        known: whether it is torch's own.
        composite: whether it is composed of other operators.
        chooses: whether it depends on values, whichever it gets.
        pointwise: whether each result depends only on inputs at the same position.
        views: whether results are views of inputs.
        shapes: whether only shapes and dtypes of inputs matter.
        allocates: whether results are uninitialized memory.
        fills: whether results are filled with one number.
        packs: whether integer results depend on integers only.
        writes: positions and names of arguments that are written.
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
    """Return the facts about the operator of a dispatch."""
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
    """Return whether an operation can reorder rows depending on the values it got.

    Integers and booleans computed from values may be compared, moved and combined, and a mask may
    be applied to the very elements from which it was made, as in ``x * (x > 0)``. Anything else
    that uses them can index, count, or insert and remove rows.
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
    """Return whether a tensor has continuous values rather than integers or booleans."""
    return tensor.is_floating_point() or tensor.is_complex()
