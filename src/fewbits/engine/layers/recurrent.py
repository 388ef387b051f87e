"""Recurrent layers from the inside: the inputs of every weight of an RNN, LSTM or GRU.

A stacked layer k multiplies three things: ``weight_ih_lk`` the outputs of the layer below (of both
directions), ``weight_hh_lk`` its own previous output, and ``weight_hr_lk`` (an LSTM with
projections) its hidden state before the projection. None of them passes a hook, but all follow from
the inputs of the call and the weights. So the inputs are kept, and the layers run again one by one,
with the weights that they have by then: a row that :class:`Replay` returns is what the weight would
be multiplied with if the network ran as it is now.

Sequences are kept packed, as in :class:`torch.nn.utils.rnn.PackedSequence`: the rows of one step
follow those of the step before it, and sequences that end are the last ones.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from ...errors import CalibrationError
from ..network.batches import Call
from .rows import Rows, feature_rows

__all__ = ["Recurrence", "Replay", "recurrence_of"]

_KINDS: Mapping[str, Callable[..., nn.RNNBase]] = {
    "LSTM": nn.LSTM,
    "GRU": nn.GRU,
    "RNN_TANH": partial(nn.RNN, nonlinearity="tanh"),
    "RNN_RELU": partial(nn.RNN, nonlinearity="relu"),
}
_WEIGHT = re.compile(r"weight_(ih|hh|hr)_l(\d+)(_reverse)?")


@dataclass(frozen=True, eq=False)
class Sequences:
    """Sequences of different lengths, the longest first.

    Attributes:
        data: (rows, features), step by step.
        sizes: (steps,) int64, number of sequences that reach each step; never increasing.
        initial: states before the first step, each (layers * directions, sequences, size): of an
            LSTM two, of others one; none if they are zero.
    """

    data: Tensor
    sizes: Tensor
    initial: tuple[Tensor, ...] = ()

    @property
    def starts(self) -> Tensor:
        """(steps,) int64: the first row of each step."""
        return self.sizes.cumsum(0) - self.sizes

    def drawn(self, rows: int, seed: int) -> Sequences:
        """Return a copy of whole sequences, drawn until they have at least so many rows."""
        if len(self.data) <= rows:
            return replace(self, data=self.data.clone())
        count = int(self.sizes[0])
        order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
        lengths = (self.sizes[:, None] > order).sum(0).cumsum(0)
        picks = order[: int((lengths < rows).sum()) + 1].sort().values
        reached = picks < self.sizes[:, None]
        where = (self.starts[:, None] + picks)[reached].to(self.data.device)
        sizes = reached.sum(1)
        initial = tuple(state[:, picks.to(state.device)] for state in self.initial)
        return Sequences(self.data[where], sizes[sizes > 0], initial)

    def previous(self, *, backwards: bool) -> Tensor:
        """Return the row (rows,) that precedes each in its sequence, among all that can.

        These are the initial states, one per sequence, followed by the rows themselves.
        """
        count, starts = int(self.sizes[0]), self.starts
        steps = torch.arange(len(self.sizes)).repeat_interleave(self.sizes)
        place = torch.arange(len(steps)) - starts[steps]
        if backwards:
            after = torch.cat([self.sizes[1:], self.sizes.new_zeros(1)])
            first, before = place >= after[steps], (steps + 1).clamp_max(len(starts) - 1)
        else:
            first, before = steps == 0, (steps - 1).clamp_min(0)
        return torch.where(first, place, count + starts[before] + place)


@dataclass(frozen=True)
class Recurrence:
    """The structure of a recurrent module, without its weights.

    Attributes:
        mode: "LSTM", "GRU", "RNN_TANH" or "RNN_RELU".
        layers: number of stacked layers.
        hidden: size of the hidden state.
        projected: size of the output of an LSTM with projections, else 0.
        directions: 2 if bidirectional, else 1.
        batch_first: whether the axes of a padded batch are (sequences, steps, features).
        bias: whether there are biases.
    """

    mode: str
    layers: int
    hidden: int
    projected: int
    directions: int
    batch_first: bool
    bias: bool

    @property
    def size(self) -> int:
        """Features of the output of one direction."""
        return self.projected or self.hidden

    @property
    def endings(self) -> tuple[str, ...]:
        """What the names of the weights of each direction end in."""
        return ("", "_reverse")[: self.directions]

    @property
    def roles(self) -> tuple[str, ...]:
        """What the names of the weights and biases of a layer and direction begin with."""
        biases = ("bias_ih", "bias_hh") if self.bias else ()
        return ("weight_ih", "weight_hh", *biases, *(("weight_hr",) if self.projected else ()))

    @property
    def parameters(self) -> list[str]:
        """Names of all weights and biases."""
        layers = range(self.layers)
        return [f"{r}_l{k}{e}" for k in layers for e in self.endings for r in self.roles]

    def keep(self, call: Call, rows: int, seed: int) -> Replay:
        """Keep whole sequences of a call, drawn until they have at least so many rows.

        Raises:
            CalibrationError: the call has no input that is a tensor or a packed sequence.
        """
        return Replay(self, self._sequences(call).drawn(rows, seed))

    def weights(self, module: nn.Module, layer: int, ending: str) -> dict[str, Tensor]:
        """Return the weights and biases of one layer and direction of ``module``, by role."""
        names = {role: f"{role}_l{layer}{ending}" for role in self.roles}
        return {role: _wide(module.get_parameter(name)) for role, name in names.items()}

    def single(self, module: nn.Module, layer: int) -> nn.RNNBase:
        """Return one stacked layer of ``module`` as a module of its own."""
        values = {e: self.weights(module, layer, e) for e in self.endings}
        options: dict[str, Any] = {"bias": self.bias, "bidirectional": self.directions > 1}
        options |= {"proj_size": self.projected} if self.projected else {}
        features = values[""]["weight_ih"].shape[1]
        single = _KINDS[self.mode](features, self.hidden, device="meta", **options)
        for ending, named in values.items():
            for role, value in named.items():
                setattr(single, f"{role}_l0{ending}", nn.Parameter(value, requires_grad=False))
        single.flatten_parameters()  # a copy on GPUs, which warn otherwise
        return single

    def _sequences(self, call: Call) -> Sequences:
        x = call.args[0] if call.args else call.kwargs.get("input")
        state = call.args[1] if len(call.args) > 1 else call.kwargs.get("hx")
        initial = (state,) if isinstance(state, Tensor) else tuple(state or ())
        if isinstance(x, PackedSequence):
            if x.sorted_indices is not None:
                initial = tuple(h.index_select(1, x.sorted_indices) for h in initial)
            return Sequences(x.data, x.batch_sizes, initial)
        if not isinstance(x, Tensor):
            raise CalibrationError(
                "a recurrent layer is called without its input: argument 0, or 'input', is a "
                f"{type(x).__name__}. Keep the layer with a rule of the recipe, or use a method "
                "without inputs: nearest."
            )
        if x.dim() == 2:
            x, initial = x.unsqueeze(1), tuple(h.unsqueeze(1) for h in initial)
        elif self.batch_first:
            x = x.transpose(0, 1)
        sizes = torch.full((x.shape[0],), x.shape[1])
        return Sequences(x.reshape(-1, x.shape[2]), sizes, initial)


class Replay:
    """Sequences of one call of a recurrent module, run layer by layer through its weights.

    Ask for weights layer by layer: those of the layers below are then final.
    """

    def __init__(self, recurrence: Recurrence, sequences: Sequences) -> None:
        self._recurrence = recurrence
        self._sequences = sequences  # the inputs of the stacked layer `_layer`
        self._layer = 0

    @property
    def inputs(self) -> Rows:
        """The rows that the first layer sees."""
        return feature_rows(self._sequences.data)

    def again(self) -> Replay:
        """Return a replay of the same inputs, for another network."""
        return Replay(self._recurrence, self._sequences)

    def same_lengths(self, other: Replay) -> bool:
        """Return whether rows at one position are of the same step and sequence in both."""
        return torch.equal(self._sequences.sizes, other._sequences.sizes)

    @torch.no_grad()
    def rows(self, module: nn.Module, parameter: str) -> Rows:
        """Return the inputs of a weight, in at least 32 bits, with the weights of ``module``.

        Cost: one run of the stacked layer that has the weight, and of those below it once.
        """
        kind, layer, reverse = _parsed(parameter)
        while self._layer < layer:
            outputs = self._run(module, self._layer)
            self._sequences = replace(self._sequences, data=outputs)
            self._layer += 1
        if kind == "ih":
            return feature_rows(self._sequences.data)
        before = self._before(module, layer, reverse)
        return feature_rows(
            before if kind == "hh" else self._unprojected(module, layer, reverse, before)
        )

    def _state(self, number: int, layer: int, reverse: str) -> Tensor:
        """Return an initial state (sequences, size) of one layer and direction."""
        if self._sequences.initial:
            place = layer * self._recurrence.directions + bool(reverse)
            return _wide(self._sequences.initial[number][place])
        size = (self._recurrence.hidden if number else 0) or self._recurrence.size
        return _wide(self._sequences.data).new_zeros(int(self._sequences.sizes[0]), size)

    def _run(self, module: nn.Module, layer: int) -> Tensor:
        """Return the outputs of a stacked layer, (rows, directions * size)."""
        data, sizes = _wide(self._sequences.data), self._sequences.sizes
        initial = tuple(
            torch.stack([self._state(i, layer, reverse) for reverse in self._recurrence.endings])
            for i in range(2 if self._recurrence.mode == "LSTM" else 1)
        )
        single = self._recurrence.single(module, layer)
        state = initial if len(initial) > 1 else initial[0]
        padded = bool((sizes == sizes[0]).all())  # runs several times as fast
        x = data.reshape(len(sizes), int(sizes[0]), -1) if padded else PackedSequence(data, sizes)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "LSTM with projections is not supported with oneDNN")
            outputs = single(x, state)[0]
        flat: Tensor = outputs.reshape(len(data), -1) if padded else outputs.data
        return flat

    def _before(self, module: nn.Module, layer: int, reverse: str) -> Tensor:
        """Return the previous outputs (rows, size) of one direction."""
        size = self._recurrence.size
        outputs = self._run(module, layer)
        own = outputs[:, size:] if reverse else outputs[:, :size]
        known = torch.cat([self._state(0, layer, reverse), own])
        return known[self._sequences.previous(backwards=bool(reverse)).to(known.device)]

    def _unprojected(self, module: nn.Module, layer: int, reverse: str, before: Tensor) -> Tensor:
        """Return hidden states (rows, hidden) before the projection, from the previous outputs."""
        weights = self._recurrence.weights(module, layer, reverse)
        gates = (
            _wide(self._sequences.data) @ weights["weight_ih"].mT + before @ weights["weight_hh"].mT
        )
        if self._recurrence.bias:
            gates = gates + weights["bias_ih"] + weights["bias_hh"]
        keep_in, forget, fresh, out = gates.chunk(4, 1)
        added, forget = keep_in.sigmoid() * fresh.tanh(), forget.sigmoid()
        sizes, starts = self._sequences.sizes.tolist(), self._sequences.starts.tolist()
        count = sizes[0]
        cells = torch.cat([self._state(1, layer, reverse), torch.empty_like(added)])
        previous = self._sequences.previous(backwards=bool(reverse)).to(cells.device)
        steps = list(zip(starts, sizes, strict=True))
        for start, size in reversed(steps) if reverse else steps:
            rows = slice(start, start + size)
            cells[count + start : count + start + size] = (
                forget[rows] * cells[previous[rows]] + added[rows]
            )
        return out.sigmoid() * cells[count:].tanh()


def recurrence_of(module: nn.Module) -> Recurrence | None:
    """Return the structure of an RNN, LSTM or GRU; None if its weights cannot be run one by one."""
    if not isinstance(module, nn.RNNBase) or module.mode not in _KINDS:
        return None
    known = Recurrence(
        module.mode,
        module.num_layers,
        module.hidden_size,
        module.proj_size,
        2 if module.bidirectional else 1,
        module.batch_first,
        module.bias,
    )
    # Weight norm and parametrizations compute some of them from other tensors.
    return known if all(name in module._parameters for name in known.parameters) else None


def _parsed(parameter: str) -> tuple[str, int, str]:
    """Split the name of a weight into its role, its layer, and the ending of its direction."""
    match = _WEIGHT.fullmatch(parameter)
    if match is None:
        raise ValueError(f"{parameter!r} is no weight of a recurrent layer")
    return match[1], int(match[2]), match[3] or ""


def _wide(tensor: Tensor) -> Tensor:
    return tensor.detach().to(torch.promote_types(tensor.dtype, torch.float32))
