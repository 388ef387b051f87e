"""What the command line tells of mistakes that are easy to make, and what it tells unasked."""

from __future__ import annotations

import sys

import pytest
from safetensors.torch import save_file

from cli_runs import run, run_json
from fewbits.sources import load_model

MODEL = "builtin:digits-mlp"
NETWORK = """
from torch import nn

def build():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

def odd():
    return nn.Linear(7, 10)

instance = nn.Conv2d(1, 2, 3)
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Work in a fresh folder with a checkpoint and a module of networks."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    sys.modules.pop("mynet", None)
    (tmp_path / "mynet.py").write_text(NETWORK)
    save_file(load_model(MODEL).module.state_dict(), "net.safetensors")
    yield tmp_path
    sys.modules.pop("mynet", None)


def usage_error(*args):
    """Return the message of wrong usage, on one line."""
    return run_json(*args, code=2)["error"]["message"]


# random weights


def test_random_weights_are_told(here):
    compress = ("compress", MODEL, "--method", "nearest", "-o", "a.fewbits", "--force")
    told = run_json(*compress)
    assert [note for note in told["notes"] if "random" in note and "--weights" in note]
    assert "random" in run(*compress).stderr
    given = ("--weights", "net.safetensors")
    assert "random" not in run(*compress, *given).stderr
    assert "random" not in " ".join(run_json(*compress, *given)["notes"])
    own = ("compress", "mynet:build", "--method", "nearest", "-o", "b.fewbits")
    assert "random" not in run(*own).stderr  # its own code may load them


def test_random_weights_are_told_before_a_training(here):
    train = ("train", "--data", "digits", "--epochs", 1, "--device", "cpu", "--force")
    result = run(*train, MODEL, "-o", "a.fewbits")
    assert "random" in result.stderr
    told = run_json(*train, MODEL, "-o", "b.fewbits", "--start", "a.fewbits")
    assert "random" not in " ".join(told["notes"])  # they come from the start


@pytest.mark.parametrize("verb", ["sensitivity", "sweep"])
def test_random_weights_are_told_where_harm_is_measured(here, verb):
    out = ("-o", "a.json") if verb == "sweep" else ()
    order = (verb, MODEL, "--data", "digits", "--bits", "2", *out, "--calibration-samples", 64)
    assert "random" in run(*order).stderr


# drops


@pytest.mark.parametrize("drop", ["0.5", "much", "101%"])
@pytest.mark.parametrize("verb", ["train", "compress"])
def test_both_verbs_read_a_drop_in_the_same_way(here, verb, drop):
    order = (verb, MODEL, "--data", "digits", "-o", "a.fewbits", "--max-drop", drop)
    message = usage_error(*order)
    assert "--max-drop" in message
    assert "0.5%" in message


def test_a_drop_of_a_training_is_in_points(here):
    order = ("train", MODEL, "--data", "digits", "-o", "a.fewbits", "--epochs", 1)
    run(*order, "--device", "cpu", "--no-metadata", "--max-drop", "0.5%")
    assert '"max_drop": 0.005' in (here / "a.fewbits.run" / "run.json").read_text()
