"""Strings of bits and Exp-Golomb codes: what a frequency table is written in."""

from __future__ import annotations

from ..errors import CorruptFileError

__all__ = ["BitReader", "BitWriter", "golomb_bits"]


def golomb_bits(value: int, order: int) -> int:
    """Return the length in bits of ``value`` >= 0 in the Exp-Golomb code of ``order``."""
    length = (value + (1 << order)).bit_length()
    return 2 * length - order - 1


class BitWriter:
    """Collects bits, high bit first."""

    def __init__(self) -> None:
        self._fields: list[str] = []

    def golomb(self, value: int, order: int) -> None:
        """Append ``value`` >= 0: zeros that tell the length, then ``value + 2**order``."""
        field = f"{value + (1 << order):b}"
        self._fields.append("0" * (len(field) - order - 1) + field)

    def to_bytes(self) -> bytes:
        """Return all bits, filled up to a byte with zeros."""
        text = "".join(self._fields)
        size = (len(text) + 7) // 8
        return int(text.ljust(8 * size, "0") or "0", 2).to_bytes(size, "big")


class BitReader:
    """Reads bits from ``data``; what is missing is a CorruptFileError."""

    def __init__(self, data: bytes) -> None:
        # One character per bit: find() is then the fast way to count zeros.
        self._text = f"{int.from_bytes(data, 'big'):0{8 * len(data)}b}" if data else ""
        self._position = 0

    def golomb(self, order: int) -> int:
        """Return the next value of the Exp-Golomb code of ``order``."""
        one = self._text.find("1", self._position, self._position + 32)
        end = 2 * one - self._position + order + 1
        if one < 0 or end > len(self._text):
            raise CorruptFileError("a frequency table ends early or holds an endless code")
        self._position = end
        return int(self._text[one:end], 2) - (1 << order)

    def finish(self) -> int:
        """Return the number of bytes read; the bits that fill the last one must be zero."""
        size = (self._position + 7) // 8
        if "1" in self._text[self._position : 8 * size]:
            raise CorruptFileError("the last bits of a frequency table are not zero")
        return size
