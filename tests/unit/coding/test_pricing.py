"""Alternatives: what every symbol would cost, agrees with what coding costs."""

import numpy as np
import pytest

from fewbits.coding import alternatives
from fewbits.coding.adaptive import measure_bits


def kernels(outputs, inputs, seed=0):
    rng = np.random.default_rng(seed)
    smooth = rng.normal(size=(outputs, inputs, 3, 3))
    smooth[:, :, :, 1:] += 0.8 * smooth[:, :, :, :-1]
    scale = np.exp(0.5 * rng.normal(size=(outputs, 1, 1, 1)))
    return np.rint(1.5 * scale * smooth).clip(-9, 9).astype(np.int32).reshape(outputs, -1)


@pytest.mark.parametrize("shape", [(24, 16), (7, 40), (64, 3)])
def test_the_symbols_as_they_are_cost_what_the_coder_takes(shape):
    index = kernels(*shape)
    found = alternatives(index)
    size = int(index.max() - index.min()) + 1
    assert found.bits.shape == (*index.shape, size)
    assert found.lowest == index.min()
    paid = np.take_along_axis(found.bits, (index - found.lowest)[..., None].astype(int), 2).sum()
    assert paid == pytest.approx(measure_bits(index), rel=0.01, abs=200)
    np.testing.assert_allclose((2.0**-found.bits).sum(2), 1, rtol=1e-4)


def test_settings_are_kept_but_for_the_mean():
    index = kernels(24, 16)
    first = alternatives(index)
    again = alternatives(index + 3, first.settings)
    np.testing.assert_array_equal(first.bits, again.bits)
    assert again.lowest == first.lowest + 3


@pytest.mark.parametrize(
    "index",
    [np.zeros((9, 9), np.int32), np.arange(81, dtype=np.int32).reshape(9, 9), np.ones((9, 1), int)],
)
def test_what_the_model_does_not_take(index):
    assert alternatives(index) is None
