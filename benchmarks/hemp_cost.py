"""What a step of HEMP costs, as a ratio to a plain training step of ResNet-20, in one run.

Steps of both kinds take turns, so that a busy machine slows both. Prints the median ratio of
neighbouring steps and writes ``results/hemp_cost.json``.

    python benchmarks/hemp_cost.py [--steps 30]
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time

import torch
from torch import nn
from torch.nn import functional as F

import fewbits
from networks import resnet20
from record import write

BATCH = 128
KINDS = {
    "order 1": fewbits.HEMP(order=1),
    "order 2": fewbits.HEMP(order=2),
    "order 2, bits in the loss, quantized forward": fewbits.HEMP(
        order=2, spacing="even", forward="quantized", slope=1e-6
    ),
}


class Plain:
    """A tuner that does nothing."""

    penalty = staticmethod(lambda: 0)
    step = staticmethod(lambda: None)


def stepper(net: nn.Module, tuner: object):
    """Return a function that makes one training step and returns its seconds."""
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3, momentum=0.9)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(BATCH, 3, 32, 32, generator=generator)
    y = torch.randint(0, 10, (BATCH,), generator=generator)

    def step() -> float:
        start = time.perf_counter()
        optimizer.zero_grad()
        (F.cross_entropy(net(x), y) + tuner.penalty()).backward()
        optimizer.step()
        tuner.step()
        return time.perf_counter() - start

    return step


def turns(net: nn.Module, ours: nn.Module, tuner: object, steps: int) -> tuple[float, float, float]:
    """Return mean seconds of plain steps, of steps with ``tuner``, and the median ratio."""
    pair = stepper(copy.deepcopy(net), Plain), stepper(ours, tuner)
    for step in pair:
        step()
    times = [[step() for step in pair] for _ in range(steps)]
    plain, tuned = (sum(column) / steps for column in zip(*times, strict=True))
    return plain, tuned, statistics.median(after / before for before, after in times)


def main() -> None:
    """Measure every kind against plain steps."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=30)
    steps = parser.parse_args().steps
    torch.manual_seed(0)
    net = resnet20().train()
    rows = []
    for name, method in KINDS.items():
        ours = copy.deepcopy(net)
        plain, hemp, ratio = turns(net, ours, fewbits.prepare(ours, method), steps)
        row = {"kind": name, "plain_seconds": plain, "hemp_seconds": hemp, "ratio": hemp / plain}
        rows.append({**row, "median_ratio": ratio})
        print(f"{name}: {plain:.3f} s plain, {hemp:.3f} s with HEMP, ratio {hemp / plain:.3f}")
    write(
        "hemp_cost",
        model="ResNet-20",
        data="random images; only time is measured",
        batch=BATCH,
        steps=steps,
        rows=rows,
    )


if __name__ == "__main__":
    main()
