"""``rans``: static tables by class of row, input and tap, in four interleaved lanes. The fastest.

Symbols of alphabets too large for a table keep their low bits raw, and rare symbols are escaped.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ...errors import CorruptFileError
from ..codec import (
    CODECS,
    MAX_SYMBOL,
    MIN_SYMBOL,
    NO_LIMIT,
    Bound,
    Cursor,
    Layout,
    Symbols,
    check_bound,
    signed_varint,
    varint,
)
from ..kernels import pick
from ..numbers import Numbers
from ..raw import pack, unpack
from .classes import Classes, code_classes, fit, shares_of, single_class, slots_of, starts_of
from .lanes import LANES, LOWEST, TOTAL

__all__ = ["Rans"]

ALPHABET = 256
SAMPLE = 1 << 19  # symbols examined to find rare ones
MANY_BYTES = 1 << 15  # so many bytes of values are left to codecs that take them apart
FEW = 3  # so many bins for rare symbols need no escapes
ENCODE_STEPS, DECODE_STEPS = 4, 1  # plain steps per symbol

Bins = NDArray[np.uint8]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Window:
    """The range of symbols that have a bin of their own.

    Attributes:
        first: symbol, without its low bits, of bin 0.
        alphabet: number of bins.
        low: number of raw low bits per symbol.
        escape: bits of an escaped symbol; 0 if all symbols have a bin, else the last bin marks it.
        lowest: offset of escaped symbols.
    """

    first: int
    alphabet: int
    low: int = 0
    escape: int = 0
    lowest: int = 0

    @property
    def dtype(self) -> type[np.int8 | np.uint8 | np.int32]:
        """The dtype that holds all symbols."""
        if self.low or self.escape or self.first < -128:
            return np.int32
        if self.first + self.alphabet <= 128:
            return np.int8
        return np.uint8 if self.first >= 0 and self.first + self.alphabet <= 256 else np.int32

    def to_bytes(self) -> bytes:
        """Encode the window for the head of a stream."""
        head = signed_varint(self.first) + bytes([self.alphabet - 2, self.low, self.escape])
        return head + (signed_varint(self.lowest) if self.escape else b"")

    @classmethod
    def parse(cls, cursor: Cursor) -> Window:
        """Parse and check the window at the head of a stream."""
        first, alphabet = cursor.symbol(), cursor.byte() + 2
        low, escape = cursor.byte(), cursor.byte()
        lowest = cursor.symbol() if escape else 0
        own = alphabet - 1 if escape else alphabet  # bins that stand for symbols
        last = (first + own << low) - 1
        most = lowest + (1 << escape) - 1
        bounded = first << low >= MIN_SYMBOL and max(last, lowest) <= MAX_SYMBOL
        if alphabet > ALPHABET or low > 31 or escape > 32 or not (bounded and most < 1 << 33):
            raise CorruptFileError(
                f"{alphabet} bins from {first}, {low} low bits and {escape}-bit escapes are invalid"
            )
        return cls(first, alphabet, low, escape, lowest)


def _window(symbols: Symbols, lowest: int, highest: int) -> Window:
    """Return the window with the fewest low bits that has a bin for all but rare symbols.

    A symbol is rare if a minimal share of 4096 would cost more than escapes.
    """
    width = (highest - lowest).bit_length()
    sample = symbols.reshape(-1)[:: 1 + symbols.size // SAMPLE].astype(np.int64)
    for low in range(max(0, width - 16), 32):
        first = lowest >> low
        counts = np.bincount((sample >> low) - first)
        kept = np.flatnonzero(counts * (width + 1.44) * TOTAL > 1.44 * sample.size)
        if kept.size and kept[-1] - kept[0] < ALPHABET - 1:
            break
    bottom, span, bins = int(kept[0]), int(kept[-1] - kept[0]) + 1, (highest >> low) - first + 1
    if bins <= min(ALPHABET, span + FEW):
        return Window(first, max(2, bins), low)
    return Window(first + bottom, span + 1, low, width, lowest)


def _bins(symbols: Symbols, window: Window) -> Bins:
    """Return the bin of each symbol."""
    if not window.low and not window.escape:
        bins = np.ascontiguousarray(symbols).astype(np.uint8)  # modulo 256, as is the difference
        bins -= np.uint8(window.first & 255)
        return bins
    places = (symbols.astype(np.int64) >> window.low) - window.first
    last = window.alphabet - 1 if window.escape else window.alphabet
    outside = (places < 0) | (places >= last)
    return np.where(outside, window.alphabet - 1, places).astype(np.uint8)


class Rans:
    """Interleaved rANS."""

    name, number, since, tier = "rans", 2, (2, 0), 0
    summary = "tables by magnitude of row, input and tap, four lanes: the fastest"
    bound = Bound(1 << 15, 1, 1 << 15, bytes_per_symbol=24, bytes_per_line=24, fixed_bytes=1 << 22)

    def encode(self, symbols: Symbols, layout: Layout, *, limit: int = NO_LIMIT) -> bytes | None:
        """Return window, classes with tables, and lanes.

        None if all symbols are equal, or if these are many values of several bytes each, which
        other codecs divide into columns.
        """
        if symbols.dtype == np.uint8 and 1 < layout.columns <= 8 and layout.size > MANY_BYTES:
            return None
        fitted = _fit_window(symbols, layout)
        if fitted is None:
            return None
        window, bins, classes, _ = fitted
        if not window.escape:
            window = Window(window.first, classes.roots.shape[1], window.low)
        else:
            short = window.alphabet - classes.roots.shape[1]
            roots = np.pad(classes.roots, [(0, 0), (0, short)])
            classes = replace(classes, roots=roots)
        numbers = Numbers.writer(layout.rows + layout.columns + 600 * len(classes.roots) + 64)
        code_classes(numbers, classes, window.alphabet)
        side = numbers.to_bytes()
        if side is None:
            return None
        head = window.to_bytes() + varint(len(side)) + side
        data = head + _push(symbols, bins, window, classes)
        return data if len(data) <= limit else None

    def decode(self, data: bytes, layout: Layout) -> Symbols:
        """Decode the matrix: int8 or uint8 if all symbols fit, else int32."""
        check_bound(self, len(data), layout)
        cursor = Cursor(data)
        window = Window.parse(cursor)
        numbers = Numbers.reader(cursor.take(cursor.varint()))
        classes = code_classes(numbers, single_class(layout), window.alphabet)
        numbers.finish()
        bins = np.empty((layout.rows, layout.columns), np.uint8)
        _pull(cursor, bins, classes)
        symbols = _symbols(cursor, bins, window)
        cursor.finish()
        return symbols

    def measure(self, symbols: Symbols, layout: Layout) -> float | None:
        """Return the bits under the tables that ``encode`` would use, including those tables."""
        fitted = _fit_window(symbols, layout)
        if fitted is None:
            return None
        window, bins, _, bits = fitted
        last = window.alphabet - 1
        escapes = int((bins == last).sum()) * window.escape if window.escape else 0
        return bits + escapes + window.low * symbols.size + 8.0 * 24


def _fit_window(symbols: Symbols, layout: Layout) -> tuple[Window, Bins, Classes, float] | None:
    """Return window, bins, classes and estimated bits; None if all symbols are equal."""
    lowest, highest = int(symbols.min()), int(symbols.max())
    if lowest == highest:
        return None
    window = _window(symbols, lowest, highest)
    bins = _bins(symbols, window)
    return window, bins, *fit(bins, layout, pick(ENCODE_STEPS * bins.size))


def _push(symbols: Symbols, bins: Bins, window: Window, classes: Classes) -> bytes:
    """Encode lanes, escapes and low bits of a matrix."""
    shares = np.stack([shares_of(roots) for roots in classes.roots])
    words, states = np.zeros(bins.size + 1, np.uint16), np.zeros(LANES, np.int64)
    at = pick(ENCODE_STEPS * bins.size).push_symbols(
        bins, starts_of(shares), *classes.cells(), words, states
    )
    lanes = states.astype("<u4").tobytes() + words[at:].astype("<u2").tobytes()
    parts = [varint(words.size - at), lanes]
    flat = symbols.reshape(-1)
    if window.escape:
        rare = flat[bins.reshape(-1) == window.alphabet - 1].astype(np.int64)
        parts += [varint(rare.size), pack(rare, window.lowest, window.escape)]
    if window.low:
        parts.append(pack(flat.astype(np.int64) & (1 << window.low) - 1, 0, window.low))
    return b"".join(parts)


def _pull(cursor: Cursor, bins: Bins, classes: Classes) -> None:
    """Decode the lanes that follow into ``bins``."""
    count = cursor.varint()
    states = np.frombuffer(cursor.take(4 * LANES), "<u4").astype(np.int64)
    words = np.frombuffer(cursor.take(2 * count) + bytes(2 * LANES), "<u2").astype(np.uint16)
    if states.min() < LOWEST:
        raise CorruptFileError("a lane starts below the lowest state")
    slots = slots_of(np.stack([shares_of(roots) for roots in classes.roots]))
    cells, levels = classes.cells()
    kernels = pick(DECODE_STEPS * bins.size)
    taken = kernels.pull_symbols(bins, slots, cells, levels, words, states)
    if taken != count or (states != LOWEST).any():
        raise CorruptFileError(f"the lanes do not end with their {count} words")


def _symbols(cursor: Cursor, bins: Bins, window: Window) -> Symbols:
    """Turn ``bins`` into symbols, reading the escapes and low bits that follow."""
    if window.dtype != np.int32:
        bins += np.uint8(window.first & 255)  # modulo 256
        return bins.view(window.dtype)
    # In int32 whatever numpy promotes: an old one keeps the bytes of small scalars, and wraps.
    out = np.add(bins, window.first, dtype=np.int32)
    if window.escape:
        rare = bins == window.alphabet - 1
        wanted = cursor.varint()
        if wanted != np.count_nonzero(rare):
            raise CorruptFileError(f"the stream states {wanted} escapes, but has another number")
        escaped = unpack(cursor, wanted, window.escape) + window.lowest
        if escaped.max(initial=0) > MAX_SYMBOL:
            raise CorruptFileError("a symbol does not fit in 32 bits")
    if window.low:
        out <<= window.low
        out |= unpack(cursor, out.size, window.low).astype(np.int32).reshape(out.shape)
    if window.escape:
        out[rare] = escaped
    return out


CODECS.register("rans")(Rans())
