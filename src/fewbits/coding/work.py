"""What decoding a stream costs, told by its first bytes: so that a reader can refuse beforehand.

A unit is 10 nanoseconds of a slow core, or a byte of scratch memory, whichever is more. What a
codec charges is part of the format (SPEC.md, section 5.1): all readers refuse the same files.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["FLAG", "UNLIMITED", "Work", "are_bytes", "total"]

FLAG = 120  # of a flag of `binary`
UNLIMITED = 1 << 62  # flags for each byte


@dataclass(frozen=True)
class Work:
    """Units, and bytes of what may need more of them.

    Attributes:
        units: known from the sizes and settings of a stream.
        wide: symbols that are decoded to 4 bytes each though their codec is a fast one; where
            symbols should be bytes, that is more than the caller counts.
        flagged: bytes coded by `binary`. ``units`` has one flag for each of its symbols; what more
            there are, only decoding tells. They are allowed in proportion to these bytes.
    """

    units: int
    flagged: int = 0
    wide: int = 0

    def __add__(self, other: Work) -> Work:
        return Work(self.units + other.units, self.flagged + other.flagged, self.wide + other.wide)

    def flags_per_byte(self, limit: int) -> int:
        """Return how many more flags there may be for each flagged byte, within ``limit`` units."""
        return max(0, limit - self.units) // (FLAG * max(1, self.flagged))


def total(works: Iterable[Work]) -> Work:
    """Return the sum."""
    return sum(works, Work(0))


def are_bytes(lowest: int, highest: int) -> bool:
    """Tell whether all symbols in this range are bytes."""
    return lowest >= 0 and highest <= 255
