"""Messages stay short whatever they tell of, and no plain value makes another error."""

from __future__ import annotations

from collections import OrderedDict, UserDict
from dataclasses import fields
from functools import reduce

import pytest
import torch

import fewbits
from cpu_time import within
from fewbits import METHODS
from fewbits.errors import (
    ConfigError,
    FewbitsError,
    SourceError,
    did_you_mean,
    is_number,
    require,
    shorten,
)
from fewbits.recipe.training_config import Training

BOMB = reduce(lambda held, _: [held, held], range(40), "x")
MAPPING_BOMB = reduce(lambda held, _: OrderedDict(a=held, b=held), range(40), "x")


@pytest.mark.parametrize(
    "value",
    [BOMB, MAPPING_BOMB, UserDict(a=BOMB), 10**100_000, -(10**5000), "x" * 10**7, b"x" * 10**7,
     list(range(10**6)), {k: k for k in range(10**6)}, (BOMB, 1), {1, 2}, torch.zeros(10**6),
     [[10**5000]], fewbits.GPFQ(bits=4)],
    ids=str.__class__,
)  # fmt: skip
def test_values_are_abbreviated_at_once(value):
    with within(1):
        assert 0 < len(shorten(value)) <= 300
        with pytest.raises(ConfigError, match="x must be y") as error:
            require(False, "x", "y", value)
    assert len(str(error.value)) < 400


@pytest.mark.parametrize(
    "value", [None, True, 4, -1.5, "a", [1, [2]], {"b": 1, "a": {"c": ()}}, b"z"]
)
def test_what_is_short_is_shown_as_it_is(value):
    assert shorten(value) == repr(value)


def test_a_message_loses_its_middle():
    told = str(SourceError("begin " + "x" * 10**6 + " end"))
    assert len(told) < 4100
    assert told.startswith("begin x")
    assert told.endswith("x end")
    assert str(FewbitsError("short")) == "short"
    assert did_you_mean("x" * 10**6, ["x"]) == ""


def test_numbers():
    assert is_number(1)
    assert is_number(-2.5)
    for value in (True, None, "1", float("nan"), float("inf"), 10**400):
        assert not is_number(value)


ODD = [None, True, -1, 0, 2**63 - 1, 1e308, -0.5, 10**400, float("nan"), "", "x", [], [[1]], {},
       {"a": 1}, {"start": 1, "end": 10**400}, {"start": "x", "end": 2}, {"start": 1},
       BOMB]  # fmt: skip


@pytest.mark.parametrize("name", list(METHODS))
def test_no_setting_of_a_method_makes_another_error(name):
    kind = METHODS[name]
    for setting in [*(f.name for f in fields(kind)), "method", "no such", 1]:
        for value in ODD:
            _refused_or_taken([{"match": "*", "method": name, setting: value}], {})


def test_nor_of_a_recipe_or_of_training():
    rules = [{"match": "*", "method": "nearest"}]
    whole = ("seed", "raw_dtype", "calibration_rows")
    for key in ("rules", "prepare", "finish", "activations", *whole):
        for value in [*ODD, [None], ["x"], [{"match": 1}], {"bits": []}]:
            _refused_or_taken(rules, {key: value})
    for setting in [*(f.name for f in fields(Training)), "no such", 1]:
        for value in ODD:
            _refused_or_taken(rules, {"train": {"method": "hemp", setting: value}})
    for value in [*ODD, [rules]]:
        _refused_or_taken(value, {})


def _refused_or_taken(rules, more):
    told = ""
    try:
        fewbits.Recipe.from_dict({"rules": rules, **more})
    except ConfigError as error:
        told = str(error)
    assert len(told) < 1500
