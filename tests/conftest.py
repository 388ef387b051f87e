"""Shared by all tests: one thread (two wait on busy cores), one small network trained on digits."""

from __future__ import annotations

import copy
from functools import cache

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

torch.set_num_threads(1)


class SmallNet(nn.Module):
    """Three convolutions with batch normalization, a residual sum, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.conv2, self.bn2 = nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.conv3, self.bn3 = nn.Conv2d(16, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32)
        self.linear = nn.Linear(32, 10)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(x + self.bn2(self.conv2(x)))
        x = F.relu(self.bn3(self.conv3(x)))
        return self.linear(x.mean((2, 3)))


@pytest.fixture(scope="session")
def digits():
    """(train images, train labels, test images, test labels) of scikit-learn's digits."""
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(images))
    x = torch.tensor(images[order].reshape(-1, 1, 8, 8) / 8 - 1, dtype=torch.float32)
    y = torch.tensor(labels[order])
    return x[:1297], y[:1297], x[1297:], y[1297:]


@pytest.fixture(scope="session")
def _trained(digits):
    x, y, _, _ = digits
    torch.manual_seed(0)
    net = SmallNet()
    optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(8):
        for rows in torch.randperm(len(x), generator=generator).split(64):
            optimizer.zero_grad()
            F.cross_entropy(net(x[rows]), y[rows]).backward()
            optimizer.step()
    return net.eval()


@pytest.fixture
def digits_net(_trained):
    """A fresh copy of a trained network of 8,000 weights, above 95 % on the test digits."""
    return copy.deepcopy(_trained)


@pytest.fixture(scope="session")
def operators_once():
    """Have ``torch.onnx.export`` begin with a copy of one table.

    It reads the source of 500 functions of onnxscript to make it: half the time that the export of
    a small network takes. Versions of torch that make it elsewhere just take longer.
    """
    try:
        from torch.onnx._internal.exporter._registration import ONNXRegistry
    except ImportError:
        yield
        return
    made = cache(ONNXRegistry.from_torchlib)

    def copied(**settings):
        table = copy.copy(made(**settings))
        table.functions = {name: list(found) for name, found in table.functions.items()}
        return table

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ONNXRegistry, "from_torchlib", staticmethod(copied))
        yield
