"""A small network of many kinds of layers, and runs of a compression that are interrupted."""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch import nn

import fewbits

__all__ = ["Interrupt", "Many", "batches", "empty", "network", "outcome", "recipe"]


class Many(nn.Module):
    """Embedding, attention, a convolution with batch normalization, linear layers, one twice."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(12, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.conv, self.norm = nn.Conv1d(8, 8, 3, padding=1), nn.BatchNorm1d(8)
        self.twice = nn.Linear(8, 8)
        self.between = nn.Linear(8, 8)
        self.head = nn.Linear(8, 12)
        self.head.weight = self.table.weight
        self.register_buffer("positions", torch.linspace(-1, 1, 6)[:, None], persistent=False)

    def forward(self, x):
        x = self.table(x) + self.positions
        x = x + self.attention(x, x, x, need_weights=False)[0]
        x = self.norm(self.conv(x.mT)).mT.relu()
        x = self.twice(self.between(self.twice(x).relu()).relu())
        return self.head(x)


def network() -> Many:
    """A network with values, in evaluation mode; the same each time."""
    torch.manual_seed(0)
    net = Many()
    with torch.no_grad():
        net.norm.running_mean.uniform_(-1, 1)
        net.norm.running_var.uniform_(0.5, 2)
    return net.eval()


def empty() -> Many:
    """The same network without weights."""
    with fewbits.empty_weights():
        return Many().eval()


def batches() -> list[torch.Tensor]:
    """Calibration data of the network."""
    g = torch.Generator().manual_seed(1)
    return [torch.randint(0, 12, (6, 6), generator=g) for _ in range(3)]


def recipe(method: Any) -> fewbits.Recipe:
    """A recipe with all stages."""
    return fewbits.Recipe(
        (fewbits.Rule("*", method),),
        prepare=("fold_batchnorm",),
        finish=("reestimate_batchnorm",),
    )


def outcome(coded: Any) -> tuple[object, ...]:
    """What two equal compressions have in common."""
    notes = tuple(note for note in coded.notes if not note.startswith("resumed after"))
    reasons = [(e.target.name, e.method, e.reason) for e in coded.plan.entries]
    return coded.data, notes, reasons, dict(coded.plan.kept), coded.info


class Interrupt:
    """A progress callback that stops the run when so many layers are finished."""

    def __init__(self, after: int) -> None:
        self.after = after

    def __call__(self, event: Any) -> None:
        assert threading.current_thread() is threading.main_thread()
        if event.stage == "quantize" and event.done == self.after:
            raise KeyboardInterrupt
