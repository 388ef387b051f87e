"""What a step of the training methods costs, as a ratio to a plain training step of ResNet-20.

Plain steps and those of a method take turns in one run, so that a busy machine slows both. Where
Brevitas is installed its step is measured beside, with the layers of ``brevitas_qat.py``. Prints
mean seconds and the median ratio of neighbouring steps, and writes ``results/step_cost.json``.

    python benchmarks/step_cost.py [--steps 30] [--quick]
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch
from torch import nn
from torch.nn import functional

import fewbits
from images import CACHE
from networks import resnet20
from record import write

BATCH = 128
BITS = 4
PLAIN = {
    "HEMP, order 1": fewbits.HEMP(order=1, rate_weight=0.4),
    "HEMP, order 2": fewbits.HEMP(order=2, rate_weight=0.4),
    "HEMP, order 2, bits in the loss, quantized forward": fewbits.HEMP(
        order=2, spacing="even", forward="quantized", slope=1e-6
    ),
    "PWFN": fewbits.PWFN(),
    "PWFN, alpha in the loss": fewbits.PWFN(alpha=2.0**-11),
}
LOWBIT = {
    "LSQ": fewbits.LowBit(weights=BITS, activations=BITS),
    "PACT": fewbits.LowBit(weights=BITS, activations=BITS, quantizer="pact"),
    "DoReFa": fewbits.LowBit(weights=BITS, activations=BITS, quantizer="dorefa"),
    "LSQ, stochastic": fewbits.LowBit(weights=BITS, activations=BITS, schedule="stochastic"),
}
BREVITAS = {"scale by the largest weight": "max", "learned scale": "learned"}
GOALS = {"HEMP, order 2": 1.3, "PWFN": 1.6}


class Plain:
    """A tuner that does nothing."""

    penalty = staticmethod(lambda: 0)
    step = staticmethod(lambda: None)


@dataclass(frozen=True)
class Kind:
    """One kind of step: what makes its network and tuner, and the dtype of the forward pass."""

    name: str
    dtype: torch.dtype
    make: Callable[[], tuple[nn.Module, Any]]


def _network() -> nn.Module:
    return resnet20().train().to(memory_format=torch.channels_last)


def _images() -> torch.Tensor:
    images = torch.randn(BATCH, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return images.contiguous(memory_format=torch.channels_last)


def _tuned(method: Any, progress: float = 0.0) -> tuple[nn.Module, Any]:
    model = _network()
    batch = {"calibration": [_images()]} if isinstance(method, fewbits.LowBit) else {}
    tuner = fewbits.prepare(model, method, **batch)
    tuner.advance(progress)
    return model, tuner


def _peer(kind: str) -> tuple[nn.Module, Any]:
    from brevitas_qat import quantized  # noqa: PLC0415

    return quantized(BITS, kind).train(), Plain


def _kinds() -> Iterator[Kind]:
    for name, method in PLAIN.items():
        yield Kind(name, torch.float32, lambda method=method: _tuned(method))
    yield Kind("PWFN, most fixed", torch.float32, lambda: _tuned(fewbits.PWFN(), 0.8))
    for dtype in (torch.float32, torch.bfloat16):
        for name, method in LOWBIT.items():
            yield Kind(f"W{BITS}A{BITS}, {name}", dtype, lambda method=method: _tuned(method))
        if importlib.util.find_spec("brevitas"):
            for name, kind in BREVITAS.items():
                told = f"W{BITS}A{BITS}, Brevitas, {name}"
                yield Kind(told, dtype, lambda kind=kind: _peer(kind))


def _stepper(net: nn.Module, tuner: Any, dtype: torch.dtype) -> Callable[[], float]:
    """Return a function that makes one training step, forward in ``dtype``: its seconds."""
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3, momentum=0.9)
    x = _images()
    y = torch.randint(0, 10, (BATCH,), generator=torch.Generator().manual_seed(1))

    def step() -> float:
        start = time.perf_counter()
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            logits = net(x)
        (functional.cross_entropy(logits.float(), y) + tuner.penalty()).backward()
        optimizer.step()
        tuner.step()
        return time.perf_counter() - start

    return step


def _row(kind: Kind, steps: int) -> dict[str, Any]:
    pair = _stepper(_network(), Plain, kind.dtype), _stepper(*kind.make(), kind.dtype)
    for step in pair:
        step()
    times = [[step() for step in pair] for _ in range(steps)]
    plain, ours = (statistics.mean(column) for column in zip(*times, strict=True))
    row = {
        "kind": kind.name,
        "dtype": str(kind.dtype).removeprefix("torch."),
        "plain_seconds": plain,
        "seconds": ours,
        "median_ratio": statistics.median(after / before for before, after in times),
        "goal": GOALS.get(kind.name),
    }
    print({key: value for key, value in row.items() if value is not None}, flush=True)
    return row


def main() -> None:
    """Measure every kind against plain steps."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--quick", action="store_true", help="3 steps, to .data/")
    options = parser.parse_args()
    steps = 3 if options.quick else options.steps
    torch.manual_seed(0)
    warnings.simplefilter("ignore")
    rows = [_row(kind, steps) for kind in _kinds()]
    write(
        "step_cost",
        folder=CACHE if options.quick or steps != parser.get_default("steps") else None,
        model="ResNet-20 (CIFAR-10)",
        data="random images; only time is measured",
        batch=BATCH,
        steps=steps,
        brevitas=version("brevitas") if importlib.util.find_spec("brevitas") else None,
        rows=rows,
    )


if __name__ == "__main__":
    main()
