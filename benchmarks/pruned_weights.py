"""Zeros of pruned layers under error feedback: kept, as the methods do, or free to move.

    python benchmarks/pruned_weights.py [--quick]

Two networks with their smallest weights set to zero in every layer, without training afterwards:
LeNet-300-100 (80 %) and ResNet-20 (50 %). Half of 1,024 training images calibrates, the other half
judges: ``error`` is the squared change of the logits from those of the pruned network in float, in
percent of their variance. ``lost``: share of the zeros that are no zeros in the file. The control,
"free", treats zeros as any weight, as the published methods do.
"""

from __future__ import annotations

import argparse
from itertools import product
from statistics import mean
from typing import Any
from unittest.mock import patch

import torch
from torch import nn

import fewbits
from feedback_methods import halves, output_error
from fewbits.methods import uniform
from images import CACHE
from record import write
from zoo import ZOO

NETWORKS = {"lenet300": 0.8, "resnet20": 0.5}
METHODS: dict[str, Any] = {
    "gpfq": fewbits.GPFQ,
    "gptq": fewbits.GPTQ,
    "qronos": fewbits.Qronos,
}
BITS, SEEDS = (4, 3), (0, 1, 2)


def prune(model: nn.Module, share: float) -> dict[str, torch.Tensor]:
    """Set the smallest weights of every layer to zero; return where, by name of the weight."""
    zeros = {}
    with torch.no_grad():
        for name, value in model.named_parameters():
            if value.dim() > 1:
                size = value.abs().flatten()
                limit = size.kthvalue(int(share * size.numel())).values
                zeros[name] = value.abs() <= limit
                value.masked_fill_(zeros[name], 0)
    return zeros


def _row(network: str, method: str, bits: int, seed: int, *, free: bool) -> dict[str, Any]:
    case = ZOO[network]()
    model, (calibration, held) = case.model.eval(), halves(case, seed)
    zeros = prune(model, NETWORKS[network])
    with patch.object(uniform, "_PRUNED", 2.0 if free else uniform._PRUNED):
        coded = fewbits.compress(model, METHODS[method](bits=bits), calibration, seed=seed)
    state = coded.state_dict()
    lost = sum(int((state[name] != 0)[where].sum()) for name, where in zeros.items())
    loaded = coded.load_into(ZOO[network]().model.eval())
    row = {"network": network, "method": method, "bits": bits, "seed": seed}
    row["zeros"] = "free" if free else "kept"
    row["lost"] = lost / sum(int(where.sum()) for where in zeros.values())
    row |= {"error": output_error(model, loaded, held), "file_bytes": len(coded.data)}
    print(row, flush=True)
    return row


def _summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return means over the seeds."""
    found = []
    for network, method, bits in product(NETWORKS, METHODS, BITS):
        told: dict[str, Any] = {"network": network, "method": method, "bits": bits}
        for zeros in ("kept", "free"):
            key = {**told, "zeros": zeros}
            some = [row for row in rows if all(row[name] == key[name] for name in key)]
            if some:
                facts = ("lost", "error", "file_bytes")
                found.append({**key, **{fact: mean(row[fact] for row in some) for fact in facts}})
    return found


def main() -> None:
    """Measure every case, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="LeNet, seed 0; writes to .data/")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    chosen = (["lenet300"], (0,)) if quick else (NETWORKS, SEEDS)
    rows = [
        _row(network, method, bits, seed, free=free)
        for network, seed in product(*chosen)
        for method, bits, free in product(METHODS, BITS, (False, True))
    ]
    summary = _summary(rows)
    for row in summary:
        print(
            f"{row['network']:9} {row['method']:7} {row['bits']} bits, zeros {row['zeros']}: "
            f"{row['lost']:6.2%} lost, error {row['error']:7.3f} %, {row['file_bytes']:9,.0f} bytes"
        )
    write(
        "pruned_weights",
        model="LeNet-300-100 and ResNet-20, smallest weights set to zero",
        data="1,024 training images of MNIST and CIFAR-10: half calibrates, half judges",
        folder=CACHE if quick else None,
        pruned=NETWORKS,
        summary=summary,
        rows=rows,
    )


if __name__ == "__main__":
    main()
