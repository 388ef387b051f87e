"""The observer sees what a slow twin sees that runs both networks from the start per layer."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils._pytree import tree_leaves, tree_map

from fewbits.engine.lockstep import Call, LockstepReport, run_lockstep

Seen = tuple[str, int, int, list[Any], list[Any]]


def plain(network: nn.Module, batch: Any) -> Any:
    return network(batch)


def coarsen(network: nn.Module, name: str) -> None:
    for parameter in network.get_submodule(name).parameters(recurse=False):
        parameter.data.mul_(4).round_().div_(4)


def copied(call: Call) -> list[Any]:
    leaves = tree_leaves((call.args, sorted(call.kwargs.items())))
    return [leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves]


@dataclass
class Recorder:
    network: nn.Module
    seen: list[Seen] = field(default_factory=list)
    completed: list[str] = field(default_factory=list)
    shared: list[bool] = field(default_factory=list)

    def observe(self, module: str, batch: int, call: int, reference: Call, quantized: Call) -> None:
        assert threading.current_thread() is threading.main_thread()
        self.seen.append((module, batch, call, copied(reference), copied(quantized)))
        self.shared.append(reference is quantized)

    def complete(self, module: str) -> None:
        self.completed.append(module)
        coarsen(self.network, module)


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


def assert_same(actual: list[Seen], expected: list[Seen]) -> None:
    assert [s[:3] for s in actual] == [s[:3] for s in expected]
    for mine, theirs in zip(actual, expected, strict=True):
        for a, b in zip(mine[3] + mine[4], theirs[3] + theirs[4], strict=True):
            same = torch.equal(a, b) if isinstance(a, Tensor) else a == b
            assert same, mine[:3]


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
            network, first.network, names, batches[:1], forward, first, **settings
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


def run(
    network: nn.Module, names: list[str], batches: Any, **settings: Any
) -> tuple[Recorder, LockstepReport]:
    recorder = Recorder(copy.deepcopy(network))
    report = run_lockstep(network, recorder.network, names, batches, plain, recorder, **settings)
    return recorder, report


def chain(layers: int = 3) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(*[nn.Linear(4, 4) for _ in range(layers)]).eval()


def test_the_first_layer_has_one_input_and_later_layers_two():
    recorder, _ = run(chain(), ["0", "1", "2"], draws(*[(2, 4)] * 2))
    assert recorder.shared == [True] * 2 + [False] * 4


def test_equal_arguments_are_one_object_beside_arguments_that_differ():
    calls: list[tuple[Call, Call]] = []

    class Keep(Recorder):
        def observe(self, module, batch, call, reference, quantized):
            calls.append((reference, quantized))

    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(4, 4), nn.Bilinear(4, 4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.two(self.one(x), input2=x + 0)

    network = Pair().eval()
    keep = Keep(copy.deepcopy(network))
    run_lockstep(network, keep.network, ["one", "two"], draws((2, 4)), plain, keep)
    reference, quantized = calls[1]
    assert reference.args[0] is not quantized.args[0]
    assert reference.kwargs["input2"] is quantized.kwargs["input2"]


def test_without_a_reference_the_call_is_handed_over_twice_and_the_reference_never_runs():
    network = chain()
    runs: list[Any] = []
    network[0].register_forward_hook(lambda *a: runs.append(a))
    quantized = chain()
    recorder = Recorder(quantized)
    batches = draws(*[(2, 4)] * 2)
    run_lockstep(network, quantized, ["0", "2"], batches, plain, recorder, needs_reference=False)
    assert recorder.shared == [True] * 4
    assert not runs


def test_one_forward_pass_per_batch_and_network_and_one_more():
    network = chain(6)
    passes: list[int] = []

    def forward(net: nn.Module, batch: Tensor) -> None:
        passes.append(1)
        net(batch)

    recorder = Recorder(copy.deepcopy(network))
    names = [str(i) for i in range(6)]
    report = run_lockstep(network, recorder.network, names, draws(*[(2, 4)] * 4), forward, recorder)
    assert len(passes) == 2 * 4 + 1
    assert report.reruns == 0


def test_reruns_are_counted():
    names = [str(i) for i in range(6)]
    _, report = run(chain(6), names, draws(*[(2, 4)] * 4), max_live_bytes=0)
    assert report.reruns == 2 * 4 * (6 - 1)


def test_more_room_never_costs_more_passes():
    names, batches = [str(i) for i in range(6)], draws(*[(2, 4)] * 6)
    results = [run(chain(6), names, batches, max_live_bytes=b)[1] for b in range(0, 1500, 100)]
    live = [report.live_batches for report in results]
    assert live[0] == 1
    assert live[-1] == 6
    assert live == sorted(live)
    reruns = [report.reruns for report in results]
    assert reruns == sorted(reruns, reverse=True)
    assert all(r.reruns == 2 * 5 * (7 - r.live_batches) for r in results if r.live_batches < 6)


def test_a_batch_that_misses_a_layer_costs_one_more_pass_however_many_it_misses():
    class Detour(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 4)
            self.detour = nn.Sequential(*[nn.Linear(4, 4) for _ in range(5)])

        def forward(self, x: Tensor) -> Tensor:
            positive = bool(x.mean() > 0)
            x = self.first(x)
            return self.last(self.detour(x) if positive else x)

    names = ["first", "last", *(f"detour.{i}" for i in range(5))]
    _, report = run(Detour().eval(), names, signed(1, -1))
    assert report.order[-1] == "last"
    assert report.reruns == 1  # the reference pass; the quantized one waits


def test_the_batch_of_the_caller_is_not_modified():
    batches = draws(*[(2, 4)] * 2)
    before = [batch.clone() for batch in batches]
    run(Inplace().eval(), ["one", "two"], batches, max_live_bytes=0)
    assert all(map(torch.equal, batches, before))


def test_one_tensor_in_two_places_of_a_batch_stays_one():
    seen: list[bool] = []

    def forward(network: nn.Module, batch: Any) -> None:
        seen.append(batch["a"] is batch["b"][0] and batch["a"] is not tensor)
        network(batch["a"])

    (tensor,) = draws((2, 4))
    network = chain(1)
    recorder = Recorder(copy.deepcopy(network))
    batches = [{"a": tensor, "b": (tensor, None)}]
    run_lockstep(network, recorder.network, ["0"], batches, forward, recorder)
    assert seen == [True] * 3


def test_an_iterator_is_read_once_and_a_tensor_is_a_sequence_of_batches():
    batches = draws(*[(2, 4)] * 3)
    expected, _ = run(chain(), ["0", "2"], batches)
    for form in (iter(batches), (b for b in batches), tuple(batches), torch.stack(batches)):
        recorder, _ = run(chain(), ["0", "2"], form, max_live_bytes=0)
        assert_same(recorder.seen, expected.seen)


def test_a_target_given_twice_is_one_and_no_target_runs_nothing():
    recorder, _ = run(chain(), ["1", "0", "1"], draws((2, 4)))
    assert recorder.completed == ["0", "1"]
    recorder, report = run(chain(), [], draws((2, 4)))
    assert recorder.seen == []
    assert (report.order, report.calls, report.unreached, report.reruns) == ((), {}, (), 0)


def test_the_whole_network_can_be_a_target():
    recorder, _ = run(nn.Linear(4, 4).eval(), [""], draws((2, 4)))
    assert recorder.completed == [""]


def test_progress_tells_of_every_module():
    events: list[Any] = []
    run(chain(), ["0", "1", "2"], draws((2, 4)), progress=events.append)
    told = [(e.stage, e.done, e.total, e.detail) for e in events]
    assert told == [("quantize", 0, 3, "")] + [("quantize", i + 1, 3, str(i)) for i in range(3)]


def test_encoder_layers_are_seen_though_their_fast_path_is_on_and_it_is_on_again_afterwards():
    torch.backends.mha.set_fastpath_enabled(True)
    _, report = run(encoder().eval(), ["layers.0.linear1"], draws((2, 3, 8)))
    assert report.order == ("layers.0.linear1",)
    assert torch.backends.mha.get_fastpath_enabled()


def test_draws_of_the_caller_are_untouched_during_and_after():
    class Drawing(Recorder):
        def observe(self, module, batch, call, reference, quantized):
            drawn.append(torch.rand(()))

    drawn: list[Tensor] = []
    network = Noisy().eval()
    drawing = Drawing(copy.deepcopy(network))
    torch.manual_seed(3)
    run_lockstep(network, drawing.network, ["one", "two"], draws((2, 4)), plain, drawing)
    drawn_after = torch.rand(())
    torch.manual_seed(3)
    assert [float(x) for x in drawn] == torch.rand(2).tolist()
    torch.manual_seed(3)
    assert drawn_after == torch.rand(())  # a whole run leaves the state where it found it


def test_state_of_the_thread_goes_along():
    types: list[torch.dtype] = []
    grads: list[bool] = []

    def forward(network: nn.Module, batch: Tensor) -> None:
        types.append(network(batch).dtype)
        grads.append(torch.is_grad_enabled())

    network = chain(1)
    recorder = Recorder(copy.deepcopy(network))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        run_lockstep(network, recorder.network, ["0"], draws((2, 4)), forward, recorder)
    assert set(types) == {torch.bfloat16}
    assert set(grads) == {False}
    assert torch.is_grad_enabled()


def test_autocast_in_the_forward_does_not_remember_old_weights():
    def forward(network: nn.Module, batch: Tensor) -> Any:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return network(batch)

    network = Repeated().eval()
    names, batches = ["p", "q", "r", "head"], draws(*[(2, 3, 4)] * 3)
    expected, _, _ = slow_twin(network, names, batches, forward, True)
    recorder = Recorder(copy.deepcopy(network))
    run_lockstep(network, recorder.network, names, batches, forward, recorder)
    assert_same(recorder.seen, expected)


def test_a_network_that_cannot_share_its_weights_runs_one_batch_at_a_time():
    names, batches = ["0", "1", "2"], draws(*[(2, 4)] * 3)
    expected, _ = run(chain(), names, batches)

    class Private(nn.Sequential):
        def __deepcopy__(self, memo):
            return copied_by_value(self)

    def copied_by_value(network: nn.Module) -> nn.Module:
        twin = Private(*[nn.Linear(4, 4) for _ in range(3)]).eval()
        twin.load_state_dict(network.state_dict())
        return twin

    recorder, report = run(copied_by_value(chain()), names, batches)
    assert_same(recorder.seen, expected.seen)
    assert report.live_batches == 1


def test_weights_of_the_reference_are_not_changed():
    network = chain()
    before = copy.deepcopy(network.state_dict())
    run(network, ["0", "1", "2"], draws((2, 4)))
    assert all(torch.equal(before[k], v) for k, v in network.state_dict().items())


def test_live_bytes_bound_what_suspended_passes_hold():
    """Deep and wide inside, so that the bytes a pass holds are known: two kept activations."""

    class Holding(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last = nn.Linear(1, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = x.expand(1000, 1).exp()
            z = y.cumsum(0) + y.mean()  # cumsum and mean are gone by the time of the call
            return self.last(z) + y

    def live(room: int) -> int:
        return run(Holding().eval(), ["last"], draws(*[(1, 1)] * 3), max_live_bytes=room)[
            1
        ].live_batches

    pair = 2 * (1000 + 1000 + 1) * 4
    assert [live(pair * 2 - 1), live(pair * 2), live(pair * 3)] == [1, 2, 3]
