"""What the formats of integers share: integers and steps of grids, values in 16 bits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import fewbits
from fewbits.coded import Codebook, CodebookTensor, GridTensor, Layout, RawTensor
from fewbits.errors import ModelError
from fewbits.exporters import export
from fewbits.exporters.formats.integers import (
    change,
    dense,
    integers_of,
    rounded,
    without_integers,
)

INDEX = np.arange(-4, 4, dtype=np.int32).reshape(4, 2)


def grid(step, offset=0.0, shape=(2, 4), index=INDEX, layout=None):
    steps, offsets = np.float32(np.atleast_1d(step)), np.float32(np.atleast_1d(offset))
    return GridTensor(shape, "float32", index, steps, offsets, layout)


@pytest.mark.parametrize("offset", [0.0, 0.5, [1, 2, 3, 4.5], -3.0], ids=str)
@pytest.mark.parametrize("step", [0.25, [0.5, 1e-3, 3.0, 0.7]], ids=str)
def test_products_are_the_values(step, offset):
    tensor = grid(step, offset)
    found = integers_of(tensor)
    wide = np.repeat(found.step, found.group, axis=1)
    assert (found.index.astype(np.float32) * wide).tobytes() == tensor.dequantize().tobytes()
    assert found.group == (4 if np.ndim(step) == 0 else 2)
    low, high = found.index.min(), found.index.max()
    assert -(1 << (found.bits - 1)) <= low <= high < 1 << (found.bits - 1)
    narrower = found.bits - 2
    assert low < -(1 << narrower) or high >= 1 << narrower


def test_steps_are_repeated_for_shorter_groups():
    found = integers_of(grid([1.0, 2.0], index=INDEX.reshape(2, 4)))
    assert found.divided(2).step.tolist() == [[1, 1], [2, 2]]
    assert found.divided(3) is None
    assert integers_of(grid([1, 2, 3, 4])).divided(4) is None


def test_no_integers():
    large = grid(1.0, index=INDEX + (1 << 22))
    assert integers_of(large) is None
    assert integers_of(grid(1.0, 2.0**23)) is None
    assert without_integers(grid(1.0)) == ""
    assert "first axis" in without_integers(grid(1.0, layout=Layout((4, 2), (1, 0))))
    book = Codebook(np.float32([0, 1]))
    assert "codebook" in without_integers(CodebookTensor((2, 4), "float32", INDEX * 0, book))


def test_steps_that_16_bits_cannot_hold():
    step = np.float32([[1.0, 0.0, 1.0 + 2**-10, 1.0 + 2**-12]])
    assert change(step, rounded(step, torch.float16)) == pytest.approx(2**-12, rel=1e-3)
    assert change(step[:, :3], rounded(step[:, :3], torch.float16)) == 0
    assert rounded(np.float32([[1e-9]]), torch.float16) is None
    assert rounded(np.float32([[1e6]]), torch.float16) is None
    assert rounded(np.float32([[1e6]]), torch.bfloat16) is not None


def test_values_in_16_bits():
    assert dense(grid(1.0)).dtype == torch.float16
    assert dense(grid(1e6)).dtype == torch.bfloat16
    own = GridTensor((2, 4), "bfloat16", INDEX, np.float32([0.1]))
    assert dense(own).dtype == torch.bfloat16
    raw = RawTensor((2,), "float32", np.zeros(8, np.uint8))
    assert dense(raw).dtype == torch.float32


@pytest.mark.parametrize("to", ["compressed-tensors", "gguf"])
def test_another_network_is_an_error(to, tmp_path):
    coded = fewbits.compress(nn.Sequential(nn.Linear(8, 4)), fewbits.Nearest())
    path = tmp_path / "net.gguf"
    for other in (nn.Sequential(nn.Linear(8, 5)), nn.Sequential(nn.ReLU(), nn.Linear(8, 4))):
        with pytest.raises(ModelError, match=r"another architecture than Sequential.*0\.weight"):
            export(coded, path, to=to, model=other)
    assert not path.exists()
