"""Frequency tables in a few bits per symbol: logarithms of counts, coarse where it pays.

An error of one level costs little: rounding log2 of a probability to steps of ``d`` costs about
``ln(2) / 24 * d**2`` bits per symbol (0.007 for half octaves), while a byte of table costs 8 bits
once. So the resolution is chosen per table, by the bytes it gives.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from ..errors import CorruptFileError
from .bits import BitReader, BitWriter, golomb_bits

__all__ = ["OCTAVES", "decode_table", "encode_table", "weights"]

OCTAVES = 20  # between the rarest and the most frequent symbol
FINEST = 4  # log2 of the most levels to the octave
ORDERS = 8
# 2**15 * 2**(j / 16): integers, so that no machine rounds them otherwise
FIRST_HALF = (32768, 34219, 35734, 37316, 38968, 40693, 42495, 44376)
SECOND_HALF = (46341, 48393, 50535, 52773, 55109, 57549, 60097, 62757)
MANTISSAS = np.array(FIRST_HALF + SECOND_HALF, np.int64)


def weights(levels: NDArray[np.int64], resolution: int) -> NDArray[np.float64]:
    """Return the weight of each level: 0 for level 0, else an integer below 2**37, exactly."""
    sixteenths = (np.maximum(levels, 1) - 1) << (FINEST - resolution)
    values = MANTISSAS[sixteenths % 16] << (sixteenths // 16)
    return np.where(levels > 0, values, 0).astype(np.float64)


def encode_table(counts: NDArray[np.int64]) -> tuple[bytes, NDArray[np.float64]]:
    """Return the table of ``counts`` (A,) with the fewest bytes in all, and its weights (A,).

    The cost of the symbols under a table is estimated; the estimate picks, the decoder never
    needs it. Cost: 5 resolutions times A.
    """
    tried = []
    for resolution in range(FINEST + 1):
        levels = _quantize(counts, resolution)
        codes = _codes(levels)
        cost = _symbol_bits(counts, levels, resolution) + min(_table_bits(codes))
        tried.append((cost, resolution, codes, levels))
    _, resolution, codes, levels = min(tried, key=lambda item: item[:2])
    sizes = _table_bits(codes)
    order = sizes.index(min(sizes))
    writer = BitWriter()
    for value, run in codes:
        writer.golomb(value, 0 if run else order)
    return bytes([resolution + 8 * order]) + writer.to_bytes(), weights(levels, resolution)


def decode_table(data: bytes, size: int) -> tuple[NDArray[np.float64], int]:
    """Return the weights (size,) and the number of bytes that the table takes."""
    if not data or data[0] & 7 > FINEST or data[0] >> 6:
        raise CorruptFileError("a malformed frequency table")
    resolution, order = data[0] & 7, data[0] >> 3
    highest = (OCTAVES << resolution) + 1
    # No table is longer: 64 bits is above the longest code of a level and its run.
    reader = BitReader(data[1 : 1 + 16 * size])
    levels = np.zeros(size, np.int64)
    place, last = 0, 0
    while place < size:
        code = reader.golomb(order)
        level = last + (code >> 1 if code % 2 == 0 else -(code >> 1) - 1)
        if not 0 <= level <= highest:
            raise CorruptFileError(f"a frequency table holds the level {level}")
        levels[place] = level
        place += 1 if level else 1 + reader.golomb(0)
        last = level or last
    if place > size or last == 0:
        raise CorruptFileError("a frequency table does not fit its alphabet")
    return weights(levels, resolution), 1 + reader.finish()


def _quantize(counts: NDArray[np.int64], resolution: int) -> NDArray[np.int64]:
    """Round log2(counts) to levels, level 1 for the rarest symbol that occurs."""
    used = counts > 0
    # Rounded up, else the most frequent symbol would be more than OCTAVES above it and cut off.
    floor = max(int(counts[used].min()), -(-int(counts.max()) >> OCTAVES))
    ratio = np.maximum(counts, floor) / floor
    # A midpoint between levels is an irrational ratio of counts: no machine meets a tie here.
    levels = np.rint(np.log2(ratio) * (1 << resolution)).astype(np.int64) + 1
    return np.where(used, np.minimum(levels, (OCTAVES << resolution) + 1), 0)


def _codes(levels: NDArray[np.int64]) -> list[tuple[int, bool]]:
    """Return (value, is a run of zeros) for every Exp-Golomb code of the table, in order."""
    codes: list[tuple[int, bool]] = []
    values = levels.tolist()
    place, last = 0, 0
    while place < len(values):
        delta = values[place] - last
        codes.append((2 * delta if delta >= 0 else -2 * delta - 1, False))
        if values[place]:
            last = values[place]
            place += 1
            continue
        end = place + 1
        while end < len(values) and values[end] == 0:
            end += 1
        codes.append((end - place - 1, True))
        place = end
    return codes


def _table_bits(codes: list[tuple[int, bool]]) -> list[int]:
    runs = sum(golomb_bits(value, 0) for value, run in codes if run)
    plain = [value for value, run in codes if not run]
    return [runs + sum(golomb_bits(value, order) for value in plain) for order in range(ORDERS)]


def _symbol_bits(counts: NDArray[np.int64], levels: NDArray[np.int64], resolution: int) -> float:
    total = math.log2(float(weights(levels, resolution).sum())) - 15
    octaves = int((counts * (levels - 1))[counts > 0].sum()) / (1 << resolution)
    return float(int(counts.sum()) * total - octaves)
