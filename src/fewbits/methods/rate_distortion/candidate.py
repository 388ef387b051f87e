"""A domain quantized at a slope: the result, and what it costs, in the output and in bits."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ...coding import Layout, measure
from ...engine.layers.layer import Quantized, QuantizedMatrix, QuantizedTransform
from ...ops.rate_distortion.bit_allocation import Curve, at_slope, block_curve, block_levels
from ...ops.rounding.shaping import factor_of, round_shaped, step_at_slope
from .domains import Domain, ErrorMetric

__all__ = ["Candidate", "CandidateSettings", "candidate_at_slope", "guarded"]

_BLOCKS = 8
_BLOCK_BITS = 12  # the depth in 4 bits, the step in 8
_STEP_BITS = 6  # near what a step of a power of 2^(1/4) takes in a file
_TRANSFORM_BITS = 160  # what the header of a file says of a transform and not of a grid
_RATIO = 0.25  # of slope and squared step, where the search of a common factor begins
_OFFSETS = (0.5, 0.42, 0.34, 0.26)  # dead zones tried without feedback


@dataclass(frozen=True)
class CandidateSettings:
    """Settings: the slope, whether in blocks, with feedback, what bits cost, the largest value."""

    slope: float
    blocks: bool
    feedback: bool
    rate: str
    limit: float


@dataclass(frozen=True, eq=False)
class Candidate:
    """A quantized layer.

    Attributes:
        result: what the file will hold.
        distortion: squared error of the network's output that it makes.
        bits: payload and side information.
        live: (channels,) bool: which vectors or neurons have any coefficient.
    """

    result: Quantized
    distortion: float
    bits: float
    live: Tensor


@dataclass(frozen=True, eq=False)
class _Levels:
    """Matrix of ``step * (index - offset)``, and its bits where these are fixed beforehand."""

    index: Tensor
    step: Tensor
    offset: Tensor
    bits: float | None = None


def candidate_at_slope(
    domain: Domain, weight: Tensor, metric: ErrorMetric, settings: CandidateSettings
) -> Candidate | None:
    """Quantize a layer in one domain; None where values would exceed the largest of its dtype.

    Args:
        domain: the coefficients.
        weight: the layer as it should be, (groups, neurons, columns) float64.
        metric: what errors of it cost.
        settings: the settings.
    """
    if settings.blocks:
        return _candidate(domain, weight, metric, settings, _in_blocks(domain, settings))
    priced = settings.rate != "none" and bool(domain.values.any())
    choices = _priced(domain, settings) if priced else _rounded(domain, settings)
    found = [_candidate(domain, weight, metric, settings, levels) for levels in choices]
    sound = [candidate for candidate in found if candidate is not None]
    return min(sound, key=lambda r: r.distortion + settings.slope * r.bits, default=None)


def _candidate(
    domain: Domain,
    weight: Tensor,
    metric: ErrorMetric,
    settings: CandidateSettings,
    levels: _Levels,
) -> Candidate | None:
    bare, live = _result(domain, levels, settings.limit)
    values = bare.dequantize()
    if not bool((values.abs() <= settings.limit).all()):
        return None
    bits = levels.bits
    if bits is None:
        bits = _coded_bits(bare.index.flatten(0, -2), domain.kernel, domain.width)
        bits += _STEP_BITS * int(live.sum())
    vectors = 0.0
    if isinstance(bare, QuantizedTransform):
        bits += _TRANSFORM_BITS + _basis_bits(bare.basis, settings.blocks)
        vectors = float(len(bare.index))
    distortion = metric.cost(weight - values)
    largest = int(bare.index.abs().max()) if bare.index.numel() else 0
    info = {
        "levels": 2.0 * largest + 1,
        "zeros": 1 - int(torch.count_nonzero(values)) / max(1, values.numel()),
        "distortion": distortion,
        "bits": bits,
        "vectors": vectors,
    }
    return Candidate(replace(bare, info=info), distortion, bits, live)


def _coded_bits(index: Tensor, taps: int = 1, width: int = 0) -> float:
    symbols = np.ascontiguousarray(index.to(torch.int32).cpu().numpy())
    rows, columns = symbols.shape
    return measure(symbols, Layout(rows, columns, taps, width), "fast")


def _basis_bits(basis: Tensor, fixed: bool) -> float:
    if not fixed:
        return _coded_bits(basis)
    span = int(basis.max() - basis.min()) if basis.numel() else 0
    return float(basis.numel() * math.ceil(math.log2(span + 1)))


def _result(domain: Domain, levels: _Levels, limit: float) -> tuple[Quantized, Tensor]:
    """Return what the file will hold, without the vectors that have nothing but zeros."""
    live = (levels.index != levels.offset[:, None]).any(1)
    index, step, offset = levels.index, torch.where(live, levels.step, 1.0), levels.offset
    if domain.side != "none":
        offset = offset[live] if bool(offset.any()) else offset[:1]
        coded = index[live].to(torch.int32), step[live].float(), offset.float()
        basis = domain.basis[:, live].contiguous()
        basis_step = torch.tensor([domain.basis_step], dtype=torch.float32)
        place = (domain.side, domain.shape, domain.kernel)
        return QuantizedTransform(*coded, basis, basis_step.to(basis.device), *place), live
    top = torch.floor(limit / step)[:, None]
    index = torch.minimum(torch.maximum(index, -top), top).to(torch.int32)
    matrix = index.reshape(domain.shape).contiguous()
    plain = 0.0 if not bool(offset.any()) else offset.float()
    return QuantizedMatrix(matrix, step.float(), plain), live


def _steps(domain: Domain, settings: CandidateSettings) -> tuple[Tensor, Tensor | None]:
    """Return the steps at the slope, and R where errors are fed back along the columns."""
    upper = None
    spread = domain.second.diagonal(dim1=1, dim2=2)
    if settings.feedback:
        upper = factor_of(domain.second).upper
        spread = upper.diagonal(dim1=1, dim2=2).square()
    cost = domain.shared(domain.weights[:, :, None] * spread[:, None], "mean")
    return step_at_slope(cost, domain.shared(domain.values, "amax"), settings.slope), upper


def _rounded(domain: Domain, settings: CandidateSettings) -> Iterator[_Levels]:
    """Yield the coefficients on steps of the slope: with feedback, or with a few dead zones."""
    step, upper = _steps(domain, settings)
    for offset in (0.5,) if settings.feedback else _OFFSETS:
        levels = round_shaped(domain.values, domain.spread(step), upper, offset)
        if offset == _OFFSETS[0]:
            while not bool(levels.any()) and bool(domain.values.any()):
                step = step / 2  # a layer without any signal would end the network
                levels = round_shaped(domain.values, domain.spread(step), upper, offset)
        if bool(levels.any()) or offset == _OFFSETS[0]:
            yield _Levels(domain.matrix(levels), step, step.new_zeros(len(step)))


def _priced(domain: Domain, settings: CandidateSettings) -> Iterator[_Levels]:
    """Yield the coefficients of least distortion and bits, on a multiple of the slope's steps.

    Where these are all zero it is rounding's: a layer without any signal would end the network.
    """
    step, _ = _steps(domain, settings)
    step = step * domain.problem(step, settings.feedback).search(
        settings.slope, _RATIO, priced=True
    )
    step = step.float().bfloat16().double()
    problem = domain.problem(step, settings.feedback)
    levels = problem.quantize(step.new_ones(()), settings.slope, settings.rate)
    if bool(levels.any()):
        yield _Levels(domain.matrix(levels), step, step.new_zeros(len(step)))
    else:
        yield from _rounded(domain, settings)


def _in_blocks(domain: Domain, settings: CandidateSettings) -> _Levels:
    """Return the coefficients in blocks of rows, each with the depth at which its slope is ours."""
    spread = domain.second.diagonal(dim1=1, dim2=2)
    cost = domain.shared(domain.weights[:, :, None] * spread[:, None], "mean")
    values = domain.matrix(domain.values)
    size = max(1, math.ceil(len(values) / _BLOCKS))
    parts = list(zip(torch.split(values, size), torch.split(cost, size), strict=True))
    curves = [block_curve(part, metric) for part, metric in parts]
    depths = guarded(curves, [at_slope(curve, settings.slope) for curve in curves])
    index, steps, offsets = torch.zeros_like(values), torch.ones_like(cost), torch.zeros_like(cost)
    bits = 0.0
    for place, (curve, depth) in enumerate(zip(curves, depths, strict=True)):
        bits += depth * curve.count + _BLOCK_BITS
        if depth == 0:
            continue
        rows = slice(place * size, (place + 1) * size)
        step, offset = float(curve.step[depth]), float(curve.offset[depth])
        index[rows] = block_levels(values[rows], depth, step, offset) + offset
        steps[rows], offsets[rows] = step, offset
    return _Levels(index, steps, offsets, bits)


def guarded(curves: list[Curve], depths: list[int]) -> list[int]:
    """Return the depths with at least one bit somewhere: a layer of zeros would end the network."""
    if any(depths) or not curves:
        return depths
    falls = [float(c.distortion[0] - c.distortion[1]) / max(1, c.count) for c in curves]
    best = falls.index(max(falls))
    return [int(place == best and falls[best] > 0) for place in range(len(curves))]
