"""RDOQ with a trellis, or the better quantizer of each layer, beside scalar levels: bytes.

    python benchmarks/trellis_networks.py [--minutes 60] [--quick]

Scalar levels and, layer by layer, the better of the two ("auto") at the same slopes; with seed 0
also the trellis in every layer; whole files of the effort "smallest", biases in float16. CIFAR
and LeNet-5: 1,024 training images calibrate, the test images judge (error and top-1). The others
(``zoo.py``): half of the training inputs calibrate, by the seed, and the other half judges. The
error is that of the outputs, relative to their variance, of the network loaded from the file.

``summary``: bytes over those of scalar levels at equal error, by interpolation of the logarithms,
over the errors that both reach (as Bjontegaard's), and the same at equal accuracy where that is
measured; means and standard deviations over seeds. ResNet-20 was looked at while the trellis was
made (its error on held-out training images), the others were not. Any other option explores: the
record goes to .data/.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import fewbits
from feedback_methods import halves, outputs
from images import CACHE
from kept import kept_runs
from rate_accuracy import NETWORKS
from rdoq_constants import SLOPES as USUAL
from record import blank_copy, write
from zoo import ZOO

QUANTIZERS = ("scalar", "auto", "trellis")
FACTORS = (0.5, 1.0, 2.0, 4.0)  # of the usual slopes
CIFAR = (8e-5, 1.6e-4, 3e-4, 5e-4, 8e-4)
SLOPES = {
    "resnet20": (*CIFAR, 1.2e-3),
    "resnet32": CIFAR,
    **{name: tuple(f * USUAL[name] for f in FACTORS) for name in ("lenet300", "lenet5", "resnet8")},
    "mobilenet_v2": (1e-5, 4e-5, 1.6e-4),
}
SEEDS = {"resnet32": (0,), "mobilenet_v2": (0,)}
TARGETS = (91.4, 90.2, 88.5)  # top-1 of ResNet-20 whose bytes are told
# The same ResNet-20 by CERWU's public sources, all bytes counted as ours are: top-1, bytes;
# once, with 1,024 calibration images of one seed and 4,000 test images (91.5 % in float).
CERWU = (
    (80.4, 34_568),
    (88.4, 46_181),
    (89.2, 52_717),
    (90.3, 61_667),
    (90.9, 66_037),
    (91.0, 73_026),
    (91.7, 85_790),
)


@dataclass(frozen=True)
class Job:
    """A network, a quantizer, and the calibration inputs of a seed, at one slope."""

    network: str
    quantizer: str
    slope: float
    seed: int


@dataclass(frozen=True)
class _Setting:
    """A network, what calibrates and what judges it, and the outputs in float."""

    build: Callable[[], nn.Module]
    calibration: list[Tensor]
    judged: list[Tensor]
    labels: Tensor | None
    outputs: Tensor


@lru_cache(maxsize=1)
def _setting(network: str, seed: int) -> _Setting:
    if network in NETWORKS:
        _, build, calibration, test = NETWORKS[network]
        images, labels = test()
        judged = list(images.split(500))
        return _Setting(build, calibration(1024, seed), judged, labels, outputs(build(), judged))
    case = ZOO[network]()
    calibration, judged = halves(case, seed)
    model = case.model.eval()
    return _Setting(ZOO[network]().model.eval, calibration, judged, None, outputs(model, judged))


def one(job: Job) -> dict[str, Any]:
    """Compress, save, load the file into a network of NaN, and judge."""
    torch.set_num_threads(1)
    setting = _setting(job.network, job.seed)
    model = setting.build()
    method = fewbits.RDOQ(slope=job.slope, quantizer=job.quantizer)
    recipe = replace(fewbits.Recipe.of(method), raw_dtype="float16")
    start = time.process_time()
    coded = fewbits.compress(model, recipe, calibration=setting.calibration, seed=job.seed)
    seconds = time.process_time() - start
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.fewbits"
        coded.save(path, effort="smallest")
        size = path.stat().st_size
        found = outputs(fewbits.load(path, into=blank_copy(model)), setting.judged)
    wanted = setting.outputs
    error = (found - wanted).square().sum() / (wanted - wanted.mean(0)).square().sum()
    row = {
        "network": job.network,
        "quantizer": job.quantizer,
        "slope": job.slope,
        "seed": job.seed,
        "file_bytes": size,
        "output_error_percent": round(100 * float(error), 4),
        "cpu_seconds": round(seconds, 1),
    }
    if setting.labels is not None:
        right = found.argmax(1) == torch.as_tensor(setting.labels)
        row["accuracy"] = round(100 * float(right.double().mean()), 2)
    print(row, flush=True)
    return row


def bytes_ratio(rows: Sequence[dict[str, Any]], quantizer: str, measure: str) -> float | None:
    """Return a quantizer's bytes over those of scalar levels where both reach the same measure."""
    curves = []
    for kind in ("scalar", quantizer):
        own = [row for row in rows if row["quantizer"] == kind]
        value = math.log if measure == "output_error_percent" else float
        points = sorted((value(row[measure]), math.log(row["file_bytes"])) for row in own)
        curves.append(np.array(points).reshape(-1, 2).T)
    if min(curve.shape[1] for curve in curves) < 2:
        return None
    low, high = max(c[0].min() for c in curves), min(c[0].max() for c in curves)
    if low >= high:
        return None
    grid = np.linspace(low, high, 200)
    scalar, other = (np.interp(grid, *curve) for curve in curves)
    return math.exp(float((other - scalar).mean()))


