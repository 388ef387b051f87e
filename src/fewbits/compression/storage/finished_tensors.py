"""Finished weights of a compression, in little memory or on disk, and the tensors of a file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ...coded import (
    AffineTensor,
    Codebook,
    CodebookTensor,
    CodedTensor,
    DescribedTensors,
    GridTensor,
    RawTensor,
    TensorFacts,
    TransformTensor,
)
from .journal import Finished, Journal

__all__ = ["FileTensors", "FinishedWeights"]

_Matrix = TypeVar("_Matrix", bound=GridTensor | CodebookTensor)


class FinishedWeights:
    """The coded weights that are done, by name, in the order in which they were finished.

    Without a journal they are in memory, with the narrowest integers that hold their indices; with
    one they are on disk.
    """

    def __init__(self, journal: Journal | None = None) -> None:
        self._journal = journal
        self._held: dict[str, Callable[[], CodedTensor]] = {}
        self._codebooks: dict[bytes, Codebook] = {}
        self.facts: dict[str, TensorFacts] = {}
        self.info: dict[str, Mapping[str, float]] = {}
        self.changes: dict[str, str] = {}  # what happened to other tensors
        for part in journal.finished if journal else ():
            self.changes |= part.changes
            for name in part.weights:
                self.facts[name] = TensorFacts.of(self[name])
                self.info[name] = part.info[name]

    def add(
        self, part: Finished, weights: Mapping[str, CodedTensor], changed: Mapping[str, RawTensor]
    ) -> None:
        """Add the weights of a part that is done."""
        self.changes |= part.changes
        for name, tensor in weights.items():
            self.facts[name] = TensorFacts.of(tensor)
            self.info[name] = part.info[name]
            if self._journal is None:
                self._held[name] = _held(tensor)
        if self._journal is not None:
            self._journal.write(part, weights, changed)

    def __contains__(self, name: object) -> bool:
        return name in self.facts

    def __iter__(self) -> Iterator[str]:
        return iter(self.facts)

    def __getitem__(self, name: str) -> CodedTensor:
        tensor = self._held[name]() if self._journal is None else self._journal.read(name)
        if isinstance(tensor, CodebookTensor):  # equal codebooks are one, which is stored once
            book = self._codebooks.setdefault(tensor.codebook.values.tobytes(), tensor.codebook)
            return replace(tensor, codebook=book)
        return tensor

    def changed(self, name: str) -> RawTensor:
        """Return a tensor that changed with a weight, such as a corrected bias."""
        tensor = None if self._journal is None else self._journal.read(name)
        if not isinstance(tensor, RawTensor):
            raise ValueError(f"{name!r} is not in the journal")
        return tensor


class FileTensors(DescribedTensors):
    """The tensors of a file: finished weights, and all others raw or on a grid of their own.

    Args:
        names: names in the order of the file.
        finished: the weights that are quantized.
        raw: name to a function that gives the tensor.
        facts: shape and dtype of the raw tensors.
        keep: an object that must live as long, such as a folder that is removed with it.
    """

    def __init__(
        self,
        names: list[str],
        finished: FinishedWeights,
        raw: Mapping[str, Callable[[], CodedTensor]],
        facts: Mapping[str, TensorFacts],
        keep: object = None,
    ) -> None:
        self._finished, self._raw, self._keep = finished, raw, keep
        known = {**facts, **finished.facts}
        self._facts = {name: known[name] for name in names}

    @property
    def facts(self) -> Mapping[str, TensorFacts]:
        """What every tensor is, by name."""
        return self._facts

    def __len__(self) -> int:
        return len(self._facts)

    def __iter__(self) -> Iterator[str]:
        return iter(self._facts)

    def __contains__(self, name: object) -> bool:
        return name in self._facts

    def __getitem__(self, name: str) -> CodedTensor:
        return self._finished[name] if name in self._finished else self._raw[name]()

    def __deepcopy__(self, memo: dict[int, Any]) -> FileTensors:
        """Return the same tensors: nothing changes them, and their folder lives as long."""
        return self

    def __reduce__(self) -> tuple[type[dict[str, CodedTensor]], tuple[dict[str, CodedTensor]]]:
        """Pickle the tensors themselves: another process may not have their folder."""
        return dict, (dict(self),)


def _held(tensor: CodedTensor) -> Callable[[], CodedTensor]:
    """Return a function that gives ``tensor``, and holds its indices in narrow integers."""
    if isinstance(tensor, TransformTensor):
        coefficients, basis = _matrix(tensor.coefficients), _matrix(tensor.basis)
        rest = _fields(tensor, "coefficients", "basis")
        return lambda: TransformTensor(coefficients=coefficients(), basis=basis(), **rest)
    return (lambda: tensor) if isinstance(tensor, RawTensor | AffineTensor) else _matrix(tensor)


def _matrix(tensor: _Matrix) -> Callable[[], _Matrix]:
    kind, index, rest = type(tensor), _narrow(tensor.index), _fields(tensor, "index")
    return lambda: kind(index=index.astype(np.int32), **rest)


def _narrow(index: NDArray[np.int32]) -> NDArray[Any]:
    low, high = (int(index.min()), int(index.max())) if index.size else (0, 0)
    kinds = (np.int8, np.uint8, np.int16, np.uint16)
    fitting = (k for k in kinds if np.iinfo(k).min <= low and high <= np.iinfo(k).max)
    return index.astype(next(fitting, np.int32))


def _fields(value: Any, *without: str) -> dict[str, Any]:
    names = [entry.name for entry in fields(value) if entry.name not in without]
    return {name: getattr(value, name) for name in names}
