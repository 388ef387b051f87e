"""The tensors of a network in training with PWFN, with their deviations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ....errors import ConfigError
from ....ops.levels.powers_of_two import LEAST, first_deviations
from ..base import TunedWeight
from .noisy_weights import NoiseSource, NoisyWeight
from .rounds import FixingState

__all__ = ["NoisyTensor", "NoisyTensors"]

_DAMPING = 0.1  # curvature below which deviations hardly differ, in means over the network


@dataclass(eq=False)
class NoisyTensor:
    """One tensor.

    Attributes:
        weight: the tensor.
        noise: its parametrization, with the deviations and the mask of fixed weights.
        values: values of the fixed weights, in the shape of the parameter.
        held: deviations of the fixed weights, in the shape of the parameter.
        zeros: share of its weights that were zero at the start.
        curvature: running mean of the squared gradient of free weights, in the shape of the
            parameter; zero until one is seen.
        mask: the pruning mask of the weight when it was last applied.
    """

    weight: TunedWeight
    noise: NoisyWeight
    values: Tensor
    held: Tensor
    zeros: float
    curvature: Tensor
    mask: Tensor | None = None

    @property
    def grows(self) -> bool:
        """Whether its deviations grow: only those of weights do, not those of biases."""
        return self.weight.parameter.dim() > 1

    @property
    def fixed(self) -> Tensor:
        """The mask of fixed weights, including pruned ones."""
        fixed = self.noise.fixed
        return torch.zeros_like(self.held, dtype=torch.bool) if fixed is None else fixed

    @torch.no_grad()
    def write_back(self) -> None:
        """Undo changes of fixed weights by the optimizer: decay, momentum or Adam's moments."""
        if self.weight.mask is not self.mask:
            self._prune()
        fixed, parameter, deviation = self.noise.fixed, self.weight.parameter, self.noise.deviation
        deviation.clamp_(min=LEAST)
        if fixed is not None:
            parameter.copy_(torch.where(fixed, self.values.to(parameter.dtype), parameter))
            deviation.copy_(torch.where(fixed, self.held, deviation))

    def _prune(self) -> None:
        """Fix newly pruned weights at zero, without noise."""
        self.mask = self.weight.mask
        if self.mask is not None:
            self.noise.fixed = self.fixed | ~self.mask
            self.values = self.values * self.mask
            self.held = self.held * self.mask


@dataclass(frozen=True)
class NoiseSettings:
    """Settings of the noise; the first three as in :class:`fewbits.PWFN`.

    Attributes:
        deviation: "curvature", "learned", "constant" or "relative".
        spread: initial deviation.
        largest: largest deviation.
        samples: whether the forward pass samples the weights.
        kept: whether the noise is kept, for the growth term of the loss.
        source: source of random numbers.
    """

    deviation: str
    spread: float
    largest: float
    samples: bool
    kept: bool
    source: NoiseSource


