"""Statistics of a layer's inputs: rows while they are few, second moments once they are many.

Memory is bounded by the layer, not by the calibration set. While there are at most as many rows
as columns, the rows themselves are kept (exact, and smaller); beyond that they are folded into
H = X~^T X~ and G = X~^T X with float64 totals of float32 products per batch. Of layers with very
many inputs, the totals are float32 as well, and are added to in place. Ranks that see different
batches join what they have: rows in the order of the batches, totals by adding them up.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...errors import CalibrationError, ModelError
from ...ops.compiled.kernels import arrays, compiled, runs_compiled
from ...ops.levels.grid import all_finite
from ..network.distributed import Ranks

__all__ = ["WIDE", "Statistics", "StatisticsAccumulator", "check_float64", "second_moments"]

_MANY, _TINY = 8, 32  # groups, at least, and their columns, at most, of a compiled product
WIDE = 8192  # columns beyond which totals of moments are float32, half as large
_LOST = 2.0**-16  # of a second moment: a variance below is mostly rounding of float32 products
_STRIP = 192  # columns per product: wide enough to be fast, narrow enough to skip the other half


@dataclass(frozen=True, eq=False)
class Statistics:
    """Inputs of one layer: X in the float network, X~ in the network quantized so far.

    Attributes:
        rows: number of calibration rows m, per group.
        reference_mean: (groups, columns) float32 column means of X.
        quantized_mean: (groups, columns) float32 column means of X~; the same object if X is X~.
        samples: (X, X~), each (groups, m, columns) float32, while m <= columns; the same object
            twice if X is X~. None in Gram form.
        gram: (H, G), each (groups, columns, columns) float32, in Gram form; the same object twice
            if X is X~. None in sample form: use :meth:`moments`.
        reference_energy: (groups, neurons) float64, ``||X w||^2`` of the float weight; None if the
            accumulator did not get the weight, or if X is X~: then H gives it.
    """

    rows: int
    reference_mean: Tensor
    quantized_mean: Tensor
    samples: tuple[Tensor, Tensor] | None
    gram: tuple[Tensor, Tensor] | None = None
    reference_energy: Tensor | None = None

    def moments(self) -> tuple[Tensor, Tensor]:
        """Return ``(H, G) = (X~^T X~, X~^T X)``, each (groups, columns, columns).

        Both are one object if X is X~. In sample form each call computes them again: keep them.
        """
        if self.gram is not None:
            return self.gram
        if self.samples is None:
            raise CalibrationError(
                "statistics have neither samples nor moments: collect them first"
            )
        reference, quantized = self.samples
        second = quantized.mT @ quantized
        return second, second if reference is quantized else quantized.mT @ reference

    def about_mean(self, weight: Tensor | None = None) -> Statistics:
        """Return statistics of ``X - mean(X)`` and ``X~ - mean(X~)``; the means stay as they are.

        Errors of the mean of an output are no loss where a bias takes them. ``weight``: the float
        weight (groups, neurons, columns), without which the energy is left out. A column of ``X~``
        whose variance is lost in the rounding of its moments counts as constant.
        """
        x, x_hat = self.reference_mean, self.quantized_mean
        if self.samples is not None:
            reference, quantized = self.samples
            centered = quantized - x_hat[:, None]
            other = centered if reference is quantized else reference - x[:, None]
            return replace(self, samples=(other, centered), reference_energy=None)
        second, cross = self.moments()
        energy = None
        if self.reference_energy is not None and weight is not None:
            mean = (weight.double() @ x.double()[..., None])[..., 0]
            energy = (self.reference_energy - self.rows * mean.square()).clamp_min(0)
        column = x_hat[..., None].to(second)
        centered = torch.baddbmm(second, column, column.mT, alpha=-self.rows)
        other = centered
        if cross is not second:
            row = x[:, None].to(cross)
            other = torch.baddbmm(cross, column, row, alpha=-self.rows)
        lost = centered.diagonal(0, 1, 2) <= _LOST * second.diagonal(0, 1, 2)
        if lost.any():
            either = lost[:, :, None] | lost[:, None, :]
            centered.masked_fill_(either, 0)
            other.masked_fill_(either, 0)
        return replace(self, gram=(centered, other), reference_energy=energy)


class StatisticsAccumulator:
    """Collects the inputs of one layer, batch by batch.

    Args:
        groups: groups of the layer (1 unless it is a grouped convolution).
        columns: number of inputs of a neuron.
        weight: (groups, neurons, columns) float weight, for ``Statistics.reference_energy``. It
            costs nothing while X is X~, then X^T X or X w per batch, whichever is cheaper.
        name: name of the layer, for messages.
    """

    def __init__(
        self, groups: int, columns: int, weight: Tensor | None = None, name: str = ""
    ) -> None:
        self._groups, self._columns, self._weight = groups, columns, weight
        self._where = f"layer {name!r}: " if name else ""
        self._rows = 0
        self._dtype = torch.float32
        self._buffer: list[tuple[Tensor, Tensor]] = []
        self._places: list[tuple[int, int]] = []  # of what is in the buffer
        self._sums: tuple[Tensor, Tensor] | None = None
        self._totals: tuple[Tensor, Tensor] | None = None
        self._energy: Tensor | float = 0.0  # of rows that are not in `_plain`
        self._plain: Tensor | None = None  # X^T X, once it differs from H
        self._mismatched = False

    @property
    def rows(self) -> int:
        """Number of rows so far."""
        return self._rows

    def add(self, reference: Tensor, quantized: Tensor, place: tuple[int, int] = (0, 0)) -> None:
        """Add rows of X and X~, each (groups, rows, columns); pass one object twice if X is X~.

        16-bit inputs are cast to float32 before any product; float64 stays float64. ``place`` is
        that of the rows among all: the numbers of batch and call.

        Raises:
            CalibrationError: shapes differ from those declared, or a value is not finite.
        """
        same = quantized is reference
        reference, sums = self._checked(reference, "float network")
        quantized, others = (
            (reference, sums) if same else self._checked(quantized, "quantized network")
        )
        if reference.shape != quantized.shape:
            raise CalibrationError(
                f"{self._where}the float network gives inputs of shape {tuple(reference.shape)}, "
                f"the quantized network {tuple(quantized.shape)}. Both must see the same batches."
            )
        self._rows += reference.shape[1]
        if quantized.dtype == torch.float64:
            self._dtype = torch.float64
        self._add_sums(sums, others)
        folds = self._totals is not None or self._rows > self._columns
        if not folds:  # copy, since kept rows may be views of activations that change
            reference = reference.clone()
            quantized = reference if same else quantized.clone()
        self._buffer.append((reference, quantized))
        self._places.append(place)
        if folds:
            self._fold()

    def forget_reference(self) -> None:
        """Use the quantized network's rows in place of the float network's, for all rows so far."""
        self._buffer = [(rows, rows) for _, rows in self._buffer]
        if self._sums is not None:
            self._sums = (self._sums[1], self._sums[1])
        if self._totals is not None:
            self._totals = (self._totals[0], self._totals[0])
        self._weight = None  # the energy belongs to the float network's rows

    def join(self, ranks: Ranks) -> None:
        """Add what the other ranks have, so that all have the same; the last step before the end.

        Rows that are kept come in the order of their places. Totals are added up in another order
        than one process does it, which float64 totals hardly show in float32.
        """
        if ranks.count == 1:
            return
        what = f"statistics of {self._where.rstrip(': ') or 'a layer'}"
        told = ranks.exchange(what, (self._rows, self._dtype, self._is_plain))
        same = all(plain for _, _, plain in told)
        self._rows = sum(rows for rows, _, _ in told)
        if any(dtype == torch.float64 for _, dtype, _ in told):
            self._dtype = torch.float64
        sums = (
            {} if self._sums is None else {"reference": self._sums[0], "quantized": self._sums[1]}
        )
        means = ranks.total(what, {name: total.clone() for name, total in sums.items()})
        if means:
            first = means["reference"]
            self._sums = (first, first if same else means["quantized"])
        if self._rows <= self._columns:
            self._join_rows(ranks, what)
        else:
            self._fold()
            self._join_totals(ranks, what, same=same)

    @property
    def _is_plain(self) -> bool:
        """Whether X is X~ in all rows so far."""
        total = self._totals is None or self._totals[0] is self._totals[1]
        return total and all(pair[0] is pair[1] for pair in self._buffer)

    def _join_rows(self, ranks: Ranks, what: str) -> None:
        own = [
            (place, quantized.cpu(), None if reference is quantized else reference.cpu())
            for place, (reference, quantized) in zip(self._places, self._buffer, strict=True)
        ]
        device = self._buffer[0][1].device if self._buffer else torch.device("cpu")
        parts = [part for given in ranks.exchange(what, own) for part in given]
        self._buffer.clear()
        for _, seen, known in sorted(parts, key=lambda part: part[0]):
            quantized = seen.to(device)
            self._buffer.append((quantized if known is None else known.to(device), quantized))
        self._places = sorted(place for place, _, _ in parts)

    def _join_totals(self, ranks: Ranks, what: str, *, same: bool) -> None:
        energy = None if same or self._weight is None else self._energy_here()
        own = {} if self._totals is None else {"second": self._totals[0]}
        if self._totals is not None and not same:
            second, cross = self._totals
            own["cross"] = second.clone() if cross is second else cross
        if energy is not None:
            own["energy"] = energy
        found = ranks.total(what, own)
        second = found["second"]
        self._totals = (second, second if same else found["cross"])
        if energy is not None:
            self._mismatched, self._plain, self._energy = True, None, found["energy"]

    def _energy_here(self) -> Tensor:
        """Return the energy of the rows of this rank, (groups, neurons)."""
        if self._weight is None or self._totals is None:
            neurons = 0 if self._weight is None else self._weight.shape[1]
            return torch.zeros(self._groups, neurons, dtype=torch.float64)
        known = self._reference_energy()
        if known is not None or self._columns > WIDE:
            return torch.as_tensor(self._energy if known is None else known)
        weight = self._weight.double()
        return ((weight @ self._totals[0]) * weight).sum(2)

    def finish(self) -> Statistics:
        """Return the statistics of everything added so far."""
        means = self._means()
        energy = self._reference_energy()
        if self._totals is not None:
            second, cross = self._totals
            gram = second.to(self._dtype)
            pair = (gram, gram if cross is second else cross.to(self._dtype))
            return Statistics(self._rows, *means, None, pair, energy)
        return Statistics(self._rows, *means, self._joined(), None, energy)

    def _checked(self, rows: Tensor, network: str) -> tuple[Tensor, Tensor]:
        """Return rows in the dtype of the products, and their column sums, float64."""
        expected = (self._groups, self._columns)
        if rows.ndim != 3 or (rows.shape[0], rows.shape[2]) != expected:
            raise CalibrationError(
                f"{self._where}inputs must have shape ({self._groups}, rows, {self._columns}). "
                f"Got {tuple(rows.shape)} from the {network}."
            )
        check_float64(rows.device, self._where.rstrip(": ") or "statistics of a layer")
        rows = rows.detach()
        rows = rows if rows.dtype == torch.float64 else rows.float()
        sums = _column_sums(rows)
        if not bool(sums.isfinite().all()) and not all_finite(rows):
            raise CalibrationError(
                f"{self._where}its inputs in the {network} contain NaN or infinity. "
                "Check the calibration data and the weights of the layers before it."
            )
        return rows, sums if bool(sums.isfinite().all()) else rows.sum(1, dtype=torch.float64)

    def _add_sums(self, first: Tensor, second: Tensor) -> None:
        if self._sums is None:
            self._sums = (first, second)
        else:
            same = self._sums[0] is self._sums[1] and first is second
            total = self._sums[0] + first
            self._sums = (total, total if same else self._sums[1] + second)

    def _fold(self) -> None:
        for reference, quantized in self._buffer:
            if self._columns > WIDE:
                self._fold_wide(reference, quantized)
                continue
            second = _product(quantized, quantized)
            cross = second if reference is quantized else _product(quantized, reference)
            if self._weight is not None:
                self._add_energy(reference, second if reference is quantized else None)
            self._add_moments(second, cross)
        self._buffer.clear()
        self._places.clear()

    def _fold_wide(self, reference: Tensor, quantized: Tensor) -> None:
        """Add rows to float32 totals, without a product of their size."""
        same = reference is quantized
        if self._weight is not None:  # not from X^T X, which would be as large again
            self._mismatched = self._mismatched or not same
            outputs = reference @ self._weight.to(reference).mT
            self._energy = self._energy + outputs.square().sum(1).double()
        if self._totals is None:
            second = quantized.new_zeros(self._groups, self._columns, self._columns)
            self._totals = (second, second if same else second.clone())
        second, cross = self._totals
        if cross is second and not same:
            cross = second.clone()
        second.baddbmm_(quantized.mT, quantized)
        if cross is not second:
            cross.baddbmm_(quantized.mT, reference)
        self._totals = (second, cross)

    def _add_energy(self, reference: Tensor, second: Tensor | None) -> None:
        """Add the energy of rows; ``second`` is their X^T X if they are the same in X~.

        Called before the rows are in the totals, which hold all there is while X is X~.
        """
        if self._weight is None or (second is not None and not self._mismatched):
            return
        if not self._mismatched:
            self._mismatched = True
            self._plain = None if self._totals is None else self._totals[0].clone()
        wide = 3 * self._weight.shape[1] > 2 * self._columns  # X^T X is symmetric
        if second is None and wide:
            second = second_moments(reference).double()
        if second is None:
            outputs = reference @ self._weight.to(reference).mT
            self._energy = self._energy + outputs.square().sum(1).double()
        else:
            self._plain = second.clone() if self._plain is None else self._plain.add_(second)

    def _reference_energy(self) -> Tensor | None:
        if self._weight is None:
            return None
        if self._totals is None:
            pairs = [pair for pair in self._buffer if pair[0] is not pair[1]]
            if not pairs:
                return None
            rows = torch.cat([reference for reference, _ in self._buffer], 1)
            return (rows @ self._weight.to(rows).mT).square().sum(1).double()
        if not self._mismatched:
            return None
        energy = self._energy
        if self._plain is not None:
            weight = self._weight.double()
            energy = energy + ((weight @ self._plain) * weight).sum(2)
        return torch.as_tensor(energy)

    def _add_moments(self, second: Tensor, cross: Tensor) -> None:
        if self._totals is None:
            self._totals = (second, cross)
            return
        total, total_cross = self._totals
        if total_cross is total:
            if cross is second:
                total += second
                return
            total_cross = total.clone()
        total += second
        total_cross += cross
        self._totals = (total, total_cross)

    def _means(self) -> tuple[Tensor, Tensor]:
        if self._sums is None:
            zero = torch.zeros(self._groups, self._columns)
            return zero, zero
        first, second = self._sums
        count = max(1, self._rows)
        mean = (first / count).float()
        return mean, mean if second is first else (second / count).float()

    def _joined(self) -> tuple[Tensor, Tensor]:
        if not self._buffer:
            empty = torch.zeros(self._groups, 0, self._columns)
            return empty, empty
        reference = torch.cat([pair[0] for pair in self._buffer], 1)
        if all(pair[0] is pair[1] for pair in self._buffer):
            return reference, reference
        return reference, torch.cat([pair[1] for pair in self._buffer], 1)


def _column_sums(rows: Tensor) -> Tensor:
    """Return the sums (groups, columns) of rows (groups, m, columns), float64.

    They are finite only if all rows are. torch adds float32 pairwise, which is accurate, and much
    faster than in float64; for many groups a product is faster still.
    """
    groups, count, _ = rows.shape
    if groups >= _MANY:
        return (rows.new_ones(1, count).expand(groups, 1, -1) @ rows)[:, 0].double()
    return rows.sum(1).double()


def _product(first: Tensor, second: Tensor) -> Tensor:
    """Return A^T B of rows A and B (groups, rows, columns), float64.

    For the many tiny groups of depthwise convolutions, matrix products are slower than a loop.
    """
    groups, _, columns = first.shape
    if groups >= _MANY and columns <= _TINY and runs_compiled(first):
        moments = torch.zeros(groups, columns, columns, dtype=torch.float64)
        compiled().grouped_moments(*arrays(first.contiguous(), second.contiguous(), moments))
        return moments
    same = first is second
    return (second_moments(first) if same else first.mT @ second).double()


def second_moments(rows: Tensor) -> Tensor:
    """Return X^T X of rows (groups, m, columns): (groups, columns, columns), exactly symmetric.

    Only the lower triangle is computed, in strips, which saves a third or more of the time of wide
    layers.
    """
    groups, _, columns = rows.shape
    if groups > 1 or columns <= _STRIP:
        return rows.mT @ rows
    moments = rows.new_empty(groups, columns, columns)
    for a in range(0, columns, _STRIP):
        b = min(a + _STRIP, columns)
        moments[:, a:b, :b] = rows[:, :, a:b].mT @ rows[:, :, :b]
        moments[:, :a, a:b] = moments[:, a:b, :a].mT
    return moments


WITHOUT_FLOAT64 = ("mps",)


def check_float64(device: torch.device, where: str) -> None:
    """Check that a device supports float64, before a kernel fails without a reason.

    Raises:
        ModelError: it does not; names ``where`` and the device.
    """
    if device.type in WITHOUT_FLOAT64:
        raise ModelError(
            f"{where}: sums over calibration rows need float64, which the device "
            f"{str(device)!r} does not support. Move the network to the CPU (model.cpu()) or to "
            "CUDA, or use the method 'nearest'."
        )
