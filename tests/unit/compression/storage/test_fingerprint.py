"""What makes a compression another one, which must not resume from the folder of the first."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fewbits.compression.storage.fingerprint import fingerprint_run


def network(activation: nn.Module, table: float = 1.0) -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 4), activation)
    net.register_buffer("table", torch.full((2,), table), persistent=False)
    return net


def key(net: nn.Module) -> str:
    return fingerprint_run(net, [torch.ones(2, 4)], lambda size: None)


@pytest.mark.parametrize(
    "other",
    [network(nn.GELU()), network(nn.LeakyReLU(0.2)), network(nn.LeakyReLU(), 2.0)],
    ids=["module", "setting", "buffer that is not stored"],
)
def test_networks_with_the_same_weights_that_compute_something_else(other):
    assert key(network(nn.LeakyReLU())) != key(other)


class Custom(nn.Module):
    """Its text is another in every process."""

    def extra_repr(self) -> str:
        return str(id(self))


def test_the_same_network_built_twice():
    assert key(network(Custom())) == key(network(Custom()))
