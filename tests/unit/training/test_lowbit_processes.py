"""LowBit under plain DistributedDataParallel, and under torch.compile."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import fewbits

SCRIPT = Path(__file__).with_name("two_lowbit.py")


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["stochastic", "two_stage"])
def test_two_processes_agree_on_steps_and_gates(schedule, tmp_path):
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [sys.executable, *launcher, str(SCRIPT), schedule, str(tmp_path / "out.pt")]
    given = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(command, capture_output=True, text=True, env=given, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = torch.load(tmp_path / "out.pt", weights_only=True)
    one, two = found["both"]
    assert torch.equal(one["steps"], two["steps"])
    assert torch.equal(one["gates"], two["gates"])
    assert bool((one["gates"] == 0).any()) == (schedule == "stochastic")
    assert found["size"] > 0


@pytest.mark.filterwarnings("ignore:.*should not be instantiated")  # torch's own, in its compiler
def test_gates_do_not_compile_anew_and_results_are_eager_s():
    torch.manual_seed(0)
    net = nn.Sequential(*(nn.Linear(4, 4) for _ in range(4)))
    x = torch.randn(16, 4)
    method = fewbits.LowBit(
        weights=2,
        activations=2,
        schedule="8/8, 4/4, 2/4, 2/2",
        first_last="same",
    )
    tuner = fewbits.prepare(net, method, calibration=x)
    lines = list(tuner.course._lines.values())
    graphs = []

    def counting(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    fast = torch.compile(net, backend=counting)
    net.train()
    for number in range(16):
        for place, line in enumerate(lines):
            line.gate.fill_(number >> place & 1)
            line.gated = True
        with torch.no_grad():
            torch.testing.assert_close(fast(x), net(x))
    one_width = len(graphs)
    for progress in (0.25, 0.5, 0.75):
        tuner.advance(progress)
        with torch.no_grad():
            torch.testing.assert_close(fast(x), net(x))
    torch._dynamo.reset()
    assert one_width <= 2
    assert len(graphs) <= 6
    assert copy.deepcopy(net)(x) is not None
