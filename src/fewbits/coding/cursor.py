"""Integers of variable length, and a cursor that reads them and never runs past the end."""

from __future__ import annotations

from ..errors import CorruptFileError

__all__ = ["MAX_SYMBOL", "MIN_SYMBOL", "Cursor", "signed_varint", "varint"]

MIN_SYMBOL, MAX_SYMBOL = -(2**31), 2**31 - 1


def varint(value: int) -> bytes:
    """Return ``value`` >= 0 in groups of 7 bits, low groups first."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def signed_varint(value: int) -> bytes:
    """Return ``value`` of either sign, small magnitudes in few bytes (zigzag)."""
    return varint(2 * value if value >= 0 else -2 * value - 1)


class Cursor:
    """Reads a byte string from front to back; what is missing is a CorruptFileError."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.position = 0

    def byte(self) -> int:
        """Return the next byte."""
        return self.take(1)[0]

    def varint(self) -> int:
        """Return the next unsigned integer, below 2**64."""
        value = 0
        for shift in range(0, 70, 7):
            byte = self.byte()
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                if value >= 2**64 or (byte == 0 and shift):
                    break
                return value
        raise CorruptFileError(f"a malformed integer before byte {self.position}")

    def symbol(self) -> int:
        """Return the next signed integer, which must be a symbol."""
        code = self.varint()
        value = code >> 1 if code % 2 == 0 else -(code >> 1) - 1
        if not MIN_SYMBOL <= value <= MAX_SYMBOL:
            raise CorruptFileError(f"the symbol {value} does not fit 32 bits")
        return value

    def take(self, count: int) -> bytes:
        """Return the next ``count`` bytes."""
        left = len(self.data) - self.position
        if count > left:
            raise CorruptFileError(
                f"it ends early: {count} bytes wanted at byte {self.position}, {left} left"
            )
        self.position += count
        return self.data[self.position - count : self.position]

    def rest(self) -> bytes:
        """Return all bytes that are left."""
        return self.take(len(self.data) - self.position)

    def finish(self) -> None:
        """Raise unless every byte has been read."""
        if self.position != len(self.data):
            raise CorruptFileError(f"{len(self.data) - self.position} bytes too many")
