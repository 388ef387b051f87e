"""The tuner in somebody's own loop: files, names, copies, precision, stopping and going on."""

from __future__ import annotations

import copy
import shutil
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fewbits
from fewbits import HEMP, Ramp
from fewbits.errors import ConfigError, ModelError, TargetError

BATCH = 64
PAPER = HEMP(levels=9, forward="continuous", pull=Ramp(0.05, 0.5, begin=0.5, until=0.6), refresh=3)
STRAIGHT = HEMP(
    levels=15, spacing="even", forward="quantized", slope=Ramp(0, 1e-5, until=0.5), refresh=3
)
SOFT = HEMP(
    levels=7, spacing="even", forward="quantized", slope=1e-5, soft=0.4, refresh=3, assign="rate"
)
BOTH = pytest.mark.parametrize("method", [PAPER, STRAIGHT], ids=["paper", "straight"])


def train(net, data, tuner, optimizer, steps, *, first=0, total=None, forward=None, parts=1):
    """A loop as anybody would write it; ``parts`` accumulates gradients."""
    x, y = data[:2]
    forward = net if forward is None else forward
    for k in range(first, first + steps):
        rows = torch.arange(k * BATCH, (k + 1) * BATCH) % len(x)
        optimizer.zero_grad()
        for part in rows.chunk(parts):
            loss = F.cross_entropy(forward(x[part]).float(), y[part]) + tuner.penalty()
            (loss / parts).backward()
        optimizer.step()
        tuner.step()
        tuner.advance((k + 1) / (total or steps))
    return net


def sgd(net, lr=0.003):
    return torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9)


def accuracy(net, data):
    x, y = data[2:]
    with torch.no_grad():
        return float((net.eval()(x).argmax(1) == y).float().mean())


def test_what_finish_gives_is_the_file_and_the_network(digits_net, digits, tmp_path):
    nets = {"paper": digits_net, "straight": copy.deepcopy(digits_net)}
    for method, (name, net) in zip((PAPER, STRAIGHT), nets.items(), strict=True):
        tuner = fewbits.prepare(net, method, raw_dtype="float16", source="tests:net")
        train(net, digits, tuner, sgd(net), 30)
        with tuner.quantized() as inside:
            logits = inside(digits[2])
        coded, path = tuner.finish(), tmp_path / name
        assert coded.save(path) == path.stat().st_size == coded.size_report().file_bytes
        torch.testing.assert_close(net(digits[2]), logits, rtol=0, atol=0.05)
        assert accuracy(net, digits) > 0.9
    script = (
        "import sys, torch, fewbits\n"
        "for path in sys.argv[1:]:\n"
        "    torch.save(fewbits.load(path), path + '.pt')\n"
        "    print(fewbits.inspect(path).metadata['recipe']['rules'][0]['method'])"
    )
    command = [sys.executable, "-c", script, *(str(tmp_path / name) for name in nets)]
    told = subprocess.run(command, check=True, capture_output=True, text=True)
    assert told.stdout.split() == ["hemp", "hemp"]
    for name, net in nets.items():
        fresh, state = torch.load(tmp_path / f"{name}.pt", weights_only=True), net.state_dict()
        assert list(fresh) == list(state)
        assert all(torch.equal(fresh[key], state[key]) for key in state)


@BOTH
def test_names_and_objects_are_those_of_the_float_network(method, digits_net, digits):
    names = list(digits_net.state_dict())
    objects = {id(p) for p in digits_net.parameters()}
    values = {name: t.clone() for name, t in digits_net.state_dict().items()}
    tuner = fewbits.prepare(digits_net, method, vector_bits=6)
    during = digits_net.state_dict()
    assert list(during) == names
    assert all(torch.equal(during[name], values[name]) for name in names)
    assert objects <= {id(p) for p in digits_net.parameters()}
    during["conv1.weight"] = torch.ones_like(during["conv1.weight"])
    assert not digits_net.load_state_dict(during).missing_keys
    assert bool((digits_net.state_dict()["conv1.weight"] == 1).all())
    digits_net.load_state_dict(values)
    tuner.finish()
    assert list(digits_net.state_dict()) == names
    assert {id(p) for p in digits_net.parameters()} == objects
    assert [name for name, _ in digits_net.named_parameters()] == [
        name for name in names if "running" not in name and "num_batches" not in name
    ]


