"""LowBit in a loop: files and networks agree to the bit; stages, gates, placement, reports."""

from __future__ import annotations

import copy
import warnings
from collections import OrderedDict

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fewbits
from fewbits import LowBit, Ramp
from fewbits.errors import ConfigError, ModelError
from fewbits.methods.trained.lowbit.stages import Stage, stages_of

pytestmark = pytest.mark.filterwarnings("ignore:.*values are clipped")


class Block(nn.Module):
    """A residual block whose one ReLU module is called twice, as torchvision's."""

    def __init__(self, inputs, width, stride=1):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.relu = nn.ReLU(inplace=True)
        self.down = None
        if stride > 1:
            self.down = nn.Sequential(
                nn.Conv2d(inputs, width, 1, stride, bias=False), nn.BatchNorm2d(width)
            )

    def forward(self, x):
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu(y + (x if self.down is None else self.down(x)))


class Residual(nn.Module):
    """Like torchvision's ResNet, of the given blocks in each stage."""

    def __init__(self, blocks=(1, 1), width=4):
        super().__init__()
        self.conv1 = nn.Conv2d(1, width, 3, 1, 1, bias=False)
        self.bn1, self.relu = nn.BatchNorm2d(width), nn.ReLU(inplace=True)
        stages, inputs = [], width
        for number, count in enumerate(blocks):
            made = [Block(inputs, width << number, 2 if number else 1)]
            inputs = width << number
            made += [Block(inputs, inputs) for _ in range(count - 1)]
            stages.append(nn.Sequential(*made))
        self.stages = nn.ModuleList(stages)
        self.fc = nn.Linear(inputs, 10)

    def forward(self, x):
        x = self.relu(self.bn1(self.conv1(x)))
        for stage in self.stages:
            x = stage(x)
        return self.fc(x.mean((2, 3)))


def batch(count=32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 1, 8, 8, generator=generator)
    return x, (x.mean((1, 2, 3)) > 0).long() + 2 * (x[:, 0, 0, 0] > 0)


@pytest.fixture
def net():
    torch.manual_seed(0)
    net = Residual()
    with torch.no_grad():
        for _ in range(20):
            net(torch.randn(16, 1, 8, 8))
    return net.eval()


def prepare(net, method, **more):
    return fewbits.prepare(net, method, calibration=[batch(seed=k) for k in (1, 2)], **more)


def sgd(tuner, lr=0.002):
    parameters = dict.fromkeys([*tuner.model.parameters(), *tuner.parameters()])
    return torch.optim.SGD([p for p in parameters if p.requires_grad], lr=lr, momentum=0.9)


def train(tuner, steps=4, first=0, total=None, optimizer=None):
    optimizer = optimizer or sgd(tuner)
    losses = []
    tuner.model.train()
    for k in range(first, first + steps):
        tuner.advance(k / (total or steps))
        x, y = batch(seed=k)
        optimizer.zero_grad()
        loss = F.cross_entropy(tuner.model(x), y) + tuner.penalty()
        loss.backward()
        optimizer.step()
        tuner.step()
        losses.append(float(loss.detach()))
    tuner.model.eval()
    return losses


CASES = [
    LowBit(),
    LowBit(weights=2, activations=2, quantizer="lsq+", first_last="same", per="channel"),
    LowBit(weights=4, activations=3, quantizer="dorefa", placement="output", first_last="fp"),
    LowBit(weights=4, activations=4, quantizer="pact", decay=1e-3, ranges="percentile"),
    LowBit(weights=3, activations=32, ranges="mean"),
    LowBit(weights=32, activations=4),
    LowBit(weights=4, activations=2, schedule="progressive", first_last="same"),
]


