"""What a step of PWFN costs, as a ratio to a plain training step of ResNet-20, in one run.

Steps of both kinds take turns, so that a busy machine slows both. Prints the median ratio of
neighbouring steps and writes ``results/pwfn_cost.json``.

    python benchmarks/pwfn_cost.py [--steps 30] [--quick]
"""

from __future__ import annotations

import argparse
import copy

import torch

import fewbits
from hemp_cost import BATCH, turns
from images import CACHE
from networks import resnet20
from record import write

KINDS = {
    "growth, nothing fixed": (fewbits.PWFN(), 0.0),
    "growth, most fixed": (fewbits.PWFN(), 0.8),
    "alpha in the loss, nothing fixed": (fewbits.PWFN(alpha=2.0**-11), 0.0),
}
GOAL = {"ratio_at_most": 1.6}


def main() -> None:
    """Measure every kind against plain steps."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--quick", action="store_true", help="5 steps, to .data/")
    options = parser.parse_args()
    steps = 5 if options.quick else options.steps
    torch.manual_seed(0)
    net = resnet20().train()
    rows = []
    for name, (method, progress) in KINDS.items():
        ours = copy.deepcopy(net)
        tuner = fewbits.prepare(ours, method)
        tuner.advance(progress)
        plain, pwfn, ratio = turns(net, ours, tuner, steps)
        row = {"kind": name, "plain_seconds": plain, "pwfn_seconds": pwfn, "ratio": pwfn / plain}
        rows.append({**row, "median_ratio": ratio})
        print(f"{name}: {plain:.3f} s plain, {pwfn:.3f} s with PWFN, median ratio {ratio:.3f}")
    write(
        "pwfn_cost",
        folder=CACHE if options.quick else None,
        model="ResNet-20",
        data="random images; only time is measured",
        goal=GOAL,
        batch=BATCH,
        steps=steps,
        rows=rows,
    )


if __name__ == "__main__":
    main()
