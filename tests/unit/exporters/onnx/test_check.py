"""The check of an exported file: agreement with the network, and time beside float32."""

from __future__ import annotations

import copy
from collections import OrderedDict

import pytest
import torch
from torch import nn

import fewbits
from cli_runs import run, run_json
from fewbits.errors import ConfigError, MissingExtraError
from fewbits.exporters import export
from fewbits.exporters.onnx import check as checks

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*entropy"),
]
X = torch.randn(24, 64, generator=torch.Generator().manual_seed(0))


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 10)).eval()


@pytest.fixture(scope="module")
def coded():
    return fewbits.compress(mlp(), fewbits.Nearest(bits=4, group=32))


@pytest.mark.parametrize(("level", "low", "high"), [(0, 0, 2e-6), (4, 1e-4, 0.03)])
def test_agreement_and_time(level, low, high, coded, tmp_path):
    options = {"to": "onnx-nbits", "accuracy_level": level, "check": True}
    told = export(coded, tmp_path / "n.onnx", model=mlp(), inputs=X, **options)
    found = told.check
    assert low <= found.relative_error < high
    assert found.top1_agreement > 90
    assert (found.samples, found.batch) == (24, 1)
    assert found.time_ratio == found.milliseconds / found.float_milliseconds > 0
    assert found.float_bytes > 4 * (64 * 96 + 96 * 10)
    assert found.runtime.startswith("onnxruntime ")
    assert told.to_dict()["check"]["time_ratio"] == found.time_ratio
    assert export(coded, tmp_path / "n.onnx", model=mlp(), inputs=X).check is None


def test_a_wrong_file_is_seen(coded, tmp_path, monkeypatch):
    path = tmp_path / "n.onnx"
    export(coded, path, model=mlp(), inputs=X)
    graph = onnx.load(path)
    for tensor in graph.graph.initializer:
        if list(tensor.dims) == [10]:
            tensor.CopyFrom(onnx.numpy_helper.from_array(torch.arange(10.0).numpy(), tensor.name))
    onnx.save(graph, path)
    found = checks.checked(coded.contents, path, mlp(), (X,), (True, False))
    assert found.relative_error > 1
    assert found.top1_agreement < 50


class Named(nn.Module):
    def __init__(self, name):
        super().__init__()
        self.body, self.name = mlp(), name

    def forward(self, first, second):
        return OrderedDict({self.name: self.body(first + second)[:, None]})


@pytest.mark.parametrize("name", ["logits", "states"])
def test_what_looks_like_logits(name, tmp_path):
    net = Named(name).eval()
    coded = fewbits.compress(net, fewbits.Nearest(bits=8))
    named = {"second": X * 2, "first": X, "labels": X}
    told = export(coded, tmp_path / "n.onnx", model=net, inputs=named, check=True)
    assert (told.check.top1_agreement is None) == (name == "states")
    with pytest.raises(ConfigError, match=r"first arguments of the network \(first, second, ...\)"):
        export(coded, tmp_path / "n.onnx", model=net, inputs={"first": X, "third": X})


def test_quantized_inputs_are_of_our_network(tmp_path):
    net = mlp()
    coded = fewbits.compress(net, fewbits.Nearest(bits=8), X, activations=8)
    told = export(coded, tmp_path / "n.onnx", model=net, inputs=X, check=True)
    with torch.no_grad():
        floats, ours = net(X), coded.load_into(copy.deepcopy(net))(X)
    apart = float((floats - ours).norm() / ours.norm())
    assert told.check.relative_error < apart / 4


def test_without_onnxruntime_nothing_is_written(coded, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(MissingExtraError, match="the check of an ONNX file"):
        export(coded, tmp_path / "n.onnx", model=mlp(), inputs=X, check=True)
    assert list(tmp_path.iterdir()) == []


def test_the_command_line(tmp_path):
    file, out = tmp_path / "a.fewbits", tmp_path / "net.onnx"
    method = ("--method", "nearest", "--bits", 4)
    run("compress", "builtin:digits-mlp", *method, "--data", "digits", "-o", file)
    arguments = ("export", file, "--data", "digits", "-o", out, "--to", "onnx-nbits", "--check")
    found = run_json(*arguments)["check"]
    assert found["samples"] == 32
    assert found["top1_agreement"] >= 90
    shown = run(*arguments, "--force").stdout
    assert "check: relative error" in shown
    assert "of the float32 export's" in shown
