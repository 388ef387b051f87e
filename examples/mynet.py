"""Your own network and data on the command line.

Train once, then compress by a recipe and judge the file::

    python mynet.py
    fewbits compress mynet:build --weights mynet.safetensors --data mynet:loaders \\
        --recipe recipe.yaml -o mynet.fewbits --evaluate
    fewbits evaluate mynet.fewbits --data mynet:loaders
"""

from __future__ import annotations

import torch
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

__all__ = ["build", "loaders", "validation"]


def build() -> nn.Module:
    """Return the network without its weights: `mynet:build` on the command line."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 4 * 4, 10),
    )


def _loaders() -> dict[str, DataLoader]:
    digits = load_digits()
    images = torch.from_numpy(digits.images).float().unsqueeze(1) / 16
    labels = torch.from_numpy(digits.target)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    parts = {"test": order[:400], "validation": order[400:600], "train": order[600:]}
    return {
        name: DataLoader(TensorDataset(images[rows], labels[rows]), batch_size=64)
        for name, rows in parts.items()
    }


def loaders() -> dict[str, DataLoader]:
    """Return the loaders by split: `mynet:loaders` on the command line. None shuffles here."""
    found = _loaders()
    return {"train": found["train"], "test": found["test"]}


def validation() -> DataLoader:
    """Return samples that only a search looks at: `mynet:validation`, for `--selection`."""
    return _loaders()["validation"]


def main() -> None:
    """Train for a few seconds and save the weights."""
    torch.manual_seed(0)
    network, batches = build(), loaders()["train"]
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    for _ in range(20):
        for inputs, labels in batches:
            loss = nn.functional.cross_entropy(network(inputs), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    save_file(network.state_dict(), "mynet.safetensors")


if __name__ == "__main__":
    main()
