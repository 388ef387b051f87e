"""Networks that do unusual things, and arguments that are none: sound, or a clear error."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fewbits

GPFQ = fewbits.GPFQ(bits=8)


def _data(*shape, seed=0):
    return [torch.randn(16, *shape, generator=torch.Generator().manual_seed(seed))]


def _relative_error(net, coded, batches):
    with torch.no_grad():
        want = net(batches[0].clone())
        got = coded.load_into(type(net)().eval())(batches[0].clone())
    return float((want - got).norm() / want.norm())


class TiedByMemory(nn.Module):
    """Two parameters over one storage, which a copy unties."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.norm = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.b = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.b.weight = nn.Parameter(self.a.weight.data)
        with torch.no_grad():
            self.norm.running_var.mul_(4)

    def forward(self, x):
        return self.b(self.norm(self.a(x)).relu())


def test_weights_tied_by_memory_stay_tied():
    net, batches = TiedByMemory().eval(), _data(4, 6, 6)
    coded = fewbits.compress(net, GPFQ, calibration=batches)
    assert coded.plan.aliases == {"b.weight": "a.weight"}
    assert _relative_error(net, coded, batches) < 0.02


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner = nn.Linear(4, 3)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x):
        self.calls += 1
        return self.inner(x)


def test_buffers_that_a_forward_changes_are_stored_as_they_were():
    coded = fewbits.compress(Counting().eval(), GPFQ, calibration=_data(4) * 3)
    assert int(coded.state_dict()["calls"]) == 0


def _conv_bn():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 5, 3)).eval()
    with torch.no_grad():
        net[1].running_var.uniform_(0.5, 2)
        net[1].weight.uniform_(0.5, 2)
    return net


def test_a_weight_that_a_rule_keeps_is_not_folded_into():
    rules = (fewbits.Rule("*", GPFQ), fewbits.Rule("0", None))
    recipe = fewbits.Recipe(rules=rules, prepare=("fold_batchnorm",))
    net = _conv_bn()
    coded = fewbits.compress(net, recipe, calibration=_data(3, 8, 8))
    assert torch.equal(coded.state_dict()["0.weight"], net[0].weight)
    assert not any("absorbed" in note for note in coded.notes)


def test_the_plan_tells_what_became_of_kept_tensors():
    plan = fewbits.compress(_conv_bn(), GPFQ, calibration=_data(3, 8, 8)).plan
    assert plan.kept["1.weight"].endswith("absorbed by the layer before it")
    assert plan.kept["0.bias"].endswith("added to that of its absorbed BatchNorm")
    both = "absorbed by the layer before it; corrected by the mean error"
    assert plan.kept["1.bias"] == f"biases are kept; {both}"
    assert plan.kept["2.bias"] == "biases are kept; corrected by the mean error"
    assert plan.kept["1.num_batches_tracked"] == "int64 values are kept exactly"


def test_a_mask_of_minus_infinity_is_no_fault():
    net = nn.Linear(4, 3)
    net.register_buffer("mask", torch.full((3, 3), float("-inf")).triu(1))
    coded = fewbits.compress(net, GPFQ, calibration=_data(4))
    assert torch.equal(coded.state_dict()["mask"], net.mask)


def test_a_forward_that_calls_another_network_is_an_error():
    net, other = nn.Linear(4, 3), nn.Linear(4, 3)
    with pytest.raises(
        fewbits.CalibrationError, match=r"none of the 1 layers.*network that is passed"
    ):
        fewbits.compress(net, GPFQ, _data(4), forward=lambda model, batch: other(batch))


def test_what_torch_compile_returns_is_unwrapped(tmp_path):
    class Compiled(nn.Module):  # as torch.compile wraps, without a compiler
        def __init__(self, inner) -> None:
            super().__init__()
            self._orig_mod = inner

    net = nn.Linear(4, 3)
    coded = fewbits.compress(Compiled(net), GPFQ, calibration=_data(4))
    assert list(coded.tensors) == ["weight", "bias"]
    coded.save(tmp_path / "net.fewbits")
    wrapped = Compiled(nn.Linear(4, 3))
    assert fewbits.load(tmp_path / "net.fewbits", into=wrapped) is wrapped
    assert torch.equal(wrapped._orig_mod.weight, coded.state_dict()["weight"])


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_scripted_networks_are_refused_with_advice():
    with pytest.raises(fewbits.ModelError, match=r"before torch\.jit\.script"):
        fewbits.compress(torch.jit.script(nn.Linear(4, 3)), GPFQ, calibration=_data(4))


def test_tied_weights_go_by_all_of_their_names():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(12, 6), nn.Linear(6, 12, bias=False)
            self.head.weight = self.embed.weight
            self.extra = nn.Linear(6, 6)

    recipe = fewbits.Recipe(rules=(fewbits.Rule("*", GPFQ), fewbits.Rule("head", None)))
    entry = fewbits.plan(Tied(), recipe).entries[0]
    assert (entry.target.name, entry.method) == ("embed.weight", None)


