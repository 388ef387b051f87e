"""Exact files on the command line: the recipe "lossless", and the changes since another file."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from cli_runs import run, run_json
from fewbits.sources import load_model

MODEL = "builtin:digits-mlp"


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Work in a fresh folder with a checkpoint, net.safetensors."""
    monkeypatch.chdir(tmp_path)
    save_file(load_model(MODEL).module.state_dict(), "net.safetensors")
    return tmp_path


def same(first, second):
    assert first.keys() == second.keys()
    return all(torch.equal(first[name], second[name]) for name in first)


def test_compress_lossless_and_decode(here):
    told = run_json(
        "compress", MODEL, "--weights", "net.safetensors", "--method", "lossless", "-o", "n.fewbits"
    )
    assert told["bytes"] == (here / "n.fewbits").stat().st_size
    assert told["bytes"] < 0.97 * (here / "net.safetensors").stat().st_size
    run_json("decode", "n.fewbits", "-o", "back.safetensors")
    assert same(load_file("back.safetensors"), load_file("net.safetensors"))
    shown = run("inspect", "n.fewbits")
    assert "less than half" not in shown.stderr


def test_lossless_takes_no_settings(here):
    done = run("compress", MODEL, "--method", "lossless", "--bits", "4", "-o", "n", code=2)
    assert "takes no settings" in done.output
