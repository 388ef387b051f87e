"""The indices of a file's tensors, for ``fewbits inspect``; the only part of it that decodes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...coded import CodebookTensor, GridTensor, TransformTensor
from ...coding import entropy
from ...container import read
from ...errors import ConfigError, did_you_mean
from ...report import EntropyRow

__all__ = ["entropy_row", "histogram", "index_matrices"]


def index_matrices(file: Path) -> dict[str, NDArray[np.int32]]:
    """Return the index matrix of every quantized tensor; of a transform, its coefficients."""
    found = {}
    for name, tensor in read(file).tensors.items():
        leaf = tensor.coefficients if isinstance(tensor, TransformTensor) else tensor
        if isinstance(leaf, GridTensor | CodebookTensor):
            found[name] = leaf.index
    return found


def entropy_row(name: str, index: NDArray[np.int32]) -> EntropyRow:
    """Return the entropies of one index matrix."""
    orders = tuple(entropy(index, order) for order in (0, 1, 2))
    return EntropyRow(name, index.size, int(np.unique(index).size), orders)


def histogram(found: dict[str, NDArray[np.int32]], name: str) -> dict[int, int]:
    """Return how often each index of the tensor ``name`` occurs."""
    if name not in found:
        raise ConfigError(f"no quantized tensor {name!r} in the file." + did_you_mean(name, found))
    values, counts = np.unique(found[name], return_counts=True)
    return dict(zip(values.tolist(), counts.tolist(), strict=True))
