"""``builtin:NAME``: small standard networks, and two for the digits."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import SourceError, did_you_mean
from .base.registries import MODELS
from .base.spec import Spec

__all__ = ["BUILTIN", "CifarResNet", "LeNet5", "LeNet300", "builtin", "digits_cnn", "digits_mlp"]


def digits_cnn() -> nn.Sequential:
    """Build three convolutions with batch norm and a linear layer, for ``(n, 1, 8, 8)``."""
    return nn.Sequential(
        *_convolution(1, 32),
        *_convolution(32, 48),
        nn.MaxPool2d(2),
        *_convolution(48, 64),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64 * 2 * 2, 10),
    )


def digits_mlp() -> nn.Sequential:
    """Build three linear layers for ``(n, 1, 8, 8)``."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(64, 128),
        nn.ReLU(),
        nn.Linear(128, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )


class LeNet300(nn.Module):
    """LeNet-300-100 for ``(n, 1, 28, 28)``: 266,610 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(784, 300), nn.Linear(300, 100), nn.Linear(100, 10)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return logits ``(n, 10)``."""
        hidden = F.relu(self.fc2(F.relu(self.fc1(inputs.flatten(1)))))
        output: Tensor = self.fc3(hidden)
        return output


class LeNet5(nn.Module):
    """LeNet-5 as in Caffe, for ``(n, 1, 28, 28)``: 431,080 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 20, 5), nn.Conv2d(20, 50, 5)
        self.fc1, self.fc2 = nn.Linear(800, 500), nn.Linear(500, 10)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return logits ``(n, 10)``."""
        hidden = F.max_pool2d(self.conv2(F.max_pool2d(self.conv1(inputs), 2)), 2)
        output: Tensor = self.fc2(F.relu(self.fc1(hidden.flatten(1))))
        return output


class _Block(nn.Module):
    """Two convolutions and a parameter-free shortcut (He et al. 2016, option A)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride, self.grow = stride, outputs - inputs

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(inputs)))))
        shortcut = inputs[:, :, :: self.stride, :: self.stride]
        if self.grow:
            shortcut = F.pad(shortcut, (0, 0, 0, 0, self.grow // 2, self.grow - self.grow // 2))
        return F.relu(hidden + shortcut)


class CifarResNet(nn.Module):
    """The CIFAR ResNet of He et al. (2016), depth 6n + 2, for ``(n, 3, 32, 32)``."""

    def __init__(self, depth: int, classes: int = 10) -> None:
        super().__init__()
        blocks = (depth - 2) // 6
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, 1, blocks)
        self.layer2 = _stage(16, 32, 2, blocks)
        self.layer3 = _stage(32, 64, 2, blocks)
        self.linear = nn.Linear(64, classes)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return logits ``(n, classes)``."""
        hidden = F.relu(self.bn1(self.conv1(inputs)))
        hidden = self.layer3(self.layer2(self.layer1(hidden)))
        output: Tensor = self.linear(hidden.mean((2, 3)))
        return output


BUILTIN: dict[str, Callable[[], nn.Module]] = {
    "digits-cnn": digits_cnn,
    "digits-mlp": digits_mlp,
    "lenet-300-100": LeNet300,
    "lenet-5": LeNet5,
    "cifar-resnet20": lambda: CifarResNet(20),
    "cifar-resnet32": lambda: CifarResNet(32),
}


@MODELS.register("builtin")
def builtin(spec: Spec, pretrained: bool) -> nn.Module:
    """Build a network with seeded random weights; ``--weights`` loads trained ones."""
    spec.parsed({})
    name = spec.need_target("network", "builtin:digits-cnn")
    if name not in BUILTIN:
        raise SourceError(
            f"source {spec.text!r}: no built-in network {name!r}. Known networks: "
            f"{', '.join(BUILTIN)}." + did_you_mean(name, BUILTIN)
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return BUILTIN[name]()


def _convolution(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
    convolution = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    return convolution, nn.BatchNorm2d(outputs), nn.ReLU()


def _stage(inputs: int, outputs: int, stride: int, blocks: int) -> nn.Sequential:
    rest = [_Block(outputs, outputs, 1) for _ in range(blocks - 1)]
    return nn.Sequential(_Block(inputs, outputs, stride), *rest)
