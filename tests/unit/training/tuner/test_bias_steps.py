"""Biases that a start has rounded stay on its steps."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import fewbits
from fewbits.training.tuner.bias_steps import BiasSteps, step_of


def _network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 8))


def _images(count: int = 64) -> Tensor:
    return torch.randn(count, 12, generator=torch.Generator().manual_seed(1))


def _start(rounding: bool = True, raw_dtype: str = "keep") -> fewbits.CompressionResult:
    method = fewbits.RDOQ(slope=1e-3, bias_rounding=rounding)
    recipe = fewbits.Recipe.of(method)
    recipe = fewbits.Recipe(recipe.rules, raw_dtype=raw_dtype)
    return fewbits.compress(_network(), recipe, _images())


def _trained(tuner: fewbits.Tuner, steps: int = 30) -> None:
    x = _images()
    y = torch.randn(64, 8, generator=torch.Generator().manual_seed(2))
    optimizer = torch.optim.SGD(tuner.model.parameters(), lr=0.05)
    for done in range(steps):
        loss = nn.functional.mse_loss(tuner.model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        tuner.step()
        tuner.advance((done + 1) / steps)


def _multiples(values: Tensor, step: Tensor) -> bool:
    whole = values.double() / step
    return torch.equal(whole, whole.round())


@settings(max_examples=40, deadline=None)
@given(st.integers(-20, 8), st.integers(0, 2**31))
def test_the_step_of_a_vector_is_found(exponent: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    whole = torch.randint(-40, 41, (64,), generator=generator)
    whole[0] = 40  # the least number of steps in the largest value
    values = torch.ldexp(whole.double(), torch.tensor(exponent)).float()
    step = step_of(values)
    assert step is not None
    assert step.unique().tolist() == [2.0**exponent]


def test_a_few_finer_values_keep_steps_of_their_own() -> None:
    whole = torch.arange(-15, 16, 2).double()
    step = step_of(torch.cat([whole / 4, torch.tensor([3 / 64, 5 / 64]).double()]))
    assert step is not None
    assert step.tolist() == [1 / 4] * 16 + [1 / 64] * 2


@pytest.mark.parametrize(
    "values",
    [
        torch.zeros(5),
        torch.randn(64, generator=torch.Generator().manual_seed(0)),
        torch.tensor([0.5, float("nan")]),
        torch.tensor([0.5, float("inf")]),
    ],
    ids=["zeros", "floats in full", "nan", "infinite"],
)
def test_some_vectors_have_no_step(values: Tensor) -> None:
    assert step_of(values) is None


def test_floats_of_16_bits_in_full_have_no_step() -> None:
    values = torch.randn(64, generator=torch.Generator().manual_seed(0)).half()
    assert step_of(values, 12) is None


def test_a_single_round_value_is_not_taken_for_a_coarse_step() -> None:
    assert step_of(torch.tensor([1.0])).tolist() == [0.125]  # type: ignore[union-attr]


@pytest.mark.parametrize("raw_dtype", ["keep", "float16"])
@pytest.mark.parametrize(
    "method", [fewbits.HEMP(), fewbits.LowBit(activations=32)], ids=["hemp", "lowbit"]
)
def test_trained_biases_stay_on_the_steps_of_the_start(
    method: fewbits.HEMP | fewbits.LowBit, raw_dtype: str
) -> None:
    start, model = _start(raw_dtype=raw_dtype), _network()
    tuner = fewbits.prepare(model, method, start=start, raw_dtype=None)
    rounded = {name: b.detach().clone() for name, b in model.named_parameters() if "bias" in name}
    steps = {name: step_of(values) for name, values in rounded.items()}
    _trained(tuner)
    free = {name: b.detach().clone() for name, b in model.named_parameters() if "bias" in name}
    assert all(not _multiples(values, steps[name]) for name, values in free.items())
    with tuner.quantized():
        seen = {n: b.detach().clone() for n, b in model.named_parameters() if "bias" in n}
    now = dict(model.named_parameters())
    assert all(torch.equal(now[name], values) for name, values in free.items())
    coded = tuner.finish(fold=False)
    for name, step in steps.items():
        assert step is not None
        final = model.get_parameter(name)
        assert _multiples(final, step)
        assert torch.equal(final, seen[name])
        assert bool((final.double() - free[name].double()).abs().le(step / 2).all())
        assert "rounded to the steps" in str(coded.plan.kept[name])
    assert "2 bias vectors stay on the steps of the start" in coded.notes


def test_training_moves_a_bias_by_whole_steps() -> None:
    start, model = _start(), _network()
    before = start.state_dict()["0.bias"]
    tuner = fewbits.prepare(model, fewbits.HEMP(), start=start)
    with torch.no_grad():
        model[0].bias.add_(0.3)
    tuner.finish(fold=False)
    assert torch.allclose(model[0].bias - before, torch.tensor(0.3), atol=0.13)
    assert not torch.equal(model[0].bias, before)


@pytest.mark.parametrize("start", [None, "full"])
def test_floats_in_full_stay_so(start: str | None) -> None:
    begun = None if start is None else _start(rounding=False)
    model = _network()
    tuner = fewbits.prepare(model, fewbits.HEMP(), start=begun)
    with torch.no_grad():
        model[0].bias.add_(1e-4)
    values = model[0].bias.detach().clone()
    coded = tuner.finish(fold=False)
    assert torch.equal(model[0].bias, values)
    assert not any("steps of the start" in note for note in coded.notes)


def test_normalizations_that_live_again_have_biases_without_steps() -> None:
    model = nn.Sequential(nn.Linear(12, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 8))
    model.eval()
    start = fewbits.compress(model, fewbits.RDOQ(slope=1e-3), _images())
    absorbed = fewbits.prepare(_copy(model), fewbits.HEMP(), start=start)
    assert "rounded to the steps" in str(absorbed.plan.kept["1.bias"])
    live = fewbits.prepare(
        _copy(model), fewbits.HEMP(), start=start, norms="live", calibration=[_images()]
    )
    assert "rounded to the steps" not in str(live.plan.kept["1.bias"])


def test_no_start_has_no_steps() -> None:
    model = _network()
    plan = fewbits.prepare(model, fewbits.HEMP()).plan
    assert BiasSteps.of(_network(), None, plan, ()).steps == {}


def _copy(model: nn.Sequential) -> nn.Sequential:
    copy = nn.Sequential(nn.Linear(12, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 8))
    copy.load_state_dict(model.state_dict())
    return copy.eval()


def test_biases_that_a_normalization_took_over_stay_zero() -> None:
    model = _copy(
        nn.Sequential(nn.Linear(12, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 8)).eval()
    )
    start = fewbits.compress(model, fewbits.RDOQ(slope=1e-3), _images())
    assert not start.state_dict()["0.bias"].any()
    net = _copy(model)
    tuner = fewbits.prepare(net, fewbits.HEMP(), start=start)
    assert "stays zero" in str(tuner.plan.kept["0.bias"])
    _trained(tuner)
    coded = tuner.finish()
    assert not coded.state_dict()["0.bias"].any()
    assert bool((coded.state_dict()["1.bias"] != start.state_dict()["1.bias"]).any())
    assert all(parameter.requires_grad for parameter in net.parameters())
    assert len(coded.encode()) < len(start.encode()) + 40


def test_a_zero_bias_without_normalizations_is_trained() -> None:
    model = _network()
    with torch.no_grad():
        model[0].bias.zero_()
    start = fewbits.compress(model, fewbits.Nearest(bits=4))
    tuner = fewbits.prepare(model, fewbits.HEMP(), start=start)
    _trained(tuner)
    tuner.finish()
    assert model[0].bias.any()
