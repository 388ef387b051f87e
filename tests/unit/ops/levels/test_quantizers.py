"""Quantizers against the papers' formulas, worked examples and slow twins."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from fewbits.ops.levels.quantizers import (
    bounds,
    dorefa_activation,
    dorefa_index,
    dorefa_unit,
    dorefa_weight,
    lsq,
    lsq_damping,
    lsq_plus,
    lsq_plus_weight_step,
    lsq_step,
    pact,
)
from fewbits.ops.levels.ranges import (
    fit_percentile,
    fit_range,
    fit_rows,
    fit_shifted,
    shifted_percentile,
)

W = torch.tensor([-1.5, -0.6, -0.2, -0.001, 0, 0.001, 0.25, 0.7, 1.2])
TABLE = {
    1: [-1, -1, -1, -1, -1, 1, 1, 1, 1],
    2: [-1, -1 / 3, -1 / 3, -1 / 3, 1 / 3, 1 / 3, 1 / 3, 1, 1],
    3: [-1, -5 / 7, -1 / 7, -1 / 7, 1 / 7, 1 / 7, 1 / 7, 5 / 7, 1],
    4: [-1, -0.6, -0.2, -1 / 15, 1 / 15, 1 / 15, 1 / 3, 11 / 15, 13 / 15],
    8: [-1, -0.592157, -0.215686, -0.003922, 0.003922, 0.003922, 0.270588, 0.670588, 0.921569],
}
SLOPES = [0.199643, 1.57229, 3.185256, 4.419161, 5.523957, 6.628742, 7.269642, 5.610039, 3.032851]


def grads(function, *inputs, upstream=None):
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    out = function(*leaves)
    out.backward(torch.ones_like(out) if upstream is None else upstream)
    return [out.detach(), *(leaf.grad for leaf in leaves)]


@pytest.mark.parametrize("bits", TABLE)
def test_dorefa_weights_of_the_worked_example(bits):
    torch.testing.assert_close(
        dorefa_weight(W, bits), torch.tensor(TABLE[bits]).float(), rtol=0, atol=1e-6
    )
    top = 2**bits - 1
    again = (2 * dorefa_index(W, bits).float() - top) / top
    assert torch.equal(again, dorefa_weight(W, bits))


@pytest.mark.parametrize("bits", TABLE)
@pytest.mark.parametrize("detach", [True, False])
def test_dorefa_gradient_of_the_worked_example(bits, detach):
    found = grads(
        lambda w: dorefa_weight(w, bits, detach_max=detach), W, upstream=torch.arange(1.0, 10)
    )[1]
    wanted = torch.tensor(SLOPES)
    wanted[0] = SLOPES[0] if detach else 2.732355
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("bits", range(1, 9))
def test_levels(bits):
    top = 2**bits - 1
    generator = torch.Generator().manual_seed(bits)
    many = dorefa_weight(torch.randn(100_000, generator=generator), bits)
    allowed = torch.tensor([(2 * i - top) / top for i in range(top + 1)])
    assert len(many.unique()) <= 2**bits
    assert float((many[:, None] - allowed).abs().amin(1).max()) < 1e-6
    spread = torch.linspace(-0.5, 1.5, 100_001)
    inputs = dorefa_activation(spread, bits)
    assert torch.equal(inputs.unique(), torch.arange(top + 1) / top)
    if bits <= 4:
        assert len(dorefa_weight(torch.linspace(-2, 2, 100_001), bits).unique()) == 2**bits


def test_dorefa_activation_and_its_gradient_at_the_ends():
    x = torch.tensor([-0.2, 0.0, 0.3, 1.0, 1.3])
    value, slope = grads(lambda x: dorefa_activation(x, 2), x)
    torch.testing.assert_close(value, torch.tensor([0, 0, 1 / 3, 1, 1]))
    assert slope.tolist() == [0, 1, 1, 1, 0]
    assert torch.equal(dorefa_activation(value, 2), value)


def test_dorefa_weight_is_odd_and_monotone():
    w = torch.randn(5000, generator=torch.Generator().manual_seed(0)).sort().values
    for bits in (1, 2, 3, 4, 8):
        q = dorefa_weight(w, bits)
        assert bool((q.diff() >= 0).all())
        units = dorefa_unit(w) * (2**bits - 1)
        clear = ((units % 1) - 0.5).abs() > 1e-4  # away from ties
        torch.testing.assert_close(dorefa_weight(-w, bits)[clear], -q[clear], rtol=0, atol=1e-6)


@pytest.mark.parametrize("weight", [torch.zeros(3, 4), torch.ones(1), torch.full((2, 3), -0.7)])
def test_odd_weights_stay_finite(weight):
    for rows in (False, True):
        for function in (
            lambda w: dorefa_weight(w, 2, per_row=rows),  # noqa: B023
            lambda w: lsq(w, lsq_step(w.detach(), 1), -2, 1),
            lambda w: lsq(w, lsq_plus_weight_step(w.detach(), 2), -2, 1),
        ):
            assert all(bool(torch.isfinite(x).all()) for x in grads(function, weight))


def test_dorefa_per_row_is_every_row_on_its_own():
    w = torch.randn(4, 3, 2, generator=torch.Generator().manual_seed(1))
    rows = torch.stack([dorefa_weight(row, 3) for row in w])
    assert torch.equal(dorefa_weight(w, 3, per_row=True), rows)


def test_surrogates_pass_gradcheck(monkeypatch):
    """With rounding left out, autograd's gradients are those of finite differences."""
    monkeypatch.setattr("fewbits.ops.levels.quantizers.rounded", lambda x: x)
    generator = torch.Generator().manual_seed(3)
    w = torch.randn(12, dtype=torch.float64, generator=generator).requires_grad_()
    check = torch.autograd.gradcheck
    assert check(lambda w: dorefa_weight(w, 2), (w,))
    assert check(lambda w: dorefa_activation(w, 2), (w,))


