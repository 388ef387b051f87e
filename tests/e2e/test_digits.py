"""The main job on a small trained network and real data: compress, write, load, evaluate."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import fewbits


def _accuracy(net, digits):
    _, _, x, y = digits
    with torch.no_grad():
        return float((net(x).argmax(1) == y).float().mean())


@pytest.mark.parametrize(
    ("method", "drop", "ratio"),
    [
        (fewbits.GPFQ(bits=4), 0.01, 5.0),
        (fewbits.GPFQ(bits=3), 0.02, 6.0),
        (fewbits.GPTQ(bits=4), 0.01, 5.0),
        (fewbits.Qronos(bits=3), 0.02, 6.0),
        (fewbits.Nearest(bits=6), 0.01, 4.0),
    ],
    ids=lambda value: str(value).split("(")[0],
)
def test_small_file_at_nearly_the_same_accuracy(  # noqa: PLR0917
    digits_net, digits, tmp_path, method, drop, ratio
):
    before = _accuracy(digits_net, digits)
    assert before > 0.95
    coded = fewbits.compress(digits_net, method, calibration=digits[0][:512])
    coded.save(tmp_path / "net.fewbits")
    assert coded.compression_ratio > ratio
    fresh = type(digits_net)().eval()
    fewbits.load(tmp_path / "net.fewbits", into=fresh)
    assert _accuracy(fresh, digits) > before - drop


def test_logits_after_reloading_are_bit_identical(digits_net, digits, tmp_path):
    coded = fewbits.compress(digits_net, fewbits.GPFQ(bits=3), calibration=digits[0][:256])
    direct = coded.load_into(type(digits_net)().eval())
    coded.save(tmp_path / "net.fewbits")
    loaded = fewbits.load(tmp_path / "net.fewbits", into=type(digits_net)().eval())
    with torch.no_grad():
        assert torch.equal(direct(digits[2]), loaded(digits[2]))


def test_path_following_beats_rounding_at_three_levels(digits_net, digits):
    accuracy = {}
    for method in (fewbits.Nearest(bits=2, radius="mse"), fewbits.GPFQ(bits=2)):
        coded = fewbits.compress(digits_net, method, calibration=digits[0][:512])
        accuracy[method.name] = _accuracy(coded.load_into(type(digits_net)().eval()), digits)
    assert accuracy["gpfq"] > accuracy["nearest"] + 0.05


def test_reestimated_batchnorm_repairs_plain_rounding(digits_net, digits):
    rules = (fewbits.Rule("*", fewbits.Nearest(bits=2, radius="mse")),)
    plain = fewbits.Recipe(rules=rules, prepare=("fold_batchnorm",), raw_dtype="float16")
    nets = []
    for finish in ((), ("reestimate_batchnorm",)):
        recipe = replace(plain, finish=finish)
        coded = fewbits.compress(digits_net, recipe, calibration=digits[0][:512])
        nets.append(coded.load_into(type(digits_net)().eval()))
    assert _accuracy(nets[1], digits) > _accuracy(nets[0], digits) + 0.1
