"""Transforms against what they promise: inverses, optimality, gains; and slow twins of kernels."""

from __future__ import annotations

import pytest
import torch

from fewbits.ops.transforms import (
    RIDGE,
    SIDES,
    Basis,
    coding_gain,
    elt,
    fold,
    klt,
    pooled,
    quantize_basis,
    refit,
    unfold,
)


def moments(size, seed, floor=1e-2):
    g = torch.Generator().manual_seed(seed)
    root = torch.randn(size, size, generator=g, dtype=torch.float64)
    scale = torch.logspace(0, -2, size, dtype=torch.float64)
    return (root * scale) @ root.mT / size + floor * torch.eye(size, dtype=torch.float64)


def ridged(metric):
    return metric + RIDGE * metric.norm() * torch.eye(len(metric), dtype=metric.dtype)


def off_diagonal(matrix):
    return float((matrix - matrix.diagonal().diag()).abs().max() / matrix.diagonal().max())


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("shape", [(1, 5, 12, 1), (1, 4, 18, 9), (3, 4, 18, 9), (2, 3, 6, 3)])
def test_unfold_puts_the_channels_first_and_fold_undoes_it(shape, side):
    groups, neurons, columns, kernel = shape
    weight = torch.randn(groups, neurons, columns, generator=torch.Generator().manual_seed(0))
    matrix = unfold(weight, kernel, side)
    inputs = columns // kernel
    for g in range(groups):
        for o in range(neurons):
            for i in range(inputs):
                for t in range(kernel):
                    row, rest = (i, (g, o, t)) if side == "row" else (o, (g, i, t))
                    sizes = (groups, neurons if side == "row" else inputs, kernel)
                    place = (rest[0] * sizes[1] + rest[1]) * sizes[2] + rest[2]
                    assert matrix[row, place] == weight[g, o, i * kernel + t]
    assert torch.equal(fold(matrix, (groups, neurons, columns), kernel, side), weight)
    assert fold(matrix[:1], (groups, neurons, columns), kernel, side).shape == (
        (groups, neurons, kernel) if side == "row" else (groups, 1, columns)
    )


def test_pooled_sums_over_equal_taps():
    g = torch.Generator().manual_seed(0)
    gradients = torch.randn(2, 50, 6, generator=g, dtype=torch.float64)
    metric = pooled(gradients.mT @ gradients, 3)
    slow = torch.zeros(2, 2, dtype=torch.float64)
    for group in gradients:
        for row in group.reshape(50, 2, 3):
            for tap in range(3):
                slow += torch.outer(row[:, tap], row[:, tap])
    assert torch.allclose(metric, slow)


@pytest.mark.parametrize("size", [2, 7, 24])
def test_bases_have_inverses_and_decorrelate(size):
    weights, metric = moments(size, 1), moments(size, 2)
    for basis in (klt(weights), elt(weights, metric)):
        product = basis.synthesis @ basis.analysis
        assert (product - torch.eye(size)).abs().max() < 1e-9
        kept = basis.analysis @ weights @ basis.analysis.mT
        assert off_diagonal(kept) < 1e-8
        assert (basis.synthesis.norm(dim=0) - 1).abs().max() < 1e-9
    seen = basis.synthesis.mT @ ridged(metric) @ basis.synthesis
    assert off_diagonal(seen) < 1e-8
    order = kept.diagonal() * seen.diagonal()
    assert (order.diff() <= 1e-12).all()
    assert (klt(weights).synthesis.mT @ klt(weights).synthesis - torch.eye(size)).abs().max() < 1e-9


def test_no_basis_gains_more_than_the_elt():
    size = 6
    weights, metric = moments(size, 3), ridged(moments(size, 4))
    found = elt(weights, moments(size, 4))
    gain = coding_gain(found, weights, metric)
    bound = metric.diagonal().log().mean() + weights.diagonal().log().mean()
    bound = bound - (torch.logdet(metric) + torch.logdet(weights)) / size
    assert gain == pytest.approx(float(bound.exp()), rel=1e-6)
    eye = torch.eye(size, dtype=torch.float64)
    assert coding_gain(Basis(eye, eye), weights, metric) == pytest.approx(1)
    assert gain > coding_gain(klt(weights), weights, metric)
    g = torch.Generator().manual_seed(0)
    for scale in (1.0, 0.1, 0.01):
        for _ in range(400):
            turn = torch.randn(size, size, generator=g, dtype=torch.float64)
            synthesis = found.synthesis @ (eye + scale * turn)
            other = Basis(synthesis, torch.linalg.inv(synthesis))
            assert coding_gain(other, weights, metric) <= gain * (1 + 1e-9)


def test_the_gain_does_not_depend_on_the_scale_of_the_vectors():
    weights, metric = moments(5, 5), ridged(moments(5, 6))
    basis = elt(weights, metric)
    scale = torch.logspace(-2, 3, 5, dtype=torch.float64)
    scaled = Basis(basis.synthesis * scale, basis.analysis / scale[:, None])
    expected = coding_gain(basis, weights, metric)
    assert coding_gain(scaled, weights, metric) == pytest.approx(expected)


def test_a_metric_without_some_channels_is_no_trouble():
    metric = torch.zeros(4, 4, dtype=torch.float64)
    for seen in (metric, torch.diag(torch.tensor([1.0, 0, 0, 0], dtype=torch.float64))):
        basis = elt(moments(4, 1), seen)
        assert basis.synthesis.isfinite().all()
        assert (basis.synthesis @ basis.analysis - torch.eye(4)).abs().max() < 1e-9


@pytest.mark.parametrize("bits", [2, 4, 6])
def test_a_quantized_basis_is_sound_and_has_about_its_bits(bits):
    basis = klt(moments(40, 7)).synthesis
    index, step = quantize_basis(basis, bits)
    assert index.dtype == torch.int32
    assert step == float(torch.tensor(step).bfloat16())
    assert torch.linalg.cond(index.double() * step) < 1e3
    counts = index.flatten().unique(return_counts=True)[1].double()
    law = counts / counts.sum()
    assert float(-(law * law.log2()).sum()) == pytest.approx(bits, abs=0.4)
    assert (index * step - basis).abs().max() <= step / 2 * (1 + 1e-6)


def test_coefficients_make_up_for_the_error_of_a_basis():
    g = torch.Generator().manual_seed(0)
    matrix = torch.randn(8, 30, generator=g, dtype=torch.float64)
    metric = moments(8, 8)
    index, step = quantize_basis(klt(matrix @ matrix.mT).synthesis, 3)
    basis = index.double() * step
    assert (basis @ refit(matrix, basis, metric) - matrix).abs().max() < 1e-9
    short = basis[:, :5]
    error = short @ refit(matrix, short, metric) - matrix
    assert (short.mT @ ridged(metric) @ error).abs().max() < 1e-9  # normal equations
