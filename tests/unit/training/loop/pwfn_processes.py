"""Run under torchrun by test_processes: PWFN in several processes, and what each ends with."""

import hashlib
import sys

import torch
from sklearn.datasets import load_digits
from torch import nn

import fewbits
from fewbits.sources.data.arrays import ArraySplit
from fewbits.training import CrossEntropy, fit, make_optimizer
from fewbits.training.loop.devices import make_fabric, release


def main(out):
    """Train for an epoch with the paper's growth in the loss."""
    images, labels = load_digits(return_X_y=True)
    x = torch.tensor(images[:256].reshape(-1, 64) / 8 - 1, dtype=torch.float32)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    tuner = fewbits.prepare(model, fewbits.PWFN(alpha=2.0, fractions=(0.5, 1.0)), seed=5)
    first = float(tuner.session.measures()["deviation"])
    fabric = make_fabric("cpu")
    seen = []

    def loss(network, batch):
        found = CrossEntropy()(network, batch)
        seen.append(float(tuner.session.parametrization(tuner.weights[0]).noise.sum()))
        return found

    data = ArraySplit(x, torch.tensor(labels[:256]))
    optimizer = make_optimizer(tuner, learning_rate=0.1)
    fitted = fit(tuner, loss, data, epochs=2, batch_size=64, optimizer=optimizer, fabric=fabric)
    flat = torch.cat([p.detach().flatten() for p in model.parameters()])
    digest = hashlib.sha256(flat.numpy().tobytes()).hexdigest()
    ranks = range(fabric.world_size)
    told = {
        "digests": [fabric.broadcast(digest, src=rank) for rank in ranks],
        "noise": [fabric.broadcast(seen[0], src=rank) for rank in ranks],
        "deviation": [first, tuner.session.rounds[-1].deviation],
        "fixed": tuner.session.rounds[-1].fixed,
    }
    if fitted.main:
        torch.save(told, out)
    release(fabric)


main(*sys.argv[1:])
