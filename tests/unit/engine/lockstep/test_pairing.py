"""Rows of the two networks that do not belong together are noticed, and then not compared."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import fewbits
from fewbits.engine.layers.rows import conv_rows, feature_rows
from fewbits.engine.lockstep import quantizer as collect
from fewbits.engine.lockstep.pairing import Pairing

ALONE = "calibrated on the quantized network's inputs alone"


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def told(x: Tensor, y: Tensor, rows: int = 1 << 20) -> str:
    """What is said of the rows, shown so many at a time."""
    pairing, causes = Pairing(), []
    for a, b in zip(x.split(rows), y.split(rows), strict=True):
        causes.append(pairing.look(feature_rows(a), feature_rows(b), seed=0))
    return next(filter(None, [*causes, pairing.judge()]), "")


@pytest.mark.parametrize("noise", [0.0, 0.01, 0.3, 1.0, 2.0])
@pytest.mark.parametrize("rows", [1, 2, 3, 40, 5000])
def test_noise_alone_is_no_mispairing(noise, rows):
    x = numbers(rows, 24)
    assert told(x, 0.7 * x + noise * numbers(rows, 24, seed=1) + 3) == ""


@pytest.mark.parametrize("features", [2, 3, 4])
def test_noise_in_few_dimensions_is_no_mispairing(features):
    x = numbers(256, features)
    causes = [told(x, x + 0.3 * numbers(256, features, seed=seed)) for seed in range(1, 9)]
    assert causes == [""] * 8
    assert "order" in told(x, x.roll(1, 0) + 0.02 * numbers(256, features, seed=1))


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_rows_of_small_calls_are_looked_at_together(rows):
    x = numbers(60, 24)
    order = torch.arange(60)
    order[20:26] = order[20:26].roll(2)
    assert "order" in told(x, x[order] + 0.1 * numbers(60, 24, seed=1), rows)
    assert told(x, x + numbers(60, 24, seed=1), rows) == ""


def test_rows_of_a_vocabulary_are_noticed_where_others_come():
    words = numbers(12, 24)
    chosen = torch.randint(12, (200,), generator=torch.Generator().manual_seed(1))
    other = chosen.clone()
    other[:40] = chosen[:40].roll(1)
    noisy = words + 0.2 * numbers(12, 24, seed=2)
    assert told(words[chosen], noisy[chosen]) == ""
    assert "order" in told(words[chosen], noisy[other])


def test_rows_that_have_nothing_in_common_are_told_as_such():
    x = numbers(200, 24)
    assert "too little in common" in told(x, numbers(200, 24, seed=1))


def test_rows_that_are_alike_are_in_no_order():
    x = numbers(1, 16).expand(64, 16) + 1e-7 * numbers(64, 16, seed=1)
    assert told(x, x + 1e-7 * numbers(64, 16, seed=2)) == ""
    padded = torch.cat([numbers(20, 16), torch.zeros(44, 16)])
    assert told(padded, padded + 0.3 * numbers(64, 16, seed=1)) == ""


@pytest.mark.parametrize("noise", [0.0, 0.1, 0.3])
def test_a_few_rows_that_change_places_are_noticed(noise):
    x = numbers(200, 24)
    order = torch.arange(200)
    order[50], order[51] = 51, 50
    order[[90, 97]] = order[[97, 90]]
    assert "order" in told(x, x[order] + noise * numbers(200, 24, seed=1))


def test_a_row_that_comes_in_between_moves_all_behind_it():
    x = numbers(80, 24)
    assert "order" in told(x[:-1], torch.cat([x[:30], x[31:]]))


def test_rows_from_anywhere_are_noticed_in_a_part_of_them():
    x = numbers(20000, 24)
    order = torch.randperm(20000, generator=torch.Generator().manual_seed(3))
    assert told(x, x[order] + 0.1 * numbers(20000, 24, seed=1))


def test_other_numbers_are_told():
    reason = Pairing().look(feature_rows(numbers(41, 8)), feature_rows(numbers(40, 8)), seed=0)
    assert "41 in the float network" in reason
    assert "40 in the quantized one" in reason


@pytest.mark.parametrize("kernel", [1, 3])
def test_samples_of_a_convolution_that_change_places_are_noticed(kernel):
    layer, x = nn.Conv2d(8, 4, kernel, padding=1, stride=2), numbers(6, 8, 5, 5)

    def check(y: Tensor) -> str:
        pairing = Pairing()
        return pairing.look(conv_rows(x, layer), conv_rows(y, layer), seed=0) or pairing.judge()

    assert check(x + 0.2 * numbers(6, 8, 5, 5, seed=1)) == ""
    assert "order" in check(x.flip(0) + 0.2 * numbers(6, 8, 5, 5, seed=1))


class Tokens(nn.Module):
    """Two layers, with something between them that may put rows elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.score = nn.Linear(24, 24), nn.Linear(24, 1)
        self.second, self.last = nn.Linear(24, 24), nn.Linear(24, 6)

    def moved(self, x: Tensor) -> Tensor:
        return x

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.second(self.moved(self.first(x)))))


