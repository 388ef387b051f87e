"""Inputs as fuzzers change them: parts that stay consistent where a reader would stop at once.

A genome renders to bytes. Its mutations keep checksums and lengths right, and so get past them.
"""

from __future__ import annotations

import copy
import hashlib
import io
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.random import Generator

from fewbits.coding import CODECS, Layout
from fewbits.coding.codec import varint
from fewbits.coding.mix import mix
from fewbits.coding.mix.settings import Settings
from fewbits.coding.numbers import Numbers
from fewbits.coding.rans import rans
from fewbits.coding.rans.classes import Classes, code_classes
from fewbits.training.loop.checkpoint import SCHEMA
from fuzz_mutations import change_bodies, change_bytes, change_tree
from fuzz_seeds import Bodies, dump, join, seeds

__all__ = ["Genome", "Plain", "Sealed", "Stored", "Zipped", "files", "packed", "sealed", "unpacked"]

# The entry of a tensor, the body of each of its chunks, its codec, and how many chunks there are.
Dear: TypeAlias = tuple[list[Any], bytes, str, int]

LONGEST = 1 << 20  # bytes that are changed: what is longer is not read anyway
NOWHERE = (1 << 24) - 1  # length of a body that is the one before
NUMBERS = [codec.number for codec in CODECS.values()]
PIECES = (
    b"[",
    b"]",
    b"{",
    b"}",
    b'"',
    b"\\",
    b'\\"',
    b"&a ",
    b"*a",
    b"<<: *a\n",
    b"- ",
    b": ",
    b",",
)
PIECES += (
    b"1e400",
    b"NaN",
    b"-Infinity",
    b"0x1f",
    b"9" * 70,
    b"1:59:59",
    b"2001-01-01",
    b"!!set",
    b"\n",
)
PIECES += (
    b"!!python/name:os.system ",
    b"\xff",
    b"\x00",
    b"null",
    b"? ",
    b"| ",
    b"#",
    b"1_0",
    b"\xef\xbb\xbf",
)


class Genome(Protocol):
    """Something that changes, and renders to the bytes of an input."""

    def data(self) -> bytes:
        """Return the bytes."""

    def changed(self, rng: Generator) -> Genome:
        """Return another genome, one change away."""


@dataclass(frozen=True)
class Plain:
    """Bytes or text as they are."""

    text: bytes

    def data(self) -> bytes:
        return self.text

    def changed(self, rng: Generator) -> Plain:
        text, kind = self.text[:LONGEST], int(rng.integers(5))
        at, end = sorted(int(place) for place in rng.integers(len(text) + 1, size=2))
        if kind == 0:
            return Plain(change_bytes(text, rng))
        if kind == 1:  # a part, many times over
            return Plain(text[:at] + text[at:end] * int(2 ** rng.integers(1, 10)) + text[end:])
        piece = PIECES[int(rng.integers(len(PIECES)))]
        if kind == 2:
            return Plain(text[:at] + piece * int(2 ** rng.integers(0, 13)) + text[at:])
        if kind == 3:
            return Plain(text[:at] + piece + text[end:])
        return Plain(text[:at] + b"[" * 40 + text[at:end] + b"]" * 40 + text[end:])


@dataclass(frozen=True)
class Zipped:
    """The members of a zip, which is written anew with right checksums."""

    members: tuple[tuple[str, bytes], ...]
    deflated: bool = False

    @staticmethod
    def of(data: bytes) -> Zipped:
        with zipfile.ZipFile(io.BytesIO(data)) as file:
            return Zipped(tuple((name, file.read(name)) for name in file.namelist()))

    def data(self) -> bytes:
        out = io.BytesIO()
        method = zipfile.ZIP_DEFLATED if self.deflated else zipfile.ZIP_STORED
        with zipfile.ZipFile(out, "w", method) as file:
            for name, body in self.members:
                file.writestr(zipfile.ZipInfo(name), body, method)
        return out.getvalue()

    def changed(self, rng: Generator) -> Zipped:
        if rng.random() < 0.1:
            return replace(self, deflated=not self.deflated)
        members = list(self.members)
        place = int(rng.integers(len(members)))
        name, body = members[place]
        kind = int(rng.integers(4))
        if kind == 0 and len(body) < 1 << 26:
            members[place] = name, body + bytes(int(2 ** rng.integers(4, 27)))
        elif kind == 1:
            members.append((name if rng.random() < 0.5 else f"{name}0", body))
        else:
            members[place] = name, Plain(body).changed(rng).text
        return replace(self, members=tuple(members))


