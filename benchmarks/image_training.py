"""What training benchmarks on CIFAR-10 share: folding, shifted images, losses of a teacher."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from images import cifar10, normalise

__all__ = ["Images", "features", "fold", "following_loss", "held_out"]

PADDING = 4


@dataclass(frozen=True)
class Images:
    """Normalised training images with a margin of black, and their labels."""

    padded: Tensor
    labels: Tensor

    def batches(self, size: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield one epoch in random order, each image mirrored or not and shifted by up to 4."""
        for rows in torch.randperm(len(self.padded), generator=generator).split(size):
            draws = torch.rand(len(rows), 3, generator=generator)
            shift = (draws[:, :2] * (2 * PADDING + 1)).long()
            down = shift[:, :1] + torch.arange(32)
            right = shift[:, 1:] + torch.arange(32)
            right = torch.where(draws[:, 2:] < 0.5, right.flip(1), right)
            cut = self.padded[rows[:, None, None], :, down[:, :, None], right[:, None, :]]
            yield cut.permute(0, 3, 1, 2), self.labels[rows]


def held_out(count: int, seed: int = 12345) -> tuple[Images, tuple[Tensor, Tensor]]:
    """Return the training images less ``count`` of them, and these, each with a hole of 8 x 8.

    The float networks were trained on all images and are right about nearly all; with a hole they
    are right about as often as on images they do not know.
    """
    images, labels = cifar10("train")
    order = np.random.default_rng(seed).permutation(len(images))
    away, kept = np.sort(order[:count]), np.sort(order[count:])
    padded = functional.pad(normalise(images[kept]), (PADDING,) * 4)
    judged = normalise(images[away])
    corners = np.random.default_rng(seed + 1).integers(0, 25, (count, 2))
    for image, (y, x) in zip(judged, corners, strict=True):
        image[:, y : y + 8, x : x + 8] = 0
    return Images(padded, labels[kept]), (judged, labels[away])


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


def features(model: nn.Module, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Return the logits of a CIFAR-10 ResNet, and the output of every block."""
    x = functional.relu(model.bn1(model.conv1(x)))
    found = []
    for stage in (model.layer1, model.layer2, model.layer3):
        for block in stage:
            x = block(x)
            found.append(x)
    return model.linear(x.mean((2, 3))), found


def following_loss(
    ours: tuple[Tensor, list[Tensor]],
    theirs: tuple[Tensor, list[Tensor]],
    temperature: float,
    blocks: float,
) -> Tensor:
    """Return T^2 KL of the logits plus ``blocks`` times the mean relative error of the blocks."""
    logits, wanted = (pair[0].float() / temperature for pair in (ours, theirs))
    loss = temperature**2 * functional.kl_div(
        logits.log_softmax(1), wanted.softmax(1), reduction="batchmean"
    )
    errors = [
        (a.float() - b.float()).square().mean() / b.float().var()
        for a, b in zip(ours[1], theirs[1], strict=True)
    ]
    return loss + blocks * torch.stack(errors).mean()
