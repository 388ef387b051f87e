"""Tensors decoded when they are asked for, so that a file is never held decoded as a whole."""

from __future__ import annotations

from collections import ChainMap, defaultdict
from collections.abc import Iterator, Mapping

from ..coded import ActivationGrid, Codebook, CodedTensor
from ..coding import Symbols
from ..coding.narrow import narrow
from ..coding.workers import Workers
from .ahead import Ahead
from .assemble import Found, build_activations, build_codebooks, build_tensor, distribute, guard
from .entries import leaves
from .opened import Opened
from .streams import Span

__all__ = ["HELD", "LazyTensors"]

HELD = 1 << 25  # bytes of symbols that `check` keeps, so that they need not be decoded again


class LazyTensors(Mapping[str, CodedTensor]):
    """Name to coded tensor; each look-up reads and decodes the streams of that tensor.

    Streams that many tensors share are decoded once and kept: the steps, scales and codebooks,
    tensors of at most 64 KiB, and joined index matrices. :class:`CorruptFileError` for a
    tensor whose streams are wrong. With ``workers`` the tensors to come are decoded while one is
    used; look them up in order.

    Attributes:
        shapes: name to shape, from the header alone.
        dtypes: name to dtype when restored, likewise.
    """

    def __init__(self, opened: Opened, workers: Workers | None = None) -> None:
        self._opened = opened
        self._entries = opened.header.entries
        self.shapes = {name: entry.shape for name, entry in self._entries.items()}
        self.dtypes = {name: entry.dtype for name, entry in self._entries.items()}
        self._spans: defaultdict[str, list[Span]] = defaultdict(list)
        self._side: list[Span] = []
        self._shared: Found = {}
        self._shared_seen: set[int] = set()
        self._books: list[Codebook] | None = None
        self._held: dict[int, Symbols] = {}
        self._room = 0
        self._ahead = Ahead(opened, workers or Workers(1), self._held)
        self._file_spans()

    def _file_spans(self) -> None:
        for span in self._opened.spans:
            parts = span.stream.parts
            if span.stream.holds("levels"):
                self._side.append(span)
            for name in {part.name for part in parts if part.role not in ("levels", "clips")}:
                self._spans[name].append(span)

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __getitem__(self, name: str) -> CodedTensor:
        entry = self._entries[name]
        found: Found = {}
        for span in self._spans[name]:
            if span.stream.is_own:
                distribute(span.stream, self._symbols(span), found)
            else:
                self._share(span)
        books = self.codebooks() if self._in_codebook(name) else []
        with guard(f"the tensor {name!r}"):
            return build_tensor(name, entry, ChainMap(found, self._shared), books)

    def spans(self, name: str) -> list[Span]:
        """Return the streams that a look-up of ``name`` decodes."""
        own = self._spans[name]
        side = self._side if self._in_codebook(name) else []
        return [*own, *(span for span in side if span not in own)]

    def codebooks(self) -> list[Codebook]:
        """Return the codebooks of the file; tensors that share one get the same object."""
        if self._books is None:
            for span in self._side:
                self._share(span)
            self._books = build_codebooks(self._opened.header, self._shared)
        return self._books

    def activations(self) -> dict[str, ActivationGrid]:
        """Return the activation grids; decodes the side stream, and only where it holds clips."""
        for span in self._opened.spans:
            if span.stream.holds("clips"):
                self._share(span)
        return build_activations(self._opened.header, self._shared)

    def check(self) -> None:
        """Decode everything once, so that no later look-up finds the file damaged.

        Up to ``HELD`` bytes of symbols are kept for the next look-up, the others decoded again.
        """
        self._opened.verify()
        self._room = HELD
        self.codebooks()
        for name in self:
            self[name]
        self._room = 0

    def _in_codebook(self, name: str) -> bool:
        return any(leaf.codebook is not None for _, leaf in leaves(self._entries[name]))

    def _share(self, span: Span) -> None:
        if span.start not in self._shared_seen:
            distribute(span.stream, narrow(self._opened.symbols(span)), self._shared)
            self._shared_seen.add(span.start)

    def _symbols(self, span: Span) -> Symbols:
        if span.start in self._held:
            return self._held.pop(span.start)
        symbols = self._ahead.symbols(span)
        if self._room:
            kept = narrow(symbols)
            if kept.nbytes <= self._room:
                self._room -= kept.nbytes
                self._held[span.start] = kept
        return symbols
