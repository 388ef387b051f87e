"""A weight on a low-bit grid, as the forward pass sees it: a parametrization."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ....engine.layers.layer import QuantizedMatrix
from ....errors import ModelError
from ....ops.levels.quantizers import bounds, dorefa_unit, lsq_plus_weight_step, lsq_step, rounded
from ....ops.levels.ranges import fit_rows
from ..base import TunedWeight
from .stages import FLOAT
from .step import LearnedStep, TrainingPart, beside, damping_at

__all__ = ["LowBitWeight"]

_TINY = 1e-6  # scale of weights that are all zero


class LowBitWeight(TrainingPart):
    """Maps a weight to its levels; the gradient passes straight through rounding.

    What the forward pass sees is bit for bit what a file gives: integers times a step.

    Attributes:
        kind: "lsq", "lsq+" (another first step) or "dorefa".
        step: (1,) or (rows,) learned: the step of LSQ; of DoReFa the learned scale of all levels.
        bits: width now; 32 for floats.
        active: while False, the weight is seen as it is.
        gated: whether a training looks at ``gate``; not while all are open.
        gate: (1,) of 0 and 1: 0 lets the forward pass of a training see the float weight.
    """

    def __init__(self, weight: TunedWeight, kind: str, *, per: str, ranges: str, detach_max: bool):
        super().__init__()
        self.kind, self.per_row, self.ranges = kind, per == "channel", ranges
        self.detach_max, self.gated = detach_max, False
        self.active, self.bits, self.scaled = True, FLOAT, True
        self._weight = weight
        rows = weight.view.rows if self.per_row else 1
        self.step = LearnedStep(rows, weight.parameter.device)
        self.gate: Tensor
        self.register_buffer("gate", torch.ones(1, device=weight.parameter.device))

    def forward(self, weight: Tensor) -> Tensor:
        """Return the levels in the shape and dtype of ``weight``."""
        if not self.active or self.bits == FLOAT:
            return beside(weight, self.step.stretch) if self.training else weight
        view = self._weight.view
        with torch.autocast(weight.device.type, enabled=False):
            matrix = view.matrix(weight).float()
            values = self.levels(matrix.reshape(-1, matrix.shape[-1]))
            values = view.tensor(values.reshape(matrix.shape), tuple(weight.shape))
        values = values.to(weight.dtype)
        looks = self.training and self.gated
        return torch.where(self.gate > 0, values, weight) if looks else values

    def levels(self, rows: Tensor) -> Tensor:
        """Return (rows, columns) weights on their levels."""
        index, offset = self._index(rows)
        return (index - offset) * self._step()[:, None]

    def _index(self, rows: Tensor) -> tuple[Tensor, float]:
        """Return indices as floats, with their gradient, and the offset."""
        if self.kind == "dorefa":
            top = (1 << self.bits) - 1
            unit = dorefa_unit(rows, per_row=self.per_row, detach_max=self.detach_max)
            return rounded(unit * top) - (top - 1) // 2, 0.5
        low, high = self._bounds()
        units = rows / self._step()[:, None]
        inside = (units > low) & (units < high)
        index = rounded(torch.where(inside, units, units.detach().clamp(low, high)))
        alive = self._weight.alive()
        return (index if alive is None else index * alive.reshape(index.shape)), 0.0

    def _bounds(self) -> tuple[int, int]:
        levels = self._weight.levels
        if levels is not None:
            return -(levels // 2), levels // 2
        return bounds(self.bits, signed=True)

    def _step(self) -> Tensor:
        """Return the step that multiplies the indices, its gradient damped."""
        if self.kind == "dorefa":
            scale: Tensor = self.step(self._damping(1))
            return scale * (2 / ((1 << self.bits) - 1))
        step: Tensor = self.step(self._damping(self._bounds()[1]))
        return step

    def _damping(self, high: int) -> float:
        shared = self._weight.parameter.numel() // len(self.step.base)
        return damping_at(self.bits, shared, high)

    @torch.no_grad()
    def enter(self, bits: int) -> None:
        """Go on with another width; the step is fitted anew to the float weights."""
        if bits == self.bits:
            return
        self.bits = bits
        if bits != FLOAT:
            self.refit()

    @torch.no_grad()
    def refit(self) -> None:
        """Fit the step to the float weights as they are."""
        matrix = self._weight.matrix()
        rows = matrix.reshape(-1, matrix.shape[-1])
        if self.kind == "dorefa":
            self._fit_scale(rows)
        else:
            self._fit_step(rows, max(1, self._bounds()[1]))

    def _fit_step(self, rows: Tensor, high: int) -> None:
        if self.kind == "lsq+":
            self.step.fit(lsq_plus_weight_step(rows, self.bits, per_row=self.per_row))
        elif self.ranges == "mean":
            self.step.fit(lsq_step(rows, high, per_row=self.per_row))
        else:
            bits = int(math.log2(high + 1)) + 1
            parts = rows if self.per_row else rows.reshape(1, -1)
            self.step.fit(fit_rows(parts, bits, signed=True).to(rows) / high)

    def _fit_scale(self, rows: Tensor) -> None:
        """Set DoReFa's scale: 1 where a normalization follows, else that of least error.

        Zeros have no level, so a row of nothing but zeros is put next to zero.
        """
        self.step.fit(1.0)
        if not self.scaled:
            return
        levels = self.levels(rows)
        parts = (rows, levels) if self.per_row else (rows.reshape(1, -1), levels.reshape(1, -1))
        scale = (parts[0] * parts[1]).sum(1) / parts[1].square().sum(1)
        self.step.fit(scale.clamp_min(_TINY))

    @torch.no_grad()
    def hold(self) -> None:
        """Keep steps near what they were, after an optimizer moved them."""
        self.step.hold()

    @torch.no_grad()
    def quantized(self) -> QuantizedMatrix:
        """Return what a file holds of the weight now."""
        matrix = self._weight.matrix()
        if not bool(torch.isfinite(matrix).all()):
            raise ModelError(f"weight {self._weight.name!r} holds NaN or infinity after training.")
        index, offset = self._index(matrix.reshape(-1, matrix.shape[-1]))
        whole = index.round().int().reshape(matrix.shape)
        return QuantizedMatrix(whole, self._step().detach().clone(), offset)

    def quantized_at(self, bits: int) -> QuantizedMatrix:
        """Return what a file would hold at ``bits``; at another width than now, newly fitted."""
        if bits == self.bits:
            return self.quantized()
        before = self.state()
        try:
            self.enter(bits)
            return self.quantized()
        finally:
            self.take_state(before)

    @torch.no_grad()
    def occupied(self) -> tuple[Tensor, int, float, float]:
        """Return the positions of the levels in use, how many there are, share clipped, step."""
        matrix = self._weight.matrix()
        rows = matrix.reshape(-1, matrix.shape[-1])
        index, _ = self._index(rows)
        step = float(self.step.value.mean())
        if self.kind == "dorefa":
            return index + ((1 << self.bits) - 2) // 2, (1 << self.bits), 0.0, step
        low, high = self._bounds()
        units = rows / self._step()[:, None]
        outside = (units < low - 0.5) | (units > high + 0.5)
        return index - low, high - low + 1, float(outside.float().mean()), step

    def state(self) -> dict[str, Any]:
        """Return what training changed, for :meth:`take_state`."""
        kept = {"step": self.step.state(), "gate": self.gate.clone()}
        return {**kept, "bits": self.bits, "scaled": self.scaled}

    @torch.no_grad()
    def take_state(self, state: dict[str, Any]) -> None:
        """Take what :meth:`state` gave."""
        self.bits, self.scaled = int(state["bits"]), bool(state["scaled"])
        self.step.take_state(state["step"])
        self.gate.copy_(state["gate"])
        self.gated = not bool(self.gate.all())
