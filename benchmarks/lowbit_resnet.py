"""Low-bit ResNet-20 on CIFAR-10: schedules and quantizers at W4A4 and W2A2, equal budgets beside.

    python benchmarks/lowbit_resnet.py [--jobs 4] [--minutes 90] [--device cuda] [--quick]

From the shared float weights; 45,000 training images, shifted and mirrored; the last epoch is
taken, and test images decide nothing. First and last layer have 8 bits, shortcuts are in float. All
kinds get the same number of epochs in all, those of joint distillation too (each of which costs
about twice the time). Accuracy is of the network loaded from the file. With seed 0 every test image
is computed in integers too; where its class differs, once more with rounded floats of 64 bits.
Bytes are the file's, beside those of nominal bits. Runs are kept, so that a benchmark that was
stopped goes on; after --minutes no run begins, and the record counts what is missing. Any other
option explores: the record goes to .data/.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from itertools import product
from statistics import mean
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import fewbits
from fewbits.coded import Contents
from fewbits.engine.activations.integer_reference import fake_quantized_network, integer_network
from fewbits.training import JointDistillation, JointWeights, PerStage, WarmCosine
from image_training import Images, held_out, sgd
from images import CACHE, cifar10, normalise
from kept import kept_runs
from networks import resnet20, top1
from record import blank_copy, write

KINDS: dict[str, dict[str, Any]] = {
    "direct": {},
    "direct dorefa": {"quantizer": "dorefa"},
    "two stages": {"schedule": "two_stage"},
    "progressive": {"schedule": "progressive"},
    "two stages, progressive": {"schedule": "two_stage_progressive"},
    "stochastic": {"schedule": "stochastic"},
    "joint": {"joint": True},
    "progressive, joint": {"schedule": "progressive", "joint": True},
    "two stages, progressive, joint": {"schedule": "two_stage_progressive", "joint": True},
}
BATCH = 128
MEASURED = (
    "accuracy",
    "held_out",
    "file_bytes",
    "nominal_bytes",
    "state_dict_bytes",
    "differs_in_integers",
    "differs_in_float64",
    "seconds",
)


@dataclass(frozen=True)
class Job:
    """One training: bits of weights and inputs, kind of :data:`KINDS`, and its budget."""

    bits: int
    kind: str
    seed: int
    epochs: float
    rate: float
    device: str
    quick: bool


def _computing(device: str) -> AbstractContextManager[Any]:
    return torch.autocast(torch.device(device).type, torch.bfloat16)


class _Loss:
    """Cross-entropy, or joint distillation with a teacher that starts as the float network."""

    def __init__(self, job: Job, teacher: nn.Module, steps: int) -> None:
        self.device, self.joint = job.device, None
        if KINDS[job.kind].get("joint"):
            own = sgd(teacher, (), 0.2 * job.rate)
            self.joint = JointDistillation(
                teacher,
                own,
                JointWeights(),
                lr_schedule=WarmCosine(),
                total=steps,
                forward=lambda net, batch: self._logits(net, batch[0]),
            )

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        if self.joint:
            return self.joint(model, (x, y))[0]
        return functional.cross_entropy(self._logits(model, x), y)

    def _logits(self, model: nn.Module, x: Tensor) -> Tensor:
        with _computing(self.device):
            return model(x).float()


def _prepared(
    job: Job, images: Images, network: Callable[[], nn.Module]
) -> tuple[nn.Module, fewbits.Tuner]:
    settings = {key: value for key, value in KINDS[job.kind].items() if key != "joint"}
    method = fewbits.LowBit(weights=job.bits, activations=job.bits, **settings)
    model = network().to(job.device, memory_format=torch.channels_last)
    batches = images.batches(BATCH, torch.Generator().manual_seed(1000 + job.seed))
    calibration = [x.to(job.device) for x, _ in (next(batches) for _ in range(8))]
    tuner = fewbits.prepare(
        model, method, calibration=calibration, seed=job.seed, raw_dtype="float16"
    )
    return model, tuner


def _train(job: Job, images: Images, network: Callable[[], nn.Module]) -> fewbits.CodedModel:
    """Return the trained network's file."""
    model, tuner = _prepared(job, images, network)
    steps = 6 if job.quick else int(job.epochs * (len(images.labels) // BATCH))
    rate = PerStage(WarmCosine(), tuner.stage_ends)
    teacher = network().to(job.device, memory_format=torch.channels_last)
    loss = _Loss(job, teacher, steps)
    optimizer, stage, done = sgd(model, tuner.parameters(), job.rate), 0, 0
    generator = torch.Generator().manual_seed(job.seed)
    while done < steps:
        for x, y in images.batches(BATCH, generator):
            tuner.advance(done / steps)
            if tuner.stage != stage:
                optimizer, stage = sgd(model, tuner.parameters(), job.rate), tuner.stage
            for group in optimizer.param_groups:
                group["lr"] = job.rate * rate(done / steps)
            found = loss(model.train(), x.to(job.device), y.to(job.device))
            optimizer.zero_grad()
            found.backward()
            optimizer.step()
            tuner.step()
            done += 1
            if done == steps:
                break
    model.eval()
    return tuner.finish("smallest")


def measured_row(
    job: Job,
    network: Callable[[], nn.Module],
    images: Images,
    judged: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
) -> dict[str, Any]:
    """Train the float network that ``network`` returns, and measure what the file gives."""
    torch.set_num_threads(1)
    wall = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        coded = _train(job, images, network)
    seconds = time.perf_counter() - wall
    loaded = coded.load_into(blank_copy(network())).eval()
    row = {
        **asdict(job),
        "accuracy": top1(loaded, *test),
        "held_out": top1(loaded, *judged),
        "file_bytes": len(coded.data),
        "nominal_bytes": _nominal(network(), job.bits),
        "bits_per_weight": coded.bits_per_weight,
        "seconds": seconds,
    }
    if job.seed == 0:
        row |= _differing(loaded, coded.contents, test[0])
    print({k: row[k] for k in ("bits", "kind", "seed", "accuracy", "file_bytes")}, flush=True)
    return row


def _run(job: Job) -> dict[str, Any]:
    images, judged = held_out(5000)
    test_x, test_y = cifar10("test")
    count = 500 if job.quick else 10_000
    test = normalise(test_x[:count]), torch.as_tensor(test_y[:count])
    return measured_row(job, resnet20, images, judged, test)


@torch.inference_mode()
def _differing(loaded: nn.Module, contents: Contents, images: Tensor) -> dict[str, int]:
    """Return how many images integers give another class: than float32 does, and float64 too."""
    whole, layers = integer_network(loaded, contents)
    exact = fake_quantized_network(loaded, contents)
    differs = [x[loaded(x).argmax(1) != whole(x).argmax(1)] for x in images.split(250)]
    left = torch.cat(differs)
    return {
        "integer_layers": len(layers),
        "differs_in_integers": len(left),
        "differs_in_float64": int((exact(left).argmax(1) != whole(left).argmax(1)).sum()),
    }


def _nominal(model: nn.Module, bits: int) -> int:
    """Return the bytes of weights at their nominal bits, and of all other tensors in float16."""
    state, total = model.state_dict(), 0.0
    weights = [name for name, value in state.items() if value.dim() > 1]
    for name, value in state.items():
        if value.dim() > 1:
            total += value.numel() * (1 if name in (weights[0], weights[-1]) else bits / 8)
        elif value.is_floating_point():
            total += 2 * value.numel()
    return round(total)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=float, default=3.0)
    parser.add_argument("--rate", type=float, default=0.01)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--bits", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=1e6, help="begin no run after so long")
    parser.add_argument("--quick", action="store_true", help="seed 0, 6 steps, 500 test images")
    parser.add_argument("--out", help="name of the record in .data/")
    options = parser.parse_args()
    same = {key: vars(options)[key] for key in ("jobs", "minutes", "device")}
    if options.out is None and vars(options) != vars(parser.parse_args([])) | same:
        options.out = "lowbit_resnet_explored"
    if options.quick:
        options.seeds = [0]
    return options


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return means over the seeds of every kind, and each seed's accuracy."""
    groups: dict[tuple[int, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["bits"], row["kind"]), []).append(row)
    return [
        {
            "bits": bits,
            "kind": kind,
            "seeds": len(group),
            "accuracy": [row["accuracy"] for row in group],
            **{
                f"{key}_mean": mean(row[key] for row in group if key in row)
                for key in MEASURED
                if any(key in row for row in group)
            },
        }
        for (bits, kind), group in groups.items()
    ]


def main() -> None:
    """Run every kind and seed, and write the record."""
    options = _options()
    jobs = [
        Job(bits, kind, seed, options.epochs, options.rate, options.device, options.quick)
        for seed, bits, kind in product(options.seeds, options.bits, options.kinds)
    ]
    found = kept_runs("lowbit_resnet", _run, jobs, workers=options.jobs, minutes=options.minutes)
    rows = [row for row in found if row is not None]
    test_x, test_y = cifar10("test")
    reference = top1(resnet20(), normalise(test_x), torch.as_tensor(test_y))
    write(
        "lowbit_resnet" if options.out is None else options.out,
        model="resnet20 (CIFAR-10)",
        data="CIFAR-10: 45,000 training images; test images only report",
        folder=CACHE if options.out else None,
        float_accuracy={"resnet20": reference},
        missing=len(jobs) - len(rows),
        summary=summary(rows),
        rows=rows,
    )


if __name__ == "__main__":
    main()
