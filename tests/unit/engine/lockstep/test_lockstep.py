"""The observer sees what a slow twin sees that runs both networks from the start per layer."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils._pytree import tree_map

from fewbits.engine.lockstep.lockstep import run_lockstep
from fewbits.engine.network.batches import Call
from recorder import Recorder, Seen, assert_same, coarsen, copied, plain


def inputs_of(
    network: nn.Module, batch: Any, seed: int, forward: Callable[..., Any], names: list[str]
) -> list[tuple[str, list[Any]]]:
    """One whole pass: every call of every target."""
    trail: list[tuple[str, list[Any]]] = []
    handles = [
        network.get_submodule(name).register_forward_pre_hook(
            lambda m, a, k, name=name: trail.append((name, copied(Call(a, k)))), with_kwargs=True
        )
        for name in names
    ]
    torch.manual_seed(seed)
    with torch.no_grad():
        forward(copy.deepcopy(network), tree_map(copy.deepcopy, batch))
    for handle in handles:
        handle.remove()
    return trail


def slow_twin(
    network: nn.Module,
    names: list[str],
    batches: list[Any],
    forward: Callable[..., Any],
    needs_reference: bool,
) -> tuple[list[Seen], list[str], int]:
    reference, quantized = network, copy.deepcopy(network)
    paths = [inputs_of(network, b, i, forward, names) for i, b in enumerate(batches)]
    order: list[str] = []
    expected: dict[str, int] = {}
    for path in paths:
        last = {name: place for place, (name, _) in enumerate(path)}
        for name in sorted(last, key=last.__getitem__):
            expected.setdefault(name, sum(other == name for other, _ in path))
            if name not in order:
                before = [n for n in order if n in last and last[n] < last[name]]
                nearest = max(before, key=last.__getitem__, default=None)
                order.insert(order.index(nearest) + 1 if nearest else 0, name)
        if len(order) == len(names):
            break
    seen: list[Seen] = []
    completed: list[str] = []
    unmatched = 0
    for name in order:
        before_turn = len(seen)
        for i, batch in enumerate(batches):
            xq = [x for n, x in inputs_of(quantized, batch, i, forward, names) if n == name]
            x = [x for n, x in inputs_of(reference, batch, i, forward, names) if n == name]
            x, xq = (x if needs_reference else xq)[: expected[name]], xq[: expected[name]]
            unmatched += max(0, len(x) - len(xq))
            pairs = zip(x, xq, strict=False)
            seen += [(name, i, call, a, b) for call, (a, b) in enumerate(pairs)]
        if len(seen) > before_turn:
            coarsen(quantized, name)
            completed.append(name)
    return seen, completed, unmatched


@pytest.fixture(autouse=True)
def _attention_calls_its_parts():
    """The slow twin needs it as well; the engine has a test of its own for this."""
    torch.backends.mha.set_fastpath_enabled(False)
    yield
    torch.backends.mha.set_fastpath_enabled(True)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1)
        self.left = nn.Conv2d(4, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.right = nn.Conv2d(4, 4, 1)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        x = x + self.norm(self.left(x)).relu() + self.right(x)
        return self.head(x.mean((2, 3)))


class Branching(nn.Module):
    """The path depends on the data: some batches never see ``b``, some never ``a``."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.shared, self.never = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        positive = bool(x.mean() > 0)
        x = self.first(x)
        x = self.a(x) if positive else self.b(x)
        return self.shared(x)


class Repeated(nn.Module):
    """Cells called in turn, as many times as the batch has steps; one of them a second time."""

    def __init__(self) -> None:
        super().__init__()
        self.p, self.q, self.r = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(x.shape[0], 4)
        for step in x.unbind(1):
            h = torch.tanh(self.q(self.p(h + step)))
            h = h + self.r(self.r(h))
        return self.head(self.p(h))


class Torn(nn.Module):
    """Coarse weights change the path: the two networks do not make the same calls."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.extra, self.tail = nn.Linear(3, 1), nn.Linear(3, 3), nn.Linear(3, 2)
        with torch.no_grad():
            self.gate.weight.copy_(torch.tensor([[0.1, 0.1, 0.1]]))  # is coarsened to zero
            self.gate.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(2):
            if self.gate(x).abs().sum() > 0:
                x = self.extra(x)
        return self.tail(x)


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
        self.twice = nn.Linear(4, 4)
        self.alias = self.twice

    def forward(self, x: Tensor) -> Tensor:
        return self.alias(self.block(x) + self.twice(input=x))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(3, 5)
        self.lstm = nn.LSTM(5, 4, batch_first=True)
        self.second = nn.LSTM(4, 4, batch_first=True)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        y, state = self.lstm(self.embed(x))
        packed = pack_padded_sequence(y, [y.shape[1]] * len(y), batch_first=True)
        return self.head(self.second(packed, state)[1][0])


class Inplace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x.sub_(x.mean()).mul_(2)
        y = self.one(x)
        return self.two(x.add_(y))


class Stashing(nn.Module):
    """Keeps activations on itself between layers, as many real networks do."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.skips: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.kept = x
        self.skips.append(self.one(x))
        y = self.two(self.kept * 2)
        return self.three(y + self.skips.pop() + self.kept)


