"""LeNet-300-100 and LeNet-5 on MNIST: the networks, their images, and float training."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from fewbits.training.tuner.pruning import share_threshold
from images import CACHE, mnist
from networks import top1

__all__ = [
    "HELD_OUT",
    "NETWORKS",
    "Digits",
    "LeNet5",
    "LeNet300",
    "computing",
    "digits",
    "float_network",
    "rate_of",
]

HELD_OUT = 5_000
BATCH = 128
SHIFT = 1  # pixels


class LeNet300(nn.Module):
    """Three linear layers (LeCun et al. 1998)."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(784, 300), nn.Linear(300, 100), nn.Linear(100, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = functional.relu(self.fc1(x.flatten(1)))
        return self.fc3(functional.relu(self.fc2(h)))


class LeNet5(nn.Module):
    """The LeNet-5 of Caffe, which the literature of compression means: no ReLU in its front."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 20, 5), nn.Conv2d(20, 50, 5)
        self.fc1, self.fc2 = nn.Linear(800, 500), nn.Linear(500, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.max_pool2d(self.conv1(x), 2)
        x = functional.max_pool2d(self.conv2(x), 2)
        return self.fc2(functional.relu(self.fc1(x.flatten(1))))


NETWORKS = {"lenet_300_100": LeNet300, "lenet_5": LeNet5}
DENSE_EPOCHS = {"lenet_300_100": 30, "lenet_5": 12}
PRUNE_EPOCHS = {"lenet_300_100": 15, "lenet_5": 8}
PRUNED = {"lenet_300_100": 0.92, "lenet_5": 0.92}  # as in Deep Compression (Han et al. 2016)


@dataclass(frozen=True)
class Digits:
    """Images (n, 1, 28, 28) in [0, 1] and labels to train on, and those that judge."""

    images: Tensor
    labels: Tensor
    held_out: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]

    def batches(self, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield one epoch in random order, each batch shifted by up to a pixel each way."""
        order = torch.randperm(len(self.images), generator=generator)
        for rows in order[: len(order) - len(order) % BATCH].split(BATCH):
            down, right = torch.randint(-SHIFT, SHIFT + 1, (2,), generator=generator).tolist()
            shifted = torch.roll(self.images[rows], (down, right), (2, 3))
            yield shifted.contiguous(memory_format=torch.channels_last), self.labels[rows]

    @property
    def steps(self) -> int:
        """Batches of an epoch."""
        return len(self.images) // BATCH


def digits(count: int | None = None) -> Digits:
    """Return MNIST, its last 5,000 training images held out; ``count`` trains on so many only."""
    (images, labels), (test, answers) = mnist("train"), mnist("test")
    images, test = (x.reshape(-1, 1, 28, 28) / 255 for x in (images, test))
    last = len(images) - HELD_OUT
    kept = last if count is None else count
    return Digits(images[:kept], labels[:kept], (images[last:], labels[last:]), (test, answers))


def computing() -> torch.autocast:
    """Return the precision that networks are trained in: bfloat16, at half the time."""
    return torch.autocast("cpu", torch.bfloat16)


def rate_of(progress: float) -> float:
    """Return the share of the learning rate: a short rise, then half a cosine."""
    return min(1.0, 100 * progress + 0.01) * (1 + math.cos(math.pi * progress)) / 2


def _train(
    model: nn.Module, data: Digits, epochs: int, seed: int, *, rate: float, share: float = 0.0
) -> None:
    """Train in place with cross-entropy; with ``share``, prune so many of the smallest weights."""
    model.to(memory_format=torch.channels_last)
    generator = torch.Generator().manual_seed(seed)
    weights = [p for p in model.parameters() if p.ndim > 1]
    masks = [torch.ones_like(p) for p in weights]
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=5e-4)
    for epoch in range(epochs):
        if share:
            done = min(1.0, (epoch + 1) / (0.6 * epochs))
            threshold = share_threshold(weights, share * (1 - (1 - done) ** 3))
            masks = [(p.abs() > threshold).float() for p in weights]
        for number, (x, y) in enumerate(data.batches(generator)):
            progress = (epoch + number / data.steps) / epochs
            for group in optimizer.param_groups:
                group["lr"] = rate * rate_of(progress)
            optimizer.zero_grad()
            with computing():
                logits = model(x)
            functional.cross_entropy(logits.float(), y).backward()
            optimizer.step()
            with torch.no_grad():
                for p, mask in zip(weights, masks, strict=True):
                    p.mul_(mask)
    model.to(memory_format=torch.contiguous_format)


def float_network(name: str, start: str, data: Digits, seed: int, *, quick: bool) -> nn.Module:
    """Return a trained network, ``start`` "dense" or "pruned"; trained once, kept in ``.data``."""
    model = NETWORKS[name]()
    path = CACHE / f"{name}_{start}_{seed}{'_quick' * quick}.safetensors"
    if not path.exists():
        if start == "dense":
            torch.manual_seed(seed)
            model = NETWORKS[name]()
            _train(model, data, 1 if quick else DENSE_EPOCHS[name], seed, rate=2e-3)
        else:
            model = float_network(name, "dense", data, seed, quick=quick)
            epochs = 2 if quick else PRUNE_EPOCHS[name]
            _train(model, data, epochs, seed, rate=1e-3, share=PRUNED[name])
        CACHE.mkdir(exist_ok=True)
        partial = path.with_suffix(f".partial{seed}")
        save_file(model.state_dict(), partial)
        partial.replace(path)
        print(f"{name}, {start}, seed {seed}: {top1(model, *data.held_out):.2f} % held out")
    model.load_state_dict(load_file(path))
    return model.eval()
