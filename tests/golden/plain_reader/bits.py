"""SPEC.md 4.3 and 4.4: bits with chances, and the adaptive numbers that are made of them."""

from .fields import need, signed

TOP = 1 << 24


class Bits:
    """The bit coder."""

    def __init__(self, data):
        self.data, self.read = data, 4
        self.low, self.high = 0, 2**32 - 1
        self.code = int.from_bytes((data + bytes(4))[:4], "big")

    def bit(self, chance):
        middle = self.low + (self.high - self.low) * chance // 65536
        if self.code <= middle:
            found, self.high = 1, middle
        else:
            found, self.low = 0, middle + 1
        while self.low // TOP == self.high // TOP:
            self.low = self.low % TOP * 256
            self.high = self.high % TOP * 256 + 255
            need(self.read < len(self.data) + 4, "coded bits go on after their bytes")
            byte = self.data[self.read] if self.read < len(self.data) else 0
            self.code = self.code % TOP * 256 + byte
            self.read += 1
        return found

    def end(self):
        need(len(self.data) <= self.read <= len(self.data) + 4, "coded bits leave bytes unread")


class Numbers:
    """Adaptive numbers."""

    def __init__(self, data):
        self.bits = Bits(data)
        self.chances = [[32768] * 48 for _ in range(16)]

    def adaptive(self, kind, place):
        chance = self.chances[kind][place]
        bit = self.bits.bit(chance)
        self.chances[kind][place] = max(64, chance + ((65535 * bit - chance) >> 4))
        return bit

    def number(self, kind):
        size, value = 0, 1
        while size < 23 and self.adaptive(kind, size):
            size += 1
        for place in range(size):
            bit = self.bits.bit(32768) if place else self.adaptive(kind, 24 + size)
            value = 2 * value + bit
        return signed(value - 1)
