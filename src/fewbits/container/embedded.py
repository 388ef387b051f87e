"""A file inside a .safetensors file, as its only tensor; see SPEC.md, section 8."""

from __future__ import annotations

import json
import struct
from contextlib import suppress

from .frame import Fetch

__all__ = ["located", "wrapper"]

_TENSOR = "fewbits"
_LENGTH = struct.Struct("<Q")
_HEADER = 136  # bytes of JSON, padded with spaces; with the length, a multiple of 8
_LONGEST = 1 << 12  # bytes of JSON that are read to find the tensor


def wrapper(size: int) -> bytes:
    """Return what comes before a file of ``size`` bytes; its length does not depend on ``size``."""
    header = {
        "__metadata__": {"format": "pt"},
        _TENSOR: {"dtype": "U8", "shape": [size], "data_offsets": [0, size]},
    }
    return _LENGTH.pack(_HEADER) + json.dumps(header).encode().ljust(_HEADER)


def located(fetch: Fetch, size: int) -> tuple[Fetch, int]:
    """Return how to fetch the bytes of the fewbits file in a file of ``size`` bytes, and its size.

    That is the file itself, unless it is a .safetensors file whose only tensor is named "fewbits",
    has the dtype U8 and covers the rest of the file.
    """
    start = _start(fetch, size)
    if not start:
        return fetch, size
    return lambda first, end: fetch(start + first, start + end), size - start


def _start(fetch: Fetch, size: int) -> int:
    """Return where the embedded file begins; 0 if there is none."""
    if size <= _LENGTH.size + 1:
        return 0
    head = fetch(0, _LENGTH.size + 1)
    (length,) = _LENGTH.unpack_from(head)
    start = _LENGTH.size + length
    if head[-1:] != b"{" or length > _LONGEST or start > size:
        return 0
    with suppress(ValueError, RecursionError):
        header = json.loads(fetch(_LENGTH.size, start))
        rest = size - start
        whole = {"dtype": "U8", "shape": [rest], "data_offsets": [0, rest]}
        if isinstance(header, dict):
            header.pop("__metadata__", None)
        return start if header == {_TENSOR: whole} else 0
    return 0
