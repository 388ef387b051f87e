"""Ways to learn PWFN's deviations, for pwfn_forms.py: those in the package and those that are not.

A variant makes the method, and acts in every step on the session that the tuner has.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fewbits

__all__ = ["VARIANTS", "Variant"]

GROWTH = 1.0
ALPHA = 2.0**-11
_MEAN = 0.798  # mean magnitude of the noise
_LEAST = 2.0**-30
_DAMPING = 0.1
_RECENT = 0.01


class Variant:
    """Growth and the gradient of the noise, by SGD: the base of the others.

    Attributes:
        sizes: what deviations grow towards, by network; one run for each.
        rate: of SGD on the deviations, with momentum 0.9; 0 if the optimizer has none of them.
    """

    def __init__(self, cnn: Sequence[float], vit: Sequence[float]) -> None:
        self.sizes, self.rate = {"cnn": cnn, "vit": vit}, 0.01

    def settings(self, size: float, steps: int) -> dict[str, Any]:
        """Return the settings of PWFN."""
        return {"deviation": "learned", "growth": GROWTH, "largest": size}

    def attach(self, tuner: fewbits.Tuner, model: nn.Module, size: float) -> None:
        """Prepare before the first step."""
        self.tuner, self.model, self.size = tuner, model, size

    def act(self, passed: float) -> None:
        """Change deviations after the optimizer's step; ``passed``: rounds since the last step."""

    def _free(self) -> Iterator[tuple[str, Tensor, Any]]:
        for weight in self.tuner.weights:
            yield weight.name, weight.parameter, self.tuner.session.parametrization(weight)


class _Paper(Variant):
    """The penalty at its alpha; the rate makes it act as growth would in as many steps."""

    def settings(self, size: float, steps: int) -> dict[str, Any]:
        """Return the settings, and set the rate."""
        self.rate = 0.1 * GROWTH / (_MEAN * ALPHA * steps * 0.85 / 9)
        return {"deviation": "learned", "alpha": ALPHA, "largest": size}


class _Adam(Variant):
    """Adam on the logarithms, with the paper's force at an alpha of the size of the curvature."""

    alpha, step = 0.1, 0.03

    def settings(self, size: float, steps: int) -> dict[str, Any]:
        """Return the settings: no growth."""
        self.rate = 0.0
        return {"deviation": "learned", "growth": 0.0, "largest": size, "spread": size}

    def attach(self, tuner: fewbits.Tuner, model: nn.Module, size: float) -> None:
        """Keep the noise, and make a second set of parameters: the logarithms."""
        super().attach(tuner, model, size)
        self.logarithms = {}
        for name, _, noise in self._free():
            noise._kept = True
            self.logarithms[name] = nn.Parameter(noise.deviation.detach().clamp_min(1e-5).log())
        self.optimizer = torch.optim.Adam(self.logarithms.values(), self.step, (0.9, 0.99))

    @torch.no_grad()
    def act(self, passed: float) -> None:
        """Step the logarithms."""
        for name, _, noise in self._free():
            deviation, gradient = noise.deviation, noise.deviation.grad
            force = self.alpha * (self.size - deviation).relu() * noise.noise.abs()
            self.logarithms[name].grad = deviation * (gradient - force)
        self.optimizer.step()
        for name, _, noise in self._free():
            noise.deviation.copy_(self.logarithms[name].exp().clamp_max(2 * self.size))
            noise.deviation.grad = None


class _Natural(Variant):
    """Deviations from a curvature that is the mean of noise times gradient over deviation."""

    def settings(self, size: float, steps: int) -> dict[str, Any]:
        """Return the settings: deviations that only this class changes."""
        self.rate = 0.0
        return {"deviation": "constant", "noise": True, "spread": size / 20}

    def attach(self, tuner: fewbits.Tuner, model: nn.Module, size: float) -> None:
        """Keep the noise; the curvature is 0."""
        super().attach(tuner, model, size)
        self.seen, self.curvature = 0, {}
        for name, _, noise in self._free():
            noise._kept = True
            self.curvature[name] = torch.zeros_like(noise.deviation)

    @torch.no_grad()
    def act(self, passed: float) -> None:
        """Update the curvature, and move the deviations towards what it says."""
        self.seen += 1
        total = count = 0.0
        for name, parameter, noise in self._free():
            seen = parameter.grad * noise.noise / noise.deviation.clamp_min(1e-3)
            free = 1.0 if noise.fixed is None else 1 - noise.fixed.float()
            self.curvature[name].add_((seen - self.curvature[name]) * max(1 / self.seen, _RECENT))
            total += float((self.curvature[name] * free).sum())
            count += float((torch.ones_like(parameter) * free).sum())
        floor = max(_DAMPING * total / max(count, 1.0), 1e-12)
        share = 1 - 2.718281828 ** (-GROWTH * passed)
        for name, _, noise in self._free():
            target = self.size * (1 + self.curvature[name].relu() / floor).rsqrt()
            noise.deviation.lerp_(target, share)


class _Local(Variant):
    """The noise is on outputs, with the variance that the weights' would give each image."""

    def attach(self, tuner: fewbits.Tuner, model: nn.Module, size: float) -> None:
        """Take the noise from the weights, and add it behind each layer."""
        super().attach(tuner, model, size)
        known = dict(model.named_modules())
        for name, _, noise in self._free():
            noise._sampled = False
            if name.endswith(".weight"):
                known[name.removesuffix(".weight")].register_forward_hook(_noisy_output(noise))


def _noisy_output(noise: Any) -> Any:
    def hook(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        if not module.training:
            return output
        square, variance = inputs[0].square(), noise.deviation.clamp_min(_LEAST).square()
        if isinstance(module, nn.Linear):
            spread = F.linear(square, variance)
        else:
            spread = F.conv2d(square, variance, None, module.stride, module.padding)
        return output + (spread + 1e-12).sqrt() * torch.randn_like(output)

    return hook


class _OnTheFly(Variant):
    """Clustering throughout: 40 rounds, each of all weights."""

    def settings(self, size: float, steps: int) -> dict[str, Any]:
        """Return the settings; growth is as much in all as that of the others."""
        shares = tuple((k + 1) / 40 for k in range(40))
        more = {"fractions": shares, "mode": "recluster", "growth": GROWTH * 9 / 39}
        return super().settings(size, steps) | more


class _Curvature(Variant):
    """The package's form."""

    def __init__(self, cnn: Sequence[float], vit: Sequence[float], noise: bool) -> None:
        super().__init__(cnn, vit)
        self.noise, self.rate = noise, 0.0

    def settings(self, size: float, steps: int) -> dict[str, Any]:
        """Return the settings."""
        how = {"deviation": "curvature", "noise": self.noise}
        return how | {"growth": GROWTH, "largest": size}


VARIANTS: dict[str, Variant] = {
    "curvature": _Curvature((0.2,), (0.13,), noise=False),
    "noisy curvature": _Curvature((0.2,), (0.13,), noise=True),
    "growth": Variant((0.1,), (0.07,)),
    "natural": _Natural((0.15,), (0.1,)),
    "local": _Local((0.1,), (0.07,)),
    "adam": _Adam((0.1,), (0.07,)),
    "on the fly": _OnTheFly((0.1,), (0.07,)),
    "paper": _Paper((0.1,), ()),
}
