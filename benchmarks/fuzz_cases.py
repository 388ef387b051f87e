"""Files that a hostile writer might send: seeds, three ways to mutate them, and the judgement.

A case follows from (seed, number) alone, so that a case which ends its process can be made again.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
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
from fewbits.coding import CODECS, EFFORTS, decode_stream, name_of
from fewbits.container import decode, encode, measure
from fewbits.container.opened import default_limit
from fewbits.container.prefix import join_prefix
from fewbits.container.reader import open_file
from fewbits.errors import CorruptFileError

__all__ = ["MODES", "Case", "Seed", "judge", "make_case", "seeds"]

MODES = ("raw", "header", "streams")
GOLDEN = Path(__file__).resolve().parents[1] / "tests" / "golden"
SMALL_LIMIT = 1 << 23  # most cases: a small bound of the decoded size keeps them quick
NUMBERS = (0, 1, -1, 2, 15, 16, 17, 64, 255, 256, 65_535, 65_536, 1 << 20, (1 << 24) + 1)
NUMBERS += (1 << 31, (1 << 32) - 1, 1 << 48, (1 << 48) + 1, 1 << 63, 10**30, 0.5, -0.0, 1e308)
WORDS = (
    "",
    "0",
    "g",
    "c",
    "t",
    "r",
    "s",
    "d",
    "float16",
    "bool",
    "float128",
    "0a.b",
    "z",
    "\ud800",
)
TEXTS = (
    "NaN",
    "Infinity",
    "-1e999",
    "1" * 80,
    "[" * 40,
    '{"n":[],',
    '"n":',
    "\\ud800",
    "\x00",
    "{}",
)


# Of each stream that the header names; None where it is in one that follows.
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


@dataclass(frozen=True)
class Case:
    """One mutated file, the seed it stems from, and the bound it is read with."""

    number: int
    mode: str
    seed: Seed
    data: bytes
    limit: int


def same(a: Any, b: Any) -> bool:
    """Return whether two contents are equal to the bit, order of tensors included."""
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if type(a) is not type(b):
        return False
    if is_dataclass(a):
        return all(same(getattr(a, f.name), getattr(b, f.name)) for f in fields(a))
    if isinstance(a, Mapping):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    return bool(a == b)


def _dissect(name: str, data: bytes) -> Seed:
    opened = open_file(data, default_limit(len(data)))
    found = iter(opened.spans)
    joined = CODECS["joined"].number
    bodies = []
    for codec, length in zip(opened.header.codecs, opened.header.lengths, strict=True):
        span = None if codec == joined and not length else next(found)
        bodies.append(None if span is None else data[span.start : span.end])
    inflate = zlib.decompressobj(-15, _dictionary())
    text = inflate.decompress(data[32 : 32 + int.from_bytes(data[12:16], "little")])
    return Seed(name, data, json.loads(text), tuple(bodies), opened.version[1], decode(data))


def _dictionary() -> bytes:
    from fewbits.container.dictionary import DICTIONARY  # noqa: PLC0415

    return DICTIONARY


def _join(text: bytes, bodies: Bodies, minor: int = 1) -> bytes:
    """Return a file of this header and these streams with every checksum right."""
    pieces = [body + struct.pack("<I", zlib.crc32(body)) for body in bodies if body is not None]
    payload = b"".join(pieces)
    return join_prefix(text, len(payload), minor) + payload


def _dump(header: Any) -> bytes:
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
    }


def _flags(rng: Generator) -> RawTensor:
    return RawTensor((40,), "bool", rng.integers(0, 2, 40).astype(np.uint8))


def _forced(name: str, codec: str) -> bytes | None:
    """Return the file of one Contents with this codec in every stream that it can code."""
    seed = _dissect(name, encode(_contents()[name], "fast"))
    opened = open_file(seed.data, default_limit(len(seed.data)))
    bodies, codecs = [], []
    for span in opened.spans:  # the effort joins nothing
        body = seed.data[span.start : span.end]
        shape = (span.stream.rows, span.stream.columns)
        coded = CODECS[codec].encode(decode_stream(name_of(span.codec), body, *shape))
        bodies.append(body if coded is None else coded)
        codecs.append(span.codec if coded is None else CODECS[codec].number)
    if CODECS[codec].number not in codecs:
        return None
    header = seed.header | {"c": codecs, "l": [len(body) for body in bodies]}
    return _join(_dump(header), tuple(bodies))


def seeds() -> list[Seed]:
    """Return every golden file, and every kind written with every effort and by every codec."""
    files = {
        f"{p.parent.name}/{p.stem}": p.read_bytes() for p in sorted(GOLDEN.glob("v*/*.fewbits"))
    }
    for name, contents in _contents().items():
        files |= {f"{name}/{effort}": encode(contents, effort) for effort, _ in EFFORTS.items()}
        forced = {f"{name}/{codec}": _forced(name, codec) for codec, _ in CODECS.items()}
        files |= {key: data for key, data in forced.items() if data is not None}
    return [_dissect(name, data) for name, data in files.items()]


def _few(rng: Generator, most: int = 4) -> int:
    """Return 1 more often than not: a file with one fault is read furthest."""
    return min(most, int(rng.geometric(0.6)))


def _bytes(data: bytes, rng: Generator, most: int = 4) -> bytes:
    """Flip, set, insert, delete, repeat or cut bytes, one to ``most`` times."""
    out = bytearray(data)
    for _ in range(_few(rng, most)):
        at, size = int(rng.integers(len(out) + 1)), int(2 ** rng.integers(0, 6))
        kind = int(rng.integers(8))
        if kind == 0 and at < len(out):
            out[at] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            out[at : at + 1] = bytes([int(rng.choice([0, 1, 127, 128, 255]))])
        elif kind == 2:
            out[at : at + 1] = rng.bytes(1)
        elif kind == 3:
            out[at:at] = rng.bytes(size)
        elif kind == 4:
            del out[at : at + size]
        elif kind == 5:
            out[at:at] = out[at : at + size]
        elif kind == 6:
            out[at : at + size] = b"\xff" * size if rng.random() < 0.5 else b"\0" * size
        elif rng.random() < 0.3:
            del out[at:]
    return bytes(out)


def _raw(seed: Seed, rng: Generator) -> bytes:
    if rng.random() < 0.1:
        return seed.data[: int(rng.integers(len(seed.data)))]
    return _bytes(seed.data, rng, 6)


def _slots(value: Any) -> list[tuple[Any, Any]]:
    """Return every (container, key) below ``value``."""
    keys = list(value) if isinstance(value, dict) else range(len(value))
    found = [(value, key) for key in keys]
    for _, key in list(found):
        if isinstance(value[key], (dict, list)):
            found += _slots(value[key])
    return found


def _value(old: Any, rng: Generator) -> Any:
    """Return a number near the old one or notorious, or a value of another type."""
    kind = int(rng.integers(8))
    if type(old) is int and kind < 5:
        near = (old + 1, old - 1, 2 * old, old * 1024, old // 2)
        return near[int(rng.integers(5))]
    if isinstance(old, str) and kind < 3:
        return old[: int(rng.integers(len(old) + 1))] + WORDS[int(rng.integers(len(WORDS)))]
    if kind == 3:
        return WORDS[int(rng.integers(len(WORDS)))]
    if kind == 4:
        return (None, True, [], {}, [[]], {"d": "bool"})[int(rng.integers(6))]
    return NUMBERS[int(rng.integers(len(NUMBERS)))]


def _tree(header: Any, rng: Generator) -> None:
    """Change, delete, repeat or move one value of the header."""
    top = [(header, key) for key in header]
    slots = top if rng.random() < 0.1 else _slots(header)
    if not slots:
        header["m"] = {}
        return
    place, key = slots[int(rng.integers(len(slots)))]
    other, target = slots[int(rng.integers(len(slots)))]
    kind = int(rng.integers(8))
    if kind == 0:
        del place[key]
    elif kind == 1:
        place[key] = json.loads(json.dumps(other[target]))
    elif kind == 2 and isinstance(place, list):
        place.insert(key, json.loads(json.dumps(place[key])))
    elif kind == 3 and isinstance(place, dict):
        place["abcdeglmnopqstv"[int(rng.integers(15))]] = _value(0, rng)
    else:
        place[key] = _value(place[key], rng)


def _header(seed: Seed, rng: Generator) -> bytes:
    header = json.loads(json.dumps(seed.header))
    for _ in range(_few(rng)):
        _tree(header, rng)
    text, minor = (
        _dump(header),
        int(rng.choice([seed.minor, seed.minor, seed.minor, 0, 1, 2, 65_535])),
    )
    if rng.random() < 0.2:
        at = int(rng.integers(len(text) + 1))
        text = text[:at] + TEXTS[int(rng.integers(len(TEXTS)))].encode() + text[at + 1 :]
    elif rng.random() < 0.1:
        text = _bytes(text, rng)
    data = _join(text, seed.bodies, minor)
    return _prefix(data, rng) if rng.random() < 0.1 else data


def _prefix(data: bytes, rng: Generator) -> bytes:
    """Change the prefix or the deflated header, and make the prefix's checksum right again."""
    stored = int.from_bytes(data[12:16], "little")
    out = bytearray(data)
    at = int(rng.integers(10, 32 + stored))
    out[at] = int(rng.integers(256))
    stored = min(int.from_bytes(out[12:16], "little"), len(out) - 32)
    out[28:32] = struct.pack("<I", zlib.crc32(out[32 : 32 + stored], zlib.crc32(out[:28])))
    return bytes(out)


