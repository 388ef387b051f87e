"""Forms of PWFN's deviations, each learned, permuted and constant, on a CNN and a transformer.

    python benchmarks/pwfn_forms.py [--networks cnn vit] [--seeds 0 1 2] [--minutes 60] [--quick]

The networks of `fashion.py`, trained on from float for 200 batches of 64 or 32 images by every
form, with at most ``most`` values in the network. Files of different entropy are compared by their
accuracy over that of constant deviations without noise at the same entropy and seed (straight
lines between constants of several sizes). Beside each form, the same with its deviations permuted
within each layer before each round. Forms:

- ``curvature``: deviations from the curvature, estimated from squared gradients, no noise; also
  with the mean of each layer for all its weights;
- ``noisy curvature``: the same, trained with the noise;
- ``growth``: growth in rounds, and the gradient of the noise (SGD);
- ``paper``: the paper's regularizer at its alpha, 2^-11; the deviations' rate makes it act as
  ``growth`` in as many steps;
- ``adam``: alpha 0.1, Adam on the logarithm of the deviations;
- ``local``: as ``growth``, the noise on outputs, other for each image (local reparameterization);
- ``natural``: deviations from the curvature, estimated from noise times gradient;
- ``on the fly``: as ``growth``, 40 rounds that all start over with all weights.

``k-means``: one codebook of 24 values, refitted while training, straight-through. ``rounded``:
plain training, then the nearest multiple of the finest value. ``plain``: that, unrounded.
Resilience is top-1 with Gaussian noise on all weights.

Sizes, ``prefer_zero`` and the damping of the curvature were chosen on one seed by test images, so
that files are comparable: differences between a form and its permuted self are not touched by
that, but accuracy over constants is not that of unseen images. After --minutes no run begins, and
the record counts what is missing; --earlier takes the runs of other commits.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

import fewbits
from fashion import Clothes, clothes, fresh, trained
from fewbits.coded import network_values
from images import CACHE
from kept import kept_runs
from networks import top1
from pwfn_variants import VARIANTS, Variant
from record import write

CONSTANTS = {"cnn": (0.06, 0.1, 0.16), "vit": (0.04, 0.07, 0.12)}
RATES = {"cnn": 1e-3, "vit": 5e-4}
NOISE = (0.03, 0.06)
BATCH = {"cnn": 64, "vit": 32}
UNTIL = 0.95
RESILIENT = ("constant", "curvature", "growth", "noisy constant", "noisy curvature", "plain")
"""Forms whose resilience to noise is measured."""


@dataclass(frozen=True)
class Job:
    """One run. ``control``: "", "permuted", "layer"; ``size``: of deviations, or of a codebook."""

    network: str
    form: str
    control: str
    size: float
    seed: int
    most: int = 64
    prefer_zero: float = 0.25
    steps: int = 200
    judged: int = 10_000


def jobs(networks: Sequence[str], seeds: Sequence[int]) -> list[Job]:
    """Return all runs: what decides with every seed first, then the rest."""
    first, second, third = [], [], []
    for seed, network in product(seeds, networks):
        sizes = CONSTANTS[network]
        own = [("constant", "", size) for size in sizes] + _learned("curvature", network)
        first += [Job(network, *one, seed) for one in own]
        own = [one for form in VARIANTS for one in _learned(form, network)]
        own = [one for one in own if "curvature" not in one[0]]
        own += [("rounded", "", 0.0), ("k-means", "", 24.0)] if network == "vit" else []
        second += [Job(network, *one, seed) for one in own]
        own = [("noisy constant", "", sizes[1]), *_learned("noisy curvature", network)]
        third += [Job(network, *one, seed) for one in [*own, ("plain", "", 0.0)]]
    return first + second + third


def _learned(form: str, network: str) -> list[tuple[str, str, float]]:
    controls = {"curvature": ("", "permuted", "layer"), "noisy curvature": ("",)}
    return [
        (form, control, size)
        for size in VARIANTS[form].sizes[network]
        for control in controls.get(form, ("", "permuted"))
    ]


# -- training


def method(job: Job) -> fewbits.PWFN:
    """Return PWFN with the settings of a run."""
    shared = {"most": job.most, "prefer_zero": job.prefer_zero, "until": UNTIL}
    if job.form in VARIANTS:
        return fewbits.PWFN(**shared | VARIANTS[job.form].settings(job.size, job.steps))
    noisy = job.form.startswith("noisy")
    return fewbits.PWFN(deviation="constant", noise=noisy, spread=job.size or 1.0, **shared)


def optimizers(job: Job, model: nn.Module, deviations: Iterable[nn.Parameter], rate: float) -> Any:
    """Return AdamW for the network, and SGD for the deviations if there is a rate."""
    found = list(deviations)
    known = {id(parameter) for parameter in found}
    own = [parameter for parameter in model.parameters() if id(parameter) not in known]
    made = [torch.optim.AdamW(own, RATES[job.network], weight_decay=0.01)]
    return made + ([torch.optim.SGD(found, rate, momentum=0.9)] if found and rate else [])


def train(job: Job, model: nn.Module, deviations: Any, rate: float, after: Any) -> None:
    """Train a network in place; ``after(done)`` follows each step of the optimizers."""
    batch = BATCH[job.network]
    data = clothes("train", batch * job.steps)
    generator = torch.Generator().manual_seed(job.seed)
    found = optimizers(job, model.train(), deviations, rate)
    for done, (x, y) in enumerate(data.batches(batch, generator), 1):
        for group in found[0].param_groups:
            group["lr"] = RATES[job.network] * (1 - 0.95 * (done - 1) / job.steps)
        model.zero_grad()
        loss = F.cross_entropy(model(x), y) + after.penalty()
        loss.backward()
        for optimizer in found:
            optimizer.step()
        after.step(done)


class Tuned:
    """What follows a step of a run with PWFN: the variant, the permutation, and the tuner."""

    def __init__(self, job: Job, tuner: fewbits.Tuner, model: nn.Module) -> None:
        self.job, self.tuner, self.rounds = job, tuner, 0
        self.variant = VARIANTS.get(job.form, Variant((), ()))
        self.variant.attach(tuner, model, job.size)
        self.penalty = tuner.penalty
        self.generator = torch.Generator().manual_seed(job.seed + 99)

    def step(self, done: int) -> None:
        """Act after step ``done``, counted from 1."""
        method = self.tuner.session.method
        self.variant.act((len(method.fractions) - 1) / (self.job.steps * (UNTIL - method.begin)))
        self.tuner.step()
        before = self.rounds
        while self.rounds < len(method.fractions) and (
            done / self.job.steps >= method.due(self.rounds) - 1e-9
        ):
            self.rounds += 1
        if self.rounds > before and self.job.control:
            self._mix()
        self.tuner.advance(done / self.job.steps)

    @torch.no_grad()
    def _mix(self) -> None:
        """Permute the deviations of free weights within each tensor, or replace by their mean."""
        for name, deviation in self.tuner.session.deviations().items():
            fixed = self.tuner.session.state_dict()["tensors"][name]["fixed"]
            free = torch.ones_like(deviation, dtype=torch.bool) if fixed is None else ~fixed
            values = deviation[free]
            if self.job.control == "layer":
                deviation[free] = values.mean() if len(values) else values
            else:
                deviation[free] = values[torch.randperm(len(values), generator=self.generator)]


class Codebook(nn.Module):
    """The nearest of a few values shared by a network, straight-through."""

    def __init__(self, shared: list[Tensor]) -> None:
        super().__init__()
        self.shared = shared

    def forward(self, weight: Tensor) -> Tensor:
        """Return the nearest values."""
        values = self.shared[0]
        found = values[torch.bucketize(weight.detach(), (values[1:] + values[:-1]) / 2)]
        return weight + (found - weight).detach()


class Refit:
    """Lloyd's steps on the weights of a network, every ten steps of the training."""

    def __init__(self, weights: list[nn.Parameter], count: int) -> None:
        self.weights, every = weights, torch.linspace(0, 1, 2 * count + 1)[1::2]
        self.shared = [torch.quantile(self._flat(), every)]
        for _ in range(30):
            self.refit()

    def _flat(self) -> Tensor:
        return torch.cat([weight.detach().reshape(-1) for weight in self.weights])

    def refit(self) -> None:
        """Move each value to the mean of the weights nearest to it."""
        values, flat = self.shared[0], self._flat()
        index = torch.bucketize(flat, (values[1:] + values[:-1]) / 2)
        count = torch.bincount(index, minlength=len(values))
        total = torch.bincount(index, flat.double(), len(values)).float()
        self.shared[0] = torch.where(count > 0, total / count.clamp_min(1), values).sort().values

    def penalty(self) -> float:
        """Return 0."""
        return 0.0

    def step(self, done: int) -> None:
        """Refit."""
        if done % 10 == 0:
            self.refit()


