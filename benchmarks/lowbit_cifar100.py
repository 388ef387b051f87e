"""Low-bit ResNet-20 on CIFAR-100, of which 10,000 training images are at hand.

    python benchmarks/lowbit_cifar100.py [--jobs 4] [--minutes 30] [--quick]

9,000 training images, 1,000 held out, all 10,000 test images, which decide nothing. The float
network is trained here from the shared CIFAR-10 weights with a new last layer, once, and kept in
.data/; so its accuracy is that of a fifth of the data. Settings and measures are those of
``lowbit_resnet.py``, with fewer images in as many epochs. Any option but --jobs and --minutes
explores: the record goes to .data/.
"""

from __future__ import annotations

import argparse
from itertools import product

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from fewbits.training import WarmCosine
from image_training import Images
from images import CACHE, cifar100, normalise
from kept import kept_runs
from lowbit_resnet import BATCH, Job, measured_row, summary
from networks import resnet20, top1
from record import write

KINDS = ("direct", "direct dorefa", "two stages", "progressive", "joint", "progressive, joint")
FLOAT_EPOCHS = 30
HELD_OUT = 1_000


def images_of() -> tuple[Images, tuple[Tensor, Tensor]]:
    """Return images to train on, and those held out: ten of each class.

    Every hundred images hold each class once.
    """
    images, labels = cifar100("train")
    away = torch.arange(len(labels)) // 100 % (len(labels) // HELD_OUT) == 0
    padded = functional.pad(normalise(images[(~away).numpy()]), (4,) * 4)
    return Images(padded, labels[~away]), (normalise(images[away.numpy()]), labels[away])


def network() -> nn.Module:
    """Return the float network, trained where it is not kept."""
    model = resnet20()
    model.linear = nn.Linear(64, 100)
    path = CACHE / "cifar100_resnet20.safetensors"
    if not path.exists():
        torch.manual_seed(0)
        model.linear.reset_parameters()
        _train(model)
        save_file(model.state_dict(), path)
    model.load_state_dict(load_file(path))
    return model.eval()


def _train(model: nn.Module) -> None:
    images, judged = images_of()
    model.train().to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4
    )
    generator, rate = torch.Generator().manual_seed(0), WarmCosine()
    steps = len(images.labels) // BATCH
    for epoch in range(FLOAT_EPOCHS):
        for number, (x, y) in enumerate(images.batches(BATCH, generator)):
            for group in optimizer.param_groups:
                group["lr"] = 0.05 * rate((epoch + number / steps) / FLOAT_EPOCHS)
            with torch.autocast("cpu", torch.bfloat16):
                logits = model(x)
            optimizer.zero_grad()
            functional.cross_entropy(logits.float(), y).backward()
            optimizer.step()
    model.to(memory_format=torch.contiguous_format)
    print(f"float network: {top1(model, *judged):.2f} % held out", flush=True)


def _test(count: int = 10_000) -> tuple[Tensor, Tensor]:
    images, labels = cifar100("test")
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))[:count]
    return normalise(images[order.numpy()]), labels[order]


def _run(job: Job) -> dict[str, object]:
    images, judged = images_of()
    return measured_row(job, network, images, judged, _test(500 if job.quick else 10_000))


def main() -> None:
    """Train the float network and every kind, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=float, default=8.0)
    parser.add_argument("--rate", type=float, default=0.01)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=1e6, help="begin no run after so long")
    parser.add_argument("--quick", action="store_true", help="6 steps, 500 test images")
    options = parser.parse_args()
    same = {"jobs": options.jobs, "minutes": options.minutes}
    explores = vars(options) != vars(parser.parse_args([])) | same
    reference = top1(network(), *_test())
    jobs = [
        Job(bits, kind, seed, options.epochs, options.rate, "cpu", options.quick)
        for seed, bits, kind in product(options.seeds, (4, 2), KINDS)
    ]
    found = kept_runs("lowbit_cifar100", _run, jobs, workers=options.jobs, minutes=options.minutes)
    rows = [row for row in found if row is not None]
    write(
        "lowbit_cifar100",
        model="resnet20, from CIFAR-10 weights",
        data="CIFAR-100: 9,000 training images; test images only report",
        folder=CACHE if explores else None,
        float_accuracy={"resnet20": reference},
        missing=len(jobs) - len(rows),
        summary=summary(rows),
        rows=rows,
    )


if __name__ == "__main__":
    main()
