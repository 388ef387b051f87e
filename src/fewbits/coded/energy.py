"""An operation count of a network on hardware that shifts and adds, from the coded tensors alone.

A weight that is a sum of t signed powers of two needs t shifts and t adds in place of a product.
Energies are those of 45 nm at 0.9 V (Horowitz 2014), in picojoules. Shifts are free only where
activations are integers, which no method here provides by itself: read the figures as a count.
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
_MANY = 2  # powers of two, from which on a product is worth sharing

Ints: TypeAlias = "NDArray[np.int64]"


@dataclass(frozen=True)
class Use:
    """How one sample uses a layer.

    Attributes:
        outputs: positions of its output: 1, tokens, or pixels; each uses every weight once.
        inputs: positions of its input.
        groups: of a convolution.
    """

    outputs: int = 1
    inputs: int = 1
    groups: int = 1


@dataclass(frozen=True)
class LayerEnergy:
    """What one sample costs in one layer.

    Attributes:
        name: of the weight.
        weights: how many.
        macs: products and additions of the float layer.
        adds: products with weights that are not zero.
        shift_adds: shifts, and as many adds, that take the place of products.
        terms: weights by the powers of two they are a sum of, from 0 on.
        multipliers: distinct magnitudes of two and more powers.
        shared_products: products with these, where equal ones of an input channel are made once;
            never more than without.
        scalings: products that are left: of outputs with a step that is no power of two.
        stored_bits: of the weight in the file.
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
    """All layers. Weights are read once for a sample."""

    layers: tuple[LayerEnergy, ...]

    def total(self, name: str) -> int:
        """Return the sum over the layers of one of their figures."""
        return sum(getattr(layer, name) for layer in self.layers)

    def ratios(self) -> dict[str, float]:
        """Return four ratios to the float network.

        ``weight_traffic``: stored bits to 32 a weight; ``multiplications``: products that are left;
        ``adds``: shift-adds to products; and ``total_*``: energy to that of the float network, with
        weights from DRAM or SRAM, adds of integers or floats.
        """
        macs, bits = self.total("macs"), _FLOAT_BITS * self.total("weights")
        found = {
            "weight_traffic": self.total("stored_bits") / max(1, bits),
            "multiplications": self.total("scalings") / max(1, macs),
            "adds": self.total("shift_adds") / max(1, macs),
        }
        for memory in ("DRAM", "SRAM"):
            for kind in ("integer", "float"):
                name = f"total_{memory.lower()}_{kind}"
                found[name] = self._energy(memory, kind) / max(1e-12, self._float(memory))
        return found

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
    """Count what the weights of two and more dimensions cost.

    Args:
        tensors: of a network.
        stored: name to bytes in the file.
        uses: name of a weight to how a sample uses it; weights without are left out (tables of
            embeddings). None: every weight is used once, as a linear layer uses it.
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
    shared = _shared(place, many, tensor.shape, use.groups) * use.inputs
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
    """Return (rows, columns) places in a table of magnitudes, the table, and the factors."""
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
