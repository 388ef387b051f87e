"""Low-bit ResNet-20 on CIFAR-10: schedules and quantizers at W4A4 and W2A2, equal budgets beside.

    python benchmarks/lowbit_resnet.py [--quick] [--epochs 30] [--seeds 0 1 2] [--device cuda]
                                       [--kinds direct two_stage ...]

From the shared float weights; training images shifted and mirrored, 5,000 of them held out, no
choice by the test images (the last epoch is taken). First and last layer have 8 bits, shortcuts are
in float. All kinds get the same number of epochs in all, those of joint distillation too (each of
which costs about twice the time). Accuracy is of the network loaded from the file; bytes are the
file's, beside the nominal bits. --quick: a few steps on 2,000 images, to try the path.
"""

from __future__ import annotations

import argparse
import copy
import time
import warnings
from statistics import mean
from typing import Any

import torch
from torch.nn import functional

import fewbits
from fewbits.training import JointDistillation, JointWeights, PerStage, WarmCosine
from image_training import Images, held_out
from images import CACHE, cifar10, normalise
from networks import resnet20, top1
from record import blank_copy, write
from resnet20_cifar10 import calibration_batches

KINDS: dict[str, dict[str, Any]] = {
    "direct": {"schedule": "direct"},
    "direct dorefa": {"schedule": "direct", "quantizer": "dorefa"},
    "two_stage": {"schedule": "two_stage"},
    "progressive": {"schedule": "progressive"},
    "two_stage_progressive": {"schedule": "two_stage_progressive"},
    "stochastic": {"schedule": "stochastic"},
    "joint": {"schedule": "direct", "joint": True},
    "progressive joint": {"schedule": "progressive", "joint": True},
}


def _groups(model: torch.nn.Module, tuner: Any) -> list[dict[str, Any]]:
    own = list(tuner.parameters()) if tuner is not None else []
    known = {id(p) for p in own}
    rest = [p for p in model.parameters() if id(p) not in known and p.requires_grad]
    groups = [{"params": rest, "weight_decay": 1e-4}, {"params": own, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def _sgd(model: torch.nn.Module, tuner: Any, lr: float) -> torch.optim.SGD:
    return torch.optim.SGD(_groups(model, tuner), lr=lr, momentum=0.9, nesterov=True)


def train(
    images: Images, kind: str, bits: int, seed: int, options: argparse.Namespace
) -> tuple[fewbits.CodedModel, float]:
    """Return the compressed network and the seconds that its training took."""
    settings = dict(KINDS[kind])
    joint = settings.pop("joint", False)
    method = fewbits.LowBit(weights=bits, activations=bits, **settings)
    model = resnet20().to(options.device)
    teacher = copy.deepcopy(model)
    calibration = [b.to(options.device) for b in calibration_batches(1024, seed)]
    tuner = fewbits.prepare(model, method, calibration=calibration, seed=seed, raw_dtype="float16")
    steps = -(-len(images.padded) // 128)
    total = options.steps or options.epochs * steps
    rate = PerStage(WarmCosine(), tuner.stage_ends)
    loss = None
    if joint:
        own = _sgd(teacher, None, 0.2 * options.rate)
        loss = JointDistillation(teacher, own, JointWeights(), rate=WarmCosine(), total=total)
    optimizer, stage, done = _sgd(model, tuner, options.rate), 0, 0
    generator = torch.Generator().manual_seed(seed)
    began = time.perf_counter()
    while done < total:
        for x, y in images.batches(128, generator):
            if done == total:
                break
            progress = done / total
            tuner.advance(progress)
            if tuner.stage != stage:
                optimizer, stage = _sgd(model, tuner, options.rate), tuner.stage
            for group in optimizer.param_groups:
                group["lr"] = options.rate * rate(progress)
            batch = x.to(options.device), y.to(options.device)
            model.train()
            found = (
                loss(model, batch)[0]
                if loss
                else functional.cross_entropy(model(batch[0]), batch[1])
            )
            optimizer.zero_grad()
            found.backward()
            optimizer.step()
            tuner.step()
            done += 1
    seconds = time.perf_counter() - began
    model.eval()
    return tuner.finish(), seconds


def main() -> None:
    """Run every kind and seed, and write the record."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--rate", type=float, default=0.01)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--bits", type=int, nargs="+", default=[4, 2])
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    options.steps = 6 if options.quick else 0
    images, _ = held_out(5000)
    if options.quick:
        images = Images(images.padded[:2000], images.labels[:2000])
        options.seeds = [0]
    test_x, test_y = cifar10("test")
    count = 500 if options.quick else 10_000
    test = normalise(test_x[:count]), torch.as_tensor(test_y[:count])
    rows = []
    for bits in options.bits:
        for kind in options.kinds:
            for seed in options.seeds:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    coded, seconds = train(images, kind, bits, seed, options)
                loaded = coded.load_into(blank_copy(resnet20())).eval()
                rows.append(
                    {
                        "bits": bits,
                        "kind": kind,
                        "seed": seed,
                        "accuracy": top1(loaded, *test),
                        "file_bytes": len(coded.data),
                        "bits_per_weight": coded.bits_per_weight,
                        "seconds": seconds,
                    }
                )
                print(rows[-1], flush=True)
    keys = list(dict.fromkeys((row["bits"], row["kind"]) for row in rows))
    groups = {k: [row for row in rows if (row["bits"], row["kind"]) == k] for k in keys}
    summary = [
        {
            "bits": bits,
            "kind": kind,
            "accuracy_mean": mean(row["accuracy"] for row in group),
            "file_bytes_mean": mean(row["file_bytes"] for row in group),
        }
        for (bits, kind), group in groups.items()
    ]
    write(
        "lowbit_resnet",
        model="resnet20 (CIFAR-10)",
        data=f"CIFAR-10, 45,000 training images, {count} test images",
        folder=CACHE,
        epochs=options.epochs,
        rate=options.rate,
        device=options.device,
        summary=summary,
        rows=rows,
    )


if __name__ == "__main__":
    main()
