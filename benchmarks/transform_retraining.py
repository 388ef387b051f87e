"""Training after Transform with a frozen structure: coefficients alone, or the basis too.

    python benchmarks/transform_retraining.py [--quick] [--minutes 60] [--earlier COMMIT]

For each network, rate and basis of the inputs (ELT, KLT, none): the file of Transform in the
paper's form (blocks of fixed depth, no feedback, no rate term), then a training from it in which
steps stay fixed (``HEMP(forward="quantized", slope=0, steps="fixed")``), with the basis trained and
as a control with the basis fixed. The slope is searched for, so that the starts of a rate have
nearly equal bytes. Trainings of a network have equal epochs, images and optimizer; three seeds
draw the order of images, the calibration is one. Accuracy is that of the reloaded file on
test images (the first 5,000), which neither train, nor calibrate, nor choose anything; the learning
rates of the first two networks were chosen on training images that these trainings do not see.

- "digits": digits-cnn of fewbits on scikit-learn's digits;
- "wide": a CNN of 64 to 256 channels on Fashion-MNIST at 14 x 14 pixels, trained here; a basis is 2
  to 11 % of its 3x3 layers;
- "resnet20": on CIFAR-10, as He et al. 2015 have it.

Any option but --minutes and --earlier explores: the record goes to .data/.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import Any, TypeAlias

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

import fewbits
from fewbits.methods import HEMP, Transform
from fewbits.sources import load_data
from images import CACHE, cifar10, mnist, normalise
from kept import kept_runs
from networks import digits_network, resnet20, top1
from record import Run, measured, write

Set: TypeAlias = "tuple[Tensor, Tensor]"

BLOCKS = {"form": "blocks", "feedback": False, "rate": "none", "basis_bits": 4}
BASES: dict[str, Any] = {
    "elt": {"basis": "elt", "side": "row"},
    "klt": {"basis": "klt", "side": "row"},
    "identity": {"basis": "none"},
}
BYTES = {
    "digits": {0.7: 3_900, 1.0: 5_250},
    "wide": {0.45: 39_000, 1.0: 87_000},
    "resnet20": {2.0: 68_000, 1.0: 36_000},
}
"""The size of the start at every rate, in bits per weight of the file."""
SEEDS = (0, 1, 2)
CALIBRATION, TESTED = 512, 5_000


@dataclass(frozen=True)
class _Schedule:
    """A training: its images, and a learning rate that falls linearly to zero."""

    images: Set
    epochs: int
    rate: float
    batch: int = 64
    seed: int = 0


def _descend(model: nn.Module, schedule: _Schedule, tuner: fewbits.Tuner | None = None) -> None:
    """Minimise the cross-entropy with Adam, through ``tuner`` if there is one."""
    images, labels = schedule.images
    batch, rate = schedule.batch, schedule.rate
    parameters = model.parameters() if tuner is None else tuner.groups(rate)
    optimizer = torch.optim.Adam(parameters, rate)
    generator = torch.Generator().manual_seed(schedule.seed)
    steps, step = len(images) // batch * schedule.epochs, 0
    model.train()
    for _ in range(schedule.epochs):
        order = torch.randperm(len(images), generator=generator)
        for rows in order[: len(order) // batch * batch].split(batch):
            for group in optimizer.param_groups:
                group["lr"] = rate * (1 - step / steps)
            loss = functional.cross_entropy(model(images[rows]), labels[rows])
            optimizer.zero_grad()
            (loss if tuner is None else loss + tuner.penalty()).backward()
            optimizer.step()
            step += 1
            if tuner is not None:
                tuner.step()
                tuner.advance(step / steps)


@dataclass(frozen=True)
class _Bench:
    """A float network and its images."""

    model: nn.Module
    schedule: _Schedule
    test: Set

    @property
    def calibration(self) -> list[Tensor]:
        return list(self.schedule.images[0][:CALIBRATION].split(64))

    @property
    def weights(self) -> int:
        return sum(p.numel() for p in self.model.parameters() if p.dim() > 1)


@dataclass(frozen=True)
class _Job:
    network: str
    bits: float
    basis: str
    target: int
    quick: bool


def _block(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())


def _wide() -> nn.Sequential:
    return nn.Sequential(
        _block(1, 64, 3, 2),
        _block(64, 128, 3, 2),
        _block(128, 256, 3),
        _block(256, 128, 1),
        _block(128, 256, 3, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(256, 10),
    )


def _fashion(part: str) -> Set:
    """Return Fashion-MNIST at half its resolution, normalised."""
    pixels, labels = mnist(part, "fashion_mnist")
    images = functional.avg_pool2d(pixels.view(-1, 1, 28, 28) / 255, 2)
    return (images - 0.286) / 0.32, labels


@cache
def _digits(quick: bool) -> _Bench:
    source = load_data("digits")
    parts = {part: list(source.batches(part)) for part in ("train", "test")}
    whole = {
        part: (torch.cat([x for x, _ in found]), torch.cat([y for _, y in found]))
        for part, found in parts.items()
    }
    images, labels = whole["train"]
    model = digits_network("digits-cnn", 2 if quick else 16, 0)
    schedule = _Schedule((images[:-200], labels[:-200]), 1 if quick else 4, 3e-3)
    return _Bench(model, schedule, whole["test"])


@cache
def _fashion_bench(quick: bool) -> _Bench:
    (images, labels), (tests, answers) = _fashion("train"), _fashion("test")
    model, path = _wide(), CACHE / f"wide_fashion_{quick}.safetensors"
    if path.exists():
        model.load_state_dict(load_file(path))
    else:
        torch.manual_seed(0)
        model = _wide()
        count = 2000 if quick else 30_000
        _descend(model, _Schedule((images[:count], labels[:count]), 1 if quick else 3, 2e-3, 128))
        CACHE.mkdir(exist_ok=True)
        save_file(model.state_dict(), path)
    count = 640 if quick else 2_000
    schedule = _Schedule((images[:count], labels[:count]), 1 if quick else 2, 3e-3)
    judged = tests[:TESTED], answers[:TESTED]
    return _Bench(model.eval(), schedule, judged)


@cache
def _resnet20(quick: bool) -> _Bench:
    (images, labels), (tests, answers) = cifar10("train"), cifar10("test")
    count = 640 if quick else 3_000
    schedule = _Schedule((normalise(images[:count]), labels[:count]), 1 if quick else 2, 1e-3)
    judged = normalise(tests[:TESTED]), answers[:TESTED]
    return _Bench(resnet20(), schedule, judged)


NETWORKS: dict[str, Callable[[bool], _Bench]] = {
    "digits": _digits,
    "wide": _fashion_bench,
    "resnet20": _resnet20,
}


def _methods(basis: str) -> dict[str, HEMP]:
    """Return the trainings by what they train: steps, depths and dropped vectors are frozen."""
    frozen = HEMP(forward="quantized", slope=0, steps="fixed", bases="fixed")
    if basis == "identity":
        return {"coefficients": frozen}
    return {"coefficients": frozen, "basis too": replace(frozen, bases="trained")}


def _trained(
    start: fewbits.CodedModel, method: HEMP, bench: _Bench, seed: int
) -> fewbits.CodedModel:
    """Return the compressed network after training from ``start``."""
    model = copy.deepcopy(bench.model)
    tuner = fewbits.prepare(model, method, start=start)
    _descend(model, replace(bench.schedule, seed=seed), tuner)
    return tuner.finish()


def _run(job: _Job) -> list[dict[str, Any]]:
    """Return the runs of one start: the file itself, and those of the trainings from it."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # what a start loses is in the notes
    bench = NETWORKS[job.network](job.quick)
    runs = []

    def keep(part: str, seed: int, settings: Any, work: Callable[[], Any]) -> Any:
        wall, cpu = time.perf_counter(), time.process_time()
        coded = work()
        run = measured(
            coded.without_metadata(),
            bench.model,
            {"test": bench.test},
            seconds=(time.perf_counter() - wall, time.process_time() - cpu),
            method=f"{job.network} | {job.bits:g} bits | {job.basis} | {part}",
            settings={"method": repr(settings)},
            seed=seed,
            calibration_images=CALIBRATION,
        )
        told = f"{run.file_bytes:,} bytes, {run.bits_per_weight:.3f} bits, {run.accuracy}"
        print(f"{run.method} | {seed}: {told}, {run.cpu_seconds:.0f} CPU s", flush=True)
        runs.append(asdict(run))
        return coded

    method = Transform(**BASES[job.basis], **BLOCKS)
    work = lambda: fewbits.compress(  # noqa: E731
        bench.model, method, bench.calibration, target_bytes=job.target
    )
    start = keep("before", 0, method, work)
    for part, training in _methods(job.basis).items():
        for seed in SEEDS[: 1 if job.quick else None]:
            work = lambda s=seed, t=training: _trained(start, t, bench, s)  # noqa: E731
            keep(part, seed, training, work)
    return runs


