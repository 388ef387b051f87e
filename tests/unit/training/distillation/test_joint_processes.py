"""Joint distillation under torchrun: one teacher, however many processes train it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).with_name("two_joint.py")


def start(*arguments, processes):
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = [sys.executable, *launcher, str(SCRIPT), *map(str, arguments)]
    given = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    return subprocess.run(command, capture_output=True, text=True, env=given, check=False)


def run(kind, out, *more, processes=2):
    done = start(kind, out, *more, processes=processes)
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(out, weights_only=True)


@pytest.mark.slow
def test_all_processes_have_the_teacher_that_one_would_have(tmp_path):
    one = run("plain", tmp_path / "one.pt", processes=1)
    two = run("plain", tmp_path / "two.pt", 2)
    assert two["teachers"][0] == two["teachers"][1]
    assert two["students"][0] == two["students"][1]
    assert one["steps"] == two["steps"] == 9
    for name, value in one["teacher"].items():
        torch.testing.assert_close(two["teacher"][name], value, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_killed_processes_resume_with_their_teacher(tmp_path):
    """Normalizations see a process's own samples, and yet end alike."""
    whole = run("normed", tmp_path / "whole.pt", 1, tmp_path / "whole")
    assert whole["teachers"][0] == whole["teachers"][1]
    part = tmp_path / "part"
    out = tmp_path / "part.pt"
    # Two calls a step: in the fifth of nine, after the checkpoint of the first epoch.
    assert start("normed", out, 1, part, 10, processes=2).returncode != 0
    assert (part / "last.pt").exists()
    again = run("normed", out, 1, part)
    assert again["teachers"] == whole["teachers"]
    assert again["students"] == whole["students"]
