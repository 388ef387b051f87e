"""ONNX files against the network: the same logits in onnxruntime, and every fallback told."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

import fewbits
from fewbits.errors import ModelError
from fewbits.exporters import export

onnx = pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*entropy"),
]


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.conv2, self.bn2 = nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.relu, self.fc = nn.ReLU(), nn.Linear(6, 10)

    def forward(self, x):
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(x + self.bn2(self.conv2(x)))
        return self.fc(x.mean((2, 3)))


@pytest.fixture
def net():
    return trained()


def trained():
    torch.manual_seed(0)
    net = Net()
    with torch.no_grad():
        net.bn1.weight.copy_(torch.linspace(-1, 1.2, 6))
        for _ in range(10):
            net(torch.randn(32, 1, 8, 8))
    return net.eval()


X = torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def run_all(path, x):
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1
    session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x.numpy()})


def run(path, x):
    return run_all(path, x)[0]


@pytest.mark.parametrize("case", ["w8a8", "w4", "dorefa"])
def test_onnxruntime_computes_the_same_logits(case, net, tmp_path):
    if case == "dorefa":
        method = fewbits.LowBit(quantizer="dorefa", weights=2, activations=4, first_last="same")
        tuner = fewbits.prepare(copy.deepcopy(net), method, calibration=X)
        coded = tuner.finish()
    else:
        bits = {"w8a8": 8, "w4": 4}[case]
        activations = 8 if case == "w8a8" else None
        coded = fewbits.compress(net, fewbits.GPFQ(bits=bits), X, activations=activations)
    told = export(coded, tmp_path / "net.onnx", model=net, inputs=X[:2])
    ours = coded.load_into(copy.deepcopy(net))(X).detach().numpy()
    theirs = run(tmp_path / "net.onnx", X)
    # A value at the edge of two levels may fall to either side after float arithmetic.
    close = np.isclose(ours, theirs, rtol=0, atol=1e-4).all(1).mean()
    assert close > 0.85
    assert np.abs(ours - theirs).max() < 0.2 * np.abs(ours).max()
    assert (ours.argmax(1) == theirs.argmax(1)).mean() > 0.95
    graph = onnx.load(tmp_path / "net.onnx").graph
    kinds = [node.op_type for node in graph.node]
    assert "BatchNormalization" not in kinds
    assert kinds.count("QuantizeLinear") == len(coded.contents.activations)
    text = " ".join(told.notes)
    assert ("4-bit" in text) == (case != "w8a8")
    assert ("fewer than 8 bits" in text) == (case == "dorefa")
    assert ("inputs are floats" in text) == (case == "w4")
    assert told.bytes == (tmp_path / "net.onnx").stat().st_size
    assert set(told.weights.values()) == ({8} if case == "w8a8" else {4})


@pytest.mark.parametrize(("bits", "activations"), [(4, None), (8, None), (8, 8)])
def test_groups_are_blocks_of_linear_layers(bits, activations, tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(
        *(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 48), nn.ReLU()),
        *(nn.Linear(48, 16), nn.ReLU(), nn.Linear(16, 10)),
    ).eval()
    x = torch.randn(64, 1, 8, 8)
    with torch.no_grad():
        net[3].weight[:, :16] *= 20  # one step for all would show
    method = fewbits.GPFQ(bits=bits, group=16)
    coded = fewbits.compress(net, method, x, activations=activations)
    told = export(coded, tmp_path / "n.onnx", model=net, inputs=x[:2])
    ours = coded.load_into(copy.deepcopy(net))(x).detach().numpy()
    close = np.isclose(run(tmp_path / "n.onnx", x), ours, rtol=0, atol=1e-4).all(1).mean()
    assert close > (0.85 if activations else 0.999)
    graph = onnx.load(tmp_path / "n.onnx").graph
    sizes = [
        attribute.i
        for node in graph.node
        for attribute in node.attribute
        if node.op_type == "DequantizeLinear" and attribute.name == "block_size" and attribute.i
    ]
    assert sizes == [16, 16]  # the last has one group
    assert set(told.weights.values()) == {bits}
    assert not {"3.weight", "5.weight"} & set(told.unsigned)
    assert any(note.startswith("2 weights have a step for each group") for note in told.notes)


def test_groups_of_a_convolution_are_floats(tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(8, 6, 3), nn.Flatten(), nn.Linear(24, 4)).eval()
    x = torch.randn(8, 8, 4, 4)
    coded = fewbits.compress(net, fewbits.Nearest(group=36))
    told = export(coded, tmp_path / "n.onnx", model=net, inputs=x[:2])
    ours = coded.load_into(copy.deepcopy(net))(x).detach().numpy()
    np.testing.assert_allclose(run(tmp_path / "n.onnx", x), ours, rtol=0, atol=1e-4)
    assert set(told.weights) == {"2.weight"}
    assert any(note.startswith("0.weight: in floats, groups of") for note in told.notes)


def test_tensors_without_integers_are_told(net, tmp_path):
    coded = fewbits.compress(net, fewbits.Transform(rate="none"), X)
    told = export(coded, tmp_path / "net.onnx", model=net, inputs=X[:2])
    ours = coded.load_into(copy.deepcopy(net))(X).detach().numpy()
    np.testing.assert_allclose(run(tmp_path / "net.onnx", X), ours, rtol=0, atol=1e-4)
    for name in set(coded.tensors) - set(told.weights):
        assert not name.endswith("weight") or "bn" in name or any(name in n for n in told.notes)


def test_a_network_that_cannot_be_followed(tmp_path):
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x):
            return self.fc(x) if float(x.sum()) > 0 else x

    coded = fewbits.compress(Odd(), fewbits.Nearest(bits=8))
    with pytest.raises(ModelError, match=r"torch\.export"):
        export(coded, tmp_path / "net.onnx", model=Odd(), inputs=torch.randn(2, 4))


class Both(nn.Module):
    """Gives what its convolution gives, and what comes after the normalization."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.fc = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 3)

    def forward(self, x):
        h = self.conv(x)
        return h, self.fc(self.bn(h).relu().mean((2, 3)))


