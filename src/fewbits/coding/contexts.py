"""``context``: each symbol by the one or two before it, learnt while coding, in many lanes at once.

For sequences whose neighbours tell each other without lying in pairs. The sequence is cut into
lanes of equal length that are coded side by side, a step of all lanes in one call: only so are
contexts of just decoded symbols affordable. The lanes share their counts.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..errors import CorruptFileError
from .codec import CODECS, MAX_SYMBOL, Symbols
from .queue import Decoder, Encoder, Taker
from .varint import Cursor, signed_varint, varint
from .work import UNLIMITED, Work

__all__ = ["MAX_ALPHABET", "Contexts"]

MAX_ALPHABET = 32
MAX_SYMBOLS = 1 << 25  # of a stream: products of counts stay exact
MAX_LANES = 1 << 16  # symbols per call: bounds scratch to 32 MiB
MAX_STEPS = 1 << 12
STEPS = 1 << 10
PARENT = 4  # symbols that the law of the shorter context is worth
ORDERS = (1, 2)
LEAST = 1 << 10  # symbols
CELL = 6  # bits that it costs, about, to learn a count that is not zero


class Contexts:
    """Counts by the one or two symbols before, range coder."""

    number = 6
    summary = "counts by the one or two symbols before, range coder"

    def encode(self, symbols: Symbols) -> bytes | None:
        """Return settings and words; None where neighbours do not seem to tell enough.

        Also for fewer than 1,024 symbols, over 2**25, or an alphabet over 32.
        """
        lowest = int(symbols.min())
        size = int(symbols.max()) - lowest + 1
        if not 2 <= size <= MAX_ALPHABET or not LEAST <= symbols.size <= MAX_SYMBOLS:
            return None
        flat = (symbols.reshape(-1).astype(np.int64) - lowest).astype(np.int32)
        order = _best_order(flat, size)
        if order == 0:
            return None
        lanes = -(-flat.size // max(STEPS, -(-flat.size // MAX_LANES)))
        steps = -(-flat.size // lanes)
        lanes = -(-flat.size // steps)
        coder = Encoder()
        _run(flat, flat.size, size=size, order=order, lanes=lanes, taker=coder)
        head = signed_varint(lowest) + bytes([size - 2, order]) + varint(lanes)
        return head + coder.to_bytes()

    def work(self, data: bytes, rows: int, columns: int) -> Work:
        """Return the time of steps, which go through all counts, and of symbols."""
        total = rows * columns
        _, size, order, lanes = _head(Cursor(data), total)
        step = 2000 + size ** (order + 1) // 6
        return Work(-(-total // lanes) * step + total * (8 + size // 8))

    def decode(
        self, data: bytes, rows: int, columns: int, flags_per_byte: int = UNLIMITED
    ) -> Symbols:
        """Return the matrix; every word must have been reached."""
        cursor = Cursor(data)
        total = rows * columns
        lowest, size, order, lanes = _head(cursor, total)
        coder = Decoder(cursor.rest())
        flat = _run(None, total, size=size, order=order, lanes=lanes, taker=coder)
        coder.finish()
        flat += np.int32(lowest)
        return flat.reshape(rows, columns)


def _head(cursor: Cursor, total: int) -> tuple[int, int, int, int]:
    """Return lowest symbol, alphabet, order and lanes, which suit ``total`` symbols."""
    lowest, size, order = cursor.symbol(), cursor.byte() + 2, cursor.byte()
    lanes = cursor.varint()
    allowed = (
        size <= MAX_ALPHABET
        and lowest + size - 1 <= MAX_SYMBOL
        and order in ORDERS
        and total <= MAX_SYMBOLS
        and 1 <= lanes <= MAX_LANES
        and (lanes - 1) * -(-total // lanes) < total <= lanes * MAX_STEPS
    )
    if not allowed:
        raise CorruptFileError(
            f"settings beyond their bounds: {size} symbols from {lowest}, contexts of {order}, "
            f"{lanes} lanes for {total} symbols"
        )
    return lowest, size, order, lanes


def _best_order(flat: NDArray[np.int32], size: int) -> int:
    """Return the order with the fewest bits, learning included; 0 if contexts do not pay."""
    found = []
    for order in (0, *ORDERS):
        cells = np.zeros(flat.size - order, np.int64)
        for back in range(order, -1, -1):
            cells = cells * size + flat[order - back : flat.size - back]
        counts = np.bincount(cells, minlength=size ** (order + 1)).reshape(-1, size)
        used = counts[counts > 0]
        contexts = counts.sum(axis=1)
        contexts = contexts[contexts > 0]
        bits = (contexts * np.log2(contexts)).sum() - (used * np.log2(used)).sum()
        found.append(float(bits) + CELL * used.size)
    return found.index(min(found))


def _run(
    given: NDArray[np.int32] | None,
    total: int,
    *,
    size: int,
    order: int,
    lanes: int,
    taker: Taker,
) -> NDArray[np.int32]:
    """Walk ``total`` symbols in [0, ``size``) in ``lanes``, and return them."""
    steps = -(-total // lanes)
    out = np.zeros((lanes, steps), np.int32)
    if given is not None:
        out.reshape(-1)[:total] = given
    short = steps - (lanes * steps - total)  # steps of the last lane
    counts = np.zeros((size**order, size))
    parents = np.ones((size ** (order - 1), size))
    for step in range(steps):
        active = lanes if step < short else lanes - 1
        context = np.zeros(active, np.int64)
        for back in range(min(order, step), 0, -1):
            context = context * size + out[:active, step - back]
        whole = np.tile(parents.sum(axis=1), size)[:, None]
        weights = counts * whole + PARENT * np.tile(parents, (size, 1))
        known = np.ascontiguousarray(out[:active, step]) if given is not None else None
        symbols = taker.take(weights[context], known)
        out[:active, step] = symbols
        found = np.bincount(context * size + symbols, minlength=counts.size)
        found = found.reshape(counts.shape)
        counts += found
        parents += found.reshape(size, -1, size).sum(axis=0)
    return out.reshape(-1)[:total]


CODECS.register("context")(Contexts())
