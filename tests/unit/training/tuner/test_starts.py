"""Trainings that begin from a compressed network: its grids, codebooks and bases stay."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fewbits
from fewbits import GPFQ, HEMP, RDOQ, Nearest, Transform
from fewbits.coded import CodebookTensor, GridTensor, TransformTensor
from fewbits.engine.layers.pack import pack, unpack
from fewbits.engine.layers.targets import survey
from fewbits.errors import ConfigError, LossWarning, ModelError
from fewbits.training import Magnitude

KLT = Transform(side="row", basis="klt")
FROZEN = HEMP(rate_weight=0, forward="quantized")  # fine-tuning with a frozen structure
FIXED = HEMP(rate_weight=0, forward="quantized", bases="fixed")


def loss_of(net, data):
    return F.cross_entropy(net(data[0]), data[1])


def fine_tune(net, tuner, data, steps=30, lr=0.1):
    optimizer = torch.optim.SGD(net.parameters(), lr=lr)
    for k in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * (1 - k / steps)
        rows = torch.arange(k * 256, (k + 1) * 256) % len(data[0])
        optimizer.zero_grad()
        (F.cross_entropy(net(data[0][rows]), data[1][rows]) + tuner.penalty()).backward()
        optimizer.step()
        tuner.step()
        tuner.advance((k + 1) / steps)


@pytest.mark.parametrize(
    "method",
    [
        *(Nearest(bits=3), GPFQ(bits=4), GPFQ(bits=3, threshold="hard"), KLT),
        *(GPFQ(bits=3, group=8), GPFQ(bits=3, threshold="hard", group=8)),
    ],
    ids=["nearest", "gpfq", "codebook", "transform", "groups", "codebook of groups"],
)
def test_what_starts_coded_ends_with_the_same_codes_where_nothing_is_trained(
    method, digits_net, digits, tmp_path
):
    coded = fewbits.compress(digits_net, method, calibration=digits[0][:256])
    coded.save(tmp_path / "start.fewbits")
    net = copy.deepcopy(digits_net)
    tuner = fewbits.prepare(net, FROZEN, start=tmp_path / "start.fewbits")
    again = tuner.finish()
    for name, tensor in coded.tensors.items():
        other = again.tensors[name]
        assert type(other) is type(tensor)
        assert torch.equal(coded.state_dict()[name], again.state_dict()[name])
        if isinstance(tensor, (GridTensor, CodebookTensor)):
            assert (tensor.index == other.index).all()
        if isinstance(tensor, TransformTensor):
            assert (tensor.coefficients.index == other.coefficients.index).all()
            assert (tensor.basis.index == other.basis.index).all()


@pytest.mark.parametrize(
    ("method", "kind", "training"),
    [
        (Nearest(bits=3), GridTensor, FROZEN),
        (Transform(slope=0.005, side="row", basis="klt"), TransformTensor, FROZEN),
        (Transform(slope=0.005, side="row", basis="klt"), TransformTensor, FIXED),
    ],
    ids=["grid", "transform", "transform, fixed basis"],
)
def test_fine_tuning_with_a_frozen_structure_lowers_the_loss(
    method, kind, training, digits_net, digits
):
    """T15 of transform quantization on a small scale: coefficients move, also the basis if it
    is trained; ranges, and the steps of the basis, stay."""
    coded = fewbits.compress(digits_net, method, calibration=digits[0][:256])
    net = copy.deepcopy(digits_net)
    tuner = fewbits.prepare(net, training, start=coded)
    before = float(loss_of(net, digits).detach())
    fine_tune(net, tuner, digits)
    tuned = tuner.finish()
    after = float(loss_of(net, digits).detach())
    assert after < 0.9 * before
    changed = turned = 0
    for name in ("conv1.weight", "conv2.weight", "conv3.weight", "linear.weight"):
        was, now = coded.tensors[name], tuned.tensors[name]
        assert type(now) is type(was)
        if isinstance(was, TransformTensor):
            assert (was.basis.step == now.basis.step).all()
            turned += int((was.basis.index != now.basis.index).sum())
            was, now = was.coefficients, now.coefficients
        changed += int((was.index != now.index).sum())
        assert now.index.min() >= was.index.min()
        assert now.index.max() <= was.index.max()
    assert isinstance(coded.tensors["conv2.weight"], kind)
    assert bool(turned) == (kind is TransformTensor and training is FROZEN)
    assert changed > 0 or kind is GridTensor  # its steps and the biases did it


def test_what_was_trained_in_a_basis_runs_in_the_transform_domain(digits_net, digits, tmp_path):
    x = digits[0][:64]
    coded = fewbits.compress(digits_net, Transform(slope=0.005, side="row"), calibration=x)
    net = copy.deepcopy(digits_net)
    tuner = fewbits.prepare(net, FROZEN, start=coded)
    fine_tune(net, tuner, digits, steps=15)
    tuned = tuner.finish()
    tuned.save(tmp_path / "tuned.fewbits")
    pairs = fewbits.load(
        tmp_path / "tuned.fewbits", into=copy.deepcopy(digits_net), transform_domain=True
    )
    assert isinstance(pairs.conv2, nn.Sequential)
    bases = [(t.basis.index, tuned.tensors[n].basis.index) for n, t in coded.tensors.items()
             if isinstance(t, TransformTensor)]  # fmt: skip
    assert any((was != now).any() for was, now in bases)
    with torch.no_grad():
        assert torch.allclose(pairs(x), net(x), atol=1e-3)


def test_a_weight_that_moves_over_half_a_step_changes_its_index(digits_net):
    coded = fewbits.compress(digits_net, Nearest(bits=3))
    net = copy.deepcopy(digits_net)
    tuner = fewbits.prepare(net, FROZEN, start=coded)
    was = coded.tensors["linear.weight"]
    place = tuple(int(k[0]) for k in (was.index == 0).nonzero())
    step = float(was.step[place[0]])
    weight = next(w for w in tuner.weights if w.name == "linear.weight")
    with torch.no_grad():
        weight.parameter[place] += 0.6 * step
    now = tuner.finish().tensors["linear.weight"]
    assert now.index[place] == 1
    assert (now.index != was.index).sum() == 1


def test_smallest_goes_on_to_a_smaller_file(digits_net, digits):
    coded = fewbits.compress(digits_net, RDOQ(slope=2e-4), calibration=digits[0][:256])
    net = copy.deepcopy(digits_net)
    method = HEMP(rate_weight=0.8, pull=0.05)
    tuner = fewbits.prepare(net, method, start=coded, raw_dtype="float16")
    fine_tune(net, tuner, digits, steps=40, lr=0.01)
    tuned = tuner.finish()
    assert len(tuned.data) < 0.97 * len(coded.data)
    assert float((net(digits[2]).argmax(1) == digits[3]).float().mean()) > 0.85


@pytest.mark.parametrize("start", ["smallest", Transform(slope=0.001, side="row", basis="klt")])
def test_default_settings_keep_a_start_that_has_weighed_its_bits(start, digits_net, digits):
    coded = fewbits.compress(digits_net, start, calibration=digits[0][:256])
    net = coded.load_into(copy.deepcopy(digits_net))

    def accuracy():
        return float((net.eval()(digits[2]).argmax(1) == digits[3]).float().mean())

    before = accuracy()
    tuner = fewbits.prepare(net, HEMP(), start=coded, raw_dtype="float16")
    fine_tune(net, tuner, digits, steps=40, lr=0.01)
    tuned = tuner.finish()
    assert accuracy() > before - 0.01
    assert len(tuned.encode("fast")) < len(coded.encode("fast"))


def test_defaults_go_by_the_start(digits_net, digits):
    def chosen(method, start=None):
        session = fewbits.prepare(copy.deepcopy(digits_net), method, start=start).session
        return session.method.forward, session.method.rate_weight

    coded = fewbits.compress(digits_net, Nearest(bits=3))
    assert chosen(HEMP()) == ("quantized", 0.4)
    assert chosen(HEMP(rate_weight=0.3)) == ("continuous", 0.3)
    assert chosen(HEMP(forward="continuous")) == ("continuous", 0.4)
    assert chosen(HEMP(), coded) == ("quantized", 0.1)
    assert chosen(HEMP(rate_weight=0.3), coded) == ("continuous", 0.3)
    assert chosen(HEMP(forward="continuous"), coded) == ("continuous", 0.1)
    assert chosen(HEMP(slope=0.0), coded)[0] == "quantized"
    codebooks = fewbits.compress(digits_net, GPFQ(bits=3, threshold="hard"), digits[0][:128])
    assert chosen(HEMP(), codebooks) == ("continuous", 0.1)


@pytest.mark.parametrize("compressed", [True, False])
def test_all_bits_of_the_start_are_worth_one(digits_net, compressed):
    coded = fewbits.compress(digits_net, Nearest(bits=3)) if compressed else None
    tuner = fewbits.prepare(copy.deepcopy(digits_net), HEMP(), start=coded)
    # from floats, weights between levels are counted fractionally, which takes more bits
    assert float(tuner.penalty().detach()) == pytest.approx(1, rel=0.01 if compressed else 0.3)
    for method in (HEMP(slope=0.0), HEMP(rate_weight=0.1), HEMP(forward="continuous")):
        tuner = fewbits.prepare(copy.deepcopy(digits_net), method, start=coded)
        assert float(tuner.penalty()) == 0


def test_recurrent_layers_start_coded_and_compute_with_floats():
    net = nn.Sequential(nn.LSTM(4, 8))
    coded = fewbits.compress(net, Nearest(bits=4))
    tuner = fewbits.prepare(net, HEMP(), start=coded)
    assert tuner.session.method.forward == "continuous"
    assert tuner.finish().state_dict().keys() == coded.state_dict().keys()


@pytest.mark.parametrize("arguments", [{"prune": Magnitude(share=0.5)}, {"zeros": True}])
def test_masks_do_not_go_with_coefficients(arguments):
    net = nn.Sequential(nn.Linear(12, 8))
    method = Transform(slope=1e-6, side="row", basis="klt")
    coded = fewbits.compress(net, method, calibration=_inputs(net[0]))
    with pytest.raises(ConfigError, match="coefficients of a transform"):
        fewbits.prepare(net, HEMP(levels=3), start=coded, **arguments)


def test_hemp_s_codebooks_can_be_started_from(digits_net):
    coded = fewbits.prepare(digits_net, HEMP(levels=9)).finish()
    assert isinstance(coded.tensors["conv1.weight"], CodebookTensor)
    again = fewbits.prepare(copy.deepcopy(digits_net), FROZEN, start=coded).finish()
    for name, tensor in coded.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name])


def test_another_architecture_is_refused_and_left_alone(digits_net):
    coded = fewbits.compress(nn.Linear(4, 4), Nearest())
    before = digits_net.linear.weight.detach().clone()
    with pytest.raises(ModelError, match="another architecture"):
        fewbits.prepare(digits_net, FROZEN, start=coded)
    assert torch.equal(digits_net.linear.weight, before)


@pytest.mark.parametrize("side", ["row", "column"])
@pytest.mark.parametrize(
    "layer",
    [
        nn.Linear(12, 8),
        nn.Conv2d(8, 8, 3, bias=False),
        nn.Conv2d(8, 12, 3, groups=2),
        nn.ConvTranspose2d(6, 8, 3),
    ],
    ids=["linear", "conv", "grouped", "transposed"],
)
def test_transforms_are_unpacked_as_they_were_packed(layer, side):
    net = nn.Sequential(layer)
    target = survey(net).targets[0]
    coded = fewbits.compress(
        net, Transform(slope=1e-6, side=side, basis="klt"), calibration=_inputs(layer)
    ).tensors["0.weight"]
    assert isinstance(coded, TransformTensor)
    found = unpack(coded, target)
    assert found.side == side
    again = pack(found, target, torch.float32)
    assert again.layout == coded.layout
    assert (again.dequantize() == coded.dequantize()).all()


def _inputs(layer):
    generator = torch.Generator().manual_seed(0)
    if isinstance(layer, nn.Linear):
        return torch.randn(64, layer.in_features, generator=generator)
    return torch.randn(8, layer.in_channels, 6, 6, generator=generator)


def mixed():
    """A start whose first layer a rule has kept in float."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    rules = (fewbits.Rule("*", Nearest(bits=4)), fewbits.Rule("0", None))
    return net, fewbits.compress(net, fewbits.Recipe(rules))


