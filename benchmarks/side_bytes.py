"""What is not weights in a small file: bytes by part, with RDOQ's biases rounded and as they are.

    python benchmarks/side_bytes.py [--quick] [--quantizer trellis]

RDOQ at two slopes, with ``bias_rounding`` and without, everything else the same; files of effort
"smallest", float tensors in 16 bits. ResNet-20: 1,024 training images calibrate and 2,048 others
judge, the seed says which; test accuracy of the network loaded from the file. ResNet-8 and LeNet-5:
half of the inputs of ``zoo.py`` calibrate, the others judge. ``saved``: bytes less than without
rounding at equal error, headers aside (on the line through its two points, logarithms of both), as
means over slopes and seeds. ``own_settings``: bytes more if matrices that share a body had settings
of their own, as they had in older versions.
"""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor

import fewbits
from feedback_methods import halves, output_error
from fewbits.coding.mix import mix
from fewbits.container import encode, measure
from images import CACHE
from kept import kept_runs
from networks import top1
from rate_accuracy import NETWORKS
from record import blank_copy, write
from resnet20_cifar10 import calibration_batches
from zoo import ZOO

SLOPES = {"resnet20": (1.6e-4, 5e-4), "resnet8": (1.45e-4, 5.8e-4), "lenet5": (5e-5, 2e-4)}
SEEDS = (0, 1, 2)
CALIBRATION, JUDGES, BATCH = 1024, 2048, 128


@dataclass(frozen=True)
class Job:
    """One compression."""

    network: str
    slope: float
    seed: int
    quantizer: str
    rounding: bool


def inputs(job: Job) -> tuple[list[Tensor], list[Tensor]]:
    """Return batches that calibrate, and batches that judge."""
    if job.network != "resnet20":
        return halves(ZOO[job.network](), job.seed)
    images = torch.cat(calibration_batches(CALIBRATION + JUDGES, job.seed))
    images = images[torch.from_numpy(np.random.default_rng(job.seed).permutation(len(images)))]
    return list(images[:CALIBRATION].split(BATCH)), list(images[CALIBRATION:].split(BATCH))


def _parts(data: bytes) -> dict[str, int]:
    """Return the bytes of a file by what they are for."""
    found = dict.fromkeys(("weights", "steps", "biases", "other tensors", "header"), 0)
    for row in measure(data).rows:
        if row.kind == "grid":
            found["weights"] += row.payload
            found["steps"] += row.side
        elif row.kind == "raw":
            found["biases" if row.name.endswith("bias") else "other tensors"] += row.bytes
        else:
            found["header"] += row.bytes
    return found


def _one(job: Job) -> dict[str, Any]:
    torch.set_num_threads(1)
    model = ZOO[job.network]().model.eval()
    calibration, held = inputs(job)
    method = fewbits.RDOQ(slope=job.slope, quantizer=job.quantizer, bias_rounding=job.rounding)
    recipe = fewbits.Recipe((fewbits.Rule("*", method),), ("fold_batchnorm",), raw_dtype="float16")
    started = time.process_time()
    coded = fewbits.compress(model, recipe, calibration, seed=job.seed)
    seconds = time.process_time() - started
    data = coded.encode(effort="smallest")
    with mock.patch.object(mix, "in_common", lambda own, _: own):
        older = len(encode(coded.contents, "smallest"))
    loaded = coded.load_into(blank_copy(model))
    row = {
        "network": job.network,
        "slope": job.slope,
        "seed": job.seed,
        "rounding": job.rounding,
        "file_bytes": len(data),
        "own_settings": older - len(data),
        "parts": _parts(data),
        "error": output_error(model, loaded, held),
        "accuracy": None,
        "cpu_seconds": round(seconds, 1),
    }
    if job.network in NETWORKS:
        row["accuracy"] = top1(loaded, *NETWORKS[job.network][3]())
    print(row, flush=True)
    return row


def _saved(rows: list[dict[str, Any]], control: list[dict[str, Any]]) -> float:
    """Return how many bytes less than the control's rows have at equal error, as a mean.

    Without the headers: that of the control says that a setting is not the default.
    """
    (b1, e1), (b2, e2) = ((math.log(_plain(r)), math.log(r["error"])) for r in control)
    rate = (b2 - b1) / (e2 - e1)
    return mean(math.exp(b1 + rate * (math.log(r["error"]) - e1)) - _plain(r) for r in rows)


def _plain(row: dict[str, Any]) -> int:
    return int(row["file_bytes"] - row["parts"]["header"])


def _mean_of(rows: list[dict[str, Any]]) -> dict[str, Any]:
    told: dict[str, Any] = {
        key: mean(row[key] for row in rows)
        for key in ("file_bytes", "own_settings", "error", "cpu_seconds")
    }
    told["parts"] = {name: mean(row["parts"][name] for row in rows) for name in rows[0]["parts"]}
    if rows[0]["accuracy"] is not None:
        told["accuracy"] = mean(row["accuracy"] for row in rows)
    return told


def _summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    found = []
    for network in dict.fromkeys(r["network"] for r in rows):
        own = [r for r in rows if r["network"] == network]
        points = [
            {"slope": slope, "rounding": rounding}
            | _mean_of([r for r in own if (r["slope"], r["rounding"]) == (slope, rounding)])
            for slope in dict.fromkeys(r["slope"] for r in own)
            for rounding in (False, True)
        ]
        saved = []
        for seed in dict.fromkeys(r["seed"] for r in own):
            parts = (
                [r for r in own if (r["seed"], r["rounding"]) == (seed, rounding)]
                for rounding in (True, False)
            )
            saved.append(_saved(*parts))
        told = {"network": network, "saved": mean(saved), "points": points}
        found.append(told | {"deviation": stdev(saved) if len(saved) > 1 else None})
    return found


def main() -> None:
    """Run all and write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="LeNet-5, one seed")
    parser.add_argument("--quantizer", choices=("scalar", "trellis"), default="scalar")
    parser.add_argument("--earlier", nargs="*", default=[], help="commits whose runs are taken too")
    options = parser.parse_args()
    networks = ["lenet5"] if options.quick else list(SLOPES)
    seeds = SEEDS[:1] if options.quick else SEEDS
    jobs = [
        Job(network, slope, seed, options.quantizer, rounding)
        for network in networks
        for seed in seeds
        for slope in SLOPES[network]
        for rounding in (False, True)
    ]
    rows = kept_runs("side_bytes", _one, jobs, earlier=options.earlier)
    summary = _summary(rows)
    for row in summary:
        print(row)
    write(
        "side_bytes",
        model=", ".join(networks),
        data="training images calibrate, others judge; 10,000 test images for accuracies",
        folder=CACHE if options.quick or options.quantizer != "scalar" else None,
        quantizer=options.quantizer,
        summary=summary,
        measured=rows,
    )


if __name__ == "__main__":
    main()
