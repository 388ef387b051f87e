"""The price of a bit follows the entropy that is wanted, on its own and in a training."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

import fewbits
from fewbits.coded import GridTensor
from fewbits.errors import ConfigError
from fewbits.methods.trained.hemp.rate_control import RateControl


def test_the_price_rises_while_there_are_too_many_bits():
    rate_control = RateControl(1.0, 0.5, 0.1)
    rate_control.update(2.0, 0.0)
    assert rate_control.price == pytest.approx(0.1)  # the line begins at what there is
    rate_control.update(2.0, 0.25)  # 1.5 are due: beyond a fifth too many
    assert rate_control.price == pytest.approx(0.1 * math.exp(0.4))
    rate_control.update(0.9, 1.0)
    assert rate_control.price == pytest.approx(0.1 * math.exp(0.4) * math.exp(-0.2))


def test_the_price_stays_within_its_bounds_and_is_resumed():
    rate_control = RateControl(1.0, 0.0, 0.1)
    for _ in range(8):
        rate_control.update(3.0, 0.5)
    with pytest.warns(UserWarning, match="3.00 bits per weight; 1.00 are due"):
        rate_control.update(3.0, 0.5)
    rate_control.update(3.0, 0.5)  # told once: warnings are errors here
    assert rate_control.price == 3.0
    other = RateControl(1.0, 0.0, 0.1)
    other.load_state(rate_control.state())
    assert other == rate_control
    for _ in range(100):
        rate_control.update(0.2, 0.5)
    assert rate_control.price == 1e-3


def _entropy(coded: fewbits.CodedModel) -> float:
    """Bits per index of all weights, counted over the network."""
    parts = [t.index for t in coded.contents.tensors.values() if isinstance(t, GridTensor)]
    _, counts = np.unique(np.concatenate([part.reshape(-1) for part in parts]), return_counts=True)
    chances = counts / counts.sum()
    return float(-(chances * np.log2(chances)).sum())


def test_a_training_ends_at_the_entropy_that_is_wanted(digits_net, digits):
    images, labels = digits[0], digits[1]
    start = fewbits.compress(digits_net, fewbits.GPFQ(bits=3), calibration=images[:256])
    wanted = 0.93 * _entropy(start)
    method = fewbits.HEMP(
        forward="quantized",
        assign="rate",
        rate_weight=0.05,
        bits=wanted,
        arrival=0.7,
        refresh=2,
        steps="fixed",
    )
    tuner = fewbits.prepare(digits_net, method, start=start, zeros=False)
    assert tuner.parameters() == []  # fixed steps are not trained
    optimizer = torch.optim.Adam(tuner.groups(1e-3, cells=3e-3))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 200)
    for done in range(200):
        rows = torch.arange(done * 64, done * 64 + 64) % len(images)
        loss = nn.functional.cross_entropy(digits_net(images[rows]), labels[rows])
        optimizer.zero_grad()
        (loss + tuner.penalty()).backward()
        optimizer.step()
        tuner.step()
        schedule.step()
        tuner.advance((done + 1) / 200)
    assert _entropy(tuner.finish()) == pytest.approx(wanted, rel=0.05)


def test_the_entropy_is_steered_where_levels_are_chosen_by_rate():
    with pytest.raises(ConfigError, match="assign='rate' and forward='quantized'"):
        fewbits.HEMP(bits=1.0)
    with pytest.raises(ConfigError, match="steps"):
        fewbits.HEMP(steps="some")
    with pytest.raises(ConfigError, match="arrival"):
        fewbits.HEMP(arrival=1.5)
