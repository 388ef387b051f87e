"""HEMP on ResNet-20 and ResNet-32, CIFAR-10: bytes of the file and top-1, after a few epochs.

    python benchmarks/hemp_resnet.py [--epochs 12] [--seeds 0 1] [--kinds ...] [--jobs 3]

Every training follows the float ResNet-32's logits on shifted and mirrored training images, with a
little of the labels. 5,000 training images are held out, and settings were chosen by them; test
images decide nothing. ResNet-32 is run with the settings of ResNet-20. Kinds
(the last two for the first seed of ResNet-20):

- ``start``: the recipe "smallest", not trained, at two sizes: that which training begins at, and
  about that which it ends at;
- ``smallest``: HEMP from the larger ``start``, normalizations live again, bits steered;
- ``control``: as ``smallest``, without any entropy term: levels are the nearest;
- ``float``: HEMP from the float network, on grids of its own, equal epochs.

Accuracy is of the network loaded from the file. Any option but --jobs explores: the record goes to
.data/, never to results/.
"""

from __future__ import annotations

import argparse
import copy
import math
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from typing import Any

import torch
from torch import Tensor, nn

import fewbits
from image_training import distilled, fold, held_out, prepare_views
from images import CACHE, cifar10, normalise
from networks import resnet20, resnet32, top1
from record import Run, measured, write
from resnet20_cifar10 import calibration_batches

NETWORKS = {"resnet20": resnet20, "resnet32": resnet32}
GOAL = {"accuracy_at_least": 91.4, "bytes_at_most": 42_000}
KINDS = ("start", "smallest", "control", "float")


@dataclass(frozen=True)
class Settings:
    """The same for all networks. ``cells``: Adam's rate for weights, in distances of levels."""

    begin: float = 4e-4  # slope of "smallest" where training begins
    end: float = 4.8e-4  # and for a file about as large as training gives
    bits: float = 1.43
    slope: float = 1.5e-5
    levels: int = 15
    width: float = 1.5
    cells: float = 3e-3
    rate: float = 1e-3
    reach: float = 0.3  # of a cell: how far a weight begins from its level, towards its float
    heat: float = 3.0
    labelled: float = 0.1
    vector_bits: int = 8
    batch: int = 128
    warm: int = 100
    effort: str = "smallest"
    judged: int = 10_000


@dataclass(frozen=True)
class _Job:
    network: str
    kind: str
    seed: int
    epochs: float
    settings: Settings
    slope: float | None = None  # of "start"


def _method(kind: str, settings: Settings) -> fewbits.HEMP:
    """Return the method; the steps of a start stay, those of a float network are trained."""
    same: dict[str, Any] = {"forward": "quantized", "insensitive": False, "steps": "fixed"}
    if kind == "control":
        return fewbits.HEMP(slope=0.0, **same)
    same |= {"assign": "rate", "bits": settings.bits, "slope": settings.slope, "rate_weight": 0.02}
    if kind == "float":
        same |= {"spacing": "even", "levels": settings.levels, "width": settings.width}
    return fewbits.HEMP(**same)


def _compressed(model: nn.Module, slope: float, settings: Settings, seed: int) -> Any:
    return fewbits.compress(
        model,
        fewbits.RDOQ(slope=slope),
        calibration=calibration_batches(1024, seed),
        effort=settings.effort,
        seed=seed,
    )


def _begin(model: nn.Module, job: _Job) -> fewbits.Tuner:
    """Return the tuner; of a start its levels, normalizations live again, weights near floats."""
    settings, seed = job.settings, job.seed
    method = _method(job.kind, settings)
    same: dict[str, Any] = {"raw_dtype": "float16", "zeros": False, "seed": seed}
    same["vector_bits"] = settings.vector_bits
    if job.kind == "float":
        return fewbits.prepare(model, method, **same)
    fold(model)
    floats = {name: value.clone() for name, value in model.state_dict().items()}
    start = _compressed(copy.deepcopy(model), settings.begin, settings, seed)
    same |= {"norms": "live", "calibration": calibration_batches(1024, seed)}
    tuner = fewbits.prepare(model, method, start=start, **same)
    with torch.no_grad():
        for weight in tuner.weights:
            if weight.levels is None:
                far = settings.reach * tuner.session.cell(weight)
                away = floats[weight.name] - weight.parameter
                weight.parameter.add_(away.clamp(-far, far))
    return tuner


