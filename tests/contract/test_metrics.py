"""What every registered metric must do, whatever it measures."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fewbits.errors import ConfigError
from fewbits.evaluation import METRICS
from fewbits.evaluation.base import shown
from fewbits.evaluation.metrics import Score, evaluate

NAMES = pytest.mark.parametrize("name", METRICS)
CLASSES = 12
DRAW = torch.Generator().manual_seed(4)
LABELS = torch.randint(0, CLASSES, (200,), generator=DRAW)
NOISE = torch.randn(200, CLASSES, generator=DRAW)


def good(strength):
    """Return logits that are right the more often the stronger."""
    return strength * F.one_hot(LABELS, CLASSES).float() + NOISE


def result(name, logits, sizes=(200,)):
    metric = METRICS[name]()
    for part, labels in zip(logits.split(list(sizes)), LABELS.split(list(sizes)), strict=True):
        metric.update(part, labels)
    return metric.result()


@NAMES
def test_the_descriptor(name):
    kind = METRICS[name]
    assert kind.name == name
    assert kind.summary
    assert kind.__doc__
    assert isinstance(kind.unit, str)
    assert isinstance(kind.higher_is_better, bool)


@NAMES
def test_a_result_is_a_number_that_people_can_read(name):
    found = result(name, good(1.0))
    assert isinstance(found, float)
    assert math.isfinite(found)
    if METRICS[name].unit == "%":
        assert 0 <= found <= 1
        assert shown(name, found).endswith("%")
    else:
        assert METRICS[name].unit in shown(name, found)


@NAMES
def test_batches_do_not_matter_and_nothing_stays_from_one_pass_to_the_next(name):
    logits, before = good(1.0), good(1.0)
    whole = result(name, logits)
    assert result(name, logits, [1, 120, 0, 79]) == pytest.approx(whole, rel=1e-6)
    assert result(name, logits) == whole
    assert torch.equal(logits, before)


@NAMES
def test_a_better_network_has_the_better_result(name):
    results = [result(name, good(strength)) for strength in (0.0, 2.0, 5.0)]
    assert results == sorted(results, reverse=not METRICS[name].higher_is_better)
    assert results[0] != results[-1]


@NAMES
def test_it_is_told_with_accuracy_and_loss_and_makes_a_score(name):
    class Given(nn.Module):
        def forward(self, inputs):
            return inputs

    batches = [(good(2.0)[:90], LABELS[:90]), (good(2.0)[90:], LABELS[90:])]
    plain, found = (evaluate(Given(), batches, metrics=names) for names in ((), (name,)))
    assert (found.accuracy, found.loss) == (plain.accuracy, plain.loss)
    assert found.value(name) == found.to_dict()[name]
    assert f"{name} {found.value(name):.2%}" in str(found) or METRICS[name].unit != "%"
    sign = 1 if METRICS[name].higher_is_better else -1
    assert Score(name, batches)(Given()) == sign * found.value(name)


def test_an_unknown_metric_is_told():
    with pytest.raises(ConfigError, match=r"unknown metric 'acuracy'.*Did you mean 'accuracy'"):
        evaluate(nn.Identity(), [(NOISE, LABELS)], metrics=("acuracy",))
