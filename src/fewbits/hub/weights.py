"""The weights of a folder, for a network of transformers that is built on the meta device."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..coded import ActivationGrid
from ..compression.decoding import values_of
from ..compression.load import decoder, grids_for
from ..container import LazyTensors, keep_open, read_lazily, usable_threads
from ..engine.activations.hooks import load_inputs
from ..engine.network.filling import SMALL_BYTES
from ..engine.paged.lazy_weights import LazyWeight, lazy_parameter
from ..engine.paged.weight_store import WeightSpec, WeightStore
from ..errors import ModelError

__all__ = ["FolderWeights", "without_lazy_weights"]

Dtype = Callable[[str, torch.dtype], torch.dtype]


@dataclass
class FolderWeights:
    """The values of a file under the names of a network, one after the other.

    Attributes:
        path: the file.
        network: the network, whose tensors tell names, shapes and dtypes.
        renamed: returns the network's name of a tensor for its name in the file.
        dtype: returns the dtype of a tensor by its name and the one that the network has for it.
        tied: name of a tensor in the network to the name of the one that it will be tied to.
        lazy: whether large weights stay in the file.
        device: where lazy weights are decoded to.
        unexpected: called with the names that the network does not have.
        grids: grids of quantized inputs; known once all values were asked for.
    """

    path: str
    network: nn.Module
    renamed: Callable[[str], str]
    dtype: Dtype
    tied: Mapping[str, str]
    lazy: bool
    device: torch.device
    unexpected: Callable[[str], None]
    grids: Mapping[str, ActivationGrid] = field(default_factory=dict)

    def items(self) -> Iterator[tuple[str, Tensor]]:
        """Yield names and values in the order of the file.

        Raises:
            ModelError: the file has no tensor of the network.
            CorruptFileError: the file is damaged.
        """
        with ExitStack() as stack:
            opening = keep_open(self.path) if self.lazy else read_lazily(self.path)
            tensors, aliases = stack.enter_context(opening)
            places = self._places(tensors, aliases)
            self.grids = grids_for(tensors, aliases, self.network)
            if not self.lazy:
                yield from self._decoded(tensors, places)
                return
            tensors.codebooks()
            close = stack.pop_all().close  # when the last of the weights is gone
        store = WeightStore(decoder(tensors, self.path), usable_threads(0), close)
        yield from self._lazy(store, tensors, places)

    def _places(
        self, tensors: LazyTensors, aliases: Mapping[str, str]
    ) -> list[tuple[str, str, Tensor]]:
        """Return (name in the file, name in the network, tensor of the network)."""
        state = self.network.state_dict(keep_vars=True)
        stored = {self.renamed(name): own for name, own in _stored(tensors, aliases)}
        found = []
        for name, own in stored.items():
            source = self.tied.get(name)
            if name not in state:
                self.unexpected(name)
            elif source is None or stored.get(source) != own:
                found.append((own, name, state[name]))
        if not found:
            raise ModelError(
                f"{self.path} belongs to another architecture than {type(self.network).__name__}: "
                f"none of its {len(stored)} tensors ({', '.join(list(stored)[:3])}, ...) is in the "
                "network. Load it by the class that config.json names."
            )
        return found

    def _decoded(
        self, tensors: LazyTensors, places: list[tuple[str, str, Tensor]]
    ) -> Iterator[tuple[str, Tensor]]:
        for own, name, target in places:
            values = values_of(tensors, own, usable_threads(0))
            yield name, values.to(self.dtype(name, target.dtype))

    def _lazy(
        self, store: WeightStore, tensors: LazyTensors, places: list[tuple[str, str, Tensor]]
    ) -> Iterator[tuple[str, Tensor]]:
        specs = {
            name: self._spec(own, name, target)
            for own, name, target in places
            if isinstance(target, nn.Parameter)
            and target.numel() * target.element_size() > SMALL_BYTES
            and tuple(target.shape) == tuple(tensors.shapes[own])
        }
        store.expect(specs.values())
        for own, name, target in places:
            if name in specs:
                yield name, lazy_parameter(store, specs[name])
            else:
                yield name, values_of(tensors, own).to(self.dtype(name, target.dtype))

    def _spec(self, own: str, name: str, target: Tensor) -> WeightSpec:
        dtype = self.dtype(name, target.dtype)
        return WeightSpec(own, tuple(target.shape), target.stride(), dtype, self.device)


def _stored(tensors: LazyTensors, aliases: Mapping[str, str]) -> list[tuple[str, str]]:
    return [*((name, name) for name in tensors), *aliases.items()]


def without_lazy_weights(network: nn.Module) -> None:
    """Replace lazy weights by ordinary ones, and remove the quantization of inputs."""
    load_inputs(network, {})
    made: dict[int, nn.Parameter] = {}
    for module in network.modules():
        weights: dict[str, Any] = dict(module._parameters)
        for name, weight in weights.items():
            if isinstance(weight, LazyWeight):
                if id(weight) not in made:
                    made[id(weight)] = nn.Parameter(weight.decoded().clone(), requires_grad=False)
                setattr(module, name, made[id(weight)])
