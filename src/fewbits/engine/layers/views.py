"""Layer kinds: adapters that present weights as batches of matrices (groups, rows, columns).

A row is a neuron: all the weights of one output. Methods see matrices and rows of inputs, never a
module; only this file and :mod:`rows` know what a convolution is. To add a layer kind, register an
adapter here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod

import numpy as np
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from ...coded import Layout
from ...errors import CalibrationError
from ...registry import Registry
from ..network.batches import Call
from .recurrent import Recurrence, recurrence_of
from .rows import Rows, conv_rows, conv_transpose_rows, feature_rows, stacked_rows

__all__ = ["KINDS", "LayerKind", "WeightView", "kind_of"]


@dataclass(frozen=True)
class WeightView:
    """One weight of one module as matrices.

    Attributes:
        parameter: its name within the module.
        rows: number of neurons in all groups.
        groups: number of matrices with different inputs.
        layout: how the matrix becomes the tensor; None if a reshape is enough.
        inputs: function from a call to its rows; None if a forward pre-hook cannot see them.
        inner: what runs the module again to get its rows, if the module computes them itself; None
            if it does not, or if that cannot be done.
        blind: why neither can be had.
        bias: parameter of the module to which an output shift is added; "" if there is none.
        outputs: function from the module's output to (rows of inputs, neurons), in their order;
            None if the output has another form.
        kernel: sizes of a convolution's kernel, the last axes of a neuron's columns; each input
            channel has as many columns as there are taps.
        lookup: function from a call to the rows that it looks up, int64 (samples, positions); None
            if the weight multiplies its inputs.
    """

    parameter: str
    rows: int
    groups: int = 1
    layout: Layout | None = None
    inputs: Callable[[Call], Rows] | None = None
    inner: Recurrence | None = None
    blind: str = ""
    bias: str = ""
    outputs: Callable[[Tensor], Tensor] | None = None
    kernel: tuple[int, ...] = ()
    lookup: Callable[[Call], Tensor] | None = None

    @property
    def in_sight(self) -> bool:
        """Whether the rows can be had, from a call or by running the module again."""
        return self.inputs is not None or self.inner is not None

    def matrix(self, tensor: Tensor) -> Tensor:
        """Return the weight as (groups, rows / groups, columns)."""
        if self.layout is not None:
            split, axes = self.layout.split, self.layout.axes
            inverse = [int(axis) for axis in np.argsort(axes)]
            tensor = tensor.reshape([split[axis] for axis in axes]).permute(inverse)
        columns = self.columns(tuple(tensor.shape))
        return tensor.reshape(self.groups, self.rows // self.groups, columns)

    def columns(self, shape: tuple[int, ...]) -> int:
        """Return the number of inputs of each neuron, for a weight of ``shape``."""
        return prod(shape) // self.rows if self.rows else 0

    def tensor(self, matrix: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Return the weight in its own ``shape``; the inverse of :meth:`matrix`."""
        if self.layout is not None:
            matrix = matrix.reshape(self.layout.split).permute(self.layout.axes)
        return matrix.reshape(shape)


@dataclass(frozen=True)
class LayerKind:
    """An adapter: the modules it supports, the views of one, and a summary of what can be used."""

    takes: Callable[[nn.Module], bool]
    views: Callable[[nn.Module], list[WeightView]]
    summary: str


KINDS: Registry[LayerKind] = Registry("layer kind")


def kind_of(module: nn.Module) -> LayerKind | None:
    """Return the adapter that supports ``module``, or None."""
    return next((kind for _, kind in KINDS.items() if kind.takes(module)), None)


def _argument(call: Call, position: int, name: str) -> Tensor:
    """Return an input by position or name; the only tensor of a call is found regardless."""
    value = call.args[position] if len(call.args) > position else call.kwargs.get(name)
    if value is None:
        given = [x for x in (*call.args, *call.kwargs.values()) if isinstance(x, Tensor)]
        if len(given) != 1 or position:
            raise CalibrationError(
                f"a layer is called without its input {name!r} (argument {position}); it gets "
                f"{len(call.args)} arguments and {', '.join(call.kwargs) or 'no keywords'}. Keep "
                "the layer with a rule of the recipe, or use a method without inputs: nearest."
            )
        value = given[0]
    return value.data if isinstance(value, PackedSequence) else value


