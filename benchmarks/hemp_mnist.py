"""HEMP on LeNet-300-100 and LeNet-5, MNIST: whole files and test error, against no entropy term.

    python benchmarks/hemp_mnist.py [--jobs 4] [--quick]

Every run starts from a float network trained here, dense or pruned by magnitude, and follows its
logits. "none" is the same training, start, levels, coder and budget without the entropy term. The
last 5,000 training images are held out; test images decide nothing. Accuracy is of the network
loaded from the file. Runs are kept, so that a benchmark that was stopped goes on; after --minutes
no run begins, and the record counts what is missing. Any other option explores: the record goes to
.data/.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from itertools import product
from multiprocessing import get_context
from typing import Any

import torch
from torch import nn

import fewbits
from image_training import distilled
from images import CACHE
from kept import kept_runs
from lenet import (
    HELD_OUT,
    NETWORKS,
    Digits,
    computing,
    digits,
    float_network,
    rate_of,
)
from networks import top1
from record import Run, measured, write

STARTS = ("dense", "pruned")
TERMS = ("none", "order 1", "order 2", "order 3")
GOALS = {  # entropy-penalised reparameterization (Oktay et al. 2020)
    "lenet_300_100": {"bytes_at_most": 8_560, "error_at_most": 1.9},
    "lenet_5": {"bytes_at_most": 2_840, "error_at_most": 1.0},
}


@dataclass(frozen=True)
class Settings:
    """Of a run. ``slope``: loss that a bit is worth; ``soft``: share that computes with floats."""

    epochs: int
    slope: float
    levels: int = 7
    width: float = 2.0
    soft: float = 0.6
    ramp: float = 0.5
    rate: float = 1e-3
    vector_bits: int = 4
    distil: float = 0.7
    temperature: float = 3.0


SETTINGS = {
    "lenet_300_100": Settings(epochs=15, slope=3e-5, width=4.0),
    "lenet_5": Settings(epochs=20, slope=4.8e-5, width=6.0, soft=0.85, ramp=0.6),
}
PRUNED_WIDTH = {"lenet_300_100": 4.0, "lenet_5": 3.0}  # there, small weights are gone already


def _method(term: str, settings: Settings) -> fewbits.HEMP:
    slope = 0.0 if term == "none" else settings.slope
    return fewbits.HEMP(
        levels=settings.levels,
        spacing="even",
        width=settings.width,
        order=1 if term == "none" else int(term[-1]),
        forward="quantized",
        soft=settings.soft,
        slope=fewbits.Ramp(0.0, slope, until=settings.ramp),
        pull=0.0,
        insensitive=False,
    )


def _train(model: nn.Module, job: _Job, data: Digits) -> fewbits.CodedModel:
    """Train in place, and return what its file holds."""
    settings, seed = job.settings, job.seed
    model.to(memory_format=torch.channels_last)
    teacher = copy.deepcopy(model).requires_grad_(False)
    tuner = fewbits.prepare(
        model, _method(job.term, settings), vector_bits=settings.vector_bits, seed=seed
    )
    optimizer = torch.optim.Adam(tuner.groups(settings.rate))
    generator = torch.Generator().manual_seed(seed)
    total, done = settings.epochs * data.steps, 0
    for _ in range(settings.epochs):
        for x, y in data.batches(generator):
            for group in optimizer.param_groups:
                group["lr"] = settings.rate * rate_of(done / total)
            with computing():
                with torch.no_grad():
                    theirs = teacher(x)
                ours = model(x)
            optimizer.zero_grad()
            loss = distilled(
                ours.float(), theirs.float(), y, settings.temperature, 1 - settings.distil
            )
            (loss + tuner.penalty()).backward()
            optimizer.step()
            tuner.step()
            done += 1
            tuner.advance(done / total)
    return tuner.finish("smallest", sort=True, metadata=False)


@dataclass(frozen=True)
class _Job:
    network: str
    start: str
    term: str
    seed: int
    settings: Settings
    quick: bool

    @property
    def data(self) -> Digits:
        return digits(2_560 if self.quick else None)


def _begin(job: _Job) -> dict[str, float]:
    """Train the float network of a job where no checkpoint is kept, and return its accuracies."""
    torch.set_num_threads(1)
    data = job.data
    model = float_network(job.network, job.start, data, job.seed, quick=job.quick)
    return {"held out": top1(model, *data.held_out), "test": top1(model, *data.test)}


def _run(job: _Job) -> dict[str, Any]:
    torch.set_num_threads(1)
    torch.manual_seed(job.seed)
    data = job.data
    model = float_network(job.network, job.start, data, job.seed, quick=job.quick)
    blank = copy.deepcopy(model)
    wall, cpu = time.perf_counter(), time.process_time()
    coded = _train(model, job, data)
    seconds = time.perf_counter() - wall, time.process_time() - cpu
    run = measured(
        coded,
        blank,
        {"held out": data.held_out, "test": data.test},
        seconds=seconds,
        method=f"{job.network}, {job.start}, {job.term}",
        settings=asdict(job.settings),
        seed=job.seed,
        calibration_images=0,
    )
    held_out, test = (100 - run.accuracy[part] for part in ("held out", "test"))
    print(
        f"{run.method}, seed {run.seed}: {run.file_bytes:,} bytes, error {held_out:.2f} % held "
        f"out, {test:.2f} % test, {run.cpu_seconds:.0f} s",
        flush=True,
    )
    return asdict(run)


def _summary(runs: Iterable[Run]) -> list[dict[str, Any]]:
    """Mean and range over the seeds of every kind of run, and whether it is below the goal."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.method, []).append(run)
    rows = []
    for name, group in groups.items():
        network, start, term = name.split(", ")
        errors = {
            part: [100 - run.accuracy[part] for run in group] for part in ("held out", "test")
        }
        size, error = (statistics.mean(v) for v in ([r.file_bytes for r in group], errors["test"]))
        goal = GOALS[network]
        rows.append(
            {
                "network": network,
                "start": start,
                "term": term,
                "seeds": len(group),
                "file_bytes_mean": size,
                "file_bytes": [run.file_bytes for run in group],
                "test_error_mean": error,
                "test_error": errors["test"],
                "held_out_error_mean": statistics.mean(errors["held out"]),
                "cpu_seconds_mean": statistics.mean(run.cpu_seconds for run in group),
                "goal": goal,
                "met": size <= goal["bytes_at_most"] and error <= goal["error_at_most"],
            }
        )
    return rows


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--starts", nargs="+", default=list(STARTS), choices=STARTS)
    parser.add_argument("--terms", nargs="+", default=list(TERMS), choices=TERMS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=NUMBER", help="of Settings")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=1e6, help="begin no run after so long")
    parser.add_argument("--quick", action="store_true", help="seed 0, 2,560 images, 2 epochs")
    parser.add_argument("--out", help="name of the record in .data/")
    options = parser.parse_args()
    if options.quick:
        options.seeds, options.set = [0], ["epochs=2", *options.set]
    standard = vars(parser.parse_args([])) | {
        "jobs": options.jobs,
        "minutes": options.minutes,
    }
    if options.out is None and vars(options) != standard:
        options.out = "hemp_mnist_explored"
    return options


def _settings(network: str, start: str, entries: Iterable[str]) -> Settings:
    values = asdict(SETTINGS[network])
    if start == "pruned":
        values["width"] = PRUNED_WIDTH[network]
    for key, value in (entry.split("=") for entry in entries):
        values[key] = type(values[key])(value)
    return Settings(**values)


def _jobs(options: argparse.Namespace) -> list[_Job]:
    return [
        _Job(name, start, term, seed, _settings(name, start, options.set), options.quick)
        for name, seed, start, term in product(
            options.networks, options.seeds, options.starts, options.terms
        )
    ]


def _weight(job: _Job) -> tuple[bool, int]:
    """Return the order of runs: what the goals ask for first."""
    return job.term in ("order 2", "order 3"), job.seed


def main() -> None:
    """Train the float networks, run everything, and write the record."""
    options = _options()
    jobs = _jobs(options)
    floats: dict[str, Any] = {}
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
        for start in STARTS:  # the pruned networks come from the dense ones
            first = {(j.network, j.seed): j for j in reversed(jobs) if j.start == start}
            for job, found in zip(first.values(), pool.map(_begin, first.values()), strict=True):
                floats[f"{job.network}, {job.start}, seed {job.seed}"] = found
    jobs.sort(key=_weight)
    found = kept_runs("hemp_mnist", _run, jobs, workers=options.jobs, minutes=options.minutes)
    runs = [Run(**run) for run in found if run is not None]
    write(
        options.out or "hemp_mnist",
        folder=CACHE if options.out else None,
        model="LeNet-300-100 and LeNet-5 (Caffe), trained here with shifts of a pixel",
        data=f"MNIST: {60_000 - HELD_OUT:,} training images, {HELD_OUT:,} held out",
        float_accuracy=floats,
        summary=_summary(runs),
        missing=len(jobs) - len(runs),
        runs=runs,
    )


if __name__ == "__main__":
    main()
