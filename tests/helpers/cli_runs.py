"""The command line in this process: what it printed, its JSON, its one line of error."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import typer.testing
from typer.testing import CliRunner

from fewbits.cli.app import app

__all__ = ["one_line_error", "run", "run_json"]

# Typer makes all commands anew for every run, which takes longer than most verbs.
typer.testing._get_command = cache(typer.testing._get_command)


def run(*args: object, code: int = 0) -> Any:
    """Run ``fewbits ARGS`` and expect this exit code."""
    result = CliRunner().invoke(app, [str(arg) for arg in args])
    assert result.exit_code == code, (result.output, result.exception)
    return result


def run_json(*args: object, code: int = 0) -> Any:
    """The same with ``--json``: what it printed, parsed."""
    return json.loads(run(*args, "--json", code=code).stdout)


def one_line_error(*args: object) -> str:
    """Run what must fail, with one line on stderr and nothing else; return it."""
    result = run(*args, code=1)
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    return result.stderr
