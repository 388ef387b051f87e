"""The header: a compact table of contents, in and out of JSON."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..coded import ActivationGrid, Codebook, JSONValue
from ..errors import ConfigError, CorruptFileError
from .describe import entry_json
from .entries import Entry
from .frame import VERSION
from .json_text import check_json, dump_json, parse_json
from .limits import NAME_SHARE, Limits, items_work
from .names import MAX_NAME, pack_names, unpack_names, utf8_size
from .parse import MAX_LEVELS, integer, parse_entry

__all__ = [
    "Header",
    "check_name",
    "dump_header",
    "header_work",
    "make_header",
    "parse_header",
]

KEYS = ("n", "t", "b", "a", "q", "g", "v", "m", "c", "l")


@dataclass(frozen=True)
class Header:
    """What the header says.

    Attributes:
        entries: tensor name to its entry, in the order of the state dict.
        codebooks: levels of each shared codebook.
        aliases: other name of a tied tensor to the name of its tensor.
        activations: layer name to ``64 * zero + 2 * bits + signed``.
        clips: the clips, where they are no float32 values; else None, and the side stream has them.
        metadata: any JSON object.
        codecs: number of the codec of each chunk.
        lengths: bytes of the body of each chunk; 0 where it shares the one before.
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
        """Return the header of a file whose chunks have these codecs and lengths."""
        return replace(self, codecs=tuple(codecs), lengths=tuple(lengths))


def check_name(name: str) -> None:
    """Raise ConfigError for a name that no file holds."""
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
    """Return the header of a file, still without bodies; ConfigError for what none may hold."""
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
    """Return the canonical JSON of the header, absent where default."""
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
    """Return the header of ``text``; CorruptFileError for all that the format does not allow."""
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
    """Return the units of work of a header whose JSON takes so many bytes."""
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
            raise CorruptFileError(f"the alias {alias!r} is the name of a tensor")
        if utf8_size(alias) > MAX_NAME:
            raise CorruptFileError(f"the alias {alias[:60]!r} is too long, or not Unicode")
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
