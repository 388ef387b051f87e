"""Files from elsewhere on the command line: no endless work, nothing of yours replaced."""

from __future__ import annotations

import json

import numpy as np
import pytest

from cli_runs import run
from fewbits.coded import Contents, RawTensor
from fewbits.container import encode, write
from fewbits.sources import DATA, MODELS


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def raw(*shape):
    """Values that no codec packs away: the file is as long as they are."""
    values = np.random.default_rng(0).integers(256, size=4 * int(np.prod(shape)), dtype=np.uint8)
    values[3::4] = 0x3F  # finite floats
    return RawTensor(shape, "float32", values, "float32")


def test_names_that_are_tied_do_not_multiply_what_decode_writes(here):
    tensor = raw(1000, 1000)
    aliases = {f"w{k}": "w" for k in range(400)}
    write(encode(Contents({"w": tensor}, aliases)), "net.fewbits")
    words = ("decode", "net.fewbits", "-o", "net.safetensors")
    refused = run(*words, "--all-names", code=1).stderr
    assert "401 tensors" in refused
    assert "--max-decoded-mib" in refused
    assert not (here / "net.safetensors").exists()
    run(*words)
    assert (here / "net.safetensors").stat().st_size < 4_100_000
    run("decode", "net.fewbits", "-o", "net.pt")
    assert (here / "net.pt").stat().st_size < 4_100_000


def test_metadata_of_a_file_is_abbreviated(here):
    tensor = raw(3)
    metadata = {"note": list(range(200_000))}
    write(encode(Contents({"w": tensor}, metadata=metadata)), "net.fewbits")
    told = run("inspect", "net.fewbits").stdout
    assert len(told) < 5000
    assert json.loads(run("inspect", "net.fewbits", "--json").stdout)


def test_a_run_from_elsewhere_replaces_no_other_file(here):
    words = ["train", "builtin:digits-mlp", "--data", "digits", "--epochs", "1", "--device", "cpu"]
    run(*words, "-o", "net.fewbits")
    (here / "mine.txt").write_text("mine")
    order = here / "net.fewbits.run" / "run.json"
    order.write_text(json.dumps({**json.loads(order.read_text()), "out": "mine.txt"}))
    refused = run("train", "--resume", "net.fewbits.run", "--device", "cpu", code=1).stderr
    assert "not a .fewbits file" in refused
    assert (here / "mine.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("source", "data"),
    [
        ("datasets:load_dataset", "datasets:mnist"),
        ("npz:load", "npz:here.npz"),
        ("plugged:build", "plugged:here"),
        ("plugged:build", "digits"),
        ("json:loads", "mynet:data"),
    ],
)
def test_a_scheme_of_the_data_is_no_module_that_a_file_may_name(here, monkeypatch, source, data):
    def never(spec, *more):
        raise AssertionError("called")

    for registry in (DATA, MODELS):
        monkeypatch.setitem(registry._entries, "plugged", never)
    write(encode(Contents({"w": raw(3)}, metadata={"source": source})), "net.fewbits")
    refused = run("evaluate", "net.fewbits", "--data", data, code=1).stderr
    assert f"Add --model {source} if you trust it" in refused
