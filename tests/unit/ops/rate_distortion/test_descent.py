"""The descent that keeps its gradient does what its slow twin does."""

import pytest
import torch

from fewbits.ops.rate_distortion.cheapest_levels import PricedLevels
from fewbits.ops.rate_distortion.descent import Descent
from slow_descent import descend


@pytest.mark.parametrize("shape", [(2, 5, 6), (1, 40, 30)], ids=["plain", "compiled"])
@pytest.mark.parametrize("slope", [0.0, 3.0])
@pytest.mark.parametrize("even", [True, False], ids=["integers", "codebook"])
def test_sweeps_are_those_of_the_slow_twin(shape, slope, even):
    groups, neurons, columns = shape
    generator = torch.Generator().manual_seed(columns)
    inputs = torch.randn(groups, 3 * columns, columns, generator=generator, dtype=torch.float64)
    second = inputs.mT @ inputs
    weight = 3 * torch.randn(*shape, generator=generator, dtype=torch.float64)
    grid = torch.arange(-9.0, 10, dtype=torch.float64)
    codebook = None if even else grid.sign() * grid.abs() ** 1.2
    bits = 1 + torch.rand(1, len(grid), generator=generator, dtype=torch.float64) + grid.abs()
    each = bits.expand(groups, -1)
    price = torch.full((groups, neurons), slope * columns, dtype=torch.float64)
    energy = second.diagonal(dim1=1, dim2=2)
    order = energy.argsort(1, descending=True)
    levels = weight.round().clamp(-9, 9) if codebook is None else torch.zeros_like(weight)
    descent = Descent(weight, levels, second, order, codebook)
    for _ in range(3):
        chooser = PricedLevels(grid if even else codebook, energy.gather(1, order), price, each)
        levels = descend(weight, levels, second, chooser.project_, order)
        descent.sweep(price, each, -9 if even else 0)
        assert torch.equal(descent.levels, levels)
