"""The quantizer of a layer's input during training, called by a forward pre-hook."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ....coded import ActivationGrid
from ....engine.activations.observer import Site
from ....engine.network.distributed import average
from ....errors import ConfigError
from ....ops.levels.quantizers import bounds, lsq, lsq_step, rounded, wide
from ....ops.levels.ranges import fit_percentile, fit_range, fit_shifted, shifted_percentile
from .stages import FLOAT
from .step import LearnedStep, TrainingPart, damping_at, keeping_dtype, with_zero_gradients

__all__ = ["LowBitInput", "add_quantizers", "remove_quantizers"]

_SAMPLE = 2048  # values of the latest batch that the grid of a new width is fitted to
_NAME = "lowbit_inputs"  # attribute of the modules whose inputs, or outputs, are quantized


class _Inputs(nn.ModuleList):
    """The quantizers of one module, in a class of its own to tell them from user attributes."""


def add_quantizers(model: nn.Module, inputs: Iterable[LowBitInput]) -> None:
    """Add each quantizer as a submodule of the module that it acts on."""
    for quantizer in inputs:
        owner = model.get_submodule(quantizer.module)
        if not hasattr(owner, _NAME):
            owner.add_module(_NAME, _Inputs())
        parts = getattr(owner, _NAME)
        if not isinstance(parts, _Inputs):
            raise ConfigError(
                f"module {quantizer.module!r} already has an attribute {_NAME!r}, which LowBit "
                "uses for its quantizers during training. Rename the attribute."
            )
        parts.append(quantizer)


def remove_quantizers(model: nn.Module) -> None:
    """Undo :func:`add_quantizers`."""
    for module in list(model.modules()):
        if isinstance(module._modules.get(_NAME), _Inputs):
            del module._modules[_NAME]


def _one_bit_error(module: str) -> ConfigError:
    return ConfigError(
        f"the input of {module!r} has negative values and activations=1 gives it 1 bit: its two "
        "levels would be zero and one below, so all positive values would be lost. Use "
        "activations=2, quantizer='lsq+' (a learned zero), or leave the layer in float: keep=[...]."
    )


class LowBitInput(TrainingPart):
    """Quantizes inputs to a grid with a learned step; gradients pass straight through rounding.

    Attributes:
        kind: "dorefa" (levels from 0 to 1), "pact" (a learned clip), "lsq" (a learned step) or
            "lsq+" (also a learned zero if inputs can be negative).
        step: (1,) learned step; the clip for "pact", constant for "dorefa".
        shift: (1,) learned value of the lowest level; only for "lsq+".
        bits: current width; 32 leaves inputs in float.
        ceiling: values above are cut off by the module, so the clip stays below.
        gated: whether ``gate`` is used in training; False while all gates are open.
        gate: (1,) 1, or 0 to use the float input in a forward pass of training.
        sample: some values of the latest batch. Not a buffer: each process has its own, of any
            length.
    """

    def __init__(
        self,
        site: Site,
        owner: nn.Module,
        kind: str,
        *,
        narrowest: int,
        ranges: str,
        percentile: float,
    ) -> None:
        """Start in float; ``narrowest`` is the smallest width of all stages.

        Raises:
            ConfigError: one bit for values of both signs, on a grid without a learned zero.
        """
        super().__init__()
        self._owner = (owner,)  # in a tuple, so that it is not registered as a submodule
        one_sided = kind in ("dorefa", "pact") and not site.signed
        self.name, self.module, self.ceiling = site.name, site.module, site.ceiling
        self.kind = kind if one_sided or kind == "lsq+" else "lsq"
        self.signed = site.signed and self.kind != "lsq+"
        self.asymmetric = site.signed and self.kind == "lsq+"
        if narrowest == 1 and self.signed:
            raise _one_bit_error(site.module)
        self.ranges, self.percentile, self.features = ranges, percentile, site.features
        self.bits, self.active, self.gated = FLOAT, True, False
        sample = site.sample
        self.sample = sample[:: max(1, len(sample) // _SAMPLE) | 1].clone()
        self.step = LearnedStep(1, sample.device)
        self.shift = nn.Parameter(torch.zeros(1, device=sample.device))
        self.step.stretch.requires_grad_(self.kind != "dorefa")
        self.shift.requires_grad_(self.asymmetric)
        self.gate: Tensor
        self.register_buffer("gate", torch.ones(1, device=sample.device))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        self.sample = keeping_dtype(fn)(self.sample)
        return super()._apply(fn, recurse)

    def forward(self, values: Tensor) -> Tensor:
        """Quantize ``values``, in their dtype."""
        training = self._owner[0].training
        if training and torch.is_grad_enabled():
            self._sample(values.detach())
        if not self.active or self.bits == FLOAT:
            return (
                with_zero_gradients(values, self.step.stretch, self.shift) if training else values
            )
        with torch.autocast(values.device.type, enabled=False):
            levels = self._levels(values).to(values.dtype)
        return torch.where(self.gate > 0, levels, values) if training and self.gated else levels

    def _levels(self, values: Tensor) -> Tensor:
        low, high = self._bounds()
        if self.kind == "pact":
            clip: Tensor = self.step(1.0)
            step = clip.detach() / high
            values = wide(values)
            kept = torch.where(values >= clip, clip, values.clamp_min(0))
            return (kept.detach() / step).round() * step + (kept - kept.detach())
        step = self._step()
        if self.kind == "dorefa":
            return rounded(wide(values).clamp(0, 1) / step) * step
        if not self.asymmetric:
            return lsq(values, step, low, high)
        zero = self._zero(step)
        units = wide(values) / step
        index = torch.where(units <= low - zero, low - zero, rounded(units))
        return torch.where(units >= high - zero, high - zero, index) * step

    def _zero(self, step: Tensor) -> Tensor:
        """Return the index of zero: the shift of LSQ+, rounded to a whole number of steps."""
        if not self.asymmetric:
            return torch.zeros_like(step)
        damping = damping_at(self.bits, self.features, self._bounds()[1])
        shift = self.shift.detach() + (self.shift - self.shift.detach()) * damping
        return rounded((-shift / step).clamp(0, self._bounds()[1]))

    def _bounds(self) -> tuple[int, int]:
        return bounds(self.bits, self.signed)

    def _step(self) -> Tensor:
        """Return the step as computed from a file (clip / high), with a damped gradient."""
        high = max(1, self._bounds()[1])
        step: Tensor = self.step(damping_at(self.bits, self.features, high))
        exact = (step.detach() * high) / high
        return exact + (step - step.detach())

    @torch.no_grad()
    def set_bits(self, bits: int) -> None:
        """Switch to another width and fit the grid to the latest inputs."""
        if bits == self.bits:
            return
        self.bits = bits
        if bits != FLOAT:
            self._fit()
            average((self.step.base, self.shift))

    def _fit(self) -> None:
        high = max(1, self._bounds()[1])
        sample = self.sample.clamp(max=self.ceiling)
        sample = sample if self.signed or self.asymmetric else sample.clamp_min(0)
        if self.kind == "dorefa":
            self.step.fit(1 / high)
            return
        clip, zero = self._range(sample, high)
        self.step.fit(clip if self.kind == "pact" else clip / high)
        self.shift.fill_(-zero * clip / high)

    def _range(self, sample: Tensor, high: int) -> tuple[float, int]:
        """Return the clip and the index of zero, which "mean" cannot determine."""
        percentile = self.ranges == "percentile"
        if self.asymmetric and percentile:
            return shifted_percentile(sample, self.bits, self.percentile)
        if self.asymmetric:
            return fit_shifted(sample, self.bits)
        if percentile:
            return fit_percentile(sample, self.percentile), 0
        if self.ranges == "mean":
            return float(lsq_step(sample, high)) * high, 0
        return fit_range(sample, self.bits, signed=self.signed), 0

    @torch.no_grad()
    def _sample(self, values: Tensor) -> None:
        order = sorted(range(values.dim()), key=values.stride, reverse=True)
        flat = values.permute(order).reshape(-1)  # a view in any memory format
        sample = flat[:: max(1, flat.numel() // _SAMPLE) | 1].float()
        if len(sample) != len(self.sample):
            self.sample = sample.clone()
        else:
            self.sample.copy_(sample)

    @torch.no_grad()
    def constrain(self) -> None:
        """Keep steps positive and close to their last values, and the zero on the grid."""
        high = 1 if self.kind == "pact" else max(1, self._bounds()[1])
        self.step.constrain(self.ceiling / high)
        self.shift.clamp_(max=0)

    @torch.no_grad()
    def grid(self) -> ActivationGrid | None:
        """Return the grid as stored in a file; None while inputs stay in float."""
        if self.bits == FLOAT:
            return None
        high = max(1, self._bounds()[1])
        clip = float(self.step.value if self.kind == "pact" else self.step.value * high)
        zero = int(self._zero(self._step())) if self.asymmetric else 0
        return ActivationGrid(self.bits, clip, self.signed, zero)

    @torch.no_grad()
    def level_usage(self) -> tuple[Tensor, int, float, float]:
        """Return positions of the sample's levels, number of levels, share clipped and step."""
        low, high = self._bounds()
        step = self._step() if self.kind != "pact" else self.step.value / high
        zero = self._zero(step)
        units = self.sample / step + zero
        outside = units > high + 0.5
        if self.signed or self.asymmetric:
            outside |= units < low - 0.5
        index = units.round().clamp(low, high) - low
        return index, high - low + 1, float(outside.float().mean()), float(self.step.value)

    def state(self) -> dict[str, Any]:
        """Return everything that training changes, for :meth:`load_state`."""
        kept = {n: getattr(self, n).detach().clone() for n in ("shift", "sample", "gate")}
        return {**kept, "step": self.step.state(), "bits": self.bits}

    @torch.no_grad()
    def load_state(self, state: dict[str, Any]) -> None:
        """Restore the state returned by :meth:`state`."""
        self.bits = int(state["bits"])
        self.sample = state["sample"].to(self.sample.device)
        self.step.load_state(state["step"])
        for name in ("shift", "gate"):
            getattr(self, name).copy_(state[name])
        self.gated = not bool(self.gate.all())
