"""``mix``: each symbol as flags whose chances are learnt while coding. The fewest bytes.

For everything that neighbours, filters, rows, columns or their sizes tell about: convolutions,
pruned and depthwise layers, embeddings, tuples. Small matrices may share one stream and what it
has learnt.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from types import SimpleNamespace
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ...errors import CorruptFileError
from .. import state as reg
from ..bitcoder import (
    DECODE,
    ENCODE,
    MEASURE,
    QUARTERS,
    bits_of,
    coded_bytes,
    finish_decoding,
    octaves,
    open_coder,
)
from ..codec import (
    CODECS,
    MAX_SYMBOL,
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
from .mixer import SPAN, STILL, age, new_model, new_table
from .walk import DISTANCE_SHIFT, MEAN_SHIFT

__all__ = ["Mix", "distances_prior", "means_prior", "neighbours", "period_of"]


STEPS = 200  # of plain work for a symbol
FADE = 4  # bits by which what regressions have seen counts less in the next matrix
SAMPLE = 1 << 17  # symbols that an estimate walks
Ints = NDArray[np.int64]
SHOWN = 1 << 14  # symbols that show whether rows are pictures
COLUMNS = slice(sum(SPAN[:3]), sum(SPAN[:4]))
SAME = 64  # in the first byte of settings
PICTURES = 128  # in the last one
MOST_SHIFT = 27
SIDES = range(8, 257)  # of pictures, in symbols
USUAL = np.searchsorted(QUARTERS, np.arange(int(QUARTERS[-1]) + 1))  # a size of each class
LEAST = 1 << 11  # symbols per byte: what a short stream can ask for is bounded
FLAGS, FLAGS_PER_BYTE = 4, 64  # that a stream may have for each symbol, and besides

Values = NDArray[np.int32]
Prices: TypeAlias = NDArray[np.float32]
WORTH, CORNER = 90, -26  # in 1/256: a tap beside or above, and the one between them
MOST_TAPS = 49  # larger kernels are walked as rows
SYMBOLS = 32  # of an alphabet, up to which tuples are looked for


@dataclass(frozen=True)
class Settings:
    """What the head of a stream says of each matrix.

    Attributes:
        lowest, highest: the alphabet.
        centre: the symbol that is coded as "nothing".
        usual: the mean distance from it, in 1/64 of a level.
        period: symbols of the disjoint tuples that the matrix seems to be made of; 1 for none.
        shift: a level of the statistics is ``2**shift`` symbols.
        pictures: whether rows are square pictures, so that symbols have neighbours above.
    """

    lowest: int
    highest: int
    centre: int
    usual: int
    period: int
    shift: int
    pictures: bool = False

    def to_bytes(self, before: Settings | None) -> bytes:
        """Return the settings as a stream has them: one byte if they are as ``before``."""
        mark = octaves(self.usual)
        if before == replace(self, usual=before.usual if before else 0):
            return bytes([SAME + mark])
        numbers = (self.highest - self.lowest, self.centre - self.lowest)
        body = signed_varint(self.lowest) + b"".join(map(varint, numbers))
        last = self.period + 4 * self.shift + PICTURES * self.pictures
        return bytes([mark]) + body + bytes([last])

    @classmethod
    def parse(cls, cursor: Cursor, before: Settings | None) -> Settings:
        """Return the settings that come next in a stream, checked."""
        same, mark = divmod(cursor.byte(), SAME)
        if mark >= len(USUAL) or same > 1 or (same and before is None):
            raise CorruptFileError(f"settings begin with {SAME * same + mark}")
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
                f"settings beyond their bounds: {size} symbols from {lowest}, centre {centre}, "
                f"tuples of {period}, shift {shift}"
            )
        return cls(lowest, lowest + size, lowest + centre, usual, period, shift, bool(pictures))


def _settings(values: Values, layout: Layout) -> Settings:
    """Return the settings that suit ``values``; pictures are tried where rows may be such."""
    plain = _without_pictures(values, layout)
    side = math.isqrt(layout.columns)
    if layout.taps > 1 or layout.width or side not in SIDES or side * side != layout.columns:
        return plain
    sample = values[: max(1, SHOWN // layout.columns)]
    tried = []
    for setting in (plain, replace(plain, pictures=True)):
        stream = _Stream(MEASURE, sample.size)
        stream.walk(sample, replace(layout, rows=len(sample)), setting)
        tried.append((bits_of(stream.state), setting.pictures, setting))
    return min(tried)[2]


def _without_pictures(values: Values, layout: Layout) -> Settings:
    lowest, highest = int(values.min()), int(values.max())
    centre = lowest + _mode(values, lowest, highest)
    away = float(np.abs(values.astype(np.int64) - centre).mean())
    shift = min(max(0, int(away).bit_length() - 5), MOST_SHIFT)
    usual = int(USUAL[octaves(round(64 * away) >> shift)])
    return Settings(lowest, highest, centre, usual, period_of(values, layout), shift)


def _mode(values: Values, lowest: int, highest: int) -> int:
    """Return the most frequent symbol less the lowest; the median where there are many."""
    if highest - lowest < 256:
        return int(np.bincount(values.reshape(-1) - lowest).argmax())
    return int(np.median(values)) - lowest


class _Stream:
    """A model on its way through the matrices of one stream."""

    def __init__(self, mode: int, work: int, data: bytes = b"", room: int = 0) -> None:
        self.kernels: SimpleNamespace = pick(STEPS * work)
        self.state, self.buffer = open_coder(mode, data, room)
        self.state[reg.MOST_FLAGS] = _most_flags(work, len(data)) if mode == DECODE else NO_LIMIT
        self.model = new_model()
        self.distances = new_table(distances_prior())
        self.means: dict[tuple[int, int], NDArray[np.int64]] = {}

    def walk(
        self, values: Values, layout: Layout, settings: Settings, prices: Prices | None = None
    ) -> None:
        """Code one more matrix; fill ``prices`` if they are wanted."""
        if settings.pictures:
            layout = replace(layout, taps=1, width=math.isqrt(layout.columns))
        near = neighbours(layout)
        key = (layout.taps, layout.width)
        if key in self.means:
            age(self.means[key], reg.MEANS, FADE)
        else:
            self.means[key] = new_table(means_prior(layout, near))
        age(self.distances, reg.DISTANCES, FADE)
        self.model[COLUMNS] = STILL  # what columns were like means nothing in another matrix
        self.state[[reg.LOWEST, reg.HIGHEST]] = (
            np.array([settings.lowest, settings.highest]) - settings.centre
        )
        self.state[[reg.SHIFT, reg.CENTRE]] = settings.shift, settings.centre
        self.state[[reg.TAPS, reg.PERIOD]] = layout.taps, settings.period
        self.state[[reg.TOTAL, reg.COUNT]] = 16 * settings.usual, 16
        tallies = np.zeros((3, layout.columns), np.int64)
        tables = (tallies, self.means[key], self.distances)
        own = (values, near, *tables, self.model, self.state, self.buffer)
        if prices is None:
            self.kernels.walk(*own)
        else:
            self.kernels.walk_priced(*own, prices)


def _most_flags(symbols: int, length: int) -> int:
    """Return how many flags the coded bits of a stream may have: what bounds the time."""
    return FLAGS * symbols + FLAGS_PER_BYTE * length


class Mix:
    """Flags, logistic mixing, a binary arithmetic coder."""

    name, number, since, tier = "mix", 3, (2, 0), 1
    summary = "flags with chances learnt from neighbours and sizes: the fewest bytes"
    bound = Bound(LEAST, 70, 1 << 18, bytes_per_symbol=4, bytes_per_line=32, fixed_bytes=1 << 24)

    def encode(self, symbols: Symbols, layout: Layout, *, limit: int = NO_LIMIT) -> bytes | None:
        """Return settings and flags; None for what :meth:`encode_group` does not take."""
        data = self.encode_group([symbols], [layout])
        fits = data is not None and len(data) <= limit and layout.size <= LEAST * len(data)
        return data if fits else None

    def decode(self, data: bytes, layout: Layout) -> Symbols:
        """Return the matrix."""
        return self.decode_group(data, [layout])[0]

    def measure(self, symbols: Symbols, layout: Layout) -> float:
        """Return the bits of a walk over the matrix, or over a sample of its rows."""
        rows = max(1, min(layout.rows, SAMPLE // layout.columns))
        first = (layout.rows - rows) // 2
        values = _values(symbols[first : first + rows])
        settings = _settings(values, layout)
        stream = _Stream(MEASURE, values.size)
        stream.walk(values, replace(layout, rows=rows), settings)
        return 8 * len(settings.to_bytes(None)) + bits_of(stream.state) * layout.rows / rows + 8

    def prices(self, symbols: Symbols, layout: Layout) -> tuple[int, Prices]:
        """Return the lowest symbol, and (rows, columns, alphabet) the bits of every alternative.

        They are those that the model gives when it comes to a symbol, given all before it as they
        are; for choosing symbols by their rate, so ask again after some changes. Memory: 4 bytes
        for each place and alternative; cost: a flag mixed for each.
        """
        values = _values(symbols)
        settings = _settings(values, layout)
        prices = np.empty((*values.shape, settings.highest - settings.lowest + 1), np.float32)
        _Stream(MEASURE, prices.size).walk(values, layout, settings, prices.reshape(-1))
        return settings.lowest, prices

    def encode_group(self, matrices: Sequence[Symbols], layouts: Sequence[Layout]) -> bytes | None:
        """Return one stream for several matrices, in order.

        None where raw fields take less, or where symbols have more flags than a reader allows.
        """
        values = [_values(symbols) for symbols in matrices]
        settings = [_settings(*pair) for pair in zip(values, layouts, strict=True)]
        ranges = [setting.highest - setting.lowest for setting in settings]
        room = sum(v.size * r.bit_length() for v, r in zip(values, ranges, strict=True)) // 8 + 16
        total = sum(v.size for v in values)
        stream = _Stream(ENCODE, total, room=room)
        for item in zip(values, layouts, settings, strict=True):
            stream.walk(*item)
        body = coded_bytes(stream.state, stream.buffer)
        if body is None or stream.state[reg.FLAGS] > _most_flags(total, len(body)):
            return None
        pairs = zip(settings, [None, *settings[:-1]], strict=True)
        head = b"".join(setting.to_bytes(before) for setting, before in pairs)
        return head + body

    def decode_group(self, data: bytes, layouts: Sequence[Layout]) -> list[Symbols]:
        """Return the matrices of one stream."""
        check_bound(self, len(data), Layout(1, sum(layout.size for layout in layouts)))
        cursor = Cursor(data)
        settings: list[Settings] = []
        for _ in layouts:
            settings.append(Settings.parse(cursor, settings[-1] if settings else None))
        stream = _Stream(DECODE, sum(layout.size for layout in layouts), data=cursor.rest())
        out = []
        for layout, setting in zip(layouts, settings, strict=True):
            out.append(np.full((layout.rows, layout.columns), setting.centre, np.int32))
            stream.walk(out[-1], layout, setting)
        if stream.state[reg.FLAGS] > stream.state[reg.MOST_FLAGS]:
            raise CorruptFileError(f"there are more than {stream.state[reg.MOST_FLAGS]} flags")
        finish_decoding(stream.state, stream.buffer)
        return list[Symbols](out)


def _values(symbols: Symbols) -> Values:
    return np.ascontiguousarray(symbols, np.int32)


def _is_kernel(layout: Layout) -> bool:
    return 1 < layout.taps <= MOST_TAPS and layout.width > 0 and layout.taps % layout.width == 0


def neighbours(layout: Layout) -> Ints:
    """Return columns back to ``NEAR`` neighbours, nearest first, then to left, upper, both corners.

    One row for each tap of a kernel, whose neighbours are in the same filter; else one for all.
    """
    return _neighbours(layout.taps if _is_kernel(layout) else 1, layout.width)


@lru_cache(maxsize=256)
def _neighbours(taps: int, width: int) -> Ints:
    if taps == 1:
        far = [width, width - 1, width + 1, 2 * width] if width > 1 else [4, 5, 0, 0]
        around = [1, width, width + 1, width - 1] if width > 1 else [1, 2, 3, 4]
        return np.array([[1, 2, 3, *far, 0, *around]], np.int64)
    rows = []
    for tap in range(taps):
        y, x = divmod(tap, width)
        steps = [(up, left) for up in range(y + 1) for left in range(x - width + 1, x + 1)]
        ranked = sorted((up * up + left * left, up * width + left) for up, left in steps)
        near = [distance for _, distance in ranked if distance > 0][: reg.NEAR]
        over = width if y else 0
        around = [
            min(x, 1),
            over,
            over + 1 if y and x else 0,
            over - 1 if y > 0 and x < width - 1 else 0,
        ]
        rows.append(near + [0] * (reg.NEAR - len(near)) + around)
    return np.array(rows, np.int64)


def means_prior(layout: Layout, near: Ints) -> Ints:
    """Return the weights of the features of a mean before anything is seen."""
    prior = np.zeros((len(near), reg.MEANS), np.int64)
    if len(near) > 1:
        for tap, row in enumerate(near[:, : reg.NEAR].tolist()):
            y, x = divmod(tap, layout.width)
            worth = {1: WORTH} if x else {}
            worth |= {layout.width: WORTH} if y else {}
            worth |= {layout.width + 1: CORNER} if x and y else {}
            for place, distance in enumerate(row):
                prior[tap, place] = worth.get(distance, 0) << (MEAN_SHIFT - 8)
    return prior


def distances_prior() -> Ints:
    """Return those of a distance, for the first tap and for later ones: row times input, filter."""
    prior = np.zeros((2, reg.DISTANCES), np.int64)
    prior[:, [0, 4]] = 1 << (DISTANCE_SHIFT - 1)
    return prior


def period_of(values: NDArray[np.int32], layout: Layout) -> int:
    """Return 2 or 3 if symbols tell each other in disjoint tuples of so many, else 1."""
    lowest, flat = int(values.min()), values.reshape(-1)[:SAMPLE]
    size = int(values.max()) - lowest + 1
    if size > SYMBOLS or flat.size < 4 * size * size:
        return 1
    pairs = (flat[:-1].astype(np.int64) - lowest) * size + (flat[1:] - lowest)
    best, most = 1, 0.02  # bits by which pairs inside and between tuples must differ
    for period in (2, 3):
        if layout.taps > 1 and layout.taps % period == 0:
            continue  # the rows of kernels would seem to be tuples
        told = [_told(pairs[phase::period], size) for phase in range(period)]
        if max(told) - min(told) > most:
            best, most = period, 2 * (max(told) - min(told))
    return best


def _told(pairs: Ints, size: int) -> float:
    """Return the bits that the first symbols of ``pairs`` tell about the second."""
    joint = np.bincount(pairs, minlength=size * size).reshape(size, size) / max(pairs.size, 1)
    apart = joint.sum(axis=1, keepdims=True) * joint.sum(axis=0)
    some = joint > 0
    return float((joint[some] * np.log2(joint[some] / apart[some])).sum())


CODECS.register("mix")(Mix())
