"""Deltas at a rate: quantized differences come back on the base, to the bit of what was run."""

import pytest
import torch
from torch import nn

import fewbits
from fewbits.errors import BudgetError, ConfigError, CorruptFileError

METHODS = [
    fewbits.Nearest(bits=3),
    fewbits.GPTQ(bits=3),
    fewbits.GPFQ(bits=3),
    fewbits.Qronos(bits=3),
    fewbits.RDOQ(),
    fewbits.Transform(),
]


class Small(nn.Module):
    """Layers of several kinds, one of them tied, and buffers."""

    def __init__(self, seed=0, dtype=torch.float32):
        super().__init__()
        torch.manual_seed(seed)
        self.words = nn.Embedding(40, 24)
        self.norm = nn.BatchNorm1d(24)
        self.first, self.second = nn.Linear(24, 48), nn.Linear(48, 24, bias=False)
        self.last = nn.Linear(24, 40, bias=False)
        self.last.weight = self.words.weight
        self.to(dtype).eval()

    def forward(self, tokens):
        x = self.norm(self.words(tokens))
        return self.last(x + self.second(torch.relu(self.first(x))))


def trained(dtype=torch.float32, by=1e-3, seed=1, frozen=()):
    """The network after some training, and before."""
    old, new = Small(dtype=dtype), Small(dtype=dtype)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in new.named_parameters():
            if name not in frozen:
                step = by * torch.randn(value.shape, generator=generator)
                value.copy_((value.float() + step).to(dtype))
        new.norm.running_mean += 0.25
    return new, old


def batches(count=3, rows=256):
    generator = torch.Generator().manual_seed(7)
    return [torch.randint(0, 40, (rows,), generator=generator) for _ in range(count)]


def error(found, new, name):
    return float((found[name].double() - new.state_dict()[name].double()).square().sum())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
def test_what_is_loaded_is_the_base_and_most_of_the_change(method, dtype, tmp_path):
    new, old = trained(dtype, by=1e-2)
    kept = {name: value.clone() for name, value in new.state_dict().items()}
    coded = fewbits.compress(new, method, batches(), base=old)
    path = tmp_path / "change.fewbits"
    assert coded.save(path) == path.stat().st_size == coded.size_report().file_bytes
    assert all(torch.equal(value, kept[name]) for name, value in new.state_dict().items())
    found = fewbits.load(path, base=old)
    told = coded.state_dict()
    assert list(found) == list(new.state_dict()) == list(told)
    assert found["last.weight"] is found["words.weight"]
    before, after = old.state_dict(), new.state_dict()
    for name, value in found.items():
        assert value.dtype == after[name].dtype
        assert torch.equal(value, told[name])
        if value.ndim < 2 and "bias" not in name:  # biases take the mean error of the output
            assert torch.equal(value, after[name])
    for name in ("first.weight", "second.weight", "words.weight"):
        assert 0 < error(found, new, name) < 0.5 * error(before, new, name)
    into = fewbits.load(path, into=Small(seed=5, dtype=dtype), base=old)
    assert torch.equal(into.first.weight, found["first.weight"])
    again = coded.load_into(Small(seed=6, dtype=dtype))
    assert torch.equal(again.second.weight, found["second.weight"])


def test_a_difference_takes_fewer_bytes_than_the_weights_at_the_same_error():
    new, old = trained(by=1e-3)
    coded = fewbits.compress(new, fewbits.Nearest(bits=3), base=old)
    whole = fewbits.compress(new, fewbits.Nearest(bits=8))
    name = "first.weight"
    assert error(coded.state_dict(), new, name) < error(whole.state_dict(), new, name)
    assert coded.size_report().file_bytes < 0.7 * whole.size_report().file_bytes


def test_later_layers_see_the_base_with_the_differences():
    """GPTQ rounds the difference of a layer on the inputs that the delta will give it."""
    new, old = trained(by=3e-2)
    seen = []

    class Watching(nn.Module):
        def __init__(self, network):
            super().__init__()
            self.network = network
            network.second.register_forward_pre_hook(lambda _, args: seen.append(args[0].clone()))

        def forward(self, tokens):
            return self.network(tokens)

    coded = fewbits.compress(Watching(new), fewbits.GPTQ(bits=2), batches(1), base=Watching(old))
    result = coded.load_into(Watching(Small()))
    last = seen[-1]
    seen.clear()
    result(batches(1)[0])
    assert torch.allclose(seen[-1], last, atol=1e-6)


