"""Time and memory of compressing 7 and 70 billion weights over ranks: measured constants, on paper.

    python benchmarks/ranks_on_paper.py          # measures the constants; a minute of one core
    python benchmarks/ranks_on_paper.py --quick  # on smaller layers, to see that it works

The time of one core is measured for each of the parts that a compression has: a pass through a
layer, moments of its inputs, rounding by GPTQ and GPFQ. Coding and reading come from the record of
``coding_large.py``. What is assumed about machines that are not here is in ``MACHINES`` and goes
into the record; nothing was run on them. Shapes are those of Llama 2.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch

import fewbits
from fewbits.engine.layers.layer import LayerMatrix
from fewbits.engine.layers.statistics import StatisticsAccumulator, second_moments
from images import CACHE
from record import RESULTS, write

METHODS = {"gptq": fewbits.GPTQ(bits=4), "gpfq": fewbits.GPFQ(bits=4)}
TOKENS, SEQUENCE = 128 * 2048, 2048
ROWS_PER_COLUMN, MOST_ROWS = 16, 65_536  # the default of ``calibration_rows``
WIDE = 8192  # columns beyond which totals have 4 bytes instead of 8


@dataclass(frozen=True)
class Network:
    """Shapes of a decoder: all its blocks are alike."""

    name: str
    width: int
    inner: int
    keys: int
    blocks: int
    vocabulary: int = 32_000

    def layers(self) -> list[tuple[int, int]]:
        """Return (neurons, columns) of the layers of one block."""
        wide, keys, inner = self.width, self.keys, self.inner
        attention = [(wide, wide), (keys, wide), (keys, wide), (wide, wide)]
        return [*attention, (inner, wide), (inner, wide), (wide, inner)]

    @property
    def weights(self) -> int:
        """Weights of the blocks, the embedding and the head."""
        block = sum(neurons * columns for neurons, columns in self.layers())
        return self.blocks * block + 2 * self.vocabulary * self.width


@dataclass(frozen=True)
class Machine:
    """What a rank is assumed to be, relative to one core here.

    Attributes:
        ranks: how many work together.
        products: times as fast as one core in products of matrices.
        rounding: the same in rounding a layer, whose loop over columns is sequential.
        threads: that code the file in the first rank.
        bandwidth: bytes per second of a sum over ranks.
    """

    name: str
    ranks: int
    products: float
    rounding: float
    threads: int
    bandwidth: float


NETWORKS = (
    Network("7 billion", 4096, 11008, 4096, 32),
    Network("70 billion", 8192, 28672, 1024, 80),
)
MACHINES = (
    # 30 TFLOP/s of float32 against some 50 GFLOP/s of a core; sums go through main memory
    Machine("8 GPUs", 8, 600.0, 100.0, 16, 5e9),
    # 32 cores each, at 60 % of their sum; 10 Gbit/s
    Machine("16 CPU machines", 16, 19.0, 8.0, 32, 1e9),
)


def _seconds(work: Callable[[], object]) -> float:
    work()
    started = time.process_time()
    work()
    return time.process_time() - started


def _layer(neurons: int, columns: int) -> LayerMatrix:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(1, neurons, columns, generator=generator)
    accumulator = StatisticsAccumulator(1, columns, weight)
    for _ in range(3):
        rows = torch.randn(1, columns // 2, columns, generator=generator)
        accumulator.add(rows, rows + 0.1 * torch.randn(rows.shape, generator=generator))
    return LayerMatrix("layer", weight, accumulator.finish())


def _rounding(method: Any, columns: int) -> tuple[float, float]:
    """Return seconds per cubed column, once for a layer, and per neuron and squared column."""
    few, many = columns // 4, columns
    layers = [_layer(neurons, columns) for neurons in (few, many)]
    short, long = (_seconds(lambda one=one: method.encode(one)) for one in layers)
    each = (long - short) / (many - few)
    return max(0.0, short - few * each) / columns**3, each / columns**2


def _constants(columns: int) -> dict[str, float]:
    """Return seconds of one core per unit of work."""
    torch.set_num_threads(1)
    rows, weight = torch.randn(1, 512, columns), torch.randn(columns, columns)
    square = 512 * columns**2
    rounding = {name: _rounding(method, columns) for name, method in METHODS.items()}
    coded = json.loads((RESULTS / "coding_large.json").read_text())["billion"][0]
    return {
        "pass_per_weight_and_token": _seconds(lambda: rows[0] @ weight) / square,
        "moments_per_square_and_row": _seconds(lambda: second_moments(rows)) / square,
        "cross_per_square_and_row": _seconds(lambda: rows.mT @ rows.clone()) / square,
        **{f"{name}_of_a_layer_per_cube": once for name, (once, _) in rounding.items()},
        **{f"{name}_per_neuron_and_square": each for name, (_, each) in rounding.items()},
        "coding_per_weight": coded["write"]["cpu_seconds"] / coded["symbols"],
    }


def _estimate(network: Network, machine: Machine, cost: dict[str, float], method: str) -> Any:
    """Return hours of each part, and the memory of a rank in GB."""
    both = method == "gpfq"  # follows the float network too
    passes = (1 + both) * cost["pass_per_weight_and_token"] * network.weights * TOKENS
    moments, factors, rounding, sums = 0.0, 0.0, 0.0, 0.0
    for neurons, columns in network.layers():
        rows = min(TOKENS, MOST_ROWS, ROWS_PER_COLUMN * columns)
        each = cost["moments_per_square_and_row"] + both * cost["cross_per_square_and_row"]
        moments += network.blocks * each * rows * columns**2
        factors += network.blocks * cost[f"{method}_of_a_layer_per_cube"] * columns**3
        each = cost[f"{method}_per_neuron_and_square"]
        rounding += network.blocks * each * neurons * columns**2
        sums += network.blocks * (1 + both) * columns**2 * (4 if columns > WIDE else 8)
    scale, ranks = machine.products, machine.ranks
    parts = {
        "passes": passes / scale / ranks,
        "moments": moments / scale / ranks,
        "sums and results over ranks": (2 * sums + network.weights) / machine.bandwidth,
        "rounding": rounding / machine.rounding / ranks,
        "factors, in every rank": factors / machine.rounding,
        "coding, in the first rank": network.weights * cost["coding_per_weight"] / machine.threads,
    }
    widest = max(columns for _, columns in network.layers())
    block = sum(neurons * columns for neurons, columns in network.layers())
    memory = {
        "weights of one block, float32 and bfloat16": block * 6,
        "moments": (1 + both) * widest**2 * (4 if widest > WIDE else 8) * 2,
        "hidden states of its batches": (1 + both) * 4 * network.width * TOKENS / ranks,
    }
    hours = {name: round(seconds / 3600, 3) for name, seconds in parts.items()}
    return {
        "network": network.name,
        "machine": machine.name,
        "method": method,
        "hours": hours | {"all": round(sum(parts.values()) / 3600, 3)},
        "bottleneck": max(parts, key=lambda name: parts[name]),
        "not_shared": round(sum(list(parts.values())[4:]) / sum(parts.values()), 3),
        "memory_gb": {name: round(size / 1e9, 1) for name, size in memory.items()},
    }


def main() -> None:
    """Measure the constants and write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    columns = 512 if options.quick else 4096
    cost = _constants(columns)
    rows = [
        _estimate(network, machine, cost, method)
        for network in NETWORKS
        for machine in MACHINES
        for method in METHODS
    ]
    for row in rows:
        print(row["network"], row["machine"], row["method"], row["hours"], row["bottleneck"])
        print("   ", row["memory_gb"])
    write(
        "ranks_on_paper",
        model="shapes of Llama 2; nothing of that size was run",
        data=f"{TOKENS // SEQUENCE} x {SEQUENCE} tokens, {ROWS_PER_COLUMN} rows per column",
        folder=CACHE if options.quick else None,
        columns=columns,
        seconds_of_one_core=cost,
        assumed=[asdict(machine) for machine in MACHINES],
        weights={network.name: network.weights for network in NETWORKS},
        estimates=rows,
    )


if __name__ == "__main__":
    main()
