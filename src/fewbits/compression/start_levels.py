"""The levels of another compressed network, to which weights are rounded once more."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from ..coded import CodebookTensor, CodedTensor, Contents, GridTensor, RawTensor, TransformTensor
from ..container import read
from ..engine.batchnorm.fold import is_batchnorm
from ..engine.batchnorm.freeze import without_statistics
from ..engine.layers.layer import Levels, QuantizedMatrix
from ..engine.layers.pack import to_torch, unpack
from ..engine.layers.targets import Target
from ..engine.network.copying import copied
from ..engine.network.naming import fitted
from ..errors import ConfigError, LossWarning, ModelError
from ..methods import METHODS
from ..recipe.plan import Plan, PlanEntry
from .coded_model import CodedModel
from .storage.fingerprint import fingerprint

__all__ = ["Start", "StartLevels", "contents_of"]

Start: TypeAlias = CodedModel | str | PathLike[str]

_MOST = 1 << 16  # levels of a grid that are given
_KINDS: Mapping[type, str] = {
    RawTensor: "is in float in the start",
    TransformTensor: "is in a basis in the start",
}
_LISTED = 4


def contents_of(start: Start) -> Contents:
    """Return what a compressed network holds, or its file.

    Raises:
        ConfigError: it is neither, or a delta.
        CorruptFileError: the file cannot be read.
    """
    if not isinstance(start, (CodedModel, str, PathLike)):
        raise ConfigError(
            "start must be a CodedModel or the path of a .fewbits file. "
            f"Got {type(start).__name__} instead."
        )
    contents = start.contents if isinstance(start, CodedModel) else read(start)
    if contents.is_delta:
        raise ConfigError(
            "start must be a whole network, and this is a delta, which has changes only. Apply it "
            "to its base first, and compress the result."
        )
    return contents


@dataclass(frozen=True, eq=False)
class StartLevels:
    """The levels of every weight of one network, as another one of its architecture has them.

    Attributes:
        levels: by the name of the weight: of grids, those from the lowest to the highest in use.
        without: weights whose levels cannot be given, with the reason.
        absorbed: BatchNorm layers that the layers before them have absorbed.
        inputs: number of inputs of layers that are quantized.
        fingerprint: of all levels and absorbed layers.
    """

    levels: Mapping[str, Levels]
    without: Mapping[str, str]
    absorbed: frozenset[str] = frozenset()
    inputs: int = 0
    fingerprint: str = field(default="", repr=False)

    @classmethod
    def of(cls, start: Start, model: nn.Module, plan: Plan) -> StartLevels:
        """Take the levels of the weights that a plan quantizes.

        Raises:
            ConfigError: none of them has levels in the start, or their method takes none.
            ModelError: the start is of another architecture.
        """
        contents = fitted(contents_of(start), model)
        entries = [entry for entry in plan.entries if entry.method is not None]
        _check_methods(entries)
        found: dict[str, Levels] = {}
        without: dict[str, str] = {}
        for target in (entry.target for entry in entries):
            levels = _levels(_tensor(contents, target), target)
            if isinstance(levels, Levels) and levels.largest > _limit(model, target):
                levels = f"has levels up to {levels.largest:g}, beyond its dtype"
            if isinstance(levels, Levels):
                found[target.name] = levels
            else:
                without[target.name] = levels
        if not found:
            name = next(iter(without), "")
            raise ConfigError(
                "start= has levels for none of the weights that are quantized"
                + (f": {name!r} {without[name]}, for example. " if name else ". ")
                + "Give a network that a method has quantized, or leave start= out."
            )
        _check_settings(entries, found)
        absorbed = frozenset(_absorbed(contents, model))
        parts = [(name, part) for name, one in found.items() for part in (one.values, one.step)]
        facts = {name: (one.offset, one.group) for name, one in found.items()}
        key = fingerprint(parts, facts, sorted(absorbed))
        return cls(found, without, absorbed, len(contents.activations), key)

    def planned(self, plan: Plan) -> Plan:
        """Return the plan with notes on whose levels each weight gets."""
        for entry in plan.entries:
            name = entry.target.name
            if entry.method is not None and name in self.levels:
                plan = plan.noted(name, "on the levels of the start")
            elif entry.method is not None and name in self.without:
                plan = plan.noted(name, f"on new levels: it {self.without[name]}")
        return plan

    def notes(self, *, activations: bool) -> list[str]:
        """Return what became of the start, for the user."""
        kept = f"{len(self.levels)} weights are on its levels"
        return [f"start: {text}" for text in (kept, *self._lost(activations))]

    def warn(self, *, activations: bool, stacklevel: int) -> None:
        """Warn about what the start has and the result will not have."""
        lost = self._lost(activations)
        if lost:
            text = f"not kept of the start: {'; '.join(lost)}."
            warnings.warn(text, LossWarning, stacklevel=stacklevel + 1)

    def _lost(self, activations: bool) -> list[str]:
        lost = [_without(self.without)] if self.without else []
        return lost + ([_inputs(self.inputs)] if self.inputs and not activations else [])

    def check_folded(self, norms: Sequence[str]) -> None:
        """Refuse levels of layers that have absorbed a BatchNorm where it was not folded.

        Raises:
            ModelError: ``norms``, those that were folded, lack one that the start has absorbed.
        """
        missing = sorted(self.absorbed - set(norms))
        if missing:
            raise ModelError(
                f"in the start, a layer has absorbed the BatchNorm {missing[0]!r}, whose gains "
                "are in the steps of its levels, but it could not be folded here: in the first "
                "calibration batch, its input is not the output of a quantized layer, or folding "
                "changed the output. Calibrate with the same forward function and rules as the "
                "start and a network in float32, or leave start= out."
            )


def _tensor(contents: Contents, target: Target) -> CodedTensor:
    """Return a weight of the start.

    Raises:
        ModelError: the start has none of this name and shape.
    """
    name = contents.aliases.get(target.name, target.name)
    tensor = contents.tensors.get(name)
    if tensor is None or tuple(tensor.shape) != tuple(target.shape):
        held = "has no such weight" if tensor is None else f"has {tuple(tensor.shape)}"
        raise ModelError(
            f"start= is of another network: {target.name!r} is {tuple(target.shape)} here, and "
            f"the start {held}. Give a compressed network of the same architecture."
        )
    return tensor


def _levels(tensor: CodedTensor, target: Target) -> Levels | str:
    """Return the levels of a weight, or why they cannot be given to another."""
    if not isinstance(tensor, (GridTensor, CodebookTensor)):
        return _KINDS.get(type(tensor), "has no even grid in the start")
    step = torch.from_numpy(tensor.step if isinstance(tensor, GridTensor) else tensor.scale)
    if not bool((step > 0).all()):
        return "has steps in the start that are not positive"
    matrix = unpack(tensor, target)
    group = matrix.group if isinstance(matrix, QuantizedMatrix) else 0
    if isinstance(tensor, CodebookTensor):
        return Levels(torch.from_numpy(tensor.codebook.values), step, None, group)
    return _on_grid(tensor, step, group)


def _on_grid(tensor: GridTensor, step: Tensor, group: int) -> Levels | str:
    """Return the levels of a grid that are in use, and all between them."""
    if bool((tensor.offset != tensor.offset[0]).any()):
        return "has a grid in the start with other offsets for every neuron"
    index, offset = tensor.index, float(tensor.offset[0])
    lowest, highest = (int(index.min()), int(index.max())) if index.size else (0, 0)
    if highest - lowest >= _MOST:
        return f"has {highest - lowest + 1:,} levels in the start"
    values = np.arange(lowest, highest + 1, dtype=np.float32) - np.float32(offset)
    return Levels(torch.from_numpy(values), step, offset, group)


def _limit(model: nn.Module, target: Target) -> float:
    """Return the largest value that a weight can have."""
    return float(torch.finfo(model.get_parameter(target.name).dtype).max)


def _check_methods(entries: Sequence[PlanEntry]) -> None:
    """Refuse methods that always choose levels of their own."""
    for entry in entries:
        method = entry.method
        if method is not None and not method.capabilities.takes_levels:
            known = [n for n, kind in METHODS.items() if kind.capabilities.takes_levels]
            raise ConfigError(
                f"start= gives weights the levels of another network, but the method "
                f"{method.name!r} chooses its own. Methods that take levels: {', '.join(known)}."
            )


def _check_settings(entries: Sequence[PlanEntry], levels: Mapping[str, Levels]) -> None:
    """Refuse settings of methods that do not go with the levels of a weight."""
    for entry in entries:
        name, method = entry.target.name, entry.method
        why = method.refuses(levels[name]) if method is not None and name in levels else ""
        if method is not None and why:
            raise ConfigError(
                f"weight {name!r}: the method {method.name!r} cannot take the levels of start=: "
                f"{why}. Change that setting, give this weight another rule, or leave "
                "start= out."
            )


def _absorbed(contents: Contents, model: nn.Module) -> list[str]:
    """Return the BatchNorm layers of a network whose gains the layers before them have."""
    found = []
    for name, module in model.named_modules():
        if not is_batchnorm(module):
            continue
        norm = copied(module)
        state = {
            leaf: values.to(own.dtype)
            for leaf, own in norm.state_dict().items()
            if (values := _values(contents, f"{name}.{leaf}".lstrip("."))) is not None
            and values.shape == own.shape
        }
        norm.load_state_dict(state, strict=False)
        if without_statistics(norm) and bool((norm.get_parameter("weight") == 1).all()):
            found.append(name)
    return found


def _values(contents: Contents, name: str) -> Tensor | None:
    tensor = contents.tensors.get(contents.aliases.get(name, name))
    return None if tensor is None else to_torch(tensor)


def _without(names: Mapping[str, str]) -> str:
    """Say which weights have levels of their own, and why."""
    told = [f"{name} {why}" for name, why in list(names.items())[:_LISTED]]
    more = f", and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    what = "1 weight is" if len(names) == 1 else f"{len(names)} weights are"
    return f"{what} on new levels ({'; '.join(told)}{more})"


def _inputs(count: int) -> str:
    what = "1 quantized input is" if count == 1 else f"{count} quantized inputs are"
    return f"{what} in float again; activations= quantizes them"