def test_a_convolution_that_the_network_gives_keeps_its_values(tmp_path):
    net = Both()
    with torch.no_grad():
        net.bn.weight.fill_(3.0)
        net.bn.bias.fill_(1.0)
    coded = fewbits.compress(net.eval(), fewbits.Nearest(bits=8))
    export(coded, tmp_path / "net.onnx", model=net, inputs=X[:2])
    with torch.no_grad():
        ours = coded.load_into(copy.deepcopy(net))(X)
    for mine, theirs in zip(ours, run_all(tmp_path / "net.onnx", X), strict=True):
        np.testing.assert_allclose(theirs, mine.numpy(), rtol=0, atol=1e-4)


@pytest.fixture(scope="module")
def of_floats(tmp_path_factory):
    """A compressed network, and what the graph of its floats gives."""
    net, path = trained(), tmp_path_factory.mktemp("floats") / "float.onnx"
    coded = fewbits.compress(net, fewbits.GPFQ(bits=8), X, activations=8)
    plain = export(coded, path, model=net, inputs=X[:2])
    assert not any("graph is of float32" in note for note in plain.notes)
    return coded, run(path, X)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes_are_exported_as_float32(dtype, net, of_floats, tmp_path):
    half, (coded, ours) = net.to(dtype), of_floats
    told = export(coded, tmp_path / "net.onnx", model=half, inputs=X[:2].to(dtype))
    assert any(str(dtype)[6:] in note and "float32" in note for note in told.notes)
    assert next(half.parameters()).dtype == dtype
    np.testing.assert_allclose(run(tmp_path / "net.onnx", X), ours, rtol=0, atol=1e-5)


def test_a_network_that_casts_on_its_way(tmp_path):
    class Casts(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1, self.relu, self.fc2 = nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)

        def forward(self, x):
            return self.fc2(self.relu(self.fc1(x).half()).float())

    net, x = Casts().eval(), torch.randn(64, 4)
    activations = fewbits.Activations(bits=8, placement="output")
    coded = fewbits.compress(net, fewbits.Nearest(bits=8), x, activations=activations)
    export(coded, tmp_path / "net.onnx", model=net, inputs=x[:2])
    ours = coded.load_into(copy.deepcopy(net))(x).detach().numpy()
    assert np.isclose(run(tmp_path / "net.onnx", x), ours, rtol=0, atol=1e-3).mean() > 0.9


def test_a_graph_that_onnx_refuses(monkeypatch, net, tmp_path):
    def refuse(graph, **options):
        raise onnx.shape_inference.InferenceError("y_scale has inconsistent type")

    monkeypatch.setattr(onnx.checker, "check_model", refuse)
    coded = fewbits.compress(net, fewbits.Nearest(bits=8))
    with pytest.raises(ModelError, match="not sound ONNX: y_scale"):
        export(coded, tmp_path / "net.onnx", model=net, inputs=X[:2])
    assert not (tmp_path / "net.onnx").exists()
