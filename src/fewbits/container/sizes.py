"""Where the bytes of a file went: rows that sum to its length exactly."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, field

from ..coded import FLOAT_DTYPES, RAW_DTYPES, SizeReport, SizeRow
from ..coding import name_of
from .entries import Entry
from .opened import Opened
from .streams import CHECKSUM, Part

__all__ = ["size_report"]

PAYLOAD = ("index", "coefficients", "raw")


@dataclass
class _Tally:
    payload: int = 0
    side: int = 0
    codecs: dict[str, None] = field(default_factory=dict)


def size_report(opened: Opened) -> SizeReport:
    """Return one row for each tensor, codebook, the activations, and prefix with header.

    A stream that several tensors share is apportioned by the number of their values, as floors
    of the running total, so that rows still sum to the file (SPEC.md, section 3.1).
    """
    tallies: defaultdict[str, _Tally] = defaultdict(_Tally)
    for span in opened.spans:
        size, codec = span.end - span.start + CHECKSUM, name_of(span.codec)
        total = sum(part.values for part in span.stream.parts)
        before = 0
        for part in span.stream.parts:
            share = size * (before + part.values) // total - size * before // total
            before += part.values
            tally = tallies[_row_name(part)]
            if part.role in PAYLOAD:
                tally.payload += share
            else:
                tally.side += share
            if part.role in (*PAYLOAD, "basis"):
                tally.codecs[codec] = None
    entries = opened.header.entries.items()
    rows = [_tensor_row(name, entry, tallies["t" + name]) for name, entry in entries]
    return SizeReport((*rows, *_other_rows(opened, tallies)))


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
    rows.append(SizeRow("(header)", "file", (), "", 0, 0, 0, opened.payload_start, ""))
    return rows