def test_an_optimizer_made_before_still_fits(digits_net, digits):
    optimizer = sgd(digits_net, lr=0.05)
    tuner = fewbits.prepare(digits_net, STRAIGHT)
    before = digits_net.state_dict()["conv2.weight"].clone()
    train(digits_net, digits, tuner, optimizer, 2)
    assert not torch.equal(digits_net.state_dict()["conv2.weight"], before)


@pytest.mark.parametrize("method", [PAPER, STRAIGHT, SOFT], ids=["paper", "straight", "soft"])
def test_resumed_training_ends_in_the_same_bytes(method, digits_net, digits, tmp_path):
    other = copy.deepcopy(digits_net)
    tuner = fewbits.prepare(digits_net, method, vector_bits=6)
    train(digits_net, digits, tuner, sgd(digits_net), 25)
    whole = tuner.finish().encode()

    net = copy.deepcopy(other)
    tuner = fewbits.prepare(net, method, vector_bits=6)
    optimizer = sgd(net)
    train(net, digits, tuner, optimizer, 11, total=25)
    parts = {"net": net, "tuner": tuner, "optimizer": optimizer}
    torch.save({name: part.state_dict() for name, part in parts.items()}, tmp_path / "c.pt")

    kept = torch.load(tmp_path / "c.pt", weights_only=True)
    net = copy.deepcopy(other)
    tuner = fewbits.prepare(net, method, vector_bits=6)
    optimizer = sgd(net)
    net.load_state_dict(kept["net"])
    optimizer.load_state_dict(kept["optimizer"])
    tuner.load_state_dict(kept["tuner"])
    train(net, digits, tuner, optimizer, 14, first=11, total=25)
    assert tuner.finish().encode() == whole


@BOTH
def test_accumulated_gradients_are_those_of_the_whole_batch(method, digits_net, digits):
    digits_net.eval()  # batch norms see no batch
    other = copy.deepcopy(digits_net)
    for net, parts in ((digits_net, 1), (other, 4)):
        tuner = fewbits.prepare(net, method)
        train(net, digits, tuner, sgd(net), 4, parts=parts)
    ours, theirs = digits_net.state_dict(), other.state_dict()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-3, atol=1e-4)


@BOTH
def test_copies_compute_the_same_and_go_their_own_way(method, digits_net, digits):
    tuner = fewbits.prepare(digits_net, method)
    train(digits_net, digits, tuner, sgd(digits_net), 5)
    twin = copy.deepcopy(digits_net).eval()
    outputs = twin(digits[2])
    assert torch.equal(outputs, digits_net.eval()(digits[2]))
    assert list(twin.state_dict()) == list(digits_net.state_dict())
    train(digits_net, digits, tuner, sgd(digits_net), 5)
    assert torch.equal(twin(digits[2]), outputs)
    tuner.finish()
    assert torch.equal(twin(digits[2]), outputs)


@BOTH
def test_autocast_rounds_as_without(method, digits_net, digits):
    tuner = fewbits.prepare(digits_net, method)
    x = digits[0][:32]
    exact = digits_net.conv1.weight.detach().clone()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(digits_net.conv1.weight, exact)

    def forward(batch):
        with torch.autocast("cpu", torch.bfloat16):
            return digits_net(batch)

    assert forward(x).dtype == torch.bfloat16
    train(digits_net, digits, tuner, sgd(digits_net), 5, forward=forward)
    tuner.finish()
    assert accuracy(digits_net, digits) > 0.9


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs g++ here")
@BOTH
def test_compiled_networks_train_alike(method, digits_net, digits):
    other = copy.deepcopy(digits_net)
    for net in (digits_net, other):
        tuner = fewbits.prepare(net, method)
        forward = torch.compile(net, backend="aot_eager") if net is other else net
        train(net, digits, tuner, sgd(net, 1e-3), 3, forward=forward)
    for name, values in digits_net.state_dict().items():
        torch.testing.assert_close(
            values.float(), other.state_dict()[name].float(), rtol=1e-2, atol=1e-3
        )


