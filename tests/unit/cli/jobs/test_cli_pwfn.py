"""``train --method pwfn``, ``inspect --values --energy`` and ``evaluate --weight-noise``."""

from __future__ import annotations

import shutil

import pytest
import torch
from safetensors.torch import save_file

import fewbits
from cli_runs import run, run_json
from fewbits.container import read
from fewbits.evaluation.metrics import evaluate
from fewbits.sources import load_data, load_model
from fewbits.sources.demo_network import train_classifier

MODEL = "builtin:digits-mlp"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a network trained by ``train --method pwfn``, and what the command told."""
    folder = tmp_path_factory.mktemp("pwfn")
    model = train_classifier(load_model(MODEL).module, load_data("digits"), epochs=6)
    save_file(model.state_dict(), folder / "net.safetensors")
    told = run_json(
        "train", MODEL, "--weights", folder / "net.safetensors", "--data", "digits", "--epochs", 2,
        "--method", "pwfn", "--set", "growth=1.0", "--set", "fractions=[0.5, 0.9, 1.0]",
        "--device", "cpu", "-o", folder / "net.fewbits", "--evaluate",
    )  # fmt: skip
    return folder, told


@pytest.fixture
def file(made, tmp_path, monkeypatch):
    shutil.copy(made[0] / "net.fewbits", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "net.fewbits"


def test_the_accuracy_told_is_that_of_the_file(made, file):
    told = made[1]
    batches = load_data("digits").batches("test", 128)
    network = fewbits.load(file, into=load_model(MODEL, pretrained=False).module)
    assert told["accuracy"]["compressed"]["accuracy"] == evaluate(network, batches).accuracy > 0.8
    assert told["size"]["file_bytes"] == file.stat().st_size


def test_inspect_recounts_values_and_energy_from_the_file(file):
    told = run_json("inspect", file, "--values", "--energy")
    tensors = read(file).tensors
    values = torch.cat(
        [v.reshape(-1) for n, v in fewbits.load(file).items() if n.endswith(("weight", "bias"))]
    )
    found = told["values"]
    assert found["values"] == len(values.unique())
    assert found["weights"] == values.numel() == told["size"]["weights"]
    counts = values.unique(return_counts=True)[1].double()
    share = counts / counts.sum()
    assert found["entropy"] == pytest.approx(float(-(share * share.log2()).sum()), rel=1e-9)
    layers = told["energy"]["layers"]
    assert [layer["name"] for layer in layers] == [n for n in tensors if n.endswith("weight")]
    assert told["energy"]["totals"]["macs"] == sum(layer["weights"] for layer in layers)
    text = run("inspect", file, "--values", "--energy").stdout
    assert "distinct values" in text
    assert "shift-adds" in text
    assert "name --data" in text
    assert "values" not in run_json("inspect", file)


def test_inspect_counts_for_a_sample_where_data_is_named(file):
    told = run_json("inspect", file, "--energy", "--data", "digits")
    assert [layer["macs"] for layer in told["energy"]["layers"]] == [64 * 128, 128 * 64, 64 * 10]
    assert "for one sample" in run("inspect", file, "--energy", "--data", "digits").stdout


def test_evaluate_adds_noise_to_the_weights(file):
    how = ("evaluate", file, "--data", "digits", "--weight-noise", "0.05,0.3", "--draws", 3)
    told = run_json(*how)
    rows = told["weight_noise"]
    assert [row["noise"] for row in rows] == [0, 0.05, 0.3]
    assert [row["draws"] for row in rows] == [1, 3, 3]
    assert rows[0]["accuracy"] == pytest.approx(told["accuracy"])
    assert rows[0]["accuracy"] > rows[2]["accuracy"]
    assert run_json(*how)["weight_noise"] == rows
    text = run(*how).stdout
    assert "ECE" in text
    assert "ensemble" in text
    for wrong in ("0", "a", "-1,0.1", ""):
        bad = run("evaluate", file, "--data", "digits", "--weight-noise", wrong, code=2)
        assert "--weight-noise takes sizes" in bad.stderr