class Noisy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(x + torch.randn_like(x))
        return self.two(x + torch.rand_like(x)) + torch.rand(1)


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Bilinear(3, 2, 4)
        self.out = nn.Linear(4, 2)

    def forward(self, a: Tensor, *, b: Tensor) -> Tensor:
        return self.out(self.mix(a, input2=b))


def encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


def draws(*shapes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(7)
    return [torch.randn(shape, generator=generator) for shape in shapes]


def signed(*signs: int) -> list[Tensor]:
    return [x.abs() * sign for x, sign in zip(draws(*[(3, 4)] * len(signs)), signs, strict=True)]


def keyword(network: nn.Module, batch: dict[str, Any]) -> Any:
    return network(batch["a"], b=batch["rest"][0])


CASES: dict[str, tuple[Callable[[], nn.Module], list[str], list[Any], Callable[..., Any]]] = {
    "residual": (
        Residual,
        ["head", "right", "left", "stem"],
        draws((2, 2, 5, 5), (3, 2, 5, 5), (1, 2, 7, 7), (2, 2, 5, 5)),
        plain,
    ),
    "encoder": (
        encoder,
        [f"layers.{i}.{name}" for i in (0, 1) for name in ("self_attn", "linear1", "linear2")],
        draws(*[(2, 3, 8)] * 3),
        plain,
    ),
    "branching": (Branching, ["first", "a", "b", "shared"], signed(1, -1, 1, -1, 1), plain),
    "branching, one dead": (
        Branching,
        ["first", "a", "b", "shared", "never"],
        signed(-1, -1, 1, 1),
        plain,
    ),
    "repeated": (Repeated, ["p", "q", "r", "head"], draws(*[(2, 3, 4)] * 3), plain),
    "repeated, uneven": (
        Repeated,
        ["p", "q", "r", "head"],
        draws((2, 3, 4), (2, 5, 4), (2, 1, 4), (2, 3, 4)),
        plain,
    ),
    "torn": (Torn, ["gate", "extra", "tail"], draws(*[(2, 3)] * 3), plain),
    "nested": (Nested, ["block", "block.0", "block.2", "twice"], draws(*[(2, 4)] * 3), plain),
    "recurrent": (Recurrent, ["embed", "lstm", "second", "head"], draws(*[(2, 3, 3)] * 3), plain),
    "in place": (Inplace, ["one", "two"], draws(*[(2, 4)] * 3), plain),
    "stashing": (Stashing, ["one", "two", "three"], draws(*[(2, 4)] * 3), plain),
    "noisy": (Noisy, ["one", "two"], draws(*[(2, 4)] * 3), plain),
    "dict and keyword": (
        TwoInputs,
        ["mix", "out"],
        [
            {"a": a, "rest": (b, "label")}
            for a, b in zip(draws(*[(2, 3)] * 3), draws(*[(2, 2)] * 3), strict=True)
        ],
        keyword,
    ),
}


@pytest.mark.parametrize("needs_reference", [True, False])
@pytest.mark.parametrize("room", [1 << 30, "two batches", 0])
@pytest.mark.parametrize("case", CASES)
def test_observations_equal_those_of_the_slow_twin(case, room, needs_reference):
    build, names, batches, forward = CASES[case]
    torch.manual_seed(0)
    network = build().eval()
    expected, order, unmatched = slow_twin(network, names, batches, forward, needs_reference)
    if room == "two batches":
        first = Recorder(copy.deepcopy(network))
        settings = {"needs_reference": needs_reference}
        report = run_lockstep(
            copy.deepcopy(network), first.network, names, batches[:1], forward, first, **settings
        )
        room = 2 * report.pair_bytes
    quantized = copy.deepcopy(network)
    recorder = Recorder(quantized)
    report = run_lockstep(
        network,
        quantized,
        names,
        batches,
        forward,
        recorder,
        max_live_bytes=room,
        needs_reference=needs_reference,
    )
    assert_same(recorder.seen, expected)
    assert recorder.completed == list(report.order) == order
    assert report.unmatched == unmatched
    assert set(report.unreached) == set(names) - set(order)
    assert report.calls == {n: sum(s[0] == n for s in expected) for n in order}
    assert report.live_batches == {1 << 30: len(batches), 0: 1}.get(room, 2)


def chain(layers: int = 3) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(*[nn.Linear(4, 4) for _ in range(layers)]).eval()


def test_autocast_does_not_remember_a_weight_that_the_observer_ran_and_then_changed():
    class Running(Recorder):
        def complete(self, module: str) -> None:
            self.network.get_submodule(module)(torch.zeros(1, 4))  # autocast keeps the cast weight
            super().complete(module)

    network, names, batches = chain(), ["0", "1", "2"], draws(*[(2, 4)] * 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected, _, _ = slow_twin(network, names, batches, plain, True)
        running = Running(copy.deepcopy(network))
        run_lockstep(network, running.network, names, batches, plain, running)
    assert_same(running.seen, expected)
