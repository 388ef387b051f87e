"""OpenVINO opens the ONNX files of opset 21, and gives what PyTorch gives."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

import fewbits
from fewbits.coded import Codebook, CodebookTensor, Contents
from fewbits.exporters import export

openvino = pytest.importorskip("openvino")
pytest.importorskip("onnxscript")
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*entropy"),
]
X = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))
# Products of floats: by default it rounds inputs to 8 bits where weights are blocks of integers.
SETTINGS = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(512, 32), nn.ReLU(), nn.Linear(32, 10)).eval()


@pytest.fixture(scope="module")
def core():
    return openvino.Core()


def integers(net):
    return fewbits.compress(net, fewbits.Nearest(bits=8), X, activations=8)


def blocks(net):
    four = fewbits.Nearest(bits=4)
    rules = (fewbits.Rule("0.weight", four), fewbits.Rule("*", fewbits.Nearest(bits=4, group=32)))
    return fewbits.compress(net, fewbits.Recipe(rules))


def codebook(net):
    contents = blocks(net).contents
    book = Codebook(np.linspace(-0.1, 0.1, 16, dtype=np.float32))
    weight = net[4].weight.detach().numpy()
    index = np.abs(weight.reshape(-1, 1) - book.values).argmin(1).astype(np.int32)
    tensor = CodebookTensor(weight.shape, "float32", index.reshape(weight.shape), book)
    return fewbits.CodedModel(Contents(dict(contents.tensors) | {"4.weight": tensor}))


@pytest.mark.parametrize(
    "case",
    [(integers, "onnx", 0.02), (blocks, "onnx", 1e-5), (blocks, "onnx-nbits", 1e-5),
     (codebook, "onnx", 1e-5)],
    ids=lambda case: f"{case[0].__name__}, {case[1]}",
)  # fmt: skip
def test_the_same_outputs(case, net, core, tmp_path):
    make, to, bound = case
    coded = make(net)
    told = export(coded, tmp_path / "net.onnx", to=to, model=net, inputs=X[:2])
    assert len(told.weights) == 3
    compiled = core.compile_model(core.read_model(tmp_path / "net.onnx"), "CPU", SETTINGS)
    theirs = next(iter(compiled(X.numpy()).values()))
    with torch.no_grad():
        ours = coded.load_into(copy.deepcopy(net))(X).numpy()
    assert np.linalg.norm(theirs - ours) <= bound * np.linalg.norm(ours)