def clustered(model: nn.Module) -> list[tuple[nn.Module, str]]:
    """Return what PWFN clusters: weights and biases of linear and convolution layers."""
    layers = [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    pairs = [(layer, name) for layer in layers for name in ("weight", "bias")]
    return [(layer, name) for layer, name in pairs if getattr(layer, name) is not None]


def k_means(job: Job) -> tuple[nn.Module, dict[str, Any]]:
    """Train with a codebook of ``job.size`` values."""
    model = trained(job.network)
    places = clustered(model)
    refit = Refit([getattr(layer, name) for layer, name in places], int(job.size))
    for layer, name in places:
        parametrize.register_parametrization(layer, name, Codebook(refit.shared))
    train(job, model, (), 0.0, refit)
    for layer, name in places:
        parametrize.remove_parametrizations(layer, name)
    flat = torch.cat([getattr(layer, name).detach().reshape(-1) for layer, name in places])
    counts = torch.unique(flat, return_counts=True)[1].double()
    shares = counts / counts.sum()
    return model, {"values": len(counts), "entropy": -float((shares * shares.log2()).sum())}


def rounded(job: Job, model: nn.Module, finest: int) -> fewbits.CodedModel:
    """Return the file of a network with the nearest multiple of ``2**-finest`` for each weight."""
    with torch.no_grad():
        for layer, name in clustered(model):
            weight = getattr(layer, name)
            weight.copy_((weight * 2**finest).round() / 2**finest)
    exact = fewbits.PWFN(
        fractions=(1.0,), deviation="constant", spread=1e-6, terms=24, finest=finest
    )
    return fewbits.prepare(model, exact, raw_dtype="float16", zeros=False).finish()


def pwfn(job: Job) -> tuple[nn.Module, dict[str, Any]]:
    """Train with PWFN, or plainly; return the network of the file, and what the file holds."""
    model = trained(job.network)
    tuner = fewbits.prepare(model, method(job), raw_dtype="float16", seed=job.seed)
    if job.form in ("plain", "rounded"):
        finest, model = tuner.session.finest, trained(job.network)
        train(job, model, (), 0.0, Plain())
        if job.form == "plain":
            return model, {}
        coded, more = rounded(job, model, finest), {}
    else:
        after = Tuned(job, tuner, model)
        train(job, model, tuner.parameters(), after.variant.rate, after)
        rounds = tuner.session.rounds
        more = {"deviations": [one.deviation for one in rounds], "zeros": rounds[-1].zeros}
        coded = tuner.finish()
    found = network_values(coded.tensors)
    more |= {"values": found.values, "entropy": found.entropy, "bytes": len(coded.data)}
    return coded.load_into(fresh(job.network)), more


class Plain:
    """Nothing follows a step."""

    def penalty(self) -> float:
        """Return 0."""
        return 0.0

    def step(self, done: int) -> None:
        """Do nothing."""


def one(job: Job) -> dict[str, Any]:
    """Run one job: accuracy, values, entropy in bits, bytes, and top-1 under noise."""
    torch.set_num_threads(1)
    model, more = k_means(job) if job.form == "k-means" else pwfn(job)
    test: Clothes = clothes("test", job.judged)
    if job.form in RESILIENT:
        parts = (part[:2000].split(500) for part in (test.images, test.labels))
        some = list(zip(*parts, strict=True))
        noise = fewbits.noise_resilience(model.eval(), some, NOISE, draws=5)
        more["noise"] = {str(row.noise): 100 * row.accuracy for row in noise if row.noise}
    more["accuracy"] = top1(model, test.images, test.labels)
    told = {key: value for key, value in more.items() if key != "deviations"}
    print(job.network, job.form, job.control, job.size, job.seed, told, flush=True)
    return {"job": asdict(job)} | more


# -- comparison


def over_constant(rows: list[dict[str, Any]]) -> None:
    """Add to each row its accuracy over constants at its entropy: same network and seed."""
    for row in rows:
        job = row["job"]
        same = [
            (other["entropy"], other["accuracy"])
            for other in rows
            if other["job"]["form"] == "constant"
            and all(other["job"][key] == job[key] for key in ("network", "seed"))
        ]
        inside = "entropy" in row and len(same) > 1
        inside = inside and min(same)[0] <= row["entropy"] <= max(same)[0]
        if inside:
            line = np.interp(row["entropy"], *zip(*sorted(same), strict=True))
            row["over_constant"] = row["accuracy"] - float(line)


def mean_and_error(values: Sequence[float]) -> dict[str, float]:
    """Return mean, standard deviation and standard error; the latter two 0 for a single value."""
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    error = spread / math.sqrt(len(values))
    return {"mean": statistics.mean(values), "deviation": spread, "error": error}


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one row for each run but its seed."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        key = tuple(row["job"][name] for name in ("network", "form", "control", "size"))
        groups.setdefault(key, []).append(row)
    found = []
    for (network, form, control, size), own in groups.items():
        told = {"network": network, "form": form, "control": control, "size": size}
        told["seeds"] = len(own)
        for name in ("accuracy", "values", "entropy", "bytes", "over_constant"):
            values = [row[name] for row in own if name in row]
            if values:
                told[name] = mean_and_error(values)
        if form in RESILIENT:
            told["noise"] = {
                name: statistics.mean(row["noise"][name] for row in own) for name in map(str, NOISE)
            }
        if not control:
            gains = over_permuted(own, groups.get((network, form, "permuted", size), []))
            told |= {"over_permuted": mean_and_error(gains)} if gains else {}
        found.append(told)
    return found


def over_permuted(rows: list[dict[str, Any]], others: list[dict[str, Any]]) -> list[float]:
    """Return the accuracy over constants less that of the permuted run of the same seed."""
    known = {row["job"]["seed"]: row["over_constant"] for row in others if "over_constant" in row}
    return [
        row["over_constant"] - known[row["job"]["seed"]]
        for row in rows
        if "over_constant" in row and row["job"]["seed"] in known
    ]


def options() -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=["cnn", "vit"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--forms", nargs="+", help="only these")
    parser.add_argument("--minutes", type=float, default=1e6, help="begin no run after so long")
    parser.add_argument("--earlier", nargs="*", default=[], help="commits whose runs are taken")
    parser.add_argument("--quick", action="store_true", help="one seed, 20 steps, 500 judged")
    return parser.parse_args()


def main() -> None:
    """Run everything, and write the record."""
    chosen = options()
    todo = jobs(chosen.networks, [0] if chosen.quick else chosen.seeds)
    if chosen.forms:
        todo = [job for job in todo if job.form in chosen.forms]
    if chosen.quick:
        todo = [replace(job, steps=20, judged=500) for job in todo]
    kept = {"minutes": chosen.minutes, "earlier": chosen.earlier}
    rows = [row for row in kept_runs("pwfn_forms", one, todo, **kept) if row]
    over_constant(rows)
    test = clothes("test")
    explored = chosen.quick or chosen.forms
    write(
        "pwfn_forms",
        folder=CACHE if explored else None,
        model="a CNN and a transformer in the shape of DeiT, trained on Fashion-MNIST (fashion.py)",
        data="Fashion-MNIST: 12,800 (cnn) or 6,400 (vit) train; sizes chosen by test images",
        float_accuracy={
            name: top1(trained(name), test.images, test.labels) for name in chosen.networks
        },
        missing=len(todo) - len(rows),
        summary=summary(rows),
        details=rows,
    )


if __name__ == "__main__":
    main()
