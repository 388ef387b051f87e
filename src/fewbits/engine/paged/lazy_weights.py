"""Weights that stay in their file and are decoded when an operation needs their values.

A lazy weight has the shape, dtype and device of its values, but no memory. Whatever operation of
torch meets it gets the decoded values instead, so a network may use its weights in any way. A view
of a lazy weight is lazy again: moving through a network, or copying its state dict, decodes
nothing, and no operation can write into the decoded values.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from ...errors import ModelError
from .weight_store import WeightSpec, WeightStore

__all__ = ["LazyWeight", "WeightSpec", "WeightStore", "lazy_parameter"]

_AS_IS = (torch.ops.aten.detach.default, torch.ops.aten.alias.default)


@dataclass(frozen=True)
class _Step:
    """A view to take of the decoded values: an operation, and which of its results."""

    function: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    place: int | None = None

    def apply(self, values: Tensor) -> Tensor:
        """Return the view of ``values``."""
        result = self.function(values, *self.args, **self.kwargs)
        chosen: Tensor = result if self.place is None else result[self.place]
        return chosen


class LazyWeight(Tensor):
    """A tensor whose values are decoded when an operation needs them.

    Its values cannot be changed, and take no gradient.
    """

    _store: WeightStore
    _spec: WeightSpec
    _steps: tuple[_Step, ...]

    @staticmethod
    def __new__(
        cls, store: WeightStore, spec: WeightSpec, like: Tensor, steps: tuple[_Step, ...] = ()
    ) -> LazyWeight:
        """Return a handle of ``spec`` after ``steps``; ``like`` has its geometry and dtype."""
        with torch.inference_mode(False):  # of use in every mode, wherever it was made
            made: LazyWeight = Tensor._make_wrapper_subclass(
                cls,
                like.shape,
                strides=like.stride(),
                storage_offset=like.storage_offset(),
                dtype=like.dtype,
                device=spec.device,
                requires_grad=False,
            )
        made._store, made._spec, made._steps = store, spec, steps
        return made

    __torch_function__: Any = torch._C._disabled_torch_function_impl  # fast paths stay open

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation on the decoded values, or note it if it is a view."""
        if torch.compiler.is_compiling():
            raise ModelError(
                "weights that were loaded lazily cannot be compiled into a graph. Load the network "
                "without lazy=True to use torch.compile or torch.export."
            )
        kwargs = kwargs or {}
        traits = _traits(func)
        for place, name in traits.written:
            target = args[place] if place < len(args) else kwargs.get(name)
            if any(isinstance(leaf, LazyWeight) for leaf in tree_leaves(target)):
                raise ModelError(
                    f"{func} writes into a weight that was loaded lazily, which stays in its file. "
                    "Load the network without lazy=True to train or change it."
                )
        if traits.is_view and isinstance(args[0], LazyWeight):
            if traits.is_composite:
                return func.decompose(*args, **kwargs)
            return args[0]._view(func, args[1:], kwargs)
        args, kwargs = tree_map_only(LazyWeight, LazyWeight.decoded, (args, kwargs))
        return func(*args, **kwargs)

    def decoded(self) -> Tensor:
        """Return the values. They may be in use elsewhere: do not write into them."""
        values = self._store.get(self._spec)
        for step in self._steps:
            values = step.apply(values)
        return values

    def _view(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if func in _AS_IS:
            return self._again()
        meta = torch.empty_strided(self.shape, self.stride(), dtype=self.dtype, device="meta")
        result = func(meta, *args, **kwargs)
        if isinstance(result, Tensor):
            return self._after(_Step(func, args, kwargs), result)
        places = enumerate(result)
        return [self._after(_Step(func, args, kwargs, place), part) for place, part in places]

    def _after(self, step: _Step, like: Tensor) -> LazyWeight:
        return LazyWeight(self._store, self._spec, like, (*self._steps, step))

    def _again(self) -> LazyWeight:
        return LazyWeight(self._store, self._spec, self, self._steps)

    @property
    def data(self) -> Tensor:
        """Another handle of the same values; setting it replaces the weight by an ordinary one."""
        return self._again()

    @data.setter
    def data(self, values: Tensor) -> None:
        # Module.to and its like set this to the converted values.
        torch.utils.swap_tensors(self, nn.Parameter(values, requires_grad=False))  # type: ignore[no-untyped-call]

    def requires_grad_(self, requires_grad: bool = True) -> LazyWeight:
        """Refuse gradients, which could change nothing."""
        if requires_grad:
            raise ModelError(
                f"the weight {self._spec.name!r} was loaded lazily and is frozen. Load the network "
                "without lazy=True to train it, or train only other parameters."
            )
        return self

    def numpy(self, *, force: bool = False) -> Any:
        """Return a copy of the values as an array."""
        return self.decoded().clone().numpy(force=force)

    def tolist(self) -> Any:
        """Return the values as nested lists."""
        return self.decoded().tolist()

    def data_ptr(self) -> int:
        """Refuse: there is no memory of the values."""
        raise NotImplementedError(self._no_memory())

    def untyped_storage(self) -> Any:
        """Refuse: there is no memory of the values."""
        raise NotImplementedError(self._no_memory())

    def _no_memory(self) -> str:
        return (
            f"the weight {self._spec.name!r} was loaded lazily and has no memory of its own. Its "
            "clone() is an ordinary tensor; torch.save writes ordinary tensors too."
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> LazyWeight:
        copy = self._again()
        copy.__dict__.update(self.__dict__)  # also whether it is a parameter
        memo[id(self)] = copy
        return copy

    def __reduce_ex__(self, protocol: Any) -> Any:
        values = self.decoded().clone()
        plain = nn.Parameter(values, False) if isinstance(self, nn.Parameter) else values
        reduced: Any = Tensor.__reduce_ex__(plain, protocol)  # type: ignore[no-untyped-call]
        return reduced

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"LazyWeight({self._spec.name!r}, shape={tuple(self.shape)}, dtype={self.dtype})"


def lazy_parameter(store: WeightStore, spec: WeightSpec) -> nn.Parameter:
    """Return a frozen parameter whose values ``store`` decodes when they are needed."""
    like = torch.empty_strided(spec.shape, spec.strides, dtype=spec.dtype, device="meta")
    return nn.Parameter(LazyWeight(store, spec, like), requires_grad=False)


@dataclass(frozen=True)
class _Traits:
    """What an operation does with its arguments.

    Attributes:
        written: position and name of each argument that is written to.
        is_view: whether results share the memory of the first argument.
        is_composite: whether it is made of other operations, and may only sometimes be a view.
    """

    written: tuple[tuple[int, str], ...]
    is_view: bool
    is_composite: bool


@cache
def _traits(func: Callable[..., Any]) -> _Traits:
    schema: Any = func._schema  # type: ignore[attr-defined]
    written = tuple(
        (place, argument.name)
        for place, argument in enumerate(schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    )
    shares = any(r.alias_info is not None and not r.alias_info.is_write for r in schema.returns)
    composite = torch._C._dispatch_has_kernel_for_dispatch_key(
        schema.name + (f".{schema.overload_name}" if schema.overload_name else ""),
        "CompositeImplicitAutograd",
    )
    return _Traits(written, shares and not written, composite)
