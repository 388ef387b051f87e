"""What every symbol of a matrix would cost in bits, had it been another: for choosing symbols.

The laws are those that ``adaptive`` has when it comes to the symbol, given all symbols before it
as they are. Changing one changes the laws of those after it; that is left out, so a chooser should
ask again after some changes, and mean over the answers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from .adaptive import best_settings, places_of
from .codec import Symbols
from .filters import Settings, centre_and_spread, run

__all__ = ["Alternatives", "alternatives"]


@dataclass(frozen=True, eq=False)
class Alternatives:
    """Bits of every symbol at every place.

    Attributes:
        lowest: the symbol of the first column of ``bits``.
        bits: (rows, columns, symbols) float32.
        settings: of the model; pass them on when asking again about nearly the same matrix.
    """

    lowest: int
    bits: NDArray[np.float32]
    settings: Settings


class _Listener:
    """Takes known symbols and keeps the laws they were given."""

    def __init__(self) -> None:
        self.laws: list[NDArray[np.float32]] = []

    def take(
        self, weights: NDArray[np.float64], symbols: NDArray[np.int32] | None
    ) -> NDArray[np.int32]:
        """Keep the bits of all symbols."""
        if symbols is None:
            raise TypeError("a listener needs symbols")
        bits = np.log2(weights.sum(axis=1, keepdims=True)) - np.log2(weights)
        self.laws.append(bits.astype(np.float32))
        return symbols


def alternatives(symbols: Symbols, settings: Settings | None = None) -> Alternatives | None:
    """Return the bits of all alternatives to ``symbols`` (rows, columns); None if unsuited.

    That is: what ``adaptive`` does not take. Memory: 4 bytes for each place and symbol between the
    lowest and the highest. Cost: that of coding, and of choosing settings where none are given.
    """
    known = places_of(symbols)
    if known is None:
        return None
    lowest, size, places = known
    if settings is None:
        settings = best_settings(places, size)
        if settings is None:
            return None
    else:
        centre, spread = centre_and_spread(places)
        settings = replace(settings, centre=centre, spread=spread)
    listener = _Listener()
    rows, columns = places.shape
    run(places, (rows, columns), size, settings, listener)
    inputs = columns // settings.taps
    laws = np.concatenate(listener.laws).reshape(settings.taps, rows, inputs, size)
    return Alternatives(lowest, laws.transpose(1, 2, 0, 3).reshape(rows, columns, size), settings)
