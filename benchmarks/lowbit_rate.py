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
import copy
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

import fewbits
from fewbits.recipe.training_config import Training
from fewbits.sources import DataSource, load_data
from fewbits.training.from_recipe import train
from images import CACHE
from kept import kept_runs
from networks import digits_network, top1
from record import Run, measured, write

NETWORKS = ("digits-mlp", "digits-cnn")
WORTHS = (0.3, 1.0)
EPOCHS, RATE = 20, 0.05
BITS = 4  # of inputs


@dataclass(frozen=True)
class _Job:
    network: str
    seed: int
    quick: bool


@dataclass(frozen=True)
class _Case:
    """What the rows of one job share."""

    job: _Job
    model: nn.Module
    data: DataSource
    test: tuple[Tensor, Tensor]

    def trained(self, method: fewbits.LowBit) -> fewbits.CodedModel:
        """Train from the float weights."""
        training = Training(epochs=1 if self.job.quick else EPOCHS, learning_rate=RATE)
        recipe = replace(fewbits.Recipe.of(method), train=training, seed=self.job.seed)
        recipe = replace(recipe, raw_dtype="float16")
        result = train(copy.deepcopy(self.model), recipe, self.data)
        assert result.coded is not None  # there is one process
        return result.coded

    def untrained(self, size: int) -> fewbits.CodedModel:
        """Compress without training to a size, with inputs of 4 bits."""
        calibration = list(self.data.batches("calibration", limit=1024, seed=self.job.seed))
        return fewbits.compress(
            self.model,
            "smallest",
            calibration,
            seed=self.job.seed,
            activations=BITS,
            target_bytes=size,
            metadata=False,
        )

    def run(self, row: str, work: Callable[[], fewbits.CodedModel], method: Any) -> Run:
        """Do the work of one row, and measure its file."""
        wall, cpu = time.perf_counter(), time.process_time()
        coded = work()
        seconds = time.perf_counter() - wall, time.process_time() - cpu
        run = measured(
            coded.without_metadata(),
            self.model,
            {"test": self.test},
            seconds=seconds,
            method=f"{self.job.network} | {row}",
            settings={"method": repr(method), "notes": list(coded.notes)},
            seed=self.job.seed,
            calibration_images=0,
        )
        accuracy = run.accuracy["test"]
        print(f"{run.method} | {run.seed}: {run.file_bytes:,} bytes, {accuracy:.2f} %", flush=True)
        return run


def _run(job: _Job) -> dict[str, Any]:
    """Run all rows of a network and seed."""
    torch.set_num_threads(1)
    data = load_data("digits")
    model = digits_network(job.network, 2 if job.quick else 16, job.seed)
    batches = list(data.batches("test"))
    test = torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])
    case, runs = _Case(job, model, data, test), []
    weights = sum(p.numel() for p in model.parameters() if p.dim() > 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # clipped inputs, and what is lost: in the notes
        for bits, worth in ((4, 0.0), (3, 0.0), (2, 0.0), *product((4, 2), WORTHS)):
            row = f"w{bits}, worth {worth:g}" if worth else f"w{bits}"
            slope = worth / (bits * weights)
            method = fewbits.LowBit(weights=bits, activations=BITS, first_last="same", slope=slope)
            runs.append(case.run(row, lambda m=method: case.trained(m), method))
            if worth:
                size, row = runs[-1].file_bytes, f"untrained, as {row}"
                runs.append(case.run(row, lambda s=size: case.untrained(s), "smallest"))
    return {"runs": [asdict(run) for run in runs], "float": top1(model, *test)}


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
