"""A file opened: what its header says, and its streams, fetched and decoded one at a time."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np

from ..coding import Symbols, decode_group, decode_stream, group_work, name_of, stream_work
from ..coding.tasks import cost
from ..coding.work import Work, total
from ..errors import CorruptFileError
from .assemble import guard
from .entries import Entry
from .header import Header, header_work, parse_header
from .limits import (
    PER_BYTE_OF_JSON,
    STREAM,
    WIDE,
    Limits,
    default_limit,
    held_bytes,
    restoring_work,
)
from .prefix import PREFIX, header_end, split_prefix
from .streams import CHECKSUM, Span, spans

__all__ = ["Fetch", "Opened", "default_limit", "open_source"]

Fetch: TypeAlias = Callable[[int, int], bytes]  # start and end to those bytes of the file


@dataclass(frozen=True)
class Opened:
    """A file whose header is right; a stream is checked when it is fetched.

    Attributes:
        fetch: gives bytes of the file.
        size: bytes of the file.
        limits: what may be decoded, and how much work that may be.
        flags_per_byte: what `binary` streams may take; known once they were :meth:`admitted`.
    """

    fetch: Fetch
    size: int
    limits: Limits
    version: tuple[int, int]
    header: Header
    header_bytes: int
    payload_start: int
    spans: tuple[Span, ...]
    flags_per_byte: int = 0

    def body(self, span: Span) -> bytes:
        """Return the bytes of a stream, which its checksum vouches for."""
        body = self.fetch(span.start, span.end)
        if zlib.crc32(body) != int.from_bytes(self.fetch(span.end, span.end + CHECKSUM), "little"):
            raise CorruptFileError(
                f"{_where(span)} fails its checksum: the file is damaged. Fetch it again."
            )
        return body

    def verify(self) -> None:
        """Check every checksum."""
        for span in self.spans:
            self.body(span)

    def symbols(self, span: Span) -> Symbols:
        """Return what a stream codes, joined matrices one after the other in one column.

        The stream has been :meth:`admitted`.
        """
        stream, body = span.stream, self.body(span)
        with self.decoding(span):
            if stream.joined:
                joined = decode_group(body, stream.joined)
                return np.concatenate([matrix.reshape(-1, 1) for matrix in joined])
            codec, flags = name_of(span.codec), self.flags_per_byte
            return decode_stream(codec, body, stream.rows, stream.columns, flags)

    @contextmanager
    def decoding(self, span: Span) -> Iterator[None]:
        """Turn every failure to decode a stream into a CorruptFileError that names it."""
        with guard(_where(span)):
            try:
                yield
            except CorruptFileError as error:
                raise CorruptFileError(f"{_where(span)} is damaged: {error}") from error

    def cost(self) -> int:
        """Return about how long decoding all takes, as ``coding.tasks.cost`` counts it."""
        return sum(cost(span.codec, span.stream.rows * span.stream.columns) for span in self.spans)

    def admitted(self, wanted: Sequence[Span], entries: Iterable[Entry]) -> Opened:
        """Return the file ready to decode the streams ``wanted``, for the tensors ``entries``.

        CorruptFileError where a stream fails its checksum, or where they decode to more bytes or
        take more work than the limits allow. Nothing is decoded; the bytes of the streams are read.
        """
        entries = list(entries)
        held = sum(span.stream.width * span.stream.rows * span.stream.columns for span in wanted)
        held += PER_BYTE_OF_JSON * self.header_bytes + sum(map(held_bytes, entries))
        self.limits.check_size(held)
        self.limits.check_work(restoring_work(entries))
        work = self.work(wanted, entries)
        self.limits.check_work(work.units)
        return replace(self, flags_per_byte=work.flags_per_byte(self.limits.work))

    def work(self, wanted: Iterable[Span], entries: Iterable[Entry]) -> Work:
        """Return the work of the header, the streams ``wanted`` and the tensors ``entries``."""
        known = header_work(self.header, self.header_bytes) + restoring_work(entries)
        return Work(known) + total(self._work(span) for span in wanted)

    def _work(self, span: Span) -> Work:
        stream, body = span.stream, self.body(span)
        with self.decoding(span):
            if stream.joined:
                return Work(STREAM) + group_work(body, stream.joined)
            codec = name_of(span.codec)
            work = stream_work(codec, body, stream.rows, stream.columns)
            return work + Work(STREAM if stream.is_index else STREAM + WIDE * work.wide)


def open_source(fetch: Fetch, size: int, limit: int | None = None) -> Opened:
    """Check prefix, header (within ``limit`` bytes) and coverage; fetch no stream."""
    limits = Limits(size, limit)
    head = fetch(0, min(size, PREFIX))
    head += fetch(len(head), min(size, header_end(head)))
    prefix = split_prefix(head, limits.decoded, size)
    header = parse_header(prefix.header, prefix.version, limits)
    start = prefix.payload_start
    found = tuple(spans(header, start, size))
    return Opened(fetch, size, limits, prefix.version, header, len(prefix.header), start, found)


def _where(span: Span) -> str:
    return f"{span.stream.label} (bytes {span.start} to {span.end})"