class ByScore(Tokens):
    def moved(self, x: Tensor) -> Tensor:
        order = self.score(x)[..., 0].argsort(-1)
        return x.gather(1, order[..., None].expand_as(x))


class BestQueries(Tokens):
    def moved(self, x: Tensor) -> Tensor:
        best = self.score(x)[..., 0].topk(6, -1).indices
        return x.gather(1, best[..., None].expand(-1, -1, x.shape[-1]))


class Neighbours(Tokens):
    def moved(self, x: Tensor) -> Tensor:
        near = torch.cdist(x, x).topk(3, largest=False).indices
        return torch.stack([one[places] for one, places in zip(x, near, strict=True)])


class OneByOne(Tokens):
    """Sorted tokens, each shown to the layers alone."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        order = self.score(x)[..., 0].argsort(-1)
        x = x.gather(1, order[..., None].expand_as(x))
        parts = [self.last(torch.relu(self.second(x[:, i]))) for i in range(x.shape[1])]
        return torch.stack(parts, 1)


class Threshold(Tokens):
    """How many rows go on depends on values."""

    def moved(self, x: Tensor) -> Tensor:
        return x[self.score(x)[..., 0] > 0]


def error(net: nn.Module, method: fewbits.Method, inputs: Tensor) -> tuple[float, fewbits.Plan]:
    coded = fewbits.compress(net, method, calibration=list(inputs.split(16)))
    other = coded.load_into(copy.deepcopy(net))
    with torch.no_grad():
        here, there = (m.last(torch.relu(m.second(m.first(inputs)))) for m in (net, other))
    return float((here - there).norm() / here.norm()), coded.plan


@pytest.mark.parametrize("kind", [ByScore, BestQueries, Neighbours, Threshold, OneByOne])
def test_layers_behind_a_choice_follow_the_quantized_network_alone(kind):
    net, x = kind().eval(), numbers(64, 16, 24)
    fed, plan = error(net, fewbits.GPFQ(bits=4), x)
    plain, _ = error(net, fewbits.Nearest(bits=4), x)
    reasons = {entry.target.name: entry.reason for entry in plan.entries}
    assert ALONE in reasons["second.weight"]
    assert ALONE not in reasons["first.weight"]
    assert fed < plain


def test_layers_without_a_choice_follow_both_networks():
    _, plan = error(Tokens().eval(), fewbits.GPFQ(bits=2), numbers(64, 16, 24))
    assert not any(ALONE in entry.reason for entry in plan.entries)


class Routed(nn.Module):
    """Each row goes to one of the experts: which one may change, and with it how many they get."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.router = nn.Linear(16, 16), nn.Linear(16, 4)
        self.experts = nn.ModuleList(nn.Linear(16, 16) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        chosen, out = self.router(x).argmax(-1), torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            rows = chosen == number
            if rows.any():
                out[rows] = expert(x[rows])
        return out


@pytest.mark.parametrize("name", ["gpfq", "qronos", "gptq", "rdoq", "transform"])
def test_a_mixture_of_experts_compresses(name):
    method = fewbits.METHODS[name]()
    coded = fewbits.compress(Routed().eval(), method, calibration=[numbers(300, 16)])
    assert len(coded.plan.entries) == 6


class Points(nn.Module):
    """Points of three dimensions, sorted along a learned direction."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.direction, self.first = nn.Linear(3, 1), nn.Linear(3, 24)
        self.last = nn.Linear(24, 6)

    def forward(self, x: Tensor) -> Tensor:
        order = self.direction(x)[..., 0].argsort(-1)
        return self.last(torch.relu(self.first(x.gather(1, order[..., None].expand_as(x)))))


@pytest.mark.parametrize("bits", [3, 4, 6])
def test_points_in_a_learned_order_follow_the_quantized_network_alone(bits):
    net, x = Points().eval(), numbers(64, 32, 3)
    coded = fewbits.compress(net, fewbits.GPFQ(bits=bits), calibration=list(x.split(16)))
    reasons = {entry.target.name: entry.reason for entry in coded.plan.entries}
    assert ALONE in reasons["first.weight"]
    assert ALONE in reasons["last.weight"]


GENERATOR = torch.Generator()


class OutOfReach(Tokens):
    """Noise of a generator that nothing reaches from the network."""

    def moved(self, x: Tensor) -> Tensor:
        return x + 3 * torch.randn(x.shape, generator=GENERATOR)


class Counting(Tokens):
    """What comes depends on how many passes there were."""

    passes = 0

    def moved(self, x: Tensor) -> Tensor:
        Counting.passes += 1
        return x.roll(Counting.passes, 1)


@pytest.mark.parametrize("kind", [OutOfReach, Counting])
@pytest.mark.parametrize("name", ["gpfq", "qronos"])
def test_a_network_that_does_not_repeat_itself_is_noticed(kind, name):
    net, x = kind().eval(), numbers(64, 16, 24)
    coded = fewbits.compress(net, fewbits.METHODS[name](bits=4), list(x.split(16)))
    reasons = {entry.target.name: entry.reason for entry in coded.plan.entries}
    assert "two passes of the float network" in reasons["second.weight"]
    assert not reasons["first.weight"]
    plain = fewbits.compress(net, fewbits.Nearest(bits=4))
    assert error_of_pass(net, coded, x) < 1.3 * error_of_pass(net, plain, x)


def error_of_pass(net: nn.Module, coded: fewbits.CodedModel, inputs: Tensor) -> float:
    """On inputs like those of calibration, with the same noise in both networks."""
    outputs = []
    for model in (net, coded.load_into(copy.deepcopy(net))):
        GENERATOR.manual_seed(1)
        Counting.passes = 0
        with torch.no_grad():
            outputs.append(model(inputs))
    return float((outputs[0] - outputs[1]).norm() / outputs[0].norm())


def looked_at(net: nn.Module, batches: list[Tensor], monkeypatch) -> set[str]:
    """The weights of which a statistical look was taken."""
    names: set[str] = set()
    original = collect.LayerQuantizer._paired

    def spy(self, name, *args):
        names.add(name)
        return original(self, name, *args)

    monkeypatch.setattr(collect.LayerQuantizer, "_paired", spy)
    fewbits.compress(net.eval(), fewbits.GPFQ(bits=2), calibration=batches)
    return names


class Separable(nn.Sequential):
    """A deep chain of convolutions, each over a channel or over a pixel."""

    def __init__(self) -> None:
        parts: list[nn.Module] = [nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()]
        for _ in range(8):
            parts += [nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.ReLU6()]
            parts += [nn.Conv2d(8, 8, 1), nn.ReLU6()]
        super().__init__(*parts, nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8 * 16, 5))


class Deep(nn.Sequential):
    def __init__(self) -> None:
        layers = [module for _ in range(12) for module in (nn.Tanh(), nn.Linear(24, 24))]
        super().__init__(nn.Linear(24, 24), *layers)


class Language(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.words, self.last = nn.Embedding(30, 16), nn.Linear(16, 30)
        self.layers = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)

    def forward(self, ids: Tensor) -> Tensor:
        return self.last(self.layers(self.words(ids), src_key_padding_mask=ids == 0))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cells = nn.LSTM(8, 12, 3, batch_first=True)
        self.last = nn.Sequential(*[nn.Linear(12, 12) for _ in range(8)])

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.cells(x)[0])


IDS = torch.randint(30, (48, 12), generator=torch.Generator().manual_seed(1))
PLAIN = {
    Separable: numbers(48, 3, 8, 8),
    Deep: numbers(300, 24),
    Language: IDS,
    Recurrent: numbers(32, 9, 8),
}


@pytest.mark.parametrize("kind", PLAIN)
@pytest.mark.parametrize("levels", [2, 3, 4])
def test_rows_of_networks_that_choose_nothing_belong_together_however_few_bits(kind, levels):
    torch.manual_seed(0)
    batches = list(PLAIN[kind].split(16))
    coded = fewbits.compress(kind().eval(), fewbits.GPFQ(levels=levels), calibration=batches)
    assert not any(ALONE in entry.reason for entry in coded.plan.entries)


@pytest.mark.parametrize("kind", PLAIN)
def test_nobody_looks_where_nothing_chooses(kind, monkeypatch):
    torch.manual_seed(0)
    assert not looked_at(kind(), list(PLAIN[kind].split(16)), monkeypatch)


def test_layers_behind_the_first_choice_are_looked_at(monkeypatch):
    names = looked_at(ByScore(), list(numbers(64, 16, 24).split(16)), monkeypatch)
    assert names == {"second.weight", "last.weight"}


class SecondTime(Tokens):
    """One layer before a choice and after it."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.first(x))
        order = self.score(x)[..., 0].argsort(-1)
        return self.last(self.second(x.gather(1, order[..., None].expand_as(x))))


def test_a_layer_that_is_called_again_behind_a_choice_is_looked_at(monkeypatch):
    names = looked_at(SecondTime(), list(numbers(64, 16, 24).split(16)), monkeypatch)
    assert names == {"second.weight", "last.weight"}


class LongOnes(ByScore):
    """Only long sequences are sorted."""

    def moved(self, x: Tensor) -> Tensor:
        return super().moved(x) if x.shape[1] > 16 else x


def test_choices_of_later_batches_are_noticed():
    batches = [numbers(16, 12, 24), *numbers(48, 24, 24, seed=1).split(16)]
    coded = fewbits.compress(LongOnes().eval(), fewbits.GPFQ(bits=3), calibration=batches)
    reasons = {entry.target.name: entry.reason for entry in coded.plan.entries}
    assert ALONE in reasons["second.weight"]
    assert ALONE not in reasons["first.weight"]


class Unwatchable(ByScore):
    """It refuses to run where somebody looks."""

    def moved(self, x: Tensor) -> Tensor:
        if torch.utils._python_dispatch._get_current_dispatch_mode() is not None:
            raise RuntimeError("not under a dispatch mode")
        return super().moved(x)


def test_a_network_that_cannot_be_watched_is_looked_at(monkeypatch):
    names = looked_at(Unwatchable(), list(numbers(64, 16, 24).split(16)), monkeypatch)
    assert names == {"score.weight", "second.weight", "last.weight"}
