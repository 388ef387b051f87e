"""SPEC.md 4.1: bytes one after the other, integers of variable length, bit fields."""


class Refused(ValueError):  # noqa: N818 - what the specification says of readers
    """The file is not what the specification allows."""


def need(condition, what):
    """Refuse the file unless ``condition`` holds."""
    if not condition:
        raise Refused(what)


def signed(code):
    """Return the x with zigzag(x) = code."""
    return -(code + 1) // 2 if code % 2 else code // 2


class Bytes:
    """A string of bytes that is read from its begin."""

    def __init__(self, data):
        self.data, self.at = data, 0

    def take(self, count):
        need(count <= len(self.data) - self.at, "bytes are missing")
        self.at += count
        return self.data[self.at - count : self.at]

    def rest(self):
        return self.take(len(self.data) - self.at)

    def end(self):
        need(self.at == len(self.data), "there are bytes too many")

    def byte(self):
        return self.take(1)[0]

    def varint(self):
        value = 0
        for count in range(10):
            byte = self.byte()
            value += (byte % 128) << 7 * count
            if byte < 128:
                need(count == 0 or byte > 0, "a varint is not the shortest")
                need(value < 2**64, "a varint is too large")
                return value
        raise Refused("a varint has more than 10 bytes")

    def symbol(self):
        value = signed(self.varint())
        return as_symbol(value)

    def fields(self, count, width):
        """Return ``count`` bit fields."""
        data = self.take((count * width + 7) // 8)
        out, number, known = [], 0, 0
        for byte in data:
            number, known = 256 * number + byte, known + 8
            while known >= width and len(out) < count:
                known -= width
                out.append(number >> known)
                number %= 1 << known
        need(number == 0, "the last byte is not filled up with zeros")
        return out


def as_symbol(value):
    need(-(2**31) <= value < 2**31, "a symbol is beyond 32 bits")
    return value
