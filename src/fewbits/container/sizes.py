"""Where the bytes of a file went: rows that sum to its length exactly."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from ..coded import FLOAT_DTYPES, RAW_DTYPES, SizeReport, SizeRow
from .entries import Entry
from .opened import Opened, codec_of_span
from .streams import CHECKSUM, Part, Stream

__all__ = ["size_report"]

PAYLOAD = ("index", "coefficients", "raw")


@dataclass
class _Tally:
    payload: int = 0
    side: int = 0
    codecs: dict[str, None] = field(default_factory=dict)


def size_report(opened: Opened) -> SizeReport:
    """Return one row for each tensor, codebook, the activations, and what frames them.

    What several tensors share is apportioned by the number of their values, as floors
    of the running total, so that rows still sum to the file (SPEC.md, section 3.1).
    """
    tallies: defaultdict[str, _Tally] = defaultdict(_Tally)
    for parts, size, codecs in _shares(opened):
        total = sum(part.values for part in parts)
        before = 0
        for part in parts:
            share = size * (before + part.values) // total - size * before // total
            before += part.values
            tally = tallies[_row_name(part)]
            if part.role in PAYLOAD:
                tally.payload += share
            else:
                tally.side += share
            if part.role in (*PAYLOAD, "basis"):
                tally.codecs |= codecs
    entries = opened.header.entries.items()
    rows = [_tensor_row(name, entry, tallies["t" + name]) for name, entry in entries]
    return SizeReport((*rows, *_other_rows(opened, tallies)))


def _shares(opened: Opened) -> Iterator[tuple[Sequence[Part], int, dict[str, None]]]:
    """Yield the parts of each stream, or of all that share a body, its bytes and codecs."""
    found: dict[Stream, tuple[Sequence[Part], int, dict[str, None]]] = {}
    for span in opened.spans:
        first = span.chunks[0].stream
        _, size, codecs = found.get(first, ((), 0, {}))
        parts = [part for chunk in span.chunks for part in chunk.stream.parts]
        name = codec_of_span(span).name
        found[first] = parts, size + span.end - span.start + CHECKSUM, codecs | {name: None}
    yield from found.values()


def _row_name(part: Part) -> str:
    if part.role == "levels":
        return f"(codebook {part.name})"
    return "(activations)" if part.role == "clips" else "t" + part.name


def _tensor_row(name: str, entry: Entry, tally: _Tally) -> SizeRow:
    elements = math.prod(entry.shape)
    width = 4 if entry.dtype in FLOAT_DTYPES else RAW_DTYPES[entry.dtype]
    return SizeRow(
        name=name,
        kind=entry.kind,
        shape=entry.shape,
        codecs="+".join(tally.codecs),
        elements=elements,
        float_bytes=width * elements,
        payload=tally.payload,
        side=tally.side,
        dtype=entry.dtype,
    )


def _other_rows(opened: Opened, tallies: dict[str, _Tally]) -> list[SizeRow]:
    rows = []
    for place in range(len(opened.header.codebooks)):
        name = f"(codebook {place})"
        rows.append(SizeRow(name, "shared", (), "", 0, 0, 0, tallies[name].side, ""))
    if "(activations)" in tallies:
        side = tallies["(activations)"].side
        rows.append(SizeRow("(activations)", "file", (), "", 0, 0, 0, side, ""))
    rows.append(SizeRow("(header)", "file", (), "", 0, 0, 0, opened.frame_bytes, ""))
    return rows