def _summary(runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return mean and standard deviation over the seeds."""
    groups: dict[str, list[Any]] = {}
    for run in runs:
        groups.setdefault(run["method"], []).append(run)
    return [
        {
            "method": method,
            "seeds": len(group),
            "bits_per_weight": statistics.mean(run["bits_per_weight"] for run in group),
            "file_bytes": statistics.mean(run["file_bytes"] for run in group),
            "accuracy": statistics.mean(run["accuracy"]["test"] for run in group),
            "deviation": _deviation([run["accuracy"]["test"] for run in group]),
        }
        for method, group in groups.items()
    ]


def _deviation(values: Sequence[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None


def main() -> None:
    """Run every start and its trainings, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="an epoch of few images, one seed")
    parser.add_argument("--only", choices=NETWORKS, help="one network")
    parser.add_argument("--minutes", type=float, default=1e6, help="start no job after these")
    parser.add_argument("--earlier", nargs="*", default=[], help="commits whose runs may serve")
    options = parser.parse_args()
    torch.set_num_threads(1)
    jobs = [
        _Job(network, bits, basis, target, options.quick)
        for network in ([options.only] if options.only else NETWORKS)
        for bits, target in BYTES[network].items()
        for basis in BASES
    ]
    benches = {job.network: NETWORKS[job.network](job.quick) for job in jobs}
    bounds = {"minutes": options.minutes, "earlier": options.earlier}
    found = kept_runs("transform_retraining", _run, jobs, **bounds)
    runs = [run for result in found if result is not None for run in result]
    write(
        "transform_retraining",
        model="digits-cnn; a CNN of 64 to 256 channels, trained here; ResNet-20",
        data="scikit-learn's digits; Fashion-MNIST at 14 x 14 pixels; CIFAR-10",
        folder=CACHE if options.quick or options.only else None,
        earlier=options.earlier,
        missing=sum(result is None for result in found),
        float_accuracy={name: top1(b.model, *b.test) for name, b in benches.items()},
        weights={name: b.weights for name, b in benches.items()},
        summary=_summary(runs),
        runs=[Run(**run) for run in runs],
    )


if __name__ == "__main__":
    main()
