"""HEMP's session on bare parameters: the acceptance tests of the dossier that need no network."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from fewbits import HEMP, Ramp
from fewbits.coding import CODECS, Layout, encode_symbols, entropy
from fewbits.engine.layers.layer import QuantizedMatrix
from fewbits.engine.layers.views import WeightView
from fewbits.errors import ConfigError
from fewbits.methods import METHODS, TunedWeight, from_settings, to_settings
from fewbits.ops.levels.codebook import assign


def tuned(values, **settings):
    parameter = nn.Parameter(values.clone())
    return TunedWeight("weight", parameter, WeightView("weight", len(values)), **settings)


def on_levels(values, levels):
    """A weight whose codebook is given: it starts from codes."""
    index = assign(values, levels).int()[None]
    return tuned(values, start=QuantizedMatrix(index, None, levels=levels))


def normal(rows=60, columns=80, seed=0, scale=0.05):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * scale


def run(session, steps):
    for _ in range(steps):
        session.before_step()
        session.step()


@pytest.mark.parametrize(("rate", "moves"), [(0.60, False), (0.66, True)])
def test_a_weight_in_the_middle_goes_to_the_popular_level_iff_that_is_worth_it(rate, moves):
    """Popularity 3:1, so L = log2 3 = 1.585 bits; L* = 1/rate is 1.667 or 1.515."""
    values = torch.tensor([[0.0] * 3000 + [1.0] * 1000 + [0.5]])
    weight = on_levels(values, torch.tensor([0.0, 1.0]))
    with torch.no_grad():
        weight.parameter[0, -1] = 0.5001  # on the side of the unpopular level
    session = HEMP(rate_weight=rate, pull=0.02, insensitive=False).start([weight])
    for _ in range(400):
        run(session, 1)
        with torch.no_grad():  # the popularity stays: soft masses would follow the force
            weight.parameter[0, :-1] = values[0, :-1]
    assert (float(weight.parameter[0, -1].detach()) < 0.5) == moves
    index = session.quantized(weight).index
    assert int(index[0, 0, -1]) == (0 if moves else 1)


def test_weights_cross_where_the_rule_says():
    """A network with 90 % zeros, where the odds between zero and its neighbours are 4 to 5 bits."""
    fractions = []
    values = normal()
    values[torch.rand(values.shape, generator=torch.Generator().manual_seed(1)) < 0.9] = 0
    for bits in (8.0, 3.0, 0.5):
        weight = tuned(values)
        method = HEMP(levels=9, spacing="even", rate_weight=1 / bits, pull=0.05, insensitive=False)
        session = method.start([weight])
        before = session.quantized(weight).index
        run(session, 200)
        fractions.append(float((session.quantized(weight).index != before).float().mean()))
    assert fractions[0] < 0.002
    assert fractions[2] > fractions[1] > 0.005


def test_pruned_weights_stay_exactly_zero():
    values = normal()
    values[torch.rand(values.shape, generator=torch.Generator().manual_seed(1)) < 0.9] = 0
    weight = tuned(values, mask=values != 0)
    session = HEMP(levels=9, rate_weight=0.6).start([weight])
    for _ in range(100):
        with torch.no_grad():  # an optimizer that moves everything
            weight.parameter.add_(1e-3)
        run(session, 1)
    assert bool((weight.parameter.detach()[values == 0] == 0).all())
    decoded = session.quantized(weight).dequantize()[0]
    assert bool((decoded[values == 0] == 0).all())
    assert bool((decoded[values != 0] != 0).any())


def test_without_the_entropy_the_distance_falls_by_the_pull_in_every_step():
    weight = tuned(normal())
    session = HEMP(levels=9, rate_weight=0, pull=0.1, insensitive=False).start([weight])
    levels = session.quantized(weight).dequantize()[0]
    inside = weight.parameter.detach().clamp(levels.min(), levels.max()).sub(levels)
    for step in range(1, 30):
        run(session, 1)
        gap = weight.parameter.detach() - levels
        torch.testing.assert_close(gap, inside * 0.9**step, rtol=1e-3, atol=1e-6)


def test_the_insensitivity_spares_weights_that_the_loss_feels():
    weight = tuned(normal())
    session = HEMP(levels=9, rate_weight=0, pull=0.5).start([weight])
    before = weight.parameter.detach().clone()
    gradient = torch.zeros_like(before)
    gradient[0, 0], gradient[0, 1] = 2.0, 1.0
    weight.parameter.grad = gradient
    target = session.quantized(weight).dequantize()[0]
    run(session, 1)
    moved = (weight.parameter.detach() - before) / (target - before)
    assert moved[0, :3].tolist() == pytest.approx([0.0, 0.25, 0.5], abs=1e-4)


def test_the_coder_finds_the_pairs_of_a_network_trained_for_them():
    """Order 2 lowers H_2 far more than H_1, and the codec that learns is the one to take it."""
    weight = tuned(normal(100, 120))
    method = HEMP(levels=7, spacing="even", order=2, rate_weight=0.75, pull=0.02, insensitive=False)
    session = method.start([weight])
    run(session, 300)
    index = session.quantized(weight).index.reshape(100, 120).numpy().astype(np.int32)
    layout = Layout(100, 120)
    sizes = {name: len(CODECS[name].encode(index, layout)) for name in ("rans", "mix")}
    assert sizes["mix"] < 0.9 * sizes["rans"]
    codec, data = encode_symbols(index, layout)
    assert codec == "mix"
    assert len(data) == sizes["mix"]


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("spacing", ["lloyd", "even"])
def test_resumed_and_repeated_runs_give_the_same_indices(order, spacing):
    method = HEMP(levels=7, spacing=spacing, order=order, rate_weight=Ramp(0, 0.9), refit=15)
    whole, parted = tuned(normal()), tuned(normal())
    session = method.start([whole])
    first = method.start([parted])
    for k in range(33):
        for one in (session, first):
            one.advance(k / 57)
            run(one, 1)
    second = method.start([parted])
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for k in range(33, 57):
        for one in (session, second):
            one.advance(k / 57)
            run(one, 1)
    assert torch.equal(whole.parameter, parted.parameter)
    ours, theirs = session.quantized(whole), second.quantized(parted)
    assert torch.equal(ours.index, theirs.index)
    assert torch.equal(ours.dequantize(), theirs.dequantize())


def test_refit_levels_follow_the_weights():
    weight = tuned(normal())
    session = HEMP(levels=7, rate_weight=0, pull=0, refit=1).start([weight])
    before = session.quantized(weight).levels
    with torch.no_grad():
        weight.parameter.mul_(0.5)
    run(session, 2)
    after = session.quantized(weight).levels
    assert float(after.abs().max()) < 0.7 * float(before.abs().max())
    assert 0 in after.tolist()


def test_rate_assignment_takes_cheaper_levels_than_the_nearest():
    nearest, priced = tuned(normal()), tuned(normal())
    plain = HEMP(levels=15, spacing="even", rate_weight=1)
    rated = HEMP(levels=15, spacing="even", rate_weight=1, assign="rate")
    index = {
        name: method.start([weight]).quantized(weight).index.reshape(60, 80).numpy()
        for name, method, weight in (("plain", plain, nearest), ("rated", rated, priced))
    }
    assert (index["rated"] == 0).mean() > (index["plain"] == 0).mean()
    assert entropy(index["rated"]) < 0.95 * entropy(index["plain"])


def test_bits_in_the_loss_have_the_gradient_of_the_entropy():
    weight = tuned(normal())
    method = HEMP(levels=7, spacing="even", slope=1e-3, forward="quantized")
    session = method.start([weight])
    penalty = session.penalty()
    assert float(penalty.detach()) == pytest.approx(
        1e-3 * session.measures()["bits_per_weight"] * weight.parameter.numel(), rel=1e-5
    )
    penalty.backward()
    gradient = weight.parameter.grad
    outward = gradient * weight.parameter.detach()
    assert bool((outward >= 0).all())  # never away from zero
    assert float((gradient != 0).float().mean()) > 0.9


def test_the_crossing_rule_is_no_part_of_the_loss():
    session = HEMP(rate_weight=0.4).start([tuned(normal())])
    assert float(session.penalty()) == 0


def test_too_high_an_order_is_lowered_and_said():
    with pytest.warns(UserWarning, match="order 3"):
        session = HEMP(levels=31, order=3).start([tuned(normal())])
    assert session.measures()["bits_per_weight"] > 1


def test_measures_are_the_states():
    weight = tuned(torch.tensor([[0.0, 0.0, 0.0, 1.0]]))
    session = HEMP(levels=3, pull=0).start([weight])
    assert session.measures() == pytest.approx(
        {"bits_per_weight": 0.8113, "distance": 0, "zeros": 0.75}, abs=1e-4
    )


def test_settings_as_plain_values_and_back():
    method = HEMP(levels=9, slope=Ramp(0, 1e-4, until=0.4), forward="quantized")
    settings = to_settings(method)
    assert settings["slope"] == {"start": 0, "end": 1e-4, "until": 0.4}
    assert settings["method"] == "hemp"
    assert "pull" not in settings
    assert from_settings(settings) == method
    assert METHODS["hemp"] is HEMP
    assert to_settings(HEMP()) == {"method": "hemp"}
    assert from_settings({"method": "hemp", "slope": None}) == HEMP()  # as older files say


@pytest.mark.parametrize(
    "settings",
    [
        {"levels": 8},
        {"levels": 1},
        {"levels": True},
        {"order": 5},
        {"order": 0},
        {"spacing": "odd"},
        {"forward": "both"},
        {"assign": "best"},
        {"pool": "layer"},
        {"rate_weight": -1},
        {"rate_weight": float("inf")},
        {"rate_weight": Ramp(-1, 1)},
        {"slope": "1"},
        {"pull": -0.1},
        {"width": 0},
        {"soft": 1.5},
        {"refresh": 0},
        {"refit": -1},
        {"insensitive": 1},
    ],
)
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ConfigError, match=next(iter(settings))):
        HEMP(**settings)
