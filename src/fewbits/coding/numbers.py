"""Side information: small integers of several kinds, by adaptive bits of the binary coder."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..errors import CorruptFileError
from .bitcoder import (
    DECODE,
    ENCODE,
    FAILED,
    MEASURE,
    bits_of,
    coded_bytes,
    finish_decoding,
    open_coder,
    take_bit,
)
from .kernels import kernel, pick

__all__ = ["Numbers", "take_numbers"]

KINDS = 16
NODES = 48  # adaptive bits of a kind: unary length, then first bits below it
LENGTHS = 24
HALF, SPEED = 1 << 15, 4

Ints = NDArray[np.int64]


@kernel
def take_adaptive(state: Ints, buffer: NDArray[np.uint8], chances: Ints, at: int, bit: int) -> int:
    """Code a bit with an adaptive chance."""
    chance = int(chances[at])
    bit = take_bit(state, buffer, chance, bit)
    moved = chance + ((((1 << 16) - 1 if bit else 0) - chance) >> SPEED)
    chances[at] = max(moved, 64)
    return bit


@kernel
def take_numbers(
    state: Ints, buffer: NDArray[np.uint8], chances: Ints, kinds: Ints, numbers: Ints
) -> None:
    """Code integers of either sign, each by the statistics of its kind, or all by those of one.

    These are Exp-Golomb codes. Ends where bytes do: what they do not pay for is not read.
    """
    for at in range(numbers.size):
        if state[FAILED]:
            return
        base = int(kinds[at if kinds.size > 1 else 0]) * NODES
        known = int(numbers[at])
        code = (2 * known if known >= 0 else -2 * known - 1) + 1
        size = 0
        while size < LENGTHS - 1:
            if (
                take_adaptive(state, buffer, chances, base + size, 1 if code >> (size + 1) else 0)
                == 0
            ):
                break
            size += 1
        value = 1
        for rest in range(size - 1, -1, -1):
            bit = code >> rest & 1
            if rest == size - 1:
                bit = take_adaptive(state, buffer, chances, base + LENGTHS + size, bit)
            else:
                bit = take_bit(state, buffer, HALF, bit)
            value = 2 * value + bit
        value -= 1
        numbers[at] = value >> 1 if value & 1 == 0 else -(value >> 1) - 1


class Numbers:
    """Writes lists of integers, or reads them back."""

    def __init__(self, mode: int, data: bytes = b"", room: int = 0) -> None:
        self.state, self.buffer = open_coder(mode, data, room)
        self.chances = np.full(KINDS * NODES, HALF, np.int64)

    @classmethod
    def writer(cls, room: int) -> Numbers:
        """Return a writer into at most ``room`` bytes."""
        return cls(ENCODE, room=room)

    @classmethod
    def reader(cls, data: bytes) -> Numbers:
        """Return a reader of ``data``."""
        return cls(DECODE, data)

    @classmethod
    def meter(cls) -> Numbers:
        """Return what only counts bits."""
        return cls(MEASURE)

    def take(self, numbers: Ints, kinds: Ints | int) -> Ints:
        """Write ``numbers``, or return those read; CorruptFileError where bytes are missing."""
        found = numbers.astype(np.int64)
        kinds = np.atleast_1d(np.asarray(kinds, np.int64))
        pick(20 * found.size).take_numbers(self.state, self.buffer, self.chances, kinds, found)
        if self.state[FAILED] and self.state[0] == DECODE:
            raise CorruptFileError(f"side information ends after {found.size} numbers or before")
        return found

    def bits(self) -> float:
        """Return the bits counted."""
        return bits_of(self.state)

    def to_bytes(self) -> bytes | None:
        """Return what was written; None if it found no room."""
        return coded_bytes(self.state, self.buffer)

    def finish(self) -> None:
        """Raise CorruptFileError unless exactly all bytes were read."""
        finish_decoding(self.state, self.buffer)
