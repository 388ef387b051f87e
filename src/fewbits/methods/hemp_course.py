"""HEMP at work: when what is computed, and how weights move. The settings are in ``hemp``."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..engine.layer import Quantized
from ..ops.codebook import even_step, lloyd_max
from ..ops.soft_entropy import (
    Brackets,
    Histogram,
    entropy_gradient,
    joint_histogram,
    largest_order,
    soft_brackets,
)
from ..schedule import value_at
from .alphabets import Alphabet, alphabet_of
from .rounding import Rounding
from .trained import TunedWeight

if TYPE_CHECKING:
    from .hemp import HEMP

__all__ = ["HempCourse"]


@dataclass(eq=False)
class _Line:
    """One weight with its levels, and what the last refresh found.

    ``force``: (rows, columns), by how many units the entropy term moves each weight in a step, at
    a pace of 1; ``target``: the units of their levels.
    """

    weight: TunedWeight
    rounding: Rounding
    cell: float
    force: Tensor
    target: Tensor
    calm: Tensor | None = None

    @property
    def alphabet(self) -> Alphabet:
        return self.rounding.alphabet

    def units(self) -> Tensor:
        return self.alphabet.units(self.weight.matrix())


class HempCourse:
    """The state of one training with HEMP; see :class:`fewbits.methods.trained.Course`."""

    def __init__(self, method: HEMP, weights: Sequence[TunedWeight]) -> None:
        self.method = method
        self._progress, self._count = 0.0, 0
        self._lines = {weight.name: self._line(weight) for weight in weights}
        self._entropy = 0.0
        self.order = self._guarded_order()
        self._refresh()

    def _line(self, weight: TunedWeight) -> _Line:
        if weight.start is None:
            alphabet = _fitted(weight.matrix(), self.method)
        else:
            alphabet = alphabet_of(weight.start)
        rounding = Rounding(weight, alphabet)
        units = alphabet.units(weight.matrix())
        return _Line(weight, rounding, alphabet.cell, torch.zeros_like(units), units)

    def _guarded_order(self) -> int:
        """Return the order that the numbers of tuples allow, and say so where it is less."""
        most = self.method.order
        for groups in self._pools():
            levels = max(len(line.alphabet.levels) for line in groups)
            weights = sum(line.target.numel() for line in groups)
            most = min(most, largest_order(levels, weights))
        if most < self.method.order:
            warnings.warn(
                f"order {self.method.order} needs ten tuples for each cell of the histogram; with "
                f"these levels and weights order {most} is used. Lower levels=, or pool='network'.",
                stacklevel=5,
            )
        return most

    def _pools(self) -> list[list[_Line]]:
        lines = list(self._lines.values())
        return [lines] if self.method.pool == "network" else [[line] for line in lines]

    # -- what Course asks for

    def penalty(self) -> Tensor:
        """Return zero: the entropy acts on the weights themselves, in :meth:`step`."""
        line = next(iter(self._lines.values()))
        return torch.zeros((), device=line.weight.parameter.device)

    @torch.no_grad()
    def before_step(self) -> None:
        """Take from the gradients how insensitive each weight is: 1 - |g| / max |g|."""
        for line in self._lines.values():
            gradient = line.weight.gradient() if self.method.insensitive else None
            if gradient is not None:
                size = gradient.abs()
                line.calm = 1 - size / size.max().clamp_min(torch.finfo(size.dtype).tiny)

    @torch.no_grad()
    def step(self) -> None:
        """Move every weight: to its level, and where the entropy falls."""
        if self.method.refit and self._count and self._count % self.method.refit == 0:
            self._refit()
        if self._count % self.method.refresh == 0:
            self._refresh()
        pull = value_at(self.method.pull, self._progress)
        for line in self._lines.values():
            self._move(line, pull)
        self._count += 1

    def advance(self, progress: float) -> None:
        """Follow the schedules of ``rate_weight`` and ``pull``."""
        self._progress = progress

    def parametrization(self, weight: TunedWeight) -> nn.Module | None:
        """Return the rounding with gradients passed through, in the quantized forward pass."""
        return self._lines[weight.name].rounding if self.method.forward == "quantized" else None

    def parameters(self) -> Iterable[nn.Parameter]:
        """Return nothing: levels follow the weights, not a gradient."""
        return ()

    @torch.no_grad()
    def quantized(self, weight: TunedWeight) -> Quantized:
        """Return the weight on its levels."""
        line = self._lines[weight.name]
        position = line.rounding.positions(line.units())
        zeros = float((position == line.alphabet.zero).float().mean())
        info = {"levels": float(len(line.alphabet.levels)), "zeros": zeros}
        return line.alphabet.quantized(position, info)

    def measures(self) -> Mapping[str, float]:
        """Return bits per weight, squared distance in cells, and share of zeros, as refreshed."""
        total = distance = zeros = 0.0
        for line in self._lines.values():
            total += line.target.numel()
            distance += float(((line.units() - line.target) / line.cell).square().sum())
            zeros += float((line.target == line.alphabet.levels[line.alphabet.zero]).sum())
        return {
            "bits_per_weight": self._entropy,
            "distance": distance / max(1.0, total),
            "zeros": zeros / max(1.0, total),
        }

    def state_dict(self) -> dict[str, Any]:
        """Return levels, laws, forces and counters."""
        lines = {
            name: {
                "levels": line.alphabet.levels,
                "cell": line.cell,
                "force": line.force,
                "target": line.target,
                "rounding": line.rounding.law(),
            }
            for name, line in self._lines.items()
        }
        return {
            "lines": lines,
            "progress": self._progress,
            "count": self._count,
            "entropy": self._entropy,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where :meth:`state_dict` was taken."""
        self._progress, self._count = state["progress"], state["count"]
        self._entropy = state["entropy"]
        for name, line in self._lines.items():
            kept = state["lines"][name]
            line.rounding.alphabet = line.alphabet.with_levels(kept["levels"].to(line.target))
            line.cell = kept["cell"]
            line.force, line.target = kept["force"].to(line.force), kept["target"].to(line.target)
            line.rounding.take_law(kept["rounding"])

    # -- how

    def _refresh(self) -> None:
        """Count the soft indices anew: the entropy, where it falls, and every weight's level."""
        bits = weights = 0.0
        rate = value_at(self.method.rate_weight, self._progress)
        for lines in self._pools():
            units = [line.units() for line in lines]
            groups = [
                soft_brackets(values, line.alphabet.levels, line.alphabet.zero)
                for values, line in zip(units, lines, strict=True)
            ]
            histogram = joint_histogram(groups, self.order)
            count = sum(values.numel() for values in units)
            bits += float(histogram.entropy()) * count
            weights += count
            gradients = entropy_gradient(groups, histogram)
            for line, group, gradient in zip(lines, groups, gradients, strict=True):
                self._push(line, group, gradient * count, rate)
            self._settle(lines, units, histogram, rate)
        self._entropy = bits / max(1.0, weights)

    def _push(self, line: _Line, group: Brackets, gradient: Tensor, rate: float) -> None:
        """Set the force by the crossing rule, at most half a cell until the next refresh."""
        force = gradient * (rate * line.cell**2 / 2)
        most = group.width / (2 * self.method.refresh)
        line.force = torch.maximum(torch.minimum(force, most), -most).reshape(line.target.shape)

    def _settle(
        self, lines: list[_Line], units: list[Tensor], histogram: Histogram, rate: float
    ) -> None:
        """Choose the level of each weight; at a rate by the law of the levels chosen before."""
        for line, values in zip(lines, units, strict=True):
            if self.method.assign == "rate":
                line.rounding.price(_own(histogram, line.alphabet), rate * line.cell**2)
            line.target = line.alphabet.levels[line.rounding.positions(values)]
        if self.method.assign == "rate" and rate:
            law = _hard_law(lines, self.order)
            for line, values in zip(lines, units, strict=True):
                line.rounding.price(_own(law, line.alphabet), rate * line.cell**2)
                line.target = line.alphabet.levels[line.rounding.positions(values)]

    def _move(self, line: _Line, pull: float) -> None:
        matrix = line.weight.matrix()
        units = line.alphabet.units(matrix)
        change = line.force * -pull
        if self.method.forward == "continuous":
            change += (line.target - units) * pull
        moved = line.alphabet.moved(change)
        if line.calm is not None:
            moved *= line.calm
            line.calm = None
        levels = line.alphabet.levels
        slack = 0.0 if self.method.forward == "continuous" else line.cell / 2
        units = line.alphabet.units(matrix + moved)
        inside = units.clamp(levels[0] - slack, levels[-1] + slack)
        matrix = matrix + moved + line.alphabet.moved(inside - units)
        line.weight.write(matrix)

    def _refit(self) -> None:
        for line in self._lines.values():
            if not line.alphabet.even:
                levels = lloyd_max(
                    line.units(), len(line.alphabet.levels), line.alphabet.levels, iterations=10
                )
                line.rounding.alphabet = line.alphabet.with_levels(levels.to(line.target))
                line.rounding.forget()