def test_straight_through_equals_the_surrogate(monkeypatch):
    """Rounding changes values, and no gradient but that of a step."""
    w = torch.randn(50, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    cases = [lambda w: dorefa_weight(w, 3), lambda w: dorefa_activation(w, 3)]
    ours = [grads(case, w)[1] for case in cases]
    monkeypatch.setattr("fewbits.ops.levels.quantizers.rounded", lambda x: x)
    for mine, case in zip(ours, cases, strict=True):
        torch.testing.assert_close(mine, grads(case, w)[1])


def test_autocast_changes_no_code():
    generator = torch.Generator().manual_seed(5)
    w, x = torch.randn(4000, generator=generator), torch.rand(4000, generator=generator)
    step = lsq_step(w, 127)

    def codes():
        return torch.cat([dorefa_weight(w, 8), dorefa_activation(x, 8), lsq(w, step, -128, 127)])

    plain = codes()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(codes(), plain)


def test_lsq_of_the_worked_example():
    v = torch.tensor([-3, -1.2, -0.4, 0.1, 0.6, 1.4, 2.7])
    damping = lsq_damping(7, 1)
    assert damping == pytest.approx(1 / math.sqrt(7))
    value, dv, ds = grads(
        lambda v, s: lsq(v, s, -2, 1, damping),
        v,
        torch.tensor([0.8]),
        upstream=torch.arange(1.0, 8),
    )
    torch.testing.assert_close(value, torch.tensor([-1.6, -1.6, 0, 0, 0.8, 0.8, 0.8]))
    assert dv.tolist() == [0, 2, 3, 4, 5, 0, 0]
    assert float(ds) == pytest.approx(4.630064, abs=1e-5)


def slow_lsq(v, s, low, high):
    """Entry by entry, as the paper has it: value, slope in v, slope in s."""
    rows = []
    for x in v.tolist():
        u = x / s
        if u <= low:
            rows.append((low * s, 0.0, low))
        elif u >= high:
            rows.append((high * s, 0.0, high))
        else:
            rows.append((round(u) * s, 1.0, round(u) - u))
    return [torch.tensor(column, dtype=torch.float64) for column in zip(*rows, strict=True)]


@pytest.mark.parametrize(("low", "high"), [(-2, 1), (-8, 7), (0, 3), (0, 255)])
def test_lsq_against_the_paper_and_torch(low, high):
    """torch passes the gradient half a step further out, where a value still rounds to an end."""
    v = torch.randn(500, dtype=torch.float64, generator=torch.Generator().manual_seed(6)) * 3
    step, g = 0.61, 0.05
    upstream = torch.rand(500, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    one = torch.tensor([step], dtype=torch.float64)
    value, dv, ds = grads(lambda v, s: lsq(v, s, low, high, g), v, one, upstream=upstream)
    wanted, slope, in_step = slow_lsq(v, step, low, high)
    torch.testing.assert_close(value, wanted)
    torch.testing.assert_close(dv, slope * upstream)
    torch.testing.assert_close(ds, (in_step * upstream).sum()[None] * g)
    units = v / step
    same = ~(((units < low) & (units > low - 0.5)) | ((units > high) & (units < high + 0.5)))
    v, upstream, single = v.float()[same], upstream.float()[same], one.float()
    ours = grads(lambda v, s: lsq(v, s, low, high, g), v, single, upstream=upstream)
    zero = torch.zeros(1)
    theirs = grads(
        lambda v, s: torch._fake_quantize_learnable_per_tensor_affine(v, s, zero, low, high, g),
        v,
        single,
        upstream=upstream,
    )
    for mine, torchs in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, torchs, rtol=1e-4, atol=1e-5)


def composed_lsq(v, s, low, high):
    """LSQ of plain operators, differentiated by autograd."""
    u = v / s
    u = torch.where((u > low) & (u < high), u, u.detach().clamp(low, high))
    return (u + (u.round() - u).detach()) * s


@pytest.mark.parametrize("shape", [(1,), (6, 1, 1, 1)])
@pytest.mark.parametrize("last", [False, True])
def test_lsq_is_what_its_operators_give(shape, last):
    generator = torch.Generator().manual_seed(8)
    v, upstream = torch.randn(2, 6, 4, 3, 5, dtype=torch.float64, generator=generator)
    if last:
        v = v.contiguous(memory_format=torch.channels_last)
    step = 0.2 + torch.rand(shape, dtype=torch.float64, generator=generator)
    ours, theirs = (
        grads(lambda v, s, f=f: f(v, s, -2, 1), v, step, upstream=upstream)
        for f in (lsq, composed_lsq)
    )
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other)
    assert ours[0].stride() == v.stride()


