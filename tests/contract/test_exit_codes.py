"""The same mistake has the same exit code in every verb, with ``--json`` and without."""

from __future__ import annotations

import pytest
import typer

import fewbits
from cli_runs import run, run_json
from fewbits.cli import EXIT_CODES
from fewbits.cli.app import app
from fewbits.sources import load_model

MODEL = "builtin:digits-mlp"
USAGE, ERROR = 2, 1

# A command of every verb that only lacks the mistake.
NEAREST = ("--method", "nearest")
SWEEP = ("sweep", MODEL, "--data", "digits", "--methods", "nearest", "--bits", "3", "-o", "s.json")
COMMANDS = {
    "demo": ("demo",),
    "compress": ("compress", MODEL, *NEAREST, "-o", "new.fewbits"),
    "train": ("train", MODEL, "--data", "digits", "-o", "new.fewbits"),
    "sweep": SWEEP,
    "sensitivity": ("sensitivity", MODEL, "--data", "digits", *NEAREST),
    "evaluate": ("evaluate", "net.fewbits", "--data", "digits"),
    "inspect": ("inspect", "net.fewbits"),
    "decode": ("decode", "net.fewbits", "-o", "new.safetensors"),
    "export": ("export", "net.fewbits", "--data", "digits", "-o", "new.onnx"),
    "methods": ("methods",),
    "completion": ("completion", "bash"),
}
READS_FILES = ("evaluate", "inspect", "decode", "export")
READS_NETWORKS = ("compress", "train", "sweep", "sensitivity")
# Wrong values: of another kind, out of range, and of no known name.
WRONG = {
    "demo": [("--seed", "x"), ("--seed", "-1")],
    "compress": [
        *[("--bits", "x"), ("--bits", "99"), ("--method", "nope"), ("--recipe", "nope")],
        *[("--set", "nope=1"), ("--effort", "nope"), ("--target-bytes", "x"), ("--max-drop", "x")],
        *[("--activations", "99"), ("--threads", "-1"), ("--metric", "nope")],
    ],
    "train": [
        *[("--epochs", "0"), ("--method", "nope"), ("--method", "nearest"), ("--recipe", "nope")],
        *[("--set", "nope=1"), ("--optimizer", "nope"), ("--effort", "nope"), ("--log", "nope")],
    ],
    "sweep": [
        *[("--methods", "nope"), ("--methods", "hemp"), ("--bits", "x"), ("--bits", "99")],
        *[("--effort", "nope"), ("--split", "nope"), ("--engine", "nope"), ("--max-drop", "x")],
    ],
    "sensitivity": [
        *[("--method", "nope"), ("--method", "hemp"), ("--method", "rdoq"), ("--bits", "x")],
        *[("--bits", "99"), ("--effort", "nope"), ("--engine", "nope")],
    ],
    "evaluate": [("--min-accuracy", "x"), ("--metric", "nope"), ("--threads", "-1")],
    "inspect": [("--max-decoded-mib", "0")],
    "decode": [("--threads", "-1"), ("--max-decoded-mib", "x")],
    "export": [("--to", "nope"), ("--set", "nope=1"), ("--processor", "nope")],
    "methods": [("nope",)],
    "completion": [("nope",)],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("codes")
    fewbits.compress(load_model(MODEL).module, "nearest", source=MODEL).save(made / "net.fewbits")
    data = bytearray((made / "net.fewbits").read_bytes())
    data[len(data) // 2] ^= 255
    (made / "damaged.fewbits").write_bytes(data)
    (made / "damaged.safetensors").write_bytes(b"x" * 100)
    (made / "damaged.yaml").write_text("rules: [")
    (made / "exists.fewbits").touch()
    return made


@pytest.fixture(autouse=True)
def _here(folder, monkeypatch):
    monkeypatch.chdir(folder)


def fails(code, *args):
    """Both forms exit with this code, and neither prints anything else on standard output."""
    told = run_json(*args, code=code)
    assert set(told) == {"error"}
    assert run(*args, code=code).stdout == ""
    return told["error"]["message"]


def with_(verb, option, value):
    """The command with this option, in place of the same one if it has it."""
    command = list(COMMANDS[verb])
    if option in command:
        command[command.index(option) + 1] = value
        return command
    return [*command, option, value]


def test_every_verb_and_code_is_here():
    verbs = set(typer.main.get_command(app).commands)
    assert set(COMMANDS) == set(WRONG) == verbs
    assert set(EXIT_CODES) == {0, 1, 2, 3, 130}


@pytest.mark.parametrize("verb", COMMANDS)
def test_an_unknown_option_is_wrong_usage(verb):
    fails(USAGE, *COMMANDS[verb], "--no-such-option")


@pytest.mark.parametrize(
    ("verb", "wrong"), [(verb, wrong) for verb, all_ in WRONG.items() for wrong in all_], ids=str
)
def test_a_wrong_value_is_wrong_usage(verb, wrong):
    if len(wrong) == 1:
        fails(USAGE, verb, *wrong)
    else:
        fails(USAGE, *with_(verb, *wrong))


@pytest.mark.parametrize("verb", [*READS_FILES, *READS_NETWORKS, "completion"])
def test_a_missing_argument_is_wrong_usage(verb):
    fails(USAGE, verb)


@pytest.mark.parametrize("verb", READS_FILES)
@pytest.mark.parametrize("file", ["missing.fewbits", "damaged.fewbits", "."])
def test_a_missing_or_damaged_file_is_an_error(verb, file):
    command = [file if part == "net.fewbits" else part for part in COMMANDS[verb]]
    assert file in fails(ERROR, *command)


@pytest.mark.parametrize("verb", READS_NETWORKS)
@pytest.mark.parametrize("file", ["missing.safetensors", "damaged.safetensors"])
def test_a_missing_or_damaged_checkpoint_is_an_error(verb, file):
    assert file in fails(ERROR, *COMMANDS[verb], "--weights", file)


@pytest.mark.parametrize("verb", READS_NETWORKS)
def test_a_network_or_data_that_is_not_there_is_an_error(verb):
    command = [part.replace(MODEL, "builtin:nope") for part in COMMANDS[verb]]
    fails(ERROR, *command)
    fails(ERROR, *with_(verb, "--data", "npz:missing.npz"))


@pytest.mark.parametrize("verb", ["compress", "train"])
@pytest.mark.parametrize("file", ["missing.yaml", "damaged.yaml"])
def test_a_missing_or_damaged_recipe_is_an_error(verb, file):
    command = [part for part in COMMANDS[verb] if part not in NEAREST]
    fails(ERROR, *command, "--recipe", file)


@pytest.mark.parametrize(
    "command",
    [
        ("compress", MODEL, "--method", "gpfq", "-o", "new.fewbits"),
        ("compress", MODEL, *NEAREST, "--activations", "8", "-o", "new.fewbits"),
        ("compress", MODEL, *NEAREST, "--evaluate", "-o", "new.fewbits"),
        ("train", MODEL, "-o", "new.fewbits"),
        ("sweep", MODEL, "-o", "s.json"),
        ("sensitivity", MODEL),
        ("evaluate", "net.fewbits"),
        ("export", "net.fewbits", "-o", "new.onnx"),
    ],
    ids=lambda command: command[0],
)
def test_missing_calibration_or_other_data_is_wrong_usage(command):
    assert "data" in fails(USAGE, *command)


@pytest.mark.parametrize("verb", ["compress", "train", "sweep", "decode", "export"])
def test_an_output_that_cannot_be_written_is_an_error(verb):
    suffix = COMMANDS[verb][-1].rpartition(".")[2]
    fails(ERROR, *with_(verb, "-o", f"no-such-folder/new.{suffix}"))


@pytest.mark.parametrize("verb", ["compress", "train"])
def test_an_output_that_exists_is_an_error(verb):
    assert "--force" in fails(ERROR, *with_(verb, "-o", "exists.fewbits"))


@pytest.mark.parametrize("verb", ["demo", *READS_NETWORKS])
def test_a_report_that_cannot_be_written_is_an_error(verb):
    assert "html" in fails(ERROR, *COMMANDS[verb], "--report", "report.pdf")


def test_what_is_not_met_has_its_own_code():
    fails(3, *COMMANDS["compress"], "--target-bytes", "10")
    run("evaluate", "net.fewbits", "--data", "digits", "--min-accuracy", "100%", code=3)
