"""Networks whose modules have names that something else might mean."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fewbits
from fewbits.errors import ConfigError, ModelError

INPUTS = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
NAMES = (
    *("a b", "x\ny", "a/b", "a\\b", "*", "?", "[a]", "re:x", "@1", "a@1", "a:out", "a,b", '"q"'),
    *("__metadata__", "(header)", "(activations)", "(codebook 0)", "tensors", "Linear", "keep"),
    *("parametrizations", "original", "weight", "bias", "0", "module", "_orig_mod", "model"),
    *("lowbit_inputs", "\N{GRINNING FACE}", "\N{LATIN SMALL LETTER E WITH ACUTE}"),
)


class Odd(nn.Module):
    """One layer after another, under the given names; buffers of the same names in each."""

    def __init__(self, *names: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.names_ = names
        for name in names:
            self.add_module(name, nn.Linear(8, 8))
            if name not in ("weight", "bias", "parametrizations", "lowbit_inputs"):
                self._modules[name].register_buffer(name, torch.ones(2))

    def forward(self, x):
        for name in self.names_:
            x = self._modules[name](x)
        return x


@pytest.fixture(scope="module")
def coded():
    return fewbits.compress(Odd(*NAMES).eval(), fewbits.GPFQ(bits=6), [INPUTS], activations=8)


def test_every_layer_is_quantized_and_read_back(coded, tmp_path):
    assert len(coded.contents.activations) == len(NAMES)
    coded.save(tmp_path / "net.fewbits")
    network = fewbits.load(tmp_path / "net.fewbits", into=Odd(*NAMES).eval())
    told = fewbits.load(tmp_path / "net.fewbits")
    assert set(told) == set(network.state_dict())
    assert all(torch.equal(value, told[name]) for name, value in network.state_dict().items())
    assert torch.equal(network(INPUTS), coded.load_into(Odd(*NAMES).eval())(INPUTS))
    for name in NAMES:
        one = fewbits.load_tensor(tmp_path / "net.fewbits", f"{name}.weight")
        assert torch.equal(one, told[f"{name}.weight"])


def test_report_and_info_tell_tensors_from_parts_of_the_file(coded, tmp_path):
    coded.save(tmp_path / "net.fewbits")
    report = coded.size_report()
    assert report.file_bytes == (tmp_path / "net.fewbits").stat().st_size
    assert {row.name for row in report.rows if row.is_tensor} == set(coded.tensors)
    info = fewbits.inspect(tmp_path / "net.fewbits")
    assert set(info.activations) == set(coded.contents.activations)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "*"])
def test_a_rule_with_a_name_means_that_layer(name):
    rules = (fewbits.Rule("*", fewbits.Nearest()), fewbits.Rule(name, None))
    entries = fewbits.plan(Odd(*NAMES), fewbits.Recipe(rules)).entries
    assert [e.target.module for e in entries if e.method is None] == [name]


@pytest.mark.parametrize(
    "method",
    [fewbits.HEMP(levels=9), fewbits.PWFN(), fewbits.LowBit(weights=4, activations=4)],
    ids=lambda method: method.name,
)
def test_methods_that_train_leave_the_network_s_modules_alone(method):
    network = Odd(*NAMES)
    tuner = fewbits.prepare(network, method, calibration=[INPUTS])
    network(INPUTS).sum().backward()
    made = tuner.finish()
    assert set(made.state_dict()) == set(Odd(*NAMES).state_dict())
    assert list(network._modules) == list(NAMES)


def test_lowbit_says_which_name_it_needs():
    network = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    network[0].lowbit_inputs = nn.Identity()
    with pytest.raises(ConfigError, match="'0' already has an attribute 'lowbit_inputs'"):
        fewbits.prepare(network, fewbits.LowBit(weights=4, activations=4), calibration=[INPUTS])


def test_a_training_says_which_name_torch_needs():
    network = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    network[0].register_buffer("parametrizations", torch.ones(2))
    with pytest.raises(
        ConfigError, match=r"'0.weight'.*already has an attribute 'parametrizations'"
    ):
        fewbits.prepare(network, fewbits.PWFN())


def test_half_a_character_is_refused_before_work():
    with pytest.raises(ModelError, match=r"ud800.*surrogate"):
        fewbits.plan(Odd("\ud800"), fewbits.Nearest())


def test_a_bias_of_two_layers_is_corrected_for_neither():
    network = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, 4)).eval()
    network[2].bias = network[0].bias
    before = network[0].bias.clone()
    coded = fewbits.compress(network, fewbits.GPFQ(bits=3), [INPUTS])
    assert torch.equal(coded.state_dict()["0.bias"], before)
    reasons = [entry.reason for entry in coded.plan.entries]
    assert reasons == ["bias not corrected: it is shared with another layer"] * 2 + [""]
