"""A file opened: what its header says, and its streams, fetched and decoded one at a time."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from ..coding import Symbols, decode_group, decode_stream, name_of
from ..coding.tasks import cost
from ..errors import CorruptFileError
from .assemble import guard
from .entries import Entry, TransformEntry
from .header import Header, parse_header
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
        limit: bytes that may be decoded.
    """

    fetch: Fetch
    size: int
    limit: int
    version: tuple[int, int]
    header: Header
    header_bytes: int
    payload_start: int
    spans: tuple[Span, ...]

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

        The caller has checked the size of it.
        """
        stream, body = span.stream, self.body(span)
        with self.decoding(span):
            if stream.joined:
                joined = decode_group(body, stream.joined)
                return np.concatenate([matrix.reshape(-1, 1) for matrix in joined])
            return decode_stream(name_of(span.codec), body, stream.rows, stream.columns)

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

    def check_size(self, wanted: Iterable[Span], entries: Iterable[Entry] = ()) -> None:
        """Raise CorruptFileError if the streams decode to more than the limit.

        With them the values of the transforms among ``entries``: a product outgrows its factors.
        """
        total = sum(span.stream.width * span.stream.rows * span.stream.columns for span in wanted)
        total += 32 * self.header_bytes
        total += sum(4 * math.prod(e.shape) for e in entries if isinstance(e, TransformEntry))
        if total > self.limit:
            raise CorruptFileError(
                f"the file decodes to about {total} bytes, more than the limit of {self.limit}. "
                f"If you trust it, pass max_decoded_bytes={total} to fewbits.load, or "
                f"--max-decoded-mib {-(-total >> 20)} on the command line."
            )


def default_limit(size: int) -> int:
    """Return how many bytes a file of ``size`` may decode to unless the caller knows better."""
    return 2**26 + 1024 * size


def open_source(fetch: Fetch, size: int, limit: int | None = None) -> Opened:
    """Check prefix, header (within ``limit`` bytes) and coverage; fetch no stream."""
    limit = default_limit(size) if limit is None else limit
    head = fetch(0, min(size, PREFIX))
    head += fetch(len(head), min(size, header_end(head)))
    prefix = split_prefix(head, limit, size)
    header = parse_header(prefix.header, prefix.version, limit)
    start = prefix.payload_start
    found = tuple(spans(header, start, size))
    return Opened(fetch, size, limit, prefix.version, header, len(prefix.header), start, found)


def _where(span: Span) -> str:
    return f"{span.stream.label} (bytes {span.start} to {span.end})"
