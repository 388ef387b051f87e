"""Three ways to spoil a file: its bytes, its header with sound checksums, its streams likewise."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Sequence
from typing import Any

from numpy.random import Generator

from fewbits.coding import CODECS
from fewbits.container.frame import FIELDS, PREFIX
from fuzz_seeds import Bodies, Seed, dump, index_of, join

__all__ = ["MAKERS", "change_bodies", "change_bytes", "change_tree"]

NUMBERS_OF_CODECS = [codec.number for codec in CODECS.values()]

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
    text, minor = dump(header), int(rng.choice([seed.minor, seed.minor, seed.minor, 1, 65_535]))
    if rng.random() < 0.2:
        at = int(rng.integers(len(text) + 1))
        text = text[:at] + TEXTS[int(rng.integers(len(TEXTS)))].encode() + text[at + 1 :]
    elif rng.random() < 0.1:
        text = change_bytes(text, rng)
    data = join(text, seed.bodies, minor)
    return _frame(data, rng) if rng.random() < 0.1 else data


def _frame(data: bytes, rng: Generator) -> bytes:
    """Change the footer or the deflated index, and make the checksum right again."""
    out = bytearray(data)
    start, end = index_of(data)
    at = int(rng.integers(start, end + FIELDS.size))
    out[at] = int(rng.integers(256))
    start, _ = index_of(bytes(out))
    out[-4:] = struct.pack("<I", zlib.crc32(out[start:-4], zlib.crc32(out[: len(PREFIX)])))
    return bytes(out)


def change_bodies(
    bodies: Sequence[bytes | None], codecs: Sequence[Any], rng: Generator
) -> tuple[Bodies, list[Any]]:
    """Change one body, its codec's number, or what shares it."""
    found, numbers = list(bodies), list(codecs)
    place, kind = int(rng.integers(len(found))), int(rng.integers(10))
    body = found[place] or b""
    if kind == 0 and numbers:
        numbers[place % len(numbers)] = int(rng.integers(max(NUMBERS_OF_CODECS) + 2))
    elif kind == 1:
        found[place] = found[int(rng.integers(len(found)))]
    elif kind == 2:  # of the body before, or of its own
        found[place] = None if found[place] else found[place - 1]
        if rng.random() < 0.5 and numbers:
            numbers[place % len(numbers)] = numbers[place - 1]
    elif kind < 6:
        head = int(rng.integers(1, 17))  # fields come first, symbols after them
        found[place] = change_bytes(body[:head], rng) + body[head:]
    else:
        found[place] = change_bytes(body, rng)
    return tuple(found), numbers


def _streams(seed: Seed, rng: Generator) -> bytes:
    bodies, codecs = seed.bodies, seed.header.get("c", [])
    for _ in range(_few(rng) if bodies else 0):
        bodies, codecs = change_bodies(bodies, codecs, rng)
    header = seed.header | {"c": codecs, "l": [len(body or b"") for body in bodies]}
    return join(dump(header), bodies, seed.minor)


MAKERS = {"raw": _raw, "header": _header, "streams": _streams}
