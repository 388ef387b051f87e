"""Summary lines of the command line: what is quantized, what is not, and warnings below half."""

from __future__ import annotations

import json
import sys

import pytest

import cli_runs

NET = """
import torch
from torch import nn


class Odd(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.scale = nn.Parameter(torch.ones(400, 64))
        self.layer = nn.Linear(64, 10)

    def forward(self, x):
        return self.layer(x.flatten(1) * self.scale.mean(0))


def most_in_float():
    return Odd()


def two():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))


def loaders():
    g = torch.Generator().manual_seed(0)
    make = lambda n: [(torch.rand(n, 1, 8, 8, generator=g), torch.arange(n) % 10)]
    return {"train": make(64), "test": make(32), "selection": make(32), "calibration": make(64)}
"""
LOW = "2.4% of 26,250 weights quantized, largest left in float scale (25,600): no layer kind takes"
HIGH = "97.8% of 1,210 weights quantized, largest left in float 1.bias (16): biases are kept"


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.delitem(sys.modules, "summary_net", raising=False)
    (tmp_path / "summary_net.py").write_text(NET)

    yield lambda words: cli_runs.run(*words.split())
    sys.modules.pop("summary_net", None)


VERBS = {
    "compress": "compress summary_net:{net} --method nearest -o again.fewbits --force",
    "dry run": "compress summary_net:{net} --method nearest --dry-run",
    "evaluate": "evaluate net.fewbits --data summary_net:loaders",
    "inspect": "inspect net.fewbits",
    "sweep": "sweep summary_net:{net} --data summary_net:loaders --methods nearest --bits 4 "
    "-o sweep.json",
    "sensitivity": "sensitivity summary_net:{net} --data summary_net:loaders --bits 4",
    "train": "train summary_net:{net} --data summary_net:loaders --epochs 1 -o trained.fewbits "
    "--hold-out 0.5 --force",
}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize(("net", "line"), [("most_in_float", LOW), ("two", HIGH)])
def test_every_summary_tells_the_share_and_the_largest_left(verb, net, line, run):
    run(f"compress summary_net:{net} --method nearest -o net.fewbits")
    words = VERBS[verb].format(net=net)
    told = run(words)
    low = line == LOW
    if not low and verb in ("evaluate", "inspect"):  # the file need not tell why, but what it is
        line = line.removesuffix(": biases are kept") + ": a vector"
    assert line in told.stdout
    assert (f"warning: less than half of the network is compressed: {LOW}" in told.stderr) == low
    assert told.stderr.count("warning: less") == low
    found = json.loads(run(f"{words} --json").stdout)
    covered = found["points"][0]["quantized"] if verb == "sweep" else found["quantized"]
    assert covered["share"] == pytest.approx(0.0244 if low else 0.9785, abs=1e-4)
    assert covered["largest_left"]["name"] == ("scale" if low else "1.bias")
    assert covered["largest_left"]["reason"] or verb in ("evaluate", "inspect")
    if verb != "sweep":  # which has measured it before
        assert [LOW in text for text in found.get("warnings", [])] == [True] * low


def test_what_a_start_loses_is_told_on_standard_error_and_in_json(run):
    run(
        "compress summary_net:two --data summary_net:loaders --activations 8 -o net.fewbits "
        "--method gpfq"
    )
    words = (
        "train summary_net:two --data summary_net:loaders --start net.fewbits --epochs 1 "
        "--hold-out 0.5 -o on.fewbits --force"
    )
    told = run(words)
    assert "warning: not kept: 2 quantized inputs (1, 3) of the start are" in told.stderr
    assert "note: start: 2 quantized inputs (1, 3)" in told.stderr
    found = json.loads(run(f"{words} --json").stdout)
    assert "2 quantized inputs" in found["warnings"][0]
    assert any("2 quantized inputs" in text for text in found["notes"])
    resumed = run("train summary_net:two --data summary_net:loaders --resume on.fewbits.run")
    assert "warning: not kept" in resumed.stderr
