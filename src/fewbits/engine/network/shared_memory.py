"""Which tensors are one, which share a part of their memory, and which have none.

A tensor is the bytes it covers and how it reads them: device, address, shape, strides, dtype. An
address alone tells nothing: a slice starts where its whole does, and empty tensors all have none.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

__all__ = [
    "Extent",
    "StorageWeakRef",
    "extent_of",
    "hindrance",
    "is_same",
    "overlaps",
    "put",
    "same_values",
    "storage_of",
    "ties",
]


@dataclass(frozen=True)
class Extent:
    """The bytes that a tensor covers, and how it reads them.

    Attributes:
        start: address of the first byte.
        end: address behind the last one.
        strides: in elements; 0 for axes of one, whose stride says nothing.
        size: bytes of an element.
        flags: whether values are read conjugated, or negated.
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
        """Whether every byte is that of one element."""
        kept = [(s, n) for s, n in zip(self.strides, self.shape, strict=True) if n > 1]
        reach = 1
        for stride, count in sorted(kept):
            if stride != reach:
                return False
            reach *= count
        return True

    @property
    def is_expanded(self) -> bool:
        """Whether one value stands for several places along an axis."""
        return any(n > 1 and not s for s, n in zip(self.strides, self.shape, strict=True))

    def units(self, origin: int, unit: int) -> Tensor:
        """Return which runs of ``unit`` bytes from the address ``origin`` the elements are.

        Returns:
            int64 (elements, runs of an element), in the order of the elements.
        """
        places = torch.zeros(1, dtype=torch.int64)
        for count, stride in zip(self.shape, self.strides, strict=True):
            places = (places[:, None] + torch.arange(count) * (stride * self.size)).reshape(-1)
        inside = torch.arange(self.size // unit)
        return (places[:, None] + (self.start - origin)) // unit + inside

    def meets(self, other: Extent) -> bool:
        """Tell whether the two have a byte in common."""
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
    """Return the bytes that ``tensor`` covers; None where it is empty or has no memory."""
    if tensor.numel() == 0 or hindrance(tensor):
        return None
    shape, size = tuple(tensor.shape), tensor.element_size()
    strides = tuple(s if n > 1 else 0 for s, n in zip(tensor.stride(), shape, strict=True))
    last = sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    start = tensor.data_ptr()
    flags = (tensor.is_conj(), tensor.is_neg())
    end = start + (last + 1) * size
    return Extent(tensor.device, start, end, shape, strides, size, tensor.dtype, flags)


def hindrance(tensor: Tensor, *, stored: bool = False) -> str:
    """Return why a tensor has no values in plain memory, and what to do; "" where it has.

    ``stored``: of a checkpoint, and not of a network.
    """
    if tensor.is_meta or nn.parameter.is_lazy(tensor):
        return "has no values yet (lazy or meta). " + (
            "Save the weights of a network that has them."
            if stored
            else "Run one forward pass, or load the weights, first."
        )
    if tensor.is_nested:
        return (
            "is a nested tensor, which a file cannot hold. Replace it by to_padded_tensor(0), or "
            "keep its parts as tensors of their own."
        )
    if tensor.layout is not torch.strided:
        return (
            f"has the layout {tensor.layout}, and a file holds dense tensors. Replace it by "
            "to_dense()"
            + ("." if stored else ", or make it a buffer with persistent=False, and build it anew.")
        )
    if tensor.is_quantized:
        return f"has the dtype {tensor.dtype} of torch's own quantization. Call dequantize() first."
    if tensor.numel() and not _address(tensor):
        return (
            f"is a {type(tensor).__name__} without memory of its own. Replace it by a plain tensor "
            "of its values: full_tensor() of a DTensor, dequantize() of a quantized one."
        )
    return ""


def is_same(a: Tensor, b: Tensor) -> bool:
    """Tell whether two tensors are one: the same bytes, read in the same way."""
    one = extent_of(a)
    return one is not None and one == extent_of(b)


def same_values(a: Tensor, b: Tensor) -> bool:
    """Tell whether two tensors of one shape and dtype hold equal values."""
    if a.is_complex():  # half of the complex dtypes cannot be compared
        a, b = (torch.view_as_real(x.resolve_conj()) for x in (a, b))
    return torch.equal(a, b)


def ties(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Return later names of the same tensor, each to its first name."""
    first: dict[Extent, str] = {}
    found = {}
    for name, tensor in tensors.items():
        extent = extent_of(tensor)
        if extent is not None and first.setdefault(extent, name) != name:
            found[name] = first[extent]
    return found


def overlaps(tensors: Mapping[str, Tensor]) -> dict[str, tuple[str, ...]]:
    """Return the tensors that share a part of their memory, each with the others it meets.

    Slices, transposes and other views; names that are one tensor are not told of each other. A
    tensor that is expanded meets itself.

    Cost: elements of those tensors alone whose first and last bytes enclose each other's.
    """
    extents = {name: extent_of(tensor) for name, tensor in tensors.items()}
    known = [(extent, name) for name, extent in extents.items() if extent is not None]
    known.sort(key=lambda item: (str(item[0].device), item[0].start))
    found: dict[str, dict[str, None]] = {}
    open_: list[tuple[Extent, str]] = []
    for extent, name in known:
        open_ = [(e, n) for e, n in open_ if e.end > extent.start and e.device == extent.device]
        for before, other in open_:
            if before != extent and before.meets(extent):
                found.setdefault(name, {})[other] = None
                found.setdefault(other, {})[name] = None
        open_.append((extent, name))
        if extent.is_expanded:
            found.setdefault(name, {})[name] = None
    return {name: tuple(found[name]) for name in tensors if name in found}


def put(target: Tensor, values: Tensor) -> None:
    """Copy ``values`` into ``target``: where it is expanded, one for all places of an axis.

    A tensor that was made under ``torch.inference_mode()`` can be written to in that mode alone.
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
    except (RuntimeError, NotImplementedError):  # of a wrapper
        return 0


def storage_of(tensor: Tensor) -> StorageWeakRef | None:
    """Return a weak reference to the memory that a tensor is a view of; None where it has none.

    While the reference is held no other memory equals it, even if this one is freed.
    """
    try:
        return StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call, unused-ignore]
    except (NotImplementedError, RuntimeError):  # sparse, nested and wrapper tensors have none
        return None
