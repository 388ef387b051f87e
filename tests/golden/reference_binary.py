"""The codec of SPEC.md 4.5, written from it alone: plain Python, one flag at a time."""

import math

RangeDecoder = None  # that of SPEC.md 4.3; the reader gives it


def clip(x, bound):
    return max(-bound, min(bound, x))


def sign(x):
    return (x > 0) - (x < 0) + 1


def step(x):
    return clip(x, 2) + 2


def energy_class(x):
    times = 0
    while x > 0:
        times, x = times + 1, 2 * x // 3
    return min(times, 15)


class Mixing:
    def __init__(self, coder, pace):
        self.coder, self.pace = coder, pace
        self.states, self.sets = {}, {}

    def start_row(self):
        self.states = {key: state for key, state in self.states.items() if key[0] != 2}

    def flag(self, kind, number, *contexts):
        keys = [(place, kind, cell) for place, cell in enumerate(contexts, 1)]
        counts = [self.states.get(key, (0, 0)) for key in keys]
        x = [round(256 * math.log((5 * y + 2) / (5 * z + 2))) for z, y in counts]
        weights, t = self.sets.get((kind, number), ([16384] * 5, 0))
        d = clip(sum(w * v for w, v in zip(weights, x, strict=True)) // 65536, 2047)
        q = round(4096 / (1 + math.exp(-d / 256)))
        f = self.coder.symbol([4096 - q, q])
        s = (4096 * f - q) * (self.pace + 2000 // (100 + t))
        moved = [w + (s * v + 8192) // 16384 for w, v in zip(weights, x, strict=True)]
        self.sets[kind, number] = moved, min(t + 1, 1023)
        for key, (z, y) in zip(keys, counts, strict=True):
            after = (z + 1 - f, y + f)
            self.states[key] = tuple((n + 1) // 2 for n in after) if sum(after) > 255 else after
        return f


def value(mixing, limits, c, known, around):
    """One symbol less lowest and centre, within ``limits``."""
    (lowest, highest), (g, history) = limits, known
    l, m, o, k, u, n = around  # noqa: E741 - the letters of SPEC.md
    near = min(abs(l), 1) + min(abs(u), 1) + min(abs(o), 1)
    beside = history + 16 * min(abs(u), 2) + 48 * min(abs(l), 2) + 144 * min(abs(n), 1)
    if not mixing.flag(0, near, c, 0, g, beside, step(l) + 5 * step(u) + 25 * sign(k)):
        return 0
    positive = lowest == 0
    if lowest < 0 < highest:
        third = step(l) + 5 * step(u) + 25 * sign(o)
        fourth = sign(u) + 3 * sign(k) + 9 * sign(n) + 27 * sign(l)
        fifth = sign(l) + 3 * sign(o) + 9 * sign(u) + 27 * sign(m)
        positive = mixing.flag(1, 0, c, 0, third, fourth, fifth)
    seven = {x: min(abs(x), 7) for x in around}
    fourth = 64 * seven[l] + 8 * seven[o] + seven[u]
    fifth = 128 if positive else 0
    fifth += 8 * seven[l] if sign(l) == (2 if positive else 0) else 0
    fifth += seven[u] if sign(u) == (2 if positive else 0) else 0
    j = 1
    while j < (highest if positive else -lowest):
        if not mixing.flag(min(j, 13) + 1, 0, c, 0, g, fourth, fifth):
            break
        j += 1
    return j if positive else -j


def symbols(source, rows, columns):
    lowest = source.signed()
    (turned, size), centre = divmod(source.take(1)[0], 64), source.take(1)[0]
    size += 2
    width, pace = divmod(source.varint(), 16)
    if turned:
        rows, columns = columns, rows
    mixing = Mixing(RangeDecoder(source.data[source.at :]), pace)
    source.at = len(source.data)
    v, energy, history = {}, [0] * columns, [0] * columns
    for r in range(rows):
        mixing.start_row()
        own = 64
        for c in range(columns):
            places = [(r, c - 1), (r, c - 2), (r - 1, c)]
            if width:
                places += [(r, c - width - 1), (r, c - width), (r, c - width + 1)]
            around = [v.get(place, 0) for place in places] + [0] * (6 - len(places))
            g = 16 * energy_class(energy[c] // 16) + energy_class(own // 16)
            v[r, c] = value(mixing, (-centre, size - 1 - centre), c, (g, history[c]), around)
            a = 256 * min(abs(v[r, c]), 15)
            energy[c] += (a - energy[c]) // min(r + 2, 24)
            own += (a - own) // 32
            history[c] = (2 * history[c] + (v[r, c] != 0)) % 16
    mixing.coder.finish()
    order = [(r, c) for c in range(columns) for r in range(rows)] if turned else sorted(v)
    return [lowest + centre + v[place] for place in order]
