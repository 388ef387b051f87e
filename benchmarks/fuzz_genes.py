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
from typing import Any, Protocol

import numpy as np
from numpy.random import Generator

from fewbits.coding import CODECS
from fewbits.coding.adaptive import dump_settings
from fewbits.coding.filters import Settings
from fewbits.coding.varint import signed_varint, varint
from fewbits.training.checkpoint import SCHEMA
from fuzz_mutations import change_bytes, change_tree
from fuzz_seeds import Bodies, dump, join, seeds

__all__ = ["Genome", "Plain", "Sealed", "Stored", "Zipped", "files", "packed", "sealed", "unpacked"]

LONGEST = 1 << 20  # bytes that are changed: what is longer is not read anyway
NOWHERE = (1 << 24) - 1  # length of a stream that is joined to a later one
NUMBERS = [cdc.number for _, cdc in CODECS.items()]
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
    minor: int = 3

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
    bodies, place = list(gene.bodies), int(rng.integers(len(gene.bodies)))
    body = bodies[place] or b""
    head = int(rng.integers(1, 17))
    whole = rng.random() < 0.3
    bodies[place] = (
        change_bytes(body, rng) if whole else change_bytes(body[:head], rng) + body[head:]
    )
    return replace(gene, bodies=tuple(bodies))


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
    return replace(gene, header=header, codecs=(*codecs, 0), bodies=(*bodies, b""))


def _settings(gene: Stored, rng: Generator) -> Stored:
    """Let the first tensor be one grid whose stream has settings of a codec and no more."""

    def power(most: int) -> int:
        return int(2 ** rng.integers(0, most + 1))

    size, taps = min(64, max(2, power(6))), power(6)
    shape = [power(13), taps * power(10)]
    height = max(1, -(-shape[0] // power(6)))
    settings = Settings(taps, int(rng.integers(16)), int(rng.integers(9)), 1, height, 0, 1)
    walk = signed_varint(0) + dump_settings(settings, size)
    name, body = (
        ("adaptive", walk),
        ("joined", walk),
        (
            "context",
            signed_varint(0) + bytes([min(size, 32) - 2, 1 + power(0)]) + varint(power(16)),
        ),
        ("binary", signed_varint(0) + bytes([size - 2, 0]) + varint(3) + b"\1" * power(8)),
        ("static", CODECS["static"].encode(_spread(power(16), rng)) or b""),
        ("tuple", CODECS["tuple"].encode(_spread(min(40, 1 + power(5)), rng)) or b""),
        ("split", signed_varint(0) + bytes([power(4)]) + varint(0) * 3),
        ("blocks", varint(power(10)) + (varint(4) + varint(len(walk)) + walk) * power(5)),
    )[int(rng.integers(8))]
    header = {"n": ["0w"], "t": [["g", shape]]}
    return Stored(header, (CODECS[name].number, 0), (body, b""))


def _spread(size: int, rng: Generator) -> np.ndarray[Any, np.dtype[np.int32]]:
    symbols = np.zeros((1, 64), np.int32)
    symbols[0, int(rng.integers(64))] = max(1, size - 1)
    return symbols


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
CHANGES = (_tree, _body, _body, _codec, _grow, _grow, _repeat, _settings, _list)


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
