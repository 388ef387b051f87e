"""Grids are found where values lie on one, and whatever is found has the bits that came in."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fewbits.coded import AffineTensor, CodebookTensor, GridTensor, RawTensor, recognised
from fewbits.coded import recognise as module
from fewbits.engine.layers.pack import pack_raw, to_torch

WEIGHT = torch.randn(96, 512, generator=torch.Generator().manual_seed(0))


def blocks(size):
    return WEIGHT.view(-1, size)


def symmetric(size, most, dtype, scale=torch.float32):
    x = blocks(size)
    step = (x.abs().amax(1, keepdim=True) / most).to(scale)
    index = (x / step.float()).round().clamp(-most - 1, most) + 0.0
    if dtype == torch.float32:
        step = step.float()
    return (index.to(step.dtype) * step).view(96, 512).to(dtype)


def q4_0():
    """GGUF: the largest value is -8 steps, of either sign."""
    x = blocks(32)
    step = x.gather(1, x.abs().argmax(1, keepdim=True)) / -8
    index = (x / step + 8.5).floor().clamp(0, 15)
    return (step.half().float() * (index - 8)).view(96, 512)


def q4_1(dtype=torch.float32):
    """GGUF: the smallest value and a step, both float16."""
    x = blocks(32)
    low, high = x.amin(1, keepdim=True), x.amax(1, keepdim=True)
    step = (high - low) / 15
    index = ((x - low) / step + 0.5).floor().clamp(0, 15)
    return (step.half().float() * index + low.half().float()).view(96, 512).to(dtype)


CASES = {
    "ternary": (((WEIGHT > 0.7) * 0.25 - (WEIGHT < -0.7) * 0.25), CodebookTensor),
    "palette": (WEIGHT.half().view(torch.int16).bitwise_and(0x7C00).view(torch.half), None),
    "ternary rows": (
        ((WEIGHT > 0.7).float() - (WEIGHT < -0.7).float()) * torch.arange(1, 97)[:, None] / 7,
        GridTensor,
    ),
    "int4 rows": (symmetric(512, 7, torch.float32), GridTensor),
    "int4 groups": (symmetric(128, 7, torch.float32), GridTensor),
    "int8 groups": (symmetric(64, 127, torch.float32, torch.float16), GridTensor),
    "int4 in bfloat16": (symmetric(128, 7, torch.bfloat16, torch.bfloat16), GridTensor),
    "int4 in float16": (symmetric(32, 7, torch.float16, torch.float16), GridTensor),
    "int3 in float64": (symmetric(256, 3, torch.float64), GridTensor),
    "Q4_0": (q4_0(), GridTensor),
    "Q4_1": (q4_1(), AffineTensor),
}


def bits(tensor):
    return tensor.reshape(-1).view(torch.uint8)


@pytest.mark.parametrize("name", CASES)
def test_grids_are_found(name):
    tensor, kind = CASES[name]
    found = recognised(pack_raw(tensor))
    assert type(found) is (kind or CodebookTensor)
    assert torch.equal(bits(to_torch(found)), bits(tensor))


@pytest.mark.parametrize("found", [symmetric(64, 127, torch.float32, torch.float16), q4_1()])
def test_steps_of_16_bits_are_found_as_such(found):
    """A step of float32 fits some of these blocks too, and takes twice the bytes."""
    step = recognised(pack_raw(found)).step
    assert np.array_equal(step, step.astype(np.float16))


def test_blocks_are_as_large_as_they_were():
    for size in (32, 64, 128, 256):
        found = recognised(pack_raw(symmetric(size, 7, torch.float32)))
        assert found.index.shape == (96 * 512 // size, size)
        assert found.step.size == 96 * 512 // size


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_what_is_on_no_grid_is_left(dtype):
    raw = pack_raw(WEIGHT.to(dtype))
    assert recognised(raw) is raw


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 0.3, -0.0])
def test_a_single_value_off_the_grid_keeps_the_tensor_as_it_is(value):
    tensor = symmetric(128, 7, torch.float32)
    tensor[40, 300] = 0.0
    assert isinstance(recognised(pack_raw(tensor)), GridTensor)
    tensor[40, 301], tensor[40, 302] = 0.0, value
    raw = pack_raw(tensor)
    assert recognised(raw) is raw


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -0.0])
def test_a_palette_has_numbers_only(value):
    tensor = torch.where(WEIGHT > 0, 0.0, 2.0)
    assert isinstance(recognised(pack_raw(tensor)), CodebookTensor)
    tensor[95, 511] = value
    raw = pack_raw(tensor)
    assert recognised(raw) is raw


def test_zeros_keep_their_sign():
    """A step below zero makes them -0, as a negative scale did where they were written."""
    tensor = q4_0()
    assert bool((torch.signbit(tensor) & (tensor == 0)).any())
    assert torch.equal(bits(to_torch(recognised(pack_raw(tensor)))), bits(tensor))
    minus = -symmetric(32, 7, torch.float32)
    found = recognised(pack_raw(minus))
    assert isinstance(found, GridTensor)
    assert torch.equal(bits(to_torch(found)), bits(minus))


def test_a_palette_of_float64_that_float32_lacks_is_left():
    raw = pack_raw(torch.where(WEIGHT > 0, 0.1, 0.2).double() + 1e-12)
    assert recognised(raw) is raw


def test_small_and_whole_tensors_are_left():
    for tensor in (torch.ones(63, 64), torch.ones(100, 100, dtype=torch.int32)):
        raw = pack_raw(tensor)
        assert recognised(raw) is raw
    narrowed = RawTensor((5000,), "float32", np.zeros(10_000, np.uint8), "float16")
    assert recognised(narrowed) is narrowed


@settings(max_examples=60, deadline=None)
@given(
    dtype=st.sampled_from([torch.float64, torch.float32, torch.float16, torch.bfloat16]),
    shape=st.sampled_from([(8, 32), (4, 64), (64,), (2, 3, 32), (5, 48), (1, 256), (3, 100)]),
    levels=st.sampled_from([2, 3, 16, 256, 70_000]),
    scale=st.sampled_from([1e-8, 0.03, 1.0, 3e4]),
    drawn=st.tuples(
        st.lists(st.sampled_from([float("nan"), -float("inf"), -0.0, 1e-40]), max_size=2),
        st.integers(0, 2**32 - 1),
    ),
)
def test_the_bits_never_change(dtype, shape, levels, scale, drawn):
    special, seed = drawn
    rng = np.random.default_rng(seed)
    index = rng.integers(0, levels, shape) - rng.choice([0, levels // 2])
    steps = scale * rng.choice([1.0, 2.0, 3.1], (shape[0], *[1] * (len(shape) - 1)))
    tensor = torch.from_numpy(index * steps + rng.choice([0, scale / 3])).to(dtype)
    for value in special:
        tensor.view(-1)[int(rng.integers(tensor.numel()))] = value
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "LEAST", 16)
        found = recognised(pack_raw(tensor))
    assert found.shape == shape
    assert torch.equal(bits(to_torch(found)), bits(tensor))
