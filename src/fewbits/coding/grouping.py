"""Which small matrices of a file share one stream: those that take fewer bytes so."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from .adaptive import KERNELS, LEAST, MAX_ALPHABET
from .codec import Symbols
from .joined import MAX_ROWS, Group, kernel_of, walk_group
from .laws import CLASSES
from .learners import STRENGTHS, Ints, Knowledge, Law
from .queue import Meter

__all__ = ["LARGEST", "SUFFICIENT", "join_small"]

LARGEST = 1 << 16  # symbols of a matrix: large ones learn enough on their own
SUFFICIENT = 1 << 19  # symbols of a group: one of them is not had without those before it
OWN = 4  # bytes that a stream of one's own takes besides: its checksum

Coded = tuple[str, bytes]


def join_small(matrices: Sequence[Symbols | None], coded: Sequence[Coded]) -> list[Coded]:
    """Return ``coded`` (codec and bytes of each) with matrices joined where that saves bytes.

    All of a group but the last have no bytes; the stream is with the last. Matrices that are None
    are left as they are. A file has groups of one kind of kernel, since they may not interleave;
    the kind that saves most is taken. Cost: that of coding them twice more.
    """
    best, least = list(coded), 0
    for taps in (*KERNELS, 1):
        changed = dict(_joined(_candidates(matrices, taps), taps, matrices, coded))
        change = sum(
            len(data) - len(coded[place][1]) - (0 if data else OWN)
            for place, (_, data) in changed.items()
        )
        if change < least:
            least = change
            best = [changed.get(place, own) for place, own in enumerate(coded)]
    return best


def _candidates(matrices: Sequence[Symbols | None], taps: int) -> list[int]:
    """Return the places of what may be joined: small, few symbols, columns of kernels alike."""
    return [
        place
        for place, matrix in enumerate(matrices)
        if matrix is not None
        and LEAST <= matrix.size <= LARGEST
        and matrix.shape[1] > 1
        and int(matrix.max()) - int(matrix.min()) < MAX_ALPHABET
        and kernel_of(matrix.shape[1]) == taps
    ]


def _joined(
    places: list[int], taps: int, matrices: Sequence[Symbols | None], coded: Sequence[Coded]
) -> Iterable[tuple[int, Coded]]:
    """Yield what changes if groups of ``places`` are joined, as far as each saves bytes."""
    found = [(place, matrix) for place in places if (matrix := matrices[place]) is not None]
    for run in _runs(found, taps):
        if len(run) < 2:
            continue
        group = Group([matrix for _, matrix in run], taps)
        if not 2 <= group.size <= MAX_ALPHABET:
            continue
        bits = _measure(group)
        strength = int(bits.sum(axis=0).argmin())
        own = np.array([len(coded[place][1]) + OWN for place, _ in run])
        kept = [item for item, pays in zip(run, bits[:, strength] < 8 * own, strict=True) if pays]
        if len(kept) < 2:
            continue
        group = Group([matrix for _, matrix in kept], taps)
        if group.size < 2:
            continue
        data = group.encode(strength)
        if len(data) + OWN < sum(len(coded[place][1]) + OWN for place, _ in kept):
            yield from ((place, ("joined", b"")) for place, _ in kept[:-1])
            yield kept[-1][0], ("joined", data)


def _runs(items: list[tuple[int, Symbols]], taps: int) -> list[list[tuple[int, Symbols]]]:
    """Cut ``items`` into runs of at most ``SUFFICIENT`` symbols and ``MAX_ROWS`` rows of taps."""
    runs: list[list[tuple[int, Symbols]]] = [[]]
    total = rows = 0
    for place, matrix in items:
        total += matrix.size
        rows += taps * len(matrix)
        if total > SUFFICIENT or rows > MAX_ROWS:
            runs.append([])
            total, rows = matrix.size, taps * len(matrix)
        runs[-1].append((place, matrix))
    return runs


class _Trials(Law):
    """A law that counts the bits of every strength at once: the model is the same for all."""

    def __init__(self, size: int) -> None:
        super().__init__(size, 0)
        self.bits = np.zeros(len(STRENGTHS))
        self.asked: Ints = np.zeros(0, np.int64)

    def weights(self, place: Ints, ratio: Ints, scale: Ints) -> NDArray[np.float64]:
        """Note the classes."""
        self.asked = place * CLASSES + scale
        return super().weights(place, ratio, scale)

    def add(self, ratio: Ints, scale: Ints, symbols: NDArray[np.int32]) -> None:
        """Count the bits of the symbols, and then the symbols."""
        law = self.table[self.asked] / STRENGTHS[0]
        seen = self.counts[ratio * CLASSES + scale]
        rows = np.arange(symbols.size)
        for k, strength in enumerate(STRENGTHS):
            weights = strength * law + seen
            self.bits[k] += float(np.log2(weights.sum(axis=1) / weights[rows, symbols]).sum())
        super().add(ratio, scale, symbols)


def _measure(group: Group) -> NDArray[np.float64]:
    """Return (matrices, strengths): bits of each matrix, joined to those before it."""
    knowledge = Knowledge(group.size, 0, refined=True)
    trials = knowledge.law = _Trials(group.size)
    out = np.zeros((len(group.places), len(STRENGTHS)))
    for place, matrix in enumerate(group.places):
        before = trials.bits.copy()
        shape = (matrix.shape[0], matrix.shape[1])
        walk_group(matrix, shape, group.settings, Meter(), knowledge)
        out[place] = trials.bits - before
    return out
