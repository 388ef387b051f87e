"""Low-bit schedules on scikit-learn's digits, each beside direct training of the same length.

    python benchmarks/lowbit_digits.py [--quick] [--seeds 8]

A network of five convolutions (four channels; the first and the linear layer in float), 800
training and 997 test images, one split; the test images are used once, at the end of each run. A
unit is 12 epochs of SGD (Nesterov 0.9, rate 0.02, decay 1e-4, batches of 64), half a cosine for
every stage, a fresh optimizer for each. "2x" means two units in all. The order of stages is only
told where the float network is at least 93 % and 3 points above direct training: without that gap
there is nothing to be ordered, and the verdict is "no power".

--quick: one seed, short units; it tries the path and tells nothing. Exploring records go to .data/.
"""

from __future__ import annotations

import argparse
import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional

import fewbits
from fewbits.training import JointDistillation, JointWeights, PerStage, WarmCosine
from image_training import sgd
from images import CACHE
from record import write

Data = tuple[Tensor, Tensor, Tensor, Tensor]
PAPER: dict[str, Any] = {"quantizer": "dorefa", "placement": "output", "first_last": "fp"}
LEARNED: dict[str, Any] = {"quantizer": "lsq", "placement": "output", "first_last": "fp"}
TWO = {"weights": 2, "activations": 2}
ALL_AT_ONCE = "2/32, 2/8*0.6667, 2/4*0.6667, 2/2*0.6667"


@dataclass(frozen=True)
class Variant:
    """One way to train: a method, its length in units, and what goes with it."""

    method: fewbits.LowBit
    units: float = 1.0
    scratch: bool = False
    teacher: bool = False


def _paper(**more: Any) -> fewbits.LowBit:
    return fewbits.LowBit(**{**PAPER, **TWO, **more})


VARIANTS = {
    "untrained": Variant(_paper(), 0.0),
    "scratch 1x": Variant(_paper(), scratch=True),
    "direct 1x": Variant(_paper()),
    "direct 2x": Variant(_paper(), 2),
    "direct 3x": Variant(_paper(), 3),
    "weights only 1x": Variant(_paper(activations=32)),
    "two stages 1x": Variant(_paper(schedule="two_stage")),
    "two stages 2x": Variant(_paper(schedule="two_stage"), 2),
    "activations first 2x": Variant(_paper(schedule="activations_first"), 2),
    "progressive 1x": Variant(_paper(schedule="progressive")),
    "progressive 3x": Variant(_paper(schedule="progressive"), 3),
    "stochastic 1x": Variant(_paper(schedule="stochastic", gates="layer")),
    "stochastic 0.5": Variant(_paper(schedule="stochastic", gates="layer", chance=0.5)),
    "stochastic 0.5 measured": Variant(
        _paper(schedule="stochastic", gates="layer", chance=0.5, reestimate=True)
    ),
    "joint 1x": Variant(_paper(), teacher=True),
    "all 3x": Variant(_paper(schedule=ALL_AT_ONCE), 3, teacher=True),
    "w4a4 1x": Variant(_paper(weights=4, activations=4)),
    "w8a8 1x": Variant(_paper(weights=8, activations=8)),
    "lsq 1x": Variant(fewbits.LowBit(**LEARNED, **TWO)),
    "lsq w4a4 1x": Variant(fewbits.LowBit(**LEARNED, weights=4, activations=4)),
}


def digits() -> Data:
    """Return training and test images and labels, standardised by the training images."""
    images, labels = load_digits(return_X_y=True)
    x, xt, y, yt = train_test_split(
        (images / 16).astype(np.float32), labels, train_size=800, random_state=0, stratify=labels
    )
    centre, spread = x.mean(), x.std()
    made = [torch.from_numpy((a - centre) / spread).reshape(-1, 1, 8, 8) for a in (x, xt)]
    return made[0], torch.from_numpy(y), made[1], torch.from_numpy(yt)


def network(width: int = 4) -> nn.Sequential:
    """Five convolutions with normalizations and ReLUs, a mean over the image, a linear layer."""
    layers: list[nn.Module] = []
    shapes = [(1, width, 1), (width, width, 1), (width, 2 * width, 2)] + [
        (2 * width, 2 * width, 1)
    ] * 2
    for inputs, outputs, stride in shapes:
        layers += [
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
        ]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, 10))


def accuracy(net: nn.Module, data: Data) -> float:
    """Return top-1 on the test images, in percent."""
    with torch.inference_mode():
        return 100 * float((net.eval()(data[2]).argmax(1) == data[3]).float().mean())


def train(
    net: nn.Module, data: Data, epochs: int, seed: int, *, lr: float, tuner: Any, loss: Any = None
) -> None:
    """Train ``net`` in place, half a cosine and a fresh optimizer for every stage of ``tuner``."""
    rate: Callable[[float], float] = WarmCosine()
    if tuner is not None and len(tuner.stage_ends) > 1:
        rate = PerStage(WarmCosine(), tuner.stage_ends)
    own = () if tuner is None else tuner.parameters()
    optimizer, stage = sgd(net, own, lr), 0
    generator = torch.Generator().manual_seed(seed)
    steps = len(data[0]) // 64
    for number in range(epochs * steps):
        if number % steps == 0:
            order = torch.randperm(len(data[0]), generator=generator)
        rows = order[number % steps * 64 :][:64]
        progress = number / (epochs * steps)
        net.train()
        if tuner is not None:
            tuner.advance(progress)
            if tuner.stage != stage:
                optimizer, stage = sgd(net, tuner.parameters(), lr), tuner.stage
        for group in optimizer.param_groups:
            group["lr"] = lr * rate(progress)
        batch = data[0][rows], data[1][rows]
        if loss is None:
            total = functional.cross_entropy(net(batch[0]), batch[1])
        else:
            total = loss(net, batch)[0]
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        if tuner is not None:
            tuner.step()


