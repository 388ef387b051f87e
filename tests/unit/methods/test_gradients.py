"""Methods that ask for gradients get them; weights that no gradient reaches fall back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import nn

import fewbits
from fewbits.engine.layers.layer import LayerMatrix
from fewbits.methods import Capabilities, Nearest, PostTrainingMethod

SEEN: dict[str, LayerMatrix] = {}


@dataclass(frozen=True, kw_only=True)
class Watching(PostTrainingMethod):
    """Rounds, and keeps what it was given."""

    name: ClassVar[str] = "watching"
    summary: ClassVar[str] = "a test's"
    paper: ClassVar[str] = "none"
    capabilities: ClassVar[Capabilities] = Capabilities(
        needs_inputs="quantized", needs_gradients=True
    )

    bits: int = 5

    def encode(self, layer):
        SEEN[layer.name] = layer
        return Nearest(bits=self.bits).encode(layer)


@dataclass(frozen=True, kw_only=True)
class WatchingBlindly(Watching):
    """The same without inputs."""

    capabilities: ClassVar[Capabilities] = Capabilities(needs_gradients=True)


def _net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, groups=2), nn.ReLU(), nn.Flatten(), nn.LSTM(64, 5), Last(), _last()
    ).eval()


class Last(nn.Module):
    def forward(self, x):
        return x[0]


def _last():
    return nn.Linear(5, 3)


BATCHES = [torch.randn(6, 2, 6, 6, generator=torch.Generator().manual_seed(i)) for i in range(2)]


@pytest.mark.parametrize("kind", [Watching, WatchingBlindly])
def test_every_weight_that_a_gradient_reaches_comes_with_its_sensitivity(kind):
    SEEN.clear()
    net = _net()
    coded = fewbits.compress(net, kind(), calibration=BATCHES)
    assert set(SEEN) == {"0.weight", "5.weight"}
    conv, linear = SEEN["0.weight"], SEEN["5.weight"]
    assert (conv.kernel, linear.kernel) == (9, 1)
    assert conv.sensitivity.rows.shape == (2, 2)
    assert conv.sensitivity.columns.shape == (2, 9, 9)
    assert conv.sensitivity.samples == 12
    assert linear.sensitivity.columns.shape == (1, 5, 5)
    assert linear.sensitivity.outputs.shape == (1, 3, 3)
    reasons = {e.target.name: (e.method.name, e.reason) for e in coded.plan.entries}
    assert reasons["5.weight"] == ("watching", "")
    method, reason = reasons["3.weight_ih_l0"]
    assert method == "nearest"
    assert reason == "instead of watching: no gradient reaches the weight"


def test_a_linear_layer_has_the_sensitivity_of_its_jacobian():
    SEEN.clear()
    net = nn.Sequential(_last()).eval()
    x = torch.randn(4000, 5, generator=torch.Generator().manual_seed(0))
    fewbits.compress(net, Watching(), calibration=list(x.split(500)))
    found = SEEN["0.weight"].sensitivity
    # y = Wx, less the shift common to all three: E[g_o g_p] = (1[o = p] - 1/3) |x|^2
    energy = float(x.square().sum(1).mean())
    expected = energy * (torch.eye(3) - 1 / 3).double()
    assert torch.allclose(found.outputs[0].double(), expected, rtol=0.05, atol=0.05 * energy)
    covariance = (x - x.mean(0)).mT @ (x - x.mean(0)) / 4000
    assert torch.allclose(found.columns[0].double(), covariance.double(), rtol=0.15, atol=0.1)


def test_a_network_without_gradients_is_refused_with_the_reason():
    def silent(model, batch):
        with torch.no_grad():
            return model(batch)

    with pytest.raises(fewbits.CalibrationError, match=r"with\s+gradients"):
        fewbits.compress(_net(), Watching(), calibration=BATCHES, forward=silent)
    with pytest.raises(fewbits.CalibrationError, match="'watching' needs calibration data"):
        fewbits.compress(_net(), WatchingBlindly())


def test_other_methods_ask_for_none():
    kinds = (fewbits.GPFQ, Nearest)
    assert not any(kind.capabilities.needs_gradients for kind in kinds)
