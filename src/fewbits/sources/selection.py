"""Data that a search may judge on: apart from calibration, and from the test that is reported."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ..errors import SourceError
from .data import DataSource, IndexedSplit, Split, divide

__all__ = ["Part", "selection_of", "with_selection"]

_MOST = 5000  # samples: beyond these a search is slower, and hardly surer
_SEED = 20260102


@dataclass(frozen=True, eq=False)
class Part(IndexedSplit):
    """Some samples of a split."""

    whole: IndexedSplit
    indices: NDArray[np.int64] = field(repr=False)

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.indices)

    def fetch(self, indices: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Return inputs and labels of these samples of the part."""
        return self.whole.fetch(self.indices[indices])


def with_selection(data: DataSource) -> DataSource:
    """Return ``data`` with a selection split: its own, or half of the training part.

    The half (at most 5,000 samples, drawn once and for all) is taken out of calibration. A network
    that was trained on these samples scores better on them than on new ones: they tell a drop, not
    an accuracy. Where there is a validation set, that is better.

    Raises:
        SourceError: the training part cannot be divided here.
    """
    if data.selection is not None:
        return data
    if not isinstance(data.train, IndexedSplit) or data.calibration is not None:
        raise SourceError(
            f"data {data.source!r} has no selection split, and its training part cannot be divided "
            "here. Add --selection DATA, labelled samples that are neither for calibration nor for "
            "the test, or return {'calibration': ..., 'selection': ..., 'test': ...}."
        )
    count = len(data.train)
    kept, chosen = divide(count, min(0.5, _MOST / max(1, count)), _SEED)
    return replace(data, calibration=Part(data.train, kept), selection=Part(data.train, chosen))


def selection_of(data: DataSource) -> Split:
    """Return what a source named for selection offers: its selection, training or test split."""
    found = data.selection or data.train or data.test
    if found is None:
        raise SourceError(f"data {data.source!r} has no split to judge on.")
    return found