class NoisyTensors:
    """All tensors of a network, in order, and conversion to and from one flat vector."""

    def __init__(self, weights: Sequence[TunedWeight], settings: NoiseSettings) -> None:
        for weight in weights:
            if weight.levels is not None:
                raise ConfigError(
                    "vector_bits cannot be combined with pwfn, which clusters biases with the "
                    "weights and does not quantize normalization layers. Leave it out; "
                    "raw_dtype='float16' stores the rest in 16 bits."
                )
        self.tensors = {weight.name: _noisy_tensor(weight, settings) for weight in weights}
        self.relative = settings.spread if settings.deviation == "relative" else None
        for tensor in self:
            tensor.write_back()

    def __iter__(self) -> Iterator[NoisyTensor]:
        return iter(self.tensors.values())

    def parts(self) -> dict[str, slice]:
        """Return the slice of each tensor in the flat vector."""
        slices, start = {}, 0
        for name, tensor in self.tensors.items():
            slices[name] = slice(start, start + tensor.held.numel())
            start += tensor.held.numel()
        return slices

    def flat_state(self) -> FixingState:
        """Return the current weights as one flat vector, on the CPU."""
        values = _flatten([tensor.weight.parameter for tensor in self])
        if self.relative is None:
            deviations = _flatten([tensor.noise.deviation for tensor in self])
        else:
            deviations = np.abs(values) * np.float32(self.relative)
        pruned = [
            torch.zeros_like(tensor.fixed) if tensor.weight.mask is None else ~tensor.weight.mask
            for tensor in self
        ]
        return FixingState(
            values, deviations, _flatten([tensor.fixed for tensor in self]), _flatten(pruned)
        )

    def update(self, state: FixingState) -> None:
        """Apply the result of a round."""
        for name, part in self.parts().items():
            tensor = self.tensors[name]
            fixed = state.fixed[part]
            tensor.noise.fixed = _tensor(fixed, tensor.held)
            tensor.values = _tensor(np.where(fixed, state.values[part], np.float32(0)), tensor.held)
            tensor.held = _tensor(state.deviations[part], tensor.held)
            tensor.write_back()

    @torch.no_grad()
    def measure(self, share: float) -> None:
        """Move the curvature of free weights a share of the way to the squared gradient."""
        for tensor in self:
            gradient = tensor.weight.parameter.grad
            if gradient is None:
                continue
            change = gradient.float().square().sub_(tensor.curvature).mul_(share)
            if tensor.noise.fixed is not None:
                change.masked_fill_(tensor.noise.fixed, 0)  # their gradients are zero
            tensor.curvature.add_(change)

    @torch.no_grad()
    def shape(self, share: float, largest: float) -> None:
        """Move deviations a share of the way to ``largest / sqrt(1 + h / (mean(h) / 10))``.

        h is the curvature of a weight; the mean is over all free weights of the network.
        """
        free = [1 - tensor.fixed.float() for tensor in self]
        pairs = list(zip(self, free, strict=True))
        total = torch.stack([tensor.curvature.mul(some).sum() for tensor, some in pairs]).sum()
        count = torch.stack([some.sum() for some in free]).sum()
        floor = (_DAMPING * total / count.clamp_min(1)).clamp_min(torch.finfo(torch.float32).tiny)
        for tensor in self:
            target = (1 + tensor.curvature / floor).rsqrt_().mul_(largest)
            tensor.noise.deviation.lerp_(target, share)

    @torch.no_grad()
    def grow(self, share: float, largest: float) -> None:
        """Move the deviations of weights a share of the way to the largest."""
        for tensor in self:
            if tensor.grows:
                deviation = tensor.noise.deviation
                deviation.add_((largest - deviation).relu_().mul_(share))

    def penalty(self, alpha: float, largest: float, mean: float) -> Tensor:
        """Return ``alpha / 2 * sum |noise| relu(largest - deviation)^2`` over free weights.

        ``mean`` replaces the noise if it is unknown, as in replicas of a network.
        """
        total = torch.zeros((), device=next(iter(self)).held.device)
        for tensor in self:
            if not tensor.grows:
                continue
            gap = (largest - tensor.noise.deviation).relu()
            size = mean if tensor.noise.noise is None else tensor.noise.noise.abs()
            term = gap.square() * size
            if tensor.noise.fixed is not None:
                term = term.masked_fill(tensor.noise.fixed, 0)
            total = total + term.sum()
        return total * (alpha / 2)

    @torch.no_grad()
    def mean_deviation(self) -> float:
        """Return the mean deviation of free weights, without biases; 0 if there are none."""
        total = count = 0.0
        for tensor in self:
            if tensor.grows:
                free = ~tensor.fixed
                total += float(tensor.noise.deviation.mul(free).sum())
                count += float(free.sum())
        return total / max(1.0, count)

    def versions(self) -> dict[str, int]:
        """Return the version counter of each parameter."""
        return {name: tensor.weight.parameter._version for name, tensor in self.tensors.items()}

    def zeroed(self, share: float) -> list[str]:
        """Return the weights of which more than ``share`` became zero during training."""
        return [
            name
            for name, tensor in self.tensors.items()
            if tensor.grows
            and tensor.zeros <= share
            and float((tensor.weight.parameter == 0).float().mean()) > share
        ]

    def state_dict(self) -> dict[str, Any]:
        """Return the fixed weights with their values, and all deviations."""
        return {
            name: {
                "fixed": tensor.noise.fixed,
                "values": tensor.values,
                "held": tensor.held,
                "curvature": tensor.curvature,
                "deviation": tensor.noise.deviation.detach(),
            }
            for name, tensor in self.tensors.items()
        }

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state returned by :meth:`state_dict`."""
        for name, tensor in self.tensors.items():
            stored, fixed = state[name], state[name]["fixed"]
            tensor.values = stored["values"].to(tensor.values)
            tensor.held = stored["held"].to(tensor.held)
            tensor.curvature = stored["curvature"].to(tensor.curvature)
            tensor.noise.fixed = None if fixed is None else fixed.to(tensor.values.device)
            tensor.mask = tensor.weight.mask
            tensor.noise.deviation.copy_(stored["deviation"])


def _noisy_tensor(weight: TunedWeight, settings: NoiseSettings) -> NoisyTensor:
    values = _flatten([weight.parameter])
    if settings.deviation in ("curvature", "learned"):
        first = first_deviations(values, settings.spread, settings.largest)
    else:
        first = np.full_like(values, settings.spread)
    deviation = _tensor(first, weight.parameter.detach().float())
    noise = NoisyWeight(
        deviation,
        settings.source,
        trained=settings.deviation == "learned",
        sampled=settings.samples,
        kept=settings.kept,
    )
    kept = [torch.zeros_like(deviation) for _ in range(3)]
    return NoisyTensor(weight, noise, kept[0], kept[1], float((values == 0).mean()), kept[2])


def _flatten(tensors: Sequence[Tensor]) -> NDArray[Any]:
    """Concatenate all values, floats as float32 (numpy has no bfloat16)."""
    flat = [tensor.detach().reshape(-1).cpu() for tensor in tensors]
    flat = [values.float() if values.is_floating_point() else values for values in flat]
    return np.concatenate([values.numpy() for values in flat])


def _tensor(values: NDArray[Any], like: Tensor) -> Tensor:
    return torch.from_numpy(values.copy()).reshape(like.shape).to(like.device)
