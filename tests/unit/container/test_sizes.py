"""Where the bytes go: rows that sum to the file, and files near what information theory asks."""

import os
from pathlib import Path

import numpy as np
import pytest

from fewbits.coded import (
    ActivationGrid,
    Codebook,
    CodebookTensor,
    Contents,
    GridTensor,
    RawTensor,
    TransformTensor,
)
from fewbits.coding import CODECS
from fewbits.container import encode, measure
from fewbits.container.frame import FOOTER, PREFIX

ROOT = Path(__file__).parents[3]


def f32(*values):
    return np.array(values, np.float32)


def entropy_bytes(index):
    _, counts = np.unique(index, return_counts=True)
    return float(-(counts * np.log2(counts / counts.sum())).sum()) / 8


def mixed():
    rng = np.random.default_rng(0)
    book = Codebook(f32(0, 1, 2, 3))
    parts = [
        GridTensor(s, "float32", rng.integers(-9, 9, s, np.int32), f32(1)) for s in ((4, 3), (3, 5))
    ]
    return Contents(
        {
            "g": GridTensor((40, 30), "float32", rng.integers(-9, 9, (40, 30), np.int32), f32(1)),
            "c": CodebookTensor((9, 9), "float32", rng.integers(0, 4, (9, 9), np.int32), book),
            "t": TransformTensor((4, 5), "float32", parts[1], parts[0]),
            "r": RawTensor((20_000,), "float32", rng.integers(0, 256, 80_000).astype(np.uint8)),
            "half": RawTensor((7,), "float32", np.zeros(14, np.uint8), "float16"),
            "n": RawTensor((), "int64", np.ones(8, np.uint8)),
            "empty": RawTensor((0,), "float32", np.zeros(0, np.uint8)),
        },
        activations={"g": ActivationGrid(4, 1.5, signed=True)},
        metadata={"x": "y" * 100},
    )


def test_rows_sum_to_the_file_and_count_every_tensor():
    data = encode(mixed())
    report = measure(data)
    assert report.file_bytes == len(data)
    rows = {row.name: row for row in report.rows}
    assert list(rows) == [*mixed().tensors, "(codebook 0)", "(activations)", "(header)"]
    assert rows["g"].kind == "grid"
    assert rows["g"].codecs in CODECS
    assert rows["g"].float_bytes == 4800
    assert rows["half"].float_bytes == 28
    assert rows["n"].float_bytes == 8
    assert rows["r"].payload > 75_000
    assert rows["t"].side > 0
    assert rows["empty"].bytes == 0
    assert rows["(codebook 0)"].kind == "shared"
    assert rows["(header)"].bytes > len(PREFIX) + FOOTER
    assert report.weights == 1200 + 81 + 20


def batch_norm(tensors, name, width, rng):
    laws = {
        "weight": rng.normal(1, 0.2, width),
        "bias": rng.normal(0, 0.3, width),
        "running_mean": rng.normal(0, 0.5, width),
        "running_var": rng.gamma(2, 0.3, width),
    }
    for leaf, values in laws.items():
        data = values.astype("<f4").view(np.uint8)
        tensors[f"{name}.{leaf}"] = RawTensor((width,), "float32", data)
    counter = np.array([78_200], "<i8").view(np.uint8)
    tensors[f"{name}.num_batches_tracked"] = RawTensor((), "int64", counter)


def resnet20(spread=2.2):
    """A network with the shapes of ResNet-20 for 32 x 32 images, indices of a bell-shaped law."""
    rng = np.random.default_rng(0)
    tensors = {}

    def conv(name, rows, columns):
        index = np.rint(rng.normal(0, spread, (rows, columns * 9))).astype(np.int32)
        step = rng.random(1).astype(np.float32)
        tensors[name] = GridTensor((rows, columns, 3, 3), "float32", index, step)

    conv("conv1.weight", 16, 3)
    batch_norm(tensors, "bn1", 16, rng)
    before = 16
    for stage, width in enumerate((16, 32, 64), start=1):
        for block in range(3):
            for layer in (1, 2):
                conv(f"layer{stage}.{block}.conv{layer}.weight", width, before)
                batch_norm(tensors, f"layer{stage}.{block}.bn{layer}", width, rng)
                before = width
    index = np.rint(rng.normal(0, spread, (10, 64))).astype(np.int32)
    tensors["fc.weight"] = GridTensor((10, 64), "float32", index, f32(0.1))
    tensors["fc.bias"] = RawTensor(
        (10,), "float32", rng.normal(0, 1, 10).astype("<f4").view(np.uint8)
    )
    return tensors


@pytest.mark.parametrize(
    ("spread", "most"),
    [(0.5, 1.013), (2.2, 1.011), pytest.param(6.0, 1.011, marks=pytest.mark.slow)],
)
def test_a_resnet20_costs_little_above_its_entropy(spread, most):
    tensors = resnet20(spread)
    metadata = {"recipe": {"rules": [{"pattern": "*", "method": "gpfq", "bits": 4}], "seed": 0}}
    data = encode(Contents(tensors, metadata=metadata))
    report = measure(data)
    quantized = [t for t in tensors.values() if isinstance(t, GridTensor)]
    entropy = sum(entropy_bytes(tensor.index) for tensor in quantized)
    payload = sum(row.payload for row in report.rows if row.kind == "grid")
    raw = sum(row.payload for row in report.rows if row.kind == "raw")
    floats = sum(t.data.size for t in tensors.values() if isinstance(t, RawTensor))
    assert payload < most * entropy
    assert raw < 0.88 * floats
    assert len(data) - payload - raw < 400  # prefix, header, steps
    counters = [row.bytes for row in report.rows if row.name.endswith("tracked")]
    assert len(counters) == 19
    assert sum(counters) < 25


def test_a_shared_codebook_costs_one_row():
    book = Codebook(np.linspace(-1, 1, 64).astype(np.float32))
    rng = np.random.default_rng(0)
    layers = {
        f"h.{k}.w": CodebookTensor((8, 8), "float32", rng.integers(0, 64, (8, 8), np.int32), book)
        for k in range(5)
    }
    rows = measure(encode(Contents(layers))).rows
    assert sum(row.kind == "shared" for row in rows) == 1
    assert sum(row.side for row in rows if row.kind == "codebook") == 0


DATA = Path(os.environ.get("FEWBITS_DATA", ROOT.parent / "shared" / "data"))
CHECKPOINT = DATA / "resnet_cifar10" / "resnet20.safetensors"


@pytest.mark.skipif(not CHECKPOINT.exists(), reason="the trained ResNet-20 is not here")
@pytest.mark.parametrize("relative_step", [0.5, 1.5])
def test_a_trained_resnet20_costs_little_above_its_entropy(relative_step):
    numpy = pytest.importorskip("safetensors.numpy")
    tensors, entropy = {}, 0.0
    for name, values in numpy.load_file(CHECKPOINT).items():
        if values.ndim < 2:
            data = np.ascontiguousarray(values).view(np.uint8).reshape(-1)
            tensors[name] = RawTensor(values.shape, str(values.dtype), data)
            continue
        step = np.float32(relative_step * values.std())
        index = np.rint(values / step).astype(np.int32).reshape(len(values), -1)
        tensors[name] = GridTensor(values.shape, "float32", index, f32(step))
        entropy += entropy_bytes(index)
    report = measure(encode(Contents(tensors)))
    floats = sum(row.payload for row in report.rows if row.kind == "raw")
    assert report.file_bytes < 1.015 * entropy + floats
