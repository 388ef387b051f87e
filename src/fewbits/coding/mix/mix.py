"""``mix``: symbols as binary flags with adaptively mixed probabilities. The fewest bytes.

It exploits neighbours, filters, rows, columns and magnitudes: convolutions, pruned and depthwise
layers, embeddings, tuples. Small matrices may share a stream and its learned statistics.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
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
    bits_of,
    coded_bytes,
    finish_decoding,
    open_coder,
)
from ..codec import (
    CODECS,
    NO_LIMIT,
    Bound,
    Cursor,
    Layout,
    Symbols,
    check_bound,
)
from ..kernels import pick
from .mixer import SPAN, UNSEEN, discount, new_model, new_table
from .settings import Settings, Values, in_common, shift_of, usual_of
from .walk import DISTANCE_SHIFT, MEAN_SHIFT

__all__ = [
    "Mix",
    "distances_prior",
    "means_prior",
    "neighbours",
    "period_of",
]


STEPS = 200  # plain steps per symbol
FADE = 4  # bits by which regression sums are discounted for the next matrix
SAMPLE = 1 << 17  # symbols measured for an estimate
Ints = NDArray[np.int64]
SHOWN = 1 << 14  # symbols measured to decide whether rows are images
COLUMNS = slice(sum(SPAN[:3]), sum(SPAN[:4]))
SIDES = range(8, 257)  # of square images, in symbols
LEAST = 1 << 11  # symbols per byte: bounds what a short stream can expand to
FLAGS, FLAGS_PER_BYTE = 4, 64  # allowed flags per symbol, plus per byte

Prices: TypeAlias = NDArray[np.float32]
TAP_WEIGHT, CORNER_WEIGHT = (
    90,
    -26,
)  # in 1/256: weight of a tap beside or above, and of the one between
MOST_TAPS = 49  # larger kernels are walked as rows
SYMBOLS = 32  # largest alphabet in which tuples are searched for


def _settings(values: Values, layout: Layout) -> Settings:
    """Choose settings for ``values``; rows that may be square images are tried as such."""
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
    shift = shift_of(values, centre)
    usual = usual_of(values, centre, shift)
    return Settings(lowest, highest, centre, usual, period_of(values, layout), shift)


def _mode(values: Values, lowest: int, highest: int) -> int:
    """Return the most frequent symbol minus the lowest; the median if the range is large."""
    if highest - lowest < 256:
        return int(np.bincount(values.reshape(-1) - lowest).argmax())
    return int(np.median(values)) - lowest


class _Stream:
    """A model that codes the matrices of one stream in turn."""

    def __init__(self, mode: int, work: int, data: bytes = b"", room: int = 0) -> None:
        self.kernels: SimpleNamespace = pick(STEPS * work)
        self.state, self.buffer = open_coder(mode, data, room)
        self.state[reg.MOST_FLAGS] = _most_flags(work, len(data)) if mode == DECODE else NO_LIMIT
        self.model = new_model()
        self.distances = new_table(distances_prior())
        self.means: dict[tuple[int, int], NDArray[np.int64]] = {}

    def walk(
        self,
        values: Values,
        layout: Layout,
        settings: Settings,
        *,
        prices: Prices | None = None,
        reach: int = 1 << 30,
        trellis: bool = False,
    ) -> None:
        """Code the next matrix; fill ``prices`` if given, exact up to ``reach``."""
        if settings.pictures:
            layout = replace(layout, taps=1, width=math.isqrt(layout.columns))
        near = neighbours(layout)
        key = (layout.taps, layout.width)
        if key in self.means:
            discount(self.means[key], reg.MEANS, FADE)
        else:
            self.means[key] = new_table(means_prior(layout, near))
        discount(self.distances, reg.DISTANCES, FADE)
        self.model[COLUMNS] = UNSEEN  # column statistics do not carry over to another matrix
        self.state[[reg.LOWEST, reg.HIGHEST]] = (
            np.array([settings.lowest, settings.highest]) - settings.centre
        )
        self.state[[reg.SHIFT, reg.CENTRE]] = settings.shift, settings.centre
        self.state[[reg.TAPS, reg.PERIOD]] = layout.taps, settings.period
        self.state[[reg.TOTAL, reg.COUNT]] = 16 * settings.usual, 16
        self.state[[reg.TRELLIS, reg.ODD]] = trellis, 0
        tallies = np.zeros((3 + trellis, layout.columns), np.int64)
        tables = (tallies, self.means[key], self.distances)
        own = (values, near, *tables, self.model, self.state, self.buffer)
        if prices is None:
            walk = self.kernels.walk_trellis if trellis else self.kernels.walk
            walk(*own)
        elif trellis:
            halves = np.empty(settings.highest - settings.lowest + 2, np.float32)
            self.kernels.walk_trellis_priced(*own, prices, reach, halves)
        else:
            self.kernels.walk_priced(*own, prices, reach)


def _most_flags(symbols: int, length: int) -> int:
    """Return how many flags the stream may have: this bounds the decoding time."""
    return FLAGS * symbols + FLAGS_PER_BYTE * length


class Mix:
    """Binary flags, logistic mixing and a binary arithmetic coder."""

    name, number, since, tier = "mix", 3, (2, 0), 1
    summary = "adaptive probabilities from neighbours and magnitudes: the fewest bytes"
    bound = Bound(LEAST, 70, 1 << 18, bytes_per_symbol=4, bytes_per_line=32, fixed_bytes=1 << 24)
    trellis = False  # whether columns follow the trellis, which tells the parity of each number

    def encode(self, symbols: Symbols, layout: Layout, *, limit: int = NO_LIMIT) -> bytes | None:
        """Return settings and flags; None if :meth:`encode_group` returns None."""
        data = self.encode_group([symbols], [layout])
        fits = data is not None and len(data) <= limit and layout.size <= LEAST * len(data)
        return data if fits else None

    def decode(self, data: bytes, layout: Layout) -> Symbols:
        """Return the matrix."""
        return self.decode_group(data, [layout])[0]

    def measure(self, symbols: Symbols, layout: Layout) -> float | None:
        """Return the bits of the matrix, measured on it or on a sample of its rows."""
        rows = max(1, min(layout.rows, SAMPLE // layout.columns))
        first = 0 if self.trellis else (layout.rows - rows) // 2
        values = _values(symbols[first : first + rows])
        settings = self.settings_of(values, layout)
        stream = _Stream(MEASURE, values.size)
        stream.walk(values, replace(layout, rows=rows), settings, trellis=self.trellis)
        return 8 * len(settings.to_bytes(None)) + bits_of(stream.state) * layout.rows / rows + 8

    def prices(self, symbols: Symbols, layout: Layout, reach: int = 1 << 30) -> tuple[int, Prices]:
        """Return the lowest symbol, and the bits of every alternative (rows, columns, alphabet).

        These are the model's costs at each position, given all symbols before it as they are. Use
        them to choose symbols by rate, and ask again after some changes. Alternatives further than
        ``reach`` from the symbol and from the most frequent one may be rough, which saves most of
        the time of large alphabets. Memory: 4 bytes per position and alternative; cost: one mixed
        flag each, of those within reach.
        """
        values = _values(symbols)
        settings = self.settings_of(values, layout)
        prices = np.empty((*values.shape, settings.highest - settings.lowest + 1), np.float32)
        stream = _Stream(MEASURE, prices.size)
        flat, trellis = prices.reshape(-1), self.trellis
        stream.walk(values, layout, settings, prices=flat, reach=reach, trellis=trellis)
        return settings.lowest, prices

    def encode_group(self, matrices: Sequence[Symbols], layouts: Sequence[Layout]) -> bytes | None:
        """Encode several matrices in one stream, in order.

        None if raw fields take less, or if symbols need more flags than a reader allows.
        """
        values = [_values(symbols) for symbols in matrices]
        own = [self.settings_of(*pair) for pair in zip(values, layouts, strict=True)]
        ranges, settings = [one.highest - one.lowest for one in own], in_common(own, values)
        room = sum(v.size * r.bit_length() for v, r in zip(values, ranges, strict=True)) // 8 + 16
        total = sum(v.size for v in values)
        stream = _Stream(ENCODE, total, room=room)
        for item in zip(values, layouts, settings, strict=True):
            stream.walk(*item, trellis=self.trellis)
        body = coded_bytes(stream.state, stream.buffer)
        if body is None or stream.state[reg.FLAGS] > _most_flags(total, len(body)):
            return None
        pairs = zip(settings, [None, *settings[:-1]], strict=True)
        head = b"".join(setting.to_bytes(before) for setting, before in pairs)
        return head + body

    def decode_group(self, data: bytes, layouts: Sequence[Layout]) -> list[Symbols]:
        """Decode the matrices of one stream."""
        check_bound(self, len(data), Layout(1, sum(layout.size for layout in layouts)))
        cursor = Cursor(data)
        settings: list[Settings] = []
        for _ in layouts:
            settings.append(Settings.parse(cursor, settings[-1] if settings else None))
            self.check_settings(settings[-1])
        stream = _Stream(DECODE, sum(layout.size for layout in layouts), data=cursor.rest())
        out = []
        for layout, setting in zip(layouts, settings, strict=True):
            out.append(np.full((layout.rows, layout.columns), setting.centre, np.int32))
            stream.walk(out[-1], layout, setting, trellis=self.trellis)
        if stream.state[reg.FLAGS] > stream.state[reg.MOST_FLAGS]:
            raise CorruptFileError(f"there are more than {stream.state[reg.MOST_FLAGS]} flags")
        finish_decoding(stream.state, stream.buffer)
        return list[Symbols](out)

    def settings_of(self, values: Values, layout: Layout) -> Settings:
        """Return the settings with which ``values`` are coded."""
        return _settings(values, layout)

    def check_settings(self, settings: Settings) -> None:
        """Raise CorruptFileError for settings that this codec does not have."""


def _values(symbols: Symbols) -> Values:
    return np.ascontiguousarray(symbols, np.int32)


def _is_kernel(layout: Layout) -> bool:
    return 1 < layout.taps <= MOST_TAPS and layout.width > 0 and layout.taps % layout.width == 0


def neighbours(layout: Layout) -> Ints:
    """Return offsets (columns back): ``NEAR`` neighbours, then left, upper and both corners.

    Nearest first. One row per tap of a kernel, whose neighbours are in the same filter; else one
    row for all columns.
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
    """Return the initial weights of a mean's features."""
    prior = np.zeros((len(near), reg.MEANS), np.int64)
    if len(near) > 1:
        for tap, row in enumerate(near[:, : reg.NEAR].tolist()):
            y, x = divmod(tap, layout.width)
            worth = {1: TAP_WEIGHT} if x else {}
            worth |= {layout.width: TAP_WEIGHT} if y else {}
            worth |= {layout.width + 1: CORNER_WEIGHT} if x and y else {}
            for place, distance in enumerate(row):
                prior[tap, place] = worth.get(distance, 0) << (MEAN_SHIFT - 8)
    return prior


