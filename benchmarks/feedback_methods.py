"""The methods with error feedback and their settings, on seven networks of several kinds.

    python benchmarks/feedback_methods.py                       # 3 seeds
    python benchmarks/feedback_methods.py --networks lenet5 resnet8 --cases 'qronos*'

The basis of the family's defaults. Half of a network's training inputs (``zoo.py``) calibrate, the
seed says which; the other half judges, so no test data chooses a default. Of MiniLM, which takes
half an hour and must be named, they are 512 passages of WikiText-2's validation text. ``error``:
squared error of the outputs over their variance, in percent. Beside GPFQ at its defaults with as
many bits: ``better``, in how many pairs of network and seed a case has less error; ``error_ratio``
and ``bytes_ratio``, geometric means; ``equal_bytes``, the ratio of errors if a bit per weight is
worth a quarter of the error, as of a fine quantizer.
"""

from __future__ import annotations

import argparse
import fnmatch
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import geometric_mean, mean, stdev
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import fewbits
from images import CACHE
from kept import kept_runs
from packaged import MiniLMOfIds, minilm_passages
from record import write
from zoo import ZOO, Case

__all__ = ["halves", "output_error", "outputs"]

NETWORKS = (
    *("lenet300", "lenet5", "resnet8", "resnet20", "resnet20_sparse", "mobilenet_v2"),
    "stories260k",
)
CASES: dict[str, Any] = {
    "nearest": fewbits.Nearest(),
    "nearest, lloyd": fewbits.Nearest(levels="lloyd"),
    "gpfq": fewbits.GPFQ(),
    "gpfq, no passes": fewbits.GPFQ(passes=0),
    "gpfq, natural order": fewbits.GPFQ(order="natural"),
    "gpfq, radius objective": fewbits.GPFQ(radius="objective"),
    "gptq": fewbits.GPTQ(),
    "gptq, 2 passes": fewbits.GPTQ(passes=2),
    "qronos": fewbits.Qronos(),
    "qronos, no passes": fewbits.Qronos(passes=0),
    "qronos, natural order": fewbits.Qronos(order="natural"),
    "qronos, radius mse": fewbits.Qronos(radius="mse"),
    "qronos, lloyd": fewbits.Qronos(levels="lloyd"),
    "qronos, no bias correction": fewbits.Qronos(bias_correction=False),
}
BITS, SEEDS = (4, 3, 2), (0, 1, 2)
PASSAGES = 512
CONTROL = "gpfq"
BIT = 4.0  # a bit per weight divides the squared error by this


@dataclass(frozen=True)
class Job:
    """All cases on one network, with one half of its inputs."""

    network: str
    seed: int
    cases: tuple[str, ...]
    bits: tuple[int, ...]


def _minilm() -> Case:
    passages = minilm_passages(PASSAGES)
    return Case(MiniLMOfIds(), list(passages.split(32)), "all-MiniLM-L6-v2 on WikiText-2")


NETWORKS_BY_NAME = ZOO | {"minilm": _minilm}


def halves(case: Case, seed: int) -> tuple[list[Tensor], list[Tensor]]:
    """Return batches of half of the inputs, which calibrate, and of the other half."""
    size = len(case.calibration[0])
    inputs = torch.cat(list(case.calibration))
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(inputs)))
    parts = order.tensor_split(2)
    return list(inputs[parts[0]].split(size)), list(inputs[parts[1]].split(size))


@torch.no_grad()
def outputs(model: nn.Module, batches: Iterable[Tensor]) -> Tensor:
    return torch.cat([model(batch).flatten(0, -2) for batch in batches]).double()


def output_error(model: nn.Module, other: nn.Module, batches: Sequence[Tensor]) -> float:
    """Return the squared error of the other network's outputs over their variance, in percent."""
    wanted = outputs(model, batches)
    spread = float((wanted - wanted.mean(0)).square().sum())
    return 100 * float((outputs(other, batches) - wanted).square().sum()) / spread


