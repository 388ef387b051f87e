"""The inputs of every weight of a recurrent layer, against cells that are stepped one by one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from fewbits.engine.layers.recurrent import Recurrence
from fewbits.engine.layers.views import kind_of
from fewbits.engine.network.batches import Call

Place = tuple[int, int]  # step and sequence, as packed sequences order them
Inputs = dict[str, dict[Place, Tensor]]  # parameter to the vectors that it is multiplied with


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def oracle(module: nn.RNNBase, sequences: list[Tensor], states: list[list[Tensor]]) -> Inputs:
    """Step through each sequence (steps, features) by the formulas of torch's documentation.

    The longest come first, and the states of one are (layers * directions, size) each.
    """
    seen: Inputs = {}
    size = module.proj_size or module.hidden_size
    for s, sequence in enumerate(sequences):
        below = list(sequence)
        for layer in range(module.num_layers):
            outputs: list[list[Tensor]] = [[] for _ in below]
            for direction in range(2 if module.bidirectional else 1):
                ending = f"_l{layer}" + ("_reverse" if direction else "")
                place = layer * (2 if module.bidirectional else 1) + direction
                h = states[0][s][place] if states else torch.zeros(size)
                c = states[1][s][place] if len(states) > 1 else torch.zeros(module.hidden_size)
                order = range(len(below))
                for t in reversed(order) if direction else order:
                    h, c = step(module, ending, (t, s), (below[t], h, c), seen)
                    outputs[t].append(h)
            below = [torch.cat(parts) for parts in outputs]
    return seen


def step(
    module: nn.RNNBase, ending: str, place: Place, now: tuple[Tensor, ...], seen: Inputs
) -> tuple[Tensor, Tensor]:
    """Return the output and the cell state after one step of one sequence; record the inputs."""
    x, h, c = now

    def product(role: str, vector: Tensor) -> Tensor:
        seen.setdefault(f"weight_{role}{ending}", {})[place] = vector
        bias = getattr(module, f"bias_{role}{ending}", torch.zeros(())) if role != "hr" else 0
        return getattr(module, f"weight_{role}{ending}") @ vector + bias

    a, b = product("ih", x), product("hh", h)
    if isinstance(module, nn.LSTM):
        i, f, g, o = (a + b).chunk(4)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        return (product("hr", h) if module.proj_size else h), c
    if isinstance(module, nn.GRU):
        (ar, az, an), (br, bz, bn) = a.chunk(3), b.chunk(3)
        z, n = (az + bz).sigmoid(), (an + (ar + br).sigmoid() * bn).tanh()
        return (1 - z) * n + z * h, c
    return (a + b).relu() if module.nonlinearity == "relu" else (a + b).tanh(), c


def as_sequences(call: Call, module: nn.RNNBase) -> tuple[list[Tensor], list[list[Tensor]]]:
    """Return each sequence (steps, features), longest first, and by kind of state that of each."""
    x = call.args[0] if call.args else call.kwargs["input"]
    hx = call.args[1] if len(call.args) > 1 else call.kwargs.get("hx")
    states = [] if hx is None else list(hx) if isinstance(hx, tuple) else [hx]
    if isinstance(x, PackedSequence):
        padded, lengths = pad_packed_sequence(x)
        order = range(len(lengths)) if x.sorted_indices is None else x.sorted_indices.tolist()
        return [padded[: lengths[i], i] for i in order], [[h[:, i] for i in order] for h in states]
    if x.dim() == 2:
        return [x], [[h] for h in states]
    return list(x if module.batch_first else x.unbind(1)), [list(h.unbind(1)) for h in states]


def check(module: nn.RNNBase, call: Call) -> None:
    expected = oracle(module, *as_sequences(call, module))
    replay = view_inner(module).keep(call, 10_000, 0)
    for view in kind_of(module).views(module):
        named = expected.pop(view.parameter)
        wanted = torch.stack([named[place] for place in sorted(named)]).detach()
        found = replay.rows(module, view.parameter).take(None)[0]
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
        if view.inputs is not None:
            assert view.inputs(call).count == len(wanted)
    assert not expected


def view_inner(module: nn.RNNBase) -> Recurrence:
    return next(view.inner for view in kind_of(module).views(module) if view.inner is not None)


MODULES = {
    "LSTM": lambda: nn.LSTM(5, 4),
    "LSTM stacked": lambda: nn.LSTM(5, 4, 3, bidirectional=True, dropout=0.5),
    "LSTM projected": lambda: nn.LSTM(5, 6, 2, bidirectional=True, proj_size=3),
    "GRU": lambda: nn.GRU(5, 4, 2, bidirectional=True),
    "GRU without bias": lambda: nn.GRU(5, 4, 2, bias=False),
    "RNN tanh": lambda: nn.RNN(5, 4, 2, bidirectional=True),
    "RNN relu": lambda: nn.RNN(5, 4, 2, nonlinearity="relu", bias=False),
    "LSTM batch first": lambda: nn.LSTM(5, 6, 2, batch_first=True, proj_size=2, bias=False),
}


def initial(module: nn.RNNBase, *batch: int) -> object:
    layers = module.num_layers * (2 if module.bidirectional else 1)
    h = numbers(layers, *batch, module.proj_size or module.hidden_size, seed=5)
    if isinstance(module, nn.LSTM):
        return h, numbers(layers, *batch, module.hidden_size, seed=6)
    return h


def made(name: str) -> nn.RNNBase:
    torch.manual_seed(0)
    return MODULES[name]().eval()


@pytest.mark.parametrize("state", [False, True])
@pytest.mark.parametrize("name", MODULES)
def test_padded_batches(name, state):
    module = made(name)
    x = numbers(3, 7, 5) if module.batch_first else numbers(7, 3, 5)
    check(module, Call((x, initial(module, 3)) if state else (x,), {}))


@pytest.mark.parametrize("state", [False, True])
@pytest.mark.parametrize("name", MODULES)
def test_one_sequence_without_a_batch_axis(name, state):
    module = made(name)
    options = {"hx": initial(module)} if state else {}
    check(module, Call((), {"input": numbers(6, 5), **options}))


@pytest.mark.parametrize("state", [False, True])
@pytest.mark.parametrize("lengths", [[6, 4, 4, 1], [2, 6, 1, 4]])
@pytest.mark.parametrize("name", MODULES)
def test_packed_sequences(name, lengths, state):
    module = made(name)
    x = pack_padded_sequence(
        numbers(6, 4, 5), torch.tensor(lengths), enforce_sorted=lengths == sorted(lengths)[::-1]
    )
    check(module, Call((x, initial(module, 4)) if state else (x,), {}))


@pytest.mark.parametrize("name", MODULES)
def test_some_sequences_are_drawn_whole(name):
    """The rows of the drawn ones are among those of all, and are as many as asked or a few more."""
    module = made(name)
    lengths = torch.tensor([3, 9, 1, 5, 5, 8])
    x = pack_padded_sequence(numbers(9, 6, 5), lengths, enforce_sorted=False)
    call = Call((x, initial(module, 6)), {})
    every, some = (view_inner(module).keep(call, rows, 3) for rows in (1000, 12))
    assert every.inputs.count == 31
    assert 12 <= some.inputs.count < 12 + 9
    for view in kind_of(module).views(module):
        whole = every.rows(module, view.parameter).take(None)[0].double()
        drawn = some.rows(module, view.parameter).take(None)[0].double()
        assert len(drawn) == some.inputs.count
        assert (torch.cdist(drawn, whole).amin(1) < 1e-5).all(), view.parameter


def test_inputs_that_are_overwritten_later_are_kept():
    module, x = made("LSTM"), numbers(7, 3, 5)
    replay = view_inner(module).keep(Call((x,), {}), 1000, 0)
    before = replay.rows(module, "weight_hh_l0").take(None)
    x.zero_()
    assert torch.equal(replay.rows(module, "weight_hh_l0").take(None), before)


def test_half_precision_is_computed_in_float32():
    module = made("GRU").bfloat16()
    replay = view_inner(module).keep(Call((numbers(7, 3, 5).bfloat16(),), {}), 1000, 0)
    rows = replay.rows(module, "weight_hh_l1_reverse").take(None)
    assert rows.dtype == torch.float32
    assert all(p.dtype == torch.bfloat16 for p in module.parameters())


def test_weights_that_others_compute_stay_out_of_sight():
    module = nn.utils.parametrizations.weight_norm(nn.GRU(5, 4, 2), "weight_hh_l0")
    views = kind_of(module).views(module)
    assert {v.parameter for v in views if v.in_sight} == {"weight_ih_l0"}


@pytest.mark.parametrize("given", ["none", "argument", "keyword"])
@pytest.mark.parametrize("kind", [nn.RNNCell, nn.LSTMCell, nn.GRUCell])
def test_cells_show_their_hidden_state(kind, given):
    cell, x, h = kind(5, 4), numbers(3, 5), numbers(3, 4, seed=1)
    state = (h, numbers(3, 4, seed=2)) if kind is nn.LSTMCell else h
    call = {
        "none": Call((x,), {}),
        "argument": Call((x, state), {}),
        "keyword": Call((x,), {"hx": state}),
    }[given]
    first, second = kind_of(cell).views(cell)
    assert torch.equal(first.inputs(call).take(None)[0], x)
    wanted = torch.zeros(3, 4) if given == "none" else h
    assert torch.equal(second.inputs(call).take(None)[0], wanted)
    assert (first.bias, second.bias) == ("bias_ih", "bias_hh")
