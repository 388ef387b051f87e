"""Side information: lists of small integers, coded by adaptive bits per kind."""

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
    code_bit,
    coded_bytes,
    finish_decoding,
    open_coder,
)
from .kernels import kernel, pick

__all__ = ["Numbers", "code_numbers"]

KINDS = 16
NODES = 48  # adaptive bits per kind: unary length, then the first bit below it
LENGTHS = 24
HALF, SPEED = 1 << 15, 4

Ints = NDArray[np.int64]


@kernel
def code_adaptive(state: Ints, buffer: NDArray[np.uint8], chances: Ints, at: int, bit: int) -> int:
    """Code a bit with an adaptive probability."""
    chance = int(chances[at])
    bit = code_bit(state, buffer, chance, bit)
    moved = chance + ((((1 << 16) - 1 if bit else 0) - chance) >> SPEED)
    chances[at] = max(moved, 64)
    return bit


@kernel
def code_numbers(
    state: Ints, buffer: NDArray[np.uint8], chances: Ints, kinds: Ints, numbers: Ints
) -> None:
    """Code signed integers in Exp-Golomb codes, each adapting to its kind (or all to one kind).

    Stops at the end of the bytes, so that the time is bounded by their number.
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
                code_adaptive(state, buffer, chances, base + size, 1 if code >> (size + 1) else 0)
                == 0
            ):
                break
            size += 1
        value = 1
        for rest in range(size - 1, -1, -1):
            bit = code >> rest & 1
            if rest == size - 1:
                bit = code_adaptive(state, buffer, chances, base + LENGTHS + size, bit)
            else:
                bit = code_bit(state, buffer, HALF, bit)
            value = 2 * value + bit
        value -= 1
        numbers[at] = value >> 1 if value & 1 == 0 else -(value >> 1) - 1


class Numbers:
    """Writes lists of integers, reads them back, or counts their bits."""

    def __init__(self, mode: int, data: bytes = b"", room: int = 0) -> None:
        self.state, self.buffer = open_coder(mode, data, room)
        self.chances = np.full(KINDS * NODES, HALF, np.int64)

    @classmethod
    def writer(cls, room: int) -> Numbers:
        """Return a writer into at most ``room`` bytes."""
        return cls(ENCODE, room=room)

    @classmethod
    def reader(cls, data: bytes) -> Numbers:
        """Return a reader for ``data``."""
        return cls(DECODE, data)

    @classmethod
    def meter(cls) -> Numbers:
        """Return an instance that only counts bits."""
        return cls(MEASURE)

    def code(self, numbers: Ints, kinds: Ints | int) -> Ints:
        """Write ``numbers``, or return those read; CorruptFileError if bytes are missing."""
        result = numbers.astype(np.int64)
        kinds = np.atleast_1d(np.asarray(kinds, np.int64))
        pick(20 * result.size).code_numbers(self.state, self.buffer, self.chances, kinds, result)
        if self.state[FAILED] and self.state[0] == DECODE:
            raise CorruptFileError(f"the side information ends within {result.size} numbers")
        return result

    def bits(self) -> float:
        """Return the bits counted."""
        return bits_of(self.state)

    def to_bytes(self) -> bytes | None:
        """Return the bytes written; None if they exceeded the room."""
        return coded_bytes(self.state, self.buffer)

    def finish(self) -> None:
        """Raise CorruptFileError unless exactly all bytes were read."""
        finish_decoding(self.state, self.buffer)
