"""Selection data for searches: separate from calibration and from the reported test."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import SourceError
from ..base.dataset import DataSource, IndexedSplit, Split, divide

__all__ = ["Subset", "held_out", "selection_of", "with_selection"]

_MOST = 5000  # samples: more make a search slower but hardly more reliable
_SEED = 20260102
_SHARE = 0.1  # of the training samples, held out during training by default


@dataclass(frozen=True, eq=False)
class Subset(IndexedSplit):
    """Some samples of another split."""

    whole: IndexedSplit
    indices: NDArray[np.int64] = field(repr=False)

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.indices)

    @property
    def usual_batch(self) -> int:
        """Samples per batch where none are asked for."""
        return self.whole.usual_batch

    def fetch(self, indices: NDArray[np.int64]) -> Any:
        """Return the batch of these samples of the subset."""
        return self.whole.fetch(self.indices[indices])


def with_selection(data: DataSource) -> DataSource:
    """Return ``data`` with a selection split: its own, or half of its training split.

    The half (at most 5,000 samples, a fixed random choice) is taken out of calibration. A network
    trained on these samples scores better on them than on new ones: they show a drop, not an
    accuracy. Prefer a real validation set if there is one.

    Raises:
        SourceError: the training split cannot be divided here.
    """
    if data.selection is not None:
        return data
    if not isinstance(data.train, IndexedSplit) or data.calibration is not None:
        raise SourceError(
            f"data {data.source!r} has no selection split, and its training split cannot be "
            "divided here. Add --selection DATA with labelled samples used neither for calibration "
            "nor for the test, or return {'calibration': ..., 'selection': ..., 'test': ...}."
        )
    count = len(data.train)
    kept, chosen = divide(count, min(0.5, _MOST / max(1, count)), _SEED)
    selection = Subset(data.train, chosen)
    return replace(data, calibration=Subset(data.train, kept), selection=selection)


def held_out(data: DataSource, share: float | None) -> tuple[Split, Split | None]:
    """Return the data for training, and labelled samples held out from it.

    Args:
        data: source with a training split. If it has a selection split, which must not contain
            training samples, that is returned for any ``share`` except 0.
        share: fraction of the training split, at most 5,000 samples (a fixed random choice); None
            for a tenth if the split can be divided, else nothing; 0 for nothing.

    Raises:
        SourceError: no training split, or ``share`` is set but the split cannot be divided.
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
            f"data {data.source!r}: its training split cannot be divided here, so no share of it "
            "can be held out. Return {'train': ..., 'selection': ..., 'test': ...}, name other "
            "data for selection, or hold out 0 and keep the last epoch."
        )
    count = len(train)
    kept, chosen = divide(count, min(_SHARE if share is None else share, _MOST / count), _SEED)
    return Subset(train, kept), Subset(train, chosen)


def selection_of(data: DataSource) -> Split:
    """Return the split of a source named for selection: its selection, training or test split."""
    split = data.selection or data.train or data.test
    if split is None:
        raise SourceError(f"data {data.source!r} has no split to score on.")
    return split
