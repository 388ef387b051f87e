"""``rans``: static tables by class of row, input and tap; four lanes; restart points. The fastest.

A stream is cut into segments of ``SEGMENT`` symbols that know nothing of each other: all cores
decode one matrix together, and a part of it is decoded alone. Alphabets too large for a table
keep their low bits raw, and what is rare in them is an escape.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
from numpy.typing import NDArray

from ..errors import CorruptFileError
from .classes import Classes, fit, take_classes, undivided
from .codec import NO_LIMIT, Bound, Layout, Symbols, check_bound, register
from .cursor import MAX_SYMBOL, MIN_SYMBOL, Cursor, signed_varint, varint
from .kernels import each, pick
from .lanes import LANES, LOWEST, TOTAL
from .numbers import Numbers
from .raw import pack, unpack
from .tables import shares_of, slots_of, starts_of

__all__ = ["SEGMENT", "Rans"]

SEGMENT = 1 << 18
ALPHABET = 256
SAMPLE = 1 << 19  # symbols that are looked at for what is rare
FEW = 3  # rare symbols that are no reason for escapes
ENCODE_STEPS, DECODE_STEPS = 8, 1  # of plain work for a symbol

Bins = NDArray[np.uint8]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Window:
    """Which symbols have a bin of their own.

    Attributes:
        first: the symbol, less its low bits, that bin 0 stands for.
        alphabet: how many bins there are.
        low: bits of a symbol that are raw.
        escape: bits of a symbol that has no bin, 0 if all have one; then the last bin is for them.
        lowest: what escapes are counted from.
    """

    first: int
    alphabet: int
    low: int = 0
    escape: int = 0
    lowest: int = 0

    @property
    def dtype(self) -> type[np.int8 | np.int32]:
        """What holds all symbols."""
        bare = not (self.low or self.escape)
        narrow = bare and self.first >= -128 and self.first + self.alphabet <= 128
        return np.int8 if narrow else np.int32

    def to_bytes(self) -> bytes:
        """Return the window as a stream begins with it."""
        head = signed_varint(self.first) + bytes([self.alphabet - 2, self.low, self.escape])
        return head + (signed_varint(self.lowest) if self.escape else b"")

    @classmethod
    def parse(cls, cursor: Cursor) -> Window:
        """Return the window that a stream begins with, checked."""
        first, alphabet = cursor.symbol(), cursor.byte() + 2
        low, escape = cursor.byte(), cursor.byte()
        lowest = cursor.symbol() if escape else 0
        own = alphabet - 1 if escape else alphabet  # bins that stand for symbols
        last = (first + own << low) - 1
        most = lowest + (1 << escape) - 1
        bounded = first << low >= MIN_SYMBOL and max(last, lowest) <= MAX_SYMBOL
        if alphabet > ALPHABET or low > 31 or escape > 32 or not (bounded and most < 1 << 33):
            raise CorruptFileError(
                f"{alphabet} bins from {first}, {low} low bits, escapes of {escape} bits"
            )
        return cls(first, alphabet, low, escape, lowest)


def _window(symbols: Symbols, lowest: int, highest: int) -> Window:
    """Return the window with the fewest low bits that has a bin for all but rare symbols.

    Rare is what costs more with a share of 4096, the least there is, than as an escape.
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
    """Interleaved asymmetric numeral systems."""

    name, number, since, tier = "rans", 2, (2, 0), 0
    summary = "tables by size of row, input and tap, four lanes, restart points: the fastest"
    bound = Bound(1 << 15, 4, bytes_per_symbol=24, bytes_per_line=320, fixed_bytes=1 << 22)

    def encode(
        self, symbols: Symbols, layout: Layout, *, limit: int = NO_LIMIT, threads: int = 1
    ) -> bytes | None:
        """Return window, classes with tables, and segments; None for a single value."""
        lowest, highest = int(symbols.min()), int(symbols.max())
        if lowest == highest:
            return None
        window = _window(symbols, lowest, highest)
        bins = _bins(symbols, window)
        kernels = pick(ENCODE_STEPS * bins.size)
        classes, _ = fit(bins, layout, kernels)
        if not window.escape:
            window = Window(window.first, classes.roots.shape[1], window.low)
        else:
            short = window.alphabet - classes.roots.shape[1]
            roots = np.pad(classes.roots, [(0, 0), (0, short)])
            classes = Classes(classes.rows, classes.inputs, classes.taps, classes.tables, roots)
        numbers = Numbers.writer(layout.rows + layout.columns + 600 * len(classes.roots) + 64)
        take_classes(numbers, classes, window.alphabet)
        side = numbers.to_bytes()
        if side is None:
            return None
        coder = _Segments(window, classes, kernels)
        starts = range(0, layout.size, SEGMENT)
        parts = each(lambda start: coder.encode(symbols, bins, start), starts, threads)
        lengths = b"".join(varint(len(part)) for part in parts[:-1])
        data = b"".join([window.to_bytes(), varint(len(side)), side, lengths, *parts])
        return data if len(data) <= limit else None

    def decode(self, data: bytes, layout: Layout, *, threads: int = 1) -> Symbols:
        """Return the matrix."""
        return self.decode_rows(data, layout, 0, layout.rows, threads=threads)

    def decode_rows(
        self, data: bytes, layout: Layout, first: int, stop: int, *, threads: int = 1
    ) -> Symbols:
        """Return rows [first, stop) of the matrix; only their segments are decoded.

        Symbols that fit 8 bits are int8, others int32.
        """
        check_bound(self, len(data), layout)
        cursor = Cursor(data)
        window = Window.parse(cursor)
        numbers = Numbers.reader(cursor.take(cursor.varint()))
        classes = take_classes(numbers, undivided(layout), window.alphabet)
        numbers.finish()
        parts = cursor.parts(-(-layout.size // SEGMENT))
        span = range(first * layout.columns // SEGMENT, -(-stop * layout.columns // SEGMENT))
        begin = span.start * SEGMENT // layout.columns  # the row in which the first segment begins
        end = min(layout.rows, -(-span.stop * SEGMENT // layout.columns))
        shape = (end - begin, layout.columns)
        kernels = pick(DECODE_STEPS * min(layout.size, len(span) * SEGMENT))
        coder = _Segments(window, classes.part(slice(begin, end)), kernels)
        bins, out = np.empty(shape, np.uint8), np.empty(shape, window.dtype)

        def segment(at: int) -> None:
            start = at * SEGMENT
            stop = min(start + SEGMENT, layout.size)
            base = begin * layout.columns
            coder.decode(parts[at], bins, out, start - base, stop - base)

        each(segment, span, threads)
        return out[first - begin : stop - begin]

    def measure(self, symbols: Symbols, layout: Layout) -> float | None:
        """Return the bits under the tables that ``encode`` would find, and those of the tables."""
        lowest, highest = int(symbols.min()), int(symbols.max())
        if lowest == highest:
            return None
        window = _window(symbols, lowest, highest)
        bins = _bins(symbols, window)
        _, bits = fit(bins, layout, pick(ENCODE_STEPS * bins.size))
        last = window.alphabet - 1
        escapes = int((bins == last).sum()) * window.escape if window.escape else 0
        segments = -(-layout.size // SEGMENT)
        return bits + escapes + window.low * symbols.size + 8.0 * (12 * segments + 6)


class _Segments:
    """Codes segments of one matrix."""

    def __init__(self, window: Window, classes: Classes, kernels: SimpleNamespace) -> None:
        self.window, self.kernels = window, kernels
        shares = np.stack([shares_of(roots) for roots in classes.roots])
        self.starts, self.slots = starts_of(shares), slots_of(shares)
        self.cells = classes.cells()
        self.wide = self.cells * np.int32(TOTAL)
        self.levels = classes.rows.astype(np.uint8)

    def encode(self, symbols: Symbols, bins: Bins, start: int) -> bytes:
        """Return the segment that begins at flat symbol ``start``: lanes, escapes, low bits."""
        stop = min(start + SEGMENT, bins.size)
        words, states = np.zeros(stop - start + 1, np.uint16), np.zeros(LANES, np.int64)
        at = self.kernels.push_symbols(
            bins, self.starts, self.cells, self.levels, start, stop, words, states
        )
        lanes = states.astype("<u4").tobytes() + words[at:].astype("<u2").tobytes()
        window, parts = self.window, [varint(words.size - at), lanes]
        if window.low or window.escape:
            flat = symbols.reshape(-1)[start:stop].astype(np.int64)
        if window.escape:
            rare = flat[bins.reshape(-1)[start:stop] == window.alphabet - 1]
            parts += [varint(rare.size), pack(rare, window.lowest, window.escape)]
        if window.low:
            parts.append(pack(flat & (1 << window.low) - 1, 0, window.low))
        return b"".join(parts)

    def decode(self, data: bytes, bins: Bins, out: Symbols, start: int, stop: int) -> None:
        """Decode flat symbols [start, stop) into ``bins`` and ``out``."""
        cursor = Cursor(data)
        count = cursor.varint()
        states = np.frombuffer(cursor.take(4 * LANES), "<u4").astype(np.int64)
        words = np.zeros(min(count, len(data)) + LANES, np.uint16)
        words[:-LANES] = np.frombuffer(cursor.take(2 * count), "<u2")
        if states.min() < LOWEST:
            raise CorruptFileError("a lane begins below its lowest state")
        taken = self.kernels.pull_symbols(
            bins, self.slots, self.wide, self.levels, start, stop, words, states
        )
        if taken != count or (states != LOWEST).any():
            raise CorruptFileError(f"a segment's lanes do not end with their {count} words")
        window = self.window
        found, flat = bins.reshape(-1)[start:stop], out.reshape(-1)[start:stop]
        if window.dtype == np.int8:
            np.add(found.view(np.int8), np.int8(window.first), out=flat)  # modulo 256
        else:
            np.add(found, np.int32(window.first), out=flat)
        if window.escape:
            rare = found == window.alphabet - 1
            wanted = cursor.varint()
            if wanted != np.count_nonzero(rare):
                raise CorruptFileError(f"{wanted} escapes are told, others are found")
            escaped = unpack(cursor, wanted, window.escape) + window.lowest
        if window.low:
            flat <<= window.low
            flat |= unpack(cursor, flat.size, window.low).astype(np.int32)
        if window.escape:
            if escaped.max(initial=0) > MAX_SYMBOL:
                raise CorruptFileError("a symbol does not fit 32 bits")
            flat[rare] = escaped
        cursor.finish()


register(Rans())
