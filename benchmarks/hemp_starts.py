"""HEMP with default settings after every compressed start, on scikit-learn's digits.

    python benchmarks/hemp_starts.py [--quick] [--minutes 60]

For each network, start and seed (of the float network, the calibration and the training):

- "before": the compressed network that training starts from;
- "hemp": ``fewbits train`` with defaults from there, 6 epochs; from "float" 10, as --start float;
- "control": the same with the entropy term off: ``HEMP(slope=0)``, from float ``rate_weight=0``;
- "last epoch": HEMP again without held-out samples: nothing chooses an epoch or falls back;
- "untrained": the recipe `smallest` without training, at the size of "hemp", for the starts
  "float" and "smallest".

Files hold no metadata, whose length says nothing of a method. Accuracy is that of the reloaded file
on the 449 test images, which neither train, nor calibrate, nor select. A result is worse than its
start if it is beaten in bytes or accuracy and better in neither; ``verdicts`` say so for means over
the seeds. Any option but --minutes and --earlier explores: the record goes to .data/.
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
from fewbits.methods import GPFQ, HEMP, PWFN, RDOQ, Transform
from fewbits.recipe.training_config import Training
from fewbits.sources import DataSource, load_data
from fewbits.training.from_recipe import train
from images import CACHE
from kept import kept_runs
from networks import digits_network, top1
from record import Run, measured, write

NETWORKS = ("digits-mlp", "digits-cnn")
STARTS: dict[str, Any] = {
    "float": None,
    "transform": Transform(),
    "transform, slope 3e-3": Transform(slope=3e-3),
    "pwfn": PWFN(),
    "gpfq, 2 bits": GPFQ(bits=2),
    "smallest": "smallest",
    "rdoq, slope 3e-3": RDOQ(slope=3e-3),
}
COMPARED = ("float", "smallest")
EPOCHS = 6
NOISE = 0.3  # points: two standard errors where 4 of the 3 x 449 answers change sides
BYTES_NOISE = 0.001  # of the bytes: a byte or two of a file of 2 kB


@dataclass(frozen=True)
class _Job:
    network: str
    start: str
    seed: int
    quick: bool


@dataclass(frozen=True)
class _Case:
    """What the parts of one job share."""

    job: _Job
    model: nn.Module
    data: DataSource
    test: tuple[Tensor, Tensor]
    start: fewbits.CodedModel | None

    def trained(self, method: HEMP, **settings: Any) -> fewbits.CodedModel:
        """Return what ``fewbits train`` gives from the start."""
        epochs = (1 if self.job.quick else EPOCHS) if self.start or self.job.quick else None
        training = Training(**({} if epochs is None else {"epochs": epochs}), **settings)
        recipe = fewbits.Recipe.of(method)
        recipe = replace(recipe, train=training, seed=self.job.seed)
        result = train(copy.deepcopy(self.model), recipe, self.data, start=self.start)
        assert result.coded is not None  # there is one process
        return result.coded

    def run(self, part: str, work: Callable[[], fewbits.CodedModel], method: Any) -> Run:
        """Do the work of one part, and measure its file."""
        wall, cpu = time.perf_counter(), time.process_time()
        coded = work()
        seconds = time.perf_counter() - wall, time.process_time() - cpu
        job = self.job
        run = measured(
            coded.without_metadata(),
            self.model,
            {"test": self.test},
            seconds=seconds,
            method=f"{job.network} | {job.start} | {part}",
            settings={"method": repr(method), "notes": list(coded.notes)},
            seed=job.seed,
            calibration_images=0,
        )
        accuracy = run.accuracy["test"]
        print(f"{run.method} | {run.seed}: {run.file_bytes:,} bytes, {accuracy:.2f} %", flush=True)
        return run


def _start(model: nn.Module, data: DataSource, job: _Job) -> fewbits.CodedModel | None:
    method = STARTS[job.start]
    if method is None:
        return None
    if method == PWFN():
        recipe = replace(fewbits.Recipe.of(method), train=Training(), seed=job.seed)
        return train(copy.deepcopy(model), recipe, data).coded
    calibration = data.batches("calibration", limit=1024, seed=job.seed)
    return fewbits.compress(model, method, calibration, seed=job.seed)


def _run(job: _Job) -> dict[str, Any]:
    """Run all parts of a job."""
    torch.set_num_threads(1)
    data = load_data("digits")
    model = digits_network(job.network, 2 if job.quick else 16, job.seed)
    batches = list(data.batches("test"))
    test = torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what a start loses is in the notes
        case = _Case(job, model, data, test, _start(model, data, job))
        runs = []
        if case.start is not None:
            runs.append(case.run("before", lambda: case.start, STARTS[job.start]))
        runs.append(case.run("hemp", lambda: case.trained(HEMP()), HEMP()))
        plain = HEMP(rate_weight=0) if case.start is None else HEMP(slope=0.0)
        runs.append(case.run("control", lambda: case.trained(plain), plain))
        last = lambda: case.trained(HEMP(), hold_out=0)  # noqa: E731
        runs.append(case.run("last epoch", last, HEMP()))
        if job.start in COMPARED:
            size = runs[-3].file_bytes
            runs.append(case.run("untrained", lambda: _untrained(case, size), "smallest"))
    return {"runs": [asdict(run) for run in runs], "float": top1(model, *test)}


def _untrained(case: _Case, size: int) -> fewbits.CodedModel:
    calibration = case.data.batches("calibration", limit=1024, seed=case.job.seed)
    return fewbits.compress(
        case.model,
        "smallest",
        calibration,
        seed=case.job.seed,
        target_bytes=size,
        metadata=False,
    )


def _summary(runs: list[Run], floats: dict[str, float]) -> list[dict[str, Any]]:
    """Return means over the seeds, and the verdicts."""
    table: dict[tuple[str, str], dict[str, list[Run]]] = {}
    for run in runs:
        network, start, part = run.method.split(" | ")
        table.setdefault((network, start), {}).setdefault(part, []).append(run)
    rows = []
    for (network, start), parts in table.items():
        means = {
            part: {
                "file_bytes": statistics.mean(run.file_bytes for run in group),
                "accuracy": statistics.mean(run.accuracy["test"] for run in group),
                "by_seed": [[run.file_bytes, run.accuracy["test"]] for run in group],
            }
            for part, group in parts.items()
        }
        seeds = len(parts["hemp"])
        compared = [(part, "before") for part in ("hemp", "control", "last epoch")]
        compared.append(("hemp", "untrained"))
        verdicts = {
            f"{part} is worse than {other}": _worse(means[part], means[other])
            for part, other in compared
            if other in means
        }
        about = {"network": network, "start": start, "seeds": seeds}
        rows.append({**about, "float": floats[network], "means": means, "verdicts": verdicts})
    return rows


def _worse(after: dict[str, Any], before: dict[str, Any]) -> bool:
    """Return whether a point is beaten beyond noise in one respect, and better in none."""
    more = after["file_bytes"] / before["file_bytes"] - 1
    lost = before["accuracy"] - after["accuracy"]
    beaten = more > BYTES_NOISE or lost > NOISE
    return bool(beaten and more >= -BYTES_NOISE and lost >= 0)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=NETWORKS)
    parser.add_argument("--starts", nargs="+", default=list(STARTS), choices=list(STARTS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--minutes", type=float, default=1e6, help="begin no run after so long")
    parser.add_argument("--earlier", nargs="*", default=[], help="commits whose runs are taken too")
    parser.add_argument("--quick", action="store_true", help="seed 0, an epoch")
    options = parser.parse_args()
    if options.quick:
        options.seeds = [0]
    free = {"minutes": options.minutes, "earlier": options.earlier}
    standard = vars(parser.parse_args([])) | free
    options.explores = vars(options) != standard
    return options


def main() -> None:
    """Run everything, and write the record."""
    options = _options()
    jobs = [
        _Job(network, start, seed, options.quick)
        for network, seed, start in product(options.networks, options.seeds, options.starts)
    ]
    found = kept_runs("hemp_starts", _run, jobs, minutes=options.minutes, earlier=options.earlier)
    done = [(job, result) for job, result in zip(jobs, found, strict=True) if result is not None]
    runs = [Run(**run) for _, result in done for run in result["runs"]]
    by_network: dict[str, dict[int, float]] = {}
    for job, result in done:
        by_network.setdefault(job.network, {})[job.seed] = result["float"]
    floats = {name: statistics.mean(found.values()) for name, found in by_network.items()}
    summary = _summary(runs, floats)
    for row in summary:
        print(row["network"], "|", row["start"])
        for part, means in row["means"].items():
            print(f"    {part:12} {means['file_bytes']:9,.0f} bytes {means['accuracy']:6.2f} %")
        print("   ", *(name for name, found in row["verdicts"].items() if found), sep="  ")
    write(
        "hemp_starts",
        folder=CACHE if options.explores else None,
        model="digits-cnn and digits-mlp, trained here",
        data="scikit-learn digits: 1,348 training images, a tenth held out; 449 test images",
        float_accuracy=floats,
        commits=sorted({result["commit"] for _, result in done}),
        summary=summary,
        missing=len(jobs) - len(done),
        runs=runs,
    )


if __name__ == "__main__":
    main()
