"""Settings of a matrix in a stream of ``mix`` or ``trellis``, and those that matrices share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ...errors import CorruptFileError
from ..bitcoder import QUARTERS, octaves
from ..codec import MAX_SYMBOL, Cursor, signed_varint, varint

__all__ = ["MOST_SHIFT", "USUAL", "Settings", "Values", "in_common", "shift_of", "usual_of"]

Values: TypeAlias = NDArray[np.int32]

SAME = 64  # bit in the first byte of settings
PICTURES = 128  # bit in the last byte of settings
MOST_SHIFT = 27
USUAL = np.searchsorted(QUARTERS, np.arange(int(QUARTERS[-1]) + 1))  # a size for each class
SMALL = 1 << 13  # symbols of a matrix that gains less from settings of its own than they take
COARSER = 2  # shifts more than the others', up to which statistics of single symbols will do


@dataclass(frozen=True)
class Settings:
    """Settings of a matrix, stored in the head of its stream.

    Attributes:
        lowest, highest: range of the alphabet.
        centre: the symbol that is coded as zero.
        usual: mean distance from it, in 1/64 of a level.
        period: length of the disjoint tuples that the matrix seems to consist of; 1 for none.
        shift: a level of the statistics is ``2**shift`` symbols.
        pictures: whether rows are square images, so that symbols have neighbours above.
    """

    lowest: int
    highest: int
    centre: int
    usual: int
    period: int
    shift: int
    pictures: bool = False

    def to_bytes(self, before: Settings | None) -> bytes:
        """Encode the settings: in one byte if they equal those before, except for ``usual``."""
        mark = octaves(self.usual)
        if before == replace(self, usual=before.usual if before else 0):
            return bytes([SAME + mark])
        numbers = (self.highest - self.lowest, self.centre - self.lowest)
        body = signed_varint(self.lowest) + b"".join(map(varint, numbers))
        last = self.period + 4 * self.shift + PICTURES * self.pictures
        return bytes([mark]) + body + bytes([last])

    @classmethod
    def parse(cls, cursor: Cursor, before: Settings | None) -> Settings:
        """Parse and check the next settings of a stream."""
        same, mark = divmod(cursor.byte(), SAME)
        if mark >= len(USUAL) or same > 1 or (same and before is None):
            raise CorruptFileError(f"settings have an invalid first byte: {SAME * same + mark}")
        usual = int(USUAL[mark])
        if same and before:
            return replace(before, usual=usual)
        lowest = cursor.symbol()
        size, centre = cursor.varint(), cursor.varint()
        pictures, rest = divmod(cursor.byte(), PICTURES)
        shift, period = divmod(rest, 4)
        allowed = period >= 1 and shift <= MOST_SHIFT
        if not (allowed and lowest + size <= MAX_SYMBOL and centre <= size):
            raise CorruptFileError(
                f"settings out of range: {size} symbols from {lowest}, centre {centre}, "
                f"tuples of {period}, shift {shift}"
            )
        return cls(lowest, lowest + size, lowest + centre, usual, period, shift, bool(pictures))


def shift_of(values: Values, centre: int) -> int:
    """Return the shift at which values are a few levels from the centre."""
    return min(max(0, int(_distance(values, centre)).bit_length() - 5), MOST_SHIFT)


def usual_of(values: Values, centre: int, shift: int) -> int:
    """Return the mean distance from the centre, in 1/64 of a level, as a file has it."""
    return int(USUAL[octaves(round(64 * _distance(values, centre)) >> shift)])


def _distance(values: Values, centre: int) -> float:
    return float(np.abs(values.astype(np.int64) - centre).mean())


def in_common(own: Sequence[Settings], matrices: Sequence[Values]) -> list[Settings]:
    """Return settings for the matrices of one stream, of which as many as possible are the same.

    Settings that equal those before take one byte, others about seven. So the ranges of matrices
    that are alike become one, and small matrices are coded as most of the others.
    """
    most = Counter(map(_kind, own)).most_common(1)[0][0]
    chosen = [_joined(*pair, most) for pair in zip(own, matrices, strict=True)]
    ranges = [(one.lowest, one.highest) for one in chosen if _kind(one) == most]
    lowest, highest = min(low for low, _ in ranges), max(high for _, high in ranges)
    return [
        replace(one, lowest=lowest, highest=highest) if _kind(one) == most else one
        for one in chosen
    ]


def _kind(settings: Settings) -> Settings:
    """Return what matrices that are alike have in common; of a range, its sides of the centre."""
    centre = settings.centre
    below, above = settings.lowest < centre, settings.highest > centre
    return replace(settings, usual=0, lowest=centre - below, highest=centre + above)


def _joined(one: Settings, values: Values, most: Settings) -> Settings:
    """Return settings of the kind ``most`` for a matrix that loses little with them, or its own."""
    other = replace(most, lowest=one.lowest, highest=one.highest)
    near = 64 * abs(one.centre - most.centre) <= one.usual << one.shift
    fits = near and one.shift <= most.shift + COARSER
    if values.size >= SMALL or not fits or _kind(other) != most:
        return one
    return replace(other, usual=usual_of(values, most.centre, most.shift))
