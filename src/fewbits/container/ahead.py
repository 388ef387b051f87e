"""Streams decoded before they are asked for, by workers, while the ones before are used."""

from __future__ import annotations

from collections import deque
from collections.abc import Container, Iterator

from ..coding import Symbols, name_of
from ..coding.tasks import DecodeTask, decode_tasks, join_decoded
from ..coding.workers import Result, Workers
from .opened import Opened
from .streams import Span

__all__ = ["Ahead"]


class Ahead:
    """Decodes the streams of a file that belong to one tensor each, best in the file's order.

    Without workers (``Workers(1)``) nothing is decoded before it is asked for.
    ``skipped`` has the starts of streams that will not be asked for.
    """

    def __init__(self, opened: Opened, workers: Workers, skipped: Container[int]) -> None:
        self._opened = opened
        self._workers = workers
        self._skipped = skipped
        self._coming: deque[Span] = deque()
        self._results: Iterator[list[Result[Symbols]]] = iter(())

    def symbols(self, span: Span) -> Symbols:
        """Return what a stream codes. The caller has checked the size of it."""
        if not self._coming or self._coming[0].start != span.start:
            self._turn_to(span)
        try:
            results = next(self._results)
            with self._opened.decoding(span):
                found = join_decoded([result.result() for result in results])
        except BaseException:
            self._coming.clear()  # an iterator that raised has ended
            raise
        self._coming.popleft()
        return found

    def _turn_to(self, span: Span) -> None:
        self._coming = deque(
            other
            for other in self._opened.spans
            if other.stream.is_own
            and other.start >= span.start
            and other.start not in self._skipped
        )
        self._results = self._workers.run(map(self._tasks, tuple(self._coming)))

    def _tasks(self, span: Span) -> list[DecodeTask]:
        body, stream = self._opened.body(span), span.stream
        with self._opened.decoding(span):
            codec = name_of(span.codec)
            shape, flags = (stream.rows, stream.columns), self._opened.flags_per_byte
            return decode_tasks(stream.label, codec, body, *shape, flags_per_byte=flags)
