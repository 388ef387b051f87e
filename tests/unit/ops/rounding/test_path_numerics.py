"""Single precision, ill-conditioned data, memory and time of the kernels."""

import time

import pytest
import torch

from fewbits.ops.levels.grid import Grid
from fewbits.ops.rounding.path_following import follow_gram, follow_samples

TERNARY = Grid(3)


def correlated(m, columns, neurons, seed=0):
    g = torch.Generator().manual_seed(seed)
    w = torch.rand(1, neurons, columns, generator=g) * 2 - 1
    factors = torch.randn(1, 40, columns, generator=g)
    x = torch.randn(1, m, 40, generator=g) @ factors / 40**0.5
    return w, (x + 0.5 * torch.randn(1, m, columns, generator=g)).relu_()


def relative(w, q, x):
    w, q, x = (part.double() for part in (w, q, x))
    return float((x @ (w - q).mT).norm() / (x @ w.mT).norm())


@pytest.mark.parametrize("form", ["sample", "gram"])
def test_d26_single_precision_follows_double(form):
    w, x = correlated(600, 4096, 32)

    def run(w, x):
        if form == "sample":
            return follow_samples(w, x, x, TERNARY.project_)[0]
        second = x.mT @ x
        return follow_gram(w, second, second, TERNARY.project_)

    single, double = run(w, x), run(w.double(), x.double())
    assert (single != double).double().mean() < 0.01
    assert abs(relative(w, single, x) - relative(w, double, x)) < 1e-3 * relative(w, double, x)


def test_d26_duplicate_and_collinear_columns_stay_finite_and_beat_rounding():
    w, x = correlated(2000, 300, 32)
    x[:, :, 100:200] = x[:, :, :100]
    x[:, :, 200:] = x[:, :, :100] * (1 + 1e-6)
    second = x.mT @ x
    q = follow_gram(w, second, second, TERNARY.project_)
    plain = w.clone()
    TERNARY.project_(plain)
    assert q.isfinite().all()
    assert relative(w, q, x) <= relative(w, plain, x)


@pytest.mark.parametrize("form", ["sample", "gram"])
def test_d28_every_weight_is_quantized_once(form):
    w, x = correlated(50, 300, 8)
    calls = []

    def project_(values):
        calls.append(values.numel())
        TERNARY.project_(values)

    if form == "sample":
        follow_samples(w, x, x, project_)
    else:
        follow_gram(w, x.mT @ x, x.mT @ x, project_)
    assert calls == [8] * 300


@pytest.mark.slow
def test_d28_time_grows_linearly_with_the_columns():
    def seconds(columns):
        w, x = correlated(100, columns, 64)
        best = float("inf")
        for _ in range(3):
            start = time.process_time()
            follow_samples(w, x, x, TERNARY.project_)
            best = min(best, time.process_time() - start)
        return best

    seconds(500)
    assert seconds(8000) < 2.5 * 4 * seconds(2000)  # quadratic growth would be 16 times


@pytest.mark.slow
def test_d28_the_first_layer_of_a_vgg_fits():
    """25088 -> 4096 with 1500 rows, whole: about 5 GB of memory, a minute or so on two cores."""
    resource = pytest.importorskip("resource")  # not on Windows
    from fewbits.engine.layers.layer import LayerMatrix
    from fewbits.engine.layers.statistics import Statistics
    from fewbits.methods import GPFQ

    w, x = correlated(1500, 25088, 4096)
    y = x + 0.01
    mean = x.mean(1)
    layer = LayerMatrix("fc1", w, Statistics(1500, mean, mean, (x, y)))
    inputs = 4 * (w.numel() + x.numel() + y.numel())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    quantized = GPFQ(levels=3).encode(layer)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    assert inputs < before
    assert peak < (1 << 30) + 4 * w.numel()  # beyond the weight: the result and a gigabyte
    assert quantized.info["objective"] < 0.5
