"""Products of two small matrices, against the product itself."""

import pytest
import torch

from fewbits.ops.low_rank import balanced, product_energy


@pytest.mark.parametrize("shape", [(12, 3, 20), (5, 5, 5), (4, 1, 9)])
def test_the_parts_are_those_of_the_product(shape):
    rows, rank, columns = shape
    generator = torch.Generator().manual_seed(0)
    left = torch.randn(rows, rank, generator=generator)
    right = torch.randn(rank, columns, generator=generator)
    u, s, v = balanced(left, right)
    product = left.double() @ right.double()
    assert torch.allclose((u * s) @ v, product, atol=1e-10)
    assert torch.allclose(s, torch.linalg.svdvals(product)[:rank], atol=1e-10)
    assert torch.allclose(u.mT @ u, torch.eye(rank, dtype=torch.float64), atol=1e-10)
    assert product_energy(left, right) == pytest.approx(float(product.square().sum()))


def test_a_product_of_zeros():
    _, s, _ = balanced(torch.zeros(6, 2), torch.ones(2, 7))
    assert s.tolist() == [0, 0]
    assert product_energy(torch.zeros(6, 2), torch.ones(2, 7)) == 0
