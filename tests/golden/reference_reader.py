"""A second reader, written from SPEC.md alone: plain Python, slow, no numpy, no coder library.

It tells what a file means when the fast reader is in doubt. Floats are given as their bytes.
"""

import importlib.util
import json
import math
import struct
import zlib
from pathlib import Path


def sibling(name):
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


adaptive, binary = sibling("reference_adaptive"), sibling("reference_binary")
binary.RangeDecoder = adaptive.RangeDecoder
LEARNING = {4: adaptive.symbols, 6: adaptive.contexts, 7: binary.symbols, 8: adaptive.joined}
P = 24
WIDTHS = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}
WIDTHS |= {"int64": 8, "int32": 4, "int16": 2, "int8": 1, "uint8": 1, "bool": 1}
WIDTHS |= {"uint64": 8, "uint32": 4, "uint16": 2, "complex128": 16, "complex64": 8, "complex32": 4}
WIDTHS |= dict.fromkeys(["float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu"], 1)
WIDTHS |= dict.fromkeys(["float8_e4m3fnuz", "float8_e5m2fnuz"], 1)
MANTISSAS = [round(2**15 * 2 ** (j / 16)) for j in range(16)]


def cdf(weights):
    """Cumulated 24-bit probabilities of SPEC 4.2."""
    scale = float((1 << P) - len(weights)) / float(sum(weights))
    below, out = 0, []
    for place, weight in enumerate(weights):
        out.append(int(float(below) * scale) + place)
        below += weight
    return [*out, 1 << P]


def find(table, value):
    low, high = 0, len(table) - 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if table[middle] <= value else (low, middle)
    return low


def ans(chunk, table, count):
    """Decode ``count`` symbols of one chunk."""
    chunk += bytes(-len(chunk) % 4)
    words = list(struct.unpack(f"<{len(chunk) // 4}I", chunk))
    state, out = 0, []
    while state < 1 << 32 and words:
        state = state << 32 | words.pop()
    for _ in range(count):
        low = state & ((1 << P) - 1)
        symbol = find(table, low)
        state = (state >> P) * (table[symbol + 1] - table[symbol]) + low - table[symbol]
        if state < 1 << 32 and words:
            state = state << 32 | words.pop()
        out.append(symbol)
    assert state == 0
    assert not words
    return out


class Bytes:
    def __init__(self, data):
        self.data, self.at = data, 0

    def take(self, count):
        self.at += count
        assert self.at <= len(self.data)
        return self.data[self.at - count : self.at]

    def varint(self):
        value = shift = 0
        while True:
            byte = self.take(1)[0]
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    def signed(self):
        return unzigzag(self.varint())


def unzigzag(code):
    return -(code + 1) // 2 if code & 1 else code // 2


class Bits:
    def __init__(self, data):
        self.bits = "".join(f"{byte:08b}" for byte in data)
        self.at = 0

    def field(self, width):
        self.at += width
        return int(self.bits[self.at - width : self.at] or "0", 2)

    def golomb(self, order):
        zeros = 0
        while self.bits[self.at + zeros] == "0":
            zeros += 1
        self.at += zeros
        return self.field(zeros + order + 1) - (1 << order)