def _one(job: Job) -> list[dict[str, Any]]:
    torch.set_num_threads(1)
    case = NETWORKS_BY_NAME[job.network]()
    calibration, held = halves(case, job.seed)
    model = case.model.eval()
    weights = sum(p.numel() for p in model.parameters())
    rows = []
    for name in job.cases:
        for bits in job.bits:
            started = time.process_time()
            method = fewbits.methods.from_settings(
                fewbits.methods.to_settings(CASES[name]) | {"bits": bits}
            )
            coded = fewbits.compress(model, method, calibration, seed=job.seed)
            seconds = time.process_time() - started
            loaded = coded.load_into(NETWORKS_BY_NAME[job.network]().model.eval())
            error = output_error(model, loaded, held)
            rows.append(
                {
                    "network": job.network,
                    "seed": job.seed,
                    "case": name,
                    "bits": bits,
                    "error": error,
                    "file_bytes": len(coded.data),
                    "weights": weights,
                    "cpu_seconds": round(seconds, 2),
                }
            )
            print(
                f"{job.network:16} seed {job.seed} {name:28} {bits} bits: {error:9.3f} % error, "
                f"{rows[-1]['file_bytes']:10,} bytes, {seconds:5.1f} CPU s",
                flush=True,
            )
    return rows


def _summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    found = []
    control = {(r["network"], r["seed"], r["bits"]): r for r in rows if r["case"] == CONTROL}
    for name in dict.fromkeys(row["case"] for row in rows):
        for bits in dict.fromkeys(row["bits"] for row in rows):
            own = [row for row in rows if (row["case"], row["bits"]) == (name, bits)]
            pairs = [(row, control.get((row["network"], row["seed"], bits))) for row in own]
            both = [(row, other) for row, other in pairs if other is not None]
            if not both:
                continue
            errors = [row["error"] / other["error"] for row, other in both]
            extra = [
                8 * (row["file_bytes"] - other["file_bytes"]) / row["weights"]
                for row, other in both
            ]
            level = [ratio * BIT**bits_more for ratio, bits_more in zip(errors, extra, strict=True)]
            found.append(
                {
                    "case": name,
                    "bits": bits,
                    "better": sum(ratio < 1 for ratio in errors),
                    "of": len(both),
                    "error_ratio": round(geometric_mean(errors), 4),
                    "equal_bytes": round(geometric_mean(level), 4),
                    "bytes_ratio": round(
                        geometric_mean([r["file_bytes"] / o["file_bytes"] for r, o in both]), 4
                    ),
                    "cpu_ratio": round(
                        sum(r["cpu_seconds"] for r, _ in both)
                        / sum(o["cpu_seconds"] for _, o in both),
                        2,
                    ),
                }
            )
    return found


def _means(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    keys = dict.fromkeys((row["network"], row["case"], row["bits"]) for row in rows)
    found = []
    for network, name, bits in keys:
        own = [r for r in rows if (r["network"], r["case"], r["bits"]) == (network, name, bits)]
        errors = [row["error"] for row in own]
        found.append(
            {
                "network": network,
                "case": name,
                "bits": bits,
                "error_mean": round(mean(errors), 4),
                "error_deviation": round(stdev(errors), 4) if len(errors) > 1 else None,
                "file_bytes_mean": round(mean(row["file_bytes"] for row in own)),
                "cpu_seconds_mean": round(mean(row["cpu_seconds"] for row in own), 2),
            }
        )
    return found


def main() -> None:
    """Run all cases and write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS_BY_NAME)
    )
    parser.add_argument("--cases", default="*", help="names, with wildcards; commas between")
    parser.add_argument("--bits", nargs="+", type=int, default=list(BITS))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=1e6)
    parser.add_argument("--earlier", nargs="*", default=[], help="commits whose runs to take")
    parser.add_argument("--quick", action="store_true", help="LeNet-300-100, one seed")
    options = parser.parse_args()
    if options.quick:
        options.networks, options.seeds = ["lenet300"], [0]
    asked = options.cases.split(",")
    cases = tuple(
        name
        for name in CASES
        if name == CONTROL or any(fnmatch.fnmatch(name, pattern.strip()) for pattern in asked)
    )
    jobs = [
        Job(network, seed, cases, tuple(options.bits))
        for network in options.networks
        for seed in options.seeds
    ]
    usual = (list(NETWORKS), tuple(CASES), list(BITS), list(SEEDS))
    same = (options.networks, cases, options.bits, options.seeds) == usual
    results = kept_runs(
        "feedback_methods",
        _one,
        jobs,
        workers=options.jobs,
        minutes=options.minutes,
        earlier=options.earlier,
    )
    rows = [row for result in results if result is not None for row in result]
    summary = _summary(rows)
    for row in summary:
        print(row)
    write(
        "feedback_methods",
        model=", ".join(options.networks),
        data="half of the training inputs calibrate, by the seed; the other half judges",
        folder=None if same else CACHE,
        missing=sum(result is None for result in results),
        earlier=options.earlier,
        control=CONTROL,
        summary=summary,
        means=_means(rows),
        measured=rows,
    )


if __name__ == "__main__":
    main()
