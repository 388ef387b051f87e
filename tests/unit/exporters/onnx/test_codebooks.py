"""Weights on codebooks: indices and levels in the file, and the same outputs in onnxruntime."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

import fewbits
from fewbits.coded import Codebook, CodebookTensor, Contents, Layout, RawTensor
from fewbits.errors import ConfigError
from fewbits.exporters import export

onnx = pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*entropy"),
]

newer = pytest.mark.skipif(
    onnx.defs.onnx_opset_version() < 25, reason=f"onnx {onnx.__version__} has no opset 25"
)
IDS = torch.arange(24).reshape(4, 6)


class Net(nn.Module):
    """A tied embedding, a linear layer, and convolutions, one of them transposed."""

    def __init__(self):
        super().__init__()
        self.embed, self.mix = nn.Embedding(64, 32), nn.Linear(32, 48)
        self.conv, self.bn = nn.Conv1d(6, 8, 3, padding=1), nn.BatchNorm1d(8)
        self.back = nn.ConvTranspose1d(8, 6, 4, 2, 1)
        self.narrow, self.head = nn.Linear(96, 32), nn.Linear(32, 64, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids):
        x = self.mix(self.embed(ids)).relu()
        x = self.back(self.bn(self.conv(x)).relu())
        return self.head(self.narrow(x))


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return Net().eval()


def on_codebook(values, count, *, scaled=False, group=0, turned=False, book=None):
    """Put a weight on a codebook of so many levels, its rows scaled, or groups of its columns."""
    shape = tuple(values.shape)
    axes = (1, 0, *range(2, len(shape))) if turned else None
    matrix = values.detach().numpy()
    matrix = matrix.transpose(axes) if turned else matrix
    split = matrix.shape
    matrix = matrix.reshape(-1, group) if group else matrix.reshape(len(matrix), -1)
    scale = np.abs(matrix).max(1) if scaled else np.ones(1, np.float32)
    book = book or Codebook(np.linspace(-1, 1, count, dtype=np.float32))
    unit = (matrix / scale[:, None]).reshape(-1, 1)
    index = np.abs(unit - book.values).argmin(1).astype(np.int32).reshape(matrix.shape)
    layout = Layout(split, tuple(np.argsort(axes).tolist())) if turned else None
    return CodebookTensor(shape, "float32", index, book, scale.astype(np.float32), layout)


def network_of(net, **tensors):
    """Return the compressed network with these weights, and all else as it is."""
    raw = {
        name: RawTensor(tuple(value.shape), str(value.dtype)[6:], _bytes(value))
        for name, value in net.state_dict().items()
        if name != "head.weight"
    }
    coded = {f"{name}.weight": tensor for name, tensor in tensors.items()}
    aliases = {"head.weight": "embed.weight"} if hasattr(net, "head") else {}
    return fewbits.CodedModel(Contents(raw | coded, aliases))


def _bytes(value):
    return np.frombuffer(value.numpy().tobytes(), np.uint8)


def check(net, coded, path, inputs=IDS, **options):
    """Export, run in onnxruntime, compare; return what was told, and the stored tensors."""
    told = export(coded, path, model=net, inputs=inputs[:2], **options)
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    theirs = session.run(None, {session.get_inputs()[0].name: inputs.numpy()})[0]
    with torch.no_grad():
        ours = coded.load_into(copy.deepcopy(net))(inputs).numpy()
    np.testing.assert_allclose(theirs, ours, rtol=0, atol=1e-5)
    model = onnx.load(path)
    assert not any(node.domain == "fewbits" for node in model.graph.node)
    assert {entry.domain for entry in model.opset_import} <= {"", "com.microsoft"}
    return told, model.graph


def stored(graph, kind):
    code = getattr(onnx.TensorProto, kind)
    return [tuple(tensor.dims) for tensor in graph.initializer if tensor.data_type == code]


def weights(net):
    book = Codebook(np.linspace(-1, 1, 16, dtype=np.float32))
    return {
        "embed": on_codebook(net.embed.weight, 0, scaled=True, book=book),
        "mix": on_codebook(net.mix.weight, 0, scaled=True, group=16, book=book),
        "conv": on_codebook(net.conv.weight, 4, scaled=True),
        "back": on_codebook(net.back.weight, 8, scaled=True, turned=True),
        "narrow": on_codebook(net.narrow.weight, 300),
    }


@pytest.mark.parametrize("to", ["onnx", "onnx-nbits"])
def test_every_kind_of_layer_and_of_codebook(to, net, tmp_path):
    coded = network_of(net, **weights(net))
    told, graph = check(net, coded, tmp_path / "net.onnx", to=to)
    bits = {"embed": 4, "mix": 4, "conv": 4, "back": 4, "narrow": 16}
    assert told.weights == {f"{name}.weight": width for name, width in bits.items()}
    # The tied embedding is there once, and the table that two weights share.
    assert sorted(stored(graph, "UINT4")) == [(6, 32), (8, 18), (64, 32), (96, 16)]
    assert stored(graph, "UINT16") == [(32, 96)]
    tables = [tensor for tensor in graph.initializer if tensor.dims == [16]]
    assert len(tables) == 1
    assert [note for note in told.notes if note.startswith("5 weights are indices of 4, 16 bits")]
    assert not [note for note in told.notes if ": in floats" in note]


@newer
def test_opset_25_has_indices_of_two_bits(net, tmp_path):
    coded = network_of(net, **weights(net))
    told, graph = check(net, coded, tmp_path / "net.onnx", opset=25)
    assert told.weights["conv.weight"] == 2
    assert stored(graph, "UINT2") == [(8, 18)]
    assert onnx.load(tmp_path / "net.onnx").opset_import[0].version == 25


def test_the_file_is_about_as_small_as_its_indices(tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(256, 512, bias=False)).eval()
    x = torch.randn(8, 256)
    coded = network_of(net, **{"0": on_codebook(net[0].weight, 200)})
    told, _ = check(net, coded, tmp_path / "net.onnx", inputs=x)
    assert told.weights == {"0.weight": 8}
    assert told.bytes < 256 * 512 + 2500


def test_a_codebook_that_is_as_large_as_its_values_is_left_out(tmp_path):
    net = nn.Sequential(nn.Linear(8, 8)).eval()
    coded = network_of(net, **{"0": on_codebook(net[0].weight, 60)})
    told, graph = check(net, coded, tmp_path / "net.onnx", inputs=torch.randn(4, 8))
    assert told.weights == {}
    assert any("take as many bytes as its values" in note for note in told.notes)
    assert stored(graph, "UINT8") == []


def test_quantized_inputs_and_the_check(net, tmp_path):
    coded = fewbits.compress(net, fewbits.Nearest(bits=8), [IDS], activations=8)
    tensors = dict(coded.contents.tensors) | {"mix.weight": weights(net)["mix"]}
    contents = Contents(tensors, coded.contents.aliases, coded.contents.activations)
    told = export(
        fewbits.CodedModel(contents), tmp_path / "n.onnx", model=net, inputs=IDS, check=True
    )
    assert told.weights["mix.weight"] == 4
    assert told.check.relative_error < 0.02


@newer
def test_integers_of_two_bits(tmp_path):
    torch.manual_seed(0)
    layers = [nn.Conv1d(4, 8, 3), nn.Flatten(), nn.Linear(48, 32), nn.ReLU(), nn.Linear(32, 64)]
    net, x = nn.Sequential(*layers).eval(), torch.randn(8, 4, 8)
    rules = (fewbits.Rule("0.weight", fewbits.Nearest(bits=2)),
             fewbits.Rule("*", fewbits.Nearest(bits=2, group=16)))  # fmt: skip
    coded = fewbits.compress(net, fewbits.Recipe(rules))
    sizes = {}
    for opset, kind in ((21, "INT4"), (25, "INT2")):
        told, graph = check(net, coded, tmp_path / "net.onnx", inputs=x, opset=opset)
        assert set(told.weights.values()) == {int(kind[3])}
        assert stored(graph, kind) == [(8, 4, 3), (32, 48), (64, 32)]
        sizes[opset] = told.bytes
    assert any("weights are 2-bit integers: a quarter of a byte" in note for note in told.notes)
    assert sizes[21] - sizes[25] > 0.9 * (96 + 32 * 48 + 64 * 32) / 4


def test_opsets_that_are_not_written(net, tmp_path, monkeypatch):
    coded = network_of(net)
    for opset in (24, "25", True):
        with pytest.raises(ConfigError, match="opset must be one of 21, 25"):
            export(coded, tmp_path / "n.onnx", model=net, inputs=IDS, opset=opset)
    monkeypatch.setattr(onnx.defs, "onnx_opset_version", lambda: 22)
    with pytest.raises(ConfigError, match="knows opsets up to 22, and opset=25"):
        export(coded, tmp_path / "n.onnx", model=net, inputs=IDS, opset=25)
