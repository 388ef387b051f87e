"""Turn coded tensors into torch tensors, piece by piece and on several threads."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..coded import CodedTensor
from ..container import LazyTensors, OrderedCalls
from ..engine.layers.pack import to_torch, torch_dtype

__all__ = ["values_of"]


@torch.inference_mode(False)  # the values are of use in every mode, and other threads write them
def values_of(tensors: Mapping[str, CodedTensor], name: str, threads: int = 1) -> Tensor:
    """Return the values of a tensor, in its shape and dtype, in new memory.

    A large tensor of a file is dequantized in pieces of some 2 million weights, on ``threads``;
    each takes some 24 MB, and two for each thread are in memory. They are decoded there too, unless
    other threads decode ahead.
    """
    places = tensors.places(name) if isinstance(tensors, LazyTensors) else []
    if not isinstance(tensors, LazyTensors) or len(places) < 2:
        return to_torch(tensors[name])
    dtype = torch_dtype(tensors.dtypes[name])
    values = torch.empty(tensors.shapes[name], dtype=dtype, device="cpu")
    flat = values.view(-1)

    def put(place: slice, piece: CodedTensor | None = None) -> None:
        with torch.inference_mode(False), torch.no_grad():
            found = tensors.piece(name, place) if piece is None else piece
            flat[place] = to_torch(found).view(-1)

    with OrderedCalls[None](threads) as calls:
        for place in places:
            if calls.is_full:
                calls.take()
            if tensors.is_concurrent:
                calls.submit(put, place)
            else:
                calls.submit(put, place, tensors.piece(name, place))
        while len(calls):
            calls.take()
    return values