def test_what_did_not_change_is_left_out():
    new, old = trained(frozen=("words.weight", "second.weight", "norm.weight", "norm.bias"))
    coded = fewbits.compress(new, fewbits.Nearest(), base=old)
    assert set(coded.tensors) == {
        "first.weight",
        "first.bias",
        "first.bias.rest",
        "norm.running_mean",
        "norm.running_mean.rest",
    }
    reasons = {entry.target.name: entry.reason for entry in coded.plan.entries}
    assert reasons["second.weight"] == "it is that of the base"
    found = coded.state_dict()
    assert torch.equal(found["words.weight"], new.words.weight)
    facts = coded.contents.metadata["delta"]
    assert (facts["differences"], facts["added"]) == (2, 1)
    assert facts["aliases"] == {"last.weight": "words.weight"}


def test_weights_that_the_base_has_not_are_coded_whole(tmp_path):
    new, old = trained()
    state = {name: value for name, value in old.state_dict().items() if name != "second.weight"}
    state["gone"] = torch.ones(3)
    state["first.weight"] = state["first.weight"].double()
    coded = fewbits.compress(new, fewbits.Nearest(bits=6), base=state)
    coded.save(tmp_path / "x")
    found = fewbits.load(tmp_path / "x", base=state)
    assert set(found) == set(new.state_dict())
    assert found["first.weight"].dtype == torch.float32
    for name in ("first.weight", "second.weight"):
        scale = float(new.state_dict()[name].square().sum())
        assert 0 < error(found, new, name) < 1e-2 * scale


def test_a_lossless_recipe_gives_an_exact_delta():
    new, old = trained(torch.bfloat16)
    coded = fewbits.compress(new, "lossless", base=old)
    for name, value in coded.state_dict().items():
        assert torch.equal(value, new.state_dict()[name])
    data = fewbits.encode_delta(new, old)
    assert fewbits.apply_delta(data, old).keys() == coded.state_dict().keys()
    assert len(coded.encode("fast")) < len(data) + 200  # and the recipe


def test_a_budget_is_met_and_the_slope_suits_the_change():
    new, old = trained(by=1e-2)
    open_slope = fewbits.compress(new, "smallest", batches(), base=old)
    assert any(note.startswith("slope:") and "its change" in note for note in open_slope.notes)
    found = open_slope.state_dict()
    assert error(found, new, "first.weight") < 0.5 * error(old.state_dict(), new, "first.weight")
    target = int(0.8 * open_slope.size_report().file_bytes)
    coded = fewbits.compress(new, "smallest", batches(), base=old, target_bytes=target)
    assert 0.9 * target < len(coded.encode()) <= target
    with pytest.raises(BudgetError):
        fewbits.compress(new, "smallest", batches(), base=old, target_bytes=100, evaluations=3)


def test_runs_resume_and_another_base_is_another_run(tmp_path):
    new, old = trained()
    how = {"calibration": batches(), "resume": tmp_path / "run"}
    first = fewbits.compress(new, fewbits.GPTQ(bits=3), base=old, **how).encode()
    again = fewbits.compress(new, fewbits.GPTQ(bits=3), base=old, **how)
    assert any(note.startswith("resumed") for note in again.notes)
    assert again.encode() == first
    with pytest.raises(ConfigError, match="another"):
        fewbits.compress(new, fewbits.GPTQ(bits=3), base=Small(seed=3), **how)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"activations": 8, "calibration": batches()}, "a delta has weights only"),
        ({"weights": "folder"}, "weights must be None with base="),
        ({"base": 3}, "base must be a state dict, a network or a path"),
    ],
)
def test_what_a_delta_cannot_be_is_refused(settings, words):
    new, old = trained()
    with pytest.raises(ConfigError, match=words):
        fewbits.compress(new, fewbits.Nearest(), **{"base": old, **settings})
    with pytest.raises(ConfigError, match="base= cannot be combined with a method that trains"):
        fewbits.compress(new, "hemp", base=old, train=[])


def test_a_delta_is_no_network_by_itself(tmp_path):
    new, old = trained()
    coded = fewbits.compress(new, fewbits.Nearest(), base=old)
    coded.save(tmp_path / "change")
    with pytest.raises(ConfigError, match="no network without its base"):
        coded.save_pretrained(tmp_path / "folder")
    with pytest.raises(CorruptFileError, match="it is a delta"):
        fewbits.load(tmp_path / "change")
    with pytest.raises(ConfigError, match="other weights"):
        fewbits.load(tmp_path / "change", base=new)
    assert "of the weights, as changes of a base" in repr(coded)