@dataclass(frozen=True)
class Sealed:
    """A checkpoint of a run: what is inside, and the line at its end, made right again."""

    inside: Genome

    def data(self) -> bytes:
        return sealed(self.inside.data())

    def changed(self, rng: Generator) -> Sealed:
        return Sealed(self.inside.changed(rng))


@dataclass(frozen=True)
class Stored:
    """A ``.fewbits`` file taken apart: numbers of codecs and lengths are not in ``header``."""

    header: dict[str, Any]
    codecs: tuple[int, ...]
    bodies: Bodies
    minor: int = 0

    def data(self) -> bytes:
        lengths = [len(body or b"") for body in self.bodies]
        header = {**self.header, "c": list(self.codecs), "l": lengths}
        return join(dump(header), self.bodies, self.minor)

    def changed(self, rng: Generator) -> Stored:
        change = CHANGES[int(rng.integers(len(CHANGES)))]
        return change(replace(self, header=copy.deepcopy(self.header)), rng)


def _tree(gene: Stored, rng: Generator) -> Stored:
    if gene.header:
        change_tree(gene.header, rng)
    return gene


def _body(gene: Stored, rng: Generator) -> Stored:
    if not gene.bodies:
        return gene
    bodies, codecs = change_bodies(gene.bodies, gene.codecs, rng)
    return replace(gene, bodies=bodies, codecs=tuple(codecs))


def _codec(gene: Stored, rng: Generator) -> Stored:
    if not gene.codecs:
        return gene
    codecs = list(gene.codecs)
    codecs[int(rng.integers(len(codecs)))] = int(rng.choice(NUMBERS))
    return replace(gene, codecs=tuple(codecs))


def _grow(gene: Stored, rng: Generator) -> Stored:
    """Make a dimension of a tensor longer or shorter."""
    shapes = [entry[1] for entry in _entries(gene) if _is_sound(entry) and entry[1]]
    if shapes:
        shape = shapes[int(rng.integers(len(shapes)))]
        place = int(rng.integers(len(shape)))
        shape[place] = min(1 << 48, int(abs(shape[place]) * 2.0 ** rng.integers(-3, 11)))
    return gene


def _repeat(gene: Stored, rng: Generator) -> Stored:
    """Repeat the first tensor with its stream, many times; the steps of all become zero."""
    entries = _entries(gene)
    if not entries or not _is_sound(entries[0]) or not gene.bodies:
        return gene
    if entries[0][0] != "g" or gene.bodies[0] is None or gene.header.get("b"):
        return gene
    count = int(2 ** rng.integers(0, 11))
    header = {key: gene.header[key] for key in gene.header if key not in ("a", "q", "g", "v")}
    header |= {"n": [f"0{k:x}" for k in range(count)], "t": entries[:1] * count}
    codecs, bodies = gene.codecs[:1] * count, gene.bodies[:1] * count
    return replace(gene, header=header, codecs=(*codecs, 0), bodies=(*bodies, b"\0"))


def _settings(gene: Stored, rng: Generator) -> Stored:
    """Let the file be one stream with dear settings, once or many times."""
    entry, body, codec, chunks = STREAMS[int(rng.integers(len(STREAMS)))](rng)
    count = _power(rng, 8) if chunks == 1 and rng.random() < 0.5 else 1
    header = {"n": [f"0{k:x}" for k in range(count)], "t": [entry] * count}
    number, bodies = CODECS[codec].number, (body,) * chunks * count
    codecs = (number,) * len(bodies)
    if entry[0] == "g":  # steps
        return Stored(header, (*codecs, 0), (*bodies, b"\0"))
    return Stored(header, codecs, bodies)


def _power(rng: Generator, most: int) -> int:
    return int(2 ** rng.integers(0, most + 1))


