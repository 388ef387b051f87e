"""Ramps: values between shares of the training, and as plain data."""

from __future__ import annotations

import pytest

from fewbits import Ramp
from fewbits.errors import ConfigError
from fewbits.methods.schedule import value_at


@pytest.mark.parametrize(
    ("shape", "middle"),
    [("linear", 2.5), ("cosine", 2.5), ("geometric", 2.0), ("step", 1.0)],
)
def test_shapes(shape, middle):
    ramp = Ramp(1, 4, begin=0.2, until=0.6, shape=shape)
    assert [ramp(share) for share in (0, 0.2, 0.6, 1)] == [1, 1, 4, 4]
    assert ramp(0.4) == pytest.approx(middle)


def test_cosine_is_slow_at_both_ends():
    ramp = Ramp(0, 1, shape="cosine")
    assert ramp(0.1) < 0.05
    assert ramp(0.9) > 0.95


def test_constants_are_settings_too():
    assert value_at(0.3, 0.9) == 0.3
    assert value_at(Ramp(0, 1), 0.25) == 0.25


def test_plain_data_and_back():
    ramp = Ramp(0.0, 0.4, until=0.5, shape="cosine")
    assert ramp.to_dict() == {"start": 0.0, "end": 0.4, "until": 0.5, "shape": "cosine"}
    assert Ramp.of(ramp.to_dict()) == ramp
    assert Ramp.of(0.4) == 0.4


@pytest.mark.parametrize(
    "settings",
    [
        {"start": 0, "end": float("nan")},
        {"start": 0, "end": 1, "begin": 0.6, "until": 0.5},
        {"start": 0, "end": 1, "until": 1.5},
        {"start": 0, "end": 1, "shape": "wave"},
        {"start": 0, "end": 1, "shape": "geometric"},
        {"start": True, "end": 1},
        {"start": 0, "stop": 1},
    ],
)
def test_other_settings_are_refused(settings):
    with pytest.raises(ConfigError):
        Ramp.of(settings)
