"""Bytes to contents: nothing in the file is believed before it is checked."""

from __future__ import annotations

from ..coded import ActivationGrid, Contents
from ..coding import Symbols
from .assemble import guard
from .lazy import LazyTensors
from .opened import Opened, open_source
from .threads import Ordered, usable_threads

__all__ = ["decode", "decode_activations", "open_file"]


def decode(data: bytes, *, max_decoded_bytes: int | None = None, threads: int = 0) -> Contents:
    """Return what the file ``data`` holds; :class:`CorruptFileError` for anything else.

    ``max_decoded_bytes`` bounds what is kept of the file (4 bytes for each index and each value of
    a transform, 1 for each byte of the rest) before any of it is taken, and with it the working
    memory, which is a few times as much, and the time; by default 64 MiB + 256 times the file's
    size, far above what networks compress to (SPEC.md, section 5.1). ``threads``: that decode, as
    in :class:`FileWriter`.
    """
    count = usable_threads(threads)
    with guard("the file"), Ordered[list[Symbols]](count) as calls:
        opened = open_file(data, max_decoded_bytes)
        opened.admit(opened.spans, opened.header.entries.values())
        lazy = LazyTensors(opened, calls)
        tensors = dict(lazy)
        lazy.codebooks()
        header = opened.header
        return Contents(tensors, header.aliases, lazy.activations(), header.metadata)


def open_file(data: bytes, limit: int | None = None) -> Opened:
    """Check frame, header (within ``limit`` bytes), coverage and checksums; decode nothing."""
    opened = open_source(lambda start, end: data[start:end], len(data), limit)
    opened.verify()
    return opened


def decode_activations(opened: Opened) -> dict[str, ActivationGrid]:
    """Return the activation grids; decodes the side stream, and only where it holds clips."""
    clips = [span for span in opened.spans if any(c.stream.holds("clips") for c in span.chunks)]
    opened.admit(clips, ())
    return LazyTensors(opened).activations()
