"""The constants of RDOQ's metric and search, each at other values: bytes at equal error.

    python benchmarks/rdoq_constants.py

Constants of ``rate_problem.py`` that no theory gives. Half of a network's training inputs
(``zoo.py``) calibrate, the seed says which; the other half judges. Every setting runs at half and
at twice the network's suggested slope. Errors are in RDOQ's metric: squared, of centred logits; of
a language model, the divergence of its predictions. ``bytes``: bytes over those of the present
constants at the error that is reached (on the line through their two points, logarithms of both),
as geometric means over slopes and seeds: above 1, the present value is better. The deviation is
that of the logarithm over seeds, in percent.

``second probe``: the network is compressed a second time, with that share of every sensitivity
measured at the first result instead of the float network.
"""

from __future__ import annotations

import argparse
import copy
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from statistics import mean, stdev
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import fewbits
from feedback_methods import halves, outputs
from fewbits.compression import pipeline
from fewbits.engine.layers.layer import Sensitivity
from fewbits.methods.rate_distortion import rate_problem
from images import CACHE
from kept import kept_runs
from record import write
from zoo import ZOO

SLOPES = {"lenet300": 1.07e-4, "lenet5": 1.0e-4, "resnet8": 2.9e-4, "stories260k": 7.3e-3}
LANGUAGE = ("stories260k",)
FACTORS = (0.5, 2.0)
TRIED = {
    "_GRADIENTS": (0.0, 0.4, 1.0),
    "_RIDGE": (0.03, 1.0),
    "_COUPLING": (0.0, 0.6),
    "_GREEDY": (0.0, 1.0),
    "_ADAPTATION": (1.0, 1.5),
    "_DAMPING": (0.001, 0.1),
    "_FEW": (0.1, 0.3),
}
SECOND = "second probe"
SHARES = (0.5, 1.0)
SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Job:
    """One constant at one value, on one network and half of its inputs; "" changes nothing."""

    network: str
    seed: int
    constant: str
    value: float


def _error(model: nn.Module, other: nn.Module, batches: Sequence[Tensor], network: str) -> float:
    """Return what RDOQ's own metric sees: squared error of centred logits, or the divergence."""
    wanted, found = outputs(model, batches), outputs(other, batches)
    if network in LANGUAGE:
        ours, theirs = (functional.log_softmax(part, 1) for part in (found, wanted))
        return float(functional.kl_div(ours, theirs, reduction="batchmean", log_target=True))
    centred = [part - part.mean(1, keepdim=True) for part in (wanted, found)]
    return float((centred[1] - centred[0]).square().sum(1).mean())


@contextmanager
def _probing_again(first: fewbits.CodedModel, share: float) -> Iterator[None]:
    """Measure a share of the sensitivities at a compressed network."""
    usual, state = pipeline.probe, first.state_dict()

    def mixed(reference: nn.Module, *args: Any, **settings: Any) -> Any:
        other = copy.deepcopy(reference)
        other.load_state_dict(state)
        found = usual(reference, *args, **settings)
        again = usual(other, *args, **settings).layers
        layers = {name: _mixed(one, again[name], share) for name, one in found.layers.items()}
        return replace(found, layers=layers)

    pipeline.probe = mixed
    try:
        yield
    finally:
        pipeline.probe = usual


def _mixed(first: Sensitivity, second: Sensitivity, share: float) -> Sensitivity:
    values = {}
    for entry in fields(Sensitivity):
        a, b = getattr(first, entry.name), getattr(second, entry.name)
        values[entry.name] = (1 - share) * a + share * b if isinstance(a, Tensor) else a
    return Sensitivity(**values)


def _one(job: Job) -> dict[str, Any]:
    torch.set_num_threads(1)
    if job.constant not in ("", SECOND):
        setattr(rate_problem, job.constant, job.value)
    case = ZOO[job.network]()
    model = case.model.eval()
    calibration, held = halves(case, job.seed)
    points, started = [], time.process_time()
    for factor in FACTORS:
        method = fewbits.RDOQ(slope=factor * SLOPES[job.network])
        coded = fewbits.compress(model, method, calibration, seed=job.seed)
        if job.constant == SECOND:
            with _probing_again(coded, job.value):
                coded = fewbits.compress(model, method, calibration, seed=job.seed)
        loaded = coded.load_into(ZOO[job.network]().model.eval())
        points.append((len(coded.data), _error(model, loaded, held, job.network)))
    row = {
        "network": job.network,
        "seed": job.seed,
        "constant": job.constant or "present",
        "value": job.value,
        "points": points,
        "cpu_seconds": round(time.process_time() - started, 1),
    }
    print(row, flush=True)
    return row


def _bytes_ratio(points: list[list[float]], control: list[list[float]]) -> float:
    """Return the log of bytes over those of the control at the same errors, as a mean."""
    (b1, e1), (b2, e2) = ([math.log(v) for v in point] for point in control)
    rate = (b2 - b1) / (e2 - e1)
    return mean(math.log(b) - (b1 + rate * (math.log(e) - e1)) for b, e in points)


def _summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    control = {(r["network"], r["seed"]): r for r in rows if r["constant"] == "present"}
    found = []
    for constant, values in [*TRIED.items(), (SECOND, SHARES)]:
        present = 0.0 if constant == SECOND else getattr(rate_problem, constant)
        for value in values:
            own = [r for r in rows if (r["constant"], r["value"]) == (constant, value)]
            told: dict[str, Any] = {"constant": constant, "present": present, "value": value}
            every = []
            for network in dict.fromkeys(r["network"] for r in own):
                logs = [
                    _bytes_ratio(r["points"], control[network, r["seed"]]["points"])
                    for r in own
                    if r["network"] == network and (network, r["seed"]) in control
                ]
                every += logs
                told[network] = {
                    "bytes": round(math.exp(mean(logs)), 4),
                    "deviation": round(100 * stdev(logs), 2) if len(logs) > 1 else None,
                }
            if every:
                found.append(told | {"bytes": round(math.exp(mean(every)), 4)})
    return found


def main() -> None:
    """Run all settings and write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=1e6)
    parser.add_argument("--earlier", nargs="*", default=[], help="commits whose runs are taken")
    parser.add_argument("--quick", action="store_true", help="LeNet-300-100, one seed")
    options = parser.parse_args()
    networks = ["lenet300"] if options.quick else list(SLOPES)
    seeds = (0,) if options.quick else SEEDS
    settings = [("", 0.0), *((name, v) for name, values in TRIED.items() for v in values)]
    again = [(SECOND, share) for share in SHARES]
    jobs = [
        Job(n, seed, *setting)
        for seed in seeds
        for n in networks
        for setting in [*settings, *(() if n in LANGUAGE else again)]
    ]
    jobs.sort(key=lambda job: job.constant not in ("", "_FEW"))  # the youngest question first
    results = kept_runs(
        "rdoq_constants",
        _one,
        jobs,
        workers=options.jobs,
        minutes=options.minutes,
        fresh=True,
        earlier=options.earlier,
    )
    rows = [row for row in results if row is not None and "failed" not in row]
    summary = _summary(rows)
    for row in summary:
        print(row)
    write(
        "rdoq_constants",
        model=", ".join(networks),
        data="half of the training inputs of zoo.py calibrate, by the seed; the other half judges",
        folder=CACHE if options.quick else None,
        missing=len(jobs) - len(rows),
        summary=summary,
        measured=rows,
    )


if __name__ == "__main__":
    main()
