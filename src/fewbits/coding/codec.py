"""What a codec is, and the registry that finds them by name."""

from __future__ import annotations

from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..registry import Registry
from .work import UNLIMITED, Work

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

    def work(self, data: bytes, rows: int, columns: int) -> Work:
        """Return what ``decode`` costs at most; CorruptFileError where settings tell enough.

        Reads settings alone. ``rows * columns`` is positive, and may be of any size.
        """

    def decode(
        self, data: bytes, rows: int, columns: int, flags_per_byte: int = UNLIMITED
    ) -> Symbols:
        """Return the (rows, columns) matrix; raise CorruptFileError unless ``data`` is just that.

        The caller has bounded ``rows * columns`` and found it positive, and has bounded the work.
        ``flags_per_byte``: what :class:`Work` says of `binary`.
        """


CODECS: Registry[Codec] = Registry("codec")
