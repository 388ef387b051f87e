"""What one step per input column could save at most, over one step per layer (WaterSIC, 2026).

    python benchmarks/column_steps.py [--networks resnet20]

With error feedback, the error of column j costs its squared step times l_j^2, where l_j is on the
diagonal of the Cholesky factor of the inputs' second moments. At high rates the best steps make
these equal, which saves half the log2 of the arithmetic over the geometric mean of all l_j^2, in
bits a weight; the steps themselves cost bits / rows. Nothing is quantized: the figures are this
bound, for every layer that is not depthwise, with the damping (1 % of the mean) and the order of
columns (descending energy) of GPTQ. "net" counts 4 bits a column, "net16" 16 as the paper does, and
leaves a layer one step where that is better. Networks whose packages are missing are skipped by
name. Any option explores: the record goes to .data/.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from torch import nn

import fewbits
from fewbits.engine.layers.layer import LayerMatrix, QuantizedMatrix
from fewbits.methods import GPTQ
from fewbits.ops.rounding.path_following import descending, permute_moments
from fewbits.ops.rounding.second_order import backward_cholesky
from images import CACHE
from networks import resnet20
from packaged import AbsentError, minilm, minilm_sentences, smollm2, smollm2_tokens
from record import write
from resnet20_cifar10 import calibration_batches

SIDE = {"net": 4, "net16": 16}  # bits of a step
_DAMPING = 0.01


def _resnet20() -> tuple[nn.Module, Any, None]:
    return resnet20(), calibration_batches(1024, 0), None


def _minilm() -> tuple[nn.Module, Any, Callable[..., Any]]:
    batches = minilm_sentences("calibration", 512)
    return minilm(), batches, lambda model, batch: model(**batch).last_hidden_state


def _smollm2() -> tuple[nn.Module, Any, Callable[..., Any]]:
    tokens = smollm2_tokens("calibration", 16, 512, seed=0).split(1)
    return smollm2(), tokens, lambda model, batch: model(input_ids=batch, use_cache=False).logits


NETWORKS = {"resnet20": _resnet20, "minilm": _minilm, "smollm2": _smollm2}


def _gain(layer: LayerMatrix) -> dict[str, Any]:
    """Return the bound of a layer in bits a weight, and what is left of it after the steps."""
    assert layer.statistics is not None
    second = layer.statistics.moments()[0].double()
    energy = second.diagonal(dim1=1, dim2=2)
    ordered = permute_moments(second, descending(energy))
    factor = backward_cholesky(ordered, _DAMPING * energy.mean(1)).upper
    squares = factor.diagonal(dim1=1, dim2=2).square()
    gain = float(squares.mean(1).log2().sub(squares.log2().mean(1)).mean()) / 2
    rows = layer.weight.shape[1]
    left = {name: max(0.0, gain - bits / rows) for name, bits in SIDE.items()}
    return {"layer": layer.name, "weights": layer.weight.numel(), "rows": rows, "gain": gain} | left


def _layers(network: str) -> list[dict[str, Any]]:
    model, batches, forward = NETWORKS[network]()
    rows: list[dict[str, Any]] = []
    encode = GPTQ.encode

    def measured(method: GPTQ, layer: LayerMatrix) -> QuantizedMatrix:
        if layer.weight.shape[2] > 9:  # of a depthwise layer, columns are the taps of one channel
            rows.append(_gain(layer))
        return encode(method, layer)

    with mock.patch.object(GPTQ, "encode", measured):
        fewbits.compress(model, GPTQ(bits=8), batches, forward=forward)
    return rows


def _summary(network: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    total = sum(row["weights"] for row in rows)
    means = {
        name: sum(row[name] * row["weights"] for row in rows) / total for name in ("gain", *SIDE)
    }
    largest = max(rows, key=lambda row: float(row["gain"]))
    return {"network": network, "weights": total, **means, "largest": largest}


def main() -> None:
    """Compute the bound for every network, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    measured, absent, summary = {}, {}, []
    for network in options.networks:
        try:
            measured[network] = _layers(network)
        except AbsentError as error:
            absent[network] = str(error)
            print(f"{network}: skipped, {error}")
            continue
        summary.append(_summary(network, measured[network]))
        told = {k: round(v, 4) for k, v in summary[-1].items() if isinstance(v, float)}
        print(network, told, flush=True)
    write(
        "column_steps",
        folder=CACHE if vars(options) != vars(parser.parse_args([])) else None,
        model="ResNet-20 (CIFAR-10), all-MiniLM-L6-v2, SmolLM2-135M",
        data="training images; sentences and text of WikiText-2's validation part",
        side_bits=SIDE,
        absent=absent,
        summary=summary,
        measured=measured,
    )


if __name__ == "__main__":
    main()
