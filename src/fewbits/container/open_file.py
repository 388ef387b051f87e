"""A file opened: what its header says, and its bodies, fetched and decoded one at a time."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..coding import Codec, Symbols, codec_of, decode_run, decode_symbols
from ..errors import CorruptFileError
from .assemble import guard
from .entries import Entry
from .frame import PREFIX, Fetch, split_frame
from .header import Header, header_work, parse_header
from .limits import PER_BYTE_OF_JSON, Limits, body_work, held_bytes, restoring_work
from .streams import CHECKSUM, CHUNK, Span, spans

__all__ = ["Fetch", "Opened", "codec_of_span", "open_source"]


@dataclass(frozen=True)
class Opened:
    """A file whose header is right; a body is checked when it is fetched.

    Attributes:
        fetch: gives bytes of the file.
        size: bytes of the file.
        limits: what may be decoded, and how much work that may be.
        version: of the format.
        header: what the index says.
        header_bytes: bytes of its JSON.
        payload_end: where the index begins.
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
        """Return the bytes of a body, which its checksum vouches for."""
        found = self.fetch(span.start, span.end + CHECKSUM)
        body = found[:-CHECKSUM]
        if zlib.crc32(body) != int.from_bytes(found[-CHECKSUM:], "little"):
            raise CorruptFileError(
                f"{span.label} fails its checksum: the file is damaged. Fetch it again."
            )
        return body

    def verify(self) -> None:
        """Check every checksum."""
        for span in self.spans:
            self.body(span)

    def decode(self, span: Span) -> list[Symbols]:
        """Return the matrix of each chunk of a body. It has been :meth:`admitted <admit>`."""
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
        """Raise CorruptFileError unless the limits allow to decode the bodies ``wanted``.

        ``entries``: of the tensors that they are for. Nothing is decoded, and no body read.
        """
        entries = list(entries)
        held = PER_BYTE_OF_JSON * self.header_bytes + sum(map(held_bytes, entries))
        for span in wanted:
            held += sum(c.stream.symbol_bytes * c.layout.size for c in span.chunks)
        self.limits.check_size(held + max(map(_scratch, wanted), default=0))
        self.limits.check_work(self.work(wanted, entries))

    def work(self, wanted: Iterable[Span], entries: Iterable[Entry]) -> int:
        """Return the work of the header, the bodies ``wanted`` and the tensors ``entries``."""
        known = header_work(self.header, self.header_bytes) + restoring_work(entries)
        return known + sum(map(self._work, wanted))

    @staticmethod
    def _work(span: Span) -> int:
        return body_work(codec_of_span(span), [chunk.layout.size for chunk in span.chunks])


def _scratch(span: Span) -> int:
    """Return the memory of decoding a body beyond its symbols and what usual chunks take.

    That is: of a row that is longer.
    """
    longest = max(chunk.layout.size for chunk in span.chunks)
    if longest <= CHUNK:
        return 0
    more = codec_of_span(span).bound.bytes_per_symbol - span.chunks[0].stream.symbol_bytes
    return more * (longest - CHUNK)


def codec_of_span(span: Span) -> Codec:
    """Return the codec of a body; CorruptFileError for one that is unknown."""
    try:
        return codec_of(span.codec)
    except CorruptFileError as error:
        raise CorruptFileError(f"{span.label} cannot be decoded: {error}") from error


def open_source(fetch: Fetch, size: int, limit: int | None = None) -> Opened:
    """Check frame, header (within ``limit`` bytes) and coverage; fetch no body."""
    limits = Limits(size, limit)
    frame = split_frame(fetch, size, limits.decoded)
    header = parse_header(frame.header, frame.version, limits)
    found = tuple(spans(header, len(PREFIX), frame.payload_end))
    length = len(frame.header)
    return Opened(fetch, size, limits, frame.version, header, length, frame.payload_end, found)
