"""Coded tensors that are made when they are looked up, and what is known of them before that."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

from .tensors import (
    AffineTensor,
    CodebookTensor,
    CodedTensor,
    GridTensor,
    RawTensor,
    TransformTensor,
)

__all__ = ["DescribedTensors", "TensorFacts", "facts_of"]

_KINDS: dict[type, str] = {
    GridTensor: "grid",
    AffineTensor: "affine",
    CodebookTensor: "codebook",
    TransformTensor: "transform",
    RawTensor: "raw",
}


@dataclass(frozen=True)
class TensorFacts:
    """What a coded tensor is: shape and dtype when restored, and its kind ("raw" if in float)."""

    shape: tuple[int, ...]
    dtype: str
    kind: str

    @classmethod
    def of(cls, tensor: CodedTensor) -> TensorFacts:
        """Return the facts of one tensor."""
        return cls(tuple(tensor.shape), tensor.dtype, _KINDS[type(tensor)])


class DescribedTensors(Mapping[str, CodedTensor]):
    """Name to coded tensor, each made when it is looked up, which takes memory and time."""

    @property
    @abstractmethod
    def facts(self) -> Mapping[str, TensorFacts]:
        """What every tensor is, by name, in the order of the tensors."""


def facts_of(tensors: Mapping[str, CodedTensor]) -> Mapping[str, TensorFacts]:
    """Return what the tensors are, without making any."""
    if isinstance(tensors, DescribedTensors):
        return tensors.facts
    return {name: TensorFacts.of(tensor) for name, tensor in tensors.items()}