def test_lsq_of_half_precision_computes_in_float32():
    v = torch.randn(300, generator=torch.Generator().manual_seed(9)).bfloat16()
    step = torch.tensor([0.037])
    value, dv, ds = grads(lambda v, s: lsq(v, s, -128, 127), v, step)
    wide, dwide, dstep = grads(lambda v, s: lsq(v, s, -128, 127), v.float(), step)
    assert value.dtype == dv.dtype == torch.bfloat16
    assert ds.dtype == torch.float32
    assert torch.equal(value, wide.bfloat16())
    assert torch.equal(dv, dwide.bfloat16())
    assert torch.equal(ds, dstep)


def test_lsq_plus_shift():
    x = torch.tensor([-2.0, -0.3, 0.2, 0.9, 5.0])
    value, dx, ds, db = grads(
        lambda x, s, b: lsq_plus(x, s, b, 0, 3), x, torch.tensor([0.5]), torch.tensor([-0.4])
    )
    torch.testing.assert_close(value, torch.tensor([-0.4, -0.4, 0.1, 1.1, 1.1]))
    assert dx.tolist() == [0, 1, 1, 1, 0]
    u = (x + 0.4) / 0.5
    inside = float(((u.round() - u)[1:4]).sum())
    assert float(ds) == pytest.approx(inside + 0 + 3, abs=1e-5)
    assert float(db) == 2.0


def test_lsq_steps():
    w = torch.tensor([[1.0, -3.0], [0.0, 0.0]])
    assert float(lsq_step(w, 4)) == pytest.approx(2 * 1.0 / 2)
    assert lsq_step(w, 4, per_row=True).tolist() == [2.0, 1.0]
    assert float(lsq_plus_weight_step(torch.tensor([1.0, 3.0]), 2)) == pytest.approx(5 / 2)
    assert bounds(4, signed=True) == (-8, 7)
    assert bounds(4, signed=False) == (0, 15)


def test_pact():
    x = torch.tensor([-0.5, 0.4, 1.9, 2.0, 3.0])
    value, dx, da = grads(lambda x, a: pact(x, a, 2), x, torch.tensor([2.0]))
    torch.testing.assert_close(value, torch.tensor([0, 2 / 3, 2, 2, 2]))
    assert dx.tolist() == [0, 1, 1, 0, 0]
    assert float(da) == 2.0
    also = grads(lambda x, a: pact(x, a, 2, inside=True), x, torch.tensor([2.0]))
    torch.testing.assert_close(also[0], value)
    inside = float(((value - x) / 2)[1:3].sum())
    assert float(also[2]) == pytest.approx(2.0 + inside, abs=1e-5)


def test_odd_integers_reproduce_a_convolution():
    generator = torch.Generator().manual_seed(8)
    x = dorefa_activation(torch.rand(2, 3, 7, 7, generator=generator), 3)
    w = torch.randn(5, 3, 3, 3, generator=generator)
    for bits in (2, 4, 7):
        top = 2**bits - 1
        odd = 2 * dorefa_index(w, bits).double() - top
        whole = (x.double() * 7).round()
        exact = F.conv2d(whole, odd, padding=1) / (7 * top)
        found = F.conv2d(x, dorefa_weight(w, bits), padding=1)
        torch.testing.assert_close(found.double(), exact, rtol=0, atol=1e-5)


