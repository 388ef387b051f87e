"""Run by test_lowbit_processes.py under torchrun: plain DDP, a loop of its own, ten steps."""

from __future__ import annotations

import json
import sys
import warnings

import torch
from torch import distributed as dist
from torch import nn
from torch.nn import functional as F

import fewbits


def main(settings, out):
    """Train in two processes on unlike data, and write what both have."""
    settings = json.loads(settings)
    activation = nn.GELU if settings["quantizer"] == "lsq+" else nn.ReLU
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(6, 8),
        activation(),
        nn.Linear(8, 8),
        activation(),
        nn.Linear(8, 8),
        nn.Linear(8, 4),
    )
    method = fewbits.LowBit(activations=2, gates="layer", **settings)
    calibration = torch.randn(64 - 16 * rank, 6, generator=torch.Generator().manual_seed(rank))
    tuner = fewbits.prepare(net, method, calibration=calibration)
    model = nn.parallel.DistributedDataParallel(net)
    optimizer = torch.optim.SGD(tuner.groups(0.01), momentum=0.9)
    generator = torch.Generator().manual_seed(10 + rank)
    gates = []
    for number in range(10):
        tuner.advance(number / 10)
        x = torch.randn(16, 6, generator=generator)
        optimizer.zero_grad()
        F.cross_entropy(model(x), (x[:, 0] > 0).long()).backward()
        optimizer.step()
        tuner.step()
        parts = [*tuner.session._quantizers.values(), *tuner.session.inputs.values()]
        gates.append(torch.cat([part.gate for part in parts]))
    steps = torch.cat([part.step.value for part in parts])
    inputs = list(tuner.session.inputs.values())
    shifts = torch.cat([made.shift.detach() for made in inputs])
    moved = torch.cat([made.step.stretch.detach() for made in inputs]).abs().min()
    both = [None, None]
    dist.all_gather_object(both, {"steps": steps, "shifts": shifts, "gates": torch.stack(gates)})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        size = len(tuner.finish().data)
    if rank == 0:
        torch.save({"both": both, "moved": moved, "size": size}, out)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
