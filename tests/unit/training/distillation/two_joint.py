"""Run by test_joint_processes.py under torchrun: a student and a teacher that trains along."""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path

import torch
from torch import nn

import fewbits
from fewbits.engine.network.batches import call_model
from fewbits.sources.base.dataset import ArraySplit
from fewbits.training import JointDistillation, WarmCosine, fit, make_optimizer
from fewbits.training.loop.devices import make_fabric, release


class Mortal:
    """A forward pass that ends its process, as a kill does, at a call; 0 for never."""

    def __init__(self, killed_at):
        self.left = int(killed_at)

    def __call__(self, model, batch):
        """Return the logits."""
        self.left -= 1
        if self.left == 0:
            os._exit(9)
        return call_model(model, batch)


def network(kind):
    """Return a small network, with a batch normalization or without."""
    between = nn.BatchNorm1d(8) if kind == "normed" else nn.Identity()
    return nn.Sequential(nn.Linear(6, 8), between, nn.ReLU(), nn.Linear(8, 4))


def digest(model):
    """Return what tells a network's tensors from any others."""
    whole = hashlib.sha256()
    for value in model.state_dict().values():
        whole.update(value.numpy().tobytes())
    return whole.hexdigest()


def main(kind, out, accumulate=1, folder=None, killed_at=0):
    """Train for three epochs of three steps, or go on with a folder's run.

    The teachers of two processes start apart.
    """
    x = torch.randn(96, 6, generator=torch.Generator().manual_seed(0))
    labels = (x[:, 0] > 0).long() + 2 * (x[:, 1] > 0)
    fabric = make_fabric("cpu")
    torch.manual_seed(0)
    model = network(kind)
    torch.manual_seed(1 + fabric.global_rank)
    teacher = network(kind)
    tuner = fewbits.prepare(model, fewbits.LowBit(weights=4, activations=8), calibration=x)
    loss = JointDistillation(
        teacher,
        torch.optim.SGD(teacher.parameters(), lr=0.1, momentum=0.9),
        lr_schedule=WarmCosine(),
        total=9,
        forward=Mortal(killed_at),
    )
    fitted = fit(
        tuner,
        loss,
        ArraySplit(x, labels),
        epochs=3,
        batch_size=32,
        accumulate=int(accumulate),
        optimizer=make_optimizer(tuner, learning_rate=0.05),
        fabric=fabric,
        folder=folder,
        resume=folder is not None and Path(folder, "last.pt").exists(),
    )
    told = {
        name: [fabric.broadcast(digest(of), src=rank) for rank in range(fabric.world_size)]
        for name, of in (("teachers", teacher), ("students", model))
    }
    if fitted.main:
        torch.save({**told, "steps": loss.steps, "teacher": teacher.state_dict()}, out)
    release(fabric)


main(*sys.argv[1:])
