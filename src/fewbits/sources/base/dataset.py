"""Data sources: named splits that yield batches of (inputs, labels).

Splits are never mixed: ``train`` and its subset ``calibration`` are for fitting, ``selection`` is
for choosing among results, ``test`` is for the final score.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...errors import SourceError, require

__all__ = [
    "BATCH_SIZE",
    "SPLITS",
    "ArraySplit",
    "DataSource",
    "IndexedSplit",
    "Normalization",
    "Split",
    "StreamSplit",
    "divide",
    "labels_from",
    "permutation",
]


SPLITS = ("train", "calibration", "selection", "test")
BATCH_SIZE = 128  # samples, unless a split says otherwise


class Split(Protocol):
    """Batches that can be iterated any number of times."""

    def batches(self, batch_size: int | None, limit: int | None, seed: int | None) -> Iterable[Any]:
        """Return a re-iterable of batches; see :meth:`DataSource.batches`."""


@dataclass(frozen=True)
class DataSource:
    """Named splits of images (or other inputs) and labels.

    A batch is ``(inputs, labels)``: float32 ``(n, channels, height, width)`` for images, and int64
    ``(n,)`` class numbers from 0; only the inputs if there are no labels. A batch of text is a dict
    with int64 ``input_ids`` ``(n, tokens)``. Batches of your own loader are passed through
    unchanged.

    Attributes:
        source: the string it was loaded from.
        train: training split.
        test: split for the final score; shares no sample with the others.
        calibration: data for calibration; a subset of ``train``, or None for all of it.
        classes: number of classes; None if unknown.
        preprocessing: what was done to the stored inputs, as text.
        one_loader: the same samples serve as every split, so results calibrated on them must not
            be scored on them.
        selection: split on which a search may score; shares no sample with calibration and test.
        file: the file that all samples come from, if one serves as every split.
    """

    source: str
    train: Split | None = None
    test: Split | None = None
    calibration: Split | None = None
    classes: int | None = None
    preprocessing: str = "inputs as they are"
    one_loader: bool = False
    selection: Split | None = None
    file: Path | None = None

    def shares_samples(self, other: DataSource) -> bool:
        """Return whether both are one loader or file, under whatever options."""
        if not (self.one_loader and other.one_loader):
            return False
        same = self.file is not None and self.file == other.file
        return same or self.source == other.source

    def split(self, name: str) -> Split:
        """Return the split "train", "calibration", "selection" or "test".

        Raises:
            SourceError: the source has no such split.
        """
        require(name in SPLITS, "split", f"one of {', '.join(SPLITS)}", name)
        part: Split | None = getattr(self, name)
        if part is None and name == "calibration":
            part = self.train
        if part is None:
            has = [split for split in SPLITS if getattr(self, split)]
            raise SourceError(
                f"data {self.source!r} has no {name} split; it has: {', '.join(has) or 'none'}."
            )
        return part

    def batches(
        self,
        split: str,
        batch_size: int | None = None,
        limit: int | None = None,
        seed: int | None = None,
    ) -> Iterable[Any]:
        """Return a re-iterable of batches of one split.

        Args:
            split: "train", "calibration", "selection" or "test".
            batch_size: samples per batch; the last may be smaller. None stands for 128, or 8 of
                text. Your own loaders ignore it.
            limit: at most this many samples.
            seed: shuffles, the same way every time; None keeps the stored order. With a limit,
                a seed draws the samples at random instead of taking the first ones.
        """
        require(batch_size is None or batch_size >= 1, "batch_size", "at least 1", batch_size)
        require(limit is None or limit >= 1, "limit", "at least 1", limit)
        return self.split(split).batches(batch_size, limit, seed)


@dataclass(frozen=True)
class _IndexedBatches:
    split: IndexedSplit
    order: NDArray[np.int64]
    batch_size: int

    def __len__(self) -> int:
        return math.ceil(len(self.order) / self.batch_size)

    def __iter__(self) -> Iterator[Any]:
        for start in range(0, len(self.order), self.batch_size):
            yield self.split.fetch(self.order[start : start + self.batch_size])


class IndexedSplit(ABC):
    """A split of known length whose samples can be fetched in any order."""

    @property
    def usual_batch(self) -> int:
        """Samples per batch where none are asked for."""
        return BATCH_SIZE

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of samples."""

    @abstractmethod
    def fetch(self, indices: NDArray[np.int64]) -> Any:
        """Return the batch of these samples, in the given order: inputs and labels, or a dict."""

    def batches(self, batch_size: int | None, limit: int | None, seed: int | None) -> Iterable[Any]:
        """Return a re-iterable of batches with a length."""
        order = np.arange(len(self)) if seed is None else permutation(len(self), seed)
        return _IndexedBatches(self, order[:limit], batch_size or self.usual_batch)


