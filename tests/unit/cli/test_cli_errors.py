"""What the command line says when something is wrong: exit codes, and JSON even then."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import fewbits
from cli_runs import one_line_error, run, run_json
from fewbits.cli.app import app
from fewbits.coded import Contents, GridTensor
from fewbits.container import encode, write
from fewbits.sources import load_model

MODEL = "builtin:digits-mlp"


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Work in a fresh folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "digits", "--method", "gpqf"], "Did you mean"),
        (["--data", "digits", "--set", "radios=mse"], "Did you mean 'radius'"),
        (["--data", "digits", "--bits", "99"], "bits must be"),
        ([], "needs calibration data: add --data"),
    ],
)
def test_options_that_no_method_takes_are_wrong_usage(here, arguments, message):
    arguments = ("compress", MODEL, "-o", "new.fewbits", *arguments)
    assert run(*arguments, code=2).stdout == ""
    found = run_json(*arguments, code=2)
    assert message in found["error"]["message"]
    assert set(found["error"]) == {"type", "message"}


@pytest.mark.parametrize(
    "arguments", [["compres"], ["inspect"], ["evaluate", "net.fewbits"], [], ["decode", "a", "b"]]
)
def test_json_tells_of_wrong_usage_of_any_verb(arguments):
    assert run_json(*arguments, code=2)["error"]["type"] == "UsageError"


def test_json_tells_of_errors_of_our_own(here, monkeypatch):
    def fail(*args, **kwargs):
        raise ZeroDivisionError("by\nzero")

    monkeypatch.setattr("fewbits.cli.jobs.compress.load_model", fail)
    arguments = ("compress", MODEL, "--method", "nearest", "-o", "new.fewbits")
    error = run_json(*arguments, code=1)["error"]
    assert error["type"] == "ZeroDivisionError"
    assert "by zero" in error["message"]
    assert "report" in error["message"]
    plain = CliRunner().invoke(app, arguments)
    assert isinstance(plain.exception, ZeroDivisionError)  # Python shows the traceback
    assert plain.stdout == ""


@pytest.mark.parametrize("code", ["0", "7", "'no data here'", ""])
def test_own_code_that_exits_is_an_error(here, code):
    sys.modules.pop("leaving_net", None)
    (here / "leaving_net.py").write_text(f"import sys\ndef build():\n    sys.exit({code})\n")
    arguments = ("compress", "leaving_net:build", "--method", "nearest", "-o", "new.fewbits")
    assert "exit" in one_line_error(*arguments)
    sys.modules.pop("leaving_net", None)
    error = run_json(*arguments, code=1)["error"]
    assert error["type"] == "SystemExit"
    assert code.strip("'") in error["message"]


def test_the_entry_point_prints_json_too(here):
    arguments = [sys.executable, "-m", "fewbits", "compress", "--json"]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert json.loads(done.stdout)["error"]["type"] == "UsageError"
    assert done.stderr == ""


def test_the_limit_of_decoded_bytes_can_be_raised(here):
    size = 2**24 + 2**17
    index = np.zeros((1, size), np.int32)
    grid = GridTensor((size,), "float16", index, np.ones(1, np.float32))
    write(encode(Contents({"w": grid})), "zeros.fewbits")
    arguments = ("decode", "zeros.fewbits", "-o", "zeros.pt")
    refused = one_line_error(*arguments)
    assert "--max-decoded-mib 97" in refused  # indices and values of every weight
    assert not (here / "zeros.pt").exists()
    run(*arguments, "--max-decoded-mib", "97")
    assert torch.load("zeros.pt")["w"].shape == (size,)
    coded = fewbits.compress(load_model(MODEL).module, fewbits.Nearest(), source=MODEL)
    coded.save("net.fewbits")
    judge = ("evaluate", "net.fewbits", "--data", "digits", "--max-decoded-mib")
    assert "met" not in run_json(*judge, "10")
    run_json(*judge, "0", code=2)
