"""Operation counts of a network on shift-and-add hardware, from the coded tensors alone.

A weight that is a sum of t signed powers of two needs t shifts and t adds instead of a product.
Energies are in picojoules for 45 nm at 0.9 V (Horowitz 2014). Shifts are free only if activations
are integers, which no method here provides by itself: read the figures as operation counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from .tensors import CodebookTensor, CodedTensor, GridTensor
from .values import terms_of

__all__ = ["PICOJOULES", "Energy", "LayerEnergy", "Use", "energy_of"]

PICOJOULES = {
    "float add": 0.9,
    "float multiply": 3.7,
    "integer add": 0.1,
    "bit from DRAM": 640 / 32,
    "bit from SRAM": 5 / 32,
}
_FLOAT_BITS = 32
_MANY = 2  # powers of two in a weight from which sharing its product pays

Ints: TypeAlias = "NDArray[np.int64]"


@dataclass(frozen=True)
class Use:
    """How one sample uses a layer.

    Attributes:
        outputs: positions of the output (1, tokens or pixels); each uses every weight once.
        inputs: positions of the input.
        groups: groups of a convolution.
    """

    outputs: int = 1
    inputs: int = 1
    groups: int = 1


@dataclass(frozen=True)
class LayerEnergy:
    """The cost of one sample in one layer.

    Attributes:
        name: name of the weight.
        weights: number of weights.
        macs: multiply-accumulates of the float layer.
        adds: products with nonzero weights.
        shift_adds: shifts, and as many adds, that replace the products.
        terms: number of weights that are a sum of 0, 1, 2, ... powers of two.
        multipliers: distinct magnitudes that are sums of two or more powers.
        shared_products: products with these if equal ones of an input channel are computed once;
            never more than without sharing.
        scalings: remaining products, one per output whose step is not a power of two.
        stored_bits: bits of the weight in the file.
    """

    name: str
    weights: int
    macs: int
    adds: int
    shift_adds: int
    terms: tuple[int, ...]
    multipliers: int
    shared_products: int
    scalings: int
    stored_bits: int


@dataclass(frozen=True)
class Energy:
    """The cost of one sample in all layers. Each sample reads the weights once."""

    layers: tuple[LayerEnergy, ...]

    def total(self, name: str) -> int:
        """Return the sum of a field over all layers."""
        return sum(getattr(layer, name) for layer in self.layers)

    def ratios(self) -> dict[str, float]:
        """Return ratios to the float network.

        ``weight_traffic``: stored bits to 32 bits per weight; ``multiplications``: remaining
        products; ``adds``: shift-adds to products; ``total_*``: energy, with weights from DRAM or
        SRAM and integer or float adds.
        """
        macs, bits = self.total("macs"), _FLOAT_BITS * self.total("weights")
        ratios = {
            "weight_traffic": self.total("stored_bits") / max(1, bits),
            "multiplications": self.total("scalings") / max(1, macs),
            "adds": self.total("shift_adds") / max(1, macs),
        }
        for memory in ("DRAM", "SRAM"):
            for kind in ("integer", "float"):
                name = f"total_{memory.lower()}_{kind}"
                ratios[name] = self._energy(memory, kind) / max(1e-12, self._float(memory))
        return ratios

    def to_dict(self) -> dict[str, object]:
        """Return JSON-ready values: layers, totals, ratios and constants."""
        names = [n for n in LayerEnergy.__annotations__ if n not in ("name", "terms")]
        return {
            "layers": [asdict(layer) | {"terms": list(layer.terms)} for layer in self.layers],
            "totals": {name: self.total(name) for name in names},
            "ratios": self.ratios(),
            "picojoules": dict(PICOJOULES),
        }

    def _energy(self, memory: str, kind: str) -> float:
        work = self.total("shift_adds") * PICOJOULES[f"{kind} add"]
        left = self.total("scalings") * PICOJOULES["float multiply"]
        return work + left + self.total("stored_bits") * PICOJOULES[f"bit from {memory}"]

    def _float(self, memory: str) -> float:
        work = PICOJOULES["float multiply"] + PICOJOULES["float add"]
        bits = _FLOAT_BITS * self.total("weights")
        return self.total("macs") * work + bits * PICOJOULES[f"bit from {memory}"]


def energy_of(
    tensors: Mapping[str, CodedTensor],
    stored: Mapping[str, int],
    uses: Mapping[str, Use] | None = None,
) -> Energy:
    """Count the operations of all weights with two or more dimensions.

    Args:
        tensors: name to coded tensor.
        stored: name to bytes in the file.
        uses: name of a weight to how a sample uses it; weights without an entry are left out
            (embedding tables). None: every weight is used once, as in a linear layer.
    """
    layers = []
    for name, tensor in tensors.items():
        use = Use() if uses is None else uses.get(name)
        if use is None or len(tensor.shape) < 2:
            continue
        if isinstance(tensor, CodebookTensor | GridTensor):
            layers.append(_layer(name, tensor, use, 8 * stored.get(name, 0)))
    return Energy(tuple(layers))


def _layer(
    name: str, tensor: CodebookTensor | GridTensor, use: Use, stored_bits: int
) -> LayerEnergy:
    place, levels, factor = _levels(tensor)
    terms = terms_of(levels)
    by_level = np.bincount(place.reshape(-1), minlength=len(levels))
    counts = np.bincount(terms, by_level, minlength=1).astype(np.int64)
    size, rows = place.size, len(place)
    many = terms >= _MANY
    plain = int(by_level[many].sum()) * use.outputs
    neurons = place.reshape(rows // tensor.blocks, -1) if size else place
    shared = _shared(neurons, many, tensor.shape, use.groups) * use.inputs
    scaled = bool((terms_of(np.atleast_1d(factor)) > 1).any())
    return LayerEnergy(
        name=name,
        weights=size,
        macs=size * use.outputs,
        adds=int(by_level[terms > 0].sum()) * use.outputs,
        shift_adds=int((by_level * terms).sum()) * use.outputs,
        terms=tuple(int(count) for count in counts),
        multipliers=int((many & (by_level > 0)).sum()),
        shared_products=min(plain, shared),
        scalings=rows * use.outputs if scaled else 0,
        stored_bits=stored_bits,
    )


def _levels(
    tensor: CodebookTensor | GridTensor,
) -> tuple[Ints, NDArray[np.float32], NDArray[np.float32]]:
    """Return indices (rows, columns) into a table of magnitudes, the table, and the factors."""
    if isinstance(tensor, CodebookTensor):
        levels, place = np.unique(np.abs(tensor.codebook.values), return_inverse=True)
        return place[tensor.index].astype(np.int64), levels, tensor.scale
    units = np.abs(tensor.index - tensor.offset[:, None])
    levels, place = np.unique(units, return_inverse=True)
    return place.reshape(units.shape), levels.astype(np.float32), tensor.step


def _shared(place: Ints, many: NDArray[np.bool_], shape: tuple[int, ...], groups: int) -> int:
    """Return the distinct multipliers of each input channel, summed over channels and groups."""
    taps = int(np.prod(shape[2:], dtype=np.int64))
    channels = max(1, place.shape[1] // taps)
    group = np.arange(len(place))[:, None] // max(1, len(place) // groups)
    channel = np.arange(place.shape[1])[None] // taps
    key = (group * channels + channel) * len(many) + place
    return int(np.unique(key[many[place]]).size)
