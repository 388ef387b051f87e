"""Write a .safetensors file: a JSON header, then the bytes of every tensor."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...files.atomic_write import replacing

__all__ = ["Stored", "stored_array", "stored_tensor", "write_safetensors"]

# Names of the format and bytes per value.
_OF_NUMPY = {
    **{"float64": "F64", "float32": "F32", "float16": "F16", "bool": "BOOL", "complex64": "C64"},
    **{f"int{bits}": f"I{bits}" for bits in (8, 16, 32, 64)},
    **{f"uint{bits}": f"U{bits}" for bits in (8, 16, 32, 64)},
}
_OF_TORCH = {
    **{"bfloat16": "BF16", "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2"},
    **{"float8_e8m0fnu": "F8_E8M0", "float8_e4m3fnuz": "F8_E4M3FNUZ"},
    **{"float8_e5m2fnuz": "F8_E5M2FNUZ"},
}


@dataclass(frozen=True, eq=False)
class Stored:
    """A tensor of the file: its dtype as the format names it, its shape, and its bytes."""

    dtype: str
    shape: tuple[int, ...]
    data: NDArray[Any]


def stored_array(array: NDArray[Any]) -> Stored:
    """Return what the file stores of an array."""
    return Stored(_OF_NUMPY[array.dtype.name], array.shape, np.ascontiguousarray(array))


def stored_tensor(tensor: Tensor) -> Stored | None:
    """Return what the file stores of a tensor; None if the format has no such dtype."""
    name = str(tensor.dtype).removeprefix("torch.")
    dtype = _OF_NUMPY.get(name) or _OF_TORCH.get(name)
    if dtype is None:
        return None
    data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return Stored(dtype, tuple(tensor.shape), data)


def write_safetensors(
    path: Path, tensors: Mapping[str, Stored], metadata: Mapping[str, str]
) -> int:
    """Write the file atomically and return its length.

    Tensors of wide values come first, so that all are aligned; those of one width by name.
    """
    ordered = sorted(tensors.items(), key=lambda item: (-_width(item[1]), item[0]))
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    start = 0
    for name, stored in ordered:
        end = start + stored.data.nbytes
        header[name] = {
            "dtype": stored.dtype,
            "shape": list(stored.shape),
            "data_offsets": [start, end],
        }
        start = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with replacing(path) as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, stored in ordered:
            file.write(stored.data.reshape(-1).view(np.uint8).data)
    return 8 + len(text) + start


def _width(stored: Stored) -> int:
    return stored.data.nbytes // max(1, math.prod(stored.shape))