@pytest.mark.parametrize(
    "method", CASES, ids=lambda m: f"{m.quantizer}-{m.weights}-{m.activations}"
)
def test_network_file_and_loaded_network_agree_to_the_bit(method, net, tmp_path):
    fresh = copy.deepcopy(net)
    keys = list(net.state_dict())
    objects = {id(p) for p in net.parameters()}
    tuner = prepare(net, method)
    assert list(net.state_dict()) == keys
    assert {id(p) for p in net.parameters()} >= objects
    train(tuner)
    tuner.advance(1.0)
    x = batch(seed=9)[0]
    trained = net(x)
    with tuner.quantized():
        inside = net(x)
    coded = tuner.finish()
    torch.testing.assert_close(inside, trained, rtol=0, atol=1e-5)
    assert torch.equal(net(x), inside)
    coded.save(tmp_path / "net.fewbits")
    loaded = fewbits.load(tmp_path / "net.fewbits", into=fresh)
    assert torch.equal(loaded.eval()(x), inside)
    assert list(loaded.state_dict()) == keys
    for name, tensor in coded.tensors.items():
        if hasattr(tensor, "index") and method.first_last == "same":
            assert len(torch.from_numpy(tensor.dequantize()).unique()) <= (
                2**method.weights * len(tensor.step)
            )
        assert name in keys
    plain = fewbits.load(tmp_path / "net.fewbits")
    assert list(plain) == keys


def test_levels_at_the_operands_of_each_layer(net):
    method = LowBit(weights=2, activations=2, first_last="fp")
    tuner = prepare(net, method)
    train(tuner)
    tuner.finish()
    seen = {}

    def look(name):
        return lambda module, args: seen.setdefault(name, (module.weight, args[0])) and None

    convs = {n: m for n, m in net.named_modules() if isinstance(m, nn.Conv2d)}
    for name, module in convs.items():
        module.register_forward_pre_hook(look(name))
    net(batch()[0])
    assert len(seen) == 6
    for name, (weight, values) in seen.items():
        few = name != "conv1"
        assert (len(weight.unique()) <= 4) == few
        assert (len(values.unique()) <= 4) == few


def test_placements_of_a_residual_network_of_eighteen_layers():
    """Of the paper: the stem's ReLU and two for each block, but for the last; or each layer."""
    net = Residual((2, 2, 2, 2), width=2).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for placement, count in (("output", 16), ("input", 19)):
            method = LowBit(first_last="fp", placement=placement, quantizer="dorefa")
            tuner = prepare(copy.deepcopy(net), method)
            assert len(tuner.weights) == 19
            assert len(tuner.session.inputs) == count
        assert "conv1" not in tuner.session.inputs
        tuner = prepare(copy.deepcopy(net), LowBit(placement="output"))
    assert {"conv1", "relu", "stages.0.0.relu@0", "stages.0.0.relu@1"} <= set(tuner.session.inputs)
    assert tuner.session.inputs["conv1"].signed
    assert not tuner.session.inputs["stages.0.0.relu@1"].signed


def test_thirty_two_bits_leave_the_network_as_it_is(net):
    x = batch()[0]
    before = net(x)
    tuner = prepare(net, LowBit(schedule="32/32, 4/4"))
    assert torch.equal(net(x), before)
    tuner.advance(0.5)
    assert not torch.equal(net(x), before)


def test_stages():
    assert stages_of("direct", 2, 2) == (Stage(2, 2, 1.0),)
    assert stages_of("two_stage", 2, 2) == (Stage(2, 32, 0.5), Stage(2, 2, 1.0))
    down = stages_of("progressive", 2, 2)
    assert [(s.weights, s.activations) for s in down] == [(8, 8), (4, 4), (2, 2)]
    assert [s.until for s in down] == pytest.approx([1 / 3, 2 / 3, 1])
    both = stages_of("two_stage_progressive", 2, 4)
    assert [(s.weights, s.activations) for s in both] == [
        (8, 32),
        (4, 32),
        (2, 32),
        (2, 8),
        (2, 4),
    ]
    own = stages_of("2/32, 2/4*0.5, 2/2*0.5", 2, 2)
    assert [s.until for s in own] == [0.5, 0.75, 1.0]
    for wrong in ("2/2, 4/4", "fast", "2/2, 2/2", "9/2, 2/2", "2/32*0, 2/2", "2/32*x, 2/2"):
        with pytest.raises(ConfigError, match="schedule"):
            stages_of(wrong, 2, 2)


