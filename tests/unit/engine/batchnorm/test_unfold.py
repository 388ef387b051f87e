"""Absorbed normalizations that normalize again: the same function, live statistics, two vectors."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import fewbits
from fewbits.engine.batchnorm.freeze import freeze_absorbed
from fewbits.engine.batchnorm.unfold import unfold_batchnorm
from fewbits.errors import CalibrationError


@pytest.fixture
def coded(digits_net, digits):
    return fewbits.compress(digits_net, fewbits.GPFQ(bits=4), calibration=digits[0][:256])


def test_the_function_stays_and_the_norms_normalize(digits_net, digits, coded):
    images = digits[0]
    coded.load_into(digits_net)
    wanted = digits_net.eval()(images[:64])
    names = freeze_absorbed(digits_net)
    unfold_batchnorm(digits_net, names, images[:512])
    assert torch.allclose(digits_net.eval()(images[:64]), wanted, atol=1e-4)
    digits_net.train()
    for name in names:
        norm = digits_net.get_submodule(name)
        assert norm.training
        assert norm.weight.requires_grad
        assert bool((norm.running_var != 1).all())
    # a batch with the statistics of those that were measured gives nearly what evaluation does
    out = digits_net(images[:512])
    assert (out.argmax(1) == digits_net.eval()(images[:512]).argmax(1)).float().mean() > 0.98


def test_statistics_are_those_of_the_inputs(digits):
    x = digits[0][:300]
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(108, 10))
    nn.init.normal_(net[1].bias)  # one that never learned would not count as absorbed
    coded = fewbits.compress(net.eval(), fewbits.Nearest(bits=6), calibration=x)
    coded.load_into(net)
    fewbits.prepare(net, fewbits.HEMP(), start=coded, norms="live", calibration=x)
    with torch.no_grad():
        seen = net[0](x).double()
    assert torch.allclose(net[1].running_mean.double(), seen.mean((0, 2, 3)), atol=1e-5)
    variance = seen.var((0, 2, 3), unbiased=False)
    assert torch.allclose(net[1].running_var.double(), variance, rtol=1e-4)


def test_the_file_has_two_vectors_again(digits_net, digits, coded, tmp_path):
    images = digits[0][:256]
    tuner = fewbits.prepare(
        digits_net, fewbits.HEMP(), start=coded, norms="live", calibration=images
    )
    digits_net.train()(digits[0][:64])
    again = tuner.finish()
    path = tmp_path / "net.fewbits"
    again.save(path)
    loaded = fewbits.load(path, into=copy.deepcopy(digits_net).eval())
    assert torch.equal(loaded(digits[0][:64]), digits_net.eval()(digits[0][:64]))
    assert bool((loaded.bn1.running_mean == 0).all())


def test_a_norm_that_no_batch_reaches_is_named(digits_net, digits, coded):
    coded.load_into(digits_net)
    names = freeze_absorbed(digits_net)
    digits_net.forward = lambda x: digits_net.bn1(digits_net.conv1(x))
    with pytest.raises(CalibrationError, match="no batch reached normalization 'bn2'"):
        unfold_batchnorm(digits_net, names, digits[0][:32])


def test_live_norms_need_calibration(digits_net, coded):
    with pytest.raises(CalibrationError, match="norms='live' needs calibration"):
        fewbits.prepare(digits_net, fewbits.HEMP(), start=coded, norms="live")
    with pytest.raises(fewbits.ConfigError, match="norms must be 'absorbed' or 'live'"):
        fewbits.prepare(digits_net, fewbits.HEMP(), start=coded, norms="dead")
