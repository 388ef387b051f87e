"""Training batches: the order of samples in an epoch, and the share of each process.

A batch of the source is the *global* batch of one optimizer step. Its samples are divided among
processes in equal contiguous parts, and each process takes its part in ``accumulate``
micro-batches. So the numbers of processes and micro-batches do not affect the result (except for
layers that mix samples, such as batch normalization).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...errors import CalibrationError, ConfigError, require
from ...ops.seeds import seed_at
from .augment import Augmentation

__all__ = [
    "Indexed",
    "MicroBatch",
    "Sharing",
    "TrainingBatches",
    "generator_at",
    "preserved_random_state",
    "seed_everything_at",
]


# Independent streams of random numbers: order, loader, augmentation (and later ones elsewhere).
_ORDER, _LOADER, _AUGMENT = range(3)


@runtime_checkable
class Indexed(Protocol):
    """Samples that can be fetched in any order, such as ``fewbits.sources.IndexedSplit``."""

    def __len__(self) -> int:
        """Return the number of samples."""
        ...

    def fetch(self, indices: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Return inputs and labels of these samples, in this order."""
        ...


@dataclass(frozen=True)
class MicroBatch:
    """A part of a batch for one forward pass, and the weight of its mean loss in the step."""

    batch: Any
    weight: float


