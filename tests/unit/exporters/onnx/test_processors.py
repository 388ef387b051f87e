"""Each form of 8-bit weights, on this processor and on an emulated one without VNNI."""

from __future__ import annotations

import copy
import shutil
import subprocess
import sys
import warnings
from functools import cache
from itertools import combinations

import numpy as np
import pytest
import torch
from torch import nn

import fewbits
from fewbits.errors import ConfigError
from fewbits.exporters import export
from fewbits.exporters.onnx import qdq as exporter
from fewbits.exporters.onnx.processors import overflows_here, pairs_may_overflow

onnx = pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:this processor has no VNNI"),
]

QEMU = shutil.which("qemu-x86_64")
emulated = pytest.mark.skipif(QEMU is None, reason="qemu-x86_64 (Debian's qemu-user) is absent")
# onnxruntime makes signed weights unsigned by itself, and needs zero points of their own for that.
WIDER = {"session.x64quantprecision": "1"}
RUN = """
import sys, numpy, onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
x = numpy.load(sys.argv[2])
numpy.save(sys.argv[3], session.run(None, {session.get_inputs()[0].name: x})[0])
"""


def relu_chain():
    conv = [nn.Conv2d(width, 6, 3, padding=1) for width in (4, 6, 6)]
    return nn.Sequential(conv[0], nn.ReLU(), conv[1], nn.ReLU(), conv[2]), torch.rand(16, 4, 8, 8)


def depthwise():
    """Values add up: what the layers over channels read is near the end of its grid."""

    def layers(width, out):
        deep, wide = nn.Conv2d(width, width, 3, padding=1, groups=width), nn.Conv2d(width, out, 1)
        with torch.no_grad():
            deep.weight.abs_()
            wide.weight.abs_()
        return [deep, nn.ReLU6(), wide, nn.BatchNorm2d(out), nn.ReLU6()]

    net = nn.Sequential(*layers(8, 16), *layers(16, 8), nn.Conv2d(8, 4, 1))
    with torch.no_grad():
        for norm in (net[3], net[8]):
            norm.weight.copy_(torch.linspace(-2, 2.1, len(norm.weight)))
    return net, torch.rand(16, 8, 6, 6)


def sequence():
    """Linear layers of three axes are products of matrices; the second reads signed values."""
    return nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 8)), torch.rand(16, 5, 32)


NETS = {"relu chain": relu_chain, "depthwise": depthwise, "sequence": sequence}


class Exported:
    """A network, its file, and the answers that are right."""

    def __init__(self, folder, name, bits=8, activations=True, **settings):
        torch.manual_seed(0)
        net, self.x = NETS[name]()
        grids = fewbits.Activations(bits=8, outputs=True) if activations else None
        coded = fewbits.compress(net.eval(), fewbits.Nearest(bits=bits), self.x, activations=grids)
        self.path = folder / "net.onnx"
        self.told = export(coded, self.path, model=net, inputs=self.x[:2], **settings)
        with torch.no_grad():
            self.right = coded.load_into(copy.deepcopy(net))(self.x).numpy()

    def is_right(self, **entries):
        """Whether onnxruntime's answers here are the network's, with entries of its session."""
        options = runtime.SessionOptions()
        options.intra_op_num_threads = 1
        for key, value in entries.items():
            options.add_session_config_entry(key, value)
        session = runtime.InferenceSession(self.path, options, providers=["CPUExecutionProvider"])
        return self.close(session.run(None, {session.get_inputs()[0].name: self.x.numpy()})[0])

    def is_right_without_vnni(self):
        given, made = self.path.with_suffix(".in.npy"), self.path.with_suffix(".out.npy")
        np.save(given, self.x.numpy())
        under_haswell(RUN, self.path, given, made)
        return self.close(np.load(made))

    def close(self, answers):
        # A few values at the edge of two levels fall to either side; lost sums make ten times that.
        error = np.linalg.norm(answers - self.right) / np.linalg.norm(self.right)
        return bool(error < 0.003)

    def types(self):
        """Return the types of the weights' integers, and those of the inputs' zero points."""
        graph = onnx.load(self.path).graph
        held = {tensor.name: tensor for tensor in graph.initializer}
        nodes = [node for node in graph.node if node.op_type == "DequantizeLinear"]
        weights = [held[node.input[0]] for node in nodes if node.input[0] in held]
        zeros = [held[node.input[2]] for node in nodes if node.input[0] not in held]
        name = onnx.TensorProto.DataType.Name
        return [{name(tensor.data_type) for tensor in side} for side in (weights, zeros)]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    @cache
    def export(name, bits=8, processor="any"):
        return Exported(tmp_path_factory.mktemp("net"), name, bits, processor=processor)

    return export


