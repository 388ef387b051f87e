"""What a transform, error feedback and the rate are worth at equal bytes: ResNet-20, CIFAR-10.

    python benchmarks/transform_ablation.py [--parts arms forms ...] [--jobs 2]

Each part has a record of its own, ``transform_PART.json``: "arms" (each basis with and without
feedback and rate, at budgets of bytes), "forms" (the paper's blocks: identity, KLT, ELT),
"baselines" (variants and other methods at equal bytes), "metric" (what the inputs' own covariance
is worth in the metric, judged on training images that neither calibrate nor test), "steps" (steps
by output error and by weight error). Calibration: 1,024 training images. ``drift`` is the mean
squared change of the centred logits of test images.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import torch

import transform_cases as cases
from images import CACHE
from record import write
from transform_steps import compare_steps

Row = dict[str, Any]
SEEDS = (0, 1, 2)


def _arm(name: str, seed: int, starts: dict[int, float]) -> list[Row]:
    """One arm at every budget; trials of one budget serve the next."""
    torch.set_num_threads(1)
    bench = cases.bench(seed)
    rows, trials = [], []
    for budget in cases.budgets_of(name):
        start = starts.get(budget, 3e-4)
        found = bench.at_budget(cases.ARMS[name], budget, start, trials)
        row = {"arm": name, "seed": seed, "budget": budget} | found
        rows.append(row)
        print(row, flush=True)
    return rows


def _form(name: str, seed: int, slope: float) -> Row:
    torch.set_num_threads(1)
    found = cases.bench(seed).at_slope(cases.FORMS[name] | {"slope": slope})
    row = {"form": name, "seed": seed, "slope": slope} | found
    print(row, flush=True)
    return row


def _baseline(name: str, seed: int) -> list[Row]:
    torch.set_num_threads(1)
    found = cases.bench(seed).baseline(name)
    rows = [{"baseline": name, "seed": seed} | row for row in found]
    print(rows, flush=True)
    return rows


def _metric(name: str, seed: int, slope: float) -> Row:
    torch.set_num_threads(1)
    row = {"metric": name, "seed": seed, "slope": slope}
    row |= cases.bench(seed).with_metric(name, slope)
    print(row, flush=True)
    return row


def _steps(seed: int) -> Row:
    torch.set_num_threads(1)
    row = {"seed": seed} | compare_steps(cases.bench(seed))
    print(row, flush=True)
    return row


def _arms(pool: ProcessPoolExecutor, seeds: list[int]) -> list[Row]:
    """The first seed finds the slopes at which the others begin."""
    rows: list[Row] = []
    for group in (seeds[:1], seeds[1:]):
        starts = {
            name: {row["budget"]: row["slope"] for row in rows if row["arm"] == name}
            for name in cases.ARMS
        }
        tasks = [(name, seed, starts[name]) for seed in group for name in cases.ARMS]
        rows += [row for found in _all(pool, _arm, tasks) for row in found]
    return rows


def _all(pool: ProcessPoolExecutor, function: Any, tasks: list[Any]) -> Iterable[Any]:
    return pool.map(function, *zip(*tasks, strict=True)) if tasks else []


def _forms(pool: ProcessPoolExecutor, seeds: list[int]) -> list[Row]:
    tasks = [(n, seed, s) for seed in seeds for n in cases.FORMS for s in cases.FORM_SLOPES]
    return list(_all(pool, _form, tasks))


def _baselines(pool: ProcessPoolExecutor, seeds: list[int]) -> list[Row]:
    tasks = [(name, seed) for seed in seeds for name in cases.BASELINES]
    return [row for found in _all(pool, _baseline, tasks) for row in found]


def _metrics(pool: ProcessPoolExecutor, seeds: list[int]) -> list[Row]:
    few = seeds[:2]
    tasks = [(n, seed, s) for seed in few for n in cases.METRICS for s in cases.METRIC_SLOPES]
    return list(_all(pool, _metric, tasks))


def _step_rows(pool: ProcessPoolExecutor, seeds: list[int]) -> list[Row]:
    return list(_all(pool, _steps, [(seed,) for seed in seeds]))


PARTS = {
    "arms": _arms,
    "forms": _forms,
    "baselines": _baselines,
    "metric": _metrics,
    "steps": _step_rows,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--jobs", type=int, default=2, help="processes of one thread")
    options = parser.parse_args()
    for part in options.parts:
        with ProcessPoolExecutor(options.jobs, get_context("spawn")) as pool:
            rows = PARTS[part](pool, options.seeds)
        write(
            f"transform_{part}",
            folder=None if options.seeds == list(SEEDS) else CACHE,
            model="ResNet-20 (He et al. 2015), 91.73 %, all layers quantized",
            data="CIFAR-10: 1,024 training images calibrate; see the script for what judges",
            measured=rows,
        )


if __name__ == "__main__":
    main()
