"""Reasons: a text for people with a cause for programs."""

import copy
import json
import pickle

import pytest
from torch import nn

import fewbits
from fewbits.coded import Cause, Reason


def test_a_reason_is_its_text():
    reason = Reason(Cause.RULE, "'linear'")
    assert reason == "kept by rule 'linear'"
    assert json.dumps({"why": reason}) == '{"why": "kept by rule \'linear\'"}'
    assert type(str(reason)) is str


def test_a_note_keeps_the_cause():
    noted = Reason(Cause.BIAS).noted("corrected by the mean error")
    assert noted == "biases are kept; corrected by the mean error"
    assert noted.cause is Cause.BIAS


@pytest.mark.parametrize(
    "twin", [copy.copy, copy.deepcopy, lambda r: pickle.loads(pickle.dumps(r))]
)
def test_copies_keep_the_cause(twin):
    reason = Reason(Cause.FALLBACK, "gpfq", "no data")
    made = twin(reason)
    assert (made, made.cause, made.details) == (reason, Cause.FALLBACK, ("gpfq", "no data"))


def test_every_tensor_that_a_plan_keeps_has_a_cause():
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2))
    plan = fewbits.plan(net, fewbits.Recipe((fewbits.Rule("0", fewbits.GPFQ()),)))
    assert {why.cause for why in plan.reasons.values()} == {
        *(Cause.BIAS, Cause.VECTOR, Cause.BUFFER, Cause.DTYPE, Cause.NO_RULE),
    }
