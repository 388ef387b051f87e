"""The theorem of GPFQ as measured: error of a ternary layer by the number of its inputs.

    python benchmarks/gpfq_width.py

Lybrand and Saab 2021, as others quote it: with m Gaussian rows of data and N inputs, the relative
error of a neuron's outputs is at most about sqrt(m log N / N), so it falls as N grows, while that
of rounding does not. Here weights are uniform in [-1, 1], and levels are -1, 0 and 1. ``slope``:
of log error over log N by least squares, from the mean of the seeds.
"""

from __future__ import annotations

import argparse
import math
import time
from statistics import mean, stdev
from typing import Any

import torch

import fewbits
from fewbits.engine.layers.layer import LayerMatrix
from fewbits.engine.layers.statistics import StatisticsAccumulator
from images import CACHE
from record import write

ROWS, NEURONS, SEEDS = 64, 64, (0, 1, 2)
WIDTHS = (128, 256, 512, 1024, 2048, 4096, 8192)
CASES: dict[str, Any] = {
    "nearest": fewbits.Nearest(bits=2),
    "gpfq as published": fewbits.GPFQ(bits=2, passes=0, order="natural", bias_correction=False),
    "gpfq": fewbits.GPFQ(bits=2, bias_correction=False),
    "gptq": fewbits.GPTQ(bits=2, bias_correction=False),
    "qronos": fewbits.Qronos(bits=2, bias_correction=False),
}
SOLVED = 2048  # widest for methods that factor a matrix of width times width


def _error(method: Any, width: int, seed: int) -> float:
    """Return the relative error of the outputs of a layer of so many inputs."""
    generator = torch.Generator().manual_seed(1000 * width + seed)
    inputs = torch.randn(1, ROWS, width, generator=generator)
    weight = 2 * torch.rand(1, NEURONS, width, generator=generator) - 1
    weight[..., 0] = 1.0  # so that every neuron has these levels
    accumulator = StatisticsAccumulator(1, width, weight)
    accumulator.add(inputs, inputs)
    quantized = method.encode(LayerMatrix("layer", weight, accumulator.finish(), seed))
    wanted = inputs @ weight.mT
    return float((inputs @ quantized.dequantize().mT - wanted).norm() / wanted.norm())


def _slope(widths: list[int], errors: list[float]) -> float:
    x, y = [math.log(w) for w in widths], [math.log(e) for e in errors]
    centre, height = mean(x), mean(y)
    rise = sum((a - centre) * (b - height) for a, b in zip(x, y, strict=True))
    return rise / sum((a - centre) ** 2 for a in x)


def main() -> None:
    """Measure and write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="narrow layers, one seed")
    options = parser.parse_args()
    torch.set_num_threads(1)
    seeds, widths = ((0,), WIDTHS[:3]) if options.quick else (SEEDS, WIDTHS)
    rows, summary = [], []
    for name, method in CASES.items():
        solves = name in ("gptq", "qronos")
        own = [width for width in widths if not solves or width <= SOLVED]
        started = time.process_time()
        for width in own:
            errors = [_error(method, width, seed) for seed in seeds]
            rows.append(
                {
                    "case": name,
                    "width": width,
                    "error_mean": mean(errors),
                    "error_deviation": stdev(errors) if len(errors) > 1 else None,
                }
            )
        found = [row["error_mean"] for row in rows if row["case"] == name]
        summary.append(
            {
                "case": name,
                "slope": round(_slope(own, found), 3),
                "cpu_seconds": round(time.process_time() - started, 1),
            }
        )
        print(summary[-1], [f"{error:.4f}" for error in found], flush=True)
    write(
        "gpfq_width",
        model=f"{NEURONS} neurons with uniform weights, levels -1, 0 and 1",
        data=f"{ROWS} Gaussian rows, {len(seeds)} seeds",
        folder=CACHE if options.quick else None,
        summary=summary,
        measured=rows,
    )


if __name__ == "__main__":
    main()