@pytest.mark.parametrize(
    ("schedule", "trace"),
    [
        ("two_stage", [(2, 32)] * 3 + [(2, 2)] * 3),
        ("progressive", [(8, 8)] * 2 + [(4, 4)] * 2 + [(2, 2)] * 2),
        ("activations_first", [(32, 2)] * 3 + [(2, 2)] * 3),
    ],
)
def test_the_widths_of_each_epoch(schedule, trace, net):
    tuner = prepare(net, LowBit(weights=2, activations=2, schedule=schedule, first_last="same"))
    found, stages = [], []
    for epoch in range(6):
        tuner.advance(epoch / 6)
        weights = {line.bits for line in tuner.session._quantizers.values()}
        inputs = {made.bits for made in tuner.session.inputs.values()}
        assert len(weights) == len(inputs) == 1
        found.append((weights.pop(), inputs.pop()))
        stages.append(tuner.stage)
    assert found == trace
    assert stages == [sorted(set(trace), key=trace.index).index(pair) for pair in trace]
    assert tuner.selectable_from == pytest.approx(trace.index((2, 2)) / 6)


def test_a_resumed_training_ends_with_the_same_bytes(net):
    for schedule in ("progressive", "stochastic"):
        method = LowBit(weights=2, activations=2, schedule=schedule)
        whole = prepare(copy.deepcopy(net), method)
        train(whole, 8)
        part = prepare(copy.deepcopy(net), method)
        optimizer = sgd(part)
        train(part, 5, total=8, optimizer=optimizer)
        states = copy.deepcopy((part.model.state_dict(), part.state_dict(), optimizer.state_dict()))
        again = prepare(copy.deepcopy(net), method)
        again.model.load_state_dict(states[0])
        again.load_state_dict(states[1])
        optimizer = sgd(again)
        optimizer.load_state_dict(states[2])
        train(again, 3, first=5, total=8, optimizer=optimizer)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert again.finish().data == whole.finish().data


def test_stochastic_ends_of_the_chance(net):
    """At 1 it is direct training, at 0 that of the float network, exactly."""
    two = {"weights": 2, "activations": 2}
    losses = {}
    for name, method in {
        "direct": LowBit(**two),
        "one": LowBit(**two, schedule="stochastic", chance=1.0),
        "none": LowBit(**two, schedule="stochastic", chance=0.0),
    }.items():
        losses[name] = train(prepare(copy.deepcopy(net), method))
    plain = copy.deepcopy(net)
    floats = prepare(
        plain,
        LowBit(weights=2, activations=2, schedule="32/32, 2/2*0.0001"),
    )
    losses["float"] = train(floats)
    assert losses["one"] == losses["direct"]
    assert losses["none"] == losses["float"] != losses["direct"]


def test_gates_are_drawn_once_a_step_with_their_chance(net):
    method = LowBit(weights=2, activations=2, schedule="stochastic", chance=0.3, gates="layer")
    session = prepare(net, method).session
    draws = []
    for _ in range(4000):
        session._count += 1
        session._draw()
        draws.append([float(line.gate) for line in session._quantizers.values()])
    table = torch.tensor(draws)
    assert float((table.mean(0) - 0.3).abs().max()) < 0.03
    related = torch.corrcoef(table.T) - torch.eye(table.shape[1])
    assert float(related.abs().max()) < 0.06
    before = [float(line.gate) for line in session._quantizers.values()]
    net.train()
    for _ in range(3):  # accumulation: no draw between micro-batches
        net(batch()[0])
    assert before == [float(line.gate) for line in session._quantizers.values()]
    net.eval()
    assert torch.equal(net(batch()[0]), net(batch()[0]))
    for line in session._quantizers.values():
        line.gate.fill_(0)
    closed = net(batch()[0])
    for line in session._quantizers.values():
        line.gate.fill_(1)
    assert torch.equal(closed, net(batch()[0]))


def test_gates_are_another_draw_for_another_seed(net):
    """Also for seeds that agree in their low 32 bits: torch's generator takes no others."""
    method = LowBit(schedule="stochastic", chance=0.5, gates="layer")
    tables = []
    for seed in (0, 1, 123, 2**32, 2**62):
        session = prepare(copy.deepcopy(net), method, seed=seed).session
        draws = []
        for _ in range(50):
            session.step()
            draws.append(tuple(float(line.gate) for line in session._quantizers.values()))
        tables.append(tuple(draws))
    assert len(set(tables)) == len(tables)


