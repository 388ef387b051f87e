"""Rate-distortion optimized quantization: path following that pays for bits at one slope.

Every level is chosen by distortion + slope * bits: distortion is squared change of the network's
output, bits are those of the coder's own model. One slope serves all layers, since all distortions
are in one unit; the step belongs to the slope and is searched. Nearest published relatives: CERWU
(Conzelmann and Bamler, "Reducing storage of pretrained neural networks by rate-constrained
quantization and entropy coding", arXiv 2505.18758) and OBS (Hassibi and Stork 1993).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..coding import alternatives
from ..engine.layer import LayerMatrix, QuantizedMatrix
from ..engine.statistics import Statistics
from ..errors import CalibrationError
from ..ops.grid import all_finite
from ..ops.order import descending, permute_columns
from ..ops.path_following import descend_gram, follow_gram
from ..ops.rate_distortion import PricedLevels, law_bits, law_total
from ..ops.second_order import backward_cholesky
from .base import METHODS
from .gridded import check_number, check_one_of, check_switch, checked_statistics, checked_weight
from .inputs import mean_error

__all__ = ["RDOQ"]

_TOP = 31  # levels to either side of zero: the widest alphabet the coder models as one
_DAMPING = 0.01  # of the mean input energy, in the target
_GRADIENTS = 0.7  # of the metric; the rest is the inputs'
_RIDGE = 0.3  # of the gradients' mean energy
_FLOOR = 0.01  # of the mean row sensitivity
_GREEDY = 0.5  # of the slope, while later columns still repay
_THIRDS = 3  # steps are tried a third of an octave apart
_TABLES = 3  # times the coder's model is asked
_LARGEST_TABLE = 1 << 27  # bits of alternatives that are kept


@METHODS.register("rdoq")
@dataclass(frozen=True, kw_only=True)
class RDOQ:
    """Rate-distortion optimized quantization.

    Attributes:
        slope: squared change of the output (centred logits, one sample) that a bit is worth; the
            larger, the smaller the file. A budget search sets it.
        ratio: slope over squared step in units of distortion, where the search of the step begins.
        rate: "adaptive" (the laws of the coder's context model), "static" (one law for the layer),
            or "none" (the step follows the slope, levels are chosen by distortion alone).
        bias_correction: shift the bias by the mean output error over the calibration rows.
    """

    name: ClassVar[str] = "rdoq"
    summary: ClassVar[str] = "distortion and coded bits at one slope; smallest files"
    paper: ClassVar[str] = "after Conzelmann and Bamler 2025, with gradients' metric; see docs"
    needs: ClassVar[str] = "both"
    gradients: ClassVar[str] = "rows"
    folds: ClassVar[bool] = True  # batch norms first: one step for a layer then suits its rows

    slope: float = 2e-4
    ratio: float = 0.25
    rate: str = "adaptive"
    bias_correction: bool = True

    def __post_init__(self) -> None:
        check_number("slope", self.slope, 0)
        check_number("ratio", self.ratio, 0)
        check_one_of("rate", self.rate, ("adaptive", "static", "none"))
        check_switch("bias_correction", self.bias_correction)

    def encode(self, layer: LayerMatrix) -> QuantizedMatrix:
        """Quantize one weight.

        Cost for n neurons of N columns: a few factorisations, ``N^3 / 3`` flops each, and about 25
        sweeps of ``n N^2``; the loop over columns is sequential, 0.1 ms each.
        """
        weight = checked_weight(layer)
        statistics = checked_statistics(layer, self.name)
        if not bool(weight.any()):
            return _all_zero(weight)
        problem = _Problem.of(layer, weight, statistics)
        step = problem.search(self.slope, self.ratio, self.rate != "none")
        step = step.bfloat16().to(step)  # two bytes of it are zero in the file
        levels = problem.quantize(step, self.slope, self.rate)
        if not all_finite(levels):
            raise CalibrationError(
                f"layer {layer.name!r}: its inputs are too large or too small for float32 "
                "arithmetic. Scale the calibration data, or keep this layer as it is."
            )
        size = step.reshape(1).float()
        quantized = levels.float() * size
        shift = mean_error(statistics, weight, quantized) if self.bias_correction else None
        info = {
            "levels": float(2 * levels.abs().max() + 1),
            "zeros": float((levels == 0).double().mean()),
            "distortion": float(problem.distortion(levels[None], step.reshape(1))),
        }
        return QuantizedMatrix(levels.to(torch.int32), size, bias_shift=shift, info=info)


def _all_zero(weight: Tensor) -> QuantizedMatrix:
    return QuantizedMatrix(
        torch.zeros_like(weight, dtype=torch.int32),
        weight.new_ones(1),
        info={"levels": 1.0, "zeros": 1.0},
    )


@dataclass(frozen=True, eq=False)
class _Problem:
    """A layer as a quadratic: ``sum over o of rows_o (target - q)_o metric (target - q)_o'``.

    Attributes:
        target: (groups, neurons, columns): the weight that answers best to the quantized inputs.
        metric: (groups, columns, columns).
        rows: (groups, neurons).
        order: (groups, columns): columns by falling energy.
        factor: R, with R R' the metric in this order.
    """

    target: Tensor
    metric: Tensor
    rows: Tensor
    order: Tensor
    factor: Tensor

    @classmethod
    def of(cls, layer: LayerMatrix, weight: Tensor, statistics: Statistics) -> _Problem:
        """Build it from the statistics of the inputs and the sensitivity of the output."""
        second, cross = _centred(statistics, weight)
        columns = second.shape[1]
        mean = second.diagonal(dim1=1, dim2=2).mean(1)
        damping = _DAMPING * torch.where(mean > 0, mean, 1)
        eye = torch.eye(columns, dtype=torch.float64, device=weight.device)
        damped = second + damping[:, None, None] * eye
        wide = weight.double()
        pull = cross @ wide.mT + damping[:, None, None] * wide.mT
        target = torch.linalg.solve(damped, pull).mT
        metric, rows = damped, wide.new_ones(wide.shape[:2])
        if layer.sensitivity is not None:
            felt = layer.sensitivity.columns.to(damped)
            ridge = _RIDGE * felt.diagonal(dim1=1, dim2=2).mean(1)[:, None, None] * eye
            metric = _GRADIENTS * (felt + ridge) + (1 - _GRADIENTS) * damped
            rows = layer.sensitivity.rows.to(damped)
            rows = rows.clamp_min(_FLOOR * float(rows.mean()) + torch.finfo(rows.dtype).tiny)
        order = descending(metric.diagonal(dim1=1, dim2=2))
        permuted = permute_columns(permute_columns(metric, order).mT, order)
        factor = backward_cholesky(permuted, metric.new_zeros(len(metric))).upper
        return cls(target, metric, rows, order, factor)

    def search(self, slope: float, ratio: float, priced: bool) -> Tensor:
        """Return the step () with the least distortion + slope * bits, of a geometric series."""
        volume = self.factor.diagonal(dim1=1, dim2=2).log().mul(2).mean()
        base = (slope / (ratio * (self.rows.log().mean() + volume).exp())).sqrt()
        base = torch.minimum(base, self.target.abs().max())  # at least one level is not zero
        known: dict[int, float] = {}
        coming = [-2, -1, 0, 1, 2]
        while coming:
            steps = base * 2.0 ** (torch.tensor(coming).to(base) / _THIRDS)
            known |= dict(zip(coming, self._trial(steps, slope, priced), strict=True))
            best = min(known, key=lambda k: known[k])
            edges = [best + side for side in (-2, -1, 1, 2)]
            coming = [k for k in edges if k not in known and abs(k) <= 4 * _THIRDS]
            if best - 1 in known and best + 1 in known:
                break
        found: Tensor = base * 2.0 ** (best / _THIRDS)
        return found

    def _trial(self, steps: Tensor, slope: float, priced: bool) -> list[float]:
        """Return the cost at each of ``steps`` (trials,), all walked at once."""
        bits = slope if priced else 0.0
        levels = self._greedy(steps, bits, rounds=2)
        levels = self._descend(levels, steps, bits, law_bits(levels.flatten(1), _TOP))
        cost = self.distortion(levels, steps) + slope * law_total(levels.flatten(1), _TOP)
        return [float(value) for value in cost]

    def quantize(self, step: Tensor, slope: float, rate: str) -> Tensor:
        """Return the levels (groups, neurons, columns)."""
        steps, price = step.reshape(1), slope if rate != "none" else 0.0
        levels = self._greedy(steps, price, rounds=3)
        for _ in range(2):
            bits = law_bits(levels.flatten(1), _TOP)
            for _ in range(2):
                levels = self._descend(levels, steps, price, bits)
        if rate == "adaptive":
            levels = self._with_tables(levels, steps, price)
        return levels[0]

    def _with_tables(self, levels: Tensor, steps: Tensor, slope: float) -> Tensor:
        """Descend with the laws of the coder's model, asked again after each change."""
        settings, mean = None, None
        for _ in range(_TABLES):
            flat = levels[0].flatten(0, 1).to(torch.int32).cpu().numpy()
            if flat.size * (2 * _TOP + 1) > _LARGEST_TABLE:
                return levels
            found = alternatives(flat, settings)
            if found is None:
                return levels
            settings = found.settings
            bits = _widened(torch.from_numpy(found.bits), found.lowest)
            mean = bits if mean is None else (mean + bits) / 2
            table = mean.reshape(*levels.shape[1:], -1).to(levels.device)
            for _ in range(2):
                levels = self._descend(levels, steps, slope, table)
        return levels

    def _greedy(self, steps: Tensor, slope: float, rounds: int) -> Tensor:
        """Return (trials, groups, neurons, columns) levels of path following."""
        units = self._units(steps)
        trials, groups = units.shape[:2]
        levels = units.round().clamp(-_TOP, _TOP)
        factor = self._tiled(self.factor, trials).mT
        energy = factor.diagonal(dim1=1, dim2=2).square()
        order = self._tiled(self.order, trials)
        start = permute_columns(units.flatten(0, 1), order)
        for _ in range(rounds):
            bits = law_bits(levels.flatten(1), _TOP).repeat_interleave(groups, 0)
            chooser = PricedLevels(_TOP, energy, _GREEDY * self._price(steps, slope), bits)
            found = follow_gram(start, factor, factor, chooser.project_)
            levels = permute_columns(found, order.argsort(1)).reshape(units.shape)
        return levels

    def _descend(self, levels: Tensor, steps: Tensor, slope: float, bits: Tensor) -> Tensor:
        """Return ``levels`` after a sweep; ``bits`` are (trials, levels), or one trial's table."""
        units = self._units(steps)
        trials, groups = units.shape[:2]
        metric, order = self._tiled(self.metric, trials), self._tiled(self.order, trials)
        energy = metric.diagonal(dim1=1, dim2=2).gather(1, order)
        if bits.dim() == 2:
            bits = bits.repeat_interleave(groups, 0)
        else:
            index = order[:, None, :, None].expand(-1, bits.shape[1], -1, bits.shape[3])
            bits = bits.gather(2, index)
        chooser = PricedLevels(_TOP, energy, self._price(steps, slope), bits)
        found = descend_gram(
            units.flatten(0, 1), levels.flatten(0, 1), metric, chooser.project_, order=order
        )
        return found.reshape(units.shape)

    def distortion(self, levels: Tensor, steps: Tensor) -> Tensor:
        """Return (trials,) the distortion of ``levels`` (trials, groups, neurons, columns)."""
        error = self.target - levels * steps.reshape(-1, 1, 1, 1).to(levels)
        return (((error @ self.metric) * error).sum(3) * self.rows).sum((1, 2))

    def _units(self, steps: Tensor) -> Tensor:
        return self.target / steps.reshape(-1, 1, 1, 1).to(self.target)

    def _price(self, steps: Tensor, slope: float) -> Tensor:
        price = slope / (self.rows * steps.reshape(-1, 1, 1).to(self.rows).square())
        return price.flatten(0, 1)

    @staticmethod
    def _tiled(part: Tensor, trials: int) -> Tensor:
        return part.repeat(trials, *[1] * (part.dim() - 1))


def _centred(statistics: Statistics, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return (H, G) of one row about the mean, float64: what a bias repays is taken out."""
    second, cross = statistics.moments()
    ours = statistics.reference_mean.double()[..., None]
    theirs = statistics.quantized_mean.double()[..., None]
    rows = max(1, statistics.rows)
    centred = second.double() / rows - theirs @ theirs.mT
    return centred.to(weight.device), (cross.double() / rows - theirs @ ours.mT).to(weight.device)


def _widened(bits: Tensor, lowest: int) -> Tensor:
    """Return (rows, columns, 2 top + 1) from those of the symbols in use: 4 bits more a level."""
    size = bits.shape[2]
    ramp = torch.arange(-_TOP, _TOP + 1) - lowest
    inside = ramp.clamp(0, size - 1)
    away = (ramp - inside).abs().to(bits)
    return bits[..., inside] + 4 * away
