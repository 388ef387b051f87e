"""Trained networks of other kinds than the main benchmark's, each with its calibration inputs.

LeNets on MNIST, MLPerf's ResNet-8, channel-sparse and channel-pruned ResNets, MobileNetV2 and a
small Llama: what the shared data holds, with a loader each in ``ZOO``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from images import cifar10, data_folder, mnist, normalise, pixels
from lenet import LeNet5, LeNet300
from llama import Llama, sample
from networks import load_weights, resnet20, resnet32

__all__ = ["ZOO", "Case", "lenet5", "mnist_batches", "resnet8"]

CALIBRATION = 1024  # images
BATCH = 128


@dataclass(frozen=True)
class Case:
    """A trained network, and batches of training inputs to calibrate with."""

    model: nn.Module
    calibration: list[Tensor]
    told: str


def _cifar(raw: bool = False, count: int = CALIBRATION, seed: int = 0) -> Tensor:
    images, _ = cifar10("train")
    chosen = np.sort(np.random.default_rng(seed).choice(len(images), count, replace=False))
    return pixels(images[chosen]) if raw else normalise(images[chosen])


def mnist_batches(scale: Callable[[Tensor], Tensor], count: int, seed: int) -> list[Tensor]:
    """Draw ``count`` training images without replacement, as ``scale`` makes them of pixels."""
    images, _ = mnist("train")
    chosen = np.sort(np.random.default_rng(seed).choice(len(images), count, replace=False))
    return list(scale(images[torch.from_numpy(chosen)]).split(BATCH))


def _mnist(scale: Callable[[Tensor], Tensor]) -> list[Tensor]:
    return mnist_batches(scale, CALIBRATION, 0)


class _Shortcut(nn.Module):
    """Two 3x3 convolutions beside a 1x1 one; ``tiny``: biases and TensorFlow's padding."""

    def __init__(self, sizes: tuple[int, int, int], stride: int, down: bool, tiny: bool) -> None:
        super().__init__()
        inputs, middle, outputs = sizes
        epsilon = 1e-3 if tiny else 1e-5
        self.uneven = tiny and stride == 2
        padding = 0 if self.uneven else 1
        self.conv1 = nn.Conv2d(inputs, middle, 3, stride, padding, bias=tiny)
        self.bn1 = nn.BatchNorm2d(middle, epsilon)
        self.conv2 = nn.Conv2d(middle, outputs, 3, 1, 1, bias=tiny)
        self.bn2 = nn.BatchNorm2d(outputs, epsilon)
        side: nn.Module = nn.Conv2d(inputs, outputs, 1, stride, bias=tiny)
        if not tiny:
            side = nn.Sequential(side, nn.BatchNorm2d(outputs))
        self.downsample = side if down else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = functional.pad(x, (0, 1, 0, 1)) if self.uneven else x
        y = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(y)))))
        return functional.relu(y + self.downsample(x))


class _ShortcutNet(nn.Module):
    """A CIFAR ResNet whose widths are read off a state dict."""

    def __init__(self, state: dict[str, Tensor], tiny: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=tiny)
        self.bn1 = nn.BatchNorm2d(16, 1e-3 if tiny else 1e-5)
        for stage in (1, 2, 3):
            start = f"layer{stage}"
            starts = [start] if tiny else [f"{start}.{k}" for k in range(3)]
            blocks = [_shortcut(state, name, stage, tiny) for name in starts]
            self.add_module(start, blocks[0] if tiny else nn.Sequential(*blocks))
        self.fc = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.bn1(self.conv1(x)))
        return self.fc(self.layer3(self.layer2(self.layer1(x))).mean((2, 3)))


def _shortcut(state: dict[str, Tensor], start: str, stage: int, tiny: bool) -> _Shortcut:
    middle, inputs = state[f"{start}.conv1.weight"].shape[:2]
    outputs = state[f"{start}.conv2.weight"].shape[0]
    down = any(name.startswith(f"{start}.downsample") for name in state)
    stride = 2 if stage > 1 and down else 1
    return _Shortcut((inputs, middle, outputs), stride, down, tiny)