@pytest.mark.parametrize("gates", ["block", "layer", "parts"])
def test_gates_go_by_block_layer_or_part(gates, net):
    session = prepare(net, LowBit(schedule="stochastic", gates=gates)).session
    names = {group for group, _ in session.groups()}
    layers = len(session._quantizers)
    assert len(names) == {"block": 4, "layer": layers, "parts": 2 * layers}[gates]
    block = {
        group for group, part in session.groups() if part is session.inputs["stages.1.0.down.0"]
    }
    assert block == {"block": {"stages.1.0"}, "layer": {"stages.1.0.down.0"}}.get(gates, block)


def test_layers_of_one_sequence_are_blocks_of_their_own():
    """As VGG's, whose layers are all in ``features``, unlike a shortcut's, which are a block's."""
    layers = [layer for _ in range(3) for layer in (nn.Linear(8, 8), nn.ReLU())]
    net = nn.Sequential(OrderedDict(features=nn.Sequential(*layers), fc=nn.Linear(8, 2)))
    method = LowBit(schedule="stochastic", gates="block")
    session = fewbits.prepare(net, method, calibration=torch.randn(32, 8)).session
    groups = {group for group, _ in session.groups()}
    assert groups == {"features.0", "features.2", "features.4", "fc"}


def test_a_chance_below_one_needs_normalizations_measured_anew(net):
    half = {"weights": 2, "activations": 2, "schedule": "stochastic", "chance": 0.5}
    with pytest.warns(UserWarning, match="reestimate=True"):
        prepare(copy.deepcopy(net), LowBit(**half)).finish()
    tuner = prepare(net, LowBit(**half, reestimate=True))
    train(tuner)
    before = net.bn1.running_mean.clone()
    tuner.finish()
    assert not torch.equal(net.bn1.running_mean, before)
    x = torch.cat([batch(seed=k)[0] for k in (1, 2)])
    halves = []
    net.bn1.register_forward_pre_hook(lambda m, a: halves.append(a[0].mean((0, 2, 3))))
    for part in x.split(32):
        net(part)
    torch.testing.assert_close(net.bn1.running_mean, torch.stack(halves).mean(0))


def test_steps_stay_positive_under_a_hostile_optimizer(net):
    tuner = prepare(net, LowBit(weights=2, activations=2))
    steps = list(tuner.parameters())
    optimizer = torch.optim.SGD(steps, lr=1.0)
    for _ in range(100):
        optimizer.zero_grad()
        sum(p.sum() * 1e3 for p in steps).backward()
        optimizer.step()
        tuner.step()
    parts = [*tuner.session._quantizers.values(), *tuner.session.inputs.values()]
    assert all(float(part.step.value.min()) > 0 for part in parts)
    assert bool(torch.isfinite(net(batch()[0])).all())


@pytest.mark.parametrize(
    "method",
    [LowBit(), LowBit(placement="output", quantizer="pact"), LowBit(weights=32)],
    ids=["inputs", "outputs", "inputs alone"],
)
def test_what_is_learned_is_in_the_network_while_it_is_trained(method, net):
    """There plain DistributedDataParallel finds it; the state dict stays the float network's."""
    before, keys = [name for name, _ in net.named_modules()], list(net.state_dict())
    tuner = prepare(net, method)
    inside = {id(p) for p in net.parameters()}
    assert tuner.parameters()
    assert {id(p) for p in tuner.parameters()} <= inside
    assert list(net.state_dict()) == keys
    net.load_state_dict(net.state_dict())
    tuner.finish()
    assert [name for name, _ in net.named_modules()] == before


def test_a_network_prepared_twice_has_one_set_of_inputs(net):
    prepare(net, LowBit(weights=32))
    count = len(list(net.modules()))
    tuner = prepare(net, LowBit(weights=32))
    assert len(list(net.modules())) == count
    tuner.finish()


