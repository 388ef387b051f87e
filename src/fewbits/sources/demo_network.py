"""A short training run that gives a network to compress, for the demo, examples and tests."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..progress import Progress, ProgressEvent, silent
from .base.dataset import DataSource

__all__ = ["train_classifier"]


def train_classifier(
    model: nn.Module,
    data: DataSource,
    *,
    epochs: int = 16,
    batch_size: int = 64,
    learning_rate: float = 5e-3,
    seed: int = 0,
    progress: Progress = silent,
) -> nn.Module:
    """Train ``model`` in place on the training split of small images, and return it.

    AdamW with a one-cycle schedule; every image is shifted by up to one pixel each way. The same
    seed and machine give the same network; the global random state is left unchanged.
    """
    batches = len(list(data.batches("train", batch_size)))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        optimizer = torch.optim.AdamW(model.parameters(), learning_rate, weight_decay=1e-2)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, learning_rate, total_steps=epochs * batches
        )
        model.train()
        progress(ProgressEvent("train", 0, epochs))
        for epoch in range(epochs):
            for inputs, labels in data.batches("train", batch_size, seed=seed + epoch):
                loss = F.cross_entropy(model(_shifted(inputs)), labels)
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
            progress(ProgressEvent("train", epoch + 1, epochs, f"epoch {epoch + 1}"))
    return model.eval()


def _shifted(images: Tensor) -> Tensor:
    # The corners of these images are background, so repeat the edge.
    padded = F.pad(images, (1, 1, 1, 1), mode="replicate")
    down, right = torch.randint(0, 3, (2,)).tolist()
    height, width = images.shape[-2:]
    return padded[..., down : down + height, right : right + width]
