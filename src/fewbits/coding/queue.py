"""Who takes the symbols of a block: a range encoder, a range decoder, or a meter of bits.

All three have one method, so that a model is run by one loop whatever it is run for. The
arithmetic is that of ``constriction`` with ``perfect=False``; SPEC.md defines it.
"""

from __future__ import annotations

from typing import Protocol

import constriction
import numpy as np
from numpy.typing import NDArray

from ..errors import CorruptFileError

__all__ = ["Decoder", "Encoder", "Meter", "Taker"]

_FAMILY = constriction.stream.model.Categorical(perfect=False)


class Taker(Protocol):
    """Takes blocks of symbols, each with its own weights."""

    def take(
        self, weights: NDArray[np.float64], symbols: NDArray[np.int32] | None
    ) -> NDArray[np.int32]:
        """Return the symbols (n,) of a block with ``weights`` (n, A); only a decoder needs none."""


class Encoder:
    """A range encoder: first in, first out."""

    def __init__(self) -> None:
        self._coder = constriction.stream.queue.RangeEncoder()

    def take(
        self, weights: NDArray[np.float64], symbols: NDArray[np.int32] | None
    ) -> NDArray[np.int32]:
        """Append the symbols."""
        if symbols is None:
            raise TypeError("an encoder needs symbols")
        self._coder.encode(symbols, _FAMILY, weights)
        return symbols

    def to_bytes(self) -> bytes:
        """Return all words, without the zero bytes at the very end."""
        words = np.asarray(self._coder.get_compressed(), dtype="<u4")
        return words.tobytes().rstrip(b"\0")


class Decoder:
    """A range decoder over ``data``; missing words are zero."""

    def __init__(self, data: bytes) -> None:
        if data.endswith(b"\0"):
            raise CorruptFileError("the coded symbols end with a zero byte")
        words = np.frombuffer(data + bytes(-len(data) % 4), "<u4").astype(np.uint32)
        self._coder = constriction.stream.queue.RangeDecoder(words)

    def take(
        self, weights: NDArray[np.float64], symbols: NDArray[np.int32] | None
    ) -> NDArray[np.int32]:
        """Return the next symbols."""
        try:
            found: NDArray[np.int32] = self._coder.decode(_FAMILY, weights)
        except AssertionError as error:  # how the library says it
            raise CorruptFileError("the coded symbols are no such code") from error
        return found

    def finish(self) -> None:
        """Raise if words are left that no symbol has reached."""
        if not self._coder.maybe_exhausted():
            raise CorruptFileError("coded symbols are left over")


class Meter:
    """Counts the bits that an encoder would write, in floating point: for choices and reports."""

    def __init__(self) -> None:
        self.bits = 0.0

    def take(
        self, weights: NDArray[np.float64], symbols: NDArray[np.int32] | None
    ) -> NDArray[np.int32]:
        """Add the information of the symbols."""
        if symbols is None:
            raise TypeError("a meter needs symbols")
        chosen = weights[np.arange(symbols.size), symbols]
        self.bits += float(np.log2(weights.sum(axis=1) / chosen).sum())
        return symbols
