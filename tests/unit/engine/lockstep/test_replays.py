"""Weights whose inputs their module computes: what they are calibrated on, and what that gains."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import fewbits
from fewbits.engine.layers.layer import LayerMatrix, QuantizedMatrix
from fewbits.engine.layers.targets import survey
from fewbits.engine.lockstep.lockstep import run_lockstep
from fewbits.engine.lockstep.quantizer import LayerQuantizer, Work
from fewbits.engine.network.batches import call_model
from fewbits.methods import GPFQ, Nearest


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def correlated(*shape: int, seed: int = 0) -> Tensor:
    """Return sequences (sequences, steps, features) of few degrees of freedom, slow in time."""
    *outer, features = shape
    x = numbers(*outer, 6, seed=seed)
    for step in range(1, shape[1]):
        x[:, step] = 0.8 * x[:, step - 1] + 0.6 * x[:, step]
    return x @ numbers(6, features, seed=99) / 2


class Net(nn.Module):
    def __init__(self, inner: nn.Module, packed: bool = False) -> None:
        super().__init__()
        self.first = nn.Linear(12, 12)
        self.inner, self.packed = inner, packed

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        if not self.packed:
            return self.inner(x)[0]
        lengths = torch.arange(len(x)) % x.shape[1] + 1
        short = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        return pad_packed_sequence(self.inner(short)[0], batch_first=True)[0]


def made(kind: str) -> Net:
    torch.manual_seed(0)
    net = {
        "GRU": lambda: Net(nn.GRU(12, 24, 2, bidirectional=True, batch_first=True)),
        "LSTM projected": lambda: Net(nn.LSTM(12, 32, 2, proj_size=16, batch_first=True)),
        "packed": lambda: Net(nn.LSTM(12, 24, 2, bidirectional=True, batch_first=True), True),
        "RNN": lambda: Net(nn.RNN(12, 32, 3, batch_first=True)),
    }[kind]()
    with torch.no_grad():
        for name, weight in net.inner.named_parameters():
            if "weight" in name:
                weight.mul_(1.5)
    return net.eval()


KINDS = ("GRU", "LSTM projected", "packed", "RNN")


@pytest.mark.filterwarnings("ignore:LSTM with projections")  # torch, of the network itself
@pytest.mark.parametrize("kind", KINDS)
def test_errors_are_less_than_half_of_plain_rounding(kind):
    net = made(kind)
    batches = list(correlated(48, 24, 12).split(16))
    held = correlated(32, 24, 12, seed=1)
    errors = {}
    for method in (Nearest(bits=4), GPFQ(bits=4)):
        changed = copy.deepcopy(net)
        coded = fewbits.compress(net, method, calibration=batches)
        assert all(entry.method == method for entry in coded.plan.entries)
        coded.load_into(changed)
        with torch.no_grad():
            exact = net(held)
            errors[method.name] = float((changed(held) - exact).norm() / exact.norm())
    assert errors["gpfq"] < errors["nearest"] / 2


def by_hand(inner: nn.GRU, x: Tensor, layer: int) -> Tensor:
    """Return the outputs of a stacked layer before each step, (sequences * steps, size)."""
    for k in range(layer + 1):
        w_ih, w_hh, b_ih, b_hh = (
            getattr(inner, f"{part}_l{k}")
            for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        )
        h, before, after = torch.zeros(len(x), w_hh.shape[1]), [], []
        for step in x.unbind(1):
            before.append(h)
            (ar, az, an), (br, bz, bn) = (
                (step @ w_ih.T + b_ih).chunk(3, 1),
                (h @ w_hh.T + b_hh).chunk(3, 1),
            )
            z = (az + bz).sigmoid()
            h = (1 - z) * (an + (ar + br).sigmoid() * bn).tanh() + z * h
            after.append(h)
        x = torch.stack(after, 1)
    return torch.stack(before, 1).flatten(0, 1)


def test_moments_are_of_states_of_both_networks_as_they_are_at_that_time():
    """H = X~'X~ and G = X~'X, where X~ comes from all weights that are quantized before."""
    torch.manual_seed(0)
    net = Net(nn.GRU(12, 8, 2, batch_first=True)).eval()
    batches = [numbers(6, 5, 12), numbers(6, 5, 12, seed=1)]
    changed, seen = copy.deepcopy(net), []

    def encode(layer: LayerMatrix) -> QuantizedMatrix:
        if layer.name.endswith("weight_hh_l1"):
            with torch.no_grad():
                x, y = (
                    torch.cat([by_hand(n.inner, n.first(b), 1) for b in batches])
                    for n in (net, changed)
                )
            assert not torch.allclose(x, y, atol=1e-2)
            for found, wanted in zip(layer.statistics.moments(), (y.T @ y, y.T @ x), strict=True):
                torch.testing.assert_close(found[0], wanted, atol=1e-4, rtol=1e-4)
            seen.append(layer.statistics.rows)
        return Nearest(bits=3).encode(layer)

    run(net, changed, batches, encode, reference=net)
    assert seen == [60]


def run(
    net: nn.Module, changed: nn.Module, batches: Any, encode: Any, **options: Any
) -> LayerQuantizer:
    work: dict[str, list[Work]] = {}
    for target in survey(net).targets:
        work.setdefault(target.module, []).append(Work(target, encode))
    observer = LayerQuantizer(changed, work, len(batches), 0, **options)
    run_lockstep(net, changed, list(work), batches, call_model, observer)
    return observer


@pytest.mark.parametrize("budget", [7, 64])
def test_the_row_budget_holds(budget):
    seen: dict[str, int] = {}

    def encode(layer: LayerMatrix) -> QuantizedMatrix:
        seen[layer.name] = layer.statistics.rows
        return Nearest(bits=4).encode(layer)

    net = made("GRU")
    batches = list(numbers(12, 9, 12).split(4))
    run(net, copy.deepcopy(net), batches, encode, rows=budget, reference=net)
    assert set(seen.values()) == {budget}


class ByLength(nn.Module):
    """It cuts sequences off where a score of theirs says so."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.inner = nn.Linear(12, 12), nn.LSTM(12, 12, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        lengths = x.shape[1] // 2 + (x.mean((1, 2)).argsort().argsort() % 3)
        short = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        return pad_packed_sequence(self.inner(short)[0], batch_first=True)[0]


def test_sequences_whose_lengths_depend_on_values_are_not_paired():
    torch.manual_seed(0)
    batches = list(numbers(48, 8, 12).split(12))
    coded = fewbits.compress(ByLength().eval(), GPFQ(bits=2), calibration=batches)
    reasons = {entry.target.name: entry.reason for entry in coded.plan.entries}
    assert "inputs alone" in reasons["inner.weight_hh_l0"]


class Stepped(nn.Module):
    """A cell that is called once a step."""

    def __init__(self, cell: nn.RNNCellBase) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, x: Tensor) -> Tensor:
        state = None
        for step in x.unbind(1):
            state = self.cell(step, state)
        return state[0] if isinstance(state, tuple) else state


@pytest.mark.parametrize("kind", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_cells_follow_their_states(kind):
    torch.manual_seed(0)
    net = Stepped(kind(12, 16)).eval()
    coded = fewbits.compress(net, GPFQ(bits=4), calibration=list(correlated(32, 6, 12).split(16)))
    assert all(entry.method == GPFQ(bits=4) for entry in coded.plan.entries)
