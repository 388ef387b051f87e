"""What operators of torch do with values: which of them order, choose or count by them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

__all__ = ["Operator", "chooses", "is_real", "operator_of"]

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
