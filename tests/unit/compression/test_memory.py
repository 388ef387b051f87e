"""Weights are shared with the caller's network until they change, and codes are narrow."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

CHILD = r"""
import gc, re
from pathlib import Path
import torch, fewbits
from torch import nn

torch.set_num_threads(1)

def size(key):
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(rf"{key}:\s+(\d+)", status).group(1))

def network(layers, width):
    return nn.Sequential(*(nn.Linear(width, width) for _ in range(layers))).eval()

def compress(network, width):
    batches = [torch.randn(64, width) for _ in range(2)]
    return fewbits.compress(network, fewbits.GPTQ(bits=4), batches)

compress(network(2, 400), 400)  # loads and compiles what any run needs
model = network(64, 400)
gc.collect()
Path("/proc/self/clear_refs").write_text("5")  # the peak starts here
before = size("VmRSS")
compress(model, 400)
print((size("VmHWM") - before) / sum(p.nbytes for p in model.parameters()))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
@pytest.mark.slow
def test_compressing_in_memory_needs_little_more_than_the_quantized_network():
    path = os.pathsep.join(filter(None, sys.path))
    run = subprocess.run(
        [sys.executable, "-c", CHILD],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    # 1 for the quantized weights, 0.25 for their codes, and what one layer needs.
    assert 1 < float(run.stdout) < 2.2
