"""A layer's input on a low-bit grid: what a forward pre-hook does while training."""

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
from .step import LearnedStep, TrainingPart, beside, damping_at, kept_dtype

__all__ = ["LowBitInput", "join_network", "leave_network"]

_SAMPLE = 2048  # values of the latest batch that a new width is fitted to
_NAME = "lowbit_inputs"  # on the modules whose inputs, or outputs, are quantized


class _Inputs(nn.ModuleList):
    """The quantizers of one module, told from what a network may have under that name."""


def join_network(model: nn.Module, inputs: Iterable[LowBitInput]) -> None:
    """Let each of ``inputs`` be a part of the module that it acts on."""
    for made in inputs:
        owner = model.get_submodule(made.module)
        if not hasattr(owner, _NAME):
            owner.add_module(_NAME, _Inputs())
        parts = getattr(owner, _NAME)
        if not isinstance(parts, _Inputs):
            raise ConfigError(
                f"module {made.module!r} has an attribute {_NAME!r} of its own, the name under "
                "which LowBit keeps its quantizers while it trains. Rename it."
            )
        parts.append(made)


def leave_network(model: nn.Module) -> None:
    """Undo :func:`join_network`."""
    for module in list(model.modules()):
        if isinstance(module._modules.get(_NAME), _Inputs):
            del module._modules[_NAME]


def _one_sided(module: str) -> ConfigError:
    return ConfigError(
        f"the input of {module!r} goes below zero, and activations=1 leaves it 1 bit: its two "
        "levels would be zero and one below, so that everything above zero is lost. Use "
        "activations=2, quantizer='lsq+' (a learned zero), or keep the layer: keep=[...]."
    )


class LowBitInput(TrainingPart):
    """Puts inputs on a grid whose step is learned; gradients pass straight through rounding.

    Attributes:
        kind: "dorefa" (from 0 to 1), "pact" (a learned clip), "lsq" or "lsq+" (a learned step; with
            a learned zero where inputs go below zero).
        step: (1,) learned; of "dorefa" constant, of "pact" the clip.
        shift: (1,) learned value of the lowest level; of "lsq+" alone.
        bits: width now; 32 leaves inputs as they are.
        ceiling: the module cuts what is above, and the clip stays below.
        gated: whether a training looks at ``gate``; not while all are open.
        gate: (1,) of 0 and 1: 0 lets the forward pass of a training see the float input.
        sample: some values of the latest batch. No buffer: each process has its own, of any length.
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
        """Begin in float; ``narrowest`` is the width it will have at the narrowest.

        Raises:
            ConfigError: one bit for values of either sign, on a grid without a learned zero.
        """
        super().__init__()
        self._owner = (owner,)  # in a tuple: it is no part of this module
        fixed = kind in ("dorefa", "pact") and not site.signed
        self.name, self.module, self.ceiling = site.name, site.module, site.ceiling
        self.kind = kind if fixed or kind == "lsq+" else "lsq"
        self.signed = site.signed and self.kind != "lsq+"
        self.asymmetric = site.signed and self.kind == "lsq+"
        if narrowest == 1 and self.signed:
            raise _one_sided(site.module)
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
        self.sample = kept_dtype(fn)(self.sample)
        return super()._apply(fn, recurse)

    def forward(self, values: Tensor) -> Tensor:
        """Return the levels in the dtype of ``values``."""
        learning = self._owner[0].training
        if learning and torch.is_grad_enabled():
            self._sample(values.detach())
        if not self.active or self.bits == FLOAT:
            return beside(values, self.step.stretch, self.shift) if learning else values
        with torch.autocast(values.device.type, enabled=False):
            levels = self._levels(values).to(values.dtype)
        return torch.where(self.gate > 0, levels, values) if learning and self.gated else levels

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
        """Return the index of zero: LSQ+'s shift, rounded to a whole number of steps."""
        if not self.asymmetric:
            return torch.zeros_like(step)
        damping = damping_at(self.bits, self.features, self._bounds()[1])
        shift = self.shift.detach() + (self.shift - self.shift.detach()) * damping
        return rounded((-shift / step).clamp(0, self._bounds()[1]))

    def _bounds(self) -> tuple[int, int]:
        return bounds(self.bits, self.signed)

    def _step(self) -> Tensor:
        """Return the step as a file gives it back (clip / high), its gradient damped."""
        high = max(1, self._bounds()[1])
        step: Tensor = self.step(damping_at(self.bits, self.features, high))
        exact = (step.detach() * high) / high
        return exact + (step - step.detach())

    @torch.no_grad()
    def enter(self, bits: int) -> None:
        """Go on with another width; the grid is fitted anew to what came in last."""
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
        """Return the clip and the index of zero; the mean says nothing of where zero should be."""
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
        flat = values.permute(order).reshape(-1)  # a view, whatever the memory format
        found = flat[:: max(1, flat.numel() // _SAMPLE) | 1].float()
        if len(found) != len(self.sample):
            self.sample = found.clone()
        else:
            self.sample.copy_(found)

    @torch.no_grad()
    def hold(self) -> None:
        """Keep steps positive and near what they were, and the zero on the grid."""
        high = 1 if self.kind == "pact" else max(1, self._bounds()[1])
        self.step.hold(self.ceiling / high)
        self.shift.clamp_(max=0)

    @torch.no_grad()
    def grid(self) -> ActivationGrid | None:
        """Return the grid as a file holds it; None where inputs stay as they are."""
        if self.bits == FLOAT:
            return None
        high = max(1, self._bounds()[1])
        clip = float(self.step.value if self.kind == "pact" else self.step.value * high)
        zero = int(self._zero(self._step())) if self.asymmetric else 0
        return ActivationGrid(self.bits, clip, self.signed, zero)

    @torch.no_grad()
    def occupied(self) -> tuple[Tensor, int, float, float]:
        """Return the positions of the levels in use, how many there are, share clipped, step."""
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
        """Return what training changed, for :meth:`take_state`."""
        kept = {n: getattr(self, n).detach().clone() for n in ("shift", "sample", "gate")}
        return {**kept, "step": self.step.state(), "bits": self.bits}

    @torch.no_grad()
    def take_state(self, state: dict[str, Any]) -> None:
        """Take what :meth:`state` gave."""
        self.bits = int(state["bits"])
        self.sample = state["sample"].to(self.sample.device)
        self.step.take_state(state["step"])
        for name in ("shift", "gate"):
            getattr(self, name).copy_(state[name])
        self.gated = not bool(self.gate.all())
