"""The codecs of SPEC.md 4.3 and 4.4, written from it alone: plain Python, one symbol at a time."""

import re
import struct
from fractions import Fraction
from pathlib import Path

SPEC = Path(__file__).parents[2] / "src/fewbits/container/SPEC.md"
THRESHOLDS, B, C = (
    [int(number) for number in block.split()]
    for block in re.findall(r"\n\n((?:    [\d ]+\n)+)\n", SPEC.read_text(encoding="utf-8"))[-3:]
)


def cdf(weights):
    scale = float((1 << 24) - len(weights)) / float(sum(weights))
    below, out = 0, []
    for place, weight in enumerate(weights):
        out.append(int(float(below) * scale) + place)
        below += weight
    return [*out, 1 << 24]


class RangeDecoder:
    def __init__(self, data):
        data += bytes(-len(data) % 4)
        self.words, self.read = struct.unpack(f"<{len(data) // 4}I", data), 0
        self.low, self.range = 0, 2**64 - 1
        self.point = self.word() << 32 | self.word()

    def word(self):
        self.read += 1
        return self.words[self.read - 1] if self.read <= len(self.words) else 0

    def symbol(self, weights):
        table = cdf(weights)
        unit = self.range >> 24
        place = ((self.point - self.low) % 2**64) // unit
        assert place < 1 << 24
        symbol = max(s for s in range(len(weights)) if table[s] <= place)
        self.low = (self.low + unit * table[symbol]) % 2**64
        self.range = unit * (table[symbol + 1] - table[symbol])
        if self.range < 1 << 32:
            self.low, self.range = self.low * 2**32 % 2**64, self.range * 2**32 % 2**64
            self.point = self.point * 2**32 % 2**64 + self.word()
        return symbol

    def finish(self):
        assert self.read >= len(self.words)


def solve(matrix, right):
    """Gauss's elimination in fractions."""
    rows = [[Fraction(v) for v in (*row, r)] for row, r in zip(matrix, right, strict=True)]
    for k, head in enumerate(rows):
        unit = [value / head[k] for value in head]
        for j, row in enumerate(rows):
            rows[j] = [value - row[k] * one for value, one in zip(row, unit, strict=True)]
        rows[k] = unit
    return [row[-1] for row in rows]


