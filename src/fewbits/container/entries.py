"""What the header says of one tensor: everything but the symbols and the floats."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TypeAlias

from ..coded import FLOAT_DTYPES, RAW_DTYPES, Layout

__all__ = [
    "GROUPED_BYTES",
    "Entry",
    "MatrixEntry",
    "RawEntry",
    "TransformEntry",
    "convertible",
    "default_matrix",
    "leaves",
    "part_of",
]

GROUPED_BYTES = 65_536  # raw tensors up to this size share a stream

Shape: TypeAlias = tuple[int, ...]


@dataclass(frozen=True)
class MatrixEntry:
    """A grid (``codebook`` None) or codebook tensor.

    Attributes:
        matrix: (rows, columns) of the index.
        factors: steps or scales in the side stream: 0 (a scale of 1), 1 or rows.
        per_row: ``factors`` counts rows, not one value.
        offset: twice the offset; None where offsets are in the side stream.
        offsets: how many offsets are in the side stream: 0, 1 or rows.
        codebook: position of the codebook.
    """

    shape: Shape
    dtype: str
    matrix: tuple[int, int]
    layout: Layout | None
    factors: int
    per_row: bool
    offset: int | None
    offsets: int
    codebook: int | None

    @property
    def kind(self) -> str:
        """The name of the kind in reports."""
        return "grid" if self.codebook is None else "codebook"


@dataclass(frozen=True)
class TransformEntry:
    """Two matrix entries and the side of the basis."""

    shape: Shape
    dtype: str
    layout: Layout | None
    coefficients: MatrixEntry
    basis: MatrixEntry
    side: str

    kind = "transform"


@dataclass(frozen=True)
class RawEntry:
    """A tensor left alone; ``stored`` is the dtype of its bytes."""

    shape: Shape
    dtype: str
    stored: str

    kind = "raw"

    @property
    def values(self) -> int:
        """Number of values."""
        return math.prod(self.shape)

    @property
    def width(self) -> int:
        """Bytes of one stored value."""
        return RAW_DTYPES[self.stored]

    @property
    def grouped(self) -> bool:
        """Whether its bytes share a stream with those of other tensors."""
        return self.values * self.width <= GROUPED_BYTES


Entry: TypeAlias = MatrixEntry | TransformEntry | RawEntry


def convertible(stored: str, dtype: str) -> bool:
    """Tell whether a file may hold a tensor of ``dtype`` as bytes of ``stored``."""
    return stored == dtype or (stored in FLOAT_DTYPES and dtype in FLOAT_DTYPES)


def default_matrix(shape: Shape) -> tuple[int, int]:
    """Return rows and columns of the index of a tensor that only needs a reshape."""
    return (shape[0], math.prod(shape[1:])) if shape else (1, 1)


def leaves(entry: Entry) -> Iterator[tuple[str, MatrixEntry]]:
    """Yield (role, entry) of the index matrices of a tensor, in the order of the file."""
    if isinstance(entry, MatrixEntry):
        yield "index", entry
    elif isinstance(entry, TransformEntry):
        yield "coefficients", entry.coefficients
        yield "basis", entry.basis


def part_of(entry: Entry, first: int, stop: int) -> Entry | None:
    """Return the entry of rows [first, stop) of a tensor along its first dimension.

    None where it does not have them, or where rows of its matrix are not those.
    """
    if not entry.shape or not 0 <= first < stop <= entry.shape[0]:
        return None
    shape = (stop - first, *entry.shape[1:])
    if isinstance(entry, RawEntry):
        return None if entry.grouped else replace(entry, shape=shape)
    if isinstance(entry, TransformEntry) or entry.layout is not None:
        return None
    if entry.matrix != default_matrix(entry.shape):
        return None
    factors, offsets = (
        stop - first if count == entry.shape[0] else count
        for count in (entry.factors, entry.offsets)
    )
    return replace(
        entry, shape=shape, matrix=default_matrix(shape), factors=factors, offsets=offsets
    )
