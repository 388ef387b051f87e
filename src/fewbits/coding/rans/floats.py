"""``floats``: exponents first, then each byte of the mantissas, given the exponent where it pays.

The sign is moved to the lowest bit. So the highest byte of a float32 or bfloat16 is its exponent,
that of a float16 its exponent and three bits of its mantissa; it takes few values. What is below is
nearly uniform, but not quite within an octave, and not at all where many values are zero, or have
been converted from a narrower dtype.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from ...errors import CorruptFileError
from ..choose import decode_symbols
from ..codec import CODECS, NO_LIMIT, Bound, Cursor, Layout, Symbols, varint
from ..kernels import kernel, pick
from .bytes_of_values import INNER, smallest

__all__ = ["Floats", "join_classes", "split_classes"]

WIDTHS = {2: "<u2", 4: "<u4", 8: "<u8"}
MOST_CLASSES = 15  # that are listed; one more has the rest
CLASS_BITS = 1500.0  # what tables of a class take, about
LEAST = 1024  # bytes: with fewer, next to nothing is lost to what older versions can read

Bytes = NDArray[np.uint8]
Ints = NDArray[np.int64]


@kernel
def split_classes(plane: Bytes, first: Bytes, classes: Bytes, places: Ints, out: Bytes) -> None:
    """Sort a plane by class, keeping the order in each.

    Args:
        plane: bytes, one for each value.
        first: bytes of the first plane, which tell the class.
        classes: (256,) class of each byte of the first plane.
        places: where each class begins in ``out``; changed.
        out: written.
    """
    for at in range(plane.size):
        kind = int(classes[int(first[at])])
        place = int(places[kind])
        if place < out.size:
            out[place] = plane[at]
            places[kind] = place + 1


@kernel
def join_classes(parts: Bytes, first: Bytes, classes: Bytes, places: Ints, out: Bytes) -> None:
    """Undo :func:`split_classes`, from what it wrote."""
    for at in range(out.size):
        kind = int(classes[int(first[at])])
        place = int(places[kind])
        if place < parts.size:
            out[at] = parts[place]
            places[kind] = place + 1


@dataclass(frozen=True, eq=False)
class _Division:
    """Which bytes of the first plane are classes of their own, and how many values each has."""

    listed: tuple[int, ...]
    sizes: tuple[int, ...]

    @classmethod
    def of(cls, listed: tuple[int, ...], counts: Ints) -> _Division:
        sizes = tuple(int(counts[byte]) for byte in listed)
        return cls(listed, (*sizes, int(counts.sum()) - sum(sizes)))

    @property
    def classes(self) -> Bytes:
        """The class of each byte of the first plane: (256,)."""
        found = np.full(256, len(self.listed), np.uint8)
        found[list(self.listed)] = np.arange(len(self.listed), dtype=np.uint8)
        return found

    @property
    def places(self) -> Ints:
        """Where each class begins."""
        return np.cumsum([0, *self.sizes[:-1]]).astype(np.int64)


class Floats:
    """Values of 2, 4 or 8 bytes: the highest byte, then the others by classes of it."""

    name, number, since, tier = "floats", 5, (2, 1), 0
    summary = "exponents, and mantissas given the exponent: floats, none of which changes"
    bound = Bound(1 << 62, 2, fixed_units=1 << 18, bytes_per_symbol=24, fixed_bytes=1 << 22)

    def encode(self, symbols: Symbols, layout: Layout, *, limit: int = NO_LIMIT) -> bytes | None:
        """Return the planes, highest first; None if they are not values of 2, 4 or 8 bytes."""
        if symbols.dtype != np.uint8 or layout.columns not in WIDTHS or layout.size < LEAST:
            return None
        planes = _planes(symbols, layout)
        first = planes[0]
        counts = np.bincount(first, minlength=256)
        out = [_coded(first)]
        for plane in planes[1:]:
            division = _Division.of(_listed(plane, first, counts), counts)
            out.append(bytes([len(division.listed), *division.listed]))
            out += [_coded(part) for part in _split(plane, first, division)]
        data = b"".join(out)
        return data if len(data) <= limit else None

    def decode(self, data: bytes, layout: Layout) -> Symbols:
        """Return the uint8 matrix."""
        if layout.columns not in WIDTHS:
            raise CorruptFileError(f"floats of {layout.columns} bytes: 2, 4 or 8 are allowed")
        cursor, count = Cursor(data), layout.rows
        first = _decoded(cursor, count)
        counts = np.bincount(first, minlength=256)
        planes = [first]
        for _ in range(layout.columns - 1):
            division = _Division.of(_read_listed(cursor, counts), counts)
            parts = [_decoded(cursor, size) for size in division.sizes if size]
            planes.append(_join(parts, first, division))
        cursor.finish()
        return _matrix(planes, layout)

    def measure(self, symbols: Symbols, layout: Layout) -> float | None:
        """Return the bits of ``encode``; no estimate is needed, since methods never ask for it."""
        data = self.encode(symbols, layout)
        return None if data is None else 8.0 * len(data)


def _planes(symbols: Symbols, layout: Layout) -> list[Bytes]:
    """Return the bytes of each value, highest first, after its sign became the lowest bit."""
    width = layout.columns
    values = np.ascontiguousarray(symbols).reshape(-1).view(WIDTHS[width])
    one, top = values.dtype.type(1), values.dtype.type(8 * width - 1)
    turned = ((values << one) | (values >> top)).astype(WIDTHS[width]).view(np.uint8)
    columns = turned.reshape(-1, width)
    return [np.ascontiguousarray(columns[:, place]) for place in reversed(range(width))]


def _matrix(planes: list[Bytes], layout: Layout) -> Symbols:
    """Undo :func:`_planes`."""
    width = layout.columns
    turned = np.empty((layout.rows, width), np.uint8)
    for place, plane in zip(reversed(range(width)), planes, strict=True):
        turned[:, place] = plane
    values = turned.reshape(-1).view(WIDTHS[width])
    one, top = values.dtype.type(1), values.dtype.type(8 * width - 1)
    found: Symbols = ((values >> one) | (values << top)).astype(WIDTHS[width]).view(np.uint8)
    return found.reshape(layout.rows, width)


def _listed(plane: Bytes, first: Bytes, counts: Ints) -> tuple[int, ...]:
    """Return the bytes of the first plane under which a plane is unlike what it is elsewhere."""
    often = np.argsort(-counts, kind="stable")[:MOST_CLASSES]
    often = often[counts[often] * 8.0 > CLASS_BITS]
    if not often.size:
        return ()
    joint = np.bincount(first.astype(np.int64) << 8 | plane, minlength=1 << 16).reshape(256, 256)
    whole = np.bincount(plane, minlength=256)
    other = -np.log2(np.maximum(whole, 1) / plane.size)
    own = joint[often]
    bits = own * (other + np.log2(np.maximum(own, 1) / counts[often, None]))
    saved = bits.sum(axis=1) > CLASS_BITS
    return tuple(sorted(int(byte) for byte in often[saved]))


def _read_listed(cursor: Cursor, counts: Ints) -> tuple[int, ...]:
    count = cursor.byte()
    listed = tuple(cursor.take(count))
    rising = all(a < b for a, b in pairwise(listed))
    if count > MOST_CLASSES or not rising or not all(counts[byte] for byte in listed):
        raise CorruptFileError(f"floats list the classes {listed}")
    return listed


def _split(plane: Bytes, first: Bytes, division: _Division) -> list[Bytes]:
    """Return the bytes of each class that has some."""
    if not division.listed:
        return [plane]
    out, places = np.empty_like(plane), division.places
    pick(plane.size).split_classes(plane, first, division.classes, places.copy(), out)
    ends = zip(places.tolist(), division.sizes, strict=True)
    return [out[start : start + size] for start, size in ends if size]


def _join(parts: list[Bytes], first: Bytes, division: _Division) -> Bytes:
    if not division.listed:
        return parts[0]
    out = np.empty_like(first)
    together = np.concatenate(parts)
    pick(first.size).join_classes(together, first, division.classes, division.places, out)
    return out


def _coded(plane: Bytes) -> bytes:
    """Return number, length and bytes of a plane or a part of it."""
    number, body = smallest(plane)
    return varint(8 * len(body) + number) + body


def _decoded(cursor: Cursor, count: int) -> Bytes:
    length, number = divmod(cursor.varint(), 8)
    if all(number != codec.number for codec in INNER):
        raise CorruptFileError(f"floats cannot use codec number {number}")
    plane = decode_symbols(number, cursor.take(length), Layout(1, count))
    if plane.dtype != np.uint8 and (plane.min() < 0 or plane.max() > 255):
        raise CorruptFileError("a plane contains symbols that are not bytes")
    return np.ascontiguousarray(plane[0]).astype(np.uint8, copy=False)


CODECS.register("floats")(Floats())