def _train(model: nn.Module, job: _Job) -> fewbits.CodedModel:
    """Train a network in place, and return its file's content."""
    settings = job.settings
    tuner = _begin(model, job)
    model.train().to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(tuner.groups(settings.rate, cells=settings.cells))
    rates = [group["lr"] for group in optimizer.param_groups]
    images, _ = held_out(5000)
    generator = torch.Generator().manual_seed(job.seed)
    steps = max(1, int(job.epochs * len(images.labels) / settings.batch))
    done, epoch = 0, 0
    while done < steps:
        for x, theirs, labels in images.taught(epoch, settings.batch, generator):
            share = min(1, (done + 1) / settings.warm) * (1 + math.cos(math.pi * done / steps)) / 2
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * share
            _step(model, tuner, optimizer, (x, theirs, labels), settings)
            done += 1
            tuner.advance(done / steps)
            if done % 350 == 0:
                print(f"{job.network}, {job.kind}: {done}/{steps}, {tuner.measures()}", flush=True)
            if done == steps:
                break
        epoch += 1
    model.eval()
    return tuner.finish(settings.effort)


def _step(
    model: nn.Module,
    tuner: fewbits.Tuner,
    optimizer: torch.optim.Optimizer,
    batch: tuple[Tensor, Tensor, Tensor],
    settings: Settings,
) -> None:
    x, theirs, labels = batch
    with torch.autocast("cpu", torch.bfloat16):
        ours = model(x)
    loss = distilled(ours.float(), theirs, labels, settings.heat, settings.labelled)
    optimizer.zero_grad()
    (loss + tuner.penalty()).backward()
    optimizer.step()
    tuner.step()


def _one(job: _Job) -> Run:
    torch.set_num_threads(1)
    torch.manual_seed(job.seed)
    model = NETWORKS[job.network]()
    blank, settings = copy.deepcopy(model), job.settings
    wall, cpu = time.perf_counter(), time.process_time()
    if job.slope is not None:
        coded = _compressed(model, job.slope, settings, job.seed)
    else:
        coded = _train(model, job)
    seconds = time.perf_counter() - wall, time.process_time() - cpu
    images, labels = cifar10("test")
    some = slice(settings.judged)
    away, answers = held_out(5000)[1]
    values = asdict(settings) | {"epochs": 0.0 if job.slope is not None else job.epochs}
    evaluation = {
        "test": (normalise(images[some]), labels[some]),
        "held out": (away[some], answers[some]),
    }
    run = measured(
        coded,
        blank,
        evaluation,
        seconds=seconds,
        method=f"{job.network}, {job.kind}",
        settings=values | {"begin": job.slope or settings.begin},
        seed=job.seed,
        calibration_images=0 if job.kind == "float" else 1024,
    )
    print(
        f"{run.method}, seed {run.seed}: {run.accuracy['test']:.2f} % test, "
        f"{run.accuracy['held out']:.2f} % held out, {run.file_bytes:,} bytes, "
        f"{run.cpu_seconds:.0f} s",
        flush=True,
    )
    return run


def _jobs(options: argparse.Namespace, settings: Settings) -> list[_Job]:
    """Return what is run: the long ones first."""
    found = []
    for name in reversed(options.networks):
        few = [kind for kind in options.kinds if kind in ("start", "smallest")]
        for seed in options.seeds if name == "resnet20" else options.seeds[:1]:
            whole = name == "resnet20" and seed == options.seeds[0]
            for kind in options.kinds if whole else few:
                slopes = (settings.begin, settings.end) if kind == "start" else (None,)
                for slope in slopes:
                    found.append(_Job(name, kind, seed, options.epochs, settings, slope))
    return sorted(found, key=lambda job: job.kind == "start")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--epochs", type=float, default=12.0)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=NUMBER", help="of Settings")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument(
        "--quick", action="store_true", help="one seed, 1,280 images, fast coding, 500 judged"
    )
    parser.add_argument("--out", help="name of the record in .data/")
    options = parser.parse_args()
    if options.quick:
        options.seeds, options.epochs = [0], 1280 / 45_000
    standard = vars(parser.parse_args([])) | {"jobs": options.jobs}
    if options.out is None and vars(options) != standard:
        options.out = "hemp_resnet_explored"
    return options


def _settings(options: argparse.Namespace) -> Settings:
    pairs = (entry.split("=") for entry in options.set)
    found = {key: type(getattr(Settings, key))(value) for key, value in pairs}
    return Settings(**({"effort": "fast", "judged": 500} if options.quick else {}) | found)


def main() -> None:
    """Run everything, and write the record."""
    options = _options()
    settings = _settings(options)
    prepare_views(held_out(5000)[0])
    images, labels = cifar10("test")
    test = (normalise(images), labels)
    floats: dict[str, Any] = {name: top1(NETWORKS[name](), *test) for name in options.networks}
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
        runs = list(pool.map(_one, _jobs(options, settings)))
    write(
        options.out or "hemp_resnet",
        folder=CACHE if options.out else None,
        model="ResNet-20 and ResNet-32 (He et al. 2015), all layers",
        data="CIFAR-10: 45,000 training images, 5,000 held out with a hole of 8 x 8",
        float_accuracy=floats,
        goal={"resnet20": GOAL},
        runs=runs,
    )


if __name__ == "__main__":
    main()
