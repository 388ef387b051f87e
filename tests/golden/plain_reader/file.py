"""SPEC.md 1 and 3: a whole file, from bytes to the values of tensors.

It checks what a file must be, but bounds neither memory nor work (section 5): read files that you
trust, and small ones.
"""

import math
import struct
import zlib
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from . import values
from .codecs import Layout, matrices
from .fields import Bytes, need
from .index import Entry, names, parse

SPEC = Path(__file__).parents[3] / "src" / "fewbits" / "container" / "SPEC.md"
MAGIC = b"\x89FWB\r\n\x1a\n"
FOOTER = 22


def dictionary():
    """Return the preset dictionary, as the specification prints it."""
    section = SPEC.read_text(encoding="utf-8").partition("## 7. Preset dictionary")[2]
    return "".join(section.split("```")[1].split("\n")).encode("ascii")


@dataclass
class File:
    """What a file holds.

    Attributes:
        entries: name to :class:`Entry`; its ``data`` are the tensor's values in its dtype.
        activations: name to (bits, signed, zero, clip).
    """

    entries: dict
    aliases: dict
    activations: dict
    metadata: dict


@dataclass
class Stream:
    rows: int
    columns: int
    owner: Entry | None = None  # of an index matrix
    symbols: list = field(default_factory=list)

    def chunks(self):
        taps, width = self.owner.kernel() if self.owner else (1, 0)
        step = max(1, 2**21 // self.columns)
        firsts = range(0, self.rows, step)
        return [Layout(min(step, self.rows - first), self.columns, taps, width) for first in firsts]


def index_of(data):
    """Return the index, and where it begins."""
    need(data[:8] == MAGIC, "it is no fewbits file")
    need(len(data) >= 10 + FOOTER, "it is too short")
    need(data[8:10] == b"\2\0", "its major version is unknown")
    minor, stored, length, total = struct.unpack_from("<HIIQ", data, len(data) - FOOTER)
    start = len(data) - FOOTER - stored
    need(total == len(data) and start >= 10 and length <= 2**26, "its lengths are wrong")
    checked = zlib.crc32(data[:10] + data[start:-4])
    need(data[-4:] == struct.pack("<I", checked), "the index is damaged")
    inflate = zlib.decompressobj(-15, dictionary())
    try:
        text = inflate.decompress(data[start:-FOOTER])
    except zlib.error as error:
        need(False, f"the index does not inflate: {error}")
    ended = inflate.eof and not inflate.unused_data
    need(ended and len(text) == length, "the index does not inflate to its length")
    return parse(text, minor), start


def groups_of(lengths):
    """Return (start, stop) of the chunks in each body."""
    need(not lengths or lengths[0] > 0, "the first chunk has no body")
    starts = [at for at, length in enumerate(lengths) if length]
    return list(pairwise([*starts, len(lengths)]))


def bodies(data, index, plan):
    """Give each stream its symbols."""
    chunks = [(stream, layout) for stream in plan for layout in stream.chunks()]
    codecs, lengths = index.get("c", []), index.get("l", [])
    need(len(chunks) == len(codecs) == len(lengths), "codecs and lengths are not as many as chunks")
    source, coded = Bytes(data), []
    for length in filter(None, lengths):
        coded.append(source.take(length))
        need(source.take(4) == struct.pack("<I", zlib.crc32(coded[-1])), "a body is damaged")
    source.end()
    for body, (start, stop) in zip(coded, groups_of(lengths), strict=True):
        need(len(set(codecs[start:stop])) == 1, "chunks of several codecs share a body")
        shared = chunks[start:stop]
        if len(shared) > 1:
            whole = all(s.owner and layout.rows == s.rows for s, layout in shared)
            need(whole, "what shares a body is no whole index matrix")
        found = matrices(codecs[start], body, [layout for _, layout in shared])
        for (stream, _), symbols in zip(shared, found, strict=True):
            stream.symbols += symbols


def pool(stream):
    """Return the bytes that a stream holds."""
    need(all(0 <= symbol <= 255 for symbol in stream.symbols), "a byte is out of bounds")
    return Bytes(bytes(stream.symbols))


def read(data):
    """Return the :class:`File` of ``data``; Refused for what is none."""
    index, start = index_of(data)
    books = index.get("b", [])
    need(all(type(b) is int and 1 <= b <= 2**24 for b in books), "a codebook has a wrong size")
    listed, found = names(index.get("n", [])), index.get("t", [])
    need(len(listed) == len(found), "names and entries are not as many")
    entries = dict(zip(listed, (Entry(value, len(books)) for value in found), strict=True))
    groups = plan_own(entries)
    leaves = [leaf for entry in entries.values() for leaf in entry.leaves()]
    clips = 0 if "v" in index else len(index.get("g", []))
    floats = sum(books) + sum(leaf.factors + leaf.offsets for leaf in leaves) + clips
    side = Stream(floats, 4)
    shared = [Stream(sum(e.values for e in group), group[0].width) for group in groups]
    own = [stream for entry in entries.values() for stream in entry.streams]
    plan = [stream for stream in [*own, side, *shared] if stream.rows * stream.columns]
    bodies(data[10:start], index, plan)

    for stream, group in zip(shared, groups, strict=True):
        source = pool(stream)
        for entry in group:
            entry.bytes = source.take(entry.values * entry.width)
    stored = pool(side)
    levels = [codebook(stored, count) for count in books]
    for leaf in leaves:
        leaf.steps = values.floats(stored.take(4 * leaf.factors), "float32")
        leaf.given_offsets = values.floats(stored.take(4 * leaf.offsets), "float32")
    for entry in entries.values():
        restore(entry, levels)
    given = index.get("v") or values.floats(stored.take(4 * clips), "float32")
    return File(entries, aliases(index, listed), activations(index, given), index.get("m", {}))


def plan_own(entries):
    """Give entries the streams of their own, and return groups of those that share one."""
    groups = {}
    for name, entry in entries.items():
        entry.streams = [Stream(*leaf.matrix, leaf) for leaf in entry.leaves()]
        if entry.kind == "r" and entry.values * entry.width > 65536:
            entry.streams = [Stream(entry.values, entry.width)]
        elif entry.kind == "r" and entry.values:
            groups.setdefault((entry.stored, name.split(".")[-1]), []).append(entry)
    return list(groups.values())


def codebook(stored, count):
    """Return the levels of a codebook, which come next."""
    levels = values.floats(stored.take(4 * count), "float32")
    need(all(map(math.isfinite, levels)), "a level is not finite")
    need(all(a < b for a, b in pairwise(levels)), "a codebook does not rise")
    return levels


def leaf_values(leaf, symbols, levels):
    """Return the float32 values of an index matrix, as a tensor of the leaf's shape."""
    need(all(map(math.isfinite, leaf.steps)), "a step or scale is not finite")
    leaf.index, columns = symbols, leaf.matrix[1]
    if leaf.kind == "c":
        book = levels[leaf.book]
        need(all(0 <= i < len(book) for i in symbols), "an index is outside its codebook")
        leaf.steps = leaf.steps or [1.0]
        found = values.codebook(symbols, columns, book, leaf.steps)
    elif leaf.kind == "a":
        found = values.affine(symbols, columns, leaf.steps, leaf.given_offsets)
        need(all(map(math.isfinite, leaf.given_offsets)), "a minimum is not finite")
    else:
        leaf.all_offsets = leaf.given_offsets
        if not leaf.offsets and leaf.offset not in ("s", "r"):
            leaf.all_offsets = [values.f32(leaf.offset / 2)]
            need(leaf.all_offsets[0] * 2 == leaf.offset, "an offset is no float32")
        halves = all(math.isfinite(o) and 2 * o == math.floor(2 * o) for o in leaf.all_offsets)
        need(halves, "an offset is no multiple of a half")
        found = values.grid(symbols, columns, leaf.steps, leaf.all_offsets)
    return values.arranged(found, leaf.layout)


def restore(entry, levels):
    """Give an entry the bytes of its values in its dtype."""
    if entry.kind == "r":
        if entry.streams:
            entry.bytes = pool(entry.streams[0]).rest()
        elif not entry.values:
            entry.bytes = b""
        need(entry.stored != "bool" or max(entry.bytes, default=0) <= 1, "a bool is not 0 or 1")
        entry.data = values.converted(entry.bytes, entry.stored, entry.dtype)
        return
    found = [
        leaf_values(leaf, stream.symbols, levels)
        for leaf, stream in zip(entry.leaves(), entry.streams, strict=True)
    ]
    if entry.kind == "t":
        left, right = found if entry.side else found[::-1]
        first, last = entry.factors_in_order
        product = values.matrix_product(left, right, first.shape[1])
        if first.shape[1] == 0:
            product = [0.0] * (first.shape[0] * last.shape[1])
        entry.float32 = values.arranged(product, entry.layout)
    else:
        entry.float32 = found[0]
    entry.data = values.to_bytes(entry.float32, entry.dtype)


def aliases(index, listed):
    """Return other name to name."""
    found = index.get("a", {})
    known = set(listed)
    need(not known & set(found), "an alias is the name of a tensor")
    need(all(type(at) is int and 0 <= at < len(listed) for at in found.values()), "no such tensor")
    return {alias: listed[at] for alias, at in found.items()}


def activations(index, clips):
    """Return name to (bits, signed, zero, clip)."""
    layers, codes = names(index.get("q", [])), index.get("g", [])
    need(len(layers) == len(codes) == len(clips), "activations are not as many as names")
    out = {}
    for name, code, clip in zip(layers, codes, clips, strict=True):
        need(type(code) is int and code >= 0, "an activation is malformed")
        zero, bits, signed = code // 64, code % 64 // 2, code % 2
        need(1 <= bits <= 16 and clip > 0 and math.isfinite(clip), "an activation is out of bounds")
        need(0 <= zero <= (0 if signed else 2**bits - 1), "a zero is out of bounds")
        out[name] = bits, bool(signed), zero, clip
    return out
