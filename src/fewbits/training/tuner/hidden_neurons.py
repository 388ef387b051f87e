"""Fold dead hidden neurons of a finished network, and sort the others.

A neuron whose weights are all zero outputs a constant, which the bias of the next layer can absorb;
one whose output is not used needs no weights. Neither this nor the order of neurons changes the
function of the network, and grouped zeros take fewer bits. The values in the network and their
codes are changed together.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from ...engine.graph.chains import Chain, find_chains
from ...engine.layers.layer import Quantized, QuantizedMatrix

__all__ = ["Neurons", "simplify_neurons"]

_NORM = ("weight", "bias", "running_mean", "running_var")


def simplify_neurons(
    model: nn.Module,
    results: dict[str, Quantized],
    held: Collection[str],
    *,
    fold: bool,
    sort: bool,
) -> list[str]:
    """Fold dead neurons and sort all neurons, if requested and possible; return notes.

    Args:
        model: the network with the values of ``results``; changed in place, like ``results``.
        results: codes by state-dict name.
        held: names of tensors whose layers are not changed: tied ones, and paths of a trellis.
        fold: fold dead neurons. The network is only traced if a matrix has a row or column of
            zeros.
        sort: sort neurons, which keeps the function but not the identity of neurons.
    """
    if not sort and not (fold and _has_dead(results.values())):
        return []
    chains = find_chains(model)
    if chains.reason:
        return [f"neurons: not changed, {chains.reason}"]
    neurons = Neurons(model, chains.found, results, set(held))
    folded = neurons.fold() if fold else 0
    notes = [f"neurons: {folded} dead ones folded"] if folded else []
    if sort:
        neurons.sort()
        count = len(neurons.sortable)
        notes.append(f"neurons: those of {count} layers sorted")
        if count < len(neurons.chains):
            notes.append(
                f"neurons: those of {len(neurons.chains) - count} layers not sorted, because "
                "groups of the next layer's columns have steps of their own"
            )
    return notes


class Neurons:
    """The hidden neurons of a network that holds its dequantized values.

    Attributes:
        results: the codes by state-dict name; entries of changed tensors are replaced.
    """

    def __init__(
        self,
        model: nn.Module,
        chains: Sequence[Chain],
        results: dict[str, Quantized],
        fixed: Iterable[str] = (),
    ) -> None:
        """Use the chains whose layers are both quantized matrices and have no ``fixed`` tensors."""
        self.model = model
        self.results = results
        fixed = set(fixed)
        self.chains = [
            chain
            for chain in chains
            if not fixed & set(self._names(chain))
            and all(
                isinstance(results.get(f"{name}.weight"), QuantizedMatrix)
                for name in (chain.layer, chain.reader)
            )
        ]

    @torch.no_grad()
    def fold(self) -> int:
        """Fold dead neurons, and return how many neurons lost all weights by that."""
        before = sum(int(self._removed(chain).sum()) for chain in self.chains)
        for chain in self.chains:  # forwards: a neuron with only constant inputs is constant itself
            self._fold_constants(chain)
        for chain in reversed(self.chains):
            self._drop_unused(chain)
        return sum(int(self._removed(chain).sum()) for chain in self.chains) - before

    @torch.no_grad()
    def sort(self) -> None:
        """Sort neurons by their number of nonzero weights, in and out, in descending order."""
        for chain in self.sortable:
            count = (self._incoming(chain) != 0).sum(1) + (self._outgoing(chain) != 0).sum((0, 2))
            order = count.argsort(descending=True, stable=True)
            for name in (f"{chain.layer}.weight", *self._vectors(chain)):
                self._take_rows(name, order)
            self._take_columns(chain, order)

    @property
    def sortable(self) -> list[Chain]:
        """The chains whose neurons may change places: no blocks of columns have their own steps."""
        readers = [(chain, self.results[f"{chain.reader}.weight"]) for chain in self.chains]
        return [chain for chain, code in readers if not getattr(code, "group", 0)]

    def _fold_constants(self, chain: Chain) -> None:
        reader = f"{chain.reader}.weight"
        zero = self._zero(reader)
        dead = ~self._incoming(chain).any(1) & self._outgoing(chain).any((0, 2))
        if zero is None or not bool(dead.any()):
            return
        constant = torch.where(dead, self._constants(chain), 0.0)
        bias = self._parameter(f"{chain.reader}.bias")
        if chain.borders or bias is None or f"{chain.reader}.bias" in self.results:
            dead &= constant == 0  # other constants cannot be absorbed exactly
        dead &= constant.isfinite()
        absorbed = torch.where(dead, constant, 0.0)
        if bias is not None and bool(absorbed.any()):
            bias += (self._outgoing(chain).double().sum(2) @ absorbed.double()).to(bias)
        columns = dead.repeat_interleave(self._outgoing(chain).shape[2])
        self._clear(reader, columns.expand(len(self._incoming_of(reader)), -1), zero)

    def _drop_unused(self, chain: Chain) -> None:
        name = f"{chain.layer}.weight"
        zero = self._zero(name)
        unused = ~self._outgoing(chain).any((0, 2))
        if zero is None or not bool(unused.any()):
            return
        rows = unused[:, None].expand(-1, self._incoming(chain).shape[1])
        self._clear(name, rows, zero)
        for vector in (f"{chain.layer}.bias", *(f"{norm}.bias" for norm in chain.norms)):
            if self._parameter(vector) is not None:
                self._clear(vector, unused[None], self._zero(vector))

    def _removed(self, chain: Chain) -> Tensor:
        return ~self._incoming(chain).any(1) & ~self._outgoing(chain).any((0, 2))

    def _constants(self, chain: Chain) -> Tensor:
        """Return the constant that the next layer receives from each neuron without weights."""
        layer = self.model.get_submodule(chain.layer)
        weight = self._of(f"{chain.layer}.weight")
        bias = self._parameter(f"{chain.layer}.bias")
        values = weight.new_zeros(len(weight)) if bias is None else bias.clone()
        values = values.reshape(1, -1, *(1 for _ in getattr(layer, "kernel_size", ())))
        for step in chain.steps:
            values = step(values)
        return values.reshape(-1)

    # -- tensors and their codes

    def _names(self, chain: Chain) -> list[str]:
        weights = [f"{name}.weight" for name in (chain.layer, chain.reader)]
        return [*weights, f"{chain.reader}.bias", *self._vectors(chain)]

    def _vectors(self, chain: Chain) -> list[str]:
        names = [f"{norm}.{leaf}" for norm in chain.norms for leaf in _NORM]
        biased = self._parameter(f"{chain.layer}.bias") is not None
        return [f"{chain.layer}.bias", *names] if biased else names

    def _parameter(self, name: str) -> Tensor | None:
        path, _, leaf = name.rpartition(".")
        tensor = getattr(self.model.get_submodule(path), leaf, None)
        return tensor.data if isinstance(tensor, Tensor) else None

    def _of(self, name: str) -> Tensor:
        tensor = self._parameter(name)
        if tensor is None:
            raise ValueError(f"no tensor {name!r} in the network")
        return tensor

    def _incoming_of(self, name: str) -> Tensor:
        return self._of(name).flatten(1)

    def _incoming(self, chain: Chain) -> Tensor:
        return self._incoming_of(f"{chain.layer}.weight")

    def _outgoing(self, chain: Chain) -> Tensor:
        """Return the next layer's weights as (its neurons, neurons, columns per neuron)."""
        values = self._of(f"{chain.reader}.weight")
        return values.reshape(len(values), len(self._incoming(chain)), -1)

    def _zero(self, name: str) -> Tensor | None:
        """Return the index (rows, 1) of the value zero; None unless every row has one."""
        result = self.results.get(name)
        if not isinstance(result, QuantizedMatrix):
            return torch.zeros(1, 1, dtype=torch.int32)
        rows, device = result.index.shape[1], result.index.device
        if result.levels is not None:
            place = (result.levels == 0).nonzero()
            return place[:1].int().expand(rows, 1).to(device) if len(place) else None
        offset = torch.as_tensor(result.offset, device=device).reshape(-1, 1)
        if len(offset) not in (1, rows):  # one for each block of columns
            return None
        offset = offset.expand(rows, 1)
        return offset.int() if bool((offset == offset.round()).all()) else None

    def _clear(self, name: str, where: Tensor, zero: Tensor | None) -> None:
        """Set entries of the matrix to zero; do nothing if zero is not a level."""
        if zero is None:
            return
        values, result = self._of(name), self.results.get(name)
        values.masked_fill_(where.reshape(values.shape), 0)
        if isinstance(result, QuantizedMatrix):
            index = torch.where(where.reshape(result.index.shape[1:]), zero, result.index[0])
            self.results[name] = replace(result, index=index[None])

    def _take_rows(self, name: str, order: Tensor) -> None:
        values, result = self._of(name), self.results.get(name)
        values.copy_(values[order])
        if not isinstance(result, QuantizedMatrix):
            return
        if values.dim() == 1:
            self.results[name] = replace(result, index=result.index[..., order])
            return
        self.results[name] = replace(
            result,
            index=result.index[:, order],
            step=None if result.step is None else _reordered(result.step, order),
            scale=None if result.scale is None else _reordered(result.scale, order),
            offset=_reordered(torch.as_tensor(result.offset), order),
        )

    def _take_columns(self, chain: Chain, order: Tensor) -> None:
        name = f"{chain.reader}.weight"
        values, result = self._of(name), self.results[name]
        apart = self._outgoing(chain).shape
        values.copy_(values.reshape(apart)[:, order].reshape(values.shape))
        if isinstance(result, QuantizedMatrix):
            index = result.index.reshape(apart)[:, order].reshape(result.index.shape)
            self.results[name] = replace(result, index=index)


def _reordered(values: Tensor, order: Tensor) -> Tensor:
    """Reorder values of rows, or of blocks of rows; a single value for all rows stays."""
    return values.reshape(len(order), -1)[order].flatten() if values.numel() > 1 else values


def _has_dead(results: Iterable[Quantized]) -> bool:
    """Return whether a quantized matrix has a row or a column of zeros."""
    for result in results:
        if isinstance(result, QuantizedMatrix) and result.index.shape[1] > 1:
            alive = result.dequantize()[0] != 0
            if not bool(alive.any(0).all()) or not bool(alive.any(1).all()):
                return True
    return False
