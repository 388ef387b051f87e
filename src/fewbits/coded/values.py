"""Distinct values of a network's weights, over all its tensors, and codes of one of them.

Only quantized tensors count. -0.0 and 0.0 are one value.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from .tensors import AffineTensor, CodebookTensor, CodedTensor, GridTensor, TransformTensor

__all__ = [
    "NetworkValues",
    "count_codes",
    "entropy_of",
    "index_of",
    "network_values",
    "terms_of",
    "value_counts",
]

Int32: TypeAlias = NDArray[np.int32]

Counts: TypeAlias = "tuple[NDArray[np.float32], NDArray[np.int64]]"


@dataclass(frozen=True)
class NetworkValues:
    """The distinct values of a network's weights.

    Attributes:
        weights: quantized weights.
        values: distinct values, zero included.
        nonzero_values: distinct values other than zero.
        entropy: bits per weight of the values, zeros included.
        nonzero_entropy: bits per nonzero weight, among nonzero weights only.
        zeros: share of weights that are zero.
        terms: shares of weights whose value is a sum of 0, 1, 2, ... signed powers of two (the
            fewest that suffice; 0 for zero).
    """

    weights: int
    values: int
    nonzero_values: int
    entropy: float
    nonzero_entropy: float
    zeros: float
    terms: tuple[float, ...]

    def to_dict(self) -> dict[str, object]:
        """Return JSON-ready values."""
        return asdict(self) | {"terms": list(self.terms)}


def network_values(tensors: Mapping[str, CodedTensor]) -> NetworkValues:
    """Count the values of all quantized tensors together.

    Args:
        tensors: name to coded tensor; raw tensors are left out, as are transforms, whose values
            are not stored.

    Cost: one pass over the indices; a sort for grids with a step per row.
    """
    values, counts = _joined(value_counts(tensor) for tensor in tensors.values())
    total = int(counts.sum())
    nonzero = counts[values != 0]
    terms = terms_of(values)
    shares = np.bincount(terms, counts, minlength=1) / max(1, total)
    return NetworkValues(
        total,
        len(values),
        len(nonzero),
        entropy_of(counts),
        entropy_of(nonzero),
        (total - int(nonzero.sum())) / max(1, total),
        tuple(float(share) for share in shares) if total else (),
    )


def value_counts(tensor: CodedTensor) -> Counts:
    """Return the distinct values of a tensor in increasing order, and their counts."""
    if isinstance(tensor, CodebookTensor) and tensor.scale.size == 1:
        counts = np.bincount(tensor.index.reshape(-1), minlength=tensor.codebook.values.size)
        values = tensor.codebook.values * tensor.scale[0]
        used = counts > 0
        return _joined([(values[used], counts[used].astype(np.int64))])
    if isinstance(tensor, CodebookTensor | GridTensor):
        values, counts = np.unique(tensor.dequantize() + np.float32(0), return_counts=True)
        return values, counts.astype(np.int64)
    return np.zeros(0, np.float32), np.zeros(0, np.int64)


def terms_of(values: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return the smallest number of signed powers of two that sum to each value (0 for 0).

    These are the nonzero digits in the non-adjacent form of the 24-bit significand. If k is an
    integer multiple of the value by a power of two, they are the ones of ``3k XOR k``.
    """
    mantissa = np.frexp(np.abs(values.astype(np.float64)))[0]
    digits = (mantissa * 2**24).astype(np.int64)
    digits ^= 3 * digits
    count = np.zeros(len(digits), np.int64)
    for bit in range(27):
        count += (digits >> bit) & 1
    return count


def _joined(parts: Iterable[Counts]) -> Counts:
    """Merge the counts of several tensors, adding those of equal values."""
    listed = list(parts)
    if not listed:
        return np.zeros(0, np.float32), np.zeros(0, np.int64)
    values = np.concatenate([part[0] for part in listed]) + np.float32(0)
    counts = np.concatenate([part[1] for part in listed])
    distinct, place = np.unique(values, return_inverse=True)
    return distinct, np.bincount(place, counts, minlength=len(distinct)).astype(np.int64)


def entropy_of(counts: NDArray[np.int64]) -> float:
    """Return the entropy -sum p log2 p in bits; 0 without counts."""
    total = counts.sum()
    if not total:
        return 0.0
    shares = counts[counts > 0] / total
    return max(0.0, float(-(shares * np.log2(shares)).sum()))


def index_of(tensor: CodedTensor) -> Int32 | None:
    """Return the index matrix; for a transform, of its coefficients. None if left in float."""
    leaf = tensor.coefficients if isinstance(tensor, TransformTensor) else tensor
    return leaf.index if isinstance(leaf, GridTensor | AffineTensor | CodebookTensor) else None


def count_codes(index: Int32) -> dict[int, int]:
    """Count each code of an index matrix."""
    values, counts = np.unique(index, return_counts=True)
    return dict(zip(values.tolist(), counts.tolist(), strict=True))
