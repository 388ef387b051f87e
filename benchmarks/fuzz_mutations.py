"""Three ways to spoil a file: its bytes, its header with sound checksums, its streams likewise."""

from __future__ import annotations

import json
import struct
import zlib
from typing import Any

from numpy.random import Generator

from fewbits.coding import CODECS
from fuzz_seeds import Seed, dump, join

__all__ = ["MAKERS", "change_bytes", "change_tree"]

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


def _few(rng: Generator, most: int = 4) -> int:
    """Return 1 more often than not: a file with one fault is read furthest."""
    return min(most, int(rng.geometric(0.6)))


def change_bytes(data: bytes, rng: Generator, most: int = 4) -> bytes:
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
    return change_bytes(seed.data, rng, 6)


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


def change_tree(header: Any, rng: Generator) -> None:
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
        change_tree(header, rng)
    text, minor = (
        dump(header),
        int(rng.choice([seed.minor, seed.minor, seed.minor, 0, 1, 2, 65_535])),
    )
    if rng.random() < 0.2:
        at = int(rng.integers(len(text) + 1))
        text = text[:at] + TEXTS[int(rng.integers(len(TEXTS)))].encode() + text[at + 1 :]
    elif rng.random() < 0.1:
        text = change_bytes(text, rng)
    data = join(text, seed.bodies, minor)
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
            bodies[place] = change_bytes(body[:head], rng) + body[head:]
        else:
            bodies[place] = change_bytes(body, rng)
    header = seed.header | {"c": codecs, "l": [len(body or b"") for body in bodies]}
    return join(dump(header), tuple(bodies), seed.minor)


MAKERS = {"raw": _raw, "header": _header, "streams": _streams}
