"""A binary arithmetic coder: the carryless kind with 32-bit bounds, chances in 1/65536.

One kernel measures, encodes and decodes, so the three cannot differ. Its state is the begin of
the desk; the bytes lie in a buffer that never grows: ``FAILED`` is set by who encodes into a
full one, or decodes past its end.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..errors import CorruptFileError
from . import desk as on
from .kernels import inlined, kernel
from .logistic import COSTS, ONE

__all__ = [
    "DECODE",
    "ENCODE",
    "FAILED",
    "MEASURE",
    "bits_of",
    "coded_bytes",
    "finish_decoding",
    "open_coder",
    "take_bit",
]

MEASURE, ENCODE, DECODE = 0, 1, 2
MODE, LOW, HIGH, CODE, PLACE, COST, FAILED = range(7)
FULL = (1 << 32) - 1
TOP = 0xFF000000
TAIL = 4  # bytes that a decoder reads ahead of what it needs

Ints = NDArray[np.int64]
Bytes = NDArray[np.uint8]


def open_coder(mode: int, data: bytes = b"", room: int = 0) -> tuple[Ints, Bytes]:
    """Return state and buffer: ``data`` to decode, ``room`` bytes to encode into."""
    state = np.zeros(on.SIZE, np.int64)
    state[MODE], state[HIGH] = mode, FULL
    if mode == DECODE:
        buffer = np.frombuffer(data + bytes(TAIL), np.uint8).copy()
        state[CODE], state[PLACE] = int.from_bytes(buffer[:TAIL].tobytes(), "big"), TAIL
        return state, buffer
    return state, np.zeros(room + TAIL, np.uint8)


@inlined
def take_bit(state: Ints, buffer: Bytes, chance: int, bit: int) -> int:
    """Code ``bit``, whose chance to be 1 is in [1, 65535]; a decoder returns what it was."""
    if state[MODE] == MEASURE:
        state[COST] += COSTS[(chance if bit else ONE - chance) >> 4]
        return bit
    low, high = int(state[LOW]), int(state[HIGH])
    span = high - low
    middle = low + (span >> 16) * chance + (((span & 0xFFFF) * chance) >> 16)
    if state[MODE] == DECODE:
        bit = 1 if state[CODE] <= middle else 0
    if bit:
        high = middle
    else:
        low = middle + 1
    while (low ^ high) & TOP == 0:
        shift_byte(state, buffer, low >> 24)
        low = (low << 8) & FULL
        high = ((high << 8) & FULL) | 0xFF
    state[LOW] = low
    state[HIGH] = high
    return bit


@kernel
def shift_byte(state: Ints, buffer: Bytes, settled: int) -> None:
    """Write the byte that both bounds share, or read the next one."""
    place = int(state[PLACE])
    state[PLACE] = place + 1
    if place >= buffer.size:
        state[FAILED] = 1
    elif state[MODE] == ENCODE:
        buffer[place] = settled
    if state[MODE] == DECODE:
        following = int(buffer[place]) if place < buffer.size else 0
        state[CODE] = ((int(state[CODE]) << 8) & FULL) | following


def coded_bytes(state: Ints, buffer: Bytes) -> bytes | None:
    """Return what was encoded, in the fewest bytes; None if the buffer was too small."""
    place, low, high = (int(state[at]) for at in (PLACE, LOW, HIGH))
    if state[FAILED] or place + TAIL > buffer.size:
        return None
    for length in range(TAIL + 1):  # zeros follow what is written: some number with them must fit
        unit = 1 << 8 * (TAIL - length)
        number = -(-low // unit) * unit
        if number <= high:
            break
    return buffer[:place].tobytes() + number.to_bytes(TAIL, "big")[:length]


def bits_of(state: Ints) -> float:
    """Return the bits that were measured."""
    return int(state[COST]) / ONE


def finish_decoding(state: Ints, buffer: Bytes) -> None:
    """Raise CorruptFileError unless all bytes were needed and none was missing."""
    unread = buffer.size - TAIL - int(state[PLACE])
    if state[FAILED] or unread > 0 or unread < -TAIL:
        raise CorruptFileError(
            f"coded bits end {'before' if unread > 0 else 'after'} their {buffer.size - TAIL} bytes"
        )
