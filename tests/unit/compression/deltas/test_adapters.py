"""LoRA adapters: the products keep their error, whatever the matrices are."""

import pytest
import torch
from safetensors.torch import save_file

import fewbits

NAME = "base_model.model.layers.{}.q_proj.lora_{}.weight"


def adapter(rank=6, layers=3, dtype=torch.float32, seed=0):
    """Products with singular values that fall, in factors that do not show them."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for layer in range(layers):
        left = torch.randn(80, rank, generator=generator) * 0.5 ** torch.arange(rank)
        right = torch.randn(rank, 48, generator=generator)
        mix = torch.randn(rank, rank, generator=generator)
        state[NAME.format(layer, "A")] = (mix @ right).to(dtype)
        state[NAME.format(layer, "B")] = (left @ torch.linalg.inv(mix)).to(dtype)
    return state


def products(state):
    firsts = [name for name in state if ".lora_A." in name]
    pairs = [(state[name.replace("_A.", "_B.")], state[name]) for name in firsts]
    return torch.stack([b.double().flatten(1) @ a.double().flatten(1) for b, a in pairs])


def relative(found, wanted):
    error = (products(found) - products(wanted)).square().sum()
    return float((error / products(wanted).square().sum()).sqrt())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("error", [0.02, 0.1, 0.5])
def test_the_error_is_met_and_used_up(error, dtype, tmp_path):
    state = adapter(dtype=dtype)
    coded = fewbits.compress_adapter(state, error=error)
    coded.save(tmp_path / "a.fewbits")
    found = fewbits.load(tmp_path / "a.fewbits")
    assert list(found) == list(state)
    assert all(found[name].dtype == dtype for name in state)
    assert all(found[name].shape == tensor.shape for name, tensor in state.items())
    assert 0.9 * error < relative(found, state) <= error * (1 + 1e-6)


def test_it_takes_fewer_bytes_than_rounding_each_matrix_at_the_same_error():
    state = adapter(rank=8, layers=6)
    network = torch.nn.Module()
    for place, tensor in enumerate(state.values()):
        layer = torch.nn.Linear(*reversed(tensor.shape), bias=False)
        layer.weight.data = tensor
        network.add_module(str(place), layer)
    rounded = fewbits.compress(network, fewbits.Nearest(bits=4))
    found = dict(zip(state, rounded.state_dict().values(), strict=True))
    coded = fewbits.compress_adapter(state, error=relative(found, state))
    assert len(coded.encode()) < 0.9 * len(rounded.encode())


def test_other_tensors_are_exact_and_pairs_of_convolutions_are_pairs(tmp_path):
    generator = torch.Generator().manual_seed(0)
    state = {
        "c.lora_A.default.weight": torch.randn(4, 8, 3, 3, generator=generator),
        "c.lora_B.default.weight": torch.randn(16, 4, 1, 1, generator=generator),
        "lora_magnitude": torch.randn(16, generator=generator),
        "alone.lora_A.weight": torch.randn(4, 8, generator=generator),
        "wide.lora_A.weight": torch.randn(9, 4, generator=generator),
        "wide.lora_B.weight": torch.randn(12, 9, generator=generator),
        "head.weight": torch.randn(5, 5, generator=generator),
    }
    save_file(state, tmp_path / "adapter_model.safetensors")
    found = fewbits.compress_adapter(tmp_path, error=0.1).state_dict()
    pair = {name: tensor for name, tensor in state.items() if name.startswith("c.")}
    assert 0.05 < relative({name: found[name] for name in pair}, pair) <= 0.1 + 1e-6
    for name in state.keys() - pair.keys():
        assert torch.equal(found[name], state[name])


def test_an_adapter_that_was_never_trained():
    state = adapter()
    fresh = {k: torch.zeros_like(v) if "lora_B" in k else v for k, v in state.items()}
    found = fewbits.compress_adapter(fresh).state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in fresh.items())


@pytest.mark.parametrize("error", [0, 1, -0.1, float("nan"), True, "5%"])
def test_an_error_out_of_range_is_refused(error):
    with pytest.raises(fewbits.ConfigError, match="error must be a number between 0 and 1"):
        fewbits.compress_adapter(adapter(), error=error)


def test_what_is_no_adapter_is_refused():
    with pytest.raises(fewbits.ConfigError, match="no pairs of matrices"):
        fewbits.compress_adapter(torch.nn.Linear(3, 3))