def slow_error(values, step, low, high):
    units = torch.tensor([min(max(round(v / step), low), high) for v in values.tolist()])
    return float((units * step - values).square().sum())


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("signed", [True, False])
def test_ranges_of_least_error(bits, signed):
    generator = torch.Generator().manual_seed(bits)
    values = torch.randn(3000, generator=generator)
    values = values if signed else values.abs()
    low, high = bounds(bits, signed)
    clip = fit_range(values, bits, signed=signed)
    least = slow_error(values, clip / high, low, high)
    for factor in (0.7, 0.85, 1.2, 1.5):
        assert least <= slow_error(values, clip * factor / high, low, high) * 1.01
    assert 0 < clip <= float(values.abs().max()) * 1.01


def slow_range(values, bits, signed):
    low, high = bounds(bits, signed)
    largest = float(values.abs().max()) if values.numel() else 0.0
    best, least = largest or 1.0, float("inf")
    for number in range(96 if largest else 0):
        clip = largest * 0.01 ** (number / 95)
        step = clip / max(1, high)
        error = float(((values / step).round().clamp(low, high) * step - values).square().mean())
        if error < least:
            best, least = clip, error
    return best


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("signed", [True, False])
def test_ranges_of_rows_are_those_of_each_row(bits, signed, monkeypatch):
    """Whatever their size, and in however many runs."""
    generator = torch.Generator().manual_seed(bits)
    rows = torch.randn(23, 67, generator=generator) * 10 ** torch.linspace(-6, 3, 23)[:, None]
    rows[3], rows[5, :-1], rows[7] = 0.0, 0.0, 2.5
    rows = rows if signed else rows.abs()
    expected = [slow_range(row, bits, signed) for row in rows]
    for at_once in (1 << 20, 300, 1):
        monkeypatch.setattr("fewbits.ops.levels.ranges._AT_ONCE", at_once)
        assert fit_rows(rows, bits, signed=signed).tolist() == expected
    assert [fit_range(row, bits, signed=signed) for row in rows] == expected
    for empty in (torch.zeros(0, 5), torch.zeros(2, 0)):
        assert fit_rows(empty, bits, signed=signed).tolist() == [1.0] * len(empty)


def test_ranges_by_percentile():
    values = torch.arange(1, 1001).float()
    assert fit_percentile(values, 99.0) == pytest.approx(990, abs=2)
    assert fit_percentile(torch.zeros(10), 99.0) == 1.0
    assert fit_range(torch.zeros(10), 4, signed=False) == 1.0


def test_shifted_ranges_by_percentile():
    values = torch.arange(-200, 801).float()[torch.randperm(1001)]
    assert shifted_percentile(values, 4, 99.0) == (980.0, 3)
    assert shifted_percentile(values, 4, 100.0) == (1000.0, 3)
    assert shifted_percentile(-values.abs(), 4, 100.0) == (800.0, 15)
    assert shifted_percentile(values.abs(), 4, 100.0) == (800.0, 0)
    assert shifted_percentile(torch.zeros(10), 4, 99.0) == (1.0, 0)
    few = torch.tensor([0.0] * 999 + [3.0])
    assert shifted_percentile(few, 2, 99.0) == (3.0, 0)  # of the few that are not zero
    assert shifted_percentile(torch.zeros(0), 2, 99.0) == (1.0, 0)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("shift", [-1.0, 0.0, 3.0])
def test_shifted_ranges_of_least_error(bits, shift):
    """No share of the range that was tried does better; one try is the whole range."""
    values = torch.randn(3000, generator=torch.Generator().manual_seed(9)) + shift
    clip, zero = fit_shifted(values, bits)
    top = (1 << bits) - 1
    assert 0 <= zero <= top

    def error(clip):
        step = clip / top
        index = ((values / step).round() + zero).clamp(0, top)
        return float(((index - zero) * step - values).square().mean())

    low, high = min(0.0, float(values.min())), float(values.max())
    tried = [(high - low) * 0.01 ** (k / 95) for k in range(96)]
    assert error(clip) == pytest.approx(min(map(error, tried)), rel=1e-4)
    whole, same = fit_shifted(values, bits, 1)
    assert (whole, same) == (pytest.approx(high - low), zero)
    assert fit_shifted(torch.zeros(5), bits) == (1.0, 0)
    assert fit_shifted(values.abs(), bits)[1] == 0
