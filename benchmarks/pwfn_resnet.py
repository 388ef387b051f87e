"""PWFN on ResNet-20, CIFAR-10: values of the whole network, bytes, top-1, and noise resilience.

    python benchmarks/pwfn_resnet.py [--epochs 4] [--seeds 0 1 2] [--kinds ...] [--jobs 4]

All kinds train the float network for as many epochs, on labels of 45,000 shifted and mirrored
training images; nothing is chosen by the test images. Kinds:

- ``pwfn``: deviations learned, weights fixed round by round;
- ``pwfn constant``: the control: no noise, and one constant deviation, the mean of what ``pwfn``
  learned with the same seed;
- ``pwfn permuted``: as ``pwfn``, the deviations shuffled within each layer before each round;
- ``rounded``: trained without any method, then each weight to the nearest multiple of the finest
  value of ``pwfn``;
- ``k-means``: a codebook for each layer, with as many values as ``pwfn`` may have in all, the
  network computing with them;
- ``noisy``, ``plain``: no weight is fixed: trained with noise as ``pwfn``, and without; both in
  float32, for the resilience to noise alone.

Accuracy is of the network loaded from the file. Runs are kept, so that a benchmark that was stopped
goes on; after --minutes no run begins, and the record counts what is missing. Any other option
explores: the record goes to .data/, never to results/.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from dataclasses import asdict, dataclass, replace
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fewbits
from fewbits.coded import network_values
from image_training import held_out
from images import CACHE, cifar10, normalise
from kept import kept_runs
from networks import resnet20, top1
from record import Run, measured, write

UNFIXED = ("rounded", "noisy", "plain")
KINDS = ("pwfn", "pwfn constant", "pwfn permuted", "rounded", "k-means", "noisy", "plain")
_BEGAN = time.perf_counter()
GOAL = {"accuracy_below_float_at_most": 1.0, "values_at_most": 64}


@dataclass(frozen=True)
class Settings:
    """The same for all kinds.

    ``spread``: deviation of the control, where ``pwfn`` is not run; ``rate``: at the start, falling
    linearly to a twentieth; ``images``: of noise tests.
    """

    growth: float = 0.4
    spread: float = 0.03
    most: int = 64
    until: float = 0.95
    rate: float = 0.01
    decay: float = 1e-4
    batch: int = 128
    draws: int = 10
    images: int = 2000
    judged: int = 10_000


@dataclass(frozen=True)
class _Job:
    kind: str
    seed: int
    epochs: float
    settings: Settings


def _method(kind: str, settings: Settings) -> Any:
    shared = {"most": settings.most, "until": settings.until}
    if kind == "pwfn constant":
        return fewbits.PWFN(deviation="constant", noise=False, spread=settings.spread, **shared)
    if kind == "k-means":
        levels = settings.most - 1 + settings.most % 2
        return fewbits.HEMP(
            levels=levels, forward="quantized", rate_weight=0.0, refit=350, insensitive=False
        )
    if kind in UNFIXED:
        same = settings.growth / (fewbits.PWFN(**shared).due(2) - fewbits.PWFN(**shared).due(1))
        way = {"growth": same} if kind == "noisy" else {"deviation": "constant"}
        return fewbits.PWFN(fractions=(1.0,), begin=1.0, until=1.0, **way)
    return fewbits.PWFN(growth=settings.growth, **shared)


@torch.no_grad()
def _shuffle(tuner: fewbits.Tuner, generator: torch.Generator) -> None:
    """Permute the deviations of the weights that are free, within each tensor."""
    for name, tensor in tuner.session.state_dict()["tensors"].items():
        deviation, fixed = tuner.session.deviations()[name], tensor["fixed"]
        free = torch.ones_like(deviation, dtype=torch.bool) if fixed is None else ~fixed
        values = deviation[free]
        deviation[free] = values[torch.randperm(len(values), generator=generator)]


def _train(model: nn.Module, kind: str, settings: Settings, seed: int, epochs: float) -> Any:
    """Train a network in place, and return its tuner."""
    tuner = fewbits.prepare(model, _method(kind, settings), raw_dtype="float16", seed=seed)
    model.to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(
        model.parameters(), lr=settings.rate, momentum=0.9, weight_decay=settings.decay
    )
    images, _ = held_out(5000)
    generator = torch.Generator().manual_seed(seed)
    steps, done, rounds = max(1, round(epochs * len(images.labels) / settings.batch)), 0, 0
    while done < steps:
        for x, y in images.batches(settings.batch, generator):
            with torch.autocast("cpu", torch.bfloat16):
                logits = model(x)
            loss = F.cross_entropy(logits.float(), y) + tuner.penalty()
            optimizer.zero_grad()
            for group in optimizer.param_groups:
                group["lr"] = settings.rate * (1 - 0.95 * done / steps)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            tuner.step()
            done += 1
            if kind == "pwfn permuted" and done / steps >= tuner.session.method.due(rounds):
                _shuffle(tuner, generator)
                rounds += 1
            tuner.advance(min(done / steps, 1 - 1e-6) if kind in UNFIXED else done / steps)
            if done == steps:
                break
    return tuner


def _float_file(model: nn.Module, tuner: fewbits.Tuner, kind: str) -> fewbits.CodedModel:
    """Return what stands for kinds that fix nothing: rounded weights, or the float network."""
    finest = tuner.session.finest
    if kind == "rounded":
        with torch.no_grad():
            for weight in tuner.weights:
                weight.parameter.copy_((weight.parameter * 2**finest).round() / 2**finest)
        exact = fewbits.PWFN(
            fractions=(1.0,), deviation="constant", spread=1e-6, terms=24, finest=finest
        )
        plain = resnet20()
        plain.load_state_dict(model.state_dict())
        return fewbits.prepare(plain, exact, raw_dtype="float16", zeros=False).finish()
    plain = resnet20()
    plain.load_state_dict(model.state_dict())
    return fewbits.compress(plain, fewbits.Recipe((fewbits.Rule("*", None),)))


def _rounds(tuner: fewbits.Tuner) -> list[dict[str, float]]:
    rounds = getattr(tuner.session, "rounds", [])
    return [
        {key: value for key, value in one.to_dict().items() if key != "picks"}
        | {"picks": len(one.picks), "widest": max((p.distance for p in one.picks), default=0.0)}
        for one in rounds
    ]


def _deviation(rounds: list[dict[str, float]]) -> float:
    """Return the mean deviation of weights when they were fixed: by round, by their number."""
    before, total = 0.0, 0.0
    for one in rounds:
        total += one["deviation"] * (one["fixed"] - before)
        before = one["fixed"]
    return total / max(1.0, before)


def _one(job: _Job) -> tuple[dict[str, Any], dict[str, Any]]:
    """Train one kind with one seed, and return its run and what else it tells."""
    kind, seed, epochs, settings = job.kind, job.seed, job.epochs, job.settings
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    model = resnet20()
    blank = copy.deepcopy(model)
    wall, cpu = time.perf_counter(), time.process_time()
    tuner = _train(model, kind, settings, seed, epochs)
    more: dict[str, Any] = {"kind": kind, "seed": seed, "rounds": _rounds(tuner)}
    more["deviation"] = _deviation(more["rounds"])
    coded = tuner.finish("smallest") if kind not in UNFIXED else _float_file(model, tuner, kind)
    seconds = time.perf_counter() - wall, time.process_time() - cpu
    images, labels = cifar10("test")
    x, y = normalise(images), labels
    some = slice(settings.judged)
    run = measured(
        coded,
        blank,
        {"held out": held_out(5000)[1], "test": (x[some], y[some])},
        seconds=seconds,
        method=kind,
        settings={**asdict(settings), "epochs": epochs},
        seed=seed,
        calibration_images=0,
    )
    more |= {"statistics": network_values(coded.tensors).to_dict()}
    net = coded.load_into(resnet20())
    more["noise"] = _noise(net, (x[: settings.images], y[: settings.images]), settings)
    _tell(run, more)
    return asdict(run), more


def _tell(run: Run, more: dict[str, Any]) -> None:
    values = more["statistics"]
    noise = ", ".join(f"{row['noise']}: {row['accuracy']:.3f}" for row in more["noise"])
    print(
        f"{run.method}, seed {run.seed}: {run.accuracy['held out']:.2f} % held out, "
        f"{run.accuracy['test']:.2f} % test, {run.file_bytes:,} bytes, "
        f"{values['values']} values, {values['entropy']:.3f} bits, deviation "
        f"{more['deviation']:.4f}, under noise {noise}; {run.cpu_seconds:.0f} s",
        flush=True,
    )


def _noise(net: nn.Module, data: tuple[Tensor, Tensor], settings: Settings) -> list[Any]:
    batches = list(zip(*(part.split(500) for part in data), strict=True))
    found = fewbits.noise_resilience(net, batches, (0.02, 0.04, 0.06), draws=settings.draws)
    return [one.to_dict() for one in found]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--epochs", type=float, default=4.0)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=NUMBER", help="of Settings")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=1e6, help="begin no run after so long")
    parser.add_argument("--quick", action="store_true", help="one seed, 1,280 images, 500 judged")
    parser.add_argument("--out", help="name of the record in .data/")
    options = parser.parse_args()
    if options.quick:
        options.seeds, options.epochs = [0], 1280 / 45_000
    same = {"jobs": options.jobs, "minutes": options.minutes}
    standard = vars(parser.parse_args([])) | same
    if options.out is None and vars(options) != standard:
        options.out = "pwfn_resnet_explored"
    return options


def _settings(options: argparse.Namespace) -> Settings:
    pairs = (entry.split("=") for entry in options.set)
    found = {key: type(getattr(Settings, key))(float(value)) for key, value in pairs}
    quick = {"judged": 500, "draws": 2, "images": 500} if options.quick else {}
    return Settings(**quick | found)


def _summary(runs: list[tuple[Run, dict[str, Any]]]) -> list[dict[str, Any]]:
    rows = []
    for kind in dict.fromkeys(run.method for run, _ in runs):
        own = [(run, more) for run, more in runs if run.method == kind]
        mean = {
            "accuracy": statistics.mean(run.accuracy["test"] for run, _ in own),
            "held_out": statistics.mean(run.accuracy["held out"] for run, _ in own),
            "file_bytes": statistics.mean(run.file_bytes for run, _ in own),
            "values": statistics.mean(more["statistics"]["values"] for _, more in own),
            "entropy": statistics.mean(more["statistics"]["entropy"] for _, more in own),
        }
        noise = zip(*(more["noise"] for _, more in own), strict=True)
        mean["noise"] = {
            str(row[0]["noise"]): statistics.mean(one["accuracy"] for one in row) for row in noise
        }
        rows.append({"kind": kind, "seeds": len(own), **mean})
    return rows


def _run(jobs: list[_Job], options: argparse.Namespace) -> list[tuple[Run, dict[str, Any]]]:
    found = kept_runs(
        "pwfn_resnet", _one, jobs, workers=options.jobs, minutes=options.minutes - _passed()
    )
    return [(Run(**one[0]), one[1]) for one in found if one is not None]


def _passed() -> float:
    """Return the minutes since the benchmark began."""
    return (time.perf_counter() - _BEGAN) / 60


def main() -> None:
    """Run everything, and write the record."""
    options = _options()
    settings = _settings(options)
    images, labels = cifar10("test")
    some = slice(settings.judged)
    reference = top1(resnet20(), normalise(images[some]), labels[some])
    control = [kind for kind in options.kinds if kind == "pwfn constant"]
    first = [kind for kind in options.kinds if kind not in control]
    jobs = [_Job(k, s, options.epochs, settings) for s, k in product(options.seeds, first)]
    found = _run(jobs, options)
    learned = {run.seed: more["deviation"] for run, more in found if run.method == "pwfn"}
    same = [replace(settings, spread=learned.get(s, settings.spread)) for s in options.seeds]
    late = [
        _Job(k, s, options.epochs, own)
        for k in control
        for s, own in zip(options.seeds, same, strict=True)
    ]
    found += _run(late, options)
    write(
        options.out or "pwfn_resnet",
        folder=CACHE if options.out else None,
        model="ResNet-20 (He et al. 2015), all layers, normalizations as they are",
        data="CIFAR-10: 45,000 training images; the test images only report",
        float_accuracy={"resnet20": reference},
        goal=GOAL,
        missing=len(jobs) + len(late) - len(found),
        summary=_summary(found),
        details=[more for _, more in found],
        runs=[run for run, _ in found],
    )


if __name__ == "__main__":
    main()
