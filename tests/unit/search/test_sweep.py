"""Sweeps as files: what is there is not measured again, what is of something else is refused."""

from __future__ import annotations

import json

import pytest

from fewbits.errors import ConfigError
from fewbits.search import Sweep

KEY = {"model": "net", "seed": 0}
FLOAT = {"bytes": 400, "score": 0.9}


def test_a_sweep_goes_through_json():
    settings = {"method": "gpfq", "bits": 3}
    sweep = Sweep(KEY, FLOAT, [{"settings": settings, "goal": None, "bytes": 9}])
    again = Sweep.from_json(sweep.to_json(), KEY)
    assert again.to_dict() == sweep.to_dict()
    assert again.has(settings, None)
    assert not again.has(settings, {"kind": "target_bytes", "limit": 9.0})
    assert not again.has({"method": "gpfq", "bits": 4}, None)


@pytest.mark.parametrize(
    "key", [{"model": "net", "seed": 1}, {"model": "net"}, {**KEY, "effort": "fast"}]
)
def test_a_sweep_of_something_else(key):
    with pytest.raises(ConfigError, match=r"made with (seed|effort) .* Name another file"):
        Sweep.from_json(Sweep(KEY, FLOAT).to_json(), key)


def test_what_is_no_sweep():
    good = Sweep(KEY, FLOAT, [{"settings": {}}]).to_dict()
    broken = [{**good, "points": [3]}, {**good, "points": [{}]}, {**good, "float": {}}]
    broken += [{**good, "key": None}, {**good, "points": None}, {**good, "schema": "x"}, []]
    for data in broken:
        with pytest.raises(ConfigError):
            Sweep.from_json(json.dumps(data), KEY)
    with pytest.raises(ConfigError, match="must be JSON"):
        Sweep.from_json("{", KEY)