@pytest.mark.parametrize("quantizer", ["lsq", "lsq+"])
def test_steps_follow_the_network_to_its_device_and_stay_float32(quantizer, net):
    tuner = prepare(net, LowBit(quantizer=quantizer))
    parts = [*tuner.session._quantizers.values(), *tuner.session.inputs.values()]
    steps = [part.step.value for part in parts]
    net.half().double().float()
    for part, step in zip(parts, steps, strict=True):
        assert torch.equal(part.step.value, step)
    net.half()
    assert all(t.dtype == torch.float32 for part in parts for t in tensors_of(part))
    net.to("meta")
    assert all(t.is_meta for part in parts for t in tensors_of(part))
    tuner.step()


def tensors_of(part):
    return [
        *part.parameters(),
        *part.buffers(),
        *([part.sample] if hasattr(part, "sample") else []),
    ]


def test_a_network_of_half_precision_trains(net):
    tuner = prepare(net, LowBit(weights=4, activations=4, first_last="same"))
    with torch.no_grad():
        for weight in tuner.weights:
            weight.parameter.mul_(1e-3)  # steps whose squares are below float16's least
    for line in tuner.session._quantizers.values():
        line.refit()
    net.half()
    optimizer = sgd(tuner, lr=1e-4)
    net.train()
    for k in range(5):
        x, y = batch(seed=k)
        optimizer.zero_grad()
        F.cross_entropy(net(x.half()).float(), y).backward()
        optimizer.step()
        tuner.step()
    assert all(bool(torch.isfinite(p).all()) for p in net.parameters())
    assert all(float(p.detach().abs().max()) < 1 for p in tuner.parameters())


@pytest.mark.parametrize("quantizer", ["lsq", "lsq+", "pact"])
def test_weight_decay_leaves_steps_and_clips_alone(quantizer, net):
    """Decay pulls the logarithm of a step's change to zero: the step back to where it began."""
    tuner = prepare(net, LowBit(quantizer=quantizer))
    own = list(tuner.parameters())
    kept = {id(p) for group in tuner.groups(0.1) if not group.get("weight_decay", 1)
            for p in group["params"]}  # fmt: skip
    assert {id(p) for p in own} == kept
    optimizer = torch.optim.SGD(tuner.groups(0.1), weight_decay=0.5)
    with torch.no_grad():
        for p in own:
            p.fill_(-0.3)
    for p in tuner.model.parameters():
        p.grad = torch.zeros_like(p)
    weight = tuner.weights[0].parameter.detach().clone()
    optimizer.step()
    assert all(float(p.detach()) == pytest.approx(-0.3) for p in own)
    assert not torch.equal(weight, tuner.weights[0].parameter)


def test_dorefa_scales_layers_that_no_normalization_follows(net):
    tuner = prepare(copy.deepcopy(net), LowBit(quantizer="dorefa", first_last="same"))
    scaled = [name for name, line in tuner.session._quantizers.items() if line.scaled]
    assert scaled == ["fc.weight"]
    with pytest.warns(UserWarning, match="'fc'"):
        prepare(copy.deepcopy(net), LowBit(quantizer="dorefa", first_last="same", rescale="never"))


@pytest.mark.parametrize("per", ["tensor", "channel"])
def test_dorefa_keeps_a_layer_of_zeros_near_zero(per, net):
    """Zero is no level of its grid: with a scale of 1 they would be 1/15 in size."""
    with torch.no_grad():
        net.fc.weight.zero_()
        net.stages[0][0].conv1.weight[1] = 0.0
    method = LowBit(quantizer="dorefa", first_last="same", per=per, rescale="always")
    tuner = prepare(net, method, zeros=False)
    net.train()
    F.cross_entropy(net(batch()[0]), batch()[1]).backward()
    assert all(bool(torch.isfinite(p.grad).all()) for p in tuner.parameters())
    with tuner.quantized():
        assert float(net.fc.weight.detach().abs().max()) < 1e-5
        if per == "channel":
            assert float(net.stages[0][0].conv1.weight.detach()[1].abs().max()) < 1e-5
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", ".*values are clipped")
        tuner.finish()


def test_wasted_levels_and_clipped_inputs_are_told(net):
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        weight = net.stages[0][0].conv1.weight
        weight.copy_(torch.randn(weight.shape, generator=generator) * 0.05)
        weight[0, 0, 0, 0] = 1.0
    tuner = prepare(net, LowBit(weights=2, activations=2, quantizer="dorefa", first_last="fp"))
    rows = {(row.name, row.what): row for row in tuner.session.report()}
    row = rows["stages.0.0.conv1.weight", "weights"]
    assert row.counts[0] + row.counts[3] <= 2
    assert row.entropy < 1.1
    assert "of 4 levels" in str(row)
    with pytest.warns(UserWarning, match=r"stages.0.0.conv1.weight.*entropy"):
        tuner.finish()


