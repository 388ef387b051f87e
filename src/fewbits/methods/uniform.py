"""Shared by all methods on a uniform grid: settings and their checks, the step, the result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

import torch
from torch import Tensor

from ..engine.layers.layer import LayerMatrix, Levels, QuantizedMatrix, blocks_of
from ..engine.layers.statistics import Statistics, check_float64
from ..errors import CalibrationError, ConfigError, ModelError, is_number, require, shorten
from ..ops.levels.codebook import lloyd_max
from ..ops.levels.grid import (
    FLOAT32_MAX,
    Grid,
    all_finite,
    best_clip,
    mean_max_radius,
    median_radius,
    percentile_radius,
    row_radius,
    steps,
)
from ..ops.rounding.projections import CodebookProjection, HardThreshold
from .base import PostTrainingMethod
from .levels import CODEBOOK, check_codebook, codebook_of
from .path_inputs import expand_step

__all__ = [
    "DATA_FREE_RADII",
    "Alphabet",
    "FeedbackMethod",
    "Spacing",
    "UniformMethod",
    "check_number",
    "check_one_of",
    "check_passes",
    "check_switch",
    "checked_statistics",
    "checked_weight",
    "is_pruned",
    "is_whole",
    "result",
]

_OF_LAYERS = ("median", "mean_max")  # radii that all neurons of a layer share
DATA_FREE_RADII = ("absmax", "mse", *_OF_LAYERS)

_MSE_CLIPS = tuple(k / 40 for k in range(8, 41))
_BLOCK = 1 << 20  # weights whose rounding errors are computed at once
_SMALLEST_GROUP = 8  # below, steps take about as many bytes as indices of 4 bits
_MOST_PASSES = 100
_PRUNED = 0.25  # share of zeros in a layer that is pruned; one that is not has hardly any
_LLOYD_SAMPLE = 1 << 20  # weights that decide the levels of a layer
_GROUP_LEVELS = 1 << 15  # levels times steps of 8 bits are then exact in float32

Alphabet: TypeAlias = Grid | HardThreshold | CodebookProjection
"""The levels of a layer, in units of its steps."""


def is_whole(value: object) -> bool:
    """Return whether ``value`` is an integer; booleans do not count."""
    return isinstance(value, int) and not isinstance(value, bool)


def check_one_of(name: str, value: object, allowed: tuple[str, ...]) -> None:
    """Raise a ConfigError unless ``value`` is one of ``allowed``."""
    words = " or ".join(map(repr, allowed))
    require(isinstance(value, str) and value in allowed, name, words, value)


def check_switch(name: str, value: object) -> None:
    """Raise a ConfigError unless ``value`` is True or False."""
    require(isinstance(value, bool), name, "True or False", value)


def check_passes(value: object) -> None:
    """Raise a ConfigError unless ``value`` is a number of refinement passes."""
    sound = is_whole(value) and 0 <= value <= _MOST_PASSES  # type: ignore[operator]
    require(sound, "passes", f"an integer from 0 to {_MOST_PASSES}", value)


def check_number(name: str, value: object, low: float, *, inclusive: bool = False) -> None:
    """Raise a ConfigError unless ``value`` is a finite number > ``low`` (or >= if inclusive)."""
    good = is_number(value) and (value > low or (inclusive and value == low))
    require(good, name, f"a number {'>=' if inclusive else '>'} {low}", value)


@dataclass(frozen=True, kw_only=True)
class UniformMethod(PostTrainingMethod):
    """Settings of the methods that round to a uniform grid.

    Attributes:
        bits: bits per index, 2 to 8. There are ``2**bits - 1`` levels, symmetric around zero, so 2
            bits are ternary.
        levels: number of levels; overrides ``bits``. An even number gives a symmetric grid without
            zero. Or a codebook: "lloyd", the ``2**bits`` levels of least squared error for the
            weights of a layer, relative to their steps, one of them zero; or a tuple of 2 to 256
            increasing values, which all layers share, without steps.
        radius: how to choose the largest level: "absmax" (the largest magnitude), "mse" (the least
            rounding error), "median" (the median magnitude of the layer; Lybrand and Saab 2021) or
            "mean_max" (the mean over rows of their largest magnitude; Zhang, Zhou and Saab 2023).
            The last two are usually combined with ``clip`` and give one step per layer.
        clip: factor by which the radius is multiplied.
        per: how many steps a layer has: "channel" (one per output neuron) or "tensor" (just one).
        group: columns (inputs of a neuron) that share a step, with ``per="channel"``: adjacent
            ones, such as the 32 or 128 of runtimes for 4 bits. Where it does not divide a layer's
            columns, and with None, a neuron has one step.
    """

    radii: ClassVar[tuple[str, ...]] = DATA_FREE_RADII

    bits: int = 4
    levels: int | str | tuple[float, ...] | None = None
    radius: str = "absmax"
    clip: float = 1.0
    per: str = "channel"
    group: int | None = None

    def __post_init__(self) -> None:
        good_bits = is_whole(self.bits) and 2 <= self.bits <= 8
        expected = "an integer from 2 to 8 (ternary: levels=3, or bits=2)"
        require(good_bits, "bits", expected, self.bits)
        if self.levels is not None:
            self._check_levels()
        check_one_of("radius", self.radius, self.radii)
        check_number("clip", self.clip, 0)
        check_one_of("per", self.per, ("channel", "tensor"))
        if self.group is not None:
            self._check_group()

    def _check_levels(self) -> None:
        given: object = self.levels
        if isinstance(given, list):  # as read from YAML or JSON
            given = tuple(given)
            object.__setattr__(self, "levels", given)
        kind = f"None, an integer from 2 to 2**24, 'lloyd', or a tuple of {CODEBOOK}"
        if isinstance(given, tuple):
            check_codebook(given, kind)
            stepless = self.group is None
            require(stepless, "group", "None with given levels, which have no steps", self.group)
        elif given != "lloyd":
            good = isinstance(given, int) and is_whole(given) and 2 <= given <= 2**24
            require(good, "levels", kind, given)
        if self.has_codebook:
            plain = self.radius == "absmax" and self.clip == 1
            found = (self.radius, self.clip)
            require(plain, "radius and clip", "left alone with a codebook", found)

    def _check_group(self) -> None:
        group = self.group
        good = isinstance(group, int) and is_whole(group) and group >= _SMALLEST_GROUP
        require(good, "group", f"None or an integer from {_SMALLEST_GROUP} up", group)
        require(self.per == "channel", "per", "'channel' with a group", self.per)
        one_step = self.radius in _OF_LAYERS
        require(
            not one_step, "radius", "'absmax' or another rule for rows with a group", self.radius
        )
        few = not isinstance(self.levels, int) or self.levels <= _GROUP_LEVELS
        require(few, "levels", f"at most {_GROUP_LEVELS} with a group", self.levels)

    def remark(self, columns: int) -> str:
        """Return what to say about a weight of so many columns: that the group does not fit."""
        if self.group is None or columns % self.group == 0:
            return ""
        return f"one step per channel: its {columns} columns are no multiple of group={self.group}"

    def spacing(self, layer: LayerMatrix, percentile: float = 100.0) -> Spacing:
        """Return the range of the grid on a layer, by these settings."""
        columns = layer.weight.shape[2]
        group = self.group if self.group and columns and columns % self.group == 0 else 0
        return Spacing(self.grid, self.radius, self.clip, self.per, percentile, layer.limit, group)

    @property
    def absorbs_scales(self) -> bool:
        """Whether each neuron has its own step."""
        return self.per == "channel" and not isinstance(self.levels, tuple)

    @property
    def rounds_neurons_apart(self) -> bool:
        """Whether each neuron has its own step, and no levels that fit the layer."""
        own = self.per == "channel" and self.radius not in _OF_LAYERS
        return isinstance(self.levels, tuple) or (own and not self.has_codebook)

    @property
    def fallback_settings(self) -> Mapping[str, Any]:
        """Settings for the same levels."""
        same = {"bits": self.bits, "levels": self.levels, "per": self.per, "group": self.group}
        return same | {"radius": "absmax"} if self.has_codebook else same

    @property
    def grid(self) -> Grid:
        """The grid of ``levels`` levels, or of ``2**bits - 1`` levels including zero."""
        return Grid(self.levels if isinstance(self.levels, int) else 2**self.bits - 1)

    @property
    def has_codebook(self) -> bool:
        """Whether levels are not evenly spaced."""
        return isinstance(self.levels, str | tuple)

    def refuses(self, levels: Levels) -> str:
        """Return which setting asks for other levels than the ones given; "" for none."""
        return f"levels={shorten(self.levels)} asks for others" if self.has_codebook else ""

    def alphabet(self, layer: LayerMatrix, step: Tensor) -> Alphabet:
        """Return the levels of a layer, in units of its ``step`` by :meth:`step_of`.

        Raises:
            ConfigError: a given level is beyond the dtype of the weight.
        """
        if layer.levels is not None:
            return CodebookProjection(layer.levels.values)
        if self.levels is None or isinstance(self.levels, int):
            return self.grid
        if isinstance(self.levels, str):
            weight = layer.weight
            units = (weight / expand_step(step, weight)).flatten()
            stride = max(1, units.numel() // _LLOYD_SAMPLE)
            levels = lloyd_max(units[::stride], 2**self.bits)
            top = self.grid.top
            return CodebookProjection(torch.unique_consecutive(levels.clamp(-top, top)))
        return CodebookProjection(codebook_of(self.levels, layer))

    def step_of(self, layer: LayerMatrix, percentile: float = 100.0) -> Tensor:
        """Return the step of a layer by these settings; 1 with given levels.

        Levels that are given for the layer have a step of their own.
        """
        if layer.levels is not None:
            return layer.levels.step
        if isinstance(self.levels, tuple):
            return torch.ones(1, device=layer.weight.device)
        return self.spacing(layer, percentile).step(layer.weight)


@dataclass(frozen=True, kw_only=True)
class FeedbackMethod(UniformMethod):
    """Settings of the methods that feed rounding errors back along the columns of a layer.

    Attributes:
        order: order in which columns are quantized: "descending" (by the energy of their inputs) or
            "natural".
        bias_correction: whether to correct the bias by the mean output error on the calibration
            data.
    """

    order: str = "descending"
    bias_correction: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_one_of("order", self.order, ("descending", "natural"))
        check_switch("bias_correction", self.bias_correction)

    def pruned(self, layer: LayerMatrix) -> Tensor | None:
        """Return which weights of a pruned layer are zero and stay so; None if it is not pruned.

        A layer is taken for pruned if at least a quarter of its weights are zero, and levels that
        have no zero leave nothing so.
        """
        if not self._has_zero(layer):
            return None
        return layer.weight == 0 if is_pruned(layer.weight) else None

    def _has_zero(self, layer: LayerMatrix) -> bool:
        """Return whether zero is one of the levels."""
        if layer.levels is not None:
            return bool((layer.levels.values == 0).any())
        if isinstance(self.levels, tuple):
            return 0 in self.levels
        return self.has_codebook or self.grid.offset == 0

    def statistics_of(self, layer: LayerMatrix) -> Statistics:
        """Return the statistics of the inputs; about the mean if a bias takes errors of the mean.

        Raises:
            ConfigError: there are none.
            ModelError: the device has no float64.
        """
        statistics = checked_statistics(layer, self.name)
        if self.bias_correction and layer.has_bias:
            return statistics.about_mean(layer.weight)
        return statistics


def is_pruned(weight: Tensor) -> bool:
    """Return whether at least a quarter of the weights are zero."""
    return weight.numel() - int(torch.count_nonzero(weight)) >= _PRUNED * max(1, weight.numel())


def checked_weight(layer: LayerMatrix) -> Tensor:
    """Return the weight, or raise a ModelError if it holds NaN or infinity."""
    if not all_finite(layer.weight):
        raise ModelError(
            f"layer {layer.name!r}: the weight holds NaN or infinity. Fix the network, or keep "
            "this tensor in float."
        )
    return layer.weight


def checked_statistics(layer: LayerMatrix, method: str) -> Statistics:
    """Return the statistics of the inputs.

    Raises:
        ConfigError: there are none.
        ModelError: the device has no float64.
    """
    check_float64(layer.weight.device, f"layer {layer.name!r}")
    if layer.statistics is None:
        raise ConfigError(
            f"layer {layer.name!r}: the method {method!r} needs calibration inputs and got none. "
            "Pass calibration data, or use a method that needs none, such as 'nearest'."
        )
    return layer.statistics


@dataclass(frozen=True)
class Spacing:
    """The range of a grid: the rule for its radius, a factor, and one step per row or layer.

    A row is a neuron, or with a group that many adjacent columns of one.

    Attributes:
        grid: the levels.
        radius: "absmax", "percentile", "mse" or "objective" (a search over multiples of absmax), by
            row or by layer; "median" or "mean_max", which are per layer by definition.
        clip: factor by which the radius is multiplied.
        per: "channel" or "tensor".
        percentile: percentile of ``|w|``, for the rule of that name.
        limit: bound that no level may exceed.
        group: columns that share a step, a divisor of their number; 0: all of a neuron's.
    """

    grid: Grid
    radius: str
    clip: float
    per: str
    percentile: float = 100.0
    limit: float = FLOAT32_MAX
    group: int = 0

    def step(self, weight: Tensor, factor: Tensor | float = 1.0) -> Tensor:
        """Return the (1,) or (rows,) float32 step; ``factor`` multiplies the radius.

        A factor is a number, or has the form of a step, or is one for each neuron.
        """
        rows = self._rows(weight)
        limit = row_radius(rows)
        if isinstance(factor, Tensor) and 1 < factor.numel() < len(rows):
            factor = factor.repeat_interleave(len(rows) // factor.numel())
        if self.radius == "percentile":
            radius = percentile_radius(rows, self.percentile)
        elif self.radius == "median":
            radius = median_radius(rows)[None]
        elif self.radius == "mean_max":
            radius = mean_max_radius(weight)[None]
        elif self.radius == "mse":
            radius = limit * self._rounding_clip(rows, limit)
        else:
            radius = limit
        least = self._nonzero(limit, len(weight) * weight.shape[1])
        return steps(radius * (self.clip * factor), least * self.clip, self.grid, self.limit)

    def _rows(self, weight: Tensor) -> Tensor:
        layerwise = self.per == "tensor" or self.radius in _OF_LAYERS
        if layerwise:
            return weight.reshape(1, -1)
        return weight.reshape(-1, self.group) if self.group else weight.flatten(0, 1)

    def _nonzero(self, limit: Tensor, neurons: int) -> Tensor:
        """Return radii where blocks of zeros have the smallest of their neuron.

        Feedback moves zeros too, and on a grid without a zero they become half a step.
        """
        if not (self.group and neurons):
            return limit
        blocks = limit.reshape(neurons, -1)
        least = torch.where(blocks > 0, blocks, torch.inf).amin(1, keepdim=True)
        least = torch.where(least.isfinite(), least, 0)
        return torch.where(blocks > 0, blocks, least).flatten()

    def _rounding_clip(self, rows: Tensor, limit: Tensor) -> Tensor:
        count = max(1, min(len(rows), rows.numel() // _BLOCK))
        parts = zip(rows.tensor_split(count), limit.tensor_split(count), strict=True)
        return torch.cat([self._clip_of(*part) for part in parts])

    def _clip_of(self, rows: Tensor, limit: Tensor) -> Tensor:
        # Scaled by a power of two near the size of each row, so that no square leaves float32.
        size = torch.frexp(limit.clamp_min(torch.finfo(limit.dtype).tiny)).exponent[:, None]

        def error(clip: float) -> Tensor:
            step = steps(limit * clip, limit, self.grid, self.limit)[:, None]
            units = rows / step
            levels = units.clone()
            self.grid.project_(levels)
            return (levels.sub_(units) * torch.ldexp(step, -size)).square_().sum(1)

        return best_clip(error, _MSE_CLIPS)[0]


def result(
    layer: LayerMatrix,
    levels: Tensor,
    step: Tensor,
    alphabet: Alphabet,
    *,
    info: dict[str, float],
    bias_shift: Tensor | None = None,
) -> QuantizedMatrix:
    """Convert ``levels`` (groups, neurons, columns) in grid units to integers, in their memory.

    ``levels`` must not be used afterwards. Adds to ``info``: "levels" (their number), "zeros"
    (fraction of zero weights) and "saturation" (fraction on the outermost levels).
    """
    if not all_finite(levels):
        raise CalibrationError(
            f"layer {layer.name!r}: its inputs are too large or too small for float32 arithmetic. "
            "Scale the calibration data, or keep this layer in float."
        )
    codebook = None if isinstance(alphabet, Grid) else alphabet.levels.to(step)
    count = alphabet.levels if isinstance(alphabet, Grid) else len(alphabet.levels)
    low, high = alphabet.ends
    total = max(1, levels.numel())
    outermost = sum(
        int(torch.count_nonzero(part >= high) + torch.count_nonzero(part <= low))
        for part in torch.split(levels.flatten(), _BLOCK)
    )
    facts = {
        "levels": float(count),
        "zeros": (levels.numel() - int(torch.count_nonzero(levels))) / total,
        "saturation": outermost / total,
        **info,
    }
    blocks, columns = blocks_of(step, levels.shape), levels.shape[2]
    group = columns // blocks if blocks > 1 else 0
    index = _index_of(levels, alphabet)
    given = layer.levels
    if given is None and codebook is not None:
        given = Levels(codebook, step, group=group)
    if given is not None:
        return given.matrix(index, bias_shift=bias_shift, info=facts)
    offset = alphabet.offset if isinstance(alphabet, Grid) else 0.0
    return QuantizedMatrix(index, step, offset, bias_shift=bias_shift, info=facts, group=group)


def _index_of(levels: Tensor, alphabet: Alphabet) -> Tensor:
    """Return the int32 indices of ``levels``, in their memory if they are contiguous float32."""
    if levels.dtype != torch.float32 or not levels.is_contiguous():
        return alphabet.index(levels)
    index = levels.view(torch.int32)
    parts = (torch.split(x.flatten(), _BLOCK) for x in (levels, index))
    for values, places in zip(*parts, strict=True):
        places.copy_(alphabet.index(values))
    return index
