"""Data that a search may judge on: apart from calibration, and from the test that is reported."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ...errors import SourceError
from ..base.dataset import DataSource, IndexedSplit, Split, divide

__all__ = ["Part", "held_out", "selection_of", "with_selection"]

_MOST = 5000  # samples: beyond these a search is slower, and hardly surer
_SEED = 20260102
_SHARE = 0.1  # of the training samples that a training holds out


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


def held_out(data: DataSource, share: float | None) -> tuple[Split, Split | None]:
    """Return what training may see, and labelled training samples that it does not.

    Args:
        data: with a training split. Its own selection split, where it has one, must hold none of
            the training samples; it is taken whatever ``share`` says, but for 0.
        share: of the training split, at most 5,000 samples, drawn once and for all; None for a
            tenth where the split can be divided, and nothing where it cannot; 0 for nothing.

    Raises:
        SourceError: no training split, or one that cannot be divided though a share is asked for.
    """
    train = data.split("train")
    if share == 0:
        return train, None
    if data.selection is not None:
        return train, data.selection
    if not isinstance(train, IndexedSplit):
        if share is None:
            return train, None
        raise SourceError(
            f"data {data.source!r}: its training part cannot be divided here, so no share of it "
            "can be held out. Return {'train': ..., 'selection': ..., 'test': ...}, name other "
            "data for selection, or hold out 0 and keep the last epoch."
        )
    count = len(train)
    kept, chosen = divide(count, min(_SHARE if share is None else share, _MOST / count), _SEED)
    return Part(train, kept), Part(train, chosen)


def selection_of(data: DataSource) -> Split:
    """Return what a source named for selection offers: its selection, training or test split."""
    found = data.selection or data.train or data.test
    if found is None:
        raise SourceError(f"data {data.source!r} has no split to judge on.")
    return found