def test_a_compiled_network_can_be_prepared(digits_net):
    tuner = fewbits.prepare(torch.compile(digits_net, backend="eager"), PAPER)
    assert tuner.model is digits_net


def test_inside_quantized_the_network_is_what_the_file_holds(digits_net, digits):
    tuner = fewbits.prepare(digits_net, STRAIGHT)
    train(digits_net, digits, tuner, sgd(digits_net), 3)
    latent = digits_net.state_dict()["linear.weight"].clone()
    with tuner.quantized():
        inside = digits_net.state_dict()["linear.weight"].clone()
        assert len(inside.unique()) <= 15
        assert torch.equal(digits_net.linear.weight, inside)
    assert torch.equal(digits_net.state_dict()["linear.weight"], latent)
    tuner.finish()
    assert torch.equal(digits_net.linear.weight, inside)


def test_groups_hold_every_parameter_once_with_rates_by_cell(digits_net):
    tuner = fewbits.prepare(digits_net, STRAIGHT, vector_bits=6)
    groups = tuner.groups(1e-3, cells=0.01)
    assert all(group["params"] for group in groups)
    listed = [id(p) for group in groups for p in group["params"]]
    assert len(listed) == len(set(listed))
    assert set(listed) == {id(p) for p in digits_net.parameters()}
    coded = tuner.session.quantized(tuner.weights[0])
    rates = {id(group["params"][0]): group["lr"] for group in groups}
    assert rates[id(tuner.weights[0].parameter)] == pytest.approx(0.01 * float(coded.step))
    assert groups[0]["lr"] == 1e-3


def test_in_its_soft_share_the_network_computes_with_float_weights(digits_net, digits):
    method = HEMP(
        levels=7, spacing="even", forward="quantized", slope=1e-6, soft=0.5, refresh=1, width=2
    )
    exact = digits_net.conv2.weight.detach().clone()
    tuner = fewbits.prepare(digits_net, method, vector_bits=6)
    assert torch.equal(digits_net.conv2.weight, exact)
    before = float(tuner.session.quantized(tuner.weights[1]).step)
    train(digits_net, digits, tuner, sgd(digits_net), 3, total=10)
    assert len(digits_net.conv2.weight.unique()) > 1000
    with tuner.quantized():
        assert len(digits_net.conv2.weight.unique()) <= 7
    assert len(digits_net.conv2.weight.unique()) > 1000
    after = float(tuner.session.quantized(tuner.weights[1]).step)
    assert after != before
    assert after == float(torch.tensor(after).bfloat16())
    train(digits_net, digits, tuner, sgd(digits_net), 3, first=3, total=10)
    assert len(digits_net.conv2.weight.unique()) <= 7


def test_trained_steps_change_and_are_short(digits_net, digits):
    tuner = fewbits.prepare(digits_net, STRAIGHT)
    before = [float(tuner.session.quantized(w).step) for w in tuner.weights]
    train(digits_net, digits, tuner, torch.optim.Adam(tuner.groups(1e-2, cells=0.01)), 10)
    after = [float(tuner.session.quantized(w).step) for w in tuner.weights]
    assert all(a != b for a, b in zip(before, after, strict=True))
    assert all(a == float(torch.tensor(a).bfloat16()) for a in after)


