"""Time the rounding kernels against one matrix product of the same flops, in the same run.

Writes ``benchmarks/results/kernel_speed.json``: for each kernel and size the
seconds (best of several, wall clock and processor time), the flops counted as the docstrings of
:mod:`fewbits.ops` do, and the ratio to a float32 product of that many flops. The product is
``(n, N) @ (N, N)``, scaled by the flops where it has more or fewer.

Run: ``python benchmarks/kernel_speed.py --threads 2``
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fewbits.ops.levels.grid import Grid
from fewbits.ops.rounding.path_following import follow_gram, follow_samples
from fewbits.ops.rounding.second_order import gptq
from record import write

SIZES = ((1024, 1024), (2048, 2048), (4096, 4096), (512, 4608))
GRID = Grid(15)


def best_of(runs: tuple[Callable[[], object], ...], repeats: int) -> list[tuple[float, float]]:
    """Return, per run, the least wall-clock and the least processor seconds of several turns.

    The runs take turns, so that a machine busy with other work disturbs them alike.
    """
    walls: list[list[float]] = [[] for _ in runs]
    busies: list[list[float]] = [[] for _ in runs]
    for _ in range(repeats):
        for run, wall, busy in zip(runs, walls, busies, strict=True):
            started, worked = time.perf_counter(), time.process_time()
            run()
            wall.append(time.perf_counter() - started)
            busy.append(time.process_time() - worked)
    return [(min(wall), min(busy)) for wall, busy in zip(walls, busies, strict=True)]


def kernels(n: int, columns: int) -> list[tuple[str, float, Callable[[], object]]]:
    """Return (name, flops, run) of every kernel at one size: n neurons of so many columns."""
    generator = torch.Generator().manual_seed(n + columns)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    weight, rows = normal(1, n, columns) * 2, columns // 2
    many = normal(1, 2 * columns, columns).relu_()
    noisy = many + 0.05 * normal(*many.shape)
    second, cross = noisy.mT @ noisy, noisy.mT @ many
    x, y = many[:, :rows].contiguous(), noisy[:, :rows].contiguous()
    order = second.diagonal(dim1=1, dim2=2).argsort(dim=1, descending=True)
    project_ = GRID.project_
    damping = 0.01 * second.diagonal(dim1=1, dim2=2).mean(1)
    gram, sample = 2.0 * n * columns**2, 6.0 * rows * n * columns
    cholesky = columns**3 / 3
    return [
        ("gram", gram, lambda: follow_gram(weight, second, cross, project_)),
        ("gram, X is X~", gram / 2, lambda: follow_gram(weight, second, second, project_)),
        ("gram, ordered", gram, lambda: follow_gram(weight, second, cross, project_, order=order)),
        ("sample", sample, lambda: follow_samples(weight, x, y, project_)),
        ("sample, ordered", sample, lambda: follow_samples(weight, x, y, project_, order=order)),
        ("gptq", gram / 2 + cholesky, lambda: gptq(weight, second, project_, damping=damping)),
    ]


def measure(n: int, columns: int, repeats: int) -> list[dict[str, Any]]:
    """Return one record per kernel at one size."""
    left, right = torch.randn(n, columns), torch.randn(columns, columns)
    records: list[dict[str, Any]] = []
    for name, flops, run in kernels(n, columns):
        run()
        timed = best_of((run, lambda: left @ right), repeats)
        (wall, busy), (gemm_wall, gemm_busy) = timed
        scale = flops / (2.0 * n * columns**2)
        records.append(
            {
                "kernel": name,
                "neurons": n,
                "columns": columns,
                "rows": columns // 2 if name.startswith("sample") else None,
                "flops": flops,
                "seconds": wall,
                "processor_seconds": busy,
                "gemm_seconds": gemm_wall * scale,
                "gemm_processor_seconds": gemm_busy * scale,
                "ratio": wall / (gemm_wall * scale),
                "processor_ratio": busy / (gemm_busy * scale),
            }
        )
        print(f"n={n:5} N={columns:5} {name:16} {wall:8.4f} s  {records[-1]['ratio']:5.2f} x GEMM")
    return records


def main() -> None:
    """Measure all sizes and write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    with torch.no_grad():
        measured = [r for n, columns in SIZES for r in measure(n, columns, options.repeats)]
    write(
        "kernel_speed",
        model="random weights and inputs, float32",
        data=f"{GRID.levels} levels; best of {options.repeats}, against a GEMM of the same flops",
        load_average=os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        measured=measured,
    )


if __name__ == "__main__":
    main()
