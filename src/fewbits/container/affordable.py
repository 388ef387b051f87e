"""What is written must be readable by default: slow codecs give way where a file takes too long."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..coding import Symbols, name_of
from ..coding.binary import flags_of
from ..coding.work import FLAG
from .limits import WORK_PER_BYTE, Limits
from .opened import Opened, open_source
from .streams import CHECKSUM, Span, Stream

__all__ = ["frugal", "is_affordable", "units_of_streams"]

ANY = 1 << 62  # bytes that a file may decode to: a tensor of one value may be of any size
Coded = tuple[str, bytes]


def is_affordable(data: bytes, symbols: Callable[[Stream], Symbols]) -> bool:
    """Tell whether the file ``data`` takes no more work than readers allow by default.

    ``symbols``: of a stream, as they were coded.
    """
    opened = _opened(data)
    work = opened.work(opened.spans, opened.header.entries.values())
    limit = Limits(len(data)).work
    share = work.flags_per_byte(limit)
    return work.units <= limit and all(
        _more_flags(opened, span, symbols) <= share * (span.end - span.start)
        for span in opened.spans
        if name_of(span.codec) == "binary"
    )


def units_of_streams(data: bytes, symbols: Callable[[Stream], Symbols]) -> list[int]:
    """Return the units of work of each stream of the file ``data``, all flags counted."""
    opened = _opened(data)
    units = []
    for span in opened.spans:
        more = 0
        if name_of(span.codec) == "binary":
            more = FLAG * _more_flags(opened, span, symbols)
        units.append(opened.work([span], ()).units + more)
    return units


def frugal(coded: Sequence[Coded], quick: Sequence[Coded], units: Sequence[int]) -> list[Coded]:
    """Return ``coded`` with ``quick`` wherever a stream takes more than its own bytes pay for.

    ``units``: of each stream. Matrices that are joined stay so, or none of them does.
    """
    found = list(coded)
    left = iter(units)
    waiting: list[int] = []
    for place, (name, body) in enumerate(coded):
        if name == "joined" and not body:
            waiting.append(place)
            continue
        members = [*waiting, place] if name == "joined" else [place]
        if name == "joined":
            waiting.clear()
        if next(left) > WORK_PER_BYTE * (len(body) + CHECKSUM):
            for member in members:
                found[member] = quick[member]
    return found


def _opened(data: bytes) -> Opened:
    return open_source(lambda start, end: data[start:end], len(data), ANY)


def _more_flags(opened: Opened, span: Span, symbols: Callable[[Stream], Symbols]) -> int:
    found = symbols(span.stream)
    return flags_of(found, opened.body(span)) - found.size
