"""An open file: its parsed header, and its bodies, which are fetched and decoded on request."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..coding import Codec, Symbols, codec_of, decode_run, decode_symbols
from ..errors import CorruptFileError
from .assemble import guard
from .entries import Entry
from .frame import PREFIX, Fetch, read_frame
from .header import Header, header_work, parse_header
from .limits import PER_BYTE_OF_JSON, Limits, body_work, held_bytes, restoring_work
from .streams import CHECKSUM, CHUNK, Span, spans

__all__ = ["Fetch", "OpenFile", "codec_of_span", "open_source"]


@dataclass(frozen=True)
class OpenFile:
    """A file with a verified header; bodies are verified when they are fetched.

    Attributes:
        fetch: returns bytes of the file.
        size: length of the file in bytes.
        limits: bounds on decoded bytes and work.
        version: version of the format.
        header: the parsed index.
        header_bytes: length of its JSON.
        payload_end: offset where the index begins.
        spans: the bodies.
    """

    fetch: Fetch
    size: int
    limits: Limits
    version: tuple[int, int]
    header: Header
    header_bytes: int
    payload_end: int
    spans: tuple[Span, ...]

    @property
    def frame_bytes(self) -> int:
        """Bytes of prefix, index and footer."""
        return len(PREFIX) + self.size - self.payload_end

    def body(self, span: Span) -> bytes:
        """Fetch a body and verify its checksum."""
        data = self.fetch(span.start, span.end + CHECKSUM)
        body = data[:-CHECKSUM]
        if zlib.crc32(body) != int.from_bytes(data[-CHECKSUM:], "little"):
            raise CorruptFileError(
                f"{span.label} fails its checksum: the file is damaged. Download or copy it again."
            )
        return body

    def verify(self) -> None:
        """Verify all checksums."""
        for span in self.spans:
            self.body(span)

    def decode(self, span: Span) -> list[Symbols]:
        """Decode a body into one matrix per chunk; :meth:`admit` must have allowed it."""
        body = self.body(span)
        layouts = [chunk.layout for chunk in span.chunks]
        with guard(span.label):
            try:
                if len(layouts) > 1:
                    return decode_run(span.codec, body, layouts)
                return [decode_symbols(span.codec, body, layouts[0])]
            except CorruptFileError as error:
                raise CorruptFileError(f"{span.label} is damaged: {error}") from error

    def admit(self, wanted: Sequence[Span], entries: Iterable[Entry]) -> None:
        """Raise CorruptFileError unless the limits allow decoding the bodies ``wanted``.

        ``entries`` are those of their tensors. Nothing is decoded or read.
        """
        entries = list(entries)
        held = PER_BYTE_OF_JSON * self.header_bytes + sum(map(held_bytes, entries))
        for span in wanted:
            held += sum(c.stream.symbol_bytes * c.layout.size for c in span.chunks)
        self.limits.check_size(held + max(map(_scratch, wanted), default=0))
        self.limits.check_work(self.work(wanted, entries))

    def work(self, wanted: Iterable[Span], entries: Iterable[Entry]) -> int:
        """Return the work for the header, the bodies ``wanted`` and the tensors ``entries``."""
        known = header_work(self.header, self.header_bytes) + restoring_work(entries)
        return known + sum(map(self._work, wanted))

    @staticmethod
    def _work(span: Span) -> int:
        return body_work(codec_of_span(span), [chunk.layout.size for chunk in span.chunks])


def _scratch(span: Span) -> int:
    """Return the extra memory for decoding a body that has chunks above the usual size.

    That happens only if a single row is longer than a usual chunk.
    """
    longest = max(chunk.layout.size for chunk in span.chunks)
    if longest <= CHUNK:
        return 0
    more = codec_of_span(span).bound.bytes_per_symbol - span.chunks[0].stream.symbol_bytes
    return more * (longest - CHUNK)


def codec_of_span(span: Span) -> Codec:
    """Return the codec of a body; raise CorruptFileError if it is unknown."""
    try:
        return codec_of(span.codec)
    except CorruptFileError as error:
        raise CorruptFileError(f"{span.label} cannot be decoded: {error}") from error


def open_source(fetch: Fetch, size: int, limit: int | None = None) -> OpenFile:
    """Verify frame, header (within ``limit`` bytes) and coverage; fetch no body."""
    limits = Limits(size, limit)
    frame = read_frame(fetch, size, limits.decoded)
    header = parse_header(frame.header, frame.version, limits)
    bodies = tuple(spans(header, len(PREFIX), frame.payload_end))
    length = len(frame.header)
    return OpenFile(fetch, size, limits, frame.version, header, length, frame.payload_end, bodies)