def frequency_table(source, size):
    head = source.take(1)[0]
    precision, order = head & 7, head >> 3
    bits = Bits(source.data[source.at :])
    levels, last = [], 0
    while len(levels) < size:
        level = last + unzigzag(bits.golomb(order))
        levels.append(level)
        if level == 0:
            levels += [0] * bits.golomb(0)
        else:
            last = level
    assert len(levels) == size
    source.take((bits.at + 7) // 8)
    out = []
    for level in levels:
        sixteenths = (level - 1) * 2 ** (4 - precision)
        out.append(MANTISSAS[sixteenths % 16] << (sixteenths // 16) if level else 0)
    return out


def symbols(codec, data, rows, columns):
    """Decode one stream to a flat list."""
    count, source = rows * columns, Bytes(data)
    if codec == 0:
        return [source.signed() if data else 0] * count
    if codec == 1:
        lowest, width = source.signed(), source.take(1)[0]
        bits = Bits(source.take((count * width + 7) // 8))
        return [lowest + bits.field(width) for _ in range(count)]
    if codec == 2:
        lowest, size = source.signed(), source.varint() + 2
        table, out = cdf(frequency_table(source, size)), []
        while len(out) < count:
            last = count - len(out) <= 1 << 20
            length = len(data) - source.at if last else source.varint()
            out += ans(source.take(length), table, min(1 << 20, count - len(out)))
        return [lowest + value for value in out]
    if codec in LEARNING:
        return LEARNING[codec](source, rows, columns)
    if codec == 5:
        lowest, size, length = source.signed(), source.varint() + 2, source.take(1)[0]
        cells = symbols(2, data[source.at :], 1, -(-count // length))
        digits = [cell // size ** (length - 1 - k) % size for cell in cells for k in range(length)]
        assert not any(digits[count:])
        return [lowest + digit for digit in digits[:count]]
    return {3: planes, 9: blocks}[codec](source, rows, columns)


def planes(source, rows, columns):
    found = []
    for _ in range(columns):
        length, inner = divmod(source.varint(), 16)
        found.append(symbols(inner, source.take(length), rows, 1))
    return [found[column][row] for row in range(rows) for column in range(columns)]


def blocks(source, rows, columns):
    height, out = source.varint(), []
    assert 1 <= height < rows
    for start in range(0, rows, height):
        inner, length = source.varint(), source.varint()
        assert inner != 9
        out += symbols(inner, source.take(length), min(height, rows - start), columns)
    assert source.at == len(source.data)
    return out


def split(source, rows, columns):
    """High parts, then what lies beyond both ends, then low bits."""
    first, bits = source.signed(), source.take(1)[0]

    def part(rows, columns):
        length, inner = divmod(source.varint(), 16)
        assert inner in (0, 1, 2, 4)
        return symbols(inner, source.take(length), rows, columns)

    parts = part(rows, columns)
    ends = sum(place in (0, 63) for place in parts)
    beyond = iter(part(ends, 1) if ends else [])
    low = part(rows, columns) if bits else [0] * len(parts)
    out = []
    for place, rest in zip(parts, low, strict=True):
        away = {0: -1, 63: 1}.get(place)
        high = first + place + (away * next(beyond) if away else 0)
        out.append((high << bits) + rest)
    return out


LEARNING[10] = split


def names(packed):
    out, parts = [], []
    for text in packed:
        parts = parts[: int(text[0], 36)] + text[1:].split(".")
        out.append(".".join(parts))
    return out


class Entry:
    def __init__(self, value):
        self.kind, self.shape, options = [*value, {}][:3]
        self.dtype = options.get("d", "float32")
        self.size = math.prod(self.shape)
        self.layout, self.side = options.get("l"), options.get("e", 0)
        if self.kind == "t":
            self.parts = [Entry(options["c"]), Entry(options["b"])]
        elif self.kind == "r":
            self.stored = options.get("s", self.dtype)
            self.width = WIDTHS[self.stored]
        else:
            first = self.shape[0] if self.shape else 1
            self.matrix = options.get("m", [first, math.prod(self.shape[1:])])
            one = {"g": 1, "c": 0}[self.kind]
            self.factors = {"s": 1, "r": self.matrix[0]}.get(options.get("p"), one)
            self.offset = options.get("o", 0)
            self.offsets = {"s": 1, "r": self.matrix[0]}.get(self.offset, 0)
            self.book = options.get("b", 0)

    def leaves(self):
        return {"t": lambda: self.parts, "r": list}.get(self.kind, lambda: [self])()


def read(data, dictionary):
    """Return (header, entries by name, levels of the codebooks, clips): all plain values."""
    magic, major, _, stored, raw, total = struct.unpack_from("<8sHHIIQ", data)
    assert (magic, major, total) == (b"\x89FWB\r\n\x1a\n", 1, len(data))
    body = data[32 : 32 + stored]
    assert struct.unpack_from("<I", data, 28)[0] == zlib.crc32(data[:28] + body)
    text = zlib.decompressobj(-15, dictionary).decompress(body)
    assert len(text) == raw
    header = json.loads(text)
    source, order = (
        Bytes(data[32 + stored :]),
        iter(zip(header.get("c", []), header.get("l", []), strict=True)),
    )

    waiting = []

    def stream(rows, columns, leaf=None):
        if rows * columns == 0:
            return []
        codec, length = next(order)
        if codec == 8:
            waiting.append((rows, columns, leaf))
            if not length:
                return None
        coded = source.take(length)
        assert source.take(4) == struct.pack("<I", zlib.crc32(coded))
        if codec != 8:
            return symbols(codec, coded, rows, columns)
        joined = list(waiting)
        waiting.clear()
        found = adaptive.matrices(Bytes(coded), [place[:2] for place in joined], joined=True)
        for (_, _, one), index in zip(joined, found, strict=True):
            if one is not None:
                one.index = index
        return found[-1]

    entries = dict(zip(names(header.get("n", [])), map(Entry, header.get("t", [])), strict=True))
    groups = {}
    for name, entry in entries.items():
        for leaf in entry.leaves():
            leaf.index = stream(*leaf.matrix, leaf)
        if entry.kind == "r" and entry.size * entry.width > 65536:
            entry.data = bytes(stream(entry.size, entry.width))
        elif entry.kind == "r":
            groups.setdefault((entry.stored, name.split(".")[-1]), []).append(entry)
    books = header.get("b", [])
    leaves = [leaf for entry in entries.values() for leaf in entry.leaves()]
    clips = 0 if "v" in header else len(header.get("g", []))
    rows = sum(books) + sum(leaf.factors + leaf.offsets for leaf in leaves) + clips
    side = Bytes(bytes(stream(rows, 4)))
    levels = [side.take(4 * count) for count in books]
    for leaf in leaves:
        leaf.factor_bytes = side.take(4 * leaf.factors)
        leaf.offset_bytes = side.take(4 * leaf.offsets)
    clip_values = header.get("v") or list(struct.unpack(f"<{clips}f", side.take(4 * clips)))
    for group in groups.values():
        pool = Bytes(bytes(stream(sum(entry.size for entry in group), group[0].width)))
        for entry in group:
            entry.data = pool.take(entry.size * entry.width)
    assert source.at == len(source.data)
    assert next(order, None) is None
    assert not waiting
    return header, entries, levels, clip_values
