"""Input statistics of a layer, prepared once for any number of path-following sweeps."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..engine.layers.layer import blocks_of
from ..engine.layers.statistics import Statistics
from ..ops.levels.grid import Project, row_radius
from ..ops.rounding.path_following import (
    descending,
    follow_gram,
    follow_samples,
    gram_error,
    neuron_parts,
)

__all__ = ["PreparedInputs", "Units", "expand_step", "mean_error", "mean_error_of_levels"]


_ENDLESS = 1e30  # step of a pruned weight, in units


def expand_step(step: Tensor, weight: Tensor) -> Tensor:
    """Reshape a step to match ``weight`` (groups, neurons, columns).

    A step per layer or neuron, (1,) or (groups * neurons,), becomes (groups, neurons, 1); steps of
    several equal blocks of each neuron's columns become (groups, neurons, columns).
    """
    groups, neurons, columns = weight.shape
    blocks = blocks_of(step, weight.shape)
    if blocks == 1:
        return step.expand(groups * neurons).reshape(groups, neurons, 1)
    return step.reshape(groups, neurons, blocks).repeat_interleave(columns // blocks, 2)


@dataclass(frozen=True, eq=False)
class Units:
    """The units in which errors of a weight are fed back; all columns of a neuron share one.

    They are steps, where a neuron has one. Where blocks of its columns have steps of their own, a
    unit is a power of two near the largest weight of the neuron: so units, and levels times steps,
    are exact. A pruned weight has a step that is far larger than any value, so it stays zero.

    Attributes:
        size: (groups, neurons, 1), one unit.
        steps: (groups, neurons, columns) in units; None: all are 1.
    """

    size: Tensor
    steps: Tensor | None = None

    @classmethod
    def of(cls, step: Tensor, weight: Tensor, pruned: Tensor | None = None) -> Units:
        """Choose the units of ``weight`` (groups, neurons, columns) for its steps.

        ``pruned`` is a bool tensor of its shape; the levels must have a zero then.
        """
        units = cls._plain(step, weight)
        if pruned is None:
            return units
        steps = torch.ones_like(weight) if units.steps is None else units.steps
        return cls(units.size, steps.masked_fill(pruned, _ENDLESS))

    @classmethod
    def _plain(cls, step: Tensor, weight: Tensor) -> Units:
        steps = expand_step(step, weight)
        if blocks_of(step, weight.shape) == 1:
            return cls(steps)
        tiny = torch.finfo(torch.float32).tiny
        largest = row_radius(weight)
        exponent = torch.frexp(torch.where(largest > 0, largest, 1)).exponent.clamp(-125, 126)
        size = torch.ldexp(torch.ones_like(steps[..., :1]), exponent[..., None])
        return cls(size, (steps / size).clamp_min(tiny))

    def __getitem__(self, part: slice) -> Units:
        """Return the units of some of the neurons."""
        return Units(self.size[:, part], None if self.steps is None else self.steps[:, part])

    def to(self, like: Tensor) -> Units:
        """Return the units in the dtype of ``like``."""
        return Units(self.size.to(like), None if self.steps is None else self.steps.to(like))

    def levels(self, values: Tensor) -> Tensor:
        """Return the levels of ``values``, which are levels times steps."""
        return values if self.steps is None else values / self.steps


def mean_error(statistics: Statistics, weight: Tensor, quantized: Tensor) -> Tensor:
    """Return the mean of ``XW - X~Q`` over the rows, to add to the bias: (groups * neurons,)."""
    wanted = weight @ statistics.reference_mean[..., None].to(weight)
    actual = quantized @ statistics.quantized_mean[..., None].to(weight)
    return (wanted - actual).flatten().float()


def mean_error_of_levels(
    statistics: Statistics, weight: Tensor, levels: Tensor, step: Tensor
) -> Tensor:
    """Return :func:`mean_error` of ``levels`` (groups, neurons, columns) in units of ``step``."""
    steps = expand_step(step, weight)
    shift = torch.zeros(weight.shape[:2], device=weight.device)
    for part in neuron_parts(weight):
        quantized = levels[:, part].to(weight) * steps[:, part]
        shift[:, part] = mean_error(statistics, weight[:, part], quantized).reshape(len(weight), -1)
    return shift.flatten()


@dataclass(frozen=True, eq=False)
class PreparedInputs:
    """Input statistics in the form that sweeps use.

    Attributes:
        statistics: statistics of the layer's inputs.
        gram: (H, G) in Gram form; None in sample form.
        order: (groups, columns), the order in which columns are visited; None for the natural one.
    """

    statistics: Statistics
    gram: tuple[Tensor, Tensor] | None
    order: Tensor | None

    @classmethod
    def of(cls, statistics: Statistics, order: str) -> PreparedInputs:
        """Choose the form from what was collected, and the order ("descending" or "natural")."""
        gram = None if statistics.samples is not None else statistics.moments()
        if order == "natural":
            return cls(statistics, gram, None)
        if statistics.samples is not None:
            energy = statistics.samples[1].square().sum(1)
        else:
            energy = statistics.moments()[0].diagonal(dim1=1, dim2=2)
        return cls(statistics, gram, descending(energy))

    def sweep(
        self,
        weight: Tensor,
        step: Tensor,
        project_: Project,
        passes: int = 0,
        pruned: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Quantize ``weight`` (groups, neurons, columns) with ``step``, but not what is ``pruned``.

        Returns the levels in grid units, and the squared error ``||X w - X~ q||^2`` per neuron,
        (groups, neurons) float64. In Gram form with different X and X~, ``||X w||^2`` is subtracted
        from it.
        """
        units = Units.of(step, weight, pruned)
        levels = torch.empty_like(weight, memory_format=torch.contiguous_format)
        error = weight.new_zeros(weight.shape[:2], dtype=torch.float64)
        for part in neuron_parts(weight):
            own = units[part]
            chosen, squared = self._sweep_part(weight[:, part], own, project_, passes)
            levels[:, part] = chosen
            error[:, part] = squared * own.size[..., 0].double().square()
        return levels, error

    def _sweep_part(
        self, weight: Tensor, units: Units, project_: Project, passes: int
    ) -> tuple[Tensor, Tensor]:
        """Return the levels, and the squared error in units."""
        values = weight / units.size
        if self.gram is None and self.statistics.samples is not None:
            reference, quantized = self.statistics.samples
            units = units.to(quantized)
            chosen, residual = follow_samples(
                values.to(quantized),
                reference,
                quantized,
                project_,
                order=self.order,
                passes=passes,
                steps=units.steps,
            )
            return units.levels(chosen), residual.square().sum(1, dtype=torch.float64)
        second, cross = self.gram or self.statistics.moments()
        values, units = values.to(second), units.to(second)
        chosen = follow_gram(
            values, second, cross, project_, order=self.order, passes=passes, steps=units.steps
        )
        return units.levels(chosen), gram_error(values, chosen, second, cross)

    def error(self, weight: Tensor, quantized: Tensor) -> Tensor:
        """Return the error of any quantized weight, defined as in :meth:`sweep`."""
        error = weight.new_zeros(weight.shape[:2], dtype=torch.float64)
        for part in neuron_parts(weight):
            error[:, part] = self._error_part(weight[:, part], quantized[:, part])
        return error

    def _error_part(self, weight: Tensor, quantized: Tensor) -> Tensor:
        size = row_radius(weight).clamp_min(torch.finfo(weight.dtype).tiny)[..., None]
        w, q = weight / size, quantized / size  # so that no square leaves float32
        if self.statistics.samples is None:
            second, cross = self.gram or self.statistics.moments()
            squared = gram_error(w.to(second), q.to(second), second, cross)
        else:
            x, y = self.statistics.samples
            gap = x @ w.to(x).mT - y @ q.to(y).mT
            squared = gap.square().sum(1, dtype=torch.float64)
        return squared * size[..., 0].double().square()

    def facts(self, weight: Tensor, error: Tensor) -> dict[str, float]:
        """Return what the error of :meth:`sweep` says of the outputs; nothing if it is unknown.

        "objective": ``||XW - X~Q|| / ||XW||``; "energy": ``||XW||^2``. In Gram form with different
        X and X~, they are only known if the statistics hold the energy.
        """
        known = self.statistics.reference_energy
        mismatched = self.gram is not None and self.gram[0] is not self.gram[1]
        if mismatched and known is None:
            return {}
        energy = (
            self.error(weight, weight.new_zeros(()).expand_as(weight)) if known is None else known
        )
        total = float(energy.sum(dtype=torch.float64))
        squared = max(0.0, float(error.sum()) + (total if mismatched else 0.0))
        return {"objective": (squared / total) ** 0.5 if total > 0 else 0.0, "energy": total}
