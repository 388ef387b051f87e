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
    assert "the recipe quantizes nothing" in done.output


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


def test_exact_changes_take_no_other_options(here):
    options = ("--base", "net.safetensors", "-o", "x.fewbits", "--seed", "1")
    assert "--base writes the changes" in run("compress", MODEL, *options, code=2).output
    trained = ("--data", "digits", "--epochs", "1", "--method", "hemp")
    done = run("compress", MODEL, *options[:4], *trained, code=2)
    assert "--base takes the difference" in done.output


def test_changes_at_a_rate(here):
    new = load_file("net.safetensors")
    generator = torch.Generator().manual_seed(0)
    for value in new.values():
        value.add_(1e-3 * torch.randn(value.shape, generator=generator))
    save_file(new, "new.safetensors")
    what = ("compress", MODEL, "--weights", "new.safetensors", "--base", "net.safetensors")
    run(*what, "-o", "exact.fewbits")
    out = ("--data", "digits", "--evaluate", "-o", "change.fewbits")
    told = run_json(*what, "--method", "nearest", "--bits", "3", *out)
    assert told["bytes"] == (here / "change.fewbits").stat().st_size
    assert told["bytes"] < 0.3 * (here / "exact.fewbits").stat().st_size
    how = ("change.fewbits", "--base", "net.safetensors")
    found = run_json("evaluate", *how, "--data", "digits")
    assert found["accuracy"] == told["accuracy"]["compressed"]["accuracy"]
    assert (
        "--base makes whole weights"
        in run("evaluate", *how, "--data", "digits", "--lazy", code=2).output
    )
    run("decode", *how, "-o", "back.safetensors")
    back, old = load_file("back.safetensors"), load_file("net.safetensors")
    for name, value in back.items():
        gone = (new[name] - old[name]).square().sum()
        assert (new[name] - value).square().sum() < 0.2 * gone
    small = ("--data", "digits", "--target-bytes", str(told["bytes"] // 2), "-o", "small.fewbits")
    shown = run(*what, *small).stdout
    assert (here / "small.fewbits").stat().st_size <= told["bytes"] // 2
    assert "of the weights, as changes of a base" in shown


def test_an_adapter(here):
    generator = torch.Generator().manual_seed(0)
    shapes = {"q.lora_A.weight": (8, 64), "q.lora_B.weight": (96, 8)}
    state = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    (here / "adapter").mkdir()
    save_file(state, here / "adapter" / "adapter_model.safetensors")
    (here / "adapter" / "adapter_config.json").write_text("{}")
    what = ("compress", "adapter", "--method", "lora", "-o", "a.fewbits")
    told = run_json(*what, "--set", "error=0.1")
    assert told["bytes"] == (here / "a.fewbits").stat().st_size < 0.25 * told["float_bytes"]
    run("decode", "a.fewbits", "-o", "a.safetensors")
    back = load_file("a.safetensors")
    whole, found = (s["q.lora_B.weight"] @ s["q.lora_A.weight"] for s in (state, back))
    assert 0.08 < (found - whole).norm() / whole.norm() < 0.101
    for options in (("--bits", "4"), ("--set", "step=3")):
        assert "--method lora" in run(*what, "--force", *options, code=2).output
