"""HEMP on ResNet-20 and ResNet-32, CIFAR-10: bytes of the file and top-1, after a few epochs.

    python benchmarks/hemp_resnet.py [--epochs 20] [--seeds 0 1 2] [--kinds ...] [--jobs 4]

Every run follows the float network on shifted and mirrored training images, without labels: its
logits and the outputs of its blocks. 5,000 training images are held out, and nothing is chosen by
the test images. ResNet-32 is run with the settings of ResNet-20. Kinds:

- ``start``: the recipe "smallest" at the same bits per weight, not trained;
- ``smallest``: the network computes with its levels, bits are a part of the loss; from ``start``;
- ``float``: the same from the float network; ``control``: as ``smallest``, without bits;
- ``published``, ``published float``: the paper's form (float forward pass, pull, entropy force).

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
from itertools import product
from multiprocessing import get_context
from typing import Any

import torch
from torch import Tensor, nn

import fewbits
from image_training import features, fold, following_loss, held_out
from images import CACHE, cifar10, normalise
from networks import resnet20, resnet32, top1
from record import Run, measured, write
from resnet20_cifar10 import calibration_batches

NETWORKS = {"resnet20": resnet20, "resnet32": resnet32}
GOAL = {"accuracy_at_least": 91.4, "bytes_at_most": 42_000}
STEPS_APART = 0.49  # of a cell; further, and a weight would begin at another level


@dataclass(frozen=True)
class Settings:
    """The same for all networks. ``cells``: Adam's rate for weights, in distances of levels."""

    bits: float = 1.235
    slope: float = 4e-7
    cells: float = 4e-3
    rate: float = 1e-3
    reach: float = 0.3
    temperature: float = 2.0
    blocks: float = 2.0
    batch: int = 128
    warm: int = 100
    effort: str = "smallest"
    judged: int = 10_000


def _method(kind: str, settings: Settings) -> fewbits.HEMP:
    if kind.startswith("published"):
        return fewbits.HEMP(spacing="even", levels=15)
    slope = 0.0 if kind == "control" else settings.slope
    return fewbits.HEMP(
        spacing="even",
        levels=15,
        forward="quantized",
        slope=slope,
        pool="tensor",
        insensitive=False,
    )


def _begin(model: nn.Module, kind: str, settings: Settings, seed: int) -> fewbits.Tuner:
    """Return the tuner of ``model``, folded; from the recipe's file, weights near the float's."""
    method = _method(kind, settings)
    if kind.endswith("float"):
        return fewbits.prepare(model, method, raw_dtype="float16", zeros=False, seed=seed)
    floats = {name: value.clone() for name, value in model.state_dict().items()}
    tuner = fewbits.prepare(
        model, method, start=_start(model, settings, seed), raw_dtype="float16", seed=seed
    )
    with torch.no_grad():
        for weight in tuner.weights:
            far = min(settings.reach, STEPS_APART) * tuner.course.cell(weight)
            away = floats[weight.name] - weight.parameter
            weight.parameter.add_(away.clamp(-far, far))
    return tuner


def _start(model: nn.Module, settings: Settings, seed: int) -> fewbits.CodedModel:
    calibration = calibration_batches(1024, seed)
    return fewbits.compress(
        model,
        "smallest",
        calibration=calibration,
        target_bits=settings.bits,
        effort=settings.effort,
        seed=seed,
    )


def _train(
    model: nn.Module, kind: str, settings: Settings, seed: int, epochs: float
) -> fewbits.CodedModel:
    """Train a folded network in place, and return its file's content."""
    teacher = copy.deepcopy(model).to(memory_format=torch.channels_last).requires_grad_(False)
    tuner = _begin(model, kind, settings, seed)
    model.to(memory_format=torch.channels_last)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.requires_grad_(False)
    optimizer = torch.optim.Adam(
        tuner.groups(settings.rate, cells=settings.cells), betas=(0.9, 0.99)
    )
    rates = [group["lr"] for group in optimizer.param_groups]
    images, _ = held_out(5000)
    generator = torch.Generator().manual_seed(seed)
    steps = max(1, round(epochs * len(images.labels) / settings.batch))
    done = 0
    while done < steps:
        for x, _ in images.batches(settings.batch, generator):
            share = min(1, (done + 1) / settings.warm) * (1 + math.cos(math.pi * done / steps)) / 2
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * share
            _step((model, teacher), tuner, optimizer, x, settings)
            done += 1
            tuner.advance(done / steps)
            if done == steps:
                break
    return tuner.finish(settings.effort)


def _step(
    nets: tuple[nn.Module, nn.Module],
    tuner: fewbits.Tuner,
    optimizer: torch.optim.Optimizer,
    x: Tensor,
    settings: Settings,
) -> None:
    model, teacher = nets
    x = x.contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        with torch.no_grad():
            theirs = features(teacher, x)
        ours = features(model, x)
    loss = following_loss(ours, theirs, settings.temperature, settings.blocks) + tuner.penalty()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    tuner.step()


def _one(job: tuple[str, str, int, float, Settings]) -> tuple[str, Run]:
    """Run one kind on one network with one seed."""
    name, kind, seed, epochs, settings = job
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    model = fold(NETWORKS[name]())
    blank = copy.deepcopy(model)
    wall, cpu = time.perf_counter(), time.process_time()
    if kind == "start":
        coded, epochs = _start(model, settings, seed), 0.0
    else:
        coded = _train(model, kind, settings, seed, epochs)
    seconds = time.perf_counter() - wall, time.process_time() - cpu
    images, labels = cifar10("test")
    some = slice(settings.judged)
    away, answers = held_out(5000)[1]
    evaluation = {
        "test": (normalise(images[some]), labels[some]),
        "held out": (away[some], answers[some]),
    }
    run = measured(
        coded,
        blank,
        evaluation,
        seconds=seconds,
        method=f"{name}, {kind}",
        settings={**asdict(settings), "epochs": epochs},
        seed=seed,
        calibration_images=0 if kind.endswith("float") else 1024,
    )
    return name, run


def _options() -> argparse.Namespace:
    kinds = ["start", "smallest", "float", "control", "published", "published float"]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--kinds", nargs="+", default=kinds, choices=kinds)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--epochs", type=float, default=20.0)
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
    jobs = [
        (name, kind, seed, options.epochs, settings)
        for name, kind, seed in product(options.networks, options.kinds, options.seeds)
    ]
    images, labels = cifar10("test")
    test = (normalise(images), labels)
    floats: dict[str, Any] = {name: top1(NETWORKS[name](), *test) for name in options.networks}
    runs = []
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
        for _, run in pool.map(_one, jobs):
            print(
                f"{run.method}, seed {run.seed}: {run.accuracy['test']:.2f} % test, "
                f"{run.accuracy['held out']:.2f} % held out, {run.file_bytes:,} bytes, "
                f"{run.cpu_seconds:.0f} s",
                flush=True,
            )
            runs.append(run)
    write(
        options.out or "hemp_resnet",
        folder=CACHE if options.out else None,
        model="ResNet-20 and ResNet-32 (He et al. 2015), normalizations folded, all layers",
        data="CIFAR-10: 45,000 training images without labels, 5,000 held out with a hole of 8 x 8",
        float_accuracy=floats,
        goal={"resnet20": GOAL},
        runs=runs,
    )


if __name__ == "__main__":
    main()
