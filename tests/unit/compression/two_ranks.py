"""Run by test_ranks.py, once per rank: compress a small network, and write down what came of it."""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path

import torch
from torch import distributed as dist
from torch import nn

import fewbits
from fewbits.engine.lockstep import quantizer
from fewbits.engine.network import distributed

WORTH_SHARING = 1 << 20  # so that the ranks share the neurons of the widest layer

METHODS = {
    "gpfq": fewbits.GPFQ(bits=3),
    "gptq": fewbits.GPTQ(bits=3),
    "qronos": fewbits.Qronos(bits=3),
    "nearest": fewbits.Nearest(bits=3),
    "rdoq": fewbits.RDOQ(slope=1e-11),
    "transform": fewbits.Transform(slope=1e-11),
}


class Small(nn.Module):
    """Convolutions (one has groups), two branches, and a layer of more columns than rows."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.depth = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.left, self.right = nn.Linear(8, 8), nn.Linear(8, 8)
        self.wide, self.head = nn.Linear(36 * 8, 24), nn.Linear(24, 10)

    def forward(self, x):
        """Return logits (n, 10) of images (n, 3, 6, 6)."""
        x = self.depth(self.stem(x)).flatten(2).mT
        x = torch.tanh(self.left(x)) * self.right(x)
        return self.head(torch.relu(self.wide(x.flatten(1))))


def network():
    """Return the network, the same everywhere."""
    torch.manual_seed(0)
    model = Small().eval()
    with torch.no_grad():
        model.stem[1].running_mean.normal_(0, 0.1)
        model.stem[1].running_var.uniform_(0.5, 2)
    return model


def batches(count=5, samples=24, seed=1):
    """Return batches of smooth images; an odd number, so that ranks have different numbers."""
    generator = torch.Generator().manual_seed(seed)
    rough = torch.randn(count, samples, 3, 8, 8, generator=generator)
    return list(nn.functional.avg_pool2d(rough.flatten(0, 1), 3, 1).split(samples))


@torch.no_grad()
def distance(model):
    """Return the squared change of the outputs, relative to their variance."""
    x, exact = torch.cat(batches(2, seed=3)), network()
    return float(
        (model(x) - exact(x)).square().sum() / (exact(x) - exact(x).mean(0)).square().sum()
    )


def score(model):
    """Return a score: higher is better."""
    return 1 - distance(model)


def indices(coded):
    """Return the integers of every quantized weight."""
    found = {}
    for name, tensor in coded.tensors.items():
        for part in ("index", "coefficients", "basis"):
            value = getattr(tensor, part, None)
            value = getattr(value, "index", value)
            if value is not None:
                found[f"{name}.{part}"] = torch.as_tensor(value)
    return found


class Forward:
    """A forward that fails, or ends its process as a kill does, at the layer before the last.

    It does so after the passes that fold batch normalizations and look which layers there are.
    """

    def __init__(self, end):
        self.end, self.left = end, 5

    def reach(self, *_):
        """Count the passes."""
        self.left -= 1
        if self.left == 0:
            self.end()

    def __call__(self, model, batch):
        """Run the network."""
        handle = model.wide.register_forward_pre_hook(self.reach)
        try:
            return model(batch)
        finally:
            handle.remove()


def fail():
    """Raise what no batch before has."""
    raise ArithmeticError("the second rank cannot go on")


def compress(kind, rank, out):
    """Compress with a method, or as a test wants it."""
    model, data, more = network(), batches(), {}
    second = rank == 1
    if kind == "search":
        more = {"max_drop": 0.05, "evaluate": score, "evaluations": 4}
        more["trace"] = out.with_suffix(".trace")
        return fewbits.compress(model, fewbits.RDOQ(), data, **more)
    if kind == "activations":
        recipe = {"rules": [{"match": "*", "method": "gpfq", "bits": 3}], "activations": 8}
        recipe |= {"prepare": ["fold_batchnorm"], "finish": ["reestimate_batchnorm"]}
        return fewbits.compress(model, recipe, data)
    if kind in ("killed", "resumed"):
        more = {"resume": out.parent / "run"}
    if kind == "killed" and second:
        more["forward"] = Forward(lambda: os._exit(9))
    elif kind in ("killed", "raises"):
        more["forward"] = Forward(fail if second and kind == "raises" else lambda: None)
    if kind == "other_data" and second:
        data = batches(seed=2)
    if kind == "other_count" and second:
        data = batches(count=4)
    if kind == "other_recipe" and second:
        more["seed"] = 5
    if kind == "few_batches":
        data = batches(count=1)
    method = METHODS.get(kind, METHODS["gptq"])
    with other_version() if kind == "other_version" and second else nullcontext():
        return fewbits.compress(model, method, data, **more)


@contextmanager
def other_version():
    """Pretend to be another version of the package."""
    real, distributed.version = distributed.version, lambda name: "9.9"
    try:
        yield
    finally:
        distributed.version = real


def told(kind, rank, out):
    """Return what a test looks at: what came of a compression, or its error."""
    try:
        if kind == "sensitivity":
            rows = fewbits.sensitivity(network(), "gpfq", batches(), (2, 4))
            return {"rows": [row.to_dict() for row in rows]}
        coded = compress(kind, rank, out)
    except fewbits.FewbitsError as error:
        return {"error": type(error).__name__, "text": str(error)}
    trials = [] if coded.trace is None else coded.trace.trials
    return {
        "data": coded.data if rank == 0 else b"",
        "indices": indices(coded),
        "state": coded.state_dict(),
        "distance": distance(coded.load_into(network())),
        "grids": {name: vars(grid) for name, grid in coded.contents.activations.items()},
        "trials": [(trial.slope, trial.bytes, trial.score) for trial in trials],
        "notes": coded.notes,
    }


def main(kinds, out):
    """Join the group that the environment describes, and do one thing after the other in it."""
    torch.set_num_threads(1)
    quantizer._WORTH_SHARING = WORTH_SHARING
    out, rank = Path(out), int(os.environ["RANK"])
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    found = {}
    for kind in kinds.split(","):
        found[kind] = told(kind, rank, out)
        torch.save(found, f"{out}.{rank}.pt")  # before the process may end
    if "killed" not in found:
        dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
