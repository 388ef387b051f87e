"""Brevitas' quantization-aware training of ResNet-20, under the budget of ``lowbit_resnet.py``.

    python benchmarks/brevitas_qat.py [--bits 4 2] [--seeds 0 1 2] [--jobs 4] [--quick]

Needs ``pip install brevitas`` (0.13 was used) beside fewbits. The same network, images, epochs,
optimizer, learning rates, 8-bit first and last layer, and inputs of layers quantized; direct
training. Two weight quantizers: Brevitas' default for training (scale from the largest weight) and
the learned scale that starts from the least squared error. At 2 bits only the latter: the former's
weights are NaN within six steps (nearly all round to zero, and normalizations divide by it).
Bytes: of the state dict that its users save; and of its integers, steps and clips written by
fewbits, so that coders are not compared.
Any option but --jobs and --minutes explores: the record goes to .data/.
"""

from __future__ import annotations

import argparse
import io
import time
import warnings
from dataclasses import dataclass
from itertools import product
from typing import Any

import brevitas
import numpy as np
import torch
from brevitas.nn import QuantConv2d, QuantLinear
from brevitas.quant import (
    Int8ActPerTensorFloat,
    Int8WeightPerTensorFloat,
    Int8WeightPerTensorFloatMSE,
    Uint8ActPerTensorFloat,
)
from torch import nn
from torch.nn import functional

from fewbits.coded import ActivationGrid, Contents, GridTensor, RawTensor
from fewbits.container import encode
from fewbits.training import WarmCosine
from image_training import Images, held_out, sgd
from images import CACHE, cifar10, normalise
from kept import kept_runs
from lowbit_resnet import BATCH, summary
from networks import resnet20, top1
from record import write

KINDS = {"max": Int8WeightPerTensorFloat, "learned": Int8WeightPerTensorFloatMSE}


@dataclass(frozen=True)
class _Job:
    bits: int
    kind: str
    seed: int
    epochs: float
    rate: float
    quick: bool


def quantized(bits: int, kind: str) -> nn.Module:
    """Return ResNet-20 with Brevitas' layers, the shared weights in them."""
    model = resnet20()
    for path, module in list(model.named_modules()):
        if not isinstance(module, (nn.Conv2d, nn.Linear)):
            continue
        first, width = path == "conv1", 8 if path in ("conv1", "linear") else bits
        same: dict[str, Any] = {
            "weight_quant": KINDS[kind],
            "weight_bit_width": width,
            "input_quant": Int8ActPerTensorFloat if first else Uint8ActPerTensorFloat,
            "input_bit_width": width,
        }
        if isinstance(module, nn.Linear):
            made = QuantLinear(module.in_features, module.out_features, bias=True, **same)
        else:
            sides = (module.in_channels, module.out_channels, module.kernel_size)
            made = QuantConv2d(
                *sides, stride=module.stride, padding=module.padding, bias=False, **same
            )
        made.load_state_dict(module.state_dict(), strict=False)
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, made)
    return model.to(memory_format=torch.channels_last)


def _train(model: nn.Module, job: _Job, images: Images) -> None:
    steps = 6 if job.quick else int(job.epochs * (len(images.labels) // BATCH))
    scales = [p for name, p in model.named_parameters() if "_quant" in name]
    optimizer, rate, done = sgd(model, scales, job.rate), WarmCosine(), 0
    generator = torch.Generator().manual_seed(job.seed)
    model.train()
    while done < steps:
        for x, y in images.batches(BATCH, generator):
            for group in optimizer.param_groups:
                group["lr"] = job.rate * rate(done / steps)
            with torch.autocast("cpu", torch.bfloat16):
                logits = model(x)
            loss = functional.cross_entropy(logits.float(), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            done += 1
            if done == steps:
                break
    model.eval()


@torch.no_grad()
def _contents(model: nn.Module) -> Contents:
    """Return what a file of fewbits holds of the trained network."""
    tensors: dict[str, Any] = {}
    grids: dict[str, ActivationGrid] = {}
    for path, module in model.named_modules():
        if isinstance(module, (QuantConv2d, QuantLinear)):
            weight = module.quant_weight()
            index = (weight.value / weight.scale).round().int().flatten(1).numpy()
            step = weight.scale.float().reshape(1).numpy()
            tensors[f"{path}.weight"] = GridTensor(
                tuple(module.weight.shape), "float32", index, step
            )
            scale, width = float(module.input_quant.scale()), int(module.input_quant.bit_width())
            signed = bool(module.input_quant.is_signed)
            high = (1 << (width - signed)) - 1
            grids[path] = ActivationGrid(width, scale * high, signed)
    for name, value in model.state_dict().items():
        if name not in tensors and "_quant" not in name and value.is_floating_point():
            raw = np.frombuffer(value.half().numpy().tobytes(), np.uint8)
            tensors[name] = RawTensor(tuple(value.shape), "float32", raw, "float16")
    return Contents(tensors, activations=grids)


def _run(job: _Job) -> dict[str, Any]:
    torch.set_num_threads(1)
    torch.manual_seed(job.seed)
    images, judged = held_out(5000)
    test_x, test_y = cifar10("test")
    count = 500 if job.quick else 10_000
    test = normalise(test_x[:count]), torch.as_tensor(test_y[:count])
    model, began = quantized(job.bits, job.kind), time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _train(model, job, images)
        row = {
            "bits": job.bits,
            "kind": job.kind,
            "seed": job.seed,
            "accuracy": top1(model, *test),
            "held_out": top1(model, *judged),
            "seconds": time.perf_counter() - began,
            "state_dict_bytes": _saved(model),
            "file_bytes": len(encode(_contents(model), "smallest")),
        }
    print(row, flush=True)
    return row


def _saved(model: nn.Module) -> int:
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    return buffer.tell()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=float, default=3.0)
    parser.add_argument("--rate", type=float, default=0.01)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--bits", type=int, nargs="+", default=[4, 2])
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=1e6, help="begin no run after so long")
    parser.add_argument("--quick", action="store_true", help="6 steps, 500 test images")
    options = parser.parse_args()
    same = {"jobs": options.jobs, "minutes": options.minutes}
    options.explores = vars(options) != vars(parser.parse_args([])) | same
    return options


def main() -> None:
    """Train every kind, and write the record."""
    options = _options()
    jobs = [
        _Job(bits, kind, seed, options.epochs, options.rate, options.quick)
        for seed, bits, kind in product(options.seeds, options.bits, options.kinds)
        if bits > 2 or kind != "max"
    ]
    found = kept_runs("brevitas_qat", _run, jobs, workers=options.jobs, minutes=options.minutes)
    rows = [row for row in found if row is not None]
    write(
        "brevitas_qat",
        model="resnet20 (CIFAR-10), Brevitas layers",
        data="CIFAR-10: 45,000 training images; test images only report",
        folder=CACHE if options.explores else None,
        brevitas=brevitas.__version__,
        epochs=options.epochs,
        missing=len(jobs) - len(rows),
        summary=summary(rows),
        rows=rows,
    )


if __name__ == "__main__":
    main()
