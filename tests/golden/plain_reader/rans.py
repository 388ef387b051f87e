"""SPEC.md 4.5: static tables for classes of rows, inputs and taps, and four lanes."""

import struct
from bisect import bisect_right
from itertools import accumulate

from .bits import Numbers
from .fields import as_symbol, need


def levels(numbers, sizes):
    """Return the levels of rows, inputs and taps."""
    out = []
    for kind, size in enumerate(sizes):
        top, middle = numbers.number(3), numbers.number(3)
        need(0 <= top <= 15 and 0 <= middle <= 15, "levels are out of bounds")
        found = [middle + numbers.number(kind) for _ in range(size)] if top else [0] * size
        need(all(0 <= level <= top for level in found), "a level is out of bounds")
        out.append(found)
    return out


def tables(numbers, most):
    """Return the table of each sum of levels up to ``most``."""
    out = [0]
    for _ in range(most):
        step = numbers.number(3)
        need(step >= 0, "tables of classes fall")
        out.append(out[-1] + step)
    need(out[-1] <= 15, "there are too many tables")
    return out


def roots(numbers, count, alphabet):
    """Return the roots of frequencies of each table."""
    out, before = [], [0] * alphabet
    for _ in range(count):
        before = [root + numbers.number(4 + root.bit_length()) for root in before]
        need(all(0 <= root <= 255 for root in before), "a root is out of bounds")
        need(any(before), "a table has no symbols")
        out.append(before)
    return out


def shares(root):
    """Return the shares of 4096 of the bins of a table."""
    total = sum(value * value for value in root)
    out = [max((8192 * v * v + total) // (2 * total), 1 if v else 0) for v in root]
    present = [place for place, value in enumerate(root) if value]
    if len(present) == 1:
        only = present[0]
        out[only + 1 if only % 2 == 0 and only + 1 < len(root) else only - 1] = 1
    excess = sum(out) - 4096
    for place in sorted(range(len(out)), key=lambda place: (-out[place], place)):
        taken = min(out[place] - 1, excess)
        out[place] -= taken
        excess -= taken
        if excess <= 0:
            break
    return out


def of_parity(root, first, parity):
    """Return the roots of the bins whose symbols have a parity; 1 for each if all are 0."""
    own = [value if (first + s) % 2 == parity else 0 for s, value in enumerate(root)]
    return own if any(own) else [int((first + s) % 2 == parity) for s in range(len(root))]


def bins(source, layout, alphabet, side, first=None):
    """Return the bin of each symbol; ``first`` is that of bin 0 if they follow the trellis."""
    rows, columns, taps = layout.rows, layout.columns, layout.taps
    numbers = Numbers(side)
    by_row, by_input, by_tap = levels(numbers, (rows, columns // taps, taps))
    table = tables(numbers, max(by_row) + max(by_input) + max(by_tap))
    found_roots = roots(numbers, table[-1] + 1, alphabet)
    if first is not None:
        found_roots = [of_parity(root, first, odd) for root in found_roots for odd in (0, 1)]
    share = [shares(root) for root in found_roots]
    trellis = [0] * columns
    numbers.bits.end()
    starts = [[0, *accumulate(row)] for row in share]
    count = source.varint()
    states = list(struct.unpack("<4I", source.take(16)))
    need(min(states) >= 2**16, "a lane begins too low")
    words = struct.unpack(f"<{count}H", source.take(2 * count))
    read, out = 0, []
    for place in range(rows * columns):
        row, column = divmod(place, columns)
        chosen = table[by_row[row] + by_input[column // taps] + by_tap[column % taps]]
        if first is not None:
            chosen = 2 * chosen + trellis[column] % 2
        state = states[place % 4]
        slot = state % 4096
        found = bisect_right(starts[chosen], slot) - 1
        state = share[chosen][found] * (state >> 12) + slot - starts[chosen][found]
        if state < 2**16:
            need(read < count, "lanes need more words")
            state = state * 2**16 + words[read]
            read += 1
        states[place % 4] = state
        out.append(found)
        if first is not None:
            t = trellis[column]
            need((first + found - t) % 2 == 0, "a symbol leaves the trellis")
            trellis[column] = t // 2 ^ 5 * (t % 2) ^ (first + found) // 2 % 2 * 2
    need(read == count and states == [2**16] * 4, "lanes do not end where they began")
    return out


def rans(source, layout, trellis=False):
    first, alphabet = source.symbol(), source.byte() + 2
    low, escape = source.byte(), source.byte()
    need(alphabet <= 256 and low <= 31 and escape <= 32, "a window is out of bounds")
    need(not (trellis and (low or escape)), "a trellis has neither low bits nor escapes")
    lowest = source.symbol() if escape else 0
    own = alphabet - 1 if escape else alphabet
    need(first << low >= -(2**31) and (first + own) << low <= 2**31, "bins are beyond 32 bits")
    side = source.take(source.varint())
    found = bins(source, layout, alphabet, side, first if trellis else None)
    escapes = []
    if escape:
        count = source.varint()
        need(count == found.count(alphabet - 1), "the number of escapes is wrong")
        escapes = [as_symbol(lowest + field) for field in source.fields(count, escape)]
    below = source.fields(len(found), low) if low else [0] * len(found)
    rare = iter(escapes)
    return [
        next(rare) if escape and s == alphabet - 1 else ((first + s) << low) + rest
        for s, rest in zip(found, below, strict=True)
    ]
