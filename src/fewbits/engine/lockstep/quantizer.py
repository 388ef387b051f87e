"""The observer of the lockstep: draws rows, accumulates moments, and quantizes layers."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from math import prod
from zlib import crc32

import torch
from torch import Tensor, nn

from ...errors import CalibrationError
from ...ops.levels.grid import FLOAT32_MAX
from ..layers.layer import LayerMatrix, Levels, Quantized, Sensitivity, join_neurons
from ..layers.pack import restored
from ..layers.recurrent import Replay
from ..layers.rows import Rows, draw_rows, without_padding
from ..layers.statistics import WIDE, Statistics, StatisticsAccumulator
from ..layers.targets import Target
from ..network.batches import Call
from ..network.distributed import ALONE, Ranks
from ..network.isolation import autocast_off
from .biases import bias_of, round_bias, shift_bias
from .pairing import Pairing
from .replays import KeptCall

__all__ = [
    "Completed",
    "LayerQuantizer",
    "Work",
    "encode_alone",
    "layer_seed",
    "quantize_alone",
    "row_budget",
    "share_of",
    "write_result",
]

_UNREPEATABLE = (
    "calibrated on the inputs of the quantized network alone: two passes of the float network over "
    "one batch give the layer different inputs (random numbers or state that cannot be restored)"
)

_FEW = 4  # times fewer rows than columns is said
_ALIGNED = 64  # bytes to which torch aligns memory of its own
_WORTH_SHARING = 1 << 28  # products of rounding a layer; fewer take no longer than sending it

Encode = Callable[[LayerMatrix], Quantized]
Write = Callable[[str, Tensor, Tensor], None]


def _in_place(name: str, parameter: Tensor, values: Tensor) -> None:
    parameter.copy_(values.to(parameter.dtype))


@dataclass(frozen=True)
class Work:
    """One weight to quantize.

    Attributes:
        target: the weight.
        encode: encoder of the method.
        both: whether the method also needs the float network's inputs.
        sensitivity: effect of the weight's errors on the output, if the method needs it.
        rows: row budget; None for that of all layers.
        apart: whether neurons can be rounded apart, so that ranks may share them.
        base: the weight of another network; what is quantized is the difference from it. None
            quantizes the weight itself.
        levels: those that the weight gets; None leaves them to the method.
    """

    target: Target
    encode: Encode
    both: bool = True
    sensitivity: Sensitivity | None = None
    rows: int | None = None
    apart: bool = False
    base: Tensor | None = None
    levels: Levels | None = None


def row_budget(columns: int, limit: int | None = None) -> int:
    """Return how many rows a layer uses: 16 per column, from 16,384 to 65,536, or ``limit``.

    Moments of N columns converge with the number of rows over N; beyond 16 the choice of levels
    hardly changes (see benchmarks), while the cost of the moments keeps growing.
    """
    return min(max(16 * columns, 16384), 65536) if limit is None else limit


def layer_seed(seed: int, *parts: object) -> int:
    """Return a seed specific to a layer (and batch, and call), the same on every machine."""
    return crc32(":".join(map(str, (seed, *parts))).encode())


@dataclass(frozen=True)
class Completed:
    """What the completion of a module changed.

    Attributes:
        results: weight name to its quantized matrix.
        changes: what happened to biases, by name.
        notes: weight name to notes for the user.
        unpaired: weights whose rows of the two networks could not be paired.
    """

    results: Mapping[str, Quantized]
    changes: Mapping[str, str] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)
    unpaired: tuple[str, ...] = ()


def quantize_alone(
    network: nn.Module,
    work: Work,
    seed: int,
    write: Write | None = _in_place,
    statistics: Statistics | None = None,
) -> Quantized:
    """Quantize a weight outside the lockstep, and ``write`` the result into ``network``.

    It is quantized from its values alone, or with ``statistics`` that are known beforehand; no bias
    takes its mean error.
    """
    result = encode_alone(network, work, seed, statistics)
    if write is not None:
        write_result(network, work, result, write)
    return result.on_cpu()


def encode_alone(
    network: nn.Module, work: Work, seed: int, statistics: Statistics | None = None
) -> Quantized:
    """Quantize a weight as :func:`quantize_alone` does, and change nothing."""
    return _quantize(network, work, statistics, seed, has_bias=False)


@torch.no_grad()
def write_result(network: nn.Module, work: Work, result: Quantized, write: Write) -> None:
    """Set a weight of ``network`` to its quantized values, or to its base and these."""
    target = work.target
    parameter = network.get_parameter(target.name)
    values = target.view.tensor(result.dequantize(), target.shape).to(parameter.device)
    if work.base is not None:
        values = restored(work.base.to(parameter.device), values)
    write(target.name, parameter, values)


@dataclass
class LayerQuantizer:
    """The observer that quantizes a network in the lockstep.

    Attributes:
        network: the network being quantized, changed in place.
        work: module name to its weights.
        batches: number of calibration batches, over which (and over the calls that a batch makes
            of a layer) the row budget is spread evenly.
        seed: seed of the run.
        rows: row budget of every layer; None for :func:`row_budget`.
        sinks: layer name to the bias of the batch normalization that was folded into it, which
            takes its output shift in place of the layer's own.
        fixed_bias: weights whose layer has a bias that must not be shifted.
        masks: of each batch, bool (samples, tokens) that are False for padding, whose rows are left
            out; () if there is none in any batch.
        write: ``write(name, parameter, values)`` sets the values of a quantized weight; None leaves
            every weight in float.
        reference: the float network, to run layers that compute inputs of their weights
            themselves; None if no method needs the float network's inputs.
        keep: called with a module and its :class:`Completed`; None collects ``results``.
        ranks: who else observes; all ranks complete the same modules.
        results: weight name to its quantized matrix, filled as layers complete.
        notes: weight name to notes for the user.
        unpaired: weights whose rows of the two networks could not be paired.
    """

    network: nn.Module
    work: Mapping[str, Sequence[Work]]
    batches: int
    seed: int
    rows: int | None = None
    sinks: Mapping[str, str] = field(default_factory=dict)
    fixed_bias: Collection[str] = ()
    masks: Sequence[Sequence[Tensor]] = ()
    write: Write | None = _in_place
    reference: nn.Module | None = None
    keep: Callable[[str, Completed], None] | None = None
    ranks: Ranks = ALONE
    results: dict[str, Quantized] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    unpaired: set[str] = field(default_factory=set)
    _calls: Mapping[str, int] = field(default_factory=dict)
    _sums: dict[str, StatisticsAccumulator] = field(default_factory=dict)
    _pairings: dict[str, Pairing] = field(default_factory=dict)
    _kept: dict[str, list[KeptCall]] = field(default_factory=dict)

    def expect(self, calls: Mapping[str, int]) -> None:
        """Set the number of calls of each module per batch, over which the budget is spread."""
        self._calls = calls

    @autocast_off()
    def observe(self, module: str, batch: int, call: int, reference: Call, quantized: Call) -> None:
        """Add rows of one call; the same rows are drawn in both networks."""
        for work in self.work[module]:
            view = work.target.view
            if view.inputs is None:
                continue
            masks = self.masks[batch] if self.masks else ()
            seen = without_padding(view.inputs(quantized), masks)
            known = seen
            if reference is not quantized and work.both and work.target.name not in self.unpaired:
                known = without_padding(view.inputs(reference), masks)
                if reference.chosen or known.count != seen.count:
                    known = self._paired(work.target.name, known, seen, batch, call)
            if seen.count:
                self._add(work, seen, known, batch, call)
        inner = [work for work in self.work[module] if work.target.view.inner is not None]
        if inner:
            self._keep_call(module, inner, batch, call, reference, quantized)

    def _keep_call(  # noqa: PLR0917 - a call, and whose
        self,
        module: str,
        inner: Sequence[Work],
        batch: int,
        call: int,
        reference: Call,
        quantized: Call,
    ) -> None:
        """Keep sequences of a call for weights whose inputs the module computes itself."""
        structure = inner[0].target.view.inner
        columns = max(work.target.view.columns(work.target.shape) for work in inner)
        quota = self._quota(module, columns, batch, call, inner[0].rows)
        if structure is None or quota == 0:
            return
        seed = layer_seed(self.seed, module, batch, call)
        seen = known = structure.keep(quantized, quota, seed)
        if reference is not quantized:
            known = structure.keep(reference, quota, seed)
            for work in inner:
                self._pair_call(work, known, seen, batch, call, chosen=bool(reference.chosen))
        kept = KeptCall(batch, call, known.again(), seen)
        self._kept.setdefault(module, []).append(kept)

    def _pair_call(
        self, work: Work, known: Replay, seen: Replay, batch: int, call: int, *, chosen: bool
    ) -> None:
        """Stop using the float network's rows of a weight if the sequences do not correspond."""
        name = work.target.name
        if not work.both or name in self.unpaired:
            return
        if chosen or known.inputs.count != seen.inputs.count:
            self._paired(name, known.inputs, seen.inputs, batch, call)
        elif not known.same_lengths(seen):
            self._unpair(name, "the lengths of its sequences depend on values")

    def _replay(self, work: Work) -> None:
        """Add the rows of a weight whose inputs the module computes from those of its calls."""
        module, parameter = work.target.module, work.target.view.parameter
        for kept in self._kept.get(module, ()):
            seen = kept.quantized.rows(self.network.get_submodule(module), parameter)
            known = seen
            if work.both and self.reference is not None and work.target.name not in self.unpaired:
                known = kept.reference.rows(self.reference.get_submodule(module), parameter)
            self._add(work, seen, known, kept.batch, kept.call)

    def _paired(self, name: str, known: Rows, seen: Rows, batch: int, call: int) -> Rows:
        """Return the float network's rows, or the quantized one's if they cannot be paired."""
        seed = layer_seed(self.seed, name, batch, call)
        pairing = self._pairings.setdefault(name, Pairing())
        self._unpair(name, pairing.look(known, seen, seed, moved_before=bool(self.unpaired)))
        return seen if name in self.unpaired else known

    def _unpair(self, name: str, cause: str) -> None:
        """Stop using the float network's rows of a weight, if there is a cause."""
        if not cause:
            return
        self.unpaired.add(name)
        self.note(name, f"calibrated on the quantized network's inputs alone: {cause}")
        if name in self._sums:
            self._sums[name].forget_reference()

    def _add(self, work: Work, seen: Rows, known: Rows, batch: int, call: int) -> None:
        name, columns = work.target.name, work.target.view.columns(work.target.shape)
        quota = self._quota(work.target.module, columns, batch, call, work.rows)
        if quota == 0:
            return
        picks = draw_rows(seen.count, quota, layer_seed(self.seed, name, batch, call))
        quantized = _checked(seen.take(picks), work.target, columns, batch)
        reference = quantized
        if known is not seen:
            reference = _checked(known.take(picks), work.target, columns, batch)
        if name not in self._sums:
            self._sums[name] = self._accumulator(work)
        self._sums[name].add(reference, quantized, (batch, call))

    def _accumulator(self, work: Work) -> StatisticsAccumulator:
        view, name = work.target.view, work.target.name
        columns = view.columns(work.target.shape)
        if columns > WIDE:
            size = columns**2 * 4 * (1 + work.both) >> 20
            self.note(name, f"moments of {columns:,} inputs take {size:,} MiB")
        analog = _matrix(self.network, work)
        return StatisticsAccumulator(view.groups, columns, analog, name)

    def _quota(self, module: str, columns: int, batch: int, call: int, rows: int | None) -> int:
        """Return the number of rows to use of one call, for weights of so many columns."""
        calls = max(call + 1, self._calls.get(module, 1))
        budget = row_budget(columns, rows or self.rows)
        return share_of(budget, batch * calls + call, self.batches * calls)

    def unrepeatable(self, module: str) -> None:
        """Note that the float network's inputs of ``module`` cannot be used."""
        for work in self.work[module]:
            self.note(work.target.name, _UNREPEATABLE)
            if work.target.name in self._sums:  # what was observed before this was known
                self._sums[work.target.name].forget_reference()

    @autocast_off()
    def complete(self, module: str) -> None:
        """Quantize every weight of ``module`` from what was observed."""
        results: dict[str, Quantized] = {}
        changes: dict[str, str] = {}
        for work in self.work[module]:
            name = work.target.name
            self._judge(name)
            if work.target.view.inner is not None:
                self._replay(work)
            statistics = self._collected(work)
            if statistics is None:
                continue
            columns = work.target.view.columns(work.target.shape)
            if statistics.rows * _FEW < columns:
                self.note(name, f"few data: {statistics.rows} rows for {columns} inputs")
            bias, why = self._bias_of(work.target)
            result = self._quantized(work, statistics, has_bias=bool(bias))
            results[name] = result
            if bias:
                changes |= self._change_bias(bias, work, result)
            elif result.bias_shift is not None:
                self.note(name, f"bias not corrected: {why}")
        self._kept.pop(module, None)
        if self.keep is None:
            self.results |= results
            return
        names = [work.target.name for work in self.work[module]]
        notes = {name: self.notes[name] for name in names if name in self.notes}
        unpaired = tuple(name for name in names if name in self.unpaired)
        self.keep(module, Completed(results, changes, notes, unpaired))

    def _quantized(self, work: Work, statistics: Statistics, *, has_bias: bool) -> Quantized:
        """Quantize a weight at one rank, or its neurons at several; write it at all of them."""
        parts = self._parts(work)
        made = self.ranks.dealt(
            f"quantizing {work.target.name}",
            [
                partial(
                    _quantize,
                    self.network,
                    work,
                    statistics,
                    self.seed,
                    has_bias=has_bias,
                    neurons=part,
                )
                for part in parts
            ],
            [1.0] * len(parts),
        )
        result = join_neurons(made)
        if self.write is not None:
            write_result(self.network, work, result, self.write)
        return result.on_cpu()

    def _parts(self, work: Work) -> list[slice | None]:
        """Return the neurons of each rank, if a layer is worth sharing; else None, for all."""
        view, shape = work.target.view, work.target.shape
        rows, columns = view.rows, view.columns(shape)
        small = rows * columns**2 < _WORTH_SHARING
        if self.ranks.count == 1 or not work.apart or view.groups > 1 or small:
            return [None]
        count = min(self.ranks.count, rows)
        ends = [rows * k // count for k in range(count + 1)]
        return [slice(a, b) for a, b in pairwise(ends)]

    def _judge(self, name: str) -> None:
        """Come to a verdict, with all ranks, on whether the rows of a weight can be paired."""
        pairing = self._pairings.pop(name, None)
        if pairing is not None and name not in self.unpaired:
            self._unpair(name, pairing.judge(moved_before=bool(self.unpaired)))
        note = self.notes.get(name, "") if name in self.unpaired else None
        told = [one for one in self.ranks.exchange(f"pairs of {name}", note) if one is not None]
        if told and name not in self.unpaired:
            self.unpaired.add(name)
            self.notes[name] = told[0]
            if name in self._sums:
                self._sums[name].forget_reference()

    def _collected(self, work: Work) -> Statistics | None:
        """Return the statistics of what all ranks observed of a weight; None if it is nothing."""
        name = work.target.name
        sums = self._sums.pop(name, None)
        rows = self.ranks.exchange(f"rows of {name}", 0 if sums is None else sums.rows)
        if sums is None and not any(rows):
            return None
        if sums is None:
            sums = self._accumulator(work)
            if name in self.unpaired:
                sums.forget_reference()
        sums.join(self.ranks)
        return sums.finish()

    def _bias_of(self, target: Target) -> tuple[str, str]:
        """Return the parameter that takes a layer's mean error, or "" and why there is none."""
        if target.name in self.fixed_bias:
            return "", "the layer does not add it to its output"
        return bias_of(self.network, target, self.sinks.get(target.module, ""))

    def _change_bias(self, bias: str, work: Work, result: Quantized) -> dict[str, str]:
        """Change a bias as the result of its layer says; return what happened to it, if anything.

        Where differences from another network are coded, it is not rounded, which saves nothing.
        """
        parameter = self.network.get_parameter(bias)
        told = [shift_bias(parameter, result)]
        if work.base is None:
            told.append(round_bias(parameter, result))
        return {bias: "; ".join(filter(None, told))} if any(told) else {}

    def note(self, name: str, text: str) -> None:
        """Add a note for the user about a weight."""
        self.notes[name] = "; ".join(filter(None, [self.notes.get(name), text]))


def share_of(budget: int, place: int, places: int) -> int:
    """Return the share of a budget for one of its places; all shares sum to the budget."""
    return budget * (place + 1) // places - budget * place // places


def _checked(rows: Tensor, target: Target, columns: int, batch: int) -> Tensor:
    if rows.shape[-1] != columns:
        raise CalibrationError(
            f"layer {target.module!r}, batch {batch}: inputs have {rows.shape[-1]} features, but "
            f"its weight has {columns} columns. Check the shape of the calibration batches."
        )
    return rows


def _matrix(network: nn.Module, work: Work) -> Tensor:
    """Return the matrix to quantize, (groups, neurons, columns) float32."""
    weight, view = network.get_parameter(work.target.name).detach(), work.target.view
    matrix = view.matrix(weight).to(torch.float32).contiguous()
    if work.base is not None:
        return matrix - view.matrix(work.base.to(weight.device)).to(torch.float32)
    # Products round differently in memory of another alignment, which mapped checkpoints have.
    return matrix.clone() if matrix.data_ptr() % _ALIGNED else matrix


@autocast_off()
@torch.no_grad()
def _quantize(
    network: nn.Module,
    work: Work,
    statistics: Statistics | None,
    seed: int,
    *,
    has_bias: bool,
    neurons: slice | None = None,
) -> Quantized:
    target = work.target
    matrix = _matrix(network, work)
    parameter = network.get_parameter(target.name)
    limit = min(torch.finfo(parameter.dtype).max, FLOAT32_MAX)
    layer = LayerMatrix(
        target.name,
        matrix,
        statistics,
        layer_seed(seed, target.name),
        limit,
        work.sensitivity,
        prod(target.view.kernel),
        target.view.kernel[-1] if prod(target.view.kernel) > 1 else 0,
        has_bias,
        None if work.levels is None else work.levels.to(matrix.device),
    )
    return work.encode(layer if neurons is None else layer.neurons(neurons))
