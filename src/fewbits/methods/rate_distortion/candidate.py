"""Quantize a layer in one domain at a given slope; the result, its distortion and its bits."""

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

__all__ = ["Candidate", "CandidateSettings", "candidate_at_slope", "with_one_bit"]

_BLOCKS = 8
_BLOCK_BITS = 12  # 4 for the depth, 8 for the step
_STEP_BITS = 6  # about the bits of a step in a file, as a power of 2^(1/4)
_TRANSFORM_BITS = 160  # additional bits of a transform in the index of a file
_RATIO = 0.25  # slope over squared step, where the search for a common factor starts
_OFFSETS = (0.5, 0.42, 0.34, 0.26)  # rounding offsets (dead zones) tried without feedback


@dataclass(frozen=True)
class CandidateSettings:
    """How to quantize a candidate.

    Attributes:
        slope: squared error of the network's output that one bit is worth.
        blocks: whether blocks of rows have fixed-length codes, instead of entropy coding.
        feedback: whether later values correct errors made before.
        rate: model of the bits that levels are chosen by: "adaptive", "static" or "none".
        limit: largest magnitude that the dtype of the weight can hold.
    """

    slope: float
    blocks: bool
    feedback: bool
    rate: str
    limit: float


@dataclass(frozen=True, eq=False)
class Candidate:
    """A quantized layer.

    Attributes:
        result: the quantized layer, as stored in a file.
        distortion: the squared error that it causes in the network's output.
        bits: payload and side information.
        live: (channels,) bool: vectors or neurons with any nonzero coefficient.
    """

    result: Quantized
    distortion: float
    bits: float
    live: Tensor


@dataclass(frozen=True, eq=False)
class _Levels:
    """The matrix ``step * (index - offset)``, and its bits if they are known beforehand."""

    index: Tensor
    step: Tensor
    offset: Tensor
    bits: float | None = None


def candidate_at_slope(
    domain: Domain, weight: Tensor, metric: ErrorMetric, settings: CandidateSettings
) -> Candidate | None:
    """Quantize a layer in one domain; None if values would exceed the limit of the dtype.

    Args:
        domain: the coefficients.
        weight: the target weight, (groups, neurons, columns) float64.
        metric: the distortion of errors.
        settings: the settings.
    """
    if settings.blocks:
        return _candidate(domain, weight, metric, settings, _in_blocks(domain, settings))
    priced = settings.rate != "none" and bool(domain.values.any())
    choices = _priced(domain, settings) if priced else _rounded(domain, settings)
    candidates = [_candidate(domain, weight, metric, settings, levels) for levels in choices]
    finite = [candidate for candidate in candidates if candidate is not None]
    return min(finite, key=lambda r: r.distortion + settings.slope * r.bits, default=None)


def _candidate(
    domain: Domain,
    weight: Tensor,
    metric: ErrorMetric,
    settings: CandidateSettings,
    levels: _Levels,
) -> Candidate | None:
    quantized, live = _result(domain, levels, settings.limit)
    values = quantized.dequantize()
    if not bool((values.abs() <= settings.limit).all()):
        return None
    bits = levels.bits
    if bits is None:
        bits = _coded_bits(quantized.index.flatten(0, -2), domain.kernel, domain.width)
        bits += _STEP_BITS * int(live.sum())
    vectors = 0.0
    if isinstance(quantized, QuantizedTransform):
        bits += _TRANSFORM_BITS + _basis_bits(quantized.basis, settings.blocks)
        vectors = float(len(quantized.index))
    distortion = metric.cost(weight - values)
    largest = int(quantized.index.abs().max()) if quantized.index.numel() else 0
    info = {
        "levels": 2.0 * largest + 1,
        "zeros": 1 - int(torch.count_nonzero(values)) / max(1, values.numel()),
        "distortion": distortion,
        "bits": bits,
        "vectors": vectors,
    }
    return Candidate(replace(quantized, info=info), distortion, bits, live)


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
    """Return the quantized layer without all-zero vectors, and the mask of the others."""
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
    """Return the steps at the slope, and with feedback the Cholesky factor R (else None)."""
    upper = None
    spread = domain.second.diagonal(dim1=1, dim2=2)
    if settings.feedback:
        upper = factor_of(domain.second).upper
        spread = upper.diagonal(dim1=1, dim2=2).square()
    cost = domain.shared(domain.weights[:, :, None] * spread[:, None], "mean")
    return step_at_slope(cost, domain.shared(domain.values, "amax"), settings.slope), upper


def _rounded(domain: Domain, settings: CandidateSettings) -> Iterator[_Levels]:
    """Yield the rounded coefficients: once with feedback, or with a few dead zones without."""
    step, upper = _steps(domain, settings)
    for offset in (0.5,) if settings.feedback else _OFFSETS:
        levels = round_shaped(domain.values, domain.spread(step), upper, offset)
        if offset == _OFFSETS[0]:
            while not bool(levels.any()) and bool(domain.values.any()):
                step = step / 2  # a layer without any output would disable the network
                levels = round_shaped(domain.values, domain.spread(step), upper, offset)
        if bool(levels.any()) or offset == _OFFSETS[0]:
            yield _Levels(domain.matrix(levels), step, step.new_zeros(len(step)))


def _priced(domain: Domain, settings: CandidateSettings) -> Iterator[_Levels]:
    """Yield the coefficients with the least distortion + slope * bits.

    If they are all zero, yield the rounded ones: a layer of zeros would disable the network.
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
    """Return the coefficients in blocks of rows, each with the depth that matches the slope."""
    spread = domain.second.diagonal(dim1=1, dim2=2)
    cost = domain.shared(domain.weights[:, :, None] * spread[:, None], "mean")
    values = domain.matrix(domain.values)
    size = max(1, math.ceil(len(values) / _BLOCKS))
    parts = list(zip(torch.split(values, size), torch.split(cost, size), strict=True))
    curves = [block_curve(part, metric) for part, metric in parts]
    depths = with_one_bit(curves, [at_slope(curve, settings.slope) for curve in curves])
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


def with_one_bit(curves: list[Curve], depths: list[int]) -> list[int]:
    """Give the most useful block one bit if all depths are zero: zeros disable the network."""
    if any(depths) or not curves:
        return depths
    falls = [float(c.distortion[0] - c.distortion[1]) / max(1, c.count) for c in curves]
    best = falls.index(max(falls))
    return [int(place == best and falls[best] > 0) for place in range(len(curves))]
