"""The sound files that a fuzz run starts from, each taken apart: golden files, and every codec."""

from __future__ import annotations

import json
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.random import Generator

from fewbits.coded import (
    ActivationGrid,
    Codebook,
    CodebookTensor,
    Contents,
    GridTensor,
    RawTensor,
    TransformTensor,
)
from fewbits.coding import CODECS, EFFORTS, decode_symbols
from fewbits.container import decode, encode
from fewbits.container.frame import DICTIONARY, FIELDS, FOOTER, PREFIX, pack_index
from fewbits.container.reader import open_file

__all__ = ["Bodies", "Seed", "dump", "index_of", "join", "seeds"]

GOLDEN = Path(__file__).resolve().parents[1] / "tests" / "golden"

# Of each chunk that the header names; None where it shares the one before.
Bodies: TypeAlias = tuple[bytes | None, ...]


@dataclass(frozen=True)
class Seed:
    """A sound file, taken apart: header, stored streams, and what it holds."""

    name: str
    data: bytes
    header: dict[str, Any]
    bodies: Bodies
    minor: int
    contents: Contents


def _dissect(name: str, data: bytes) -> Seed:
    opened = open_file(data)
    found = iter(opened.spans)
    bodies: list[bytes | None] = []
    for length in opened.header.lengths:
        span = next(found) if length else None
        bodies.append(None if span is None else data[span.start : span.end])
    start, end = index_of(data)
    text = zlib.decompressobj(-15, DICTIONARY).decompress(data[start:end])
    return Seed(name, data, json.loads(text), tuple(bodies), opened.version[1], decode(data))


def index_of(data: bytes) -> tuple[int, int]:
    """Return where the index of a file begins and ends, as far as its footer tells."""
    end = max(len(data) - FOOTER, len(PREFIX))
    stored = FIELDS.unpack_from(data, end)[1] if len(data) - end >= FIELDS.size else 0
    return max(end - stored, len(PREFIX)), end


def join(text: bytes, bodies: Bodies, minor: int = 0) -> bytes:
    """Return a file of this header and these bodies with every checksum right.

    No body is empty: one that is shares the one before.
    """
    pieces = [body + struct.pack("<I", zlib.crc32(body)) for body in bodies if body]
    payload = b"".join(pieces)
    return PREFIX + payload + pack_index(text, len(payload), minor)


def dump(header: Any) -> bytes:
    return json.dumps(header, separators=(",", ":")).encode()


def _contents() -> dict[str, Contents]:
    """One small Contents for each kind, wide enough for every codec."""
    rng = np.random.default_rng(7)
    walk = (np.cumsum(rng.integers(0, 8, 1152) // 7) % 4).astype(np.int32).reshape(24, 48)
    bell = np.rint(rng.normal(0, 2, (24, 48))).astype(np.int32)
    rows = np.linspace(0.5, 2, 24, dtype=np.float32)
    book = Codebook(np.array([-1, -0.25, 0.5, 2], np.float32))
    one = np.ones(1, np.float32)
    left = GridTensor((24, 24), "float32", bell[:, :24].copy(), one)
    floats = rng.normal(1, 0.1, 1500).astype("<f4").view(np.uint8)
    grids = {"x": ActivationGrid(4, 2.5, signed=True), "y": ActivationGrid(8, 0.1, signed=False)}
    flat = GridTensor((9, 9), "float32", np.full((9, 9), 5, np.int32), one)
    return {
        "grid": Contents({"w": GridTensor((24, 48), "float32", walk, rows), "f": flat}),
        "codebook": Contents({"w": CodebookTensor((24, 48), "float16", walk, book, rows)}),
        "transform": Contents(
            {
                "w": TransformTensor(
                    (24, 48), "float32", GridTensor((24, 48), "float32", bell, one), left
                )
            }
        ),
        "raw": Contents({"w": RawTensor((1500,), "float32", floats), "n": _flags(rng)}),
        "names": Contents({"a.w": flat, "a.b": _flags(rng)}, {"t": "a.w"}, grids, {"k": [1, {}]}),
        "kernels": Contents({f"w{k}": _kernels(rng) for k in range(3)}),
        "wide": Contents({"w": _wide(rng)}),
    }


def _kernels(rng: Generator) -> GridTensor:
    """A layer of smooth kernels: several share a body."""
    values = np.cumsum(np.cumsum(rng.normal(size=(8, 8, 3, 3)), axis=2), axis=3)
    index = np.rint(values).astype(np.int32).reshape(8, 72)
    return GridTensor((8, 8, 3, 3), "float32", index, np.ones(1, np.float32))


def _wide(rng: Generator) -> GridTensor:
    """Rows of unlike size, and heavy tails: levels, low bits and escapes."""
    values = rng.standard_t(1, (24, 48)) * 2.0 ** rng.integers(0, 12, (24, 1))
    index = np.rint(values).clip(-(2**31), 2**31 - 1).astype(np.int64).astype(np.int32)
    return GridTensor((24, 48), "float32", index, np.ones(1, np.float32))


def _flags(rng: Generator) -> RawTensor:
    return RawTensor((40,), "bool", rng.integers(0, 2, 40).astype(np.uint8))


def _forced(name: str, codec: str) -> bytes | None:
    """Return the file of one Contents with this codec in every chunk that it can code."""
    seed = _dissect(name, encode(_contents()[name], "fast"))
    bodies, codecs = [], []
    for span in open_file(seed.data).spans:  # of this effort, none is shared
        body, (chunk,) = seed.data[span.start : span.end], span.chunks
        symbols = decode_symbols(span.codec, body, chunk.layout)
        if not chunk.stream.is_index:
            symbols = symbols.astype(np.uint8)
        coded = CODECS[codec].encode(symbols, chunk.layout)
        bodies.append(body if coded is None else coded)
        codecs.append(span.codec if coded is None else CODECS[codec].number)
    if CODECS[codec].number not in codecs:
        return None
    header = seed.header | {"c": codecs, "l": [len(body) for body in bodies]}
    return join(dump(header), tuple(bodies))


def seeds() -> list[Seed]:
    """Return every golden file, and every kind written with every effort and by every codec."""
    files = {
        f"{p.parent.name}/{p.stem}": p.read_bytes() for p in sorted(GOLDEN.glob("v2*/*.fewbits"))
    }
    for name, contents in _contents().items():
        files |= {f"{name}/{effort}": encode(contents, effort) for effort in EFFORTS}
        forced = {f"{name}/{codec}": _forced(name, codec) for codec in CODECS}
        files |= {key: data for key, data in forced.items() if data is not None}
    return [_dissect(name, data) for name, data in files.items()]
