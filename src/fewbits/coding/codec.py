"""What a codec is, and the registry that finds them by name."""

from __future__ import annotations

from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..registry import Registry

__all__ = ["CODECS", "MAX_SYMBOL", "MIN_SYMBOL", "Codec", "Symbols"]

Symbols: TypeAlias = NDArray[np.integer[Any]]

MIN_SYMBOL, MAX_SYMBOL = -(2**31), 2**31 - 1


class Codec(Protocol):
    """Codes a whole matrix of integers, so a codec may learn from rows and columns.

    Attributes:
        number: what stands for the codec in a file; it never changes and is never used again.
        summary: one line for people.
    """

    number: int
    summary: str

    def encode(self, symbols: Symbols) -> bytes | None:
        """Return the bytes of a non-empty (rows, columns) matrix, or None if it cannot be coded."""

    def decode(self, data: bytes, rows: int, columns: int) -> Symbols:
        """Return the (rows, columns) matrix; raise CorruptFileError unless ``data`` is just that.

        The caller has bounded ``rows * columns`` and found it positive.
        """


CODECS: Registry[Codec] = Registry("codec")