class Regression:
    def __init__(self, start, ridge):
        k = len(start)
        self.start, self.weights, self.ridge = start, list(start), ridge
        self.squares, self.right = [[0] * k for _ in start], [0] * k
        self.learnt = self.solved = 0

    def refresh(self):
        if self.learnt and self.start and 4 * self.learnt >= 5 * self.solved:
            self.solved, k = self.learnt, range(len(self.start))
            left = [[self.squares[i][j] + self.ridge * (i == j) for j in k] for i in k]
            right = [256 * self.right[i] - sum(self.squares[i][j] * self.start[j] for j in k)
                     for i in k]  # fmt: skip
            moved = [(2 * value + 1) // 2 for value in solve(left, right)]
            self.weights = [
                min(max(w + d, -1024), 1024) for w, d in zip(self.start, moved, strict=True)
            ]

    def add(self, inputs, target):
        for i, x in enumerate(inputs):
            self.right[i] += x * target
            for j, other in enumerate(inputs):
                self.squares[i][j] += x * other


def spread_law(x, j):
    if x < 0:
        return 2**20 - spread_law(-x, j)
    w = x * 2**17 // B[j]
    m = w // 256
    return 2**20 if m >= 64 else C[m] + (C[m + 1] - C[m]) * (w % 256) // 256


def law(a, j, s, size):
    above = 2**20 if s == size - 1 else spread_law(4 * s + 2 - a, j)
    below = 0 if s == 0 else spread_law(4 * s - 2 - a, j)
    return above - below + 64


def predictor(t, order, width):
    start = dict.fromkeys(range(max(0, t - order), t), 0)
    if width > 1:
        known = {t - 1: 90 * (t % width > 0), t - width: 90, t - width - 1: -26 * (t % width > 0)}
        start |= {tap: weight for tap, weight in known.items() if tap in start}
    return Regression([start[tap] for tap in sorted(start)], 245760)


def symbols(source, rows, columns):
    return matrices(source, [(rows, columns)], joined=False)[0]


def joined(source, rows, columns):
    return matrices(source, [(rows, columns)], joined=True)[0]


def matrices(source, shapes, *, joined):
    """SPEC 4.3, and 4.5 where matrices are ``joined``."""
    lowest = source.signed()
    (k, size), (width, order) = (divmod(source.take(1)[0], base) for base in (64, 16))
    size += 2
    taps, height, centre, spread = (source.varint() for _ in range(4))
    coder = RangeDecoder(source.data[source.at :])
    source.at = len(source.data)
    ridge, more = (2**25, [0]) if joined else (81920, [])
    first, later = (
        Regression([*start, *more], ridge) for start in ([0, 128, 128, 0], [90, 102, 26, 26])
    )
    head = (size, taps, height, order, width, k, centre, spread)
    counts, out = {}, []
    for rows, columns in shapes:
        found = matrix(coder, rows, columns, head, (first, later, counts), joined=joined)
        out.append([lowest + symbol for symbol in found])
        for cell in counts:
            counts[cell] //= 2
        for errors in (first, later):
            errors.squares = [[value // 4 for value in row] for row in errors.squares]
            errors.right = [value // 4 for value in errors.right]
            errors.learnt, errors.solved = min(errors.learnt, 1), 0
    coder.finish()
    return out


def matrix(coder, rows, columns, head, known, *, joined):
    size, taps, height, order, width, k, centre, spread = head
    first, later, counts = known
    assert columns % taps == 0
    inputs = columns // taps
    value, filters = {}, {}
    by_input, by_output, seen = [0] * inputs, [0] * rows, 0
    followed, guessed = [0] * rows, [0] * rows
    for t in range(taps):
        at_tap, at_tap_seen = [0] * inputs, 0
        if width == 0:
            by_input, seen = [0] * inputs, 0
        values, errors = predictor(t, order, width), later if t else first
        for start in range(0, rows, height):
            block, learnt = range(start, min(start + height, rows)), []
            values.refresh()
            errors.refresh()
            for o in block:
                for i in range(inputs):
                    x = [value[o, i, tap] for tap in range(max(0, t - order), t)]
                    total = sum(w * v for w, v in zip(values.weights, x, strict=True))
                    p0 = p = min(max((total + 128) // 256, -8191), 8191)
                    if joined:
                        p = p0 * max(0, followed[o] + 2**18) // (guessed[o] + 2**18)
                        p = min(max(p, -8191), 8191)
                    q = (by_output[o] + spread * inputs) // ((t + 1) * inputs)
                    r = (by_input[i] + 2 * spread) // (seen + 2)
                    own = filters.get((o, i), 0) // t if t else 0
                    f = [own, q * r // spread, spread, abs(p)]
                    if joined:
                        f.append((at_tap[i] + 2 * r) // (at_tap_seen + 2))
                    f = [min(v, 8191) for v in f]
                    z = max(1, sum(w * v for w, v in zip(errors.weights, f, strict=True)))
                    j = sum(threshold <= z for threshold in THRESHOLDS)
                    v = max(z, 4096)
                    u = min(6, (1024 * abs(p) + v) // (2 * v)) * (-1 if p < 0 else 1)
                    a = min(max((p + centre + 8) // 16, -4), 4 * size)
                    strength = (16, 128, 1024, 8192)[k]
                    weights = [
                        strength * law(a, j, s, size) + 2**20 * counts.get((u, j, s), 0)
                        for s in range(size)
                    ]
                    s = coder.symbol(weights)
                    y = value[o, i, t] = 64 * s - centre
                    learnt.append((o, i, x, f, y, min(abs(y - p), 8191), (u, j, s), z, p0))
            for o, i, x, f, y, e, cell, z, p0 in learnt:
                values.add(x, y)
                shares = [min(8191, v * 2**18 // max(z, 4096)) for v in (*f, e)]
                errors.add(*((shares[:-1], shares[-1]) if joined else (f, e)))
                followed[o] += p0 * y
                guessed[o] += p0 * p0
                at_tap[i] += e
                filters[o, i] = filters.get((o, i), 0) + e
                by_input[i] += e
                by_output[o] += e
                counts[cell] = counts.get(cell, 0) + 1
            seen += len(block)
            at_tap_seen += len(block)
            values.learnt += 1
            errors.learnt += 1
    return [
        (value[o, i, t] + centre) // 64
        for o in range(rows) for i in range(inputs) for t in range(taps)
    ]  # fmt: skip


def contexts(source, rows, columns):
    count = rows * columns
    lowest, size, order = source.signed(), source.take(1)[0] + 2, source.take(1)[0]
    lanes = source.varint()
    steps = -(-count // lanes)
    coder, seen = RangeDecoder(source.data[source.at :]), {}
    source.at = len(source.data)
    found = [[] for _ in range(lanes)]
    for step in range(steps):
        learnt = []
        for number, lane in enumerate(found):
            if number * steps + step >= count:
                continue
            *_, a, b = [0, 0, *lane]
            a = a if order == 2 else 0
            own = [seen.get((a, b, s), 0) for s in range(size)]
            pairs = [(x, b) if order == 2 else (0, x) for x in range(size)]
            parent = [1 + sum(seen.get((*pair, s), 0) for pair in pairs) for s in range(size)]
            whole = sum(parent)
            s = coder.symbol([m * whole + 4 * p for m, p in zip(own, parent, strict=True)])
            lane.append(s)
            learnt.append((a, b, s))
        for cell in learnt:
            seen[cell] = seen.get(cell, 0) + 1
    coder.finish()
    return [lowest + s for lane in found for s in lane]
