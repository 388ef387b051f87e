"""A binary arithmetic coder: carryless, with 32-bit bounds and probabilities in 1/65536.

One kernel measures, encodes and decodes, so the three cannot diverge. The coder uses the first
entries of the state array. The buffer never grows: encoding into a full buffer, or decoding past
its end, sets ``FAILED``.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..errors import CorruptFileError
from . import state as reg
from .kernels import inlined, kernel

__all__ = [
    "COSTS",
    "DECODE",
    "ENCODE",
    "FAILED",
    "MEASURE",
    "ONE",
    "QUARTERS",
    "REACH",
    "RECIPROCALS",
    "SQUASH",
    "STRETCH",
    "bits_of",
    "code_bit",
    "coded_bytes",
    "finish_decoding",
    "interpolate",
    "octaves",
    "open_coder",
    "squash",
    "stretch",
]


MEASURE, ENCODE, DECODE = 0, 1, 2
MODE, LOW, HIGH, CODE, PLACE, COST, FAILED = range(7)
FULL = (1 << 32) - 1
TOP = 0xFF000000
TAIL = 4  # bytes that a decoder reads ahead

Ints = NDArray[np.int64]
Bytes = NDArray[np.uint8]
ONE = 1 << 16
REACH = 3071  # log odds beyond this are as good as certain
LIMIT = 2047  # bound on mixed log odds
# e**(1/256) * 2**64, from the series with exact fractions
STEP = 18518942588666869714
PARTS = 1 << 12  # resolution of probabilities in stretch()
CLASSES = 1 << 13
Table = NDArray[np.int64]
RECIPROCALS: Table = np.array([2 * ONE // (2 * n + 3) for n in range(1024)], np.int64)
# Cost in 1/65536 bit of the probability in the middle of each part. Decoders never use it.
COSTS: Table = np.rint(ONE * np.log2(PARTS / (np.arange(PARTS) + 0.5))).astype(np.int64)


def open_coder(mode: int, data: bytes = b"", room: int = 0) -> tuple[Ints, Bytes]:
    """Return state and buffer: with ``data`` to decode, or ``room`` bytes to encode into."""
    state = np.zeros(reg.SIZE, np.int64)
    state[MODE], state[HIGH] = mode, FULL
    if mode == DECODE:
        buffer = np.frombuffer(data + bytes(TAIL), np.uint8).copy()
        state[CODE], state[PLACE] = int.from_bytes(buffer[:TAIL].tobytes(), "big"), TAIL
        return state, buffer
    return state, np.zeros(room + TAIL, np.uint8)


@inlined
def code_bit(state: Ints, buffer: Bytes, chance: int, bit: int) -> int:
    """Code ``bit``, whose probability of being 1 is in [1, 65535]; when decoding, return it."""
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
    """Write the byte on which both bounds agree, or read the next one."""
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
    """Return the encoded bytes, as few as possible; None if the buffer was too small."""
    place, low, high = (int(state[at]) for at in (PLACE, LOW, HIGH))
    if state[FAILED] or place + TAIL > buffer.size:
        return None
    for length in range(TAIL + 1):  # a decoder reads zeros past the end: use the fewest bytes
        unit = 1 << 8 * (TAIL - length)
        number = -(-low // unit) * unit
        if number <= high:
            break
    return buffer[:place].tobytes() + number.to_bytes(TAIL, "big")[:length]


def bits_of(state: Ints) -> float:
    """Return the measured bits."""
    return int(state[COST]) / ONE


def finish_decoding(state: Ints, buffer: Bytes) -> None:
    """Raise CorruptFileError unless exactly all bytes were used."""
    unread = buffer.size - TAIL - int(state[PLACE])
    if state[FAILED] or unread > 0 or unread < -TAIL:
        raise CorruptFileError(
            f"the coded bits end {'before' if unread > 0 else 'after'} their "
            f"{buffer.size - TAIL} bytes"
        )


def _squash() -> list[int]:
    """Return floor(ONE / (1 + exp(-x / 256))) for x from -REACH to REACH."""
    one = 1 << 64
    powers = [one]
    for _ in range(REACH):
        powers.append(powers[-1] * STEP >> 64)
    upper = [min(ONE - 1, ONE * power // (one + power)) for power in powers]
    lower = [max(1, ONE * one // (one + power)) for power in powers[:0:-1]]
    return lower + upper


def _stretch(squashed: list[int]) -> list[int]:
    """Return the log odds in the middle of each of ``PARTS`` equal parts of [0, 1]."""
    odds, at = [], 0
    for part in range(PARTS):
        middle = (2 * part + 1) * (ONE // PARTS // 2)
        while at < len(squashed) - 1 and squashed[at] < middle:
            at += 1
        odds.append(max(-LIMIT, min(LIMIT, at - REACH)))
    return odds


def _classes() -> list[int]:
    """Return 4 * log2(x + 1), rounded, for x below ``CLASSES``, using exact powers."""
    return [((x + 1) ** 8).bit_length() // 2 for x in range(CLASSES)]


SQUASH: Table = np.array(_squash(), np.int64)
STRETCH: Table = np.array(_stretch(SQUASH.tolist()), np.int64)
QUARTERS: Table = np.array(_classes(), np.int64)


@inlined
def squash(odds: int) -> int:
    """Return the probability, in 1/65536, for log odds."""
    return int(SQUASH[min(max(odds, -REACH), REACH) + REACH])


@inlined
def stretch(chance: int) -> int:
    """Return the log odds for a probability in [0, 65536)."""
    return int(STRETCH[chance >> 4])


@inlined
def octaves(size: int) -> int:
    """Return the class of a size in quarters of an octave, 0 to 52."""
    return int(QUARTERS[min(max(size, 0), CLASSES - 1)])


@inlined
def interpolate(maps: NDArray[np.int32], at: int, part: int) -> int:
    """Interpolate between entries ``at`` and ``at + 1`` of a map, ``part`` in 1/4096."""
    return (int(maps[at]) * (4096 - part) + int(maps[at + 1]) * part) >> 12