class _MobileNetV2(nn.Module):
    """MobileNetV2 1.0 with batch norm folded in; TensorFlow's padding at stride 2."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        super().__init__()
        self.features = nn.ModuleList([nn.Module() for _ in range(19)])
        for key, value in state.items():
            name = key.removesuffix(".weight")
            if key.endswith(".weight") and name != "classifier":
                self._add(name, value.shape)
        self.classifier = nn.Linear(*reversed(state["classifier.weight"].shape))

    def _add(self, name: str, shape: torch.Size) -> None:
        _, place, *leaf = name.split(".")
        depthwise = leaf == ["depthwise"]
        stride = 2 if place == "0" or (depthwise and place in ("2", "4", "7", "14")) else 1
        padding = 0 if stride == 2 else shape[-1] // 2
        groups = shape[0] if depthwise else 1
        conv = nn.Conv2d(shape[1] * groups, shape[0], shape[-1], stride, padding, groups=groups)
        if leaf:
            self.features[int(place)].add_module(leaf[0], conv)
        else:
            self.features[int(place)] = conv

    def forward(self, x: Tensor) -> Tensor:
        for block in self.features:
            x = _convolve(x, block) if isinstance(block, nn.Conv2d) else _inverted(x, block)
        return self.classifier(x.mean((2, 3)))


def _convolve(x: Tensor, conv: nn.Conv2d) -> Tensor:
    padded = functional.pad(x, (0, 1, 0, 1)) if conv.stride == (2, 2) else x
    return functional.relu6(conv(padded))


def _inverted(x: Tensor, block: nn.Module) -> Tensor:
    y = _convolve(x, block.expand) if hasattr(block, "expand") else x
    y = block.project(_convolve(y, block.depthwise))
    return x + y if x.shape == y.shape else y


def _resnet(file: str, folder: str, tiny: bool) -> nn.Module:
    net = _ShortcutNet(load_file(data_folder(folder) / file), tiny)
    return load_weights(net, folder, file)


def _main(model: nn.Module, told: str) -> Case:
    return Case(model, list(_cifar().split(BATCH)), told)


def _thinned(file: str) -> Case:
    images = (_cifar(raw=True) / 255 - 0.5) / 0.5
    net = _resnet(f"{file}.safetensors", "resnet20_cifar10_pruned", tiny=False)
    return Case(net, list(images.split(BATCH)), f"{file.replace('_', ' ')} on CIFAR-10")


def resnet8() -> nn.Module:
    """Return MLPerf's ResNet-8 trained on CIFAR-10 (87.19 % top-1); raw pixels."""
    return _resnet("resnet8.safetensors", "resnet8_cifar10", tiny=True)


def _resnet8() -> Case:
    return Case(
        resnet8(), list(_cifar(raw=True).split(BATCH)), "ResNet-8 of MLPerf Tiny on CIFAR-10"
    )


def lenet5() -> nn.Module:
    """Return LeNet-5 trained on MNIST (99.14 % top-1), in evaluation mode; pixels over 256."""
    return load_weights(LeNet5(), "lenet_mnist", "lenet5_caffe.safetensors")


def _lenet5() -> Case:
    return Case(lenet5(), _mnist(lambda x: x.view(-1, 1, 28, 28) / 256), "LeNet-5 on MNIST")


def _lenet300() -> Case:
    net = load_weights(LeNet300(), "lenet_mnist", "lenet_300_100.safetensors")
    return Case(net, _mnist(lambda x: (x / 255 - 0.1307) / 0.3081), "LeNet-300-100 on MNIST")


def _mobilenet() -> Case:
    raw = load_file(data_folder("mobilenet_v2_imagenet_int8") / "mobilenet_v2_int8.safetensors")
    state = {key: value for key, value in raw.items() if key.endswith(".bias")}
    for key, value in raw.items():
        if key.endswith(".weight"):
            state[key] = value.float() * raw[f"{key}_scale"].view(-1, *[1] * (value.dim() - 1))
    net = _MobileNetV2(state)
    net.load_state_dict(state)
    images = functional.interpolate(_cifar(raw=True, count=128) / 127.5 - 1, scale_factor=3)
    told = "MobileNetV2 of ImageNet (8-bit values), calibrated on 128 enlarged CIFAR-10 images"
    return Case(net.eval(), list(images.split(16)), told)


def _stories() -> Case:
    net = load_weights(Llama(), "stories260k", "stories260k.safetensors")
    told = "stories260K (Llama), calibrated on 8,192 tokens that it writes itself"
    return Case(net, list(sample(net, sequences=64, length=128, seed=0).split(16)), told)


ZOO: dict[str, Callable[[], Case]] = {
    "resnet20": lambda: _main(resnet20(), "ResNet-20 on CIFAR-10"),
    "resnet32": lambda: _main(resnet32(), "ResNet-32 on CIFAR-10"),
    "resnet20_sparse": lambda: _thinned("resnet20_channel_sparse"),
    "resnet20_pruned": lambda: _thinned("resnet20_channel_pruned"),
    "resnet8": _resnet8,
    "lenet5": _lenet5,
    "lenet300": _lenet300,
    "mobilenet_v2": _mobilenet,
    "stories260k": _stories,
}
