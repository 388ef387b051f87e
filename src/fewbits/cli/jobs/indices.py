"""Decode the indices of a file's tensors, for ``fewbits inspect``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...coded import count_codes, index_of
from ...coding import entropy
from ...container import read
from ...errors import ConfigError, did_you_mean
from ...report import EntropyRow

__all__ = ["entropy_row", "histogram", "index_matrices"]


def index_matrices(file: Path) -> dict[str, NDArray[np.int32]]:
    """Return the index matrix of every quantized tensor; for a transform, of its coefficients."""
    matrices = {}
    for name, tensor in read(file).tensors.items():
        index = index_of(tensor)
        if index is not None:
            matrices[name] = index
    return matrices


def entropy_row(name: str, index: NDArray[np.int32]) -> EntropyRow:
    """Return the entropies of order 0, 1 and 2 of one index matrix."""
    orders = tuple(entropy(index, order) for order in (0, 1, 2))
    return EntropyRow(name, index.size, int(np.unique(index).size), orders)


def histogram(matrices: dict[str, NDArray[np.int32]], name: str) -> dict[int, int]:
    """Count each index of the tensor ``name``."""
    if name not in matrices:
        raise ConfigError(
            f"no quantized tensor {name!r} in the file." + did_you_mean(name, matrices)
        )
    return count_codes(matrices[name])
