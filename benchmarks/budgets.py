"""The recipe `smallest` under budgets, bytes or a drop: ResNets on CIFAR-10, 3 seeds.

    python benchmarks/budgets.py [--networks resnet20 resnet32] [--seeds 0 1 2] [--jobs 2]

For each budget the slope is searched (at most 12 evaluations); nothing else differs, and nothing
was tuned for ResNet-32. Calibration: 1,024 training images without labels. A drop is judged on
5,000 other training images. Accuracy: the whole test set, on the network loaded from the file.
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

import numpy as np
import torch
from torch import Tensor

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
    "resnet20": [75_000, 60_000, 46_000, 30_000],
    "resnet32": [70_000],
}
DROPS = {"resnet20": [0.5], "resnet32": []}  # points of accuracy
SELECTION = 5_000


def _selection(seed: int) -> tuple[Tensor, Tensor]:
    """Return training images, with their labels, that do not calibrate with this seed."""
    images, labels = cifar10("train")
    rows = np.sort(np.random.default_rng(seed).permutation(len(images))[1024 : 1024 + SELECTION])
    return normalise(images[rows]), labels[torch.from_numpy(rows)]


def one(network: str, kind: str, limit: float, seed: int) -> dict[str, Any]:
    """Search, save, load the file into a network of NaN, and evaluate."""
    torch.set_num_threads(1)
    model = NETWORKS[network]()
    images, labels = cifar10("test")
    test = (normalise(images), labels)
    goal: dict[str, Any] = {"target_bytes": limit}
    if kind == "drop":
        chosen = _selection(seed)
        goal = {"max_drop": limit, "evaluate": lambda net: top1(net, *chosen)}
    start = time.perf_counter()
    coded = fewbits.compress(
        model,
        "smallest",
        calibration=calibration_batches(1024, seed),
        seed=seed,
        effort="smallest",
        **goal,
    )
    seconds = time.perf_counter() - start
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.fewbits"
        size = coded.save(path)
        loaded = fewbits.load(path, into=blank_copy(model))
    trials = coded.trace.to_dict()["trials"] if coded.trace else []
    row = {
        "network": network,
        "budget": [kind, limit],
        "seed": seed,
        "file_bytes": size,
        "accuracy": top1(loaded, *test),
        "evaluations": len(trials),
        "seconds": round(seconds, 1),
        "trials": trials,
    }
    if kind == "drop":
        row["float_accuracy"] = top1(model, *test)
        row["selection_drop"] = top1(model, *chosen) - top1(loaded, *chosen)
    print({k: v for k, v in row.items() if k != "trials"}, flush=True)
    return row


def _summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    found = []
    for network, kind, limit in dict.fromkeys((row["network"], *row["budget"]) for row in rows):
        group = [r for r in rows if (r["network"], r["budget"]) == (network, [kind, limit])]
        accuracy = [row["accuracy"] for row in group]
        sizes = [row["file_bytes"] for row in group]
        line = {
            "network": network,
            "budget": [kind, limit],
            "accuracy_mean": mean(accuracy),
            "accuracy_min": min(accuracy),
            "accuracy_max": max(accuracy),
            "file_bytes_mean": mean(sizes),
            "file_bytes_max": max(sizes),
            "evaluations_max": max(row["evaluations"] for row in group),
            "seconds_mean": mean(row["seconds"] for row in group),
        }
        if kind == "drop":
            line["selection_drop_max"] = max(row["selection_drop"] for row in group)
            line["test_drop_mean"] = mean(r["float_accuracy"] - r["accuracy"] for r in group)
        else:
            line["least_share_of_budget"] = min(sizes) / limit
        wanted = TARGETS[network].get(int(limit))
        if kind == "bytes" and wanted is not None:
            line |= {"wanted": wanted, "met": line["accuracy_mean"] >= wanted}
        found.append(line)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--budgets", nargs="+", type=int, help="bytes; and no drops")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--out", help="name of the record in .data/")
    options = parser.parse_args()
    asked = [
        (network, "bytes", limit)
        for network in options.networks
        for limit in options.budgets or BUDGETS[network]
    ]
    if options.budgets is None:
        asked += [(net, "drop", drop) for net in options.networks for drop in DROPS[net]]
    cases = [(*case, seed) for case in asked for seed in options.seeds]
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
