"""A parametrization that quantizes a weight to a low-bit grid in the forward pass."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ....engine.layers.layer import QuantizedMatrix
from ....errors import ModelError
from ....ops.levels.quantizers import bounds, dorefa_unit, lsq_plus_weight_step, lsq_step, rounded
from ....ops.levels.ranges import fit_rows
from ....ops.rate_distortion.soft_entropy import joint_histogram, soft_brackets
from ..base import TunedWeight
from ..descent import descents
from ..rate_loss import towards_zero
from .stages import FLOAT
from .step import LearnedStep, TrainingPart, damping_at, with_zero_gradients

__all__ = ["LowBitWeight"]

_TINY = 1e-6  # scale of weights that are all zero


class LowBitWeight(TrainingPart):
    """Quantizes a weight to its levels; the gradient passes straight through rounding.

    The result equals that of a file bit for bit: integers times a step.

    Attributes:
        kind: "lsq", "lsq+" (with another initial step) or "dorefa".
        step: (1,) or (rows,) learned step of LSQ, or learned scale of all levels of DoReFa.
        bits: current width; 32 for float.
        active: while False, the weight passes unchanged.
        gated: whether ``gate`` is used in training; False while all gates are open.
        gate: (1,) 1, or 0 to use the float weight in a forward pass of training.
        scaled: whether DoReFa's scale is learned.
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
        """Quantize ``weight``, in its shape and dtype."""
        if not self.active or self.bits == FLOAT:
            return with_zero_gradients(weight, self.step.stretch) if self.training else weight
        view = self._weight.view
        with torch.autocast(weight.device.type, enabled=False):
            matrix = view.matrix(weight).float()
            values = self.levels(matrix.reshape(-1, matrix.shape[-1]))
            values = view.tensor(values.reshape(matrix.shape), tuple(weight.shape))
        values = values.to(weight.dtype)
        use_gate = self.training and self.gated
        return torch.where(self.gate > 0, values, weight) if use_gate else values

    def levels(self, rows: Tensor) -> Tensor:
        """Return (rows, columns) weights rounded to their levels."""
        index, offset = self._index(rows)
        return (index - offset) * self._step()[:, None]

    def _index(self, rows: Tensor) -> tuple[Tensor, float]:
        """Return the indices as floats with gradients, and the offset."""
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
        """Return the step of the indices, with a damped gradient."""
        if self.kind == "dorefa":
            scale: Tensor = self.step(self._damping(1))
            return scale * (2 / ((1 << self.bits) - 1))
        step: Tensor = self.step(self._damping(self._bounds()[1]))
        return step

    def _damping(self, high: int) -> float:
        shared = self._weight.parameter.numel() // len(self.step.base)
        return damping_at(self.bits, shared, high)

    @torch.no_grad()
    def set_bits(self, bits: int) -> None:
        """Switch to another width and fit the step to the float weights."""
        if bits == self.bits:
            return
        self.bits = bits
        if bits != FLOAT:
            self.refit()

    @torch.no_grad()
    def refit(self) -> None:
        """Fit the step to the current float weights."""
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
        """Set DoReFa's scale: 1 if it is not learned, else that with the least squared error.

        The grid has no zero, so rows of zeros get a tiny scale.
        """
        self.step.fit(1.0)
        if not self.scaled:
            return
        levels = self.levels(rows)
        parts = (rows, levels) if self.per_row else (rows.reshape(1, -1), levels.reshape(1, -1))
        scale = (parts[0] * parts[1]).sum(1) / parts[1].square().sum(1)
        self.step.fit(scale.clamp_min(_TINY))

    @torch.no_grad()
    def constrain(self) -> None:
        """Keep steps close to their last values after the optimizer's step."""
        self.step.constrain()

    @torch.no_grad()
    def quantized(self) -> QuantizedMatrix:
        """Return the weight quantized as it is now."""
        matrix = self._weight.matrix()
        if not bool(torch.isfinite(matrix).all()):
            raise ModelError(f"weight {self._weight.name!r} holds NaN or infinity after training.")
        index, offset = self._index(matrix.reshape(-1, matrix.shape[-1]))
        whole = index.round().int().reshape(matrix.shape)
        return QuantizedMatrix(whole, self._step().detach().clone(), offset)

    @torch.no_grad()
    def bits_of_indices(self) -> tuple[float, Tensor] | None:
        """Return the bits of the soft indices, and their gradient in the shape of the weight.

        The bits are the entropy of the histogram of the tensor, in which each weight counts between
        the two levels around it. The gradient never leads away from zero. None while the weight is
        in float or on a grid without zero.
        """
        if self.bits == FLOAT or self.kind == "dorefa" or not self.active:
            return None
        low, high = self._bounds()
        matrix = self._weight.matrix()
        rows = matrix.reshape(-1, matrix.shape[-1])
        units = (rows / self._step()[:, None]).reshape(-1)
        levels = torch.arange(low, high + 1, device=units.device, dtype=units.dtype)
        group = soft_brackets(units, levels, -low)
        histogram = joint_histogram([group], 1)
        (descent,) = descents([group], [levels], histogram.smoothed())
        inside = (units > low) & (units < high)
        gradient = towards_zero(descent.gradient, units).where(inside, 0.0) * units.numel()
        whole = gradient.reshape(rows.shape) / self._step()[:, None]
        bits = float(histogram.entropy()) * units.numel()
        return bits, self._weight.view.tensor(whole.reshape(matrix.shape), self._weight.shape)

    def quantized_at(self, bits: int) -> QuantizedMatrix:
        """Return the weight quantized to ``bits``, with a refitted step if the width differs."""
        if bits == self.bits:
            return self.quantized()
        before = self.state()
        try:
            self.set_bits(bits)
            return self.quantized()
        finally:
            self.load_state(before)

    @torch.no_grad()
    def level_usage(self) -> tuple[Tensor, int, float, float]:
        """Return positions of the weights' levels, number of levels, share clipped and step."""
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
        """Return everything that training changes, for :meth:`load_state`."""
        kept = {"step": self.step.state(), "gate": self.gate.clone()}
        return {**kept, "bits": self.bits, "scaled": self.scaled}

    @torch.no_grad()
    def load_state(self, state: dict[str, Any]) -> None:
        """Restore the state returned by :meth:`state`."""
        self.bits, self.scaled = int(state["bits"]), bool(state["scaled"])
        self.step.load_state(state["step"])
        self.gate.copy_(state["gate"])
        self.gated = not bool(self.gate.all())
