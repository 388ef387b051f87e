"""What training benchmarks share: held-out images, shifted views, a teacher, an optimizer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from images import CACHE, Bytes, cifar10, normalise
from networks import resnet32

__all__ = ["VIEWS", "Images", "distilled", "fold", "held_out", "prepare_views", "sgd"]

PADDING = 4
VIEWS = 8  # shifted and mirrored copies of the training images that a teacher has looked at
_FIRST_SEED = 9000

View: TypeAlias = "tuple[Tensor, Tensor]"


@dataclass(frozen=True)
class Images:
    """Normalised training images with a margin of black, and their labels."""

    padded: Tensor
    labels: Tensor

    def drawn(self, generator: torch.Generator) -> View:
        """Return the rows and columns of each image: mirrored or not, shifted by <= 4."""
        draws = torch.rand(len(self.padded), 3, generator=generator)
        shift = (draws[:, :2] * (2 * PADDING + 1)).long()
        down = shift[:, :1] + torch.arange(32)
        right = shift[:, 1:] + torch.arange(32)
        return down, torch.where(draws[:, 2:] < 0.5, right.flip(1), right)

    def view(self, number: int) -> View:
        """Return one of the views that a teacher has looked at."""
        return self.drawn(torch.Generator().manual_seed(_FIRST_SEED + number))

    def cut(self, view: View, rows: Tensor) -> Tensor:
        """Return images of a view (n, 3, 32, 32), channels last."""
        down, right = (side[rows] for side in view)
        cut = self.padded[rows[:, None, None], :, down[:, :, None], right[:, None, :]]
        return cut.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)

    def batches(self, size: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield an epoch in random order: images of a view of its own, and labels."""
        view = self.drawn(generator)
        for rows in self._orders(size, generator):
            yield self.cut(view, rows), self.labels[rows]

    def taught(
        self, epoch: int, size: int, generator: torch.Generator
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield an epoch in random order: images of its view, the teacher's logits, labels."""
        number = epoch % VIEWS
        view, logits = self.view(number), torch.load(_kept(number), weights_only=True)
        for rows in self._orders(size, generator):
            yield self.cut(view, rows), logits[rows].float(), self.labels[rows]

    def _orders(self, size: int, generator: torch.Generator) -> Iterator[Tensor]:
        order = torch.randperm(len(self.padded), generator=generator)
        yield from order[: len(order) - len(order) % size].split(size)


def held_out(
    count: int,
    seed: int = 12345,
    *,
    trained: int | None = None,
    scale: Callable[[Bytes], Tensor] = normalise,
) -> tuple[Images, tuple[Tensor, Tensor]]:
    """Return the training images less ``count`` of them, and these, each with a hole of 8 x 8.

    The float networks were trained on all images and are right about nearly all; with a hole they
    are right about as often as on images they do not know. ``trained``: so many images to train on,
    drawn at random, instead of all others.
    """
    images, labels = cifar10("train")
    order = np.random.default_rng(seed).permutation(len(images))
    end = len(order) if trained is None else count + trained
    away, kept = np.sort(order[:count]), np.sort(order[count:end])
    padded = functional.pad(scale(images[kept]), (PADDING,) * 4)
    judged = scale(images[away])
    corners = np.random.default_rng(seed + 1).integers(0, 25, (count, 2))
    for image, (y, x) in zip(judged, corners, strict=True):
        image[:, y : y + 8, x : x + 8] = 0
    return Images(padded, labels[kept]), (judged, labels[away])


@torch.no_grad()
def prepare_views(images: Images) -> None:
    """Write the logits of the float ResNet-32 on every view to ``.data``, where they are missing.

    Cost: some 40 seconds for each view, once.
    """
    CACHE.mkdir(exist_ok=True)
    teacher = resnet32().to(memory_format=torch.channels_last)
    for number in range(VIEWS):
        if _kept(number).exists():
            continue
        view, found = images.view(number), []
        for rows in torch.arange(len(images.padded)).split(1000):
            with torch.autocast("cpu", torch.bfloat16):
                found.append(teacher(images.cut(view, rows)).float())
        partial = _kept(number).with_suffix(".partial")
        torch.save(torch.cat(found).half(), partial)
        partial.replace(_kept(number))


def _kept(number: int) -> Path:
    return CACHE / f"resnet32_view_{number}.pt"


def distilled(ours: Tensor, theirs: Tensor, labels: Tensor, heat: float, labelled: float) -> Tensor:
    """Return T^2 KL of the logits at temperature ``heat``, with a share of cross-entropy."""
    soft = functional.kl_div(
        (ours / heat).log_softmax(1), (theirs / heat).softmax(1), reduction="batchmean"
    )
    return (1 - labelled) * heat**2 * soft + labelled * functional.cross_entropy(ours, labels)


def sgd(model: nn.Module, own: Iterable[nn.Parameter], lr: float) -> torch.optim.SGD:
    """Return Nesterov's SGD; ``own``, steps and clips of a method, do not decay."""
    own = list(own)
    known = {id(p) for p in own}
    rest = [p for p in model.parameters() if id(p) not in known and p.requires_grad]
    groups = [{"params": rest, "weight_decay": 1e-4}, {"params": own, "weight_decay": 0.0}]
    return torch.optim.SGD([g for g in groups if g["params"]], lr=lr, momentum=0.9, nesterov=True)


@torch.no_grad()
def fold(model: nn.Module) -> nn.Module:
    """Absorb every ``bnN`` into the ``convN`` beside it, in place; the function stays the same."""
    for module in model.modules():
        for name, norm in list(module.named_children()):
            if isinstance(norm, nn.BatchNorm2d):
                gain = norm.weight / (norm.running_var + norm.eps).sqrt()
                getattr(module, name.replace("bn", "conv")).weight.mul_(gain[:, None, None, None])
                norm.bias.sub_(norm.running_mean * gain)
                norm.weight.fill_(1)
                norm.running_mean.zero_()
                norm.running_var.fill_(1 - norm.eps)
    return model
