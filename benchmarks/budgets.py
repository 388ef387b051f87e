"""The recipe `smallest` under budgets of bytes: accuracy of ResNets on CIFAR-10, 3 seeds.

    python benchmarks/budgets.py [--networks resnet20 resnet32] [--seeds 0 1 2] [--jobs 2]

For each budget the slope is searched (at most 12 evaluations); nothing else differs, and nothing
was tuned for ResNet-32. Calibration: 1,024 training images without labels. Accuracy: the whole test
set, on the network loaded from the file.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import mean
from typing import Any

import torch

import fewbits
from images import CACHE, cifar10, normalise
from networks import resnet20, resnet32, top1
from record import blank_copy, write
from resnet20_cifar10 import calibration_batches

NETWORKS = {"resnet20": resnet20, "resnet32": resnet32}
# What the project promises: top-1 at least, by bytes at most.
TARGETS = {
    "resnet20": {75_000: 91.6, 60_000: 91.4, 46_000: 90.2, 30_000: 88.0},
    "resnet32": {},
}
BUDGETS = {
    "resnet20": [100_000, 75_000, 60_000, 46_000, 38_000, 30_000, 24_000],
    "resnet32": [150_000, 110_000, 90_000, 70_000, 52_000, 40_000],
}


def one(network: str, budget: int, seed: int) -> dict[str, Any]:
    """Search, save, load the file into a network of NaN, and evaluate."""
    torch.set_num_threads(1)
    model = NETWORKS[network]()
    images, labels = cifar10("test")
    start = time.perf_counter()
    coded = fewbits.compress(
        model,
        "smallest",
        calibration=calibration_batches(1024, seed),
        seed=seed,
        target_bytes=budget,
    )
    seconds = time.perf_counter() - start
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.fewbits"
        size = coded.save(path)
        loaded = fewbits.load(path, into=blank_copy(model))
    trials = coded.trace.to_dict()["trials"] if coded.trace else []
    row = {
        "network": network,
        "budget": budget,
        "seed": seed,
        "file_bytes": size,
        "accuracy": top1(loaded, normalise(images), labels),
        "evaluations": len(trials),
        "seconds": round(seconds, 1),
        "trials": trials,
    }
    print({k: v for k, v in row.items() if k != "trials"}, flush=True)
    return row


def _summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    found = []
    for key in dict.fromkeys((row["network"], row["budget"]) for row in rows):
        group = [row for row in rows if (row["network"], row["budget"]) == key]
        accuracy = [row["accuracy"] for row in group]
        sizes = [row["file_bytes"] for row in group]
        line = {
            "network": key[0],
            "budget": key[1],
            "accuracy_mean": mean(accuracy),
            "accuracy_min": min(accuracy),
            "accuracy_max": max(accuracy),
            "file_bytes_mean": mean(sizes),
            "file_bytes_max": max(sizes),
            "least_share_of_budget": min(sizes) / key[1],
            "evaluations_max": max(row["evaluations"] for row in group),
            "seconds_mean": mean(row["seconds"] for row in group),
        }
        wanted = TARGETS[key[0]].get(key[1])
        if wanted is not None:
            line |= {"wanted": wanted, "met": line["accuracy_mean"] >= wanted}
        found.append(line)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--budgets", nargs="+", type=int)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--out", help="name of the record in .data/")
    options = parser.parse_args()
    cases = [
        (network, budget, seed)
        for network in options.networks
        for budget in options.budgets or BUDGETS[network]
        for seed in options.seeds
    ]
    with ProcessPoolExecutor(options.jobs, get_context("spawn")) as pool:
        rows = list(pool.map(one, *zip(*cases, strict=True)))
    whole = options.networks == list(NETWORKS) and options.seeds == [0, 1, 2]
    plain = whole and options.budgets is None and options.out is None
    write(
        options.out or "budgets",
        folder=None if plain else CACHE,
        model="ResNet-20 (91.73 %) and ResNet-32 (92.63 %), all layers quantized",
        data="CIFAR-10: 1,024 training images calibrate, 10,000 test images evaluate",
        summary=_summary(rows),
        measured=rows,
    )


if __name__ == "__main__":
    main()
