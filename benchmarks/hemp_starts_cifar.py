"""HEMP with default settings after five compressed starts of trained ResNets, on CIFAR-10.

    python benchmarks/hemp_starts_cifar.py [--quick] [--minutes 60] [--networks resnet8]

The parts and verdicts of ``hemp_starts.py``: before, HEMP, its control without the entropy term,
and the last epoch with nothing held out; of PWFN also a start whose gradients have no limit.
ResNet-8 of MLPerf Tiny has three seeds (of the training images, the calibration and the training),
ResNet-20 one. Training has 4 epochs of 3,000 training images, a tenth of them held out, at the
default rates; PWFN's, which makes a start, too. The float networks are those of the shared data.
Accuracy is that of the reloaded file on all 10,000 test images, which decide nothing. Any option
but --minutes and --earlier explores: the record goes to .data/.
"""

from __future__ import annotations

import argparse
import warnings
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

import fewbits
from fewbits.methods import PWFN
from fewbits.recipe.training_config import Training
from fewbits.sources import ArraySplit, DataSource
from hemp_starts import compressed, parts, show, summary_of
from images import CACHE, cifar10, normalise, pixels
from kept import kept_runs
from networks import resnet20, top1
from record import Run, write
from training_case import Case
from zoo import resnet8

NETWORKS = {"resnet8": (resnet8, pixels, 3), "resnet20": (resnet20, normalise, 1)}  # and seeds
STARTS = ("transform", "pwfn", "gpfq, 2 bits", "smallest", "rdoq, slope 3e-3")
TRAINED, EPOCHS = 3_000, 4


@dataclass(frozen=True)
class _Job:
    network: str
    start: str
    seed: int
    quick: bool


def _images(part: str, network: str, chosen: Any) -> tuple[Tensor, Tensor]:
    """Return images as the network expects them, and labels."""
    images, labels = cifar10(part)
    return NETWORKS[network][1](images[chosen]), labels[chosen]


def _pwfn(case: Case, training: Training) -> fewbits.CodedModel:
    return replace(case, start=None).trained(PWFN(), training)


def _run(job: _Job) -> dict[str, Any]:
    """Run all parts of a job."""
    torch.set_num_threads(1)
    order = np.random.default_rng(job.seed).permutation(50_000)
    rows = np.sort(order[: 500 if job.quick else TRAINED])
    train = ArraySplit(*_images("train", job.network, rows), None)
    test = _images("test", job.network, np.arange(500 if job.quick else 10_000))
    training = Training(epochs=1 if job.quick else EPOCHS)
    title, data = f"{job.network} | {job.start}", DataSource("cifar10", train, classes=10)
    case = Case(title, job.seed, NETWORKS[job.network][0](), data, test)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what a start loses is in the notes
        case = replace(case, start=compressed(case, job.start, training))
        runs = parts(case, job.start, training)
        if job.start == "pwfn":
            free = replace(training, relative_clip=0)
            runs.append(case.run("before, gradients free", lambda: _pwfn(case, free), PWFN()))
    return {"runs": [asdict(run) for run in runs], "float": top1(case.model, *test)}


def main() -> None:
    """Run everything, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--starts", nargs="+", default=list(STARTS), choices=STARTS)
    parser.add_argument("--minutes", type=float, default=1e6, help="begin no run after so long")
    parser.add_argument("--earlier", nargs="*", default=[], help="commits whose runs are taken too")
    parser.add_argument("--quick", action="store_true", help="seed 0, an epoch, few images")
    options = parser.parse_args()
    free = {"minutes": options.minutes, "earlier": options.earlier}
    explores = vars(options) != vars(parser.parse_args([])) | free
    jobs = [
        _Job(network, start, seed, options.quick)
        for network in options.networks
        for seed in range(1 if options.quick else NETWORKS[network][2])
        for start in options.starts
    ]
    name = "hemp_starts_cifar"
    found = kept_runs(name, _run, jobs, minutes=options.minutes, earlier=options.earlier)
    done = [(job, result) for job, result in zip(jobs, found, strict=True) if result is not None]
    runs = [Run(**run) for _, result in done for run in result["runs"]]
    floats = {job.network: result["float"] for job, result in done}
    summary = summary_of(runs, floats)
    show(summary)
    write(
        name,
        folder=CACHE if explores else None,
        model="ResNet-8 of MLPerf Tiny and ResNet-20 (CIFAR-10)",
        data=f"CIFAR-10: {TRAINED:,} training images, a tenth held out; 10,000 test images",
        float_accuracy=floats,
        commits=sorted({result["commit"] for _, result in done}),
        summary=summary,
        missing=len(jobs) - len(done),
        runs=runs,
    )


if __name__ == "__main__":
    main()
