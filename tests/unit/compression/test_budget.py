"""Budgets on a small trained network, with a method of the tests' own that has a slope."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import nn

import fewbits
from fewbits.errors import BudgetError, ConfigError
from fewbits.methods import METHODS, Capabilities
from fewbits.recipe.recipe import Recipe, Rule
from sloped import Sloped


def compress(*args, effort="fast", **settings):
    """Compress at an effort that takes no time."""
    return fewbits.compress(*args, effort=effort, **settings)


@dataclass(frozen=True, kw_only=True)
class SlopedSeeing(Sloped):
    """The same, of a network whose normalizations are absorbed and measured."""

    name: ClassVar[str] = "sloped-seeing"
    capabilities: ClassVar[Capabilities] = Capabilities(needs_inputs="quantized", has_slope=True)

    @property
    def absorbs_scales(self):
        return True


@pytest.fixture(autouse=True)
def _registered(monkeypatch):
    for kind in (Sloped, SlopedSeeing):
        monkeypatch.setitem(METHODS._entries, kind.name, kind)


@pytest.fixture
def accuracy(digits):
    """Return a score on the second half of the training images."""
    x, y, _, _ = digits

    def score(model):
        score.calls += 1
        with torch.no_grad():
            return float((model(x[600:]).argmax(1) == y[600:]).float().mean())

    score.calls = 0
    return score


@pytest.mark.parametrize("target", [3000, 4000, 6000])
def test_target_bytes_is_met_from_below_within_one_percent(digits_net, tmp_path, target):
    coded = compress(digits_net, Sloped(), target_bytes=target)
    size = coded.save(tmp_path / "net.fewbits")
    assert 0.99 * target <= size <= target
    assert (tmp_path / "net.fewbits").stat().st_size == size == coded.trace.best.bytes
    assert len(coded.trace.trials) <= 12
    assert coded.plan.recipe.rules[0].method.slope == coded.trace.best.slope


def test_target_bits_counts_the_whole_file(digits_net):
    coded = compress(digits_net, Sloped(), target_bits=4.5)
    assert 0.99 * 4.5 <= coded.bits_per_weight <= 4.5


@pytest.mark.parametrize("effort", ["fast", "balanced"])
def test_sizes_are_of_the_effort_that_is_saved(digits_net, tmp_path, effort):
    coded = compress(digits_net, Sloped(), target_bytes=4000, effort=effort)
    assert coded.save(tmp_path / "a.fewbits") == coded.trace.best.bytes <= 4000
    assert coded.data == coded.encode(effort)
    other = "fast" if effort == "balanced" else "balanced"
    assert coded.save(tmp_path / "b.fewbits", other) == len(coded.encode(other))


def test_max_drop_is_met_on_the_selection(digits_net, accuracy):
    before = accuracy(digits_net)
    coded = compress(digits_net, Sloped(), max_drop=0.01, evaluate=accuracy)
    assert coded.trace.reference == before
    after = accuracy(coded.load_into(digits_net))
    assert after == coded.trace.best.score
    assert before - after <= 0.01 + 1e-9
    fitting = [t for t in coded.trace.trials if before - t.score <= 0.01 + 1e-9]
    assert coded.trace.best.bytes == min(t.bytes for t in fitting)
    assert len(coded.trace.trials) <= 12


def test_the_model_and_its_copies_are_apart(digits_net):
    state = {k: v.clone() for k, v in digits_net.state_dict().items()}

    def meddling(model):
        assert not model.training
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
        return 1.0

    digits_net.train()
    coded = compress(digits_net, Sloped(), max_drop=0.5, evaluate=meddling, evaluations=2)
    assert digits_net.training
    assert all(torch.equal(state[k], v) for k, v in digits_net.state_dict().items())
    assert any(v.any() for v in coded.state_dict().values())


def test_every_rule_with_a_slope_gets_the_same_one(digits_net):
    rules = (
        Rule("*", Sloped(slope=1e-4)),
        Rule("conv2", Sloped(slope=1e-2)),
        Rule("linear", fewbits.Nearest(bits=5)),
        Rule("conv1", None),
    )
    coded = compress(digits_net, Recipe(rules=rules), target_bytes=5000)
    methods = [rule.method for rule in coded.plan.recipe.rules]
    assert methods[0].slope == methods[1].slope == coded.trace.best.slope
    assert methods[2:] == [fewbits.Nearest(bits=5), None]
    assert coded.trace.trials[0].slope == pytest.approx(1e-3)


def test_what_does_not_depend_on_the_slope_is_done_once(digits_net, digits, monkeypatch):
    calls = []
    real = fewbits.compression.pipeline.fold_batchnorm

    def spy(*args):
        calls.append(args)
        return real(*args)

    monkeypatch.setattr("fewbits.compression.pipeline.fold_batchnorm", spy)
    method = SlopedSeeing()
    recipe = Recipe((Rule("*", method),), ("fold_batchnorm",), ("reestimate_batchnorm",))
    batches = (digits[0][k : k + 64] for k in (0, 64, 128))  # can be read once only
    coded = compress(digits_net, recipe, batches, target_bytes=4000)
    assert len(calls) == 1
    assert len(coded.trace.trials) > 1
    slope = coded.trace.best.slope
    rules = (Rule("*", SlopedSeeing(slope=slope)),)
    alone = Recipe(rules, ("fold_batchnorm",), ("reestimate_batchnorm",))
    again = compress(digits_net, alone, list(digits[0][:192].split(64)))
    assert again.data == coded.data


# traces


def test_a_killed_search_resumes_to_the_same_bytes(digits_net, accuracy, tmp_path):
    goal = {"max_drop": 0.02, "evaluate": accuracy}
    whole = compress(digits_net, Sloped(), **goal)
    total = accuracy.calls
    assert total == 1 + len(whole.trace.trials)

    def dying(model):
        if accuracy.calls == total + 4:
            raise KeyboardInterrupt
        return accuracy(model)

    path = tmp_path / "trace.json"
    with pytest.raises(KeyboardInterrupt):
        compress(digits_net, Sloped(), max_drop=0.02, evaluate=dying, trace=path)
    assert len(json.loads(path.read_text())["trials"]) == 3
    resumed = compress(digits_net, Sloped(), trace=path, **goal)
    assert resumed.data == whole.data
    assert accuracy.calls == 2 * total  # nothing twice, the reference included
    finished = compress(digits_net, Sloped(), trace=path, **goal)
    assert finished.data == whole.data
    assert accuracy.calls == 2 * total
    assert finished.trace.to_dict() == resumed.trace.to_dict()


def test_a_trace_of_something_else_is_refused(digits_net, accuracy, tmp_path):
    path = tmp_path / "trace.json"
    compress(digits_net, Sloped(), target_bytes=4000, trace=path)
    kept = path.read_bytes()
    with pytest.raises(ConfigError, match=r"trace\.json.*another goal"):
        compress(digits_net, Sloped(), target_bytes=5000, trace=path)
    with pytest.raises(ConfigError, match="without evaluate="):
        compress(digits_net, Sloped(), target_bytes=4000, trace=path, evaluate=accuracy)
    for settings in ({"effort": "balanced"}, {"seed": 3}):
        with pytest.raises(ConfigError, match="another network, recipe, data, effort or"):
            compress(digits_net, Sloped(), target_bytes=4000, trace=path, **settings)
    with torch.no_grad():
        digits_net.linear.bias[0] += 1
    with pytest.raises(ConfigError, match="another network"):
        compress(digits_net, Sloped(), target_bytes=4000, trace=path)
    assert path.read_bytes() == kept
    path.write_text("{}")
    with pytest.raises(ConfigError, match=r"trace\.json.*not a trace"):
        compress(digits_net, Sloped(), target_bytes=4000, trace=path)


def test_a_trace_whose_bytes_no_longer_come_out_is_refused(digits_net, tmp_path):
    path = tmp_path / "trace.json"
    compress(digits_net, Sloped(), target_bytes=4000, trace=path)
    data = json.loads(path.read_text())
    next(t for t in data["trials"] if t["chosen"])["bytes"] -= 1
    path.write_text(json.dumps(data))
    with pytest.raises(ConfigError, match="Remove it"):
        compress(digits_net, Sloped(), target_bytes=4000, trace=path)


# errors


def test_a_budget_out_of_reach(digits_net, tmp_path):
    path = tmp_path / "trace.json"
    with pytest.raises(BudgetError, match="smallest file reached"):
        compress(digits_net, Sloped(), target_bytes=100, trace=path)
    assert json.loads(path.read_text())["trials"]
    with pytest.raises(BudgetError, match="best score reached"):
        compress(
            digits_net,
            Sloped(slope=100.0),
            max_drop=0.0,
            evaluate=lambda model: float(model.conv1.weight.unique().numel()),
            evaluations=2,
        )


@pytest.mark.parametrize("method", [fewbits.Nearest(levels="lloyd"), fewbits.GPFQ(levels=(0, 1))])
def test_methods_without_a_slope_or_levels_are_told_of_those_with_one(digits_net, digits, method):
    with pytest.raises(ConfigError, match=rf"recipe has {method.name}.*'sloped'"):
        compress(digits_net, method, digits[0][:64], target_bytes=4000)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target_bytes": 1, "target_bits": 2}, "target_bytes and target_bits are given together"),
        ({"target_bytes": 0}, "^target_bytes takes"),
        ({"max_drop": 0.1}, "max_drop needs evaluate="),
        ({"evaluate": len}, "^evaluate= only applies to a search"),
        ({"trace": "x.json"}, "^trace= only applies to a search"),
        ({"time_budget": 3}, "^time_budget= only applies to a search"),
        ({"target_bytes": 9, "evaluations": 0}, "^evaluations must be"),
        ({"target_bytes": 9, "time_budget": -1}, "^time_budget takes"),
        ({"target_bytes": 9, "evaluate": 3}, "^evaluate must be"),
        ({"target_bytes": 9, "evaluate": lambda model: "good"}, "^evaluate must return"),
        ({"target_bytes": 9, "evaluate": lambda model: float("nan")}, "^evaluate must return"),
        ({"effort": "most"}, "^effort must be"),
    ],
)
def test_what_is_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        compress(nn.Linear(4, 4), Sloped(), **settings)


def test_progress_tells_of_every_evaluation(digits_net):
    events = []
    coded = compress(digits_net, Sloped(), target_bytes=4000, progress=events.append)
    told = [event for event in events if event.stage == "search"]
    assert [event.done for event in told] == list(range(len(coded.trace.trials) + 1))
    assert f"{coded.trace.trials[0].bytes:,} bytes" in told[1].detail


@pytest.mark.parametrize("kind", ["nearest", "gptq"])
def test_without_a_slope_the_levels_meet_the_size(digits_net, digits, kind, tmp_path):
    few = digits[0][:128].split(64)
    trace = tmp_path / "trace.json"
    coded = compress(digits_net, kind, few, target_bytes=4500, trace=trace)
    best = coded.trace.best
    assert best.bytes == len(coded.data) <= 4500
    assert coded.plan.recipe.rules[0].method.levels == best.levels
    more = compress(digits_net, METHODS[kind](levels=best.levels + 2), few)
    assert len(more.data) > 4500 or best.bytes > 0.99 * 4500
    assert "levels" in str(coded.trace)
    again = compress(digits_net, kind, few, target_bytes=4500, trace=trace)
    assert again.data == coded.data
    assert len(again.trace.trials) == len(coded.trace.trials)


def test_a_drop_takes_the_fewest_levels(digits_net, accuracy):
    coded = compress(digits_net, "nearest", max_drop=0.01, evaluate=accuracy)
    reference, best = coded.trace.reference, coded.trace.best
    assert reference - best.score <= 0.01
    fewer = [one for one in coded.trace.trials if one.levels < best.levels]
    assert fewer
    assert all(reference - one.score > 0.01 for one in fewer)


def test_levels_that_are_too_many_are_named_in_the_error(digits_net):
    with pytest.raises(BudgetError, match="at 3 levels"):
        compress(digits_net, "nearest", target_bytes=500)
