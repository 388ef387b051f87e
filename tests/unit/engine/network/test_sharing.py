"""Weights that two networks share until one of them changes."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fewbits
from fewbits.engine.network.sharing import CopyOnWrite, assign, assign_state, shareable, sharing
from fewbits.errors import ModelError


def pair():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 5)).eval()
    return network, sharing(network, ["0.weight", "2.weight", "no.such"])


def test_named_parameters_share_memory_and_all_else_is_copied():
    network, twin = pair()
    assert twin[0].weight.data_ptr() == network[0].weight.data_ptr()
    assert twin[0].weight is not network[0].weight
    assert twin[0].bias.data_ptr() != network[0].bias.data_ptr()


def test_tied_parameters_stay_one():
    network = nn.Sequential(nn.Embedding(6, 4), nn.Linear(4, 6))
    network[1].weight = network[0].weight
    twin = sharing(network, ["0.weight"])
    assert twin[0].weight is twin[1].weight
    assert twin[0].weight.data_ptr() == network[0].weight.data_ptr()


def test_assigning_changes_only_one_network_and_keeps_the_strides():
    network, _ = pair()
    network[0].to(memory_format=torch.channels_last)
    twin = sharing(network, ["0.weight"])
    before, version = network[0].weight.clone(), network[0].weight._version
    assign(twin[0].weight, torch.full((4, 3, 3, 3), 7.0))
    twin[0].weight.data.add_(1)
    with torch.no_grad():
        twin[0].weight.mul_(2)
    assert torch.equal(network[0].weight, before)
    assert network[0].weight._version == version
    assert bool((twin[0].weight == 16).all())
    assert twin[0].weight.stride() == network[0].weight.stride() != before.contiguous().stride()


def test_the_state_of_a_module_is_assigned_in_new_memory():
    network = nn.Sequential(nn.BatchNorm1d(4))
    twin = sharing(network, ["0.weight"])
    assign_state(twin[0], {"weight": torch.zeros(4), "running_var": torch.zeros(4)})
    assert bool((network[0].weight == 1).all())
    assert bool((network[0].running_var == 1).all())
    assert not twin[0].weight.any()
    assert not twin[0].running_var.any()


class Special(nn.Parameter):
    """A subclass, whose behaviour is unknown."""


def test_parameters_that_are_not_plain_are_copied():
    network = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    network[0].weight = Special(network[0].weight.data)
    with torch.inference_mode():
        network[1].weight = nn.Parameter(torch.ones(4, 4))
    network[2].to("meta")
    names = [name for name, _ in network.named_parameters()]
    assert set(shareable(network, names)) == {"3.weight", "3.bias", "0.bias", "1.bias"}
    twin = sharing(network, names)
    for place in (0, 1):
        assert twin[place].weight.data_ptr() != network[place].weight.data_ptr()


def foreach(weight):
    torch._foreach_mul_([weight.data], 2.0)


def out(weight):
    torch.mul(weight, 2, out=weight.data)


def augmented(weight):
    w = weight.data
    w *= 2


def in_turn(weight):
    w = weight.data
    w.mul_(4)
    w.div_(2)


def items(weight):
    weight.data[:] = 2 * weight.data


def functional(weight):
    weight.data.neg_()
    F.threshold(weight.data, 1e9, 0.0, inplace=True)
    weight.data.add_(3)


WRITES = {
    "data": lambda w: w.data.mul_(2),
    "detached": lambda w: w.detach().mul_(2),
    "the parameter": lambda w: w.mul_(2),
    "all items": items,
    "out": out,
    "a list": foreach,
    "augmented": augmented,
    "twice through one name": in_turn,
    "in place function": functional,
    "initialization": lambda w: nn.init.constant_(w, 2.0),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES.keys())
def test_a_write_goes_to_memory_of_its_own(write):
    original = nn.Sequential(nn.Linear(3, 3))
    alone = sharing(original, [])
    with torch.no_grad():
        write(alone[0].weight)
    twin, before = sharing(original, ["0.weight"]), original[0].weight.clone()
    guard = CopyOnWrite(twin, ["0.weight"])
    with torch.no_grad(), guard:
        write(twin[0].weight)
    assert torch.equal(original[0].weight, before)
    assert torch.equal(twin[0].weight, alone[0].weight)
    assert not torch.equal(twin[0].weight, before)
    assert guard.written == {"0.weight"}


def test_a_tensor_over_the_memory_sees_what_is_written_through_it():
    original = nn.Sequential(nn.Linear(3, 3))
    twin = sharing(original, ["0.weight"])
    with CopyOnWrite(twin, ["0.weight"]):
        view = twin[0].weight.data
        view.mul_(2)
    assert torch.equal(view, 2 * original[0].weight)
    assert torch.equal(view, twin[0].weight)


def test_reading_copies_nothing():
    original = nn.Sequential(nn.Linear(3, 3))
    twin = sharing(original, ["0.weight"])
    guard = CopyOnWrite(twin, ["0.weight"])
    with torch.no_grad(), guard:
        x = torch.zeros(2, 3)
        x += twin[0].weight[:2]
        x.add_(twin[0].weight[1])
        x[0] = twin[0].weight[0]
        torch.add(x, twin[0].weight[2], out=x)
        torch.empty(0).zero_()
    assert twin[0].weight.data_ptr() == original[0].weight.data_ptr()
    assert not guard.written


@pytest.mark.parametrize(
    "write",
    [
        lambda w: w.data[0].zero_(),
        lambda w: w.data.view(-1).zero_(),
        lambda w: w.data.t().zero_(),
        lambda w: w.data.view(torch.int32).zero_(),
    ],
)
def test_writing_to_a_part_is_refused(write):
    original = nn.Sequential(nn.Linear(3, 3))
    twin, before = sharing(original, ["0.weight"]), original[0].weight.clone()
    with CopyOnWrite(twin, ["0.weight"]), pytest.raises(ModelError, match=r"a part of.*'0.weight'"):
        write(twin[0].weight)
    assert torch.equal(original[0].weight, before)


def test_parameters_side_by_side_in_one_storage_are_told_apart():
    original = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    nn.utils.vector_to_parameters(torch.arange(18.0), original.parameters())
    names = ["0.weight", "1.weight"]
    twin = sharing(original, names)
    guard = CopyOnWrite(twin, names)
    with torch.no_grad(), guard:
        twin[0].weight.add_(1)
        assert guard.written == {"0.weight"}
        twin[1].weight.data.add_(1)
        with pytest.raises(ModelError, match="part"):
            original[0].weight.data.as_strided((18,), (1,)).zero_()
    assert torch.equal(nn.utils.parameters_to_vector(original.parameters()), torch.arange(18.0))
    assert torch.equal(nn.utils.parameters_to_vector(twin.parameters()), torch.arange(18.0) + 1)


class Writing(nn.Module):
    """Writes to its weights in the forward pass, if only on some batches."""

    def __init__(self, write=lambda weight: None, first=0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(12, 8, max_norm=0.5)
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 4)
        self.write, self.first = write, first
        with torch.no_grad():
            self.table.weight.mul_(3)
            self.a.weight.mul_(3)

    def forward(self, x):
        if int(x.min()) >= self.first:
            with torch.no_grad():
                self.write(self.a.weight)
        return self.b(self.a(self.table(x)).relu())


FORWARDS = {
    "data clamp": lambda w: w.data.clamp_(-0.2, 0.2),
    "halved": lambda w: w.mul_(0.5),
    "none but the table": lambda w: None,
}
METHODS = {
    "gpfq": {"method": fewbits.GPFQ(bits=4)},
    "nearest": {"method": fewbits.Nearest(bits=4), "activations": 8},
    "gptq, kept": {
        "method": fewbits.Recipe((fewbits.Rule("b", fewbits.GPTQ(bits=4)),)),
        "activations": 8,
    },
    "probed": {"method": fewbits.Transform(slope=1e-4)},
}


def _batches():
    g = torch.Generator().manual_seed(0)
    return [torch.randint(first, 12, (8, 5), generator=g) for first in (0, 0, 6)]


@pytest.mark.parametrize("first", [0, 6], ids=["always", "not on the first batch"])
@pytest.mark.parametrize("write", FORWARDS.values(), ids=FORWARDS.keys())
@pytest.mark.parametrize("options", METHODS.values(), ids=METHODS.keys())
def test_a_forward_pass_that_writes_leaves_the_callers_network_alone(options, write, first):
    network = Writing(write, first).eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    versions = [parameter._version for parameter in network.parameters()]
    fewbits.compress(network, **options, calibration=_batches())
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert [parameter._version for parameter in network.parameters()] == versions


@pytest.mark.parametrize("first", [0, 6])
def test_a_forward_pass_that_writes_to_a_part_of_a_weight_is_an_error_that_says_so(first):
    network = Writing(lambda w: w[0].zero_(), first).eval()
    before = network.a.weight.clone()
    with pytest.raises(ModelError, match=r"a part of the weight 'a\.weight'"):
        fewbits.compress(network, fewbits.GPFQ(bits=4), calibration=_batches())
    assert torch.equal(network.a.weight, before)
