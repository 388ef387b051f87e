"""Write a GGUF file: keys with values, names of tensors, then their bytes. And pack its blocks."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...files.atomic_write import replacing
from .integers import Integers

__all__ = ["BLOCK", "Value", "Weights", "blocks_of", "weights_of", "write_gguf"]

Value: TypeAlias = "bool | int | float | str | Sequence[str] | Sequence[int]"

BLOCK = 32  # weights that share a step in Q4_0 and Q8_0
_VERSION = 3
_ALIGNMENT = 32
_U32, _I32, _F32, _BOOL, _STRING, _ARRAY = 4, 5, 6, 7, 8, 9
_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q8_0": 8}
_TYPES |= {"I8": 24, "I16": 25, "I32": 26, "I64": 27, "F64": 28, "BF16": 30}
_OF_TORCH = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float64: "F64",
    torch.int8: "I8",
    torch.int16: "I16",
    torch.int32: "I32",
    torch.int64: "I64",
}
# Dtypes that the format has not, and the narrowest that holds their values.
_WIDER = {
    torch.bool: torch.int8,
    torch.uint8: torch.int16,
    torch.uint16: torch.int32,
    torch.uint32: torch.int64,
    torch.float8_e4m3fn: torch.float32,
    torch.float8_e5m2: torch.float32,
}


@dataclass(frozen=True, eq=False)
class Weights:
    """A tensor of the file: the name of its type, its shape, and its bytes."""

    kind: str
    shape: tuple[int, ...]
    data: NDArray[Any]


def weights_of(values: Tensor) -> Weights | None:
    """Return what the file stores of a tensor's values; None if it has no type for them."""
    values = values.to(_WIDER.get(values.dtype, values.dtype))
    kind = _OF_TORCH.get(values.dtype)
    if kind is None:
        return None
    data = values.contiguous().reshape(-1).view(torch.uint8).numpy()
    return Weights(kind, tuple(values.shape) or (1,), data)


def blocks_of(integers: Integers, shape: tuple[int, ...]) -> Weights:
    """Return blocks of 32 weights: a step in float16, then integers of 4 or 8 bits.

    Args:
        integers: of at most 8 bits, with steps for groups of a multiple of 32 inputs.
        shape: of the weight.
    """
    steps = np.repeat(integers.step, integers.group // BLOCK, axis=1).astype("<f2")
    head = steps.reshape(-1, 1).view(np.uint8)
    blocks = integers.index.reshape(-1, BLOCK)
    if integers.bits <= 4:
        codes = (blocks + 8).astype(np.uint8)
        body = codes[:, : BLOCK // 2] | codes[:, BLOCK // 2 :] << np.uint8(4)
        return Weights("Q4_0", shape, np.concatenate([head, body], axis=1))
    body = blocks.astype(np.int8).view(np.uint8)
    return Weights("Q8_0", shape, np.concatenate([head, body], axis=1))


def write_gguf(path: Path, keys: Mapping[str, Value], tensors: Mapping[str, Weights]) -> int:
    """Write the file atomically and return its length."""
    head = bytearray(b"GGUF" + struct.pack("<IQQ", _VERSION, len(tensors), len(keys)))
    for key, value in keys.items():
        head += _text(key) + _typed(value)
    start = 0
    for name, weights in tensors.items():
        axes = weights.shape[::-1]  # the fastest first
        head += _text(name) + struct.pack(f"<I{len(axes)}Q", len(axes), *axes)
        head += struct.pack("<IQ", _TYPES[weights.kind], start)
        start += _padded(weights.data.nbytes)
    head += bytes(_padded(len(head)) - len(head))
    with replacing(path) as file:
        file.write(head)
        for weights in tensors.values():
            file.write(np.ascontiguousarray(weights.data).reshape(-1).view(np.uint8).data)
            file.write(bytes(_padded(weights.data.nbytes) - weights.data.nbytes))
    return len(head) + start


def _padded(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _typed(value: Value) -> bytes:
    """Return the number of the value's type, and the value."""
    if isinstance(value, bool):
        return struct.pack("<I?", _BOOL, value)
    if isinstance(value, int):
        return struct.pack("<II", _U32, value)
    if isinstance(value, float):
        return struct.pack("<If", _F32, value)
    if isinstance(value, str):
        return struct.pack("<I", _STRING) + _text(value)
    texts = [_text(item) for item in value if isinstance(item, str)]
    head = struct.pack("<IIQ", _ARRAY, _STRING if texts else _I32, len(value))
    return head + (b"".join(texts) or struct.pack(f"<{len(value)}i", *value))