@dataclass(frozen=True)
class Normalization:
    """``(x * scale - mean) / std`` per channel, in float32.

    ``mean`` and ``std`` have one number, or one per channel (axis 1 of a batch).
    """

    scale: float = 1.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        if any(value <= 0 for value in self.std):
            raise SourceError(f"std must be positive numbers. Got {self.std} instead.")

    def __call__(self, inputs: Tensor) -> Tensor:
        """Return float32 inputs of the same shape, ``(n, ...)``."""
        channels = inputs.shape[1] if inputs.dim() > 1 else 1
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, channels):
                raise SourceError(
                    f"{name} has {len(values)} numbers for inputs of {channels} channels. "
                    f"Pass 1 or {channels}."
                )
        view = (-1,) + (1,) * max(0, inputs.dim() - 2)
        scaled = inputs.to(torch.float32) * self.scale
        mean, std = torch.tensor(self.mean), torch.tensor(self.std)
        return (scaled - mean.view(view)) / std.view(view)

    def __str__(self) -> str:
        words = ["inputs" if self.scale == 1 else f"pixels / {round(1 / self.scale)}"]
        if any(self.mean):
            words.append("minus " + ", ".join(f"{value:g}" for value in self.mean))
        if any(value != 1 for value in self.std):
            words.append("over " + ", ".join(f"{value:g}" for value in self.std))
        return ", ".join(words)


@dataclass(frozen=True, eq=False)
class ArraySplit(IndexedSplit):
    """Samples in memory in their stored dtype; batches are normalized when fetched.

    Without a normalization they stay as they are, as token numbers must; without labels, a batch is
    only the inputs.
    """

    inputs: Tensor = field(repr=False)
    labels: Tensor | None = field(repr=False)
    normalization: Normalization | None = Normalization()

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.inputs)

    def fetch(self, indices: NDArray[np.int64]) -> tuple[Tensor, Tensor] | Tensor:
        """Return inputs and labels of these samples, or only the inputs."""
        where = torch.from_numpy(np.ascontiguousarray(indices))
        chosen = self.inputs[where]
        inputs = chosen if self.normalization is None else self.normalization(chosen)
        return inputs if self.labels is None else (inputs, self.labels[where])


@dataclass(frozen=True)
class _Stream:
    make: Callable[[], Iterable[Any]]
    limit: int | None

    def __iter__(self) -> Iterator[Any]:
        seen = 0
        for batch in self.make():
            if self.limit is None:
                yield batch
                continue
            kept = _first(batch, self.limit - seen)
            seen += _size(kept)
            yield kept
            if seen >= self.limit:
                return


@dataclass(frozen=True)
class StreamSplit:
    """Your own loader. Batches keep their size and order; only ``limit`` is applied.

    ``make`` is called for every pass and returns an iterable of batches.
    """

    make: Callable[[], Iterable[Any]]

    def batches(self, batch_size: int | None, limit: int | None, seed: int | None) -> Iterable[Any]:
        """Return the loader's batches, truncated after ``limit`` samples."""
        return _Stream(self.make, limit)


def divide(count: int, fraction: float, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return disjoint indices (train, test) of ``count`` samples; reproducible forever."""
    order = permutation(count, seed)
    held_out = max(1, round(count * fraction))
    if held_out >= count:
        raise SourceError(f"{count} samples are too few to hold out a test split of {fraction:g}.")
    return order[held_out:], order[:held_out]


_MOST_CLASSES = 2**31  # above it floats are not exact class numbers, and memory runs out


def labels_from(values: Sequence[int] | NDArray[Any], classes: int | None, where: str) -> Tensor:
    """Return int64 labels ``(n,)``, checked to be class numbers.

    Raises:
        SourceError: labels that are not integers, negative, or >= ``classes``; names the first.
    """
    array = np.asarray(values)
    if array.ndim != 1:
        raise SourceError(
            f"{where}: labels have shape {array.shape}; expected one per sample, (n,)."
        )
    whole = array.dtype.kind in "iub"
    if array.dtype.kind == "f":
        whole = bool((array == np.floor(array)).all())
    if not whole:
        raise SourceError(f"{where}: labels of dtype {array.dtype} are not integer class numbers.")
    bad = np.flatnonzero((array < 0) | (array >= (classes or _MOST_CLASSES)))
    if bad.size:
        first = int(bad[0])
        top = f"[0, {classes})" if classes else "[0, 2^31)"
        raise SourceError(
            f"{where}: label {array[first]} of sample {first} is out of range; expected {top} "
            f"({bad.size} such labels)."
        )
    return torch.from_numpy(array.astype(np.int64))


def permutation(count: int, seed: int) -> NDArray[np.int64]:
    """Return the numbers below ``count`` in a random order; reproducible forever."""
    # RandomState's stream is frozen forever; newer generators may change between releases.
    return np.random.RandomState(seed).permutation(count).astype(np.int64)


def _first(batch: Any, count: int) -> Any:
    if isinstance(batch, Tensor):
        return batch[:count] if batch.dim() else batch
    if isinstance(batch, dict):
        return {key: _first(value, count) for key, value in batch.items()}
    if isinstance(batch, (list, tuple)):
        return tuple(_first(value, count) for value in batch)
    return batch


def _size(batch: Any) -> int:
    if isinstance(batch, Tensor):
        return len(batch) if batch.dim() else 1
    parts = batch.values() if isinstance(batch, dict) else batch
    if isinstance(batch, (dict, list, tuple)):
        return next((_size(part) for part in parts if isinstance(part, Tensor)), 1)
    return 1
