"""One file for two rates: what a base and its refinement cost beside a file of each rate.

    python benchmarks/many_rates.py [--quick]

RDOQ on ResNet-20 at four slopes. A base is one of them, and its refinement says, for each weight,
which level of a finer one it has, given its level in the base. Bits are those of an ideal code of
each layer without contexts, whose table of n cells costs (n - 1) / 2 log2 of the weights; the same
for single files, so ratios compare. "cut": the finer levels alone, halved (towards zero) with the
step that fits best, which need no base: the change of the output beside that of a file of its own
with as many bits. 1,024 training images calibrate, 2,048 others judge, 3 seeds.
"""

from __future__ import annotations

import argparse
import math
from itertools import combinations
from statistics import mean, stdev
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

import fewbits
from feedback_methods import output_error
from fewbits.coded import GridTensor
from images import CACHE
from networks import resnet20
from record import blank_copy, write
from side_bytes import Job, inputs

SLOPES = (8e-5, 1.6e-4, 3.2e-4, 6.4e-4)
SEEDS = (0, 1, 2)
_Levels: TypeAlias = "dict[str, NDArray[np.int64]]"


def _bits(*levels: NDArray[np.int64]) -> float:
    """Return the bits of an ideal code of all these levels of a layer together."""
    _, counts = np.unique(np.stack(levels), axis=1, return_counts=True)
    total = int(counts.sum())
    table = (len(counts) - 1) / 2 * math.log2(total)
    return float(-(counts * np.log2(counts / total)).sum()) + table


def _levels(coded: fewbits.CodedModel) -> _Levels:
    tensors = coded.contents.tensors.items()
    return {name: t.index.reshape(-1) for name, t in tensors if isinstance(t, GridTensor)}


def _bytes(*files: _Levels) -> float:
    return sum(_bits(*(levels[name] for levels in files)) for name in files[0]) / 8


def _cut(coded: fewbits.CodedModel, model: nn.Module) -> tuple[nn.Module, float]:
    """Return a network with halved levels, on the steps that fit best, and its bytes."""
    cut = coded.load_into(blank_copy(model))
    halved = {name: np.fix(levels / 2).astype(np.int64) for name, levels in _levels(coded).items()}
    for name, levels in halved.items():
        weight = cut.get_parameter(name)
        units = torch.from_numpy(levels).to(weight).reshape(weight.shape)
        with torch.no_grad():
            weight.copy_(units * ((units * weight).sum() / units.square().sum().clamp_min(1)))
    return cut, _bytes(halved)


def _at(size: float, files: list[tuple[float, float]]) -> float:
    """Return the error of a file of some bytes, between those there are (logarithms of both)."""
    known = sorted((math.log(b), math.log(e)) for b, e in files)
    return math.exp(float(np.interp(math.log(size), *zip(*known, strict=True))))


def _one(seed: int, slopes: tuple[float, ...]) -> dict[str, Any]:
    model = resnet20().eval()
    calibration, held = inputs(Job("resnet20", 0.0, seed, "scalar", True))
    coded = [
        fewbits.compress(model, fewbits.RDOQ(slope=slope), calibration, seed=seed)
        for slope in slopes
    ]
    levels = [_levels(one) for one in coded]
    errors = [output_error(model, one.load_into(blank_copy(model)), held) for one in coded]
    own = list(zip(map(_bytes, levels), errors, strict=True))
    pairs = []
    for (i, fine), (k, base) in combinations(enumerate(levels), 2):
        both = _bytes(fine, base)
        sizes = {"base_bytes": own[k][0], "fine_bytes": own[i][0], "both_bytes": both}
        pairs.append({"fine": slopes[i], "base": slopes[k], **sizes, "ratio": both / own[i][0]})
    cuts = []
    for slope, one in zip(slopes[:1], coded, strict=False):
        network, size = _cut(one, model)
        error = output_error(model, network, held)
        cuts.append({"fine": slope, "bytes": size, "error": error, "own_error": _at(size, own)})
    print(seed, [round(pair["ratio"], 3) for pair in pairs], cuts, flush=True)
    return {"seed": seed, "files": own, "pairs": pairs, "cuts": cuts}


def _summary(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    rows = []
    for same in zip(*(one["pairs"] for one in found), strict=True):
        ratios = [pair["ratio"] for pair in same]
        spread = stdev(ratios) if len(ratios) > 1 else None
        about = {key: same[0][key] for key in ("fine", "base")}
        rows.append({**about, "ratio": mean(ratios), "deviation": spread})
    return rows


def main() -> None:
    """Measure every pair of rates, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one seed, two rates, to .data/")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    slopes = SLOPES[::2] if quick else SLOPES
    found = [_one(seed, slopes) for seed in (SEEDS[:1] if quick else SEEDS)]
    write(
        "many_rates",
        folder=CACHE if quick else None,
        model="ResNet-20 (CIFAR-10)",
        data="CIFAR-10 training images: 1,024 calibrate, 2,048 others judge",
        summary=_summary(found),
        measured=found,
    )


if __name__ == "__main__":
    main()
