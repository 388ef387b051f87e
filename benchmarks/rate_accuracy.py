"""Accuracy over bytes of whole files: post-training methods at eight settings each.

    python benchmarks/rate_accuracy.py [--networks resnet20] [--methods gpfq] [--jobs 2]

ResNet-20 with three calibration seeds (one for the transform with its rate term, which takes
longest; the ablation has more). ResNet-32 and LeNet-5, for which nothing was tuned: one seed.
Grids by their number of levels, the others by their slope; biases in float16 for all.
Calibration: 1,024 training images without labels. Accuracy: the whole test set, on the network
loaded from the file. What is measured is kept in .data/ at once, each point with its commit: a run
that was stopped goes on where it was, and --fresh begins anew. With other options it only explores.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import Tensor, nn

import fewbits
from images import CACHE, cifar10, mnist, normalise
from networks import resnet20, resnet32, top1
from record import blank_copy, environment, write
from resnet20_cifar10 import calibration_batches
from zoo import lenet5, mnist_batches

LEVELS = (3, 5, 7, 9, 11, 15, 21, 31)
SLOPES = (2e-5, 4e-5, 8e-5, 1.6e-4, 3e-4, 5e-4, 8e-4, 1.2e-3)


def _blocks(slope: float) -> Any:
    return fewbits.Transform(slope=slope, form="blocks", feedback=False, rate="none")


# Name of a method, the settings it takes, and what makes one. "smallest" is RDOQ's recipe.
METHODS: dict[str, tuple[str, tuple[float, ...], Callable[[Any], Any]]] = {
    "nearest": ("levels", LEVELS, lambda n: fewbits.Nearest(levels=n)),
    "gpfq": ("levels", LEVELS, lambda n: fewbits.GPFQ(levels=n)),
    "gptq": ("levels", LEVELS, lambda n: fewbits.GPTQ(levels=n)),
    "transform, blocks": ("slope", SLOPES, _blocks),
    "transform, entropy": ("slope", SLOPES, lambda s: fewbits.Transform(slope=s)),
    "smallest": ("slope", SLOPES, lambda s: fewbits.RDOQ(slope=s)),
}
# Peers on the same ResNet-20 and data, measured once with the peers' own software (top-1, bytes).
PEERS = {
    "nncodec 2.1.3, trellis, no labels": [
        (91.38, 121_337),
        (90.73, 104_219),
        (90.20, 92_536),
        (88.73, 76_257),
    ],
    "nncodec 2.1.3, scales trained with labels": [
        (91.71, 121_376),
        (90.95, 104_263),
        (90.17, 76_292),
    ],
    "Brevitas GPFQ or Qronos, coded by DeepCABAC (no tool ships this)": [
        (91.73, 104_500),
        (91.00, 66_200),
        (80.8, 29_200),
    ],
}


def _cifar_test() -> tuple[Tensor, Tensor]:
    images, labels = cifar10("test")
    return normalise(images), labels


def _mnist_test() -> tuple[Tensor, Tensor]:
    images, labels = mnist("test")
    return images.view(-1, 1, 28, 28) / 256, labels


def _mnist_batches(count: int, seed: int) -> list[Tensor]:
    return mnist_batches(lambda x: x.view(-1, 1, 28, 28) / 256, count, seed)


Loader = Callable[[], nn.Module]
NETWORKS: dict[str, tuple[str, Loader, Callable[..., list[Tensor]], Callable[..., Any]]] = {
    "resnet20": ("ResNet-20 on CIFAR-10", resnet20, calibration_batches, _cifar_test),
    "resnet32": ("ResNet-32 on CIFAR-10", resnet32, calibration_batches, _cifar_test),
    "lenet5": ("LeNet-5 on MNIST", lenet5, _mnist_batches, _mnist_test),
}


SEEDS = {"resnet20": (0, 1, 2), "resnet32": (0,), "lenet5": (0,)}
LONGEST = "transform, entropy"


def one(network: str, method: str, setting: float, seed: int) -> dict[str, Any]:
    """Compress, save, load the file into a network of NaN, and evaluate."""
    torch.set_num_threads(1)
    _, build, calibration, test = NETWORKS[network]
    model = build()
    recipe = replace(fewbits.Recipe.of(METHODS[method][2](setting)), raw_dtype="float16")
    start = time.process_time()
    coded = fewbits.compress(model, recipe, calibration=calibration(1024, seed), seed=seed)
    seconds = time.process_time() - start
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.fewbits"
        coded.save(path, effort="smallest")
        size = path.stat().st_size
        loaded = fewbits.load(path, into=blank_copy(model))
    return {
        "network": network,
        "method": method,
        METHODS[method][0]: setting,
        "seed": seed,
        "file_bytes": size,
        "accuracy": top1(loaded, *test()),
        "cpu_seconds": round(seconds, 1),
    }


def _key(case: tuple[str, str, float, int]) -> str:
    return " ".join(map(str, case))


def _measured(cases: list[tuple[str, str, float, int]], jobs: int, kept: Path) -> list[Any]:
    """Measure what ``kept`` does not have, and return all of ``cases``."""
    commit = environment()["commit"]
    known: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() else {}
    missing = [case for case in cases if _key(case) not in known]
    with ProcessPoolExecutor(jobs, get_context("spawn")) as pool:
        asked = {pool.submit(one, *case): case for case in missing}
        for done in as_completed(asked):
            known[_key(asked[done])] = {**done.result(), "commit": commit}
            kept.parent.mkdir(exist_ok=True)
            kept.write_text(json.dumps(known))
            print(done.result(), flush=True)
    return [known[_key(case)] for case in cases]


def _summary(rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    def key(row: dict[str, Any]) -> tuple[str, str, float]:
        return row["network"], row["method"], row[METHODS[row["method"]][0]]

    for network, method, setting in dict.fromkeys(map(key, rows)):
        group = [row for row in rows if key(row) == (network, method, setting)]
        accuracy = [row["accuracy"] for row in group]
        yield {
            "network": network,
            "method": method,
            METHODS[method][0]: setting,
            "accuracy_mean": mean(accuracy),
            "accuracy_min": min(accuracy),
            "accuracy_max": max(accuracy),
            "file_bytes_mean": mean(row["file_bytes"] for row in group),
            "cpu_seconds_mean": mean(row["cpu_seconds"] for row in group),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--fresh", action="store_true", help="forget what .data/ has")
    options = parser.parse_args()
    whole = (options.networks, options.methods) == (list(NETWORKS), list(METHODS))
    cases = [
        (network, method, setting, seed)
        for network in options.networks
        for seed in SEEDS[network]
        for method in options.methods
        if method != LONGEST or seed == 0
        for setting in METHODS[method][1]
    ]
    kept = CACHE / "rate_accuracy_points.json"
    if options.fresh:
        kept.unlink(missing_ok=True)
    rows = _measured(cases, options.jobs, kept)
    write(
        "rate_accuracy",
        folder=None if whole else CACHE,
        model=", ".join(NETWORKS[name][0] for name in options.networks) + ", all layers quantized",
        data="1,024 training images calibrate, 10,000 test images evaluate",
        float_accuracy={
            name: top1(NETWORKS[name][1](), *NETWORKS[name][3]()) for name in options.networks
        },
        peers=PEERS,
        summary=list(_summary(rows)),
        measured=rows,
    )


if __name__ == "__main__":
    main()
