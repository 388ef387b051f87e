"""The harm of every layer alone, against the slow obvious way of measuring it."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fewbits
from fewbits.errors import CalibrationError, ConfigError
from fewbits.recipe.recipe import Recipe, Rule


@pytest.fixture
def batches(digits):
    return list(digits[0][:192].split(64))


def alone(net, name, method, batches):
    """Return the network with one weight quantized, by the whole pipeline."""
    rules = (Rule("*", None), Rule(name, method))
    coded = fewbits.compress(net, Recipe(rules), batches)
    return coded.load_into(net)


@pytest.mark.parametrize("method", [fewbits.Nearest(), fewbits.GPFQ(bias_correction=False)])
def test_against_compressing_one_layer_at_a_time(digits_net, digits, batches, method):
    import copy

    rows = fewbits.sensitivity(digits_net, method, batches, [2, 4], effort="fast")
    assert len(rows) == 8
    x = digits[0][:192]
    with torch.no_grad():
        exact = digits_net(x).double()
        for row in rows:
            settings = {"bits": row.bits}
            if method.name == "gpfq":
                settings["bias_correction"] = False
            one = type(method)(**settings)
            moved = alone(copy.deepcopy(digits_net), row.name, one, batches)(x).double()
            assert row.mse == pytest.approx(float((moved - exact).square().mean()), rel=1e-4)
            kl = F.kl_div(
                moved.log_softmax(-1), exact.log_softmax(-1), log_target=True, reduction="batchmean"
            )
            assert row.kl == pytest.approx(float(kl), rel=1e-3, abs=1e-12)
            assert row.bytes + row.saved == 4 * row.weights


def test_the_layer_error_of_a_linear_layer(digits_net, digits):
    seen = []
    digits_net.linear.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.no_grad():
        digits_net(digits[0][:192])
    inputs, weight = seen[0].double(), digits_net.linear.weight.detach().double()
    net = digits_net
    net.linear._forward_pre_hooks.clear()
    rows = fewbits.sensitivity(net, fewbits.Nearest(), digits[0][:192], [3], effort="fast")
    (row,) = [row for row in rows if row.name == "linear.weight"]
    coded = fewbits.compress(net, fewbits.Nearest(bits=3)).state_dict()["linear.weight"].double()
    error = (inputs @ (coded - weight).T).square().sum() / (inputs @ weight.T).square().sum()
    assert row.layer_error == pytest.approx(float(error), rel=1e-4)


def test_the_order_and_the_network_afterwards(digits_net, batches):
    before = {k: v.clone() for k, v in digits_net.state_dict().items()}
    scores = []

    def score(model):
        changed = [k for k, v in model.state_dict().items() if not torch.equal(v, before[k])]
        scores.append(changed)
        return float(len(changed))

    rows = fewbits.sensitivity(digits_net, "gpfq", batches, evaluate=score, effort="fast")
    assert [row.harm for row in rows] == sorted((row.harm for row in rows), reverse=True)
    assert [row.method for row in rows] == ["gpfq"] * 12
    assert all(len(changed) == 1 for changed in scores)
    assert {row.score for row in rows} == {1.0}
    assert all(torch.equal(v, before[k]) for k, v in digits_net.state_dict().items())
    two, four = ({r.name: r for r in rows if r.bits == bits} for bits in (2, 4))
    assert all(two[name].kl > four[name].kl and two[name].bytes < four[name].bytes for name in two)


def test_weights_whose_inputs_cannot_be_seen_are_rounded():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Embedding(20, 8), nn.Flatten(), nn.Linear(24, 5))
    rows = fewbits.sensitivity(
        net, "gpfq", [torch.randint(0, 20, (16, 3))], bits=[3], effort="fast"
    )
    by_name = {row.name: row for row in rows}
    assert (by_name["0.weight"].method, by_name["0.weight"].layer_error) == ("nearest", None)
    assert by_name["2.weight"].method == "gpfq"
    assert by_name["0.weight"].mse > 0


def test_tied_weights_are_one_row(digits):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)
            self.b.weight = self.a.weight

        def forward(self, x):
            return self.b(self.a(x).relu())

    rows = fewbits.sensitivity(Tied(), "gpfq", torch.randn(32, 8), bits=[2], effort="fast")
    assert [row.name for row in rows] == ["a.weight"]


def test_what_is_refused(digits_net, batches):
    with pytest.raises(ConfigError, match=r"^bits must be"):
        fewbits.sensitivity(digits_net, "gpfq", batches, bits=[])
    with pytest.raises(ConfigError, match="bits must be an integer from 2 to 8"):
        fewbits.sensitivity(digits_net, "gpfq", batches, bits=[1])
    with pytest.raises(CalibrationError, match="changes of the network's output"):
        fewbits.sensitivity(
            digits_net,
            "gpfq",
            batches,
            forward=lambda model, batch: str(model(batch)),
            effort="fast",
        )