def bytes_at(rows: Sequence[dict[str, Any]], accuracy: float) -> int | None:
    """Return bytes at an accuracy, between the means over seeds of two slopes; None beyond them."""
    means = []
    for slope in dict.fromkeys(row["slope"] for row in rows):
        own = [row for row in rows if row["slope"] == slope]
        size = mean(row["file_bytes"] for row in own)
        means.append((mean(row["accuracy"] for row in own), math.log(size)))
    scores, sizes = zip(*sorted(means), strict=True)
    inside = scores[0] <= accuracy <= scores[-1]
    return round(math.exp(np.interp(accuracy, scores, sizes))) if inside else None


def summary(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a row for each network and quantizer: ratios of bytes over seeds, and seconds."""
    found = []
    for network, quantizer in dict.fromkeys((row["network"], row["quantizer"]) for row in rows):
        every = [row for row in rows if row["network"] == network]
        own = [row for row in every if row["quantizer"] == quantizer]
        told: dict[str, Any] = {"network": network, "quantizer": quantizer}
        told["cpu_seconds"] = round(mean(row["cpu_seconds"] for row in own), 1)
        for measure in ("output_error_percent", "accuracy"):
            if measure not in own[0] or quantizer == "scalar":
                continue
            seeds = dict.fromkeys(row["seed"] for row in own)
            groups = [[row for row in every if row["seed"] == seed] for seed in seeds]
            ratios = [bytes_ratio(group, quantizer, measure) for group in groups]
            known = [ratio for ratio in ratios if ratio is not None]
            told[f"bytes_at_equal_{measure}"] = round(mean(known), 4) if known else None
            told[f"deviation_{measure}"] = round(stdev(known), 4) if len(known) > 1 else None
        if network == "resnet20":
            told["bytes_at"] = {str(target): bytes_at(own, target) for target in TARGETS}
        found.append(told)
    return found


def main() -> None:
    """Run all settings and write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=1e6)
    parser.add_argument("--earlier", nargs="*", default=(), help="commits whose runs are taken")
    parser.add_argument("--quick", action="store_true", help="LeNet-300-100, one seed")
    options = parser.parse_args()
    jobs = [
        Job(network, quantizer, slope, seed)
        for seed in ((0,) if options.quick else (0, 1, 2))
        for network in (["lenet300"] if options.quick else SLOPES)
        if seed in SEEDS.get(network, (0, 1, 2))
        for slope in SLOPES[network]
        for quantizer in QUANTIZERS[: 3 if seed == 0 else 2]
    ]
    jobs.sort(key=lambda job: (job.network != "resnet20") + (job.network == "mobilenet_v2"))
    results = kept_runs(
        "trellis_networks",
        one,
        jobs,
        workers=options.jobs,
        minutes=options.minutes,
        earlier=options.earlier,
    )
    rows = [row for row in results if row is not None and "failed" not in row]
    for row in summary(rows):
        print(row)
    write(
        "trellis_networks_quick" if options.quick else "trellis_networks",
        folder=CACHE if options.quick else None,
        model=", ".join(dict.fromkeys(job.network for job in jobs)),
        data="training inputs calibrate; test images, or training inputs held out, judge",
        missing=len(jobs) - len(rows),
        cerwu=CERWU,
        summary=summary(rows),
        measured=rows,
    )


if __name__ == "__main__":
    main()