def _mix(rng: Generator) -> Dear:
    """A stream of `mix`: kernels of any size, symbols of many flags, some noise at its begin."""
    side = int(rng.integers(1, 8))
    taps, width = (side * side, side) if rng.random() < 0.7 else (side, int(rng.choice([1, side])))
    inputs, most = _power(rng, 10), int(rng.choice([12, 14, 16, 19]))
    rows = max(1, _power(rng, most) // (inputs * taps))
    shape = [rows, inputs, taps // width, width]
    layout = Layout(rows, inputs * taps, *((taps, width) if taps > 1 else (1, 0)))
    highest = 2 ** int(rng.integers(0, 31)) - 1
    setting = Settings(
        -1, highest, min(0, highest), int(rng.integers(0, 99)), int(rng.integers(1, 4)),
        int(rng.integers(0, 28)) * int(rng.integers(2)), bool(rng.integers(2)) and taps == 1,
    )  # fmt: skip
    values = np.full((rows, inputs * taps), rng.choice([highest, min(3, highest), 0]), np.int32)
    noise = rng.integers(-1, highest + 1, min(values.size, _power(rng, 10)), np.int32)
    values.reshape(-1)[: noise.size] = noise
    stream = mix._Stream(mix.ENCODE, values.size, room=5 * values.size + 100)
    stream.walk(values, layout, setting)
    body = setting.to_bytes(None) + (mix.coded_bytes(stream.state, stream.buffer) or b"")
    return ["g", shape], body, "mix", 1


def _classes(layout: Layout, rng: Generator) -> bytes:
    """A stream of `rans` of symbols that are 0, with any levels, tables, low bits and escapes."""

    def levels(size: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
        found = np.zeros(size, np.uint8)
        found[-1:] = rng.integers(0, 16)
        found[:: _power(rng, 12) * 64] = rng.integers(0, 16)
        return found

    sizes = (layout.rows, layout.columns // layout.taps, layout.taps)
    rows, inputs, taps = (levels(size) for size in sizes)
    most = int(rows.max()) + int(inputs.max()) + int(taps.max())
    tables = np.minimum(np.arange(most + 1), int(rng.integers(16)))
    alphabet = int(rng.integers(2, 257))
    roots = np.zeros((int(tables.max()) + 1, alphabet), np.int64)
    roots[:, 0], roots[:, 1:] = 255, rng.integers(0, 2)
    known = Classes(rows, inputs, taps, tables, roots)
    numbers = Numbers.writer(1 << 20)
    code_classes(numbers, known, alphabet)
    side = numbers.to_bytes() or b""
    low = int(rng.choice([0, 0, 0, 1])) * (layout.size < 1 << 15)
    window = rans.Window(0, alphabet, low, int(rng.choice([0, 8, 32])), 0)
    bins = np.zeros((layout.rows, layout.columns), np.uint8)
    return window.to_bytes() + varint(len(side)) + side + rans._push(bins, bins, window, known)


def _rans(rng: Generator) -> Dear:
    chunks, size = int(rng.integers(1, 9)), int(rng.choice([1, 1 << 10, 1 << 18, 1 << 21]))
    if rng.random() < 0.5:
        rows = int(2 ** rng.integers(0, size.bit_length()))
        layout = Layout(rows, size // rows)
        if rows * layout.columns < 1 << 21:
            chunks = 1
        shape = [chunks * rows, layout.columns]
        return ["g", shape], _classes(layout, rng), "rans", chunks
    width = int(rng.choice([1, 2, 4, 8]))
    layout = Layout((1 << 21) // width, width)
    chunks *= 4
    dtype = {1: "uint8", 2: "int16", 4: "float32", 8: "int64"}[width]
    return ["r", [layout.rows * chunks], {"d": dtype}], _classes(layout, rng), "rans", chunks


def _planes(rng: Generator) -> Dear:
    width, rows = int(rng.choice([2, 4, 8])), int(2 ** rng.integers(15, 19))
    rows, chunks = min(rows, (1 << 21) // width), int(rng.integers(1, 17))
    if rows * width < 1 << 21:
        chunks = 1
    body = b""
    for _ in range(width):
        name = ("rans", "constant", "raw", "mix")[int(rng.choice(4, p=[0.7, 0.2, 0.05, 0.05]))]
        plane = _classes(Layout(1, rows), rng) if name == "rans" else b"\7" + b"\1" * 8
        plane = plane[:1] if name == "constant" else plane
        body += varint(8 * len(plane) + CODECS[name].number) + plane
    dtype = {2: "int16", 4: "float32", 8: "int64"}[width]
    return ["r", [rows * chunks], {"d": dtype}], body, "planes", chunks


def _raw(rng: Generator) -> Dear:
    width, size = int(rng.integers(0, 34)), int(rng.integers(1, 60_000))
    body = varint(2 * _power(rng, 32)) + bytes([width]) + b"\x5a" * ((size * width + 7) // 8)
    return ["g", [size]], body[:9000], "raw", 1


def _constant(rng: Generator) -> Dear:
    chunks, value = int(rng.integers(1, 40)), varint(_power(rng, 33))
    kind = ["g", [chunks << 21]] if rng.random() < 0.3 else ["r", [chunks << 21], {"d": "uint8"}]
    return kind, value, "constant", chunks


def _share(gene: Stored, rng: Generator) -> Stored:
    """Let small matrices share a body, as many as there is room for."""
    count, side = int(2 ** rng.integers(1, 12)), int(rng.integers(1, 8))
    layout = Layout(1, side * side, *((side * side, side) if side > 1 else (1, 0)))
    matrices = [np.full((1, side * side), k == 0, np.int32) for k in range(count)]
    body = CODECS["mix"].encode_group(matrices, [layout] * count) or b"\0"
    header = {"n": [f"0{k:x}" for k in range(count)], "t": [["g", [1, 1, side, side]]] * count}
    codecs = (CODECS["mix"].number,) * count
    return Stored(header, (*codecs, 0), (body, *[None] * (count - 1), b"\0"))


STREAMS: tuple[Callable[[Generator], Dear], ...]
STREAMS = (_mix, _mix, _rans, _rans, _planes, _raw, _constant)


def _list(gene: Stored, rng: Generator) -> Stored:
    """Make a list of the header long."""
    count = int(2 ** rng.integers(4, 18))
    key = "mbatqn"[int(rng.integers(6))]
    gene.header[key] = {
        "m": {"a": [([], {}, 1, 1.5, '\\"')[int(rng.integers(5))]] * count},
        "b": [1] * count,
        "a": {f"{k:x}": 0 for k in range(count)},
        "t": [["g", [0]]] * count,
        "q": [f"0{k:x}" for k in range(count)],
        "n": [f"0{k:x}" for k in range(count)],
    }[key]
    if key == "t":
        gene.header["n"] = [f"0{k:x}" for k in range(count)]
    if key == "q":
        gene.header.update(g=[8] * count, v=[1] * count)
    return gene


def _entries(gene: Stored) -> list[Any]:
    entries = gene.header.get("t")
    return entries if isinstance(entries, list) else []


def _is_sound(entry: Any) -> bool:
    shape = entry[1] if isinstance(entry, list) and len(entry) > 1 else None
    return isinstance(shape, list) and all(type(size) is int for size in shape)


CHANGES: tuple[Callable[[Stored, Generator], Stored], ...]
CHANGES = (_tree, _body, _body, _codec, _grow, _grow, _repeat, _settings, _settings, _share, _list)


def files() -> list[Genome]:
    """Return the sound files of ``fuzz.py``, taken apart."""
    return [
        Stored(seed.header, tuple(seed.header.get("c", [])), seed.bodies, seed.minor)
        for seed in seeds()
    ]


def packed(gene: Genome) -> bytes:
    """Return a genome as bytes that :func:`unpacked` takes, with nothing that needs a checksum."""
    if isinstance(gene, Sealed):
        return gene.inside.data()
    if not isinstance(gene, Stored):
        return gene.data()
    known = {key: value for key, value in gene.header.items() if key != "l"}
    header = dump({**known, "c": list(gene.codecs)})
    out = bytes([gene.minor % 256]) + len(header).to_bytes(3, "little") + header
    for body in gene.bodies:
        out += (NOWHERE if body is None else len(body)).to_bytes(3, "little") + (body or b"")
    return out


def sealed(inside: bytes) -> bytes:
    """Return a checkpoint with the line at its end that fits what is inside."""
    return inside + f"\n{SCHEMA} sha256 {hashlib.sha256(inside).hexdigest()}\n".encode()


def unpacked(data: bytes) -> bytes:
    """Return the file that ``data`` stands for, whatever it is: checksums and lengths are right."""
    size = int.from_bytes(data[1:4], "little")
    text, rest = data[4 : 4 + size], data[4 + size :]
    bodies: list[bytes | None] = []
    while len(rest) >= 3:
        size = int.from_bytes(rest[:3], "little")
        bodies.append(None if size == NOWHERE else rest[3 : 3 + size])
        rest = rest[3 + (0 if size == NOWHERE else size) :]
    lengths = b'"l":' + dump([len(body or b"") for body in bodies])
    end = text.rfind(b"}")
    text = text[:end] + (b"," if end > 1 else b"") + lengths + text[end:] if end >= 0 else text
    return join(text, tuple(bodies), data[0] if data else 0)
