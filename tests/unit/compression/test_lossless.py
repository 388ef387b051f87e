"""The recipe "lossless": every bit of every tensor comes back, whatever it holds."""

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import fewbits
from fewbits.engine.layers.pack import torch_dtype

FLOAT8 = ["float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz"]
DTYPES = ["float64", "float32", "float16", "bfloat16", *FLOAT8, "int8", "int64", "complex64"]


class Holder(nn.Module):
    """A network that no method knows: only buffers and a parameter of no layer."""

    def __init__(self, tensors):
        super().__init__()
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor)
        self.scale = nn.Parameter(torch.randn(3, generator=torch.Generator().manual_seed(1)))


def bits(tensor):
    return tensor.detach().reshape(-1).view(torch.uint8)


def assert_same(found, wanted):
    assert list(found) == list(wanted)
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype
        assert found[name].shape == tensor.shape
        assert torch.equal(bits(found[name]), bits(tensor)), name


def random_bits(dtype, shape, rng):
    size = int(np.prod(shape)) * torch_dtype(dtype).itemsize
    data = torch.from_numpy(rng.integers(0, 256, max(size, 1), dtype=np.uint8))[:size]
    return data.view(torch_dtype(dtype)).reshape(shape)


def written(model, path, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        coded = fewbits.compress(model, "lossless", **options)
    coded.save(path)
    return coded


@settings(max_examples=25, deadline=None)
@given(
    dtypes=st.lists(st.sampled_from(DTYPES), min_size=1, max_size=4),
    shape=st.lists(st.sampled_from([0, 1, 3, 40]), max_size=3).map(tuple),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_bits_come_back(dtypes, shape, seed, tmp_path_factory):
    """NaNs of any payload, infinities, both zeros and subnormals are among them."""
    rng = np.random.default_rng(seed)
    tensors = {f"t{k}": random_bits(dtype, shape, rng) for k, dtype in enumerate(dtypes)}
    model = Holder(tensors)
    path = tmp_path_factory.mktemp("lossless") / "net.fewbits"
    written(model, path)
    assert_same(fewbits.load(path), model.state_dict())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
@pytest.mark.parametrize("effort", ["fast", "balanced"])
def test_large_floats_take_fewer_bytes_than_they_have(dtype, effort, tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(300, 256), nn.LSTM(20, 30)).to(torch_dtype(dtype))
    with torch.no_grad():
        for place, value in enumerate([float("nan"), float("inf"), -float("inf"), -0.0]):
            model[0].weight[place, place] = value
    coded = written(model, tmp_path / "net.fewbits", effort=effort)
    assert_same(fewbits.load(tmp_path / "net.fewbits"), model.state_dict())
    whole = sum(tensor.nbytes for tensor in model.state_dict().values())
    least = {"float32": 0.90, "bfloat16": 0.80, "float16": 0.94, "float64": 0.98}[dtype]
    assert coded.size_report().file_bytes < least * whole


def quantized(model):
    """Round the weights of a network to 4 bits in groups of 32, as floats."""
    with torch.no_grad():
        weight = model[0].weight
        blocks = weight.view(-1, 32)
        step = (blocks.abs().amax(1, keepdim=True) / 7).half().to(weight.dtype)
        weight.copy_((((blocks / step).round().clamp(-7, 7) + 0.0) * step).view_as(weight))
    return model


def test_weights_on_a_grid_are_stored_as_codes(tmp_path):
    torch.manual_seed(0)
    model = quantized(nn.Sequential(nn.Linear(512, 200), nn.Linear(200, 9)))
    path = tmp_path / "net.fewbits"
    coded = written(model, path)
    rows = {row.name: row for row in coded.size_report().rows}
    assert rows["0.weight"].kind == "grid"
    assert rows["0.weight"].bytes < 0.6 * 512 * 200
    assert rows["1.weight"].kind == "raw"
    assert_same(fewbits.load(path), model.state_dict())
    again = fewbits.compress(model, "lossless").encode()
    assert again == path.read_bytes()


def test_later_changes_of_the_network_do_not_matter(tmp_path):
    model = quantized(nn.Sequential(nn.Linear(512, 200)))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    coded = fewbits.compress(model, "lossless")
    with torch.no_grad():
        model[0].weight.zero_()
    coded.save(tmp_path / "net.fewbits")
    assert_same(fewbits.load(tmp_path / "net.fewbits"), before)


def test_tied_weights_stay_tied(tmp_path):
    model = nn.ModuleDict({"a": nn.Linear(80, 80), "b": nn.Linear(80, 80)})
    model["b"].weight = model["a"].weight
    written(model, tmp_path / "net.fewbits")
    found = fewbits.load(tmp_path / "net.fewbits")
    assert found["a.weight"] is found["b.weight"]
    assert torch.equal(found["a.weight"], model["a"].weight)


def test_the_file_fills_a_network(tmp_path):
    torch.manual_seed(0)
    model, other = nn.Linear(70, 60).bfloat16(), nn.Linear(70, 60).bfloat16()
    written(model, tmp_path / "net.fewbits")
    fewbits.load(tmp_path / "net.fewbits", into=other)
    assert_same(other.state_dict(), model.state_dict())


def test_a_recipe_may_look_for_grids_in_what_it_keeps(tmp_path):
    torch.manual_seed(0)
    model = quantized(nn.Sequential(nn.Linear(512, 200), nn.Linear(200, 500)))
    rules = [{"match": "1", "method": "nearest", "bits": 8}]
    coded = fewbits.compress(model, {"rules": rules, "raw_dtype": "exact"})
    assert {row.name: row.kind for row in coded.size_report().rows}["0.weight"] == "grid"


def test_another_recipe_still_needs_a_layer():
    with pytest.raises(fewbits.TargetError, match="no weight that can be coded"):
        fewbits.compress(Holder({}), "smallest")
    with pytest.raises(fewbits.TargetError, match="matches no weight"):
        fewbits.compress(
            Holder({}), {"rules": [{"match": "x", "method": "keep"}], "raw_dtype": "exact"}
        )
