"""Limits of a file: bytes that it may decode to, and units of work (SPEC.md, section 5.1).

Both grow with the length of the file and with what the caller allows, and are checked before
anything is decoded.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from ..coded import RAW_DTYPES
from ..coding import Codec
from ..errors import CorruptFileError
from .entries import Entry, RawEntry, TransformEntry

__all__ = [
    "NAME_SHARE",
    "PER_BYTE_OF_JSON",
    "WORK_PER_BYTE",
    "Limits",
    "body_work",
    "default_limit",
    "entry_work",
    "held_bytes",
    "items_work",
    "restoring_work",
]

PER_BYTE_OF_JSON = 32  # bytes of memory, and units of work
NAME_SHARE = 16  # bytes of memory per byte of a name: as label, as key, in reports
WORK_PER_BYTE = 4096  # units of work per byte of the file, on top of what the caller allows
ENTRY, BODY, ITEM = 4096, 4096, 1024  # units of work
VALUE = 1  # units of work per restored value
FACTOR = 16  # products of a transform per unit of work
STEP = 800  # units of work per basis vector and tile of values
TILE = 1 << 16  # values


def default_limit(size: int) -> int:
    """Return how many bytes a file of ``size`` bytes may decode to by default."""
    return 2**26 + 256 * size


class Limits:
    """Limits of a file of ``size`` bytes, if the caller allows ``decoded`` bytes.

    Attributes:
        decoded: bytes that it may decode to.
        work: units of work that it may take.
    """

    def __init__(self, size: int, decoded: int | None = None) -> None:
        self.decoded = default_limit(size) if decoded is None else decoded
        self._more = WORK_PER_BYTE * size
        self.work = self.decoded + self._more

    def check_size(self, total: int) -> None:
        """Raise CorruptFileError if the file decodes to more bytes than allowed."""
        if total > self.decoded:
            raise CorruptFileError(
                f"the file decodes to about {total} bytes, more than the limit of {self.decoded}. "
                + _how_to_raise(total)
            )

    def check_work(self, units: int) -> None:
        """Raise CorruptFileError if decoding takes more work than allowed."""
        if units > self.work:
            raise CorruptFileError(
                f"decoding the file takes {units} units of work, about {units / 1e8:.1f} seconds, "
                f"more than the limit of {self.work}. " + _how_to_raise(units - self._more)
            )


def _how_to_raise(total: int) -> str:
    return (
        f"If you trust the file, pass max_decoded_bytes={total} to fewbits.load, or "
        f"--max-decoded-mib {-(-total >> 20)} on the command line."
    )


def body_work(codec: Codec, sizes: Sequence[int]) -> int:
    """Return the units of work of a body, given the number of symbols of each chunk in it."""
    return BODY * len(sizes) + codec.bound.work(sum(sizes))


def entry_work(entry: Entry) -> int:
    """Return the units of work of a tensor, not counting its bodies."""
    return ENTRY + _restoring(entry)


def items_work(json: int, entries: int, items: int) -> int:
    """Return the units of work of a header: bytes of JSON, entries and other listed items.

    The items are codebooks, aliases and layers with a quantized input.
    """
    return PER_BYTE_OF_JSON * json + ENTRY * entries + ITEM * items


def held_bytes(entry: Entry) -> int:
    """Return the memory that restoring a tensor takes on top of its decoded streams.

    That is needed if its dtype is wider than the decoded one or not float32, and for the values of
    a transform, which may be many more than those of its factors.
    """
    values, width = math.prod(entry.shape), RAW_DTYPES[entry.dtype]
    if isinstance(entry, RawEntry):
        return values * max(0, width - entry.width)
    other = 0 if entry.dtype == "float32" else width
    return values * (other + 4 * isinstance(entry, TransformEntry))


def restoring_work(entries: Iterable[Entry]) -> int:
    """Return the units of work to restore values from indices."""
    return sum(map(_restoring, entries))


def _restoring(entry: Entry) -> int:
    values = math.prod(entry.shape)
    if not isinstance(entry, TransformEntry):
        return VALUE * values
    parts = sum(_restoring(part) for part in (entry.coefficients, entry.basis))
    rank = entry.basis.shape[1 if entry.side == "left" else 0] if values else 0
    return parts + VALUE * values + rank * (values // FACTOR + STEP * (values // TILE + 1))
