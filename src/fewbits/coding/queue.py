"""Who takes the symbols of a block: a range encoder, a range decoder, or a meter of bits.

All three have one method, so that a model is run by one loop whatever it is run for. There are
three for flags, too, which come one at a time. The arithmetic is that of ``constriction`` with
``perfect=False``; SPEC.md defines it.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Protocol

import constriction
import numpy as np
from numpy.typing import NDArray

from ..errors import CorruptFileError
from .work import UNLIMITED

__all__ = [
    "CHANCES",
    "Decoder",
    "Encoder",
    "FlagDecoder",
    "FlagEncoder",
    "FlagMeter",
    "Meter",
    "Taker",
]

CHANCES = 1 << 12  # the chance of a flag is a multiple of 1/4096
FLAGS_PER_CALL = 1 << 16
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


class FlagEncoder:
    """A range encoder of flags: collects them, and codes them together at the end."""

    def __init__(self) -> None:
        self._chances: list[int] = []
        self._flags: list[int] = []

    def take_flag(self, chance: int, flag: int) -> int:
        """Append a flag that is 1 with ``chance``, in 1/4096."""
        self._chances.append(chance)
        self._flags.append(flag)
        return flag

    def to_bytes(self) -> bytes:
        """Return all words, without the zero bytes at the very end."""
        coder = Encoder()
        for start in range(0, len(self._flags), FLAGS_PER_CALL):
            part = slice(start, start + FLAGS_PER_CALL)
            ones = np.array(self._chances[part], np.float64)
            flags = np.array(self._flags[part], np.int32)
            coder.take(np.stack([CHANCES - ones, ones], axis=1), flags)
        return coder.to_bytes()


class FlagMeter(FlagEncoder):
    """Counts the bits that an encoder of flags would write, in floating point."""

    @property
    def bits(self) -> float:
        """The information of all flags so far."""
        ones = np.array(self._chances, np.float64)
        known = np.array(self._flags, np.bool_)
        return float(-np.log2(np.where(known, ones, CHANCES - ones) / CHANCES).sum())


class FlagDecoder(Decoder):
    """A range decoder over ``data`` that gives flags one at a time, and so many at ``most``."""

    def __init__(self, data: bytes, most: int = UNLIMITED) -> None:
        super().__init__(data)
        self._decode, self._models = self._coder.decode, _flag_models()
        self._left = most

    def take_flag(self, chance: int, flag: int) -> int:
        """Return the next flag, which is 1 with ``chance``; ``flag`` is not looked at."""
        self._left -= 1
        if self._left < 0:
            raise CorruptFileError(
                "it has more flags than the limit allows. If you trust it, raise max_decoded_bytes"
            )
        try:
            found: int = self._decode(self._models[chance])
        except AssertionError as error:
            raise CorruptFileError("the coded symbols are no such code") from error
        return found


@cache
def _flag_models() -> list[Any]:
    """Return a model of each chance from 1 on; 0 has none."""
    family = constriction.stream.model.Categorical
    pairs = np.arange(CHANCES + 1, dtype=np.float64)
    weights = np.stack([CHANCES - pairs, pairs], axis=1)
    return [None, *(family(pair, perfect=False) for pair in weights[1:CHANCES])]