def under_haswell(code, *arguments):
    """Run Python where AVX2 is the widest instruction set."""
    command = [QEMU, "-cpu", "Haswell", sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.parametrize(
    ("rows", "overflow"),
    [
        ([[127, 1]], False),
        ([[127, 2]], True),
        ([[127, 0, 0, 2]], True),
        ([[-128, 0]], False),
        ([[-127, 0, -2]], True),
        ([[127, -127]], False),
        ([[64, 64], [-64, -64]], False),
        ([[127, 0], [2, 0]], False),
        ([[127], [127]], False),
        ([[], []], False),
    ],
)
def test_pairs_of_one_neuron_that_exceed_16_bits(rows, overflow):
    assert pairs_may_overflow(torch.tensor(rows, dtype=torch.int8)) == overflow


def test_pairs_against_all_of_them():
    draws = torch.Generator().manual_seed(0)
    seen = set()
    for _ in range(200):
        rows = torch.randint(-70, 71, (2, 3, 2), generator=draws)
        sums = [255 * int(a + b) for row in rows.flatten(1) for a, b in combinations(row, 2)]
        known = max(sums) > 32767 or min(sums) < -32768
        assert pairs_may_overflow(rows) == known
        seen.add(known)
    assert seen == {False, True}


@pytest.mark.parametrize("name", NETS)
def test_the_default_is_right_on_this_processor(name, exported):
    made = exported(name)
    assert made.is_right()
    assert made.is_right(**WIDER)
    assert made.told.processor == "any"
    assert set(made.told.unsigned) == set(made.told.weights)
    assert made.types() == [{"UINT8"}, {"UINT8"}]
    assert any("are unsigned" in note and "vnni" in note for note in made.told.notes)


@pytest.mark.parametrize("name", NETS)
def test_weights_of_7_bits_stay_signed_and_are_right(name, exported):
    made = exported(name, bits=7)
    assert made.is_right()
    assert made.is_right(**WIDER)
    assert not made.told.unsigned
    assert made.types()[0] == {"INT8"}
    assert any("for any processor: no sum" in note for note in made.told.notes)


@pytest.mark.parametrize("name", NETS)
def test_the_form_for_vnni_is_right_where_there_is_vnni(name, exported):
    made = exported(name, processor="vnni")
    assert made.is_right() != overflows_here()
    assert made.is_right(**WIDER)
    assert made.told.processor == "vnni"
    assert not made.told.unsigned
    assert made.types()[0] == {"INT8"}
    assert any("without it onnxruntime may lose" in note for note in made.told.notes)


@emulated
@pytest.mark.parametrize("name", NETS)
def test_each_form_without_vnni(name, exported):
    assert exported(name).is_right_without_vnni()
    assert exported(name, bits=7).is_right_without_vnni()
    assert not exported(name, processor="vnni").is_right_without_vnni()


@emulated
@pytest.mark.slow
def test_a_processor_without_vnni_is_told():
    code = "from fewbits.exporters.onnx.processors import overflows_here; print(overflows_here())"
    assert under_haswell(code).strip() == "True"


@pytest.mark.parametrize("name", NETS)
def test_onnxruntime_may_widen_weights_of_4_bits_too(name, exported):
    assert exported(name, bits=4).is_right(**WIDER)


def test_weights_alone_stay_signed(tmp_path):
    made = Exported(tmp_path, "relu chain", activations=False)
    assert made.is_right()
    assert not made.told.unsigned
    assert made.types() == [{"INT8"}, set()]
    assert not any("signed" in note for note in made.told.notes)


@pytest.mark.parametrize(
    ("case", "warned"),
    [
        ((True, 8, "vnni"), True),
        ((True, 7, "vnni"), False),
        ((True, 8, "any"), False),
        ((False, 8, "vnni"), False),
        ((None, 8, "vnni"), False),
    ],
)
def test_a_warning_where_this_processor_has_no_vnni(case, warned, monkeypatch, tmp_path):
    here, bits, processor = case
    monkeypatch.setattr(exporter, "overflows_here", lambda: here)
    # The warning depends on the weights alone, and tracing takes most of the time.
    empty = onnx.helper.make_model(onnx.helper.make_graph([], "empty", [], []))
    monkeypatch.setattr(exporter, "traced", lambda *_, **__: copy.deepcopy(empty))
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        Exported(tmp_path, "sequence", bits, processor=processor)
    assert any("no VNNI" in str(entry.message) for entry in seen) == warned


def test_without_onnxruntime_nothing_is_known(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert overflows_here() is None


def test_an_unknown_processor(tmp_path):
    with pytest.raises(ConfigError, match=r"processor.*any, vnni.*avx2"):
        Exported(tmp_path, "sequence", processor="avx2")
