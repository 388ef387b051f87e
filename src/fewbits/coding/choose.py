"""Choose the codec by the bytes that it gives, and find it again by its number."""

from __future__ import annotations

import numpy as np

from ..errors import CorruptFileError
from .codec import CODECS, MAX_SYMBOL, MIN_SYMBOL, Symbols

__all__ = ["decode_stream", "encode_stream", "name_of"]


def encode_stream(symbols: Symbols) -> tuple[str, bytes]:
    """Return the codec's name and the bytes of ``symbols`` (rows, columns): the fewest of all.

    Never more than raw packing, which is one of the candidates. Symbols are integers of 32 bits;
    among equals the codec registered first wins, so the choice is the same every time.
    """
    if symbols.size == 0:
        return "constant", b""
    if symbols.min() < MIN_SYMBOL or symbols.max() > MAX_SYMBOL:
        raise ValueError("symbols must fit 32 bits")
    coded = ((name, codec.encode(symbols)) for name, codec in CODECS.items())
    found = [(name, data) for name, data in coded if data is not None]
    return min(found, key=lambda item: len(item[1]))


def decode_stream(name: str, data: bytes, rows: int, columns: int) -> Symbols:
    """Return the (rows, columns) integer matrix that ``data`` codes with the codec ``name``.

    Raises CorruptFileError for anything but exactly that. The caller bounds ``rows * columns``.
    """
    if rows * columns == 0:
        if data:
            raise CorruptFileError("bytes for a matrix without symbols")
        return np.zeros((rows, columns), np.int32)
    return CODECS[name].decode(data, rows, columns)


def name_of(number: int) -> str:
    """Return the name of the codec with this number in files."""
    for name, codec in CODECS.items():
        if codec.number == number:
            return name
    raise CorruptFileError(
        f"it is coded by codec number {number}, unknown to this version. Install a newer fewbits."
    )
