"""safetensors with codes: the reader in the documentation gets every value, bit for bit."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import nn

import fewbits
from cli_runs import run_json
from fewbits.coded import (
    AffineTensor,
    Codebook,
    CodebookTensor,
    Contents,
    GridTensor,
    Layout,
    RawTensor,
    TransformTensor,
)
from fewbits.exporters import export
from fewbits.sources import load_model

PAGE = Path(__file__).parents[3] / "docs" / "export.md"


@pytest.fixture(scope="module")
def read():
    """The function of that name in the documentation, without anything of fewbits."""
    part = PAGE.read_text(encoding="utf-8").partition("## safetensors with codes")[2]
    names = {}
    exec(re.search(r"```python\n(.*?)```", part, re.DOTALL)[1], names)
    assert not any("fewbits" in str(getattr(value, "__module__", "")) for value in names.values())
    return names["read"]


def check(found, wanted):
    """Compare arrays with tensors, as bits; arrays of bfloat16 values are float32."""
    assert list(found) == list(wanted)
    for name, tensor in wanted.items():
        exact = tensor.float() if tensor.dtype == torch.bfloat16 else tensor
        assert found[name].shape == tuple(tensor.shape), name
        assert found[name].dtype == exact.numpy().dtype, name
        assert found[name].tobytes() == exact.numpy().tobytes(), name


def told_in(path):
    with safe_open(path, "np") as file:
        return json.loads(file.metadata()["fewbits"])


def network(dtype=torch.float32):
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ConvTranspose2d(8, 6, 3), nn.Flatten()]
    tied = nn.Linear(64, 64, bias=False)
    tied.weight.data.normal_()
    again = nn.Linear(64, 64, bias=False)
    again.weight = tied.weight
    layers += [nn.Linear(384, 64), tied, again, nn.Linear(64, 5), nn.Embedding(7, 33)]
    return nn.Sequential(*layers).to(dtype).eval()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize(
    "settings",
    [
        *({"bits": 4, "group": 32}, {"bits": 2}, {"bits": 7, "per": "tensor"}),
        *({"levels": 2}, {"levels": 6}, {"levels": 3000}, {"levels": 2**20}),
    ],
    ids=str,
)
def test_the_reader_of_the_docs_gets_every_value(read, dtype, settings, tmp_path):
    coded = fewbits.compress(network(dtype), fewbits.Nearest(**settings))
    path = tmp_path / "net.safetensors"
    told = export(coded, path)
    check(read(path), coded.state_dict())
    assert not [note for note in told.notes if "larger than" not in note]
    grids = {name for name, t in coded.tensors.items() if isinstance(t, GridTensor)}
    assert set(told.weights) == grids
    levels = settings.get("levels") or 2 ** settings["bits"] - 1
    widths = (1, 2, 4, 8, 16, 32)
    assert max(told.weights.values()) == next(bits for bits in widths if levels <= 1 << bits)


def tensors():
    """Tensors of every kind, with the extremes that the format allows."""
    draw = np.random.default_rng(0)
    book = Codebook(np.sort(draw.standard_normal(5).astype(np.float32)))
    other = Codebook(np.sort(draw.standard_normal(300).astype(np.float32)))
    wide = draw.integers(-(2**30), 2**30, (3, 4)).astype(np.int32)
    rows = np.float32([0.25, 3.0, 1e-6])
    moved = Layout((4, 3, 2), (1, 0, 2))
    index = draw.integers(-3, 90, (3, 8)).astype(np.int32)
    shared = draw.integers(0, 5, (3, 8)).astype(np.int32)
    data = np.frombuffer(draw.bytes(24), np.uint8)
    return {
        "large": GridTensor((3, 4), "float32", wide, rows, np.float32([0.5, -2.0, 1e7])),
        "odd": GridTensor((3, 8), "bfloat16", index, rows, np.float32([0.5, -2.0, 7.5])),
        "moved": GridTensor(
            (3, 8), "float32", index.reshape(4, 6), rows[:1], np.float32([1]), moved
        ),
        "empty": GridTensor((0, 8), "float32", index[:0], rows[:1]),
        "book": CodebookTensor((3, 8), "float16", shared, book, rows),
        "same": CodebookTensor((3, 2, 4), "float32", shared, book),
        "many": CodebookTensor((3, 8), "float32", shared * 70, other),
        "blocks": CodebookTensor((1, 24), "float64", shared, book, rows),
        "half": RawTensor((3, 4), "float16", data),
        "narrow": RawTensor((3, 4), "float32", data, "float16"),
        "brain": RawTensor((12,), "bfloat16", data),
        "bool": RawTensor((2, 2), "bool", np.uint8([1, 0, 0, 1])),
        "count": RawTensor((), "int64", data[:8]),
        "complex": RawTensor((3,), "complex64", data),
    }


def test_tensors_of_every_kind(read, tmp_path):
    path = tmp_path / "net.safetensors"
    coded = fewbits.CodedModel(Contents(tensors(), {"again": "book"}))
    export(coded, path)
    wanted = coded.state_dict()
    check(read(path), wanted)
    told = told_in(path)
    assert told["version"] == 1
    assert told["aliases"] == {"again": "book"}
    with safe_open(path, "np") as file:  # of 1e-6, float16 has too few bits
        steps = {name: file.get_tensor(f"{name}.step").dtype.name for name in ("odd", "moved")}
    assert steps == {"odd": "float32", "moved": "float16"}
    books = [told["tensors"][name]["codebook"] for name in ("book", "same", "many")]
    assert books[0] == books[1] != books[2]
    assert told["tensors"]["blocks"]["group"] == 8
    assert [told["tensors"][n]["bits"] for n in ("large", "odd", "book", "many")] == [32, 8, 4, 16]


def test_bytes_of_dtypes_that_numpy_has_not(read, tmp_path):
    path = tmp_path / "net.safetensors"
    eight = torch.tensor([1.0, -0.5, 448.0]).to(torch.float8_e4m3fn)
    data = eight.view(torch.uint8).numpy()
    contents = Contents({"eight": RawTensor((3,), "float8_e4m3fn", data)})
    export(fewbits.CodedModel(contents), path)
    assert read(path)["eight"].tobytes() == data.tobytes()
    assert told_in(path)["tensors"]["eight"]["dtype"] == "float8_e4m3fn"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_transform_is_written_as_values_and_that_is_told(read, dtype, tmp_path):
    draw = np.random.default_rng(1)
    parts = [
        GridTensor(shape, "float32", draw.integers(-9, 9, shape).astype(np.int32), np.float32([s]))
        for shape, s in (((6, 4), 0.1), ((6, 6), 0.03))
    ]
    product = TransformTensor((6, 2, 2), dtype, parts[0], parts[1])
    affine = AffineTensor((6, 4), dtype, parts[0].index, np.float32([0.5]), np.float32([-1.25]))
    tensors = {"a.weight": product, "b.weight": parts[0], "c.weight": affine}
    coded = fewbits.CodedModel(Contents(tensors))
    told = export(coded, tmp_path / "net.safetensors")
    check(read(tmp_path / "net.safetensors"), coded.state_dict())
    assert told.notes[:2] == (
        "a.weight: as values, for it is in a basis",
        "c.weight: as values, for its grid begins anywhere",
    )
    assert list(told.weights) == ["b.weight"]


def test_the_command_line_writes_it_without_a_network(read, tmp_path):
    source = "builtin:digits-mlp"
    coded = fewbits.compress(load_model(source).module, fewbits.Nearest(bits=4), source=source)
    coded.save(tmp_path / "net.fewbits")
    out = tmp_path / "net.safetensors"
    found = run_json("export", tmp_path / "net.fewbits", "-o", out)
    assert found["bytes"] == out.stat().st_size
    assert set(found["weights"].values()) == {4}
    check(read(out), coded.state_dict())


def test_grids_of_inputs_are_in_the_metadata(tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 4))
    batch = torch.randn(64, 24)
    coded = fewbits.compress(net, fewbits.Nearest(), batch, activations=8)
    told = export(coded, tmp_path / "net.safetensors")
    grids = coded.contents.activations
    assert told.inputs == dict.fromkeys(grids, 8)
    found = told_in(tmp_path / "net.safetensors")["inputs"]
    assert {site: entry["step"] for site, entry in found.items()} == {
        site: float(grid.step) for site, grid in grids.items()
    }
