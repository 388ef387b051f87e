"""Packed integers: those of the compressed network, and the same outputs; what does not fit."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import fewbits
from fewbits.errors import ConfigError
from fewbits.exporters import export, exporter_name

onnx = pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*entropy"),
]
X = torch.randn(8, 128, generator=torch.Generator().manual_seed(0))
FLOATS = 2e-6  # relative error of float32 sums in another order
ROUNDED = 0.03  # with inputs of 8 bits, through a few layers
NBITS = {"to": "onnx-nbits"}


class Made:
    """An exported network beside the compressed one."""

    def __init__(self, net, coded, folder, inputs, **options):
        self.coded, self.path = coded, folder / "net.onnx"
        self.told = export(coded, self.path, model=net, inputs=inputs, **NBITS, **options)
        self.net = coded.load_into(copy.deepcopy(net)).eval()
        self.graph = onnx.load(self.path).graph
        self.nodes = [node for node in self.graph.node if node.domain == "com.microsoft"]

    def kinds(self):
        return [node.op_type for node in self.nodes]

    def settings(self, node):
        return {a.name: a.i for a in node.attribute}

    def array(self, name):
        return onnx.numpy_helper.to_array(next(t for t in self.graph.initializer if t.name == name))

    def error(self, x):
        session = runtime.InferenceSession(str(self.path), providers=["CPUExecutionProvider"])
        theirs = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
        with torch.no_grad():
            ours = self.net(x).numpy()
        return float(np.linalg.norm(theirs - ours) / np.linalg.norm(ours))


def mlp(width=128, hidden=96):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, 10)).eval()


def unpacked(stored, bits, columns):
    """Return the integers of bytes, one at a time."""
    rows = []
    for row in stored.reshape(len(stored), -1):
        found = [
            (int(byte) >> (bits * k)) & ((1 << bits) - 1) for byte in row for k in range(8 // bits)
        ]
        rows.append([value - (1 << (bits - 1)) for value in found[:columns]])
    return np.array(rows)


@pytest.mark.parametrize(
    ("method", "bits", "group"),
    [
        *((fewbits.Nearest, bits, group) for bits in (2, 4) for group in (32, 64, 128)),
        *((fewbits.GPTQ, 2, 32), (fewbits.Qronos, 4, 64), (fewbits.GPFQ, 4, 32)),
    ],
)
def test_codes_and_steps_are_ours(method, bits, group, tmp_path):
    net = nn.Sequential(nn.Linear(128, 24), nn.ReLU(), nn.Linear(24, 10)).eval()
    rule = fewbits.Rule("0.weight", method(bits=bits, group=group))
    recipe = fewbits.Recipe((fewbits.Rule("*", None), rule))
    made = Made(net, fewbits.compress(net, recipe, X), tmp_path, X[:2], accuracy_level=0)
    assert made.kinds() == ["MatMulNBits"]
    (node,) = made.nodes
    want = {"K": 128, "N": 24, "bits": bits, "block_size": group, "accuracy_level": 0}
    assert made.settings(node) == want
    tensor = made.coded.tensors["0.weight"]
    codes = unpacked(made.array(node.input[1]), bits, 128)
    offset = np.broadcast_to(tensor.offset, len(tensor.index))[:, None]
    np.testing.assert_array_equal(codes, (tensor.index - offset).reshape(24, 128))
    np.testing.assert_array_equal(made.array(node.input[2]).ravel(), tensor.step)
    assert made.told.weights == {"0.weight": bits}
    assert made.error(X) < FLOATS


@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize(
    ("level", "bound", "axes"),
    [
        *((0, FLOATS, 2), (4, ROUNDED, 3)),
        *(pytest.param(*c, marks=pytest.mark.slow) for c in [(0, FLOATS, 3), (4, ROUNDED, 2)]),
    ],
)
def test_onnxruntime_computes_the_same(bits, level, bound, axes, tmp_path):
    net = mlp()
    x = X if axes == 2 else X.reshape(4, 2, 128)
    coded = fewbits.compress(net, fewbits.Nearest(bits=bits, group=32))
    made = Made(net, coded, tmp_path, x[:2], accuracy_level=level)
    assert made.kinds() == ["MatMulNBits"] * 2
    error = made.error(x)
    assert error < bound
    assert (error > 1e-4) == (level == 4)
    assert any("2 linear layers are MatMulNBits" in note for note in made.told.notes)
    assert not any("unpack" in note for note in made.told.notes)


def test_one_step_for_a_neuron_is_repeated(tmp_path):
    net = mlp(width=100, hidden=64)  # 100 is padded to blocks
    coded = fewbits.compress(net, fewbits.Nearest(bits=4))
    made = Made(net, coded, tmp_path, X[:2, :100], accuracy_level=0)
    assert [made.settings(node)["block_size"] for node in made.nodes] == [128, 64]
    assert made.error(X[:, :100]) < FLOATS


def test_a_larger_group_is_cut_into_blocks(tmp_path):
    net = nn.Sequential(nn.Linear(192, 16), nn.ReLU(), nn.Linear(16, 4)).eval()
    x = torch.randn(4, 192)
    coded = fewbits.compress(net, fewbits.Nearest(bits=4, group=96))
    made = Made(net, coded, tmp_path, x[:2], accuracy_level=0)
    assert made.settings(made.nodes[0])["block_size"] == 32
    assert made.error(x) < FLOATS


def test_two_bits_without_a_fast_kernel_take_four(tmp_path):
    net = mlp()
    coded = fewbits.compress(net, fewbits.Nearest(bits=2, group=16))
    made = Made(net, coded, tmp_path, X[:2], accuracy_level=0)
    assert {made.settings(node)["bits"] for node in made.nodes} == {4}
    assert made.error(X) < FLOATS


def test_groups_that_are_no_blocks_stay_as_they_were(tmp_path):
    net = nn.Sequential(nn.Linear(120, 128), nn.ReLU(), nn.Linear(128, 10)).eval()
    x = torch.randn(4, 120)
    coded = fewbits.compress(net, fewbits.Nearest(bits=4, group=20), x)
    made = Made(net, coded, tmp_path, x[:2], accuracy_level=0)
    told = [note for note in made.told.notes if note.startswith("0.weight: not packed")]
    assert told == ["0.weight: not packed, its 20 inputs with one step are no multiple of 16"]
    assert "DequantizeLinear" in [node.op_type for node in made.graph.node]
    assert made.told.weights["0.weight"] == 4
    assert made.error(x) < FLOATS


def test_a_grid_without_a_zero_takes_twice_the_bits(tmp_path):
    net = mlp()
    coded = fewbits.compress(net, fewbits.GPFQ(levels=4), X)
    made = Made(net, coded, tmp_path, X[:2], accuracy_level=0)
    assert {made.settings(node)["bits"] for node in made.nodes} == {4}
    assert any("grids without a zero" in note for note in made.told.notes)
    assert made.error(X) < FLOATS


def test_convolutions_and_8_bit_inputs_stay_as_they_were(tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(
        *(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(2), nn.Linear(36, 8)),
    ).eval()
    x = torch.randn(16, 1, 8, 8)
    coded = fewbits.compress(net, fewbits.Nearest(bits=8), x, activations=8)
    made = Made(net, coded, tmp_path, x[:2])
    assert made.kinds() == []
    assert any("0.weight: not packed, convolutions" in note for note in made.told.notes)
    assert any("3.weight: not packed, its inputs have 8" in note for note in made.told.notes)
    assert set(made.told.weights.values()) == {8}
    narrow = fewbits.compress(net, fewbits.Nearest(bits=4), x, activations=8)
    made = Made(net, narrow, tmp_path, x[:2])
    assert made.kinds() == ["MatMulNBits"]
    assert made.error(x) < ROUNDED


class Text(nn.Module):
    """Scores of the next token; the output matrix is the table of embeddings, or its own."""

    def __init__(self, width=64, *, tied):
        super().__init__()
        torch.manual_seed(0)
        self.table, self.body = nn.Embedding(80, width), nn.Linear(width, width)
        self.head = nn.Linear(width, 80, bias=False)
        if tied:
            self.head.weight = self.table.weight

    def forward(self, ids):
        return self.head(self.body(self.table(ids)).relu())


IDS = torch.randint(0, 80, (4, 12), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("tied", [False, True])
def test_embeddings_are_look_ups_in_the_integers(tied, tmp_path):
    net = Text(tied=tied).eval()
    coded = fewbits.compress(net, fewbits.Nearest(bits=4, group=32))
    made = Made(net, coded, tmp_path, IDS[:2], accuracy_level=0, dynamic_sequence=True)
    assert sorted(made.kinds()) == ["GatherBlockQuantized", "MatMulNBits", "MatMulNBits"]
    assert set(made.told.weights) == set(coded.tensors) - {"body.bias"}
    stored = [made.array(t.name) for t in made.graph.initializer if t.data_type == 2]
    assert sum(array.nbytes for array in stored) == (80 * 64 * (1 if tied else 2) + 64 * 64) // 2
    for ids in (IDS, IDS[:1], IDS[:, :5]):
        assert made.error(ids) < FLOATS


class Cached(Text):
    def __init__(self):
        super().__init__(tied=True)
        self.config = SimpleNamespace(use_cache=True)

    def forward(self, ids):
        found = super().forward(ids)
        return (found, self.table(ids)) if self.config.use_cache else (found,)


def test_a_language_model_gives_no_cache(tmp_path):
    net = Cached().eval()
    coded = fewbits.compress(net, fewbits.Nearest(bits=4, group=32))
    made = Made(net, coded, tmp_path, IDS[:2])
    assert len(made.graph.output) == 1
    assert net.config.use_cache


def test_an_embedding_that_does_not_fit_is_floats(tmp_path):
    net = Text(width=40, tied=False).eval()
    coded = fewbits.compress(net, fewbits.Nearest(bits=4))
    made = Made(net, coded, tmp_path, IDS[:2], accuracy_level=0)
    assert sorted(made.kinds()) == ["MatMulNBits"] * 2
    assert "table.weight" not in made.told.weights
    assert any(note.startswith("table.weight: in floats, its 40") for note in made.told.notes)
    assert made.error(IDS) < FLOATS


def test_options_and_the_suffix(tmp_path):
    assert exporter_name("net.onnx") == "onnx"
    net = mlp()
    coded = fewbits.compress(net, fewbits.Nearest(bits=4, group=32))
    with pytest.raises(ConfigError, match="accuracy_level must be 0 or 4"):
        export(coded, tmp_path / "n.onnx", model=net, inputs=X[:2], accuracy_level=3, **NBITS)
    with pytest.raises(ConfigError, match="an open sequence axis needs an example of two tokens"):
        export(
            coded, tmp_path / "n.onnx", model=net, inputs=X[:2, :1], dynamic_sequence=True, **NBITS
        )
