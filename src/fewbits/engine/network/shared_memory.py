"""Which tensors are the same, which share part of their memory, and which have no plain memory.

A tensor is identified by the bytes it covers and how it reads them: device, address, shape,
strides, dtype. The address alone is not enough: a slice may start where its base does, and empty
tensors have none.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from ..paged.lazy_weights import LazyWeight

__all__ = [
    "Extent",
    "StorageWeakRef",
    "copy_into",
    "extent_of",
    "is_same",
    "overlaps",
    "same_values",
    "storage_of",
    "storage_problem",
    "ties",
]


@dataclass(frozen=True)
class Extent:
    """The bytes that a tensor covers, and how it reads them.

    Attributes:
        start: address of the first byte.
        end: address after the last byte.
        strides: in elements; 0 for axes of size one, whose stride is meaningless.
        size: bytes per element.
        flags: whether values are read conjugated, and negated.
    """

    device: torch.device
    start: int
    end: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    size: int
    dtype: torch.dtype
    flags: tuple[bool, bool]

    @property
    def is_dense(self) -> bool:
        """Whether every byte belongs to exactly one element."""
        kept = [(s, n) for s, n in zip(self.strides, self.shape, strict=True) if n > 1]
        reach = 1
        for stride, count in sorted(kept):
            if stride != reach:
                return False
            reach *= count
        return True

    @property
    def is_expanded(self) -> bool:
        """Whether several places along an axis share one value."""
        return any(n > 1 and not s for s, n in zip(self.strides, self.shape, strict=True))

    def units(self, origin: int, unit: int) -> Tensor:
        """Return which runs of ``unit`` bytes, counted from address ``origin``, the elements cover.

        Returns:
            int64 (elements, runs per element), in the order of the elements.
        """
        places = torch.zeros(1, dtype=torch.int64)
        for count, stride in zip(self.shape, self.strides, strict=True):
            places = (places[:, None] + torch.arange(count) * (stride * self.size)).reshape(-1)
        inside = torch.arange(self.size // unit)
        return (places[:, None] + (self.start - origin)) // unit + inside

    def meets(self, other: Extent) -> bool:
        """Return whether the two have a byte in common."""
        apart = self.end <= other.start or other.end <= self.start or self.device != other.device
        if apart or (self.is_dense and other.is_dense):
            return not apart
        unit = math.gcd(self.size, other.size, self.start - other.start)
        origin = min(self.start, other.start)
        length = (max(self.end, other.end) - origin) // unit
        seen = torch.zeros(length, dtype=torch.bool)
        seen[self.units(origin, unit)] = True
        return bool(seen[other.units(origin, unit)].any())


def extent_of(tensor: Tensor) -> Extent | None:
    """Return the bytes that ``tensor`` covers; None if it is empty or has no plain memory."""
    if tensor.numel() == 0 or storage_problem(tensor):
        return None
    shape, size = tuple(tensor.shape), tensor.element_size()
    strides = tuple(s if n > 1 else 0 for s, n in zip(tensor.stride(), shape, strict=True))
    last = sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    start = tensor.data_ptr()
    flags = (tensor.is_conj(), tensor.is_neg())
    end = start + (last + 1) * size
    return Extent(tensor.device, start, end, shape, strides, size, tensor.dtype, flags)


def storage_problem(tensor: Tensor, *, stored: bool = False) -> str:
    """Return why a tensor has no values in plain memory, and what to do; "" if it has.

    ``stored``: whether it belongs to a checkpoint rather than a network.
    """
    if tensor.is_meta or nn.parameter.is_lazy(tensor) or isinstance(tensor, LazyWeight):
        return _no_values(tensor, stored)
    if tensor.is_nested:
        return (
            "is a nested tensor, which a file cannot store. Replace it by to_padded_tensor(0), or "
            "keep its parts as separate tensors."
        )
    if tensor.layout is not torch.strided:
        return (
            f"has the layout {tensor.layout}, but a file stores dense tensors. Replace it by "
            "to_dense()"
            + ("." if stored else ", or make it a buffer with persistent=False and rebuild it.")
        )
    if tensor.is_quantized:
        return f"has the dtype {tensor.dtype} of torch's own quantization. Call dequantize() first."
    if tensor.numel() and not _address(tensor):
        return (
            f"is a {type(tensor).__name__} without memory of its own. Replace it by a plain tensor "
            "of its values: full_tensor() for a DTensor, dequantize() for a quantized one."
        )
    return ""


def _no_values(tensor: Tensor, stored: bool) -> str:
    if isinstance(tensor, LazyWeight):
        return (
            "was loaded lazily: its values stay in the file. Load the network without lazy=True, "
            "or copy the weights with clone(), first."
        )
    return "has no values yet (lazy or meta). " + (
        "Save the weights of a network that has values."
        if stored
        else "Run one forward pass, or load the weights, first; compress(..., weights=) reads them "
        "from a checkpoint."
    )


def is_same(a: Tensor, b: Tensor) -> bool:
    """Return whether two tensors are the same: the same bytes, read in the same way."""
    one = extent_of(a)
    return one is not None and one == extent_of(b)


def same_values(a: Tensor, b: Tensor) -> bool:
    """Return whether two tensors of one shape and dtype have equal values."""
    if a.is_complex():  # complex32 cannot be compared
        a, b = (torch.view_as_real(x.resolve_conj()) for x in (a, b))
    return torch.equal(a, b)


def ties(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Return later names of the same tensor, each mapped to its first name."""
    first: dict[Extent, str] = {}
    aliases = {}
    for name, tensor in tensors.items():
        extent = extent_of(tensor)
        if extent is not None and first.setdefault(extent, name) != name:
            aliases[name] = first[extent]
    return aliases


