"""SPEC.md 4.6.2, 4.6.3 and 4.6.6: what is expected of a symbol, and what is learnt from it."""

from .flags import Frame
from .functions import clip, octaves


def is_kernel(taps, width):
    return 1 < taps <= 49 and width > 0 and taps % width == 0


def neighbours(taps, width):
    """Return (eight near columns, left, upper, corner, other) back for each position."""
    if not is_kernel(taps, width):
        if width <= 1:
            return [([1, 2, 3, 4, 5, 0, 0, 0], 1, 2, 3, 4)]
        near = [1, 2, 3, width, width - 1, width + 1, 2 * width, 0]
        return [(near, 1, width, width + 1, width - 1)]
    out = []
    for tap in range(taps):
        y, x = divmod(tap, width)
        found = [
            (u * u + left * left, u * width + left)
            for u in range(y + 1)
            for left in range(x - width + 1, x + 1)
            if u * width + left > 0
        ]
        near = [back for _, back in sorted(found)[:8]]
        near += [0] * (8 - len(near))
        upper = width if y > 0 else 0
        corner = width + 1 if x > 0 and y > 0 else 0
        other = width - 1 if y > 0 and x < width - 1 else 0
        out.append((near, 1 if x > 0 else 0, upper, corner, other))
    return out


def first_means(taps, width, near):
    """Return the first weights of the means of each position."""
    out = []
    for tap, (columns, *_) in enumerate(near):
        weights = [0] * 12
        if is_kernel(taps, width):
            y, x = divmod(tap, width)
            worth = {}
            if x > 0:
                worth[1] = 23040
            if y > 0:
                worth[width] = 23040
            if x > 0 and y > 0:
                worth[width + 1] = -6656
            weights[:8] = [worth.get(back, 0) for back in columns]
        out.append(weights)
    return out


class Walk:
    """One matrix, symbol by symbol."""

    def __init__(self, layout, setting, model, means, distances, *, trellis):
        self.rows, self.columns, self.taps = layout.rows, layout.columns, layout.taps
        self.setting, self.model, self.means, self.distances = setting, model, means, distances
        self.frame, self.trellis = Frame(setting, trellis), trellis
        self.states, self.odd = [0] * self.columns, 0
        self.input_off = [0] * (self.columns // self.taps)
        self.input_rate = [0] * (self.columns // self.taps)
        self.column_off = [0] * self.columns
        self.total, self.seen = 16 * setting.usual, 16
        self.values = [[0] * self.columns for _ in range(self.rows)]

    def level(self, row, column):
        if row < 0 or column < 0:
            return 0
        return self.values[row][column] >> self.setting.shift

    def symbols(self, near, kernels):
        for row in range(self.rows):
            self.row_off = self.row_due = 0
            for column in range(self.columns):
                if column % self.taps == 0:
                    self.filter_off = self.filter_seen = 0
                position = column % len(near)
                if self.trellis:
                    self.odd = self.states[column] % 2
                    self.frame.only(self.odd)
                self.expect(row, column, near[position], position)
                value = self.model.value(self.frame)
                if self.trellis:
                    value = 2 * value + self.odd
                    state = self.states[column]
                    self.states[column] = state // 2 ^ 5 * self.odd ^ value // 2 % 2 * 2
                self.values[row][column] = value
                self.learn(column, value, position)
                last = kernels and column == self.columns - 1
                if last or (row * self.columns + column) % 64 == 63:
                    for regression in self.distances:
                        regression.solve()
                    for regression in self.means if last else [self.means[position]]:
                        regression.solve()
        return [value + self.setting.centre for row in self.values for value in row]

    def expect(self, row, column, near, position):
        columns, *four = near
        left, upper, corner, other = (
            self.level(row, column - back) if back else 0 for back in four
        )
        found = [self.level(row, column - back) if back else 0 for back in columns]
        found += [self.level(row - 1, column), self.level(row - 2, column)]
        found.append(
            self.level(row - 1, column - 1)
            if self.taps == 1
            else self.level(row, column - self.taps)
        )
        self.m = [clip(level, 1023) for level in found] + [2]
        mean = clip(self.means[position].predict(self.m) >> 10, 65536)
        self.expect_distance(row, column, mean, abs(left) + abs(upper))
        frame, d = self.frame, self.d
        frame.mean, frame.scale = mean, octaves(self.distance)
        frame.inverse = 443 * 2**16 // max(self.distance, 4)
        frame.phase = phase = (row * self.columns + column) % self.setting.period
        corners = 4 * min(3, abs(corner)) + min(3, abs(other))
        place = column
        if self.trellis:
            frame.mean = mean = mean - ((64 * self.odd) >> self.setting.shift)
            frame.phase = phase = self.odd
            corners = 4 * (min(3, abs(corner)) // 2) + 2 * (min(3, abs(other)) // 2) + self.odd
            place = 2 * column + self.odd
        around = 7 * (clip(left, 3) + 3) + clip(upper, 3) + 3
        past = 15 * (clip(left, 7) + 7) + clip(self.m[1], 7) + 7
        frame.contexts = [
            53 * (clip(mean >> 4, 20) + 20) + frame.scale,
            16 * around + corners,
            3 * past + phase,
            min(place, 4095),
            49 * (clip((mean + 32) >> 6, 6) + 6) + around,
            3 * (clip(self.level(row, column - 1), 15) + 15) + phase,
        ]
        quick = [min(7, octaves(size) // 4) for size in d]
        pairs = 8 * quick[1] + quick[2], 8 * quick[3] + quick[4]
        frame.map_contexts = [frame.scale, around, *pairs, frame.scale // 4, around]

    def expect_distance(self, row, column, mean, around):
        place = column // self.taps
        average = max(1, (self.total + (self.seen >> 1)) // self.seen)
        by_input = ((self.input_off[place] + 4 * average) << 12) // (self.input_rate[place] + 16384)
        by_input = min(max(by_input, 1), 8192)
        rate = ((self.row_off + 4 * average) << 12) // (self.row_due + 4 * average)
        self.rate = rate = min(2**24, rate)
        product = min(8192, (rate * by_input) >> 12)
        self.d = [
            product,
            min(8192, (rate * average) >> 12),
            by_input,
            (self.column_off[column] + 2 * by_input) // (row + 2),
            (self.filter_off + 2 * product) // (self.filter_seen + 2),
            min(8192, 32 * around),
            average,
            min(8192, abs(mean)),
        ]
        self.chosen = self.distances[1 if column % self.taps else 0]
        self.distance = min(max(self.chosen.predict(self.d) >> 14, 1), 8192)

    def learn(self, column, value, position):
        place, shift = column // self.taps, self.setting.shift
        off = min(8192, abs(((64 * (value - self.odd)) >> shift) - self.frame.mean))
        self.filter_off += off
        self.row_off += off
        self.total += off
        self.input_off[place] += off
        self.column_off[column] += off
        self.filter_seen += 1
        self.seen += 1
        self.row_due += self.d[2]
        self.input_rate[place] += self.rate
        if self.seen > 65536:
            self.seen >>= 1
            self.total >>= 1
        unit = max(self.distance, 4)
        parts = [min(4095, 256 * size // unit) for size in self.d]
        self.chosen.learn(parts, min(4095, 256 * off // unit))
        self.means[position].learn(self.m, clip(value >> shift, 1023))
