"""Trains the MNIST network of Lybrand and Saab 2021 once, and keeps it in ``.data``.

Their recipe: raw pixels, Glorot uniform weights, Adam, batches of 128, 100 epochs, the last 20 % of
the training images held out for validation. It takes minutes.
"""

from __future__ import annotations

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from images import CACHE, mnist
from networks import mnist_mlp, top1

__all__ = ["TRAINED_ON", "trained_mlp"]

TRAINED_ON = 48_000
CHECKPOINT = CACHE / "mnist_mlp.safetensors"


def _epoch(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> None:
    model.train()
    for rows in torch.randperm(len(x)).split(128):
        optimizer.zero_grad()
        functional.cross_entropy(model(x[rows]), y[rows]).backward()
        optimizer.step()


def _train(epochs: int, seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    x, y = mnist("train")
    model = mnist_mlp()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, eps=1e-7)
    for epoch in range(epochs):
        _epoch(model, optimizer, x[:TRAINED_ON], y[:TRAINED_ON])
        if epoch % 10 == 9:
            held_out = top1(model, x[TRAINED_ON:], y[TRAINED_ON:])
            print(f"epoch {epoch + 1}: validation {held_out:.2f} %", flush=True)
    return model


def trained_mlp(epochs: int = 100, seed: int = 0) -> nn.Sequential:
    """Return the trained network in evaluation mode, training it where no checkpoint is kept."""
    if not CHECKPOINT.exists():
        CACHE.mkdir(exist_ok=True)
        partial = CHECKPOINT.with_suffix(".partial")
        save_file(_train(epochs, seed).state_dict(), partial)
        partial.replace(CHECKPOINT)
    model = mnist_mlp()
    model.load_state_dict(load_file(CHECKPOINT))
    return model.eval()


if __name__ == "__main__":
    torch.set_num_threads(1)
    network = trained_mlp()
    print(f"test {top1(network, *mnist('test')):.2f} %")
