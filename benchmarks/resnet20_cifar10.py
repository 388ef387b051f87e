"""ResNet-20 on CIFAR-10: bytes of the file and top-1, for every post-training method and width.

    python benchmarks/resnet20_cifar10.py [--methods gpfq qronos] [--bits 4] [--seeds 0] ...

All layers are quantized, the first and the last too. Calibration: 1,024 training images without
labels, drawn by the seed. Accuracy: all 10,000 test images, on the network loaded from the file.
With any other option it explores: the record goes to .data/, never to results/.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from statistics import mean
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor

import fewbits
from images import CACHE, cifar10, normalise
from networks import resnet20, top1
from record import Run, run_once, write

METHODS = {
    "nearest": fewbits.Nearest,
    "gpfq": fewbits.GPFQ,
    "gptq": fewbits.GPTQ,
    "qronos": fewbits.Qronos,
}
# What the project promises at these widths: (method, bits) -> top-1 at least, bytes at most.
TARGETS = {("gpfq", 4): (91.6, 110_000), ("gpfq", 3): (90.7, 72_000)}


def calibration_batches(count: int, seed: int, batch: int = 128) -> list[Tensor]:
    """Draw ``count`` training images without replacement; no labels, no augmentation."""
    images, _ = cifar10("train")
    rows = np.sort(np.random.default_rng(seed).permutation(len(images))[:count])
    return list(normalise(images[rows]).split(batch))


def _recipe(options: argparse.Namespace, method: Any) -> fewbits.Recipe:
    """The recipe a bare method stands for, with the parts that the options name replaced."""
    asked = {
        "prepare": options.prepare and tuple(s for s in options.prepare if s != "none"),
        "finish": options.finish and tuple(options.finish),
        "raw_dtype": options.raw_dtype,
        "calibration_rows": options.rows,
    }
    changes = {key: value for key, value in asked.items() if value is not None}
    return replace(fewbits.Recipe.of(method), **changes)


def _summary(runs: list[Run]) -> list[dict[str, Any]]:
    """One row per method and width: mean over seeds, the seeds' range, and the target if any."""
    rows = []
    for key in dict.fromkeys((run.method, run.settings["bits"]) for run in runs):
        group = [run for run in runs if (run.method, run.settings["bits"]) == key]
        accuracies = [run.accuracy["test"] for run in group]
        row = {
            "method": key[0],
            "bits": key[1],
            "accuracy_mean": mean(accuracies),
            "accuracy_min": min(accuracies),
            "accuracy_max": max(accuracies),
            "file_bytes_mean": mean(run.file_bytes for run in group),
            "file_bytes_max": max(run.file_bytes for run in group),
            "cpu_seconds_mean": mean(run.cpu_seconds for run in group),
        }
        if key in TARGETS:
            accuracy, size = TARGETS[key]
            row["target"] = {"accuracy_at_least": accuracy, "bytes_at_most": size}
            row["accuracy_met"] = row["accuracy_mean"] >= accuracy
            row["bytes_met"] = row["file_bytes_max"] <= size
        rows.append(row)
    return rows


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--bits", nargs="+", type=int, default=[4, 3, 2])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--prepare", nargs="+", metavar="STAGE", help="stages before; or: none")
    parser.add_argument("--finish", nargs="+", metavar="STAGE", help="stages after")
    parser.add_argument("--raw-dtype", help="of the tensors left alone: keep, float16, bfloat16")
    parser.add_argument("--rows", type=int, help="input rows kept per layer")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="method settings")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="one seed, 128 images")
    parser.add_argument("--out", help="name of the record in .data/")
    options = parser.parse_args()
    if options.quick:
        options.seeds, options.images = [0], 128
    standard = vars(parser.parse_args([])) | {"threads": options.threads}
    if options.out is None and vars(options) != standard:
        options.out = "resnet20_explored"
    options.set = {key: yaml.safe_load(value) for key, value in (s.split("=") for s in options.set)}
    return options


def _run_all(options: argparse.Namespace, model: torch.nn.Module, test: Any) -> list[Run]:
    runs = []
    for seed in options.seeds:
        calibration = calibration_batches(options.images, seed)
        for name in options.methods:
            for bits in options.bits:
                recipe = _recipe(options, METHODS[name](**{"bits": bits, **options.set}))
                run = run_once(
                    model,
                    recipe,
                    calibration,
                    {"test": test},
                    method=name,
                    settings={"bits": bits, "recipe": recipe.to_dict()},
                    seed=seed,
                )
                print(
                    f"{name:8} {bits} bits, seed {seed}: {run.accuracy['test']:.2f} % "
                    f"{run.file_bytes:,} bytes, {run.wall_seconds:.1f} s",
                    flush=True,
                )
                runs.append(run)
    return runs


def main() -> None:
    options = _options()
    torch.set_num_threads(options.threads)
    model = resnet20()
    images, labels = cifar10("test")
    test = (normalise(images), labels)
    analog = top1(model, *test)
    print(f"float: {analog:.2f} %")
    runs = _run_all(options, model, test)
    write(
        options.out or "resnet20_cifar10",
        folder=CACHE if options.out else None,
        model="ResNet-20 (He et al. 2015), 269,722 parameters, all layers quantized",
        data=f"CIFAR-10: {options.images} training images calibrate, 10,000 test images evaluate",
        float_accuracy={"test": analog},
        summary=_summary(runs),
        runs=runs,
    )


if __name__ == "__main__":
    main()