def run(variant: Variant, plain: nn.Module, data: Data, unit: int, seed: int) -> dict[str, float]:
    """Return accuracy of the loaded file, its bytes, and its teacher's accuracy."""
    torch.manual_seed(seed)
    net = network() if variant.scratch else copy.deepcopy(plain)
    tuner = fewbits.prepare(net, variant.method, calibration=data[0][:256], seed=seed)
    loss, teacher = None, copy.deepcopy(plain)
    epochs = round(unit * variant.units)
    if variant.teacher:
        taught = sgd(teacher, (), 0.2 * 0.02)
        total = epochs * (len(data[0]) // 64)
        loss = JointDistillation(
            teacher, taught, JointWeights(), lr_schedule=WarmCosine(), total=max(1, total)
        )
    train(net, data, epochs, seed, lr=0.02, tuner=tuner, loss=loss)
    inside = None
    if not variant.method.reestimate:
        with tuner.quantized():
            inside = net.eval()(data[2]).argmax(1)
    coded = tuner.finish()
    loaded = coded.load_into(network()).eval()
    with torch.inference_mode():
        found = loaded(data[2]).argmax(1)
    told = {"accuracy": accuracy(loaded, data), "bytes": float(len(coded.data))}
    if inside is not None:
        told["same"] = float(bool((found == inside).all()))
    if variant.teacher:
        told["teacher"] = accuracy(teacher, data)
    return told


def one_seed(seed: int, data: Data, unit: int) -> dict[str, dict[str, float]]:
    """Return what every variant gives."""
    torch.manual_seed(seed)
    plain = network()
    train(plain, data, 2 * unit, seed, lr=0.05, tuner=None)
    found = {"float 2x": {"accuracy": accuracy(plain, data), "bytes": 0.0}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, variant in VARIANTS.items():
            found[name] = run(variant, plain, data, unit, seed)
    return found


def verdicts(table: dict[str, list[float]], seeds: list[dict[str, Any]]) -> dict[str, Any]:
    """Return L1 to L12, the checks of this benchmark: True, False, or "no power"."""
    m = {name: mean(values) for name, values in table.items()}
    base = table["direct 1x"]

    def wins(name: str, other: list[float]) -> float:
        return mean(float(a > b) for a, b in zip(table[name], other, strict=True))

    staged = ("two stages 2x", "progressive 3x", "all 3x")
    found = {
        "L1": m["untrained"] <= 30 and m["direct 1x"] >= 82,
        "L2": m["direct 1x"] - m["scratch 1x"] >= 4
        and wins("direct 1x", table["scratch 1x"]) >= 0.9,
        "L3": m["weights only 1x"] >= max(m["float 2x"] - 3, m["direct 1x"] + 2),
        "L4": m["w4a4 1x"] >= m["direct 1x"] + 2
        and m["w8a8 1x"] >= m["float 2x"] - 3.5
        and m["lsq w4a4 1x"] >= m["float 2x"] - 1.5,
        "L5": m["direct 3x"] >= m["direct 1x"] + 1,
        "L6": all(m[n] >= m["direct 1x"] + 0.5 and wins(n, base) >= 0.75 for n in staged),
        "L7": m["two stages 2x"] >= m["direct 2x"] - 2
        and m["progressive 3x"] >= m["direct 3x"] - 3
        and m["stochastic 1x"] >= m["direct 1x"] - 2
        and m["joint 1x"] >= m["direct 1x"] - 2,
        "L8": m["all 3x"] >= m["progressive 3x"] - 0.5,
        "L9": m["stochastic 0.5 measured"] >= m["stochastic 0.5"] + 10,
        "L10": m["lsq 1x"] >= m["direct 1x"],
        "L11": mean(seed["joint 1x"]["teacher"] for seed in seeds) >= m["float 2x"] - 2,
        "L12": all(row.get("same", 1.0) == 1.0 for seed in seeds for row in seed.values()),
    }
    power = m["float 2x"] >= 93 and m["float 2x"] - m["direct 1x"] >= 3
    exact = ("L1", "L9", "L12")  # these order nothing
    return {k: bool(v) if power or k in exact else "no power" for k, v in found.items()}


def main() -> None:
    """Run the seeds and write the record."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seeds", type=int, default=8)
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = digits()
    count, unit = (1, 2) if options.quick else (options.seeds, 12)
    seeds = []
    for seed in range(count):
        seeds.append(one_seed(seed, data, unit))
        print(seed, {k: round(v["accuracy"], 1) for k, v in seeds[-1].items()}, flush=True)
    table = {name: [seed[name]["accuracy"] for seed in seeds] for name in seeds[0]}
    summary = [
        {
            "variant": name,
            "accuracy_mean": mean(values),
            "accuracy_sd": stdev(values) if len(values) > 1 else 0.0,
            "file_bytes_mean": mean(seed[name]["bytes"] for seed in seeds),
        }
        for name, values in table.items()
    ]
    found = verdicts(table, seeds)
    for row in summary:
        print(f"{row['variant']:26} {row['accuracy_mean']:6.2f} ({row['accuracy_sd']:.2f})")
    print(found)
    exploring = options.quick or options.seeds != 8
    write(
        "lowbit_digits",
        model="five convolutions, 4 channels",
        data="scikit-learn digits, 800 training and 997 test images",
        folder=CACHE if exploring else None,
        unit_epochs=unit,
        summary=summary,
        verdicts=found,
        seeds=seeds,
    )


if __name__ == "__main__":
    main()