@dataclass(frozen=True)
class Sharing:
    """The part of a global batch that belongs to this process, and its number of micro-batches."""

    process: int = 0
    processes: int = 1
    accumulate: int = 1

    def bounds(self, count: int) -> list[tuple[int, int]]:
        """Return the bounds of this process's pieces of ``count`` samples; none is empty."""
        pieces = self.processes * self.accumulate
        first = self.process * self.accumulate
        ends = [count * piece // pieces for piece in range(first, first + self.accumulate + 1)]
        return [(a, b) for a, b in pairwise(ends) if a < b]

    def weight(self, size: int, count: int) -> float:
        """Return the weight of a piece of ``size``; weights average to 1 over the processes."""
        return size * self.processes / count


class TrainingBatches:
    """This process's share of the global batches of every epoch.

    Indexed samples come in a permutation that only depends on (seed, epoch); a remainder of less
    than one batch is dropped until the next permutation. A user's loader keeps its batches and
    their order; the global generators are seeded before each batch, so that shuffling in this
    process repeats in a resumed run.
    """

    def __init__(
        self,
        data: Indexed | Iterable[Any],
        batch_size: int,
        sharing: Sharing,
        seed: int,
        augment: Augmentation | None = None,
    ) -> None:
        self.data, self.batch_size, self.sharing = data, batch_size, sharing
        self.seed, self.augment = seed, augment
        pieces = sharing.processes * sharing.accumulate
        if isinstance(data, Indexed):
            require(batch_size >= 1, "batch_size", "at least 1", batch_size)
            if batch_size % pieces:
                raise ConfigError(
                    f"batch_size {batch_size} cannot be divided evenly among {sharing.processes} "
                    f"processes with {sharing.accumulate} micro-batches each. Use a multiple of "
                    f"{pieces}; it is the number of samples per step over all processes."
                )
        self.steps = self._count()
        if not self.steps:
            what = f"{len(data)} samples, less than one batch of {batch_size}" if isinstance(
                data, Indexed
            ) else "no batch"  # fmt: skip
            raise CalibrationError(
                f"the training data holds {what}. Lower batch_size, or add data; an iterator that "
                "was used before is empty."
            )

    def epoch(self, epoch: int, skip: int = 0) -> Iterator[list[MicroBatch]]:
        """Yield this process's micro-batches of every step from step ``skip`` on."""
        if isinstance(self.data, Indexed):
            yield from self._indexed(self.data, epoch, skip)
            return
        batches = None
        for step in range(self.steps):
            seed_everything_at(self.seed, epoch, step, _LOADER)
            batches = iter(self.data) if batches is None else batches
            batch = next(batches, None)
            if batch is None:
                raise CalibrationError(
                    f"the training data gave {step} batches in epoch {epoch + 1} and "
                    f"{self.steps} before. It must give the same number in every epoch."
                )
            if step >= skip:
                yield self._cut(batch, epoch, step)

    def _count(self) -> int:
        if isinstance(self.data, Indexed):
            return len(self.data) // self.batch_size
        if isinstance(self.data, Sized):
            return len(self.data)
        seed_everything_at(self.seed, 0, 0, _LOADER)
        return sum(1 for _ in self.data)

    def _indexed(self, data: Indexed, epoch: int, skip: int) -> Iterator[list[MicroBatch]]:
        # The stream of RandomState is frozen forever; that of newer generators may change.
        shuffle = np.random.RandomState(seed_at(self.seed, epoch, 0, _ORDER) % 2**32)
        order = shuffle.permutation(len(data)).astype(np.int64)
        for step in range(skip, self.steps):
            where = order[step * self.batch_size : (step + 1) * self.batch_size]
            bounds = self.sharing.bounds(len(where))
            pieces = [data.fetch(where[start:end]) for start, end in bounds]
            yield self._micro_batches(pieces, bounds, len(where), epoch, step)

    def _cut(self, batch: Any, epoch: int, step: int) -> list[MicroBatch]:
        count = _samples(batch)
        bounds = self.sharing.bounds(count)
        if count < self.sharing.processes * self.sharing.accumulate:
            raise CalibrationError(
                f"training batch {step} has only {count} samples for {self.sharing.processes} "
                f"processes with {self.sharing.accumulate} micro-batches each. Use larger batches, "
                "and drop_last=True in your loader."
            )
        pieces = [_slice(batch, start, end) for start, end in bounds]
        return self._micro_batches(pieces, bounds, count, epoch, step)

    def _micro_batches(
        self,
        pieces: list[Any],
        bounds: list[tuple[int, int]],
        count: int,
        epoch: int,
        step: int,
    ) -> list[MicroBatch]:
        if self.augment is not None:
            generator = generator_at(self.seed, epoch, step, _AUGMENT)
            draws = self.augment.draw(count, generator)
            pieces = [
                _augmented(piece, self.augment, draws[start:end])
                for piece, (start, end) in zip(pieces, bounds, strict=True)
            ]
        return [
            MicroBatch(piece, self.sharing.weight(end - start, count))
            for piece, (start, end) in zip(pieces, bounds, strict=True)
        ]


def _samples(batch: Any) -> int:
    """Return the length of the first tensor of a batch; 0 if there is none."""
    if isinstance(batch, Tensor):
        return len(batch) if batch.dim() else 0
    if isinstance(batch, (Mapping, list, tuple)):
        parts = batch.values() if isinstance(batch, Mapping) else batch
        return next((count for count in map(_samples, parts) if count), 0)
    return 0


def _slice(batch: Any, start: int, end: int) -> Any:
    if isinstance(batch, Tensor):
        return batch[start:end] if batch.dim() else batch
    if isinstance(batch, Mapping):
        return {key: _slice(value, start, end) for key, value in batch.items()}
    if isinstance(batch, (list, tuple)):
        return tuple(_slice(value, start, end) for value in batch)
    return batch


def _augmented(batch: Any, augment: Augmentation, draws: Tensor) -> Any:
    if isinstance(batch, Tensor):
        return augment.apply(batch, draws)
    if isinstance(batch, (list, tuple)) and batch and isinstance(batch[0], Tensor):
        return (augment.apply(batch[0], draws), *batch[1:])
    raise CalibrationError(
        f"augmentation takes batches of (inputs, labels). Got {type(batch).__name__}. Augment in "
        "your own loader instead."
    )


def seed_everything_at(*position: int) -> None:
    """Seed the global generators of torch (all devices in use), numpy and Python."""
    seed = seed_at(*position)
    # torch.manual_seed would record a stack trace for every kind of device that is not in use.
    torch.default_generator.manual_seed(seed)
    in_use: Callable[[], bool] = torch.cuda.is_initialized
    if in_use():
        torch.cuda.manual_seed_all(seed)
    if torch.backends.mps.is_available():
        torch.mps.manual_seed(seed)
    # Users' transforms draw from this legacy global generator.
    np.random.seed(seed % 2**32)  # noqa: NPY002
    random.seed(seed)


def generator_at(*position: int) -> torch.Generator:
    """Return a new CPU generator, from which no other code draws."""
    return torch.Generator().manual_seed(seed_at(*position))


@contextmanager
def preserved_random_state(device: torch.device) -> Iterator[None]:
    """Restore the global generators and that of ``device`` after the block."""
    devices = [device] if device.type == "cuda" else []
    python, old = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(old)  # noqa: NPY002
