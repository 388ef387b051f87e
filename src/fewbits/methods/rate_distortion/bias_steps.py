"""Steps of biases at a slope: as many bits as the output can tell."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...engine.layers.layer import Sensitivity

__all__ = ["bias_steps"]

_FLOOR = 0.3  # least sensitivity of a bias, relative to the mean: those of few samples are noisy
_FINEST, _COARSEST = -24, 15  # exponents of steps that 16 bits hold


def bias_steps(sensitivity: Sensitivity | None, slope: float) -> Tensor | None:
    """Return the step of each bias (groups * neurons,) with the least distortion + slope * bits.

    A step h costs a distortion of ``s h^2 / 12`` at the sensitivity s, and half of it one bit more,
    so ``h^2 = 6 slope / (s ln 2)``. It is rounded to a power of two: the low bits of a multiple are
    zeros. None if no sensitivity is known.
    """
    if sensitivity is None or sensitivity.biases is None or not bool(sensitivity.biases.any()):
        return None
    known = sensitivity.biases.reshape(-1)
    squared = 6 * slope / (math.log(2) * known.clamp_min(_FLOOR * float(known.mean())))
    exponent = (squared.log2() / 2).round().clamp(_FINEST, _COARSEST)
    return torch.ldexp(torch.ones_like(exponent), exponent.int()).float()
