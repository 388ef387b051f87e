"""What the command line tells of mistakes that are easy to make, and what it tells unasked."""

from __future__ import annotations

import re
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import fewbits
from cli_runs import one_line_error, run, run_json
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


# methods


@pytest.mark.parametrize(("wrong", "right"), [("gpfqq", "gpfq"), ("hempp", "hemp")])
def test_an_unknown_method_is_told_of_all_kinds(here, wrong, right):
    compress = ("compress", MODEL, "--data", "digits", "-o", "a.fewbits", "--method", wrong)
    for message in (usage_error("methods", wrong), usage_error(*compress)):
        assert f"Did you mean '{right}'" in message
        assert "hemp" in message
        assert "nearest" in message


@pytest.mark.parametrize("verb", ["sensitivity", "sweep"])
def test_a_method_that_trains_is_told_where_it_goes(here, verb):
    how = ("--method", "hemp") if verb == "sensitivity" else ("--methods", "hemp", "-o", "a.json")
    told = run(verb, MODEL, "--data", "digits", *how, code=2).stderr
    assert "fewbits train" in " ".join(re.sub("[│╭╮╰╯─]", " ", told).split())


def test_bits_beside_a_budget_are_told_to_be_replaced_by_it(here):
    order = ("compress", MODEL, "--data", "digits", "-o", "a.fewbits", "--target-bytes", "10KB")
    message = usage_error(*order, "--bits", "3")
    assert "a budget replaces --bits" in message
    assert "'smallest'" in message
    message = usage_error(*order, "--set", "symmetric=true")
    assert "default" in message
    assert "'rdoq'" in message


# sources and outputs


def test_a_text_file_is_told_to_be_no_checkpoint(here):
    (here / "notes.pt").write_text("epoch 3: better\n")
    told = one_line_error(
        "compress", MODEL, "--method", "nearest", "-o", "a.fewbits", "--weights", "notes.pt"
    )
    assert "notes.pt: is not a checkpoint but a text file that begins with 'epoch 3" in told
    assert "torch.save" in told


@pytest.mark.parametrize(
    ("source", "meant"), [("mynet.py:build", "mynet:build"), ("nets/my.py:build", "nets.my:build")]
)
def test_a_file_in_place_of_a_module_is_told(here, source, meant):
    told = one_line_error("compress", source, "--method", "nearest", "-o", "a.fewbits")
    assert f"Did you mean '{meant}'?" in told


def test_a_share_to_prune_names_its_option(here):
    order = ("train", MODEL, "--data", "digits", "-o", "a.fewbits", "--prune", "90")
    message = usage_error(*order)
    assert "--prune" in message
    assert "0.9" in message


def test_a_file_where_the_demo_wants_a_folder(here):
    told = one_line_error("demo", "--out", "mynet.py")
    assert "'mynet.py' is a file" in told
    assert "older" in told


def test_an_export_must_end_as_one_of_the_exporters_files(here):
    fewbits.compress(load_model(MODEL).module, fewbits.Nearest(), source=MODEL).save("a.fewbits")
    told = one_line_error("export", "a.fewbits", "--data", "digits", "-o", "x.txt")
    known = ".gguf (gguf), .safetensors (safetensors), .pt (torchao), .onnx (onnx)"
    assert f"must end in {known}, or the exporter must be named" in told
    assert not (here / "x.txt").exists()


@pytest.mark.parametrize("name", ["build", "instance"])
def test_a_network_is_no_data(here, name):
    told = one_line_error("compress", MODEL, "--data", f"mynet:{name}", "-o", "a.fewbits")
    assert f"'mynet:{name}'" in told
    assert "network" in told
    assert "loader" in told


def test_a_training_that_fails_at_once_leaves_no_folder(here):
    np.savez("odd.npz", x=np.zeros((40, 5), np.float32), y=np.arange(40) % 10)
    order = ("train", "-o", "a.fewbits", "--epochs", 1, "--device", "cpu")
    run(*order, MODEL, "--data", "odd.npz", code=1)
    assert not (here / "a.fewbits.run").exists()
    (here / "kept").mkdir()
    (here / "kept" / "mine.txt").write_text("mine")
    run(*order, MODEL, "--data", "odd.npz", "--run", "kept", code=1)
    assert [file.name for file in (here / "kept").iterdir()] == ["mine.txt"]


# what is told unasked


def test_steps_that_changed_nothing_are_not_told(here):
    order = ("compress", MODEL, "--weights", "net.safetensors", "--data", "digits")
    result = run(*order, "-o", "a.fewbits", "--method", "gpfq")
    assert "note" not in result.stderr


def test_help_shows_options_whole_at_80_columns(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERMINAL_WIDTH", "80")
    cut = [
        (verb, line)
        for verb in ("compress", "train", "sweep", "sensitivity", "evaluate", "inspect", "decode")
        for line in run(verb, "--help").stdout.splitlines()
        if re.search(r"--\S*…|--\S*\.\.\.", line)
    ]
    assert not cut, cut


def test_saving_into_no_folder_names_it(here):
    coded = fewbits.compress(torch.nn.Linear(4, 4), fewbits.Nearest())
    with pytest.raises(FileNotFoundError, match=r"nodir.*does not exist"):
        coded.save("nodir/x.fewbits")