def _fitted(matrix: Tensor, method: HEMP) -> Alphabet:
    """Return the levels of a weight that starts from floats; fewer where it has fewer values."""
    groups, rows, columns = matrix.shape
    shape, zero = (groups, rows, columns), matrix.new_zeros(1)
    if method.spacing == "lloyd":
        levels = lloyd_max(matrix, method.levels).to(matrix)
        return Alphabet(levels, matrix.new_ones(1), shape, False, zero)
    top = (method.levels - 1) // 2
    step = matrix.new_full((1,), even_step(matrix, method.levels))
    levels = torch.arange(-top, top + 1, device=matrix.device).to(matrix)
    return Alphabet(levels, step, shape, True, zero)


def _own(histogram: Histogram, alphabet: Alphabet) -> Tensor:
    """Return the bits of tuples of one alphabet's levels, out of a histogram over all."""
    first = histogram.shift - alphabet.zero
    part = slice(first, first + len(alphabet.levels))
    return histogram.lengths()[(part,) * histogram.order]


def _hard_law(lines: Sequence[_Line], order: int) -> Histogram:
    """Return the histogram of the levels chosen, with half a tuple more in every cell."""
    groups = [
        soft_brackets(line.target, line.alphabet.levels, line.alphabet.zero) for line in lines
    ]
    law = joint_histogram(groups, order)
    counts = law.chances * law.tuples + 0.5
    return Histogram(counts / counts.sum(), law.tuples, law.shift)
