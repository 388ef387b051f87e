"""Forms of ONNX exports on two kinds of processor: this one, and an emulated one without VNNI.

    python benchmarks/onnx_processors.py [--quick]

A depthwise network is trained on Fashion-MNIST for two epochs; it and ResNet-20 are compressed to
W8A8 and W7A8 (GPFQ, outputs on 8 bits too). Top-1 in torch; in onnxruntime with its defaults here;
and under ``qemu-x86_64 -cpu Haswell`` (Debian's qemu-user), which has AVX2 and no VNNI. Time over
float32's is of this processor, calls in turns, one thread; that of an emulated one says nothing.
--quick takes 200 images and one short epoch, and writes to .data/.
"""

from __future__ import annotations

import argparse
import copy
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fewbits
from fewbits.exporters import export
from fewbits.exporters.onnx.processors import overflows_here
from images import CACHE, cifar10, mnist, normalise
from networks import resnet20, top1
from onnx_w8a8 import float_graph, latency, run, session
from record import write
from resnet20_cifar10 import calibration_batches

FORMS = {"w8a8 any": (8, "any"), "w8a8 vnni": (8, "vnni"), "w7a8 any": (7, "any")}
EMULATOR = shutil.which("qemu-x86_64")
_RUN = """
import sys, numpy, onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
x, name = numpy.load(sys.argv[2]), session.get_inputs()[0].name
parts = [session.run(None, {name: x[i : i + 100]})[0].argmax(1) for i in range(0, len(x), 100)]
numpy.save(sys.argv[3], numpy.concatenate(parts))
"""


@dataclass
class Case:
    """A trained network, its calibration and test images, and how many of these are emulated."""

    model: nn.Module
    calibration: Any
    images: Tensor
    labels: Tensor
    emulated: int


def _depthwise() -> nn.Sequential:
    def block(width: int, out: int, stride: int) -> list[nn.Module]:
        deep = nn.Conv2d(width, width, 3, stride, 1, groups=width, bias=False)
        wide = nn.Conv2d(width, out, 1, bias=False)
        return [deep, nn.BatchNorm2d(width), nn.ReLU6(), wide, nn.BatchNorm2d(out), nn.ReLU6()]

    stem = [nn.Conv2d(1, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU6()]
    body = [*block(32, 64, 1), *block(64, 96, 2), *block(96, 96, 1)]
    return nn.Sequential(*stem, *body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(96, 10))


def _batches(images: Tensor, labels: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    for part in torch.randperm(len(images)).split(size):
        yield images[part], labels[part]


def _trained(images: Tensor, labels: Tensor, epochs: int) -> nn.Module:
    torch.manual_seed(0)
    net = _depthwise()
    steps = epochs * -(-len(images) // 128)
    optimizer = torch.optim.SGD(net.parameters(), 0.01, momentum=0.9, weight_decay=1e-4)
    rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.2, steps)
    for _ in range(epochs):
        for x, y in _batches(images, labels, 128):
            optimizer.zero_grad()
            F.cross_entropy(net(x), y).backward()
            optimizer.step()
            rates.step()
    return net.eval()


def _fashion(part: str) -> tuple[Tensor, Tensor]:
    pixels, labels = mnist(part, "fashion_mnist")
    return pixels.reshape(-1, 1, 28, 28) / 255, labels


def _cases(*, quick: bool) -> dict[str, Case]:
    count = 200 if quick else 10_000
    x, y = _fashion("train")
    net = _trained(*((x[:2000], y[:2000], 1) if quick else (x, y, 2)))
    test, classes = _fashion("test")
    images, labels = cifar10("test")
    return {
        "depthwise (Fashion-MNIST)": Case(
            net, list(x[:1024].split(128)), test[:count], classes[:count], count
        ),
        "ResNet-20 (CIFAR-10)": Case(
            resnet20(),
            calibration_batches(1024, 0),
            normalise(images[:count]),
            torch.as_tensor(labels[:count]),
            min(count, 1000),
        ),
    }


def _emulated(path: Path, images: Tensor) -> Tensor | None:
    """Return the classes that onnxruntime gives without VNNI; None without the emulator."""
    if EMULATOR is None:
        return None
    given, made = path.with_suffix(".in.npy"), path.with_suffix(".out.npy")
    np.save(given, images.numpy())
    command = [EMULATOR, "-cpu", "Haswell", sys.executable, "-c", _RUN]
    subprocess.run(
        [*command, str(path), str(given), str(made)], check=True, stderr=subprocess.DEVNULL
    )
    return torch.from_numpy(np.load(made))


def _row(name: str, form: str, case: Case, folder: Path) -> dict[str, Any]:
    bits, processor = FORMS[form]
    coded = fewbits.compress(
        case.model,
        fewbits.GPFQ(bits=bits),
        case.calibration,
        activations=fewbits.Activations(bits=8, outputs=True),
        seed=0,
    )
    path = folder / f"{form}.onnx"
    told = export(coded, path, model=case.model, inputs=case.images[:2], processor=processor)
    network = coded.load_into(copy.deepcopy(case.model)).eval()
    runner, count = session(path), case.emulated
    parts = [torch.from_numpy(run(runner, x.numpy())) for x in case.images.split(500)]
    right = torch.cat(parts).argmax(1) == case.labels
    elsewhere = _emulated(path, case.images[:count])
    same = None if elsewhere is None else elsewhere == case.labels[:count]
    return {
        "network": name,
        "form": form,
        "unsigned": len(told.unsigned),
        "weights": len(told.weights),
        "accuracy": top1(network, case.images, case.labels),
        "onnxruntime_accuracy": 100 * float(right.float().mean()),
        "emulated_images": count,
        "accuracy_of_these": top1(network, case.images[:count], case.labels[:count]),
        "emulated_accuracy": None if same is None else 100 * float(same.float().mean()),
        "notes": list(told.notes),
    }


def main() -> None:
    """Run both networks in every form and write the record."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows, floats = [], {}
    for name, case in _cases(quick=options.quick).items():
        floats[name] = top1(case.model, case.images, case.labels)
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            found = [_row(name, form, case, folder) for form in FORMS]
            float_graph(case.model, folder / "float32.onnx", case.images[:2])
            sessions = {form: session(folder / f"{form}.onnx") for form in ("float32", *FORMS)}
            for batch in (1, 32):
                times = latency(sessions, case.images[:batch].numpy(), 5 if options.quick else 60)
                for row in found:
                    median = times[row["form"]]["median_ms"]
                    row[f"time_over_float32_batch_{batch}"] = median / times["float32"]["median_ms"]
        for row in found:
            print({k: v for k, v in row.items() if k != "notes"}, flush=True)
        rows += found
    write(
        "onnx_processors",
        model="a depthwise network (Fashion-MNIST), ResNet-20 (CIFAR-10)",
        data="their test sets",
        folder=CACHE if options.quick else None,
        onnxruntime=onnxruntime.__version__,
        this_processor_has_vnni=not overflows_here(),
        emulator=EMULATOR and "qemu-x86_64 -cpu Haswell",
        float_accuracy=floats,
        summary=rows,
    )


if __name__ == "__main__":
    main()
