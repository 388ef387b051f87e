"""Fashion-MNIST, and two networks trained on it here: a small CNN, and a transformer like DeiT."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from images import CACHE, mnist

__all__ = ["EPOCHS", "Clothes", "clothes", "fresh", "trained"]

EPOCHS = {"cnn": 8, "vit": 9}
_RATES = {"cnn": 8e-3, "vit": 2e-3}
_MEAN, _STD = 0.286, 0.353


@dataclass(frozen=True)
class Clothes:
    """Standardised images (n, 1, 28, 28) and labels (n,)."""

    images: Tensor
    labels: Tensor

    def batches(self, size: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield an epoch of full batches; each is shifted as one, and half of it mirrored."""
        order = torch.randperm(len(self.labels), generator=generator)
        for rows in order[: len(order) // size * size].split(size):
            shift = torch.randint(-2, 3, (2,), generator=generator).tolist()
            images = torch.roll(self.images[rows], shift, (2, 3))
            images[: size // 2] = images[: size // 2].flip(3)
            yield images, self.labels[rows]


@lru_cache
def clothes(part: str, count: int | None = None) -> Clothes:
    """Return the first ``count`` images of "train" or "test"."""
    pixels, labels = mnist(part, "fashion_mnist")
    images = (pixels[:count].view(-1, 1, 28, 28) / 255 - _MEAN) / _STD
    return Clothes(images, labels[:count])


class _Attention(nn.Module):
    """A block of DeiT: attention and a perceptron, each after a normalization."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, tokens, width = x.shape
        parts = self.qkv(self.norm1(x)).view(n, tokens, 3, self.heads, -1)
        seen = F.scaled_dot_product_attention(*parts.permute(2, 0, 3, 1, 4))
        x = x + self.proj(seen.transpose(1, 2).reshape(n, tokens, width))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class _Transformer(nn.Module):
    """DeiT (Touvron et al. 2021) for 28 x 28 pixels: 16 patches, a class token, 48 channels."""

    def __init__(self, width: int = 48, depth: int = 2, heads: int = 3, patch: int = 7) -> None:
        super().__init__()
        self.patch = nn.Conv2d(1, width, patch, patch)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.position = nn.Parameter(torch.randn(1, (28 // patch) ** 2 + 1, width) * 0.02)
        self.blocks = nn.Sequential(*(_Attention(width, heads) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=module.in_features**-0.5)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.position
        return self.head(self.norm(self.blocks(x))[:, 0])


def _cnn(width: int = 8) -> nn.Sequential:
    """Four 3 x 3 convolutions with normalizations, a mean over the image, a linear layer."""
    layers: list[nn.Module] = []
    widths = (1, width, 2 * width, 4 * width, 4 * width)
    for inputs, outputs, stride in zip(widths, widths[1:], (2, 2, 2, 1), strict=False):
        convolution = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        layers += [convolution, nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * width, 10))


def fresh(kind: str) -> nn.Module:
    """Return the untrained network "cnn" or "vit"; the same at every call."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return _cnn() if kind == "cnn" else _Transformer()


def trained(kind: str) -> nn.Module:
    """Return the network trained on all 60,000 images, from ``.data/`` where it is kept."""
    path, model = CACHE / f"fashion_{kind}_{EPOCHS[kind]}.safetensors", fresh(kind)
    if not path.exists():
        _train(model.train(), kind)
        CACHE.mkdir(exist_ok=True)
        save_file(model.state_dict(), path)
    model.load_state_dict(load_file(path))
    return model.eval()


def _train(model: nn.Module, kind: str) -> None:
    data, generator = clothes("train"), torch.Generator().manual_seed(0)
    rate, steps, done = _RATES[kind], EPOCHS[kind] * (len(data.labels) // 128), 0
    optimizer = torch.optim.AdamW(model.parameters(), rate, weight_decay=0.05)
    for _ in range(EPOCHS[kind]):
        for x, y in data.batches(128, generator):
            for group in optimizer.param_groups:
                group["lr"] = rate * min(1, (done + 1) / 200) * (1 - done / steps) + 1e-6
            loss = F.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            done += 1