def test_unnameable_state_is_kept():
    net = nn.Sequential(nn.Linear(4, 3))

    def rename(module, state, prefix, metadata):
        state["gone.elsewhere"] = state.pop("0.bias")

    net.register_state_dict_post_hook(rename)
    assert fewbits.plan(net, GPFQ).kept["gone.elsewhere"] == "its name is of no module"


def test_networks_that_cannot_take_values(tmp_path):
    path = tmp_path / "net.fewbits"
    fewbits.compress(nn.Linear(4, 3), GPFQ, calibration=_data(4)).save(path)
    with pytest.raises(fewbits.ModelError, match="without values: weight, bias"):
        fewbits.load(path, into=nn.LazyLinear(3))
    stretched = nn.Linear(4, 3)
    stretched.bias = nn.Parameter(torch.zeros(1).expand(3))
    before = stretched.weight.clone()
    with pytest.raises(fewbits.ModelError, match="'bias' is expanded"):
        fewbits.load(path, into=stretched)
    assert torch.equal(stretched.weight, before)
    with pytest.raises(fewbits.ConfigError, match="into must be"):
        fewbits.load(path, into="abc")


def test_dtypes_a_file_cannot_hold_are_named_before_work():
    net = nn.Linear(4, 3)
    net.register_buffer("pairs", torch.zeros(3, dtype=torch.uint8).view(torch.float4_e2m1fn_x2))
    with pytest.raises(fewbits.ModelError, match="'pairs' has dtype float4_e2m1fn_x2"):
        fewbits.plan(net, GPFQ)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: fewbits.Rule("*", "gpfq"), "method must be a method"),
        (lambda: fewbits.Rule(5, GPFQ), "match must be a pattern"),
        (lambda: fewbits.Rule("*", fewbits.GPFQ), "method must be a method"),
        (lambda: fewbits.Recipe(rules=[fewbits.Rule("*", GPFQ)]), "rules must be a tuple"),
        (lambda: fewbits.Recipe(rules=(GPFQ,)), "rules must be a tuple"),
        (lambda: fewbits.Recipe(rules=()), "rules must be a tuple"),
        (lambda: fewbits.Recipe((fewbits.Rule("*", GPFQ),), None), "prepare must be a tuple"),
        (
            lambda: fewbits.Recipe((fewbits.Rule("*", GPFQ),), ("fold_batchnorm",) * 2),
            "a tuple without duplicates",
        ),
        (
            lambda: fewbits.Recipe((fewbits.Rule("*", GPFQ),), calibration_rows=True),
            "calibration_rows must be",
        ),
        (lambda: fewbits.Recipe((fewbits.Rule("*", GPFQ),), seed=10**70), "seed must be"),
        (lambda: fewbits.Recipe.of("gpqf"), "unknown method or recipe 'gpqf'"),
        (lambda: fewbits.compress(nn.Linear(2, 2), fewbits.GPFQ), "method must be a method"),
        (lambda: fewbits.plan("net", GPFQ), "model must be"),
    ],
)
def test_values_of_the_wrong_type_are_named(make, message):
    with pytest.raises(fewbits.ConfigError, match=message):
        make()


@pytest.mark.parametrize(
    ("argument", "value"),
    [("forward", 5), ("progress", None), ("source", 1), ("max_live_bytes", -1)],
)
def test_arguments_of_compress_are_checked(argument, value):
    with pytest.raises(fewbits.ConfigError, match=f"{argument} must be"):
        fewbits.compress(nn.Linear(4, 3), fewbits.Nearest(bits=4), **{argument: value})


# networks in which nothing can be coded


def _normed(layer):
    return nn.utils.parametrizations.weight_norm(layer)


def _spectral(layer):
    return nn.utils.parametrizations.spectral_norm(layer)


def _integers():
    network = nn.Linear(8, 8)
    network.weight = nn.Parameter(network.weight.data.to(torch.int8), requires_grad=False)
    return network


class _Bare(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.ones(3, 4))


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (
            lambda: nn.Sequential(_normed(nn.Linear(8, 8)), _normed(nn.Conv1d(2, 2, 3))),
            "parametriz",
        ),
        (
            lambda: nn.Sequential(_spectral(nn.Linear(8, 8)), nn.ReLU()),
            "0.parametrizations.*remove",
        ),
        (lambda: nn.utils.weight_norm(nn.Linear(8, 8)), "weight_v.*parametrization"),
        (_integers, "weight: int8 values are kept exactly"),
        (lambda: nn.BatchNorm1d(4), "a vector of BatchNorm1d is kept"),
        (_Bare, "table: no layer kind takes _Bare"),
        (nn.ReLU, "It has no tensors"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_why_nothing_can_be_coded_is_told(make, told):
    with pytest.raises(fewbits.TargetError, match=f"no weight that can be coded.*{told}"):
        fewbits.compress(make(), fewbits.Nearest(bits=4))
