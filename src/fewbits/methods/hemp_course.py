"""HEMP at work: when what is computed, and how weights move. The settings are in ``hemp``."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..engine.layer import Quantized
from ..ops.codebook import lloyd_max
from ..ops.soft_entropy import (
    entropy_gradient,
    joint_histogram,
    soft_brackets,
)
from ..schedule import value_at
from .alphabets import Alphabet, alphabet_of, fit_codebook, fit_grid
from .hemp_pools import Line, Pool, allowed_order, law_of, own_lengths
from .priced_loss import priced_loss
from .rounding import Rounding
from .steering import Steering
from .trained import TunedWeight

if TYPE_CHECKING:
    from .hemp import HEMP

__all__ = ["HempCourse"]

_FOLLOW = 0.1  # of the way to the best step, at every refresh of the soft share


class HempCourse:
    """The state of one training with HEMP; see :class:`fewbits.methods.trained.Course`."""

    def __init__(self, method: HEMP, weights: Sequence[TunedWeight]) -> None:
        self.method = method
        self._progress, self._count, self._bits = 0.0, 0, 0.0
        self._straight = method.forward == "quantized"
        self._steering = _steering(method)
        self._lines = {weight.name: self._line(weight) for weight in weights}
        self._pools = self._pooled()
        self.advance(0.0)
        self._refresh()

    def _line(self, weight: TunedWeight) -> Line:
        alphabet = self._fitted(weight) if weight.start is None else alphabet_of(weight.start)
        trained = self._straight and self.method.steps == "trained"
        rounding = Rounding(weight, alphabet, trained=trained)
        units = alphabet.units(weight.matrix())
        zeros = torch.zeros_like(units)
        return Line(weight, rounding, alphabet.cell, zeros, zeros, units)

    def _fitted(self, weight: TunedWeight) -> Alphabet:
        """Return the levels of a weight that starts from floats; fewer for fewer values."""
        if weight.levels is not None:
            return fit_grid(weight.matrix(), weight.levels)
        if self.method.spacing == "even":
            return fit_grid(weight.matrix(), self.method.levels, self.method.width)
        return fit_codebook(weight.matrix(), self.method.levels)

    def _pooled(self) -> list[Pool]:
        """Return who shares a histogram, each with the order that its number of tuples allows."""
        lines = list(self._lines.values())
        weights = [line for line in lines if line.weight.levels is None]
        vectors = [line for line in lines if line.weight.levels is not None]
        parted = [weights] if self.method.pool == "network" else [[line] for line in weights]
        pools = [Pool(group, allowed_order(group, self.method.order)) for group in parted if group]
        least = min((pool.order for pool in pools), default=self.method.order)
        if least < self.method.order:
            warnings.warn(
                f"order {self.method.order} needs ten tuples for each cell of the histogram; with "
                f"these levels and weights it is {least}. Use fewer levels, or pool='network'.",
                stacklevel=5,
            )
        return [*pools, *([Pool(vectors, 1)] if vectors else [])]

    @property
    def _soft(self) -> bool:
        return self._straight and self._progress < self.method.soft

    # -- what Course asks for

    def penalty(self) -> Tensor:
        """Return ``slope`` times the bits of the indices; zero where the crossing rule acts."""
        lines = list(self._lines.values())
        slope = value_at(self.method.slope or 0.0, self._progress)
        if not slope:
            return torch.zeros((), device=lines[0].weight.parameter.device)
        slants = [
            line.weight.view.tensor(line.alphabet.gradient(line.slant), line.weight.shape)
            for line in lines
        ]
        return priced_loss(slope, self._bits, slants, [line.weight.parameter for line in lines])

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
            for line in self._lines.values() if self._soft else ():
                line.rounding.follow(line.units(), _FOLLOW)
            self._refresh()
        pull = value_at(self.method.pull, self._progress)
        rate = self._rate()
        for line in self._lines.values():
            self._move(line, pull, rate)
        self._count += 1

    def advance(self, progress: float) -> None:
        """Follow the schedules; after its soft share the forward pass sees levels."""
        self._progress = progress
        for line in self._lines.values():
            line.rounding.active = not self._soft

    def parametrization(self, weight: TunedWeight) -> nn.Module | None:
        """Return the rounding with gradients passed through, in the quantized forward pass."""
        return self._lines[weight.name].rounding if self._straight else None

    def parameters(self) -> Iterable[nn.Parameter]:
        """Return the logarithms of the steps, relative to the first ones."""
        return [p for line in self._lines.values() for p in line.rounding.parameters()]

    def cell(self, weight: TunedWeight) -> float:
        """Return the mean distance of neighbouring levels, over the rows."""
        line = self._lines[weight.name]
        return line.cell * float(line.alphabet.scale.mean())

    @torch.no_grad()
    def quantized(self, weight: TunedWeight) -> Quantized:
        """Return the weight on its levels."""
        line = self._lines[weight.name]
        alphabet = line.alphabet
        position = line.rounding.positions(line.units())
        zeros = float((position == alphabet.zero).float().mean())
        return alphabet.quantized(position, {"levels": float(len(alphabet.levels)), "zeros": zeros})

    @torch.no_grad()
    def measures(self) -> Mapping[str, float]:
        """Return bits per weight, mean squared distance in cells, and share of zeros."""
        total = distance = zeros = 0.0
        for line in self._lines.values():
            total += line.target.numel()
            distance += float(((line.units() - line.target) / line.cell).square().sum())
            zeros += float((line.target == line.alphabet.levels[line.alphabet.zero]).sum())
        parts = {"bits_per_weight": self._bits, "distance": distance, "zeros": zeros}
        return {name: value / max(1.0, total) for name, value in parts.items()}

    def state_dict(self) -> dict[str, Any]:
        """Return levels, laws, forces and counters."""
        kept = ("cell", "slant", "most", "target")
        lines = {
            name: {key: getattr(line, key) for key in kept} | {"rounding": line.rounding.state()}
            for name, line in self._lines.items()
        }
        counters = {"progress": self._progress, "count": self._count, "bits": self._bits}
        steering = None if self._steering is None else self._steering.state()
        return {"lines": lines, "steering": steering, **counters}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where :meth:`state_dict` was taken."""
        self._progress, self._count = state["progress"], state["count"]
        self._bits = state["bits"]
        if self._steering is not None:
            self._steering.take_state(state["steering"])
        self.advance(self._progress)
        for name, line in self._lines.items():
            kept = state["lines"][name]
            line.cell = kept["cell"]
            for key in ("slant", "most", "target"):
                setattr(line, key, kept[key].to(line.target))
            line.rounding.take_state(kept["rounding"])

    # -- how

    @torch.no_grad()
    def _refresh(self) -> None:
        """Count the soft indices anew: the bits, where they fall, and every weight's level."""
        self._bits = 0.0
        rate = self._rate()
        for pool in self._pools:
            lines = pool.lines
            units = [line.units() for line in lines]
            groups = [
                soft_brackets(values, line.alphabet.levels, line.alphabet.zero)
                for values, line in zip(units, lines, strict=True)
            ]
            histogram = joint_histogram(groups, pool.order)
            count = sum(values.numel() for values in units)
            self._bits += float(histogram.entropy()) * count
            gradients = entropy_gradient(groups, histogram.smoothed())
            for line, group, gradient in zip(lines, groups, gradients, strict=True):
                line.slant = (gradient * count).reshape(line.target.shape)
                line.most = (group.width / (2 * self.method.refresh)).reshape(line.target.shape)
                if self.method.slope is not None:  # bits never pay for leaving zero
                    sign = line.slant * (line.units() - line.alphabet.levels[line.alphabet.zero])
                    line.slant = line.slant.where(sign > 0, 0.0)
            self._settle(pool, units, rate if self.method.assign == "rate" else 0.0)
        if self._steering is not None:
            self._steering.look(self._coded_bits(), self._progress)

    def _rate(self) -> float:
        """Return the price of a bit now."""
        if self._steering is not None:
            return self._steering.price
        return value_at(self.method.rate_weight or 0.0, self._progress)

    def _coded_bits(self) -> float:
        """Return the entropy of the levels that weights are on, vectors aside, in bits each."""
        bits = total = 0.0
        for pool in self._pools:
            if pool.lines[0].weight.levels is None:
                count = sum(line.target.numel() for line in pool.lines)
                bits += count * float(law_of(pool, [line.target for line in pool.lines]).entropy())
                total += count
        return bits / max(1.0, total)

    def _settle(self, pool: Pool, units: list[Tensor], rate: float) -> None:
        """Choose the level of each weight; at a rate by the law of the levels chosen before."""
        pairs = list(zip(pool.lines, units, strict=True))
        for _ in range(2 if rate else 0):
            law = law_of(pool, [line.nearest(values) for line, values in pairs])
            for line in pool.lines:
                line.rounding.price(own_lengths(law, line.alphabet), rate * line.cell**2)
        for line, values in pairs:
            line.target = line.nearest(values)

    def _move(self, line: Line, pull: float, rate: float) -> None:
        alphabet, matrix = line.alphabet, line.weight.matrix()
        units = alphabet.units(matrix)
        change = torch.zeros_like(units)
        if self.method.slope is None and self.method.bits is None:
            force = line.slant * (pull * rate * line.cell**2 / 2)
            change -= torch.maximum(torch.minimum(force, line.most), -line.most)
        if not self._straight:
            change += (line.target - units) * pull
        moved = alphabet.moved(change)
        if line.calm is not None:
            moved *= line.calm
            line.calm = None
        slack = line.cell / 2 if self._straight else 0.0
        units = alphabet.units(matrix + moved)
        inside = units.clamp(alphabet.levels[0] - slack, alphabet.levels[-1] + slack)
        line.weight.write(matrix + moved + alphabet.moved(inside - units))

    def _refit(self) -> None:
        sharing: dict[tuple[float, ...], list[Line]] = {}
        for line in self._lines.values():
            if not line.alphabet.even:
                sharing.setdefault(tuple(line.alphabet.levels.tolist()), []).append(line)
        for lines in sharing.values():  # one codebook stays one
            before = lines[0].alphabet.levels
            units = torch.cat([line.units().reshape(-1) for line in lines])
            levels = lloyd_max(units, len(before), before, iterations=10).to(before)
            for line in lines:
                line.rounding.alphabet = line.alphabet.with_levels(levels)


def _steering(method: HEMP) -> Steering | None:
    if method.bits is None:
        return None
    return Steering(method.bits, method.arrival, value_at(method.rate_weight or 0.0, 0.0))
