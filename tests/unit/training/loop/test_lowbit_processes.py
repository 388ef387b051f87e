"""LowBit under plain DistributedDataParallel, and under torch.compile."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import fewbits

SCRIPT = Path(__file__).with_name("two_lowbit.py")


CASES = {
    "stochastic": {"weights": 2, "quantizer": "lsq", "schedule": "stochastic"},
    "two_stage": {"weights": 2, "quantizer": "lsq", "schedule": "two_stage"},
    "shifts": {"weights": 2, "quantizer": "lsq+", "schedule": "two_stage"},
    "outputs": {"weights": 2, "quantizer": "lsq", "schedule": "direct", "placement": "output"},
    "inputs alone": {"weights": 32, "quantizer": "lsq", "schedule": "direct"},
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_two_processes_agree_on_steps_and_gates(case, tmp_path):
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    settings, out = json.dumps(CASES[case]), tmp_path / "out.pt"
    command = [sys.executable, *launcher, str(SCRIPT), settings, str(out)]
    given = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(command, capture_output=True, text=True, env=given, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = torch.load(out, weights_only=True)
    one, two = found["both"]
    for what in ("steps", "shifts", "gates"):
        assert torch.equal(one[what], two[what]), what
    assert bool((one["gates"] == 0).any()) == (case == "stochastic")
    assert bool((one["shifts"] < 0).any()) == (case == "shifts")
    assert float(found["moved"]) > 0
    assert found["size"] > 0


@pytest.mark.filterwarnings("ignore:.*should not be instantiated")  # torch's own, in its compiler
@pytest.mark.slow
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
    lines = list(tuner.session._quantizers.values())
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
