"""Sensitivity of a network's output to errors in the rows of embeddings.

A lookup multiplies its table with one-hot inputs, so errors of two rows never meet in one output,
and the moments of its inputs are counts. What a calibration set says of a table is therefore how
often each row is used, and how the output depends on the vectors that are looked up.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from .layer import Sensitivity

__all__ = ["LookupSums", "joined"]

_TRUST = 4.0  # uses of a row at which its own gradients count as much as the average
_RARE = 0.5  # most uses that a row counts for which none was seen


class LookupSums:
    """Moments of the gradients of one table, by row, accumulated over samples.

    Args:
        rows: number of rows of the table.
        columns: length of a row.
    """

    def __init__(self, rows: int, columns: int) -> None:
        self._squares = torch.zeros(rows, dtype=torch.float64)
        self._counts = torch.zeros(rows, dtype=torch.float64)
        self._columns = torch.zeros(columns, columns, dtype=torch.float64)
        self._samples = 0

    def add(self, places: Tensor, gradients: Tensor, samples: int) -> None:
        """Add what a call looked up.

        Args:
            places: int64 (samples, positions), or of another shape if samples share lookups.
            gradients: (*places.shape, columns), gradients of the vectors that were looked up.
            samples: number of samples in the pass.
        """
        rows = len(self._counts)
        flat, each = places.reshape(-1).cpu(), gradients.reshape(places.numel(), -1).float().cpu()
        used = each.any(1)
        apart = places.dim() > 1 and len(places) == samples
        sample = torch.arange(samples).repeat_interleave(len(flat) // samples) if apart else 0
        keys, where = torch.unique((flat + rows * sample)[used], return_inverse=True)
        sums = each.new_zeros(len(keys), each.shape[1]).index_add_(0, where, each[used])
        self._squares.index_add_(0, keys % rows, sums.square().sum(1).double())
        self._counts += torch.bincount(flat[used], minlength=rows)
        self._columns += (sums.mT @ sums).double()
        self._samples += samples

    def state(self) -> dict[str, Tensor]:
        """Return the sums, which add up over ranks."""
        samples = torch.tensor(self._samples)
        sums = {"squares": self._squares, "counts": self._counts, "columns": self._columns}
        return {**sums, "samples": samples}

    @classmethod
    def of_state(cls, state: Mapping[str, Tensor]) -> LookupSums:
        """Return the sums of a state."""
        sums = cls(len(state["counts"]), len(state["columns"]))
        sums._squares, sums._counts = state["squares"], state["counts"]
        sums._columns, sums._samples = state["columns"], int(state["samples"])
        return sums

    @property
    def reached(self) -> bool:
        """Whether any nonzero gradient was added."""
        return bool(self._counts.any())

    def finish(self, probes: int) -> Sensitivity:
        """Return the moments; rows that were never used count as rare ones.

        Of a row that was used a few times, the number of uses says more than its own gradients; of
        the chance of those never used, those used once do (Good 1953).
        """
        uses, total = self._counts, self._counts.sum()
        each = self._squares.sum() / total  # squared gradient per use
        unseen = int((uses == 0).sum())
        once = int((uses == 1).sum())
        expected = torch.where(uses > 0, uses, min(_RARE, (once + 1) / max(1, unseen)))
        own = uses / (uses + _TRUST)
        rows = own * self._squares + (1 - own) * each * expected
        trace = self._columns.diagonal().sum()
        columns = self._columns * (len(self._columns) / trace)
        rows = rows / (self._samples * len(columns))
        return Sensitivity(rows[None], columns.float()[None], None, self._samples // probes)


def joined(first: Sensitivity, second: Sensitivity) -> Sensitivity:
    """Return the sensitivity of a weight that is used in two ways, whose errors add up.

    The sum of two products of rows and columns is taken as one product, with the same total, and
    the same totals by row.
    """
    sizes = [
        one.columns.diagonal(dim1=1, dim2=2).sum(1, dtype=torch.float64) for one in (first, second)
    ]
    totals = [one.rows * size[:, None] for one, size in zip((first, second), sizes, strict=True)]
    shares = [total.sum(1) / size for total, size in zip(totals, sizes, strict=True)]
    columns = sum(
        share[:, None, None] * one.columns
        for share, one in zip(shares, (first, second), strict=True)
    )
    trace = torch.as_tensor(columns).diagonal(dim1=1, dim2=2).sum(1)
    scale = sizes[0] / trace
    return Sensitivity(
        (totals[0] + totals[1]) / sizes[0][:, None],
        (columns * scale[:, None, None]).float(),
        first.outputs if second.outputs is None else second.outputs,
        max(first.samples, second.samples),
    )