@pytest.mark.parametrize(
    "method",
    [HEMP(levels=9), fewbits.LowBit(weights=3, activations=32), fewbits.PWFN(fractions=(1.0,))],
    ids=["hemp", "lowbit", "pwfn"],
)
def test_what_a_start_left_in_float_is_told_of_where_it_is_quantized(method, recwarn):
    net, start = mixed()
    made = fewbits.prepare(net, method, start=start).finish()
    told = [note for note in made.notes if "in float is quantized from now on" in note]
    assert len(told) == 1
    assert "1 tensor (0.weight)" in told[0]
    assert not any("0.weight" in str(warning.message) for warning in recwarn)


def test_what_stays_in_float_is_not_told_of():
    net, start = mixed()
    kept = fewbits.prepare(net, HEMP(levels=9), start=start, keep=["0"]).finish()
    net, start = mixed()
    inputs = fewbits.LowBit(weights=32, activations=8)
    with pytest.warns(LossWarning, match="quantized in the start are in float"):
        tuner = fewbits.prepare(net, inputs, start=start, calibration=torch.randn(8, 6))
    floats = tuner.finish()
    net, _ = mixed()
    fresh = fewbits.prepare(net, HEMP(levels=9)).finish()
    assert not [n for c in (kept, floats, fresh) for n in c.notes if "quantized from now on" in n]


def test_weights_that_a_method_left_in_float_are_told_of_too():
    net, _ = mixed()
    ends = fewbits.LowBit(weights=3, activations=32, first_last="fp")
    start = fewbits.prepare(net, ends).finish()
    made = fewbits.prepare(mixed()[0], HEMP(levels=5), start=start).finish()
    assert any(
        "2 tensors (0.weight, 4.weight) that the start has in float are" in n for n in made.notes
    )
