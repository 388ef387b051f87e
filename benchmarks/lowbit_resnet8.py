"""Low-bit ResNet-8 (MLPerf Tiny) on CIFAR-10: schedules at W2A2 and W4A4, thirty epochs each.

    python benchmarks/lowbit_resnet8.py [--minutes 90] [--quick]

From the shared float weights (87.19 %; biases, raw pixels). 3,000 of the training images, drawn
once, shifted and mirrored, so that thirty epochs and three seeds fit on one CPU core; 1,000 others
are held out. All kinds get the same number of epochs in all, those of joint distillation too. At 4
bits, only the kinds that were not clearly worse at 2. Settings and measures are those of
``lowbit_resnet.py``. Any option but --minutes and --earlier explores: the record goes to .data/.
"""

from __future__ import annotations

import argparse
from itertools import product
from typing import Any

import torch

from image_training import held_out
from images import CACHE, cifar10, pixels
from kept import kept_runs
from lowbit_resnet import Job, measured_row, summary
from networks import top1
from record import write
from zoo import resnet8

KINDS = (
    "direct",
    "two stages",
    "progressive",
    "stochastic",
    "joint",
    "two stages, progressive, joint",
)
AT_FOUR = ("direct", "two stages", "joint")
TRAINED, HELD_OUT = 3_000, 1_000  # images


def _run(job: Job) -> dict[str, Any]:
    images, judged = held_out(HELD_OUT, trained=TRAINED, scale=pixels)
    return measured_row(job, resnet8, images, judged, _test(500 if job.quick else 10_000))


def _test(count: int = 10_000) -> tuple[torch.Tensor, torch.Tensor]:
    images, labels = cifar10("test")
    return pixels(images[:count]), labels[:count]


def main() -> None:
    """Run every kind and seed, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=float, default=30.0)
    parser.add_argument("--rate", type=float, default=0.01)
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--minutes", type=float, default=1e6, help="begin no run after so long")
    parser.add_argument("--earlier", nargs="*", default=[], help="commits whose runs are taken too")
    parser.add_argument("--quick", action="store_true", help="6 steps, 500 test images")
    options = parser.parse_args()
    limits = {"minutes": options.minutes, "earlier": options.earlier}
    explores = vars(options) != vars(parser.parse_args([])) | limits
    jobs = [
        Job(bits, kind, seed, options.epochs, options.rate, "cpu", options.quick)
        for bits, seed, kind in product((2, 4), options.seeds, options.kinds)
        if bits == 2 or kind in AT_FOUR
    ]
    found = kept_runs("lowbit_resnet8", _run, jobs, **limits)
    rows = [row for row in found if row is not None]
    write(
        "lowbit_resnet8",
        model="ResNet-8 of MLPerf Tiny (CIFAR-10)",
        data=f"CIFAR-10: {TRAINED:,} training images; test images only report",
        folder=CACHE if explores else None,
        float_accuracy={"resnet8": top1(resnet8(), *_test())},
        commits=sorted({row["commit"] for row in rows}),
        missing=len(jobs) - len(rows),
        summary=summary(rows),
        rows=rows,
    )


if __name__ == "__main__":
    main()
