"""The header of a file as JSON: parsing it as untrusted input, and writing it canonically."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..coded import ActivationGrid, Codebook, JSONValue
from ..errors import ConfigError, CorruptFileError
from .entries import MAX_LEVELS, Entry, entry_json, integer, parse_entry
from .frame import VERSION
from .limits import NAME_SHARE, Limits, items_work

__all__ = [
    "MAX_DEPTH",
    "MAX_NAME",
    "Header",
    "check_json",
    "check_name",
    "dump_header",
    "dump_json",
    "header_work",
    "make_header",
    "pack_names",
    "parse_header",
    "parse_json",
    "unpack_names",
    "utf8_size",
]


DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
MAX_NAME = 1024
MAX_NAMES = 1_000_000
KEYS = ("n", "t", "b", "a", "q", "g", "v", "m", "c", "l")
MAX_DEPTH = 32
MAX_DIGITS = 64
# Once escapes are removed, a quote always starts or ends a string, so both patterns take linear
# time even if a string is unterminated. Escapes outside of strings are not valid JSON anyway.
ESCAPES = re.compile(rb"\\.", re.DOTALL)
STRINGS = re.compile(rb'"[^"]*"?')
STEPS = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")  # 1 and -1
NO_BRACKETS = bytes(code for code in range(256) if code not in b"[{]}")


def pack_names(names: Iterable[str]) -> list[str]:
    """Front-code names: the number of components shared with the previous name, then the rest."""
    packed: list[str] = []
    before = [""]
    for name in names:
        parts = name.split(".")
        most = min(len(parts) - 1, len(before), len(DIGITS) - 1) if packed else 0
        shared = 0
        while shared < most and parts[shared] == before[shared]:
            shared += 1
        packed.append(DIGITS[shared] + ".".join(parts[shared:]))
        before = parts
    return packed


def unpack_names(packed: object, what: str, max_bytes: int) -> tuple[str, ...]:
    """Decode front-coded names, checking that they are unique and within ``max_bytes`` in total."""
    if not isinstance(packed, list) or len(packed) > MAX_NAMES:
        raise CorruptFileError(f"the names of {what} must be a list of at most {MAX_NAMES}")
    names: dict[str, None] = {}
    parts: list[str] = []
    total = 0
    for position, text in enumerate(packed):
        shared = DIGITS.find(text[0]) if isinstance(text, str) and text else -1
        if not 0 <= shared <= len(parts):
            raise CorruptFileError(f"name {position} of {what} is malformed: {str(text)[:80]!r}")
        parts = parts[:shared] + text[1:].split(".")
        name = ".".join(parts)
        size = utf8_size(name)
        total += size
        if size > MAX_NAME:
            raise CorruptFileError(f"name {position} of {what} is too long or not valid Unicode")
        if total > max_bytes:
            raise CorruptFileError(
                f"the names of {what} are too long: more than {max_bytes} bytes in all. If you "
                "trust the file, raise max_decoded_bytes."
            )
        if name in names:
            raise CorruptFileError(f"the name {name!r} occurs twice in {what}")
        names[name] = None
    return tuple(names)


def utf8_size(name: str) -> int:
    """Return the UTF-8 length of ``name``; more than ``MAX_NAME`` if it contains surrogates."""
    try:
        return len(name.encode("utf-8"))
    except UnicodeEncodeError:
        return MAX_NAME + 1


@dataclass(frozen=True)
class Header:
    """The parsed header.

    Attributes:
        entries: tensor name to its entry, in the order of the state dict.
        codebooks: number of levels of each codebook.
        aliases: other name of a tied tensor to the name of its tensor.
        activations: layer name to ``64 * zero + 2 * bits + signed``.
        clips: the clips if they are not all float32 values; None if the side stream has them.
        metadata: any JSON object.
        codecs: codec number of each chunk.
        lengths: length in bytes of the body of each chunk; 0 if it shares the previous one.
    """

    entries: Mapping[str, Entry]
    codebooks: tuple[int, ...]
    aliases: Mapping[str, str]
    activations: Mapping[str, int]
    clips: tuple[float, ...] | None
    metadata: Mapping[str, JSONValue]
    codecs: tuple[int, ...] = ()
    lengths: tuple[int, ...] = ()

    def with_bodies(self, codecs: Sequence[int], lengths: Sequence[int]) -> Header:
        """Return the header with codecs and lengths of all chunks filled in."""
        return replace(self, codecs=tuple(codecs), lengths=tuple(lengths))


def check_name(name: str) -> None:
    """Raise ConfigError for a name that cannot be stored in a file."""
    check_json(name, "a name")
    if len(name.encode("utf-8")) > MAX_NAME:
        raise ConfigError(f"the name {name[:60]!r}... is longer than {MAX_NAME} bytes")


def make_header(
    entries: Mapping[str, Entry],
    codebooks: Iterable[Codebook],
    aliases: Mapping[str, str],
    activations: Mapping[str, ActivationGrid],
    metadata: Mapping[str, JSONValue],
) -> Header:
    """Return a header, still without bodies; raise ConfigError for what a file cannot hold."""
    for name in (*aliases, *activations):
        check_name(name)
    check_json(dict(metadata), "metadata")
    clips = tuple(float(grid.clip) for grid in activations.values())
    with np.errstate(over="ignore", under="ignore"):
        small = all(float(np.float32(clip)) == clip for clip in clips)
    return Header(
        entries=entries,
        codebooks=tuple(int(codebook.values.size) for codebook in codebooks),
        aliases=aliases,
        activations={name: _grid_code(grid) for name, grid in activations.items()},
        clips=None if small else clips,
        metadata=metadata,
    )


def dump_header(header: Header) -> bytes:
    """Return the canonical JSON of the header, without keys that have their default."""
    position = {name: place for place, name in enumerate(header.entries)}
    values: dict[str, Any] = {
        "n": pack_names(header.entries),
        "t": [entry_json(entry) for entry in header.entries.values()],
        "b": list(header.codebooks),
        "a": {alias: position[name] for alias, name in header.aliases.items()},
        "q": pack_names(header.activations),
        "g": list(header.activations.values()),
        "v": list(header.clips or ()),
        "m": dict(header.metadata),
        "c": list(header.codecs),
        "l": list(header.lengths),
    }
    return dump_json({key: value for key, value in values.items() if value})


def parse_header(text: bytes, version: tuple[int, int], limits: Limits) -> Header:
    """Parse a header; raise CorruptFileError for anything that the format does not allow."""
    values = parse_json(text)
    if not isinstance(values, dict):
        raise CorruptFileError("the header is not a JSON object")
    unknown = sorted(set(values) - set(KEYS))
    if unknown and version <= VERSION:
        raise CorruptFileError(f"the header has an unknown key {unknown[0][:80]!r}")
    listed = (values.get(key) for key in ("b", "a", "q"))
    items = sum(len(value) for value in listed if isinstance(value, list | dict))
    limits.check_work(items_work(len(text), len(_list(values, "t")), items))
    most_names = limits.decoded // NAME_SHARE
    names = unpack_names(values.get("n", []), "the tensors", most_names)
    levels = _integers(values, "b", 1, MAX_LEVELS)
    entries = _list(values, "t")
    if len(entries) != len(names):
        raise CorruptFileError(f"the header has {len(names)} names for {len(entries)} entries")
    layers = unpack_names(values.get("q", []), "the activations", most_names)
    grids = _integers(values, "g", 2, 1 << 22)
    metadata = values.get("m", {})
    if len(layers) != len(grids) or not isinstance(metadata, dict):
        raise CorruptFileError("the activations or the metadata of the header are malformed")
    return Header(
        entries={
            name: parse_entry(item, repr(name), len(levels))
            for name, item in zip(names, entries, strict=True)
        },
        codebooks=levels,
        aliases=_aliases(values.get("a", {}), names),
        activations=dict(zip(layers, grids, strict=True)),
        clips=_clips(values, len(layers)),
        metadata=metadata,
        codecs=_integers(values, "c", 0, 1 << 16),
        lengths=_integers(values, "l", 0, 1 << 62),
    )


def header_work(header: Header, json: int) -> int:
    """Return the units of work of a header whose JSON has ``json`` bytes."""
    items = len(header.codebooks) + len(header.aliases) + len(header.activations)
    return items_work(json, len(header.entries), items)


def _grid_code(grid: ActivationGrid) -> int:
    return 64 * int(grid.zero) + 2 * int(grid.bits) + bool(grid.signed)


def _list(values: Mapping[str, Any], key: str) -> list[Any]:
    value = values.get(key, [])
    if not isinstance(value, list):
        raise CorruptFileError(f"the value of {key!r} in the header is not a list")
    return value


def _integers(values: Mapping[str, Any], key: str, low: int, high: int) -> tuple[int, ...]:
    what = f"a value of {key!r} in the header"
    return tuple(integer(value, what, low, high) for value in _list(values, key))


def _aliases(value: object, names: tuple[str, ...]) -> dict[str, str]:
    if not isinstance(value, dict):
        raise CorruptFileError("the aliases of the header are not an object")
    known = set(names)
    for alias in value:
        if alias in known:
            raise CorruptFileError(f"the alias {alias!r} is also the name of a tensor")
        if utf8_size(alias) > MAX_NAME:
            raise CorruptFileError(f"the alias {alias[:60]!r} is too long or not valid Unicode")
    last = len(names) - 1
    return {
        alias: names[integer(place, f"the target of the alias {alias!r}", 0, last)]
        for alias, place in value.items()
    }


def _clips(values: Mapping[str, Any], count: int) -> tuple[float, ...] | None:
    if "v" not in values:
        return None
    clips = _list(values, "v")
    if len(clips) != count or not all(type(clip) in (int, float) for clip in clips):
        raise CorruptFileError("the clips of the header are malformed")
    return tuple(float(clip) for clip in clips)


def dump_json(value: object) -> bytes:
    """Return canonical JSON: sorted keys, no spaces, UTF-8."""
    text = json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    return text.encode("utf-8")


def parse_json(text: bytes) -> Any:
    """Parse JSON; raise CorruptFileError for anything that :func:`dump_json` never writes.

    Nesting is measured before parsing, so that brackets cannot exhaust the stack. Time and memory
    are proportional to the length of the text.
    """
    if _depth(text) > MAX_DEPTH:
        raise CorruptFileError(f"the header is nested deeper than {MAX_DEPTH} levels")
    try:
        return json.loads(
            text.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_int=_bounded_int,
            parse_float=_finite_float,
            parse_constant=_reject_constant,
        )
    except (ValueError, RecursionError) as error:
        raise CorruptFileError(f"the header is not JSON: {error}") from error


def _depth(text: bytes) -> int:
    """Return the nesting depth of brackets outside of strings, whether or not it is JSON."""
    plain = STRINGS.sub(b"", ESCAPES.sub(b"", text))
    brackets = np.frombuffer(plain.translate(STEPS, NO_BRACKETS), np.int8)
    return int(np.cumsum(brackets, dtype=np.int32).max(initial=0))


def check_json(value: object, where: str, depth: int = 4) -> None:
    """Raise ConfigError unless ``value`` is plain JSON that reads back as an equal value."""
    if depth > MAX_DEPTH:
        raise ConfigError(f"{where} is nested deeper than {MAX_DEPTH - 4} levels. Flatten it.")
    if type(value) is list:
        for position, item in enumerate(value):
            check_json(item, f"{where}[{position}]", depth + 1)
    elif isinstance(value, dict):
        for key, item in value.items():
            if type(key) is not str:
                raise ConfigError(f"{where} has the key {key!r}. Keys must be strings.")
            _check_text(key, f"a key of {where}")
            check_json(item, f"{where}[{key!r}]", depth + 1)
    else:
        _check_scalar(value, where)


def _check_scalar(value: object, where: str) -> None:
    if value is None or type(value) is bool:
        return
    if type(value) is str:
        _check_text(value, where)
    elif type(value) is int:
        if abs(value) >= 10 ** (MAX_DIGITS - 1):
            raise ConfigError(f"{where} is an integer of more than {MAX_DIGITS} characters")
    elif type(value) is float:
        if not math.isfinite(value):
            raise ConfigError(f"{where} is {value!r}, which JSON cannot express: use None or text.")
    else:
        raise ConfigError(
            f"{where} is a {type(value).__name__}. A file can hold None, bool, int, float, str, "
            "and lists and dicts of these: convert it first."
        )


def _check_text(text: str, where: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ConfigError(f"{where} cannot be written as UTF-8: {error}") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key occurs twice in one object")
    return result


def _bounded_int(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise ValueError(f"an integer has {len(text)} digits")
    return int(text)


def _finite_float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("a number overflows float64")
    return value


def _reject_constant(text: str) -> float:
    raise ValueError(f"{text} is not a number of JSON")
