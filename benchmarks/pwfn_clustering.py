"""A full clustering round of PWFN on 25 million weights: CPU seconds and memory.

    python benchmarks/pwfn_clustering.py [--weights 25500000] [--quick]

The weights are normal, in 54 layers of the sizes of ResNet-50 and with standard deviations between
0.01 and 0.1, deviations as at the start of a training. Each share is fixed in a process of its own,
on one thread; its peak is the high-water mark of that process, weights and interpreter included.
"""

from __future__ import annotations

import argparse
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import numpy as np

from fewbits.methods.trained.pwfn.rounds import FixingState, fix_more, round_record
from fewbits.ops.levels.powers_of_two import first_deviations
from fewbits.ops.weight_fixing import Ladder
from images import CACHE
from record import peak_rss_mb, write

GOAL = {"cpu_seconds_at_most": 15, "peak_rss_mb_at_most": 4000}
LAYERS = 54
GROWN = 0.03  # deviations late in a training


def weights(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return weights and first deviations, layer by layer."""
    generator = np.random.default_rng(0)
    shares = np.geomspace(1, 60, LAYERS)
    sizes = (shares / shares.sum() * count).astype(np.int64)
    sizes[-1] += count - sizes.sum()
    scales = np.geomspace(0.1, 0.01, LAYERS)
    layers = [
        (generator.standard_normal(size, dtype=np.float32) * np.float32(scale))
        for size, scale in zip(sizes, scales, strict=True)
    ]
    return np.concatenate(layers), np.concatenate([first_deviations(layer) for layer in layers])


def one(job: tuple[int, float, bool]) -> dict[str, Any]:
    """Fix a share of the weights, and say what that took."""
    count, share, grown = job
    values, deviations = weights(count)
    if grown:
        deviations += np.float32(GROWN)
    nothing = np.zeros(count, bool)
    row = FixingState(values, deviations, nothing, nothing)
    before, began = peak_rss_mb(), time.process_time()
    after, found = fix_more(row, share, Ladder(7), lock=True)
    record = round_record(after, found, 0.0, share, deviation=0.0, unit=2.0**7)
    return {
        "weights": count,
        "share": share,
        "deviations": "grown" if grown else "first",
        "cpu_seconds": time.process_time() - began,
        "peak_rss_mb": peak_rss_mb(),
        "peak_rss_mb_before": before,
        "picks": len(found.picks),
        "values": record.values,
    }


def main() -> None:
    """Measure each share, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--weights", type=int, default=25_500_000)
    parser.add_argument("--quick", action="store_true", help="a million weights, to .data/")
    options = parser.parse_args()
    count = 1_000_000 if options.quick else options.weights
    jobs = [(count, share, grown) for grown in (False, True) for share in (0.2, 0.9, 1.0)]
    rows = []
    for job in jobs:  # a new process each: memory has one high-water mark in a process
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            rows.append(pool.submit(one, job).result())
        print({k: round(v, 1) if isinstance(v, float) else v for k, v in rows[-1].items()})
    write(
        "pwfn_clustering",
        folder=CACHE if options.quick else None,
        model="54 synthetic layers",
        data="normal weights",
        goal=GOAL,
        rows=rows,
    )


if __name__ == "__main__":
    main()
