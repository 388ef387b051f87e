"""What the coder is held to on matrices with known structure, and on a trained network."""

import bz2
import lzma
import os
from pathlib import Path

import numpy as np
import pytest

from fewbits.coded import Contents, GridTensor
from fewbits.coding import CODECS, decode_stream, encode_stream, entropy
from fewbits.container import decode, encode

ROOT = Path(__file__).resolve().parents[3]
DATA = Path(os.environ.get("FEWBITS_DATA", ROOT.parent / "shared" / "data"))
CHECKPOINT = DATA / "resnet_cifar10" / "resnet20.safetensors"


def bits(data, index):
    return 8 * len(data) / index.size


def uneven(side, rng):
    """Rows and columns of log-normal size."""
    sizes = np.exp(0.5 * rng.normal(size=(side, 1))) * np.exp(0.5 * rng.normal(size=side))
    return 0.811 * rng.laplace(size=(side, side)) * sizes


def dead(side, rng):
    """Most rows and columns are nearly zero."""
    rows = np.where(rng.random((side, 1)) < 0.4, 0.03, 1)
    return 0.537 * rng.laplace(size=(side, side)) * rows * np.where(rng.random(side) < 0.6, 0.03, 1)


@pytest.mark.parametrize(
    ("make", "side", "most"),
    [
        (uneven, 512, 0.955),
        (dead, 512, 0.70),
        pytest.param(uneven, 2048, 2.30 / 2.443, marks=pytest.mark.slow),
        pytest.param(dead, 2048, 0.45 / 0.666, marks=pytest.mark.slow),
    ],
)
def test_rows_and_columns_of_unlike_size_pay(make, side, most):
    index = np.rint(make(side, np.random.default_rng(0))).astype(np.int32)
    codec, data = encode_stream(index, "smallest")
    assert bits(data, index) <= most * entropy(index)
    np.testing.assert_array_equal(decode_stream(codec, data, *index.shape), index)


@pytest.mark.parametrize("zeros", [0.0, 0.91])
def test_symbols_without_structure_cost_their_entropy(zeros):
    rng = np.random.default_rng(0)
    values = np.where(rng.random((1024, 1024)) < zeros, 0, rng.laplace(0, 1.5, (1024, 1024)))
    index = np.rint(values).astype(np.int32)
    least = entropy(index)
    assert bits(CODECS["static"].encode(index), index) <= least + 0.001
    assert bits(CODECS["adaptive"].encode(index), index) <= least + (0.002 if zeros else 0.004)


def trained(relative_step):
    numpy = pytest.importorskip("safetensors.numpy")
    for name, values in numpy.load_file(CHECKPOINT).items():
        if values.ndim >= 2:
            step = relative_step * values.std()
            yield name, np.rint(values / step).astype(np.int32).reshape(len(values), -1)


@pytest.mark.skipif(not CHECKPOINT.exists(), reason="the trained ResNet-20 is not here")
@pytest.mark.parametrize("relative_step", [0.5, 1.5])
def test_a_trained_network_is_coded_below_its_entropy_and_below_general_compressors(relative_step):
    total = least = 0.0
    for name, index in trained(relative_step):
        size = len(encode_stream(index)[1])
        total, least = total + size, least + entropy(index) * index.size / 8
        if index.size > 10_000:
            data = index.astype(np.int8).tobytes()
            xz = lzma.compress(data, preset=9 | lzma.PRESET_EXTREME)
            assert size < min(len(xz), len(bz2.compress(data))), name
    assert total <= 0.95 * least


@pytest.mark.parametrize("effort", ["fast", "balanced", "smallest"])
def test_what_is_read_is_written_again_as_the_same_bytes(effort):
    rng = np.random.default_rng(0)
    step = np.array([0.25], np.float32)
    tensors = {
        f"layer{side}.weight": GridTensor(
            (side, side), "float32", np.rint(uneven(side, rng)).astype(np.int32), step
        )
        for side in (3, 40, 200)
    }
    data = encode(Contents(tensors), effort)
    assert encode(decode(data), effort) == data
