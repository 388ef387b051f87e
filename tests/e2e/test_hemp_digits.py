"""HEMP against the same training without its entropy term, whole files on the bundled digits."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fewbits
from fewbits import HEMP

SEEDS = (0, 1, 2)


def perceptron(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(),
        nn.Linear(100, 10),
    )  # fmt: skip


def train(net, data, epochs, lr, tuner=None):
    optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9)
    generator = torch.Generator().manual_seed(0)
    batches = [
        b for _ in range(epochs) for b in torch.randperm(1297, generator=generator).split(64)
    ]
    for done, rows in enumerate(batches, 1):
        optimizer.zero_grad()
        F.cross_entropy(net(data[0][rows]), data[1][rows]).backward()
        optimizer.step()
        if tuner is not None:
            tuner.step()
            tuner.advance(done / len(batches))
    return net


@pytest.mark.slow
def test_the_file_is_a_tenth_smaller_at_nearly_the_same_accuracy(digits, tmp_path):
    sizes = {"control": 0, "hemp": 0}
    accuracies = {"control": 0.0, "hemp": 0.0}
    for seed in SEEDS:  # of one network alone, four of the 500 images decide
        start = train(perceptron(seed), digits, 15, 0.05)
        for name, method in {
            "control": HEMP(levels=9, rate_weight=0),
            "hemp": HEMP(levels=9, order=2, rate_weight=0.28, assign="rate"),
        }.items():
            net = copy.deepcopy(start)
            tuner = fewbits.prepare(net, method, raw_dtype="float16")
            train(net, digits, 15, 0.01, tuner)
            sizes[name] += tuner.finish().save(tmp_path / name)
            net = fewbits.load(tmp_path / name, into=perceptron())
            with torch.no_grad():
                right = float((net(digits[2]).argmax(1) == digits[3]).float().mean())
            accuracies[name] += right / len(SEEDS)
    assert sizes["hemp"] < 0.9 * sizes["control"]
    assert accuracies["hemp"] > accuracies["control"] - 0.006