def distances_prior() -> Ints:
    """Return the initial weights of a distance's features, for the first tap and later ones."""
    prior = np.zeros((2, reg.DISTANCES), np.int64)
    prior[:, [0, 4]] = 1 << (DISTANCE_SHIFT - 1)
    return prior


def period_of(values: NDArray[np.int32], layout: Layout) -> int:
    """Return 2 or 3 if symbols depend on each other within disjoint tuples, else 1."""
    lowest, flat = int(values.min()), values.reshape(-1)[:SAMPLE]
    size = int(values.max()) - lowest + 1
    if size > SYMBOLS or flat.size < 4 * size * size:
        return 1
    pairs = (flat[:-1].astype(np.int64) - lowest) * size + (flat[1:] - lowest)
    best, most = 1, 0.02  # bits by which pairs within and across tuples must differ
    for period in (2, 3):
        if layout.taps > 1 and layout.taps % period == 0:
            continue  # rows of kernels would look like tuples
        information = [_mutual_information(pairs[phase::period], size) for phase in range(period)]
        if max(information) - min(information) > most:
            best, most = period, 2 * (max(information) - min(information))
    return best


def _mutual_information(pairs: Ints, size: int) -> float:
    """Return the mutual information between first and second symbols of ``pairs``, in bits."""
    joint = np.bincount(pairs, minlength=size * size).reshape(size, size) / max(pairs.size, 1)
    independent = joint.sum(axis=1, keepdims=True) * joint.sum(axis=0)
    used = joint > 0
    return float((joint[used] * np.log2(joint[used] / independent[used])).sum())


CODECS.register("mix")(Mix())