def overlaps(tensors: Mapping[str, Tensor]) -> dict[str, tuple[str, ...]]:
    """Return the tensors that share part of their memory, each with its partners.

    These are slices, transposes and other views; names of the same tensor are not listed as
    partners. An expanded tensor is its own partner.

    Cost: only tensors whose byte ranges intersect are compared element by element.
    """
    extents = {name: extent_of(tensor) for name, tensor in tensors.items()}
    known = [(extent, name) for name, extent in extents.items() if extent is not None]
    known.sort(key=lambda item: (str(item[0].device), item[0].start))
    partners: dict[str, dict[str, None]] = {}
    active: list[tuple[Extent, str]] = []
    for extent, name in known:
        active = [(e, n) for e, n in active if e.end > extent.start and e.device == extent.device]
        for before, other in active:
            if before != extent and before.meets(extent):
                partners.setdefault(name, {})[other] = None
                partners.setdefault(other, {})[name] = None
        active.append((extent, name))
        if extent.is_expanded:
            partners.setdefault(name, {})[name] = None
    return {name: tuple(partners[name]) for name in tensors if name in partners}


def copy_into(target: Tensor, values: Tensor) -> None:
    """Copy ``values`` into ``target``; an expanded axis gets one value for all its places.

    A tensor created under ``torch.inference_mode()`` can only be written in that mode.
    """
    extent = extent_of(target)
    if extent is not None and extent.is_expanded:
        for axis, (size, stride) in enumerate(zip(extent.shape, extent.strides, strict=True)):
            if size > 1 and not stride:
                target, values = target.narrow(axis, 0, 1), values.narrow(axis, 0, 1)
    with torch.inference_mode() if target.is_inference() else torch.no_grad():
        target.copy_(values)


def _address(tensor: Tensor) -> int:
    try:
        return tensor.data_ptr()
    except (RuntimeError, NotImplementedError):  # wrapper subclasses
        return 0


def storage_of(tensor: Tensor) -> StorageWeakRef | None:
    """Return a weak reference to a tensor's storage; None if it has none.

    While the reference is held, no other storage compares equal to it, even if this one is freed.
    """
    try:
        return StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call, unused-ignore]
    except (NotImplementedError, RuntimeError):  # sparse, nested and wrapper tensors have none
        return None
