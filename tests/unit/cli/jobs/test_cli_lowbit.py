"""Quantized activations and ONNX from the command line; low-bit training by a recipe."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

import fewbits
from cli_runs import run, run_json
from fewbits.sources import load_data, load_model
from fewbits.sources.demo_network import train_classifier

MODEL = "builtin:digits-mlp"
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    made = tmp_path_factory.mktemp("lowbit") / "net.safetensors"
    torch.manual_seed(0)
    model = train_classifier(load_model(MODEL).module, load_data("digits"), epochs=10)
    save_file(model.state_dict(), made)
    return made


@pytest.mark.usefixtures("operators_once")
@pytest.mark.filterwarnings("ignore:this processor has no VNNI")
def test_activations_after_a_method_and_an_export(weights, tmp_path):
    out = tmp_path / "net.fewbits"
    given = ["--weights", weights, "--data", "digits", "-o", out]
    told = run_json("compress", MODEL, *given, "--bits", 8, "--activations", 8)
    assert any("inputs quantized" in note for note in told["notes"])
    grids = fewbits.inspect(out).activations
    assert {grid.bits for grid in grids.values()} == {8}
    found = run_json("evaluate", out, "--data", "digits")
    assert found["accuracy"] > 0.9
    assert f"input of {next(iter(grids))}: 8 bits" in run("inspect", out).stdout
    pytest.importorskip("onnxscript")
    made = run_json("export", out, "--data", "digits", "-o", tmp_path / "net.onnx")
    assert set(made["weights"].values()) == {8}
    assert set(made["inputs"].values()) == {8}
    assert (tmp_path / "net.onnx").stat().st_size == made["bytes"]
    assert made["processor"] == "any"
    assert set(made["unsigned"]) == set(made["weights"])
    signed = ["--processor", "vnni", "--force", "-o", tmp_path / "net.onnx"]
    assert not run_json("export", out, "--data", "digits", *signed)["unsigned"]
    assert run("export", out, "--data", "digits", *signed[2:], "--processor", "z80", code=2)
    assert run("export", out, "--data", "digits", "--to", "tape", "-o", out, code=2)


def test_activations_need_data(weights, tmp_path):
    out = ["--weights", weights, "-o", tmp_path / "net.fewbits"]
    result = run("compress", MODEL, *out, "--method", "nearest", "--activations", 8, code=2)
    assert "--data" in result.stderr
    result = run("compress", MODEL, *out, "--data", "digits", "--outputs", code=2)
    assert "--activations" in result.stderr


def test_outputs_from_the_command_line(tmp_path, monkeypatch):
    out = tmp_path / "net.fewbits"
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "net_with_a_sum.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.a, self.b, self.c = nn.Linear(64, 8), nn.Linear(64, 8), nn.Linear(8, 10)\n"
        "    def forward(self, x):\n"
        "        x = x.flatten(1)\n"
        "        return self.c(self.a(x) + self.b(x))\n"
    )
    given = ["--data", "digits", "-o", out, "--method", "nearest", "--bits", 8, "--outputs"]
    told = run_json("compress", "net_with_a_sum:Net", *given, "--activations", 8)
    assert "activations: 3 inputs, 2 outputs quantized" in told["notes"]
    assert list(fewbits.inspect(out).activations) == ["a", "b", "c", "a:out", "b:out"]
    assert "output of a: 8 bits" in run("inspect", out).stdout


def test_a_recipe_with_activations_round_trips():
    data = {
        "rules": [{"match": "*", "method": "nearest", "bits": 8}],
        "activations": {"bits": 4, "ranges": "percentile"},
    }
    recipe = fewbits.Recipe.from_dict(data)
    assert recipe.activations == fewbits.Activations(bits=4, ranges="percentile")
    assert recipe.to_dict() == data
    with pytest.raises(fewbits.ConfigError, match="activations"):
        fewbits.Recipe.from_dict({**data, "activations": {"bit": 4}})
    with pytest.raises(fewbits.ConfigError, match="activations"):
        fewbits.Recipe((fewbits.Rule("*", fewbits.LowBit()),), activations=8)


def test_low_bit_training_from_the_command_line(weights, tmp_path):
    pytest.importorskip("lightning_fabric")
    out = tmp_path / "net.fewbits"
    settings = ["--set", "weights=4", "--set", "activations=4", "--set", "schedule=two_stage"]
    given = ["--weights", weights, "--data", "digits", "--epochs", 4, "-o", out]
    told = run_json("train", MODEL, *given, "--method", "lowbit", *settings)
    assert told["training"]["epoch"] >= 3 if "training" in told else True
    assert {grid.bits for grid in fewbits.inspect(out).activations.values()} <= {4, 8}
    assert run_json("evaluate", out, "--data", "digits")["accuracy"] > 0.85
