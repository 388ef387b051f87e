"""Two processes under torchrun give what one gives with the same global batch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).with_name("two_processes.py")


def start(*arguments, processes, script=SCRIPT):
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = [sys.executable, *launcher, str(script), *map(str, arguments)]
    given = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    return subprocess.run(command, capture_output=True, text=True, env=given, check=False)


def run(out, *more, processes, kind=None, script=SCRIPT):
    done = start(*filter(None, [kind]), out, *more, processes=processes, script=script)
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(out, weights_only=True)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["indexed", "loader"])
def test_two_processes_do_what_one_does(tmp_path, kind):
    one = run(tmp_path / "one.pt", processes=1, kind=kind)
    two = run(tmp_path / "two.pt", processes=2, kind=kind)
    assert one["history"].keys() == two["history"].keys()
    for name, value in one["history"].items():
        assert two["history"][name] == pytest.approx(value, abs=1e-4), name
    for name, value in one["model"].items():
        assert torch.allclose(value, two["model"][name], atol=1e-5), name
    assert torch.allclose(one["scale"], two["scale"], atol=1e-6)
    assert not torch.equal(one["model"]["3.weight"], one["start"]["3.weight"])
    # Each process says what it ends with: the weights are the same to the last bit.
    assert two["digests"][0] == two["digests"][1]


@pytest.mark.slow
@pytest.mark.parametrize("killed_at", [3, 7, 11])  # of twelve: within, before the end of, an epoch
def test_killed_processes_resume_to_the_same_bits(tmp_path, killed_at):
    whole = run(tmp_path / "whole.pt", tmp_path / "whole", processes=2, kind="indexed")
    out, folder = tmp_path / "broken.pt", tmp_path / "broken"
    assert start("indexed", out, folder, killed_at, processes=2).returncode != 0
    assert not out.exists()
    again = run(out, folder, 0, "resume", processes=2, kind="indexed")
    assert again["digests"] == whole["digests"]
    assert torch.equal(again["scale"], whole["scale"])


@pytest.mark.slow
def test_pwfn_draws_apart_and_fixes_together(tmp_path):
    script = SCRIPT.with_name("pwfn_processes.py")
    found = run(tmp_path / "two.pt", processes=2, script=script)
    assert found["digests"][0] == found["digests"][1]
    assert found["noise"][0] != found["noise"][1]
    assert found["deviation"][1] > found["deviation"][0]
    assert found["fixed"] == 64 * 32 + 32 + 32 * 10 + 10
