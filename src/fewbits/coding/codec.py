"""What a codec is, what it declares, and the registry in which all others find it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError, CorruptFileError, require
from ..registry import Registry

__all__ = [
    "CODECS",
    "MAX_SYMBOL",
    "MIN_SYMBOL",
    "NO_LIMIT",
    "OWN_NUMBERS",
    "Bound",
    "Codec",
    "Cursor",
    "Layout",
    "Symbols",
    "check_bound",
    "signed_varint",
    "varint",
]


Symbols: TypeAlias = NDArray[np.integer[Any]]

NO_LIMIT = 1 << 62  # bytes
NUMBERS, OWN_NUMBERS = 1 << 16, 64  # of codecs; the first 64 are the specification's
MIN_SYMBOL, MAX_SYMBOL = -(2**31), 2**31 - 1


@dataclass(frozen=True)
class Layout:
    """The shape of a matrix of symbols, and what its columns are.

    Attributes:
        rows, columns: the matrix.
        taps: columns of one filter, next to each other: 9 for kernels of 3 by 3; else 1.
        width: columns to the row above, in a kernel, or in rows that are pictures; 0 for none.
    """

    rows: int
    columns: int
    taps: int = 1
    width: int = 0

    def __post_init__(self) -> None:
        fits = self.taps >= 1 and self.columns % self.taps == 0 and 0 <= self.width <= self.columns
        if self.rows < 0 or self.columns < 0 or not fits:
            raise CorruptFileError(f"no matrix has such a layout: {self}")

    @property
    def size(self) -> int:
        """Symbols in all."""
        return self.rows * self.columns


@dataclass(frozen=True)
class Bound:
    """What a stream can ask of who decodes it, however it was made.

    Attributes:
        symbols_per_byte: of a stream, at most; so bytes bound the time.
        units_per_symbol: of work, where a unit is 10 nanoseconds of a slow core.
        fixed_units: of work besides, whatever the number of symbols.
        bytes_per_symbol: of memory, the decoded symbols included.
        bytes_per_line: of memory besides, for each row and each column.
        fixed_bytes: of memory, besides.
    """

    symbols_per_byte: int
    units_per_symbol: int
    fixed_units: int
    bytes_per_symbol: int
    bytes_per_line: int = 0
    fixed_bytes: int = 0

    def work(self, symbols: int) -> int:
        """Return the units of work of decoding a stream of so many symbols."""
        return self.fixed_units + self.units_per_symbol * symbols

    def memory(self, layout: Layout) -> int:
        """Return the bytes of memory that decoding takes at most."""
        lines = self.bytes_per_line * (layout.rows + layout.columns)
        return self.fixed_bytes + self.bytes_per_symbol * layout.size + lines


class Codec(Protocol):
    """Codes a matrix of 32-bit integers. Register one, and chooser, writer and reader know it.

    Attributes:
        name, number: what it is called, and what stands for it in files, for ever. Codecs of other
            packages take a number from 64 on.
        since: the first format version, (major, minor), that has it; (2, 0) in other packages.
        summary: what it suits, in one line.
        bound: what decoding can cost.
        tier: 0 if it decodes at about the speed of memory, 1 if it learns while decoding.
    """

    name: str
    number: int
    since: tuple[int, int]
    summary: str
    bound: Bound
    tier: int

    def encode(self, symbols: Symbols, layout: Layout, *, limit: int = NO_LIMIT) -> bytes | None:
        """Return the bytes of a non-empty matrix: at most ``limit``, else None.

        None also where the codec does not suit the matrix.
        """

    def decode(self, data: bytes, layout: Layout) -> Symbols:
        """Return the matrix; CorruptFileError for bytes that ``encode`` does not give."""

    def measure(self, symbols: Symbols, layout: Layout) -> float | None:
        """Return about how many bits ``encode`` gives; None where it gives nothing of worth."""


def _check_number(name: str, codec: Codec) -> None:
    """Refuse a number that stands for another codec, or is not the codec's to take."""
    ours = type(codec).__module__.partition(".")[0] == __name__.partition(".")[0]
    low, high = (0, OWN_NUMBERS) if ours else (OWN_NUMBERS, NUMBERS)
    expected = f"an integer in [{low}, {high})"
    require(low <= codec.number < high, f"number of the codec {name!r}", expected, codec.number)
    for other in CODECS.ready():
        if other.number == codec.number and other is not codec:
            raise ConfigError(f"the number {codec.number} of {name!r} is that of {other.name!r}")


CODECS: Registry[Codec] = Registry("codec", "fewbits.codecs", _check_number)


def check_bound(codec: Codec, length: int, layout: Layout) -> None:
    """Raise CorruptFileError if a stream claims more symbols than its bytes can hold."""
    most = codec.bound.symbols_per_byte * length
    if layout.size > most:
        raise CorruptFileError(
            f"{length} bytes of {codec.name!r} hold at most {most} symbols, not {layout.size}"
        )


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
