"""Exact files on the command line: the recipe "lossless", and the changes since another file."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from cli_runs import one_line_error, run, run_json
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


def test_changes_since_a_file_and_back(here):
    new = load_file("net.safetensors")
    first = next(iter(new))
    new[first].view(-1)[:9] += 0.5
    save_file(new, "new.safetensors")
    base = ("compress", MODEL, "--weights", "net.safetensors", "--method", "lossless")
    run(*base, "-o", "old.fewbits")
    told = run_json(
        *("compress", MODEL, "--weights", "new.safetensors", "--base", "old.fewbits"),
        *("-o", "change.fewbits"),
    )
    assert told["bytes"] == (here / "change.fewbits").stat().st_size < 1000
    for old in ("old.fewbits", "net.safetensors", "."):
        if old == ".":
            (here / "new.safetensors").rename(here / "new.kept")
        run("decode", "change.fewbits", "--base", old, "-o", "back.pt", "--force")
        assert same(torch.load("back.pt"), new)
        (here / "back.pt").unlink()
    assert "delta" in run("inspect", "change.fewbits").stdout
    assert "pass those as base" in one_line_error("decode", "change.fewbits", "-o", "b.pt")
    (here / "new.kept").rename(here / "new.safetensors")
    wrong = ("decode", "change.fewbits", "--base", "new.safetensors", "-o", "b.pt")
    assert "other weights" in one_line_error(*wrong)


def test_changes_take_no_method(here):
    options = ("--base", "net.safetensors", "-o", "x.fewbits", "--method", "gpfq")
    assert "--base writes the changes" in run("compress", MODEL, *options, code=2).output
