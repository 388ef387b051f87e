"""SPEC.md 4.6.4 and 4.6.5: a value as flags, and the chance of a flag."""

from .functions import clip, squash, stretch


class Frame:
    """What flags are told of the symbol that they belong to."""

    def __init__(self, setting, trellis):
        self.low = setting.lowest - setting.centre
        self.high = setting.lowest + setting.size - setting.centre
        self.shift, self.unit = setting.shift, 64 if trellis else 32
        self.bounds = self.low, self.high

    def only(self, odd):
        """Restrict the values to the halves of the numbers of one parity."""
        self.low, self.high = -((odd - self.bounds[0]) // 2), (self.bounds[1] - odd) // 2

    def tail(self, edge):
        away = ((self.unit * edge) >> self.shift) - self.mean
        return squash(-clip((away * self.inverse) >> 16, 3000))

    def beyond(self, negative, magnitude):
        if negative:
            return 65536 - self.tail(1 - 2 * magnitude)
        return self.tail(2 * magnitude - 1)


def at(chances, place):
    """Return the chance of a map at a place between two of its own."""
    i, part = place >> 12, place % 4096
    return (chances[i] * (4096 - part) + chances[i + 1] * part) >> 12


def learn_map(chances, place, target):
    i, part = place >> 12, place % 4096
    chances[i] += ((target - chances[i]) * (4096 - part)) >> 18
    chances[i + 1] += ((target - chances[i + 1]) * part) >> 18


class Weights:
    """A set of weights, and how often it learnt."""

    def __init__(self, first):
        self.weights, self.count = list(first), 0

    def dot(self, inputs):
        total = sum(w * x for w, x in zip(self.weights, inputs, strict=True))
        return clip(total >> 16, 2047)

    def learn(self, inputs, error):
        pull = (error * (60 + 16000 // (16 + self.count))) >> 10
        self.count = min(self.count + 1, 1023)
        for place, x in enumerate(inputs):
            self.weights[place] += (pull * x + 8192) >> 14


class Model:
    """Counters, maps and weights; what is not there yet is as at the start."""

    def __init__(self, bits):
        self.bits, self.flags = bits, 0
        self.counters = [{} for _ in range(6)]
        self.maps, self.x, self.y, self.z = {}, {}, {}, {}
        self.first_map = [squash(min(128 * i, 4095) - 2048) for i in range(33)]

    def next_matrix(self):
        self.counters[3] = {}

    def ask(self, frame, node, side, cut, span):
        """Decode a flag, and learn from it."""
        self.flags += 1
        law = stretch(min(max(65536 * cut // max(span, 1), 16), 65535))
        contexts = [(context, node, side) for context in frame.contexts]
        if node > 1:
            mean = clip(frame.mean >> 4, 20)
            seen = -mean if side else mean
            contexts[0] = 53 * (20 + seen) + frame.scale, node, 0
            contexts[4] = 14 * (mean + 20) + frame.scale // 4, node, side
        maps = [self.map(j, node, context) for j, context in enumerate(frame.map_contexts)]
        t = 32 * (law + 2048)
        known = [
            counters.get(context, (2**19, 0))
            for counters, context in zip(self.counters, contexts, strict=True)
        ]
        x = [stretch(chance >> 4) for chance, _ in known]
        x += [law, *(stretch(at(chances, t)) for chances in maps[:4])]
        wx = self.weights(self.x, (node, frame.phase), [7209] * 6 + [19661] + [9830] * 4)
        wy = self.weights(self.y, (node, frame.scale // 4), [7209] * 6 + [19661] + [9830] * 4)
        wz = self.weights(self.z, (node, frame.phase), [40960, 8192, 16384])
        a, b = wx.dot(x), wy.dot(x)
        mixed = (a + b) >> 1
        u = 32 * (mixed + 2048)
        z = [mixed, stretch(at(maps[4], u)), stretch(at(maps[5], t))]
        chance = squash(wz.dot(z))
        flag = self.bits.bit(min(max(chance, 16), 65520))
        target = 65535 * flag
        wz.learn(z, (target - chance) >> 1)
        wx.learn(x, target - squash(a))
        wy.learn(x, target - squash(b))
        for j, chances in enumerate(maps):
            learn_map(chances, u if j == 4 else t, target)
        for counters, context, (chance, count) in zip(self.counters, contexts, known, strict=True):
            moved = ((2**20 - 1) * flag - chance) * (131072 // (2 * count + 3)) >> 16
            counters[context] = chance + moved, min(count + 1, 1023)
        return flag

    def map(self, number, node, context):
        key = number, node, context
        if key not in self.maps:
            self.maps[key] = list(self.first_map)
        return self.maps[key]

    def weights(self, sets, key, first):
        if key not in sets:
            sets[key] = Weights(first)
        return sets[key]

    def value(self, frame):
        """Decode a value."""
        low, high = frame.low, frame.high
        if low == high:
            return 0
        below = frame.beyond(1, 1) if low < 0 else 0
        above = frame.beyond(0, 1) if high > 0 else 0
        if not self.ask(frame, 0, 0, below + above, 65536):
            return 0
        negative = 1 if low < 0 else 0
        if low < 0 < high:
            negative = self.ask(frame, 1, 0, below, below + above)
        most = (-low if negative else high) - 1
        found = self.magnitude(frame, negative, most, below if negative else above)
        return -found - 1 if negative else found + 1

    def magnitude(self, frame, negative, most, span):
        size = rest = 0
        while 2**size <= most:
            rest = frame.beyond(negative, 2**size + 1)
            if not self.ask(frame, 2 + min(size, 11), negative, rest, span):
                break
            size, span, rest = size + 1, rest, 0
        k = min(size, 1)
        for j in range(size - 1):
            one, middle = 0, (2 * k + 1) << (size - 2 - j)
            if middle <= most:
                cut = frame.beyond(negative, middle + 1)
                node = 26 + min(j - 2, 5)
                if j < 2:
                    node = 20 + 2 * min(size - 3, 2) + k % 2 if j else 14 + min(size - 2, 5)
                one = self.ask(frame, node, negative, cut - rest, span - rest)
                if one:
                    span = cut
                else:
                    rest = cut
            k = 2 * k + one
        return k
