"""What the export tells of floats, against the graph that onnxruntime makes."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

import fewbits
from fewbits.exporters import export

onnx = pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

X = torch.randn(16, 2, 8, 8, generator=torch.Generator().manual_seed(1))


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = conv(2), conv(6)
        self.relu, self.fc = nn.ReLU(), nn.Linear(6, 4)

    def forward(self, x):
        x = self.relu(self.conv1(x))
        x = self.relu(x + self.conv2(x))
        return self.fc(x.mean((2, 3)))


def conv(width):
    return nn.Conv2d(width, 6, 3, padding=1)


def chain(*middle):
    """Return a network whose first convolution ends in ``middle``, and whose last one is given."""
    return nn.Sequential(conv(2), *middle, conv(6))


NETS = {
    "pool": lambda: chain(nn.MaxPool2d(2)),
    "relu6, pools": lambda: chain(nn.ReLU6(), nn.MaxPool2d(2), nn.MaxPool2d(2)),
    "pool, relu6": lambda: chain(nn.MaxPool2d(2), nn.ReLU6()),
    "flat": lambda: nn.Sequential(conv(2), nn.ReLU(), nn.Flatten(), nn.Linear(384, 4)),
    "average": lambda: chain(nn.ReLU(), nn.AvgPool2d(2)),
    "hardtanh": lambda: chain(nn.Hardtanh(-0.1, 0.1)),
}


def graphs(net, path, **settings):
    """Return what was told, the convolutions that are in floats, and all Gemm nodes."""
    activations = fewbits.Activations(**{"bits": 8, **settings})
    coded = fewbits.compress(net.eval(), fewbits.Nearest(bits=8), X, activations=activations)
    told = export(coded, path / "net.onnx", model=net, inputs=X[:2])
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(path / "made.onnx")
    runtime.InferenceSession(path / "net.onnx", options, providers=["CPUExecutionProvider"])
    kinds = [node.op_type for node in onnx.load(path / "made.onnx").graph.node]
    return told.notes, kinds.count("Conv") + kinds.count("FusedConv"), kinds.count("Gemm")


def number(notes, words):
    return sum(int(found[1]) for note in notes if (found := re.match(rf"(\d+) {words}", note)))


@pytest.mark.parametrize(
    ("name", "outputs"),
    [*((name, False) for name in NETS), ("pool, relu6", True), ("average", True)],
)
def test_as_many_as_onnxruntime_has(name, outputs, tmp_path):
    torch.manual_seed(0)
    net = NETS[name]()
    notes, convs, gemms = graphs(net, tmp_path, outputs=outputs)
    last = isinstance(list(net.modules())[-1], nn.Conv2d)  # what the network gives is in floats
    assert number(notes, "layers end in floats") == convs - last
    assert number(notes, "linear layers are Gemm nodes") == gemms
    advised = any("outputs=True" in note for note in notes)
    assert advised == (not outputs and name in ("pool, relu6", "average"))
    assert convs == last or not outputs


def test_inputs_of_fewer_bits_are_told_to_end_in_floats(tmp_path):
    torch.manual_seed(0)
    # The first and the last layer have 8 bits: the Clip comes before the one between.
    notes, convs, _ = graphs(nn.Sequential(conv(2), nn.ReLU(), conv(6), conv(6)), tmp_path, bits=4)
    assert number(notes, "layers end in floats") == convs - 1 == 1
    assert any("fewer than 8 bits, or" in note for note in notes)


def test_a_residual_network_with_outputs_on_grids(tmp_path):
    """One convolution gives what the sum reads too, in floats; the other one ends in the sum."""
    torch.manual_seed(0)
    told = {known: graphs(Residual(), tmp_path, outputs=known) for known in (False, True)}
    assert [told[known][1] for known in (False, True)] == [2, 1]
    assert not any("outputs=True" in note for note in told[True][0])
    assert any("shortcut" in note for note in told[True][0])


class Normalized(nn.Module):
    """Every ReLU is a module; a shortcut, pooling of both kinds."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2, self.conv3, self.conv4 = conv(2), conv(6), conv(6), conv(6)
        self.relu, self.relu6 = nn.ReLU(), nn.ReLU6()
        self.pool, self.average = nn.MaxPool2d(2), nn.AvgPool2d(2)

    def forward(self, x):
        x = self.relu(self.conv1(x))
        x = self.relu(x + self.conv2(x))
        x = self.relu6(self.conv3(self.pool(x)))
        return self.conv4(self.average(x))


def test_grids_on_the_output_of_relus_are_read_as_integers(tmp_path):
    torch.manual_seed(0)
    net = Normalized()
    notes, convs, _ = graphs(net, tmp_path, placement="output")
    # conv2 ends in the sum; conv4 reads a mean, and is what the network gives.
    assert number(notes, "layers end in floats") == number(notes, "layers read floats") == 1
    assert convs == 2
    kinds = [node.op_type for node in onnx.load(tmp_path / "net.onnx").graph.node]
    assert not {"Relu", "Clip"} & set(kinds)
    activations = fewbits.Activations(bits=8, placement="output")
    coded = fewbits.compress(net, fewbits.Nearest(bits=8), X, activations=activations)
    with torch.no_grad():
        ours = coded.load_into(net)(X)
    session = runtime.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
    theirs = torch.from_numpy(session.run(None, {session.get_inputs()[0].name: X.numpy()})[0])
    assert float((theirs - ours).abs().max()) < 0.1 * float(ours.abs().max())
    assert torch.isclose(theirs, ours, rtol=0, atol=1e-4).float().mean() > 0.85
