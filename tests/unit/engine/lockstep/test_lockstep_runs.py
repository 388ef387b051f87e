"""What a run of the engine costs, what it reports, and what it leaves as it was."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from fewbits.engine.lockstep.lockstep import LockstepReport, run_lockstep
from fewbits.engine.network.batches import Call
from recorder import Recorder, assert_same, plain


class Inplace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x.sub_(x.mean()).mul_(2)
        y = self.one(x)
        return self.two(x.add_(y))


class Noisy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(x + torch.randn_like(x))
        return self.two(x + torch.rand_like(x)) + torch.rand(1)


def encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


def draws(*shapes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(7)
    return [torch.randn(shape, generator=generator) for shape in shapes]


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


def test_passes_are_only_repeated_where_they_hold_much():
    torch.manual_seed(0)
    layers = [nn.Linear(4, 1000), nn.Linear(1000, 4), *(nn.Linear(4, 4) for _ in range(6))]
    network = nn.Sequential(*layers).eval()

    class Narrowing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = network

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x = layer(x)  # what came before is gone
            return x

    names, batches = [f"layers.{i}" for i in range(8)], list(torch.randn(6, 20, 4))

    def count(room: int) -> tuple[int, LockstepReport]:
        net = Narrowing().eval()
        recorder = Recorder(copy.deepcopy(net))
        report = run_lockstep(
            net, recorder.network, names, batches, plain, recorder, max_live_bytes=room
        )
        assert_same(recorder.seen, expected.seen)
        return report.reruns, report

    net = Narrowing().eval()
    expected = Recorder(copy.deepcopy(net))
    whole = run_lockstep(net, expected.network, names, batches, plain, expected)
    reruns, report = count(2 * whole.pair_bytes)
    assert report.live_batches == 2
    assert 0 < reruns <= 2 * 5 * 3  # five batches, once for each of the first layers


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
    _, report = run(Detour().eval(), names, [torch.ones(3, 4), -torch.ones(3, 4)])
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