def _streams(seed: Seed, rng: Generator) -> bytes:
    bodies, codecs = list(seed.bodies), list(seed.header.get("c", []))
    for _ in range(_few(rng) if bodies else 0):
        place = int(rng.integers(len(bodies)))
        kind = int(rng.integers(8))
        body = bodies[place] or b""
        if kind == 0:
            codecs[place] = int(rng.integers(max(c.number for _, c in CODECS.items()) + 2))
        elif kind == 1:
            bodies[place] = bodies[int(rng.integers(len(bodies)))]
        elif kind < 4:
            head = int(rng.integers(1, 17))  # fields come first, symbols after them
            bodies[place] = _bytes(body[:head], rng) + body[head:]
        else:
            bodies[place] = _bytes(body, rng)
    header = seed.header | {"c": codecs, "l": [len(body or b"") for body in bodies]}
    return _join(_dump(header), tuple(bodies), seed.minor)


MAKERS = {"raw": _raw, "header": _header, "streams": _streams}


def make_case(pool: list[Seed], seed: int, number: int) -> Case:
    """Return case ``number`` of the run with this seed: the same whenever it is made."""
    rng = np.random.default_rng([seed, number])
    mode = MODES[number % len(MODES)]
    origin = pool[int(rng.integers(len(pool)))]
    data = MAKERS[mode](origin, rng)
    limit = default_limit(len(data)) if rng.random() < 1 / 8 else SMALL_LIMIT
    return Case(number, mode, origin, data, limit)