def _features(position: int = 0, name: str = "input") -> Callable[[Call], Rows]:
    return lambda call: feature_rows(_argument(call, position, name))


def _last(output: Tensor) -> Tensor:
    return output.reshape(-1, output.shape[-1])


def _channels(space: int) -> Callable[[Tensor], Tensor]:
    """Return a function that moves the channels of (batch, channels, *space) to the last axis."""
    return lambda output: _last(output.movedim(-space - 1, -1))


def _is(*types: type[nn.Module]) -> Callable[[nn.Module], bool]:
    return lambda module: isinstance(module, types)


def _shape(module: nn.Module, name: str) -> tuple[int, ...]:
    value = getattr(module, name)
    return tuple(value.shape)


def _linear(module: nn.Module) -> list[WeightView]:
    rows = _shape(module, "weight")[0]
    return [WeightView("weight", rows, inputs=_features(), bias="bias", outputs=_last)]


def _conv(module: nn.Module) -> list[WeightView]:
    shape, groups = _shape(module, "weight"), int(getattr(module, "groups"))  # noqa: B009
    kernel, outputs = shape[2:], _channels(len(shape) - 2)

    def inputs(call: Call) -> Rows:
        return conv_rows(_argument(call, 0, "input"), module)

    return [
        WeightView(
            "weight", shape[0], groups, None, inputs, bias="bias", outputs=outputs, kernel=kernel
        )
    ]