def test_vectors_get_their_grid(digits_net, digits, tmp_path):
    plain = fewbits.prepare(copy.deepcopy(digits_net), STRAIGHT)
    assert "linear.bias" in plain.plan.kept
    tuner = fewbits.prepare(digits_net, STRAIGHT, vector_bits=5)
    assert "linear.bias" not in tuner.plan.kept
    assert "bn1.running_var" in tuner.plan.kept
    assert "on a grid of 5 bits" in str(tuner.plan)
    train(digits_net, digits, tuner, sgd(digits_net), 5)
    small, large = tuner.finish(), plain.finish()
    assert len(digits_net.linear.bias.unique()) <= 31
    assert len(small.data) < len(large.data)
    small.save(tmp_path / "net.fewbits")
    assert torch.equal(
        fewbits.load(tmp_path / "net.fewbits")["linear.bias"], digits_net.linear.bias
    )


def test_tied_weights_are_trained_once():
    net = nn.Sequential(nn.Embedding(20, 8), nn.Linear(8, 20, bias=False))
    net[1].weight = net[0].weight
    tuner = fewbits.prepare(net, STRAIGHT)
    assert len(tuner.weights) == 1
    assert torch.equal(net[0].weight, net[1].weight)
    coded = tuner.finish()
    assert net[1].weight is net[0].weight
    assert list(coded.tensors) == ["0.weight"]
    assert coded.contents.aliases == {"1.weight": "0.weight"}


def test_several_weights_of_one_module_keep_their_order(digits):
    net = nn.MultiheadAttention(8, 2)
    names = list(net.state_dict())
    tuner = fewbits.prepare(net, STRAIGHT, vector_bits=8)
    assert list(net.state_dict()) == names
    x = torch.randn(5, 3, 8)
    net(x, x, x)[0].sum().backward()
    tuner.finish()
    assert list(net.state_dict()) == names


def test_recurrent_layers_train_with_the_paper_s_forward_only():
    net = nn.Sequential(nn.LSTM(4, 8))
    with pytest.raises(ConfigError, match="forward='continuous'"):
        fewbits.prepare(net, STRAIGHT)
    net = nn.Sequential(nn.LSTM(4, 8))
    coded = fewbits.prepare(net, PAPER).finish()
    assert torch.equal(coded.state_dict()["0.weight_hh_l0"], net[0].weight_hh_l0)


def test_kept_weights_are_left_alone(digits_net):
    before = digits_net.linear.weight.detach().clone()
    tuner = fewbits.prepare(digits_net, PAPER, keep=["linear"])
    assert "linear.weight" not in [weight.name for weight in tuner.weights]
    tuner.finish()
    assert torch.equal(digits_net.linear.weight, before)
    with pytest.raises(TargetError, match="no_such"):
        fewbits.prepare(digits_net, PAPER, keep=["no_such"])


def test_a_finished_tuner_says_so(digits_net):
    tuner = fewbits.prepare(digits_net, PAPER)
    tuner.finish()
    for call in (tuner.step, tuner.finish, lambda: tuner.advance(0.5)):
        with pytest.raises(ConfigError, match="finished"):
            call()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@BOTH
def test_a_training_that_went_wrong_is_not_written(digits_net, method, value):
    tuner = fewbits.prepare(digits_net, method)
    with torch.no_grad():
        tuner.weights[0].parameter[0] = value
    with pytest.raises(ModelError, match=r"conv1\.weight.*diverged"):
        tuner.finish()


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"method": fewbits.GPFQ()}, "training method"),
        ({"method": HEMP}, "training method"),
        ({"start": 3}, "start"),
        ({"vector_bits": 1}, "vector_bits"),
        ({"raw_dtype": "int4"}, "raw_dtype"),
    ],
)
def test_arguments_out_of_range_are_refused(digits_net, change, error):
    arguments = {"method": PAPER, **change}
    with pytest.raises(ConfigError, match=error):
        fewbits.prepare(digits_net, **arguments)


def test_compress_refuses_methods_that_train(digits_net):
    recipe = {"rules": [{"match": "*", "method": "hemp", "levels": 9}]}
    with pytest.raises(ConfigError, match=r"fewbits\.prepare"):
        fewbits.compress(digits_net, recipe)
    parsed = fewbits.Recipe.from_dict(recipe)
    assert fewbits.Recipe.from_dict(parsed.to_dict()) == parsed
    assert len(fewbits.prepare(digits_net, parsed).weights) == 4
