"""Absorbed normalizations while training: the function stays that of the compressed network."""

from __future__ import annotations

import copy

import torch
from torch import nn

import fewbits
from fewbits.engine.batchnorm.freeze import freeze_absorbed, unfreeze


def test_absorbed_norms_are_held_and_others_are_not(digits_net, digits):
    coded = fewbits.compress(digits_net, fewbits.GPFQ(bits=6), calibration=digits[0][:256])
    folded = coded.load_into(copy.deepcopy(digits_net))
    wanted = folded(digits[0][:64])
    assert freeze_absorbed(digits_net) == []
    assert freeze_absorbed(folded) == ["bn1", "bn2", "bn3"]
    folded.train()
    assert folded.training
    assert torch.equal(folded(digits[0][:64]), wanted)
    assert not folded.bn1.weight.requires_grad
    assert folded.bn1.bias.requires_grad
    moved = copy.deepcopy(folded).train()
    assert moved.bn1.train.__self__ is moved.bn1
    assert not moved.bn1.training
    unfreeze(folded)
    assert folded.train().bn1.training
    assert folded.bn1.weight.requires_grad
    assert "train" not in vars(folded.bn1)


def test_a_norm_that_never_learned_is_not_held():
    assert freeze_absorbed(nn.Sequential(nn.BatchNorm2d(4))) == []
    plain = nn.BatchNorm2d(4, affine=False)
    assert freeze_absorbed(nn.Sequential(plain, nn.BatchNorm1d(2, track_running_stats=False))) == []


def test_training_goes_on_from_an_absorbed_network(digits_net, digits):
    coded = fewbits.compress(digits_net, fewbits.GPFQ(bits=4), calibration=digits[0][:256])
    tuner = fewbits.prepare(digits_net, fewbits.HEMP(), start=coded)
    with tuner.quantized():
        assert torch.equal(
            tuner.model.train()(digits[0][:64]),
            coded.load_into(type(digits_net)().eval())(digits[0][:64]),
        )
    tuner.finish()
    assert digits_net.train().bn1.training
