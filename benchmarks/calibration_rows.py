"""How many input rows a layer needs: the basis of the default row budget, and of our defaults.

    python benchmarks/calibration_rows.py

ResNet-20 at 3 and 2 bits. Judged on 2,000 *training* images that do not calibrate, by the mean
Kullback-Leibler divergence of the float network's predictions from the compressed network's: far
less noisy than accuracy, and no test image is involved in choosing a default.
"""

from __future__ import annotations

import argparse
import time
from statistics import mean
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fewbits
from images import cifar10, normalise
from networks import resnet20
from record import write
from resnet20_cifar10 import calibration_batches

ROWS = (4096, 8192, 16384, 32768, 65536)
VARIANTS = {
    "as published": {"passes": 0, "bias_correction": False},
    "refined": {"bias_correction": False},
    "bias correction": {"passes": 0},
    "both (default)": {},
}


def held_out(count: int, seeds: list[int]) -> Tensor:
    """Training images that calibrate under none of the seeds."""
    images, _ = cifar10("train")
    used = [np.random.default_rng(seed).permutation(len(images))[:1024] for seed in seeds]
    free = np.setdiff1d(np.arange(len(images)), np.concatenate(used))
    rows = np.sort(np.random.default_rng(99).permutation(free)[:count])
    return normalise(images[rows])


@torch.no_grad()
def _log_probabilities(model: nn.Module, images: Tensor) -> Tensor:
    return torch.cat([model(batch) for batch in images.split(500)]).log_softmax(1)


def _measure(model: nn.Module, recipe: Any, seeds: list[int], held: Tensor) -> dict[str, Any]:
    target = _log_probabilities(model, held)
    found, sizes, seconds = [], [], []
    for seed in seeds:
        started = time.process_time()
        batches = calibration_batches(1024, seed)
        coded = fewbits.compress(model, recipe, calibration=batches, seed=seed)
        seconds.append(time.process_time() - started)
        loaded = coded.load_into(resnet20().eval())
        predicted = _log_probabilities(loaded, held)
        found.append(float(F.kl_div(predicted, target, log_target=True, reduction="batchmean")))
        sizes.append(len(coded.data))
    return {
        "divergence": found,
        "divergence_mean": mean(found),
        "file_bytes_mean": mean(sizes),
        "cpu_seconds_mean": mean(seconds),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3])
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model, held = resnet20().eval(), held_out(2000, options.seeds)
    cases = [(3, f"{rows} rows", {}, rows) for rows in ROWS]
    cases += [(bits, name, changes, None) for bits in (3, 2) for name, changes in VARIANTS.items()]
    measured = []
    for bits, name, changes, rows in cases:
        method = fewbits.GPFQ(**{"bits": bits, **changes})
        recipe = fewbits.Recipe(
            (fewbits.Rule("*", method),), ("fold_batchnorm",), calibration_rows=rows
        )
        case = {"bits": bits, "case": name, "recipe": recipe.to_dict()}
        measured.append(case | _measure(model, recipe, options.seeds, held))
        row = measured[-1]
        print(
            f"{bits} bits, {name:16} {row['divergence_mean']:.4f} {row['cpu_seconds_mean']:.1f} s"
        )
    write(
        "calibration_rows",
        model="ResNet-20 (He et al. 2015), 269,722 parameters, all layers, GPFQ",
        data="CIFAR-10: 1024 training images calibrate, 2,000 other training images judge",
        seeds=options.seeds,
        measured=measured,
    )


if __name__ == "__main__":
    main()
