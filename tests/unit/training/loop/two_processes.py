"""Run by test_processes.py under torchrun: train, and let the first process write what came out."""

from __future__ import annotations

import hashlib
import os
import sys
from contextlib import contextmanager
from copy import deepcopy

import torch
from sklearn.datasets import load_digits
from torch import nn

from fewbits.sources.base.dataset import ArraySplit
from fewbits.training.data.augment import FlipAndCrop
from fewbits.training.distillation.losses import Distillation
from fewbits.training.loop.devices import make_fabric, release
from fewbits.training.loop.loop import fit
from fewbits.training.loop.optimizers import make_optimizer


class Pulling:
    """A tuner whose own learnable is outside of the network: every process must step it alike."""

    stage = 0

    def __init__(self, model):
        self.model, self.scale = model, nn.Parameter(torch.tensor(0.1))

    def penalty(self):
        """Return a pull to a learned scale, which depends on the process's own gradients too."""
        return (self.model[3].weight.abs().mean() - self.scale).square()

    def step(self):
        """Shrink where the gradient, which is that of all processes, is small."""
        with torch.no_grad():
            weight = self.model[3].weight
            weight -= 1e-3 * weight * (1 - weight.grad.abs() / weight.grad.abs().max())

    def advance(self, progress):
        """Do nothing."""

    def parameters(self):
        """Return the scale."""
        return [self.scale]

    def measures(self):
        """Return something."""
        return {"bits_per_weight": self.scale.item()}

    @contextmanager
    def quantized(self):
        """Leave the network as it is."""
        yield

    def state_dict(self):
        """Return the scale."""
        return {"scale": self.scale.detach()}

    def load_state_dict(self, state):
        """Take the scale."""
        with torch.no_grad():
            self.scale.copy_(state["scale"])


class Mortal:
    """A loss that ends its process, as a kill does, at a step; 0 for never."""

    def __init__(self, loss, killed_at):
        self.loss, self.left = loss, int(killed_at)

    def __call__(self, model, batch):
        """Return the loss."""
        self.left -= 1
        if self.left == 0:
            os._exit(9)
        return self.loss(model, batch)


def main(kind, out, folder=None, killed_at=0, resume=""):
    """Train for three epochs, or up to a step; keep the run in a folder, go on from there."""
    images, labels = load_digits(return_X_y=True)
    x = torch.tensor(images[:256].reshape(-1, 1, 8, 8) / 8 - 1, dtype=torch.float32)
    data_labels = torch.tensor(labels[:256])
    data = ArraySplit(x, data_labels)
    augment = FlipAndCrop(flip=False) if kind == "indexed" else None
    if kind == "loader":
        pairs = torch.utils.data.TensorDataset(data.inputs, data.labels)
        data = torch.utils.data.DataLoader(pairs, batch_size=50, shuffle=True)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    tuner, start = Pulling(model), deepcopy(model.state_dict())
    fabric = make_fabric("cpu")
    fitted = fit(
        tuner,
        Mortal(Distillation(deepcopy(model), 0.3), killed_at),
        data,
        epochs=3,
        batch_size=64,
        accumulate=2,
        optimizer=make_optimizer(tuner, learning_rate=0.1),
        augment=augment,
        clip=1.0,
        judge=lambda network: float((network(x).argmax(1) == data_labels).double().mean()),
        fabric=fabric,
        folder=folder,
        resume=bool(resume),
    )
    flat = torch.cat([p.detach().flatten() for p in model.parameters()])
    digest = hashlib.sha256(flat.numpy().tobytes()).digest()
    mine = torch.tensor(list(digest), dtype=torch.int64)
    digests = [fabric.broadcast(mine.tolist(), src=rank) for rank in range(fabric.world_size)]
    if fitted.main:
        state = {"model": model.state_dict(), "start": start, "scale": tuner.scale.detach()}
        torch.save({**state, "history": fitted.history[-1], "digests": digests}, out)
    release(fabric)


main(*sys.argv[1:])
