"""The values that the weights of a whole network have, whatever tensor they are in.

Counts over all quantized tensors; what is left alone does not count. -0.0 and 0.0 are one value.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from .tensors import CodebookTensor, CodedTensor, GridTensor

__all__ = ["NetworkValues", "entropy_of", "network_values", "terms_of", "value_counts"]

Counts: TypeAlias = "tuple[NDArray[np.float32], NDArray[np.int64]]"


@dataclass(frozen=True)
class NetworkValues:
    """The distinct values of a network's weights.

    Attributes:
        weights: quantized weights.
        values: distinct values, zero included.
        nonzero_values: distinct values other than zero.
        entropy: bits per weight of the values, zeros included.
        nonzero_entropy: bits per weight that is not zero, of those alone.
        zeros: share of weights that are zero.
        terms: share of weights by the signed powers of two that their value is a sum of (fewest;
            0 for zero), from 0 on.
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
        tensors: of a network; raw ones and transforms, whose values nobody stores, are left out.

    Cost: a pass over the indices; for grids with a step for each row, a sort.
    """
    values, counts = _joined(value_counts(tensor) for tensor in tensors.values())
    total = int(counts.sum())
    away = counts[values != 0]
    places = terms_of(values)
    shares = np.bincount(places, counts, minlength=1) / max(1, total)
    return NetworkValues(
        total,
        len(values),
        len(away),
        entropy_of(counts),
        entropy_of(away),
        (total - int(away.sum())) / max(1, total),
        tuple(float(share) for share in shares) if total else (),
    )


def value_counts(tensor: CodedTensor) -> Counts:
    """Return the increasing distinct values of a tensor, and how often each occurs."""
    if isinstance(tensor, CodebookTensor) and tensor.scale.size == 1:
        counts = np.bincount(tensor.index.reshape(-1), minlength=tensor.codebook.values.size)
        values = tensor.codebook.values * tensor.scale[0]
        there = counts > 0
        return _joined([(values[there], counts[there].astype(np.int64))])
    if isinstance(tensor, CodebookTensor | GridTensor):
        values, counts = np.unique(tensor.dequantize() + np.float32(0), return_counts=True)
        return values, counts.astype(np.int64)
    return np.zeros(0, np.float32), np.zeros(0, np.int64)


def terms_of(values: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return the fewest signed powers of two whose sum is each value: 0 for 0, 2 for 0.75.

    The nonzero digits of the non-adjacent form of its 24-bit significand: those of k, any multiple
    of it by a power of two, are the ones of ``3k XOR k``.
    """
    mantissa = np.frexp(np.abs(values.astype(np.float64)))[0]
    digits = (mantissa * 2**24).astype(np.int64)
    digits ^= 3 * digits
    count = np.zeros(len(digits), np.int64)
    for bit in range(27):
        count += (digits >> bit) & 1
    return count


def _joined(parts: Iterable[Counts]) -> Counts:
    """Return the counts of several tensors together, equal values merged."""
    found = list(parts)
    if not found:
        return np.zeros(0, np.float32), np.zeros(0, np.int64)
    values = np.concatenate([part[0] for part in found]) + np.float32(0)
    counts = np.concatenate([part[1] for part in found])
    known, place = np.unique(values, return_inverse=True)
    return known, np.bincount(place, counts, minlength=len(known)).astype(np.int64)


def entropy_of(counts: NDArray[np.int64]) -> float:
    """Return -sum p log2 p in bits; 0 without counts."""
    total = counts.sum()
    if not total:
        return 0.0
    shares = counts[counts > 0] / total
    return max(0.0, float(-(shares * np.log2(shares)).sum()))
