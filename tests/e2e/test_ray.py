"""The package ray itself: a cluster on this machine gives what one process gives."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from safetensors.torch import save_file

from fewbits.sources import load_data, load_model
from fewbits.sources.demo_network import train_classifier

pytest.importorskip("ray", reason="the package ray is not installed")
pytestmark = pytest.mark.slow

MODEL = "builtin:digits-mlp"
NETWORK = (MODEL, "--weights", "net.safetensors", "--data", "digits")
QUICK = ("--calibration-samples", "200", "--effort", "fast", "--cpus", "1", "--json")
RAY = ("--engine", "ray", "--ray-address", "local")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ray")
    trained = train_classifier(load_model(MODEL).module, load_data("digits"), epochs=4)
    save_file(trained.state_dict(), folder / "net.safetensors")
    return folder


def found(home, *arguments):
    command = [sys.executable, "-m", "fewbits", *arguments]
    done = subprocess.run(command, cwd=home, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_sweep(home):
    points = ("--methods", "nearest,rdoq", "--bits", "2,3", "--slopes", "1e-4", "--max-drop", "2%")
    sweep = ("sweep", *NETWORK, *QUICK, *points)
    both = found(home, *sweep, "-o", "a.json"), found(home, *sweep, "-o", "b.json", *RAY)
    alone, spread = ([{**p, "seconds": 0} for p in one["points"]] for one in both)
    assert len(alone) == 4
    assert spread == alone


def test_sensitivity(home):
    command = ("sensitivity", *NETWORK, *QUICK, "--bits", "2,4", "--selection", "digits")
    assert found(home, *command, *RAY) == found(home, *command)
