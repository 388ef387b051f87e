"""The integer codes of a coded tensor, whatever its kind."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from .tensors import CodebookTensor, CodedTensor, GridTensor, TransformTensor

__all__ = ["count_codes", "index_of"]

Int32: TypeAlias = NDArray[np.int32]


def index_of(tensor: CodedTensor) -> Int32 | None:
    """Return the index matrix; for a transform, of its coefficients. None if left in float."""
    leaf = tensor.coefficients if isinstance(tensor, TransformTensor) else tensor
    return leaf.index if isinstance(leaf, GridTensor | CodebookTensor) else None


def count_codes(index: Int32) -> dict[int, int]:
    """Count each code of an index matrix."""
    values, counts = np.unique(index, return_counts=True)
    return dict(zip(values.tolist(), counts.tolist(), strict=True))
