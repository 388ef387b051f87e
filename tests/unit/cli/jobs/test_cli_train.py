"""``fewbits train`` and ``compress --epochs``: the file, its accuracy, killed and resumed."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from safetensors.torch import save_file

import fewbits
from cli_runs import run, run_json
from fewbits.sources import load_data, load_model
from fewbits.sources.demo_network import train_classifier
from fewbits.training.loop.stepper import Stepper

MODEL = "builtin:digits-mlp"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    made = tmp_path_factory.mktemp("train") / "net.safetensors"
    model = train_classifier(load_model(MODEL).module, load_data("digits"), epochs=12)
    save_file(model.state_dict(), made)
    return made


@pytest.fixture
def here(checkpoint, tmp_path, monkeypatch):
    shutil.copy(checkpoint, tmp_path / "net.safetensors")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def order(out, *more, epochs=3):
    start = ["train", MODEL, "--weights", "net.safetensors", "--data", "digits", "-o", out]
    return [*start, "--epochs", epochs, "--batch-size", "64", "--device", "cpu", *more]


def test_it_writes_a_file_and_tells_of_that_file(here):
    more = ("--lr", "0.02", "--set", "levels=7", "--log", "csv,tensorboard", "--evaluate")
    told = run_json(*order("net.fewbits", *more, epochs=4))
    path = here / "net.fewbits"
    assert told["bytes"] == path.stat().st_size == told["size"]["file_bytes"]
    judged = run_json("evaluate", path, "--data", "digits")
    assert told["accuracy"]["compressed"]["accuracy"] == judged["accuracy"]
    assert judged["accuracy"] > told["accuracy"]["float32"]["accuracy"] - 0.02
    training = told["training"]
    assert training["steps"] == 4 * (1213 // 64)
    assert len(training["history"]) == 4
    assert training["history"][training["epoch"] - 1]["held_out"] == training["held_out"]
    stored = fewbits.inspect(path).metadata
    assert stored["recipe"]["train"]["epochs"] == 4
    assert stored["source"] == MODEL
    with (here / "net.fewbits.run" / "metrics.csv").open() as file:
        assert len(list(csv.DictReader(file))) >= 4
    assert list((here / "net.fewbits.run" / "tensorboard").iterdir())


def test_people_read_what_was_kept(here):
    shown = run(*order("net.fewbits", "--no-metadata", "--start", "float", epochs=1)).stdout
    assert fewbits.inspect(here / "net.fewbits").metadata == {}
    assert "epoch 1 of 1 kept: accuracy" in shown
    assert "held-out training samples" in shown
    assert f"{(here / 'net.fewbits').stat().st_size:,} bytes" in shown


FLOAT = ("--start", "float")  # takes no time: where the start does not matter


@pytest.mark.parametrize(("killed_at", "start"), [(1, FLOAT), (25, ())])
def test_killed_and_resumed_it_is_the_same_file(here, monkeypatch, killed_at, start):
    more = ("--augment", "crop", "--prune", "0.3", "--distil", "0.5", "--save-seconds", "0", *start)
    run(*order("whole.fewbits", *more))
    step, done = Stepper.step, 0

    def mortal(self, *args):
        nonlocal done
        done += 1
        if done == killed_at:
            raise KeyboardInterrupt
        return step(self, *args)

    monkeypatch.setattr(Stepper, "step", mortal)
    run(*order("killed.fewbits", *more), code=130)
    assert not (here / "killed.fewbits").exists()
    run("train", "--resume", "killed.fewbits.run", "--device", "cpu")
    whole, killed = ((here / f"{name}.fewbits").read_bytes() for name in ("whole", "killed"))
    assert whole == killed
    run("train", "--resume", "killed.fewbits.run", "--device", "cpu")
    assert (here / "killed.fewbits").read_bytes() == whole


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.0, 0.7])
def test_a_real_kill_does_no_harm(here, seconds):
    command = [sys.executable, "-m", "fewbits"]
    given = {**os.environ, "OMP_NUM_THREADS": "1"}
    words = [str(word) for word in order("killed.fewbits", "--save-seconds", "0", epochs=30)]
    process = subprocess.Popen([*command, *words], env=given)
    last = here / "killed.fewbits.run" / "last.pt"
    while not last.exists():
        assert process.poll() is None
        time.sleep(0.01)
    time.sleep(seconds)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (here / "killed.fewbits").exists()
    resume = [*command, "train", "--resume", "killed.fewbits.run", "--device", "cpu"]
    subprocess.run(resume, env=given, check=True)
    whole = [str(word) for word in order("whole.fewbits", "--save-seconds", "0", epochs=30)]
    subprocess.run([*command, *whole], env=given, check=True)
    names = ("killed.fewbits", "whole.fewbits")
    assert (here / names[0]).read_bytes() == (here / names[1]).read_bytes()


def test_compress_goes_on_by_training(here):
    start = ["compress", MODEL, "--weights", "net.safetensors", "--data", "digits"]
    told = run_json(*start, "--method", "gpfq", "--bits", "3", "--epochs", "1", "-o", "a.fewbits")
    assert told["training"]["epochs"] == 1
    first = here / "a.fewbits.run" / "start.fewbits"
    plain = run_json(*start, "--method", "gpfq", "--bits", "3", "-o", "b.fewbits", "--effort",
                     "fast")  # fmt: skip
    assert plain["bytes"] == first.stat().st_size
    told = run_json(*start, "--method", "hemp", "--epochs", "1", "-o", "c.fewbits")
    assert told["bytes"] == (here / "c.fewbits").stat().st_size
    recipe = fewbits.inspect(here / "a.fewbits").metadata["recipe"]
    assert recipe["rules"][0]["method"] == "gpfq"
    assert recipe["train"]["method"] == "hemp"
    (here / "r.yaml").write_text(
        "rules: [{match: '*', method: nearest, bits: 4}]\n"
        "train: {method: hemp, epochs: 1, batch_size: 64}\n"
    )
    assert run_json(*start, "--recipe", "r.yaml", "-o", "d.fewbits")["training"]["steps"] == 18


def test_training_starts_from_a_file(here):
    run("compress", MODEL, "--weights", "net.safetensors", "--method", "nearest", "--bits", "4",
        "-o", "start.fewbits")  # fmt: skip
    told = run_json(*order("net.fewbits", "--start", "start.fewbits", epochs=1))
    assert told["bytes"] < (here / "start.fewbits").stat().st_size * 1.2


def test_training_starts_from_a_recipe_or_from_floats(here):
    rules = {}
    for start in (None, "smallest", "float"):
        words = () if start is None else ("--start", start)
        told = run_json(*order(f"{start}.fewbits", *words, epochs=1))
        rules[start] = fewbits.inspect(here / f"{start}.fewbits").metadata["recipe"]["rules"]
        begun = any("HEMP began at float weights" in note for note in told["notes"])
        assert begun == (start == "float")
    assert rules[None] == rules["smallest"] != rules["float"]
    named = [(here / f"{name}.fewbits").read_bytes() for name in (None, "smallest")]
    assert named[0] == named[1]
    assert (here / "None.fewbits").stat().st_size < (here / "float.fewbits").stat().st_size / 2


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["train", "--data", "digits", "-o", "x.fewbits"], "MODEL"),
        (["train", MODEL, "-o", "x.fewbits"], "--data"),
        (["train", MODEL, "--data", "digits"], "-o"),
        (order("x.fewbits", "--method", "gpfq"), "does not train"),
        (order("x.fewbits", "--start", "lossless"), "quantizes nothing"),
        (order("x.fewbits", "--recipe", "r.yaml", "--start", "smallest"), "--start FILE"),
        (order("x.fewbits", "--method", "hmp"), "Did you mean 'hemp'"),
        (order("x.fewbits", "--set", "level=3"), "Did you mean 'levels'"),
        (order("x.fewbits", "--optimizer", "adam"), "sgd"),
        (order("x.fewbits", "--log", "paper"), "tensorboard"),
        (order("x.fewbits", "--recipe", "r.yaml", "--method", "hemp"), "replaces --method"),
        (["train", "--resume", "x.run", "--epochs", "3"], "leave out '--epochs'"),
        (["compress", MODEL, "--data", "digits", "-o", "x.fewbits", "--epochs", "1",
          "--target-bytes", "9KB"], "cannot be combined"),
    ],
)  # fmt: skip
def test_wrong_use_is_told(here, words, told):
    shown = " ".join(run(*words, code=2).output.replace("│", " ").split())
    assert told in shown


def test_errors_are_told(here):
    words = "r.yaml", "rules: [{match: '*', method: nearest}]"
    (here / words[0]).write_text(words[1])
    assert "does not train" in run(*order("x.fewbits", "--recipe", "r.yaml"), code=1).stderr
    assert "no run to resume" in run("train", "--resume", ".", code=1).stderr
    (here / "run.json").write_text('{"schema": "other"}')
    assert "cannot be read" in run("train", "--resume", ".", code=1).stderr
    run(*order("net.fewbits", *FLOAT, epochs=1))
    (here / "net.fewbits").unlink()
    shown = " ".join(run(*order("net.fewbits", *FLOAT, epochs=1), code=2).output.split())
    assert "holds a run" in shown
    run(*order("net.fewbits", "--force", *FLOAT, epochs=1))


def test_other_weights_are_not_resumed(here, monkeypatch):
    def dead(self, *args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Stepper, "step", dead)
        run(*order("net.fewbits", *FLOAT, epochs=1), code=130)
    run(*order("net.fewbits", "--force", *FLOAT, epochs=1))
    save_file(load_model(MODEL).module.state_dict(), here / "net.safetensors")
    told = run("train", "--resume", "net.fewbits.run", "--device", "cpu", code=1).stderr
    assert "another network" in told


OWN = """
from pathlib import Path
Path("imported").touch()
from fewbits.sources import load_data, load_model
def build(): return load_model("builtin:digits-mlp").module
def data(): return load_data("digits")
"""


def test_a_folder_alone_has_no_code_imported(here, monkeypatch):
    (here / "ownnet.py").write_text(OWN)
    monkeypatch.setattr(sys, "path", [*sys.path])
    start = ["train", "ownnet:build", "--data", "ownnet:data", "-o", "net.fewbits"]
    run(*start, "--epochs", "1", "--device", "cpu", *FLOAT)
    first = (here / "net.fewbits").read_bytes()
    (here / "imported").unlink()
    sys.modules.pop("ownnet")
    resume = ["train", "--resume", "net.fewbits.run", "--device", "cpu"]
    told = " ".join(run(*resume, code=1).stderr.split())
    assert "would import and call code. Add ownnet:build --data ownnet:data if you trust it" in told
    told = " ".join(run(*resume, "--data", "digits", code=2).output.replace("│", " ").split())
    assert "whose data is 'ownnet:data'. Got 'digits'" in told
    assert not (here / "imported").exists()
    run("train", "ownnet:build", *resume[1:], "--data", "ownnet:data")
    assert (here / "net.fewbits").read_bytes() == first
    run(*resume, "--data", "ownnet:data")  # one that names the module is enough, as in evaluate
    sys.modules.pop("ownnet")


@pytest.mark.parametrize("key", ["model", "data", "selection"])
def test_nor_by_a_forged_description(here, key):
    (here / "ownnet.py").write_text(OWN)
    run(*order("net.fewbits", *FLOAT, epochs=1))
    file = here / "net.fewbits.run" / "run.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), key: "ownnet:build"}))
    for more in ([], ["--device", "cpu"]):
        told = run("train", "--resume", "net.fewbits.run", *more, code=1).stderr
        assert "would import and call code" in told
    assert not (here / "imported").exists()