def _conv_transpose(module: nn.Module) -> list[WeightView]:
    shape, groups = _shape(module, "weight"), int(getattr(module, "groups"))  # noqa: B009
    split = (groups, shape[1], shape[0] // groups, *shape[2:])
    layout = Layout(split, (0, 2, 1, *range(3, len(split))))

    def inputs(call: Call) -> Rows:
        return conv_transpose_rows(_argument(call, 0, "input"), module)

    rows, kernel, outputs = groups * shape[1], shape[2:], _channels(len(shape) - 2)
    return [
        WeightView(
            "weight", rows, groups, layout, inputs, bias="bias", outputs=outputs, kernel=kernel
        )
    ]


def _transposed_linear(module: nn.Module) -> list[WeightView]:
    columns, rows = _shape(module, "weight")
    layout = Layout((rows, columns), (1, 0))
    inputs = _features(0, "x")
    return [WeightView("weight", rows, layout=layout, inputs=inputs, bias="bias", outputs=_last)]


def _embedding(module: nn.Module) -> list[WeightView]:
    rows = _shape(module, "weight")[0]
    bags = isinstance(module, nn.EmbeddingBag)  # their outputs are sums over several rows
    lookup = None if bags else lambda call: _argument(call, 0, "input")
    return [WeightView("weight", rows, blind="a lookup multiplies no inputs", lookup=lookup)]


def _recurrent(module: nn.Module) -> list[WeightView]:
    """Return the views of the weights, in the order in which each gets the inputs it will have."""
    structure, views = recurrence_of(module), []
    cell = isinstance(module, nn.RNNCellBase)
    for name, weight in module.named_parameters(recurse=False):
        if not name.startswith("weight"):
            continue
        rows, bias = weight.shape[0], name.replace("weight", "bias")
        bias = bias if bias in module._parameters else ""
        if name.startswith("weight_ih") and (cell or name.startswith("weight_ih_l0")):
            views.append(WeightView(name, rows, inputs=_features(), bias=bias))
        elif name == "weight_hh" and cell:
            views.append(WeightView(name, rows, inputs=_hidden(module), bias=bias))
        elif structure is not None and name in structure.parameters:
            views.append(WeightView(name, rows, inner=structure, bias=bias))
        else:
            reason = "its inputs are computed inside the recurrent layer, out of sight"
            views.append(WeightView(name, rows, blind=reason))
    return views


def _hidden(module: nn.Module) -> Callable[[Call], Rows]:
    """Return a function from a call of a cell to its hidden states, zero if it gets none."""
    size = int(getattr(module, "hidden_size"))  # noqa: B009

    def inputs(call: Call) -> Rows:
        state = call.args[1] if len(call.args) > 1 else call.kwargs.get("hx")
        if state is None:
            x = _argument(call, 0, "input")
            return feature_rows(x.new_zeros(*x.shape[:-1], size))
        return feature_rows(state[0] if isinstance(state, tuple) else state)

    return inputs


def _attention(module: nn.Module) -> list[WeightView]:
    names = ("query", "key", "value")
    views = []
    if getattr(module, "in_proj_weight", None) is not None:

        def packed(call: Call) -> Rows:
            parts = [feature_rows(_argument(call, i, name)) for i, name in enumerate(names)]
            return stacked_rows(parts)

        rows = _shape(module, "in_proj_weight")[0]
        views.append(WeightView("in_proj_weight", rows, 3, inputs=packed, bias="in_proj_bias"))
    else:
        for i, name in enumerate(names):
            parameter = f"{name[0]}_proj_weight"
            rows = _shape(module, parameter)[0]
            views.append(WeightView(parameter, rows, inputs=_features(i, name)))
    reason = "the attention function uses it without calling it, so its inputs are out of sight"
    out = module.get_submodule("out_proj")
    views.append(WeightView("out_proj.weight", _shape(out, "weight")[0], blind=reason))
    return views


def _experts(module: nn.Module) -> list[WeightView]:
    views = []
    for name, weight in module.named_parameters(recurse=False):
        if weight.dim() == 3 and name.endswith("_proj"):
            count, rows = weight.shape[:2]
            reason = "tokens are sent to the experts inside the layer, out of sight"
            views.append(WeightView(name, count * rows, count, blind=reason))
    return views


def _holds_experts(module: nn.Module) -> bool:
    return type(module).__name__.endswith("Experts") and bool(_experts(module))


def _is_transposed_linear(module: nn.Module) -> bool:
    kind = type(module)  # recognized by name, so that transformers stays an optional dependency
    return kind.__name__ == "Conv1D" and kind.__module__ == "transformers.pytorch_utils"


KINDS.register("attention")(
    LayerKind(
        _is(nn.MultiheadAttention),
        _attention,
        "MultiheadAttention: query, key and value projections (packed or not) follow their inputs; "
        "the output projection falls back",
    )
)
KINDS.register("linear")(LayerKind(_is(nn.Linear), _linear, "Linear: any leading axes"))
KINDS.register("conv")(
    LayerKind(
        _is(nn.Conv1d, nn.Conv2d, nn.Conv3d),
        _conv,
        "Conv1d to Conv3d: every stride, dilation, padding, padding mode and grouping",
    )
)
KINDS.register("conv_transpose")(
    LayerKind(
        _is(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
        _conv_transpose,
        "ConvTranspose1d to ConvTranspose3d: as convolutions over the spread input",
    )
)
KINDS.register("embedding")(
    LayerKind(
        _is(nn.Embedding, nn.EmbeddingBag),
        _embedding,
        "Embedding: RDOQ codes rows by how they are used; one that is tied to an output layer "
        "follows the inputs of that layer; else, and EmbeddingBag, falls back",
    )
)
KINDS.register("recurrent")(
    LayerKind(
        _is(nn.RNNBase, nn.RNNCellBase),
        _recurrent,
        "RNN, LSTM, GRU, cells: all weights follow the sequences, layer by layer, in both "
        "directions",
    )
)
KINDS.register("experts")(
    LayerKind(
        _holds_experts,
        _experts,
        "experts of transformers in one tensor (Mixtral, Qwen, DeepSeek): fall back; experts that "
        "are layers of their own follow the tokens they get",
    )
)
KINDS.register("transposed_linear")(
    LayerKind(
        _is_transposed_linear,
        _transposed_linear,
        "Conv1D of transformers (GPT-2): a linear layer stored transposed",
    )
)
