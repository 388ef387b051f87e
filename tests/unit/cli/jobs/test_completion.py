"""Completion scripts: bash completes with it; those of the other shells name everything."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest
import typer

from cli_runs import run, run_json
from fewbits.cli.app import app
from fewbits.cli.jobs.completion import SHELLS
from fewbits.coding import EFFORTS
from fewbits.exporters import EXPORTERS
from fewbits.methods import METHODS, post_training_methods, training_methods

GROUP = typer.main.get_command(app)


@pytest.fixture(scope="module")
def bash(tmp_path_factory):
    """A function that completes the words of a line, the last of them begun."""
    program = shutil.which("bash")
    if program is None:
        pytest.skip("bash is not here")
    folder = tmp_path_factory.mktemp("completion")
    (folder / "fewbits.bash").write_text(run("completion", "bash").stdout)

    def complete(*words):
        quoted = " ".join(f"'{word}'" for word in ("fewbits", *words))
        code = (
            f"set -u; source fewbits.bash; COMP_WORDS=({quoted}); COMP_CWORD={len(words)}; "
            "_fewbits; printf '%s\\n' \"${COMPREPLY[@]-}\""
        )
        told = subprocess.run(
            [program, "--norc", "-c", code], cwd=folder, capture_output=True, text=True, check=True
        )
        assert told.stderr == ""
        return told.stdout.split()

    return complete


def test_bash_completes_verbs(bash):
    assert bash("") == [*GROUP.commands, "--version", "--help"]
    assert bash("se") == ["sensitivity"]
    assert bash("--v") == ["--version"]
    assert bash("nothing") == []


@pytest.mark.parametrize("verb", GROUP.commands)
def test_bash_completes_all_options_of_a_verb(bash, verb):
    named = {
        name
        for param in GROUP.commands[verb].params
        for name in (*param.opts, *param.secondary_opts)
        if name.startswith("-")
    }
    assert set(bash(verb, "-")) == named | {"--help"}
    assert bash(verb, "--js") == ["--json"]


def test_bash_completes_names(bash):
    assert bash("compress", "net:build", "--method", "") == [*METHODS, "smallest", "lossless"]
    assert bash("compress", "--method", "gp") == ["gpfq", "gptq"]
    assert bash("compress", "--method", "=", "gp") == ["gpfq", "gptq"]
    assert bash("compress", "--method", "=") == [*METHODS, "smallest", "lossless"]
    assert bash("compress", "--recipe", "") == ["smallest", "lossless"]
    assert bash("train", "--method", "") == training_methods()
    assert bash("sensitivity", "--method", "") == post_training_methods()
    assert bash("sweep", "--methods", "gpfq,ne") == ["gpfq,nearest"]
    assert bash("export", "net.fewbits", "--to", "") == [*EXPORTERS]
    assert bash("compress", "--effort", "") == [*EFFORTS]
    assert bash("methods", "") == [*METHODS]
    assert bash("completion", "") == [*SHELLS]


def test_bash_leaves_files_to_the_shell(bash):
    assert bash("inspect", "") == []
    assert bash("compress", "--out", "") == []
    assert bash("compress", "-o", "-") == []
    assert "-o default" in run("completion", "bash").stdout


def test_other_packages_are_completed(monkeypatch):
    class Mine(METHODS["nearest"]):
        name = "mine"

    METHODS.register("mine")(Mine)
    try:
        assert run("completion", "bash").stdout.count(" mine") >= 3
    finally:
        METHODS.unregister("mine")


@pytest.mark.parametrize("shell", SHELLS)
def test_every_script_names_everything(shell):
    text = run_json("completion", shell)["script"]
    for verb, command in GROUP.commands.items():
        assert re.search(rf"\b{verb}\b", text)
        for param in command.params:
            for name in param.opts:
                told = f"-l {name[2:]}" if shell == "fish" and name[:2] == "--" else name
                told = f"-s {name[1:]}" if shell == "fish" and name[:2] != "--" else told
                assert told in text or not name.startswith("-")
    for name in METHODS:
        assert name in text
    assert text.count("'") % 2 == 0 or shell != "fish"


def test_an_unknown_shell_is_wrong_usage():
    told = run_json("completion", "tcsh", code=2)["error"]["message"]
    assert "bash, zsh, fish" in told
