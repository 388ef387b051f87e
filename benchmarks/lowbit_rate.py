"""LowBit with bits in the loss: 4-bit inputs of layers and a small file from one training.

    python benchmarks/lowbit_rate.py [--quick] [--minutes 60]

Two networks for scikit-learn's digits, three seeds (of the float network, the calibration and the
training), 20 epochs at a learning rate of 0.05 from the float weights for every row. Inputs of
layers have 4 bits:

- "w4", "w3", "w2": ``LowBit`` with so many bits a weight, in all layers, and no rate term;
- "w4, worth W" and "w2, worth W": the same and a slope, at which the bits of all indices are worth
  W of the loss together if each has as many bits as the grid;
- "untrained": the recipe `smallest` without training, with inputs calibrated to 4 bits, at the
  size of each row with a slope.

Accuracy is that of the reloaded file on the 449 test images, which neither train, nor calibrate,
nor select. Files hold no metadata.
"""

from __future__ import annotations

import argparse
import statistics
import warnings
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from typing import Any

import fewbits
from fewbits.recipe.training_config import Training
from images import CACHE
from kept import kept_runs
from networks import top1
from record import Run, write
from training_case import digits_case

NETWORKS = ("digits-mlp", "digits-cnn")
WORTHS = (0.3, 1.0)
EPOCHS, RATE = 20, 0.05
BITS = 4  # of inputs


@dataclass(frozen=True)
class _Job:
    network: str
    seed: int
    quick: bool


def _run(job: _Job) -> dict[str, Any]:
    """Run all rows of a network and seed."""
    case, runs = digits_case(job.network, job.network, 2 if job.quick else 16, job.seed), []
    training = Training(epochs=1 if job.quick else EPOCHS, learning_rate=RATE, relative_clip=0)
    weights = sum(p.numel() for p in case.model.parameters() if p.dim() > 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # clipped inputs, and what is lost: in the notes
        for bits, worth in ((4, 0.0), (3, 0.0), (2, 0.0), *product((4, 2), WORTHS)):
            row = f"w{bits}, worth {worth:g}" if worth else f"w{bits}"
            slope = worth / (bits * weights)
            method = fewbits.LowBit(weights=bits, activations=BITS, first_last="same", slope=slope)
            train = partial(case.trained, method, training, raw_dtype="float16")
            runs.append(case.run(row, train, method))
            if worth:
                settings = {"activations": BITS, "target_bytes": runs[-1].file_bytes}
                compress = partial(case.untrained, "smallest", metadata=False, **settings)
                runs.append(case.run(f"untrained, as {row}", compress, "smallest"))
    return {"runs": [asdict(run) for run in runs], "float": top1(case.model, *case.test)}


def _summary(runs: list[Run], floats: dict[str, list[float]]) -> list[dict[str, Any]]:
    """Return means and standard deviations over the seeds."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.method, []).append(run)
    rows = []
    for method, group in groups.items():
        network, row = method.split(" | ")
        accuracy = [run.accuracy["test"] for run in group]
        rows.append(
            {
                "network": network,
                "row": row,
                "float": statistics.mean(floats[network]),
                "file_bytes": statistics.mean(run.file_bytes for run in group),
                "accuracy": statistics.mean(accuracy),
                "deviation": statistics.stdev(accuracy) if len(accuracy) > 1 else 0.0,
                "seeds": len(group),
            }
        )
    return rows


def main() -> None:
    """Run everything, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=1e6, help="begin no run after so long")
    parser.add_argument("--earlier", nargs="*", default=[], help="commits whose runs are taken too")
    parser.add_argument("--quick", action="store_true", help="seed 0, an epoch; writes to .data/")
    options = parser.parse_args()
    seeds = (0,) if options.quick else (0, 1, 2)
    jobs = [_Job(network, seed, options.quick) for network, seed in product(NETWORKS, seeds)]
    found = kept_runs("lowbit_rate", _run, jobs, minutes=options.minutes, earlier=options.earlier)
    done = [(job, result) for job, result in zip(jobs, found, strict=True) if result is not None]
    runs = [Run(**run) for _, result in done for run in result["runs"]]
    floats: dict[str, list[float]] = {}
    for job, result in done:
        floats.setdefault(job.network, []).append(result["float"])
    summary = _summary(runs, floats)
    for row in summary:
        print(
            f"{row['network']} | {row['row']:26} {row['file_bytes']:9,.0f} bytes "
            f"{row['accuracy']:6.2f} % +- {row['deviation']:.2f}"
        )
    write(
        "lowbit_rate",
        folder=CACHE if options.quick else None,
        model="digits-cnn and digits-mlp, trained here",
        data="scikit-learn digits: 1,348 training images, a tenth held out; 449 test images",
        commits=sorted({result["commit"] for _, result in done}),
        summary=summary,
        missing=len(jobs) - len(done),
        runs=runs,
    )


if __name__ == "__main__":
    main()