def _hidden(error: BaseException | None) -> list[str]:
    """Return the names of the errors below a CorruptFileError that the reader turned into it."""
    found = []
    while error is not None:
        if not isinstance(error, CorruptFileError):
            found.append(type(error).__name__)
        error = error.__cause__
    return found


def judge(case: Case) -> tuple[str, list[str]]:
    """Read the case: "refused", "same" or "different", and the errors that a refusal wraps.

    Raises whatever else happens: an AssertionError where the reader contradicts itself, a
    MemoryError also where the reader had made a refusal of it.
    """
    try:
        found = decode(case.data, max_decoded_bytes=case.limit)
    except CorruptFileError as error:
        hidden = _hidden(error)
        if "MemoryError" in hidden or "PanicException" in hidden:
            raise MemoryError(f"the reader hid {hidden}: {error}") from error
        _sizes(case)
        return "refused", hidden
    if measure(case.data).file_bytes != len(case.data):
        raise AssertionError("the size report does not sum to the file")
    for tensor in found.tensors.values():
        size = int(np.prod(tensor.shape, dtype=np.float64))
        if not isinstance(tensor, RawTensor) and size <= 1 << 16:
            with np.errstate(all="ignore"):
                if tensor.dequantize().shape != tensor.shape:
                    raise AssertionError("a tensor has another shape than it says")
    if same(found, case.seed.contents):
        return "same", []
    if case.mode == "raw":
        raise AssertionError("damage was not noticed: the contents differ")
    return "different", []


def _sizes(case: Case) -> None:
    """Read the header alone; whatever it says of a refused file, it may only refuse, too."""
    try:
        measure(case.data)
    except CorruptFileError as error:
        if "MemoryError" in _hidden(error):
            raise MemoryError(f"the reader hid a MemoryError: {error}") from error
