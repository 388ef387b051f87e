"""The networks the benchmarks compress, and their float accuracy."""

from __future__ import annotations

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from fewbits.sources import load_data, load_model
from fewbits.sources.demo_network import train_classifier
from images import CACHE, data_folder

__all__ = ["digits_network", "load_weights", "mnist_mlp", "resnet20", "resnet32", "top1"]


class _Block(nn.Module):
    """Two 3x3 convolutions and a shortcut without parameters (He et al. 2015, option A)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        stride = 1 if inputs == outputs else 2
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.pad = (outputs - inputs) // 2

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        if self.pad:
            x = functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.pad, self.pad))
        return functional.relu(x + y)


def _stage(inputs: int, outputs: int, blocks: int) -> nn.Sequential:
    return nn.Sequential(
        _Block(inputs, outputs), *(_Block(outputs, outputs) for _ in range(1, blocks))
    )


class _ResNet(nn.Module):
    """The CIFAR-10 networks of He et al. 2015 with 6 * ``blocks`` + 2 layers."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, blocks)
        self.layer2 = _stage(16, 32, blocks)
        self.layer3 = _stage(32, 64, blocks)
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))


def load_weights(model: nn.Module, folder: str, file: str) -> nn.Module:
    """Return ``model`` with the weights of ``file``, in evaluation mode; everything must fit."""
    state = load_file(data_folder(folder) / file)
    missing, unexpected = model.load_state_dict(state, strict=False)
    if unexpected or any(not name.endswith("num_batches_tracked") for name in missing):
        raise RuntimeError(f"checkpoint does not fit: missing {missing}, unexpected {unexpected}")
    return model.eval()


def resnet20() -> nn.Module:
    """Return ResNet-20 trained on CIFAR-10 (91.73 % top-1), in evaluation mode."""
    return load_weights(_ResNet(3), "resnet_cifar10", "resnet20.safetensors")


def resnet32() -> nn.Module:
    """Return ResNet-32 trained on CIFAR-10 (92.63 % top-1), in evaluation mode."""
    return load_weights(_ResNet(5), "resnet_cifar10", "resnet32.safetensors")


def mnist_mlp() -> nn.Sequential:
    """Return the untrained multilayer perceptron of Lybrand and Saab 2021, as Keras makes it."""
    model = nn.Sequential(
        nn.Linear(784, 500),
        nn.ReLU(),
        nn.BatchNorm1d(500, eps=1e-3, momentum=0.01),
        nn.Linear(500, 300),
        nn.ReLU(),
        nn.BatchNorm1d(300, eps=1e-3, momentum=0.01),
        nn.Linear(300, 10),
    )
    for layer in model:
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
    return model


@torch.no_grad()
def top1(model: nn.Module, images: Tensor, labels: Tensor, batch: int = 500) -> float:
    """Return top-1 accuracy in percent over all of ``images``, in evaluation mode."""
    model.eval()
    parts = zip(images.split(batch), labels.split(batch), strict=True)
    correct = sum(int((model(x).argmax(1) == y).sum()) for x, y in parts)
    return 100 * correct / len(labels)


def digits_network(name: str, epochs: int, seed: int) -> nn.Module:
    """Return a built-in network trained on digits, from ``.data/`` where it is kept."""
    path = CACHE / f"{name}_{epochs}_{seed}.safetensors"
    model = load_model(f"builtin:{name}").module
    if path.exists():
        model.load_state_dict(load_file(path))
        return model.eval()
    train_classifier(model, load_data("digits"), seed=seed, epochs=epochs)
    CACHE.mkdir(exist_ok=True)
    save_file(model.state_dict(), path)
    return model