def test_a_file_of_another_network_is_refused(net, tmp_path):
    tuner = prepare(net, LowBit())
    tuner.finish().save(tmp_path / "net.fewbits")
    other = nn.Sequential(nn.Linear(3, 3))
    with pytest.raises(ModelError):
        fewbits.load(tmp_path / "net.fewbits", into=other)
    plain = fewbits.compress(net, fewbits.Nearest(bits=8))
    assert net(batch()[0]) is not None
    plain.load_into(net)
    assert not any(
        "InputHook" in str(type(h)) for m in net.modules() for h in m._forward_pre_hooks.values()
    )


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"weights": 1}, "weights"),
        ({"weights": 9}, "weights"),
        ({"activations": 0}, "activations"),
        ({"weights": 32, "activations": 32}, "nothing"),
        ({"quantizer": "magic"}, "quantizer"),
        ({"chance": 1.5}, "chance"),
        ({"chance": Ramp(0, 2)}, "chance"),
        ({"schedule": "1/4, 4/4"}, "schedule"),
        ({"placement": "middle"}, "placement"),
        ({"percentile": 101}, "percentile"),
    ],
)
def test_bad_settings(settings, match):
    with pytest.raises(ConfigError, match=match):
        LowBit(**settings)


@pytest.mark.parametrize("schedule", ["direct", "progressive"])
def test_one_bit_for_inputs_of_either_sign_is_refused(schedule, net):
    """The grid of two's complement is then -s and 0: everything above zero would be lost."""
    net.relu = nn.Identity()
    one = {"activations": 1, "schedule": schedule}
    with pytest.raises(ConfigError, match=r"'stages.0.0.conv1'.*1 bit(.|\n)*lsq\+"):
        prepare(copy.deepcopy(net), LowBit(**one))
    tuner = prepare(net, LowBit(**one, quantizer="lsq+"))
    train(tuner, 2)
    tuner.advance(1.0)
    made = tuner.session.inputs["stages.0.0.conv1"]
    assert len(made(torch.randn(100)).unique()) == 2


def test_eight_bits_at_the_ends_leave_one_bit_within(net):
    prepare(net, LowBit(activations=1))
    tuner = prepare(Residual().eval(), LowBit(activations=1, quantizer="dorefa", first_last="fp"))
    tuner.finish()


@pytest.mark.parametrize(
    ("ranges", "most"), [("mse", 0.033), ("mean", 0.033), ("percentile", 0.042)]
)
def test_shifted_inputs_start_by_the_rule_of_ranges(ranges, most):
    """From the least to the largest value, the error is 0.055."""
    values = F.gelu(torch.randn(20000, generator=torch.Generator().manual_seed(0)))
    net = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1), nn.Linear(1, 1))
    with torch.no_grad():
        for layer in net:
            layer.weight.fill_(1.0), layer.bias.fill_(0.0)
    method = LowBit(
        activations=2, weights=32, quantizer="lsq+", first_last="same", ranges=ranges, percentile=99
    )
    tuner = fewbits.prepare(net, method, calibration=values[:, None])
    made = tuner.session.inputs["0"]
    assert float((made(values) - values).detach().square().mean()) < most


def test_what_is_missing_is_told(net):
    with pytest.raises(ConfigError, match="calibration"):
        fewbits.prepare(copy.deepcopy(net), LowBit())
    functional = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Linear(4, 2))
    with pytest.raises(ConfigError, match=r"no nn.ReLU"):
        fewbits.prepare(functional, LowBit(placement="output"), calibration=torch.randn(8, 4))


def test_recipes_hold_the_settings():
    method = LowBit(weights=2, activations=2, schedule="stochastic", chance=Ramp(0.1, 1, until=0.5))
    recipe = fewbits.Recipe((fewbits.Rule("*", method),))
    assert fewbits.Recipe.from_dict(recipe.to_dict()) == recipe
