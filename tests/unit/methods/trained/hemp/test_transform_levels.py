"""Weights made of a basis and coefficients, both in training: values, gradients, state."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from fewbits.engine.layers.layer import QuantizedTransform
from fewbits.engine.layers.targets import survey
from fewbits.methods import HEMP
from fewbits.methods.trained.base import TunedWeight
from fewbits.methods.trained.hemp.levels import levels_of
from fewbits.methods.trained.hemp.rounding import Rounding
from fewbits.ops.transforms import fold, unfold

VECTORS = 3


def started(side="row"):
    """A convolution in a basis of three vectors, as training finds it."""
    module = nn.Conv2d(5, 7, 3, bias=False)
    target = survey(nn.Sequential(module)).targets[0]
    kernel = math.prod(target.view.kernel)
    channels = 5 if side == "row" else 7
    g = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randint(-4, 5, shape, generator=g, dtype=torch.int32)  # noqa: E731
    rest = module.weight.numel() // channels
    start = QuantizedTransform(
        *(draw(VECTORS, rest), torch.rand(VECTORS, generator=g) + 0.1, torch.tensor([0.5])),
        *(draw(channels, VECTORS), torch.tensor([0.1]), side, (1, 7, 45), kernel),
    )
    with torch.no_grad():
        module.weight.copy_(target.view.tensor(start.dequantize(), target.shape))
    return TunedWeight(target.name, module.weight, target.view, start=start)


def session(weight, **settings):
    settings = {"forward": "quantized", "slope": 0, **settings}
    return HEMP(**settings).start([weight])


@pytest.mark.parametrize("side", ["row", "column"])
def test_gradients_are_those_of_the_product(side):
    weight = started(side)
    start, rounding = (
        weight.start,
        Rounding(weight, levels_of(weight.start), trained=False, basis=True),
    )
    aim = torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
    (rounding(weight.parameter) * aim).sum().backward()

    basis = (start.basis.double() * 0.1).requires_grad_()
    values = start.step.double()[:, None] * (start.index - 0.5)
    values.requires_grad_()
    product = fold(basis @ values, start.shape, start.kernel, side)
    (product * weight.view.matrix(aim)).sum().backward()
    assert torch.allclose(rounding.basis.grad.double(), basis.grad, atol=1e-4)
    own = unfold(weight.view.matrix(weight.parameter.grad), start.kernel, side).double()
    # the parameter holds S_0 T, so its gradient is that of T by the pseudo-inverse of S_0
    assert torch.allclose(own, torch.linalg.pinv(basis.detach()).mT @ values.grad, atol=1e-3)


def test_a_trained_basis_is_on_its_grid_and_coefficients_keep_their_levels():
    weight = started()
    own = session(weight)
    (rounding,) = [own.parametrization(weight)]
    with torch.no_grad():
        rounding.basis += 0.07 * torch.randn(rounding.basis.shape)
    found = own.quantized(weight)
    assert torch.equal(found.index, weight.start.index)
    assert torch.equal(found.basis, (rounding.basis / 0.1).round().int())
    assert not torch.equal(found.basis, weight.start.basis)
    made = weight.view.matrix(rounding(weight.parameter).detach())
    assert torch.allclose(made, found.dequantize(), atol=1e-5)


def test_a_fixed_basis_is_no_parameter():
    weight = started()
    own = session(weight, bases="fixed", steps="fixed")
    assert list(own.parameters()) == []
    assert torch.equal(own.quantized(weight).basis, weight.start.basis)


def test_a_resumed_session_has_the_basis():
    first, second = started(), started()
    own, other = session(first), session(second)
    with torch.no_grad():
        own.parametrization(first).basis += 0.2
    other.load_state_dict(own.state_dict())
    assert torch.equal(other.quantized(second).basis, own.quantized(first).basis)
