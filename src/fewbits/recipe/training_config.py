"""The ``train:`` section of a recipe: how to train, and how to choose the epoch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from ..errors import ConfigError, did_you_mean, is_number, require, shorten
from ..methods import (
    TrainingMethod,
    from_settings,
    is_method,
    to_settings,
    training_methods,
    trains,
)
from ..methods.schedule import Ramp

__all__ = ["Training"]

_AUGMENT = ("flip", "crop")
_NORMS = ("absorbed", "live")
_OPTIMIZERS = ("sgd", "adamw")


@dataclass(frozen=True, kw_only=True)
class Training:
    """Settings of training. In a recipe, the settings of ``method`` go into the same mapping.

    Attributes:
        method: the training method. Leave it at None if the rules name one; otherwise the rules
            compress first, and this method trains from there.
        epochs: number of passes over the training data.
        batch_size: samples per step, over all processes.
        accumulate: micro-batches per step and process; more of them take less memory.
        optimizer: the optimizer: "sgd" (with Nesterov momentum) or "adamw".
        learning_rate: peak learning rate; it then falls to zero along half a cosine.
        momentum: momentum of "sgd", or the first beta of "adamw".
        weight_decay: weight decay, applied to weights of two or more dimensions.
        warm_up: share of the training during which the learning rate rises.
        clip: largest norm of the gradients; larger ones are scaled down. None for no clipping.
        relative_clip: largest norm of the gradient of each weight tensor and each gain, as a share
            of the norm of the tensor (adaptive gradient clipping), so that none moves far whatever
            the scale of its inputs; 0 for no limit.
        distil: weight in the loss of matching the float network's outputs, in [0, 1]. At 1, labels
            are not needed.
        temperature: softmax temperature of distillation.
        augment: augmentations of training images: "flip" (left to right), "crop" (random shifts),
            or both; none by default.
        padding: largest shift of "crop" in pixels; None for an eighth of the shorter side.
        prune: share of the weights to prune, smallest magnitudes first: a number, which applies
            from the start, or a ramp.
        vector_bits: bits for biases and scales, which are then quantized too; None stores them in
            ``raw_dtype``.
        norms: what happens to BatchNorm layers that an earlier stage absorbed: "absorbed" keeps
            them so; "live" trains them again, starting from the statistics of the first 1,024
            training samples.
        sort: sort hidden neurons by their number of nonzero weights at the end. The network
            computes the same function and the file is some percent smaller, but neurons change
            places.
        hold_out: share of the training samples held out to evaluate epochs on (5,000 at most), if
            the data has no selection split; 0 keeps the last epoch.
        select_from: share of the training after which epochs may be chosen.
        max_drop: choose the epoch with the lowest rate whose score drops by at most this much,
            instead of the one with the best score.
    """

    method: TrainingMethod | None = None
    epochs: int = 10
    batch_size: int = 128
    accumulate: int = 1
    optimizer: str = "sgd"
    learning_rate: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 0.0
    warm_up: float = 0.0
    clip: float | None = None
    relative_clip: float = 0.1
    distil: float = 0.0
    temperature: float = 4.0
    augment: tuple[str, ...] = ()
    padding: int | None = None
    prune: float | Ramp = 0.0
    vector_bits: int | None = None
    norms: str = "absorbed"
    sort: bool = False
    hold_out: float | None = None
    select_from: float = 0.8
    max_drop: float | None = None

    def __post_init__(self) -> None:
        method = self.method
        valid = method is None or (is_method(method) and trains(method))
        expected = f"a method that trains ({', '.join(training_methods())}), or None"
        require(valid, "method", expected, method)
        for name in ("epochs", "batch_size", "accumulate"):
            _check_whole(name, getattr(self, name), 1)
        for name in ("padding", "vector_bits"):
            if getattr(self, name) is not None:
                _check_whole(name, getattr(self, name), 0)
        require(self.optimizer in _OPTIMIZERS, "optimizer", f"one of {_OPTIMIZERS}", self.optimizer)
        require(self.norms in _NORMS, "norms", f"one of {_NORMS}", self.norms)
        require(isinstance(self.sort, bool), "sort", "true or false", self.sort)
        _check_number("learning_rate", self.learning_rate, 0, math.inf, above=True)
        _check_number("temperature", self.temperature, 0, math.inf, above=True)
        _check_number("weight_decay", self.weight_decay, 0, math.inf)
        _check_number("momentum", self.momentum, 0, 1, below=True)
        _check_number("warm_up", self.warm_up, 0, 1, below=True)
        _check_number("distil", self.distil, 0, 1)
        _check_number("select_from", self.select_from, 0, 1)
        if self.clip is not None:
            _check_number("clip", self.clip, 0, math.inf, above=True)
        _check_number("relative_clip", self.relative_clip, 0, math.inf)
        if self.hold_out is not None:
            _check_number("hold_out", self.hold_out, 0, 1, below=True)
        if self.max_drop is not None:
            _check_number("max_drop", self.max_drop, 0, 1)
        object.__setattr__(self, "prune", Ramp.of(self.prune))
        listed = isinstance(self.augment, tuple) and all(a in _AUGMENT for a in self.augment)
        require(listed, "augment", f"a list of {', '.join(_AUGMENT)}", self.augment)

    @classmethod
    def of(cls, value: object) -> Training:
        """Return settings as they are, or build them from a mapping as in a recipe.

        Raises:
            ConfigError: neither of these, or an invalid setting.
        """
        return value if isinstance(value, Training) else cls.from_dict(value)

    @classmethod
    def from_dict(cls, data: Any) -> Training:
        """Build settings from plain values, as parsed from YAML.

        Other keys are settings of the method. Unknown keys raise an error.

        Raises:
            ConfigError: an invalid setting; the message names the key.
        """
        if not isinstance(data, Mapping):
            raise ConfigError(
                f"'train' must be a mapping of settings. Got {shorten(data)} instead."
            )
        own = {name: data[name] for name in loop_settings() if name in data}
        rest = {key: value for key, value in data.items() if key not in own}
        if "method" not in rest and rest:
            key = str(next(iter(rest)))
            raise ConfigError(
                f"unknown key {shorten(key)} in 'train'. Valid keys: "
                f"{', '.join(loop_settings())}; with 'method' ({', '.join(training_methods())}) "
                "also the settings of the method." + did_you_mean(key, loop_settings())
            )
        if isinstance(own.get("augment"), list):
            own["augment"] = tuple(own["augment"])
        try:
            method = from_settings(rest) if rest else None
            return cls(method=method, **own)  # type: ignore[arg-type]  # checked there
        except ConfigError as error:
            raise ConfigError(f"'train': {error}") from None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that :meth:`from_dict` accepts: epochs, and all but the defaults."""
        data: dict[str, Any] = {} if self.method is None else dict(to_settings(self.method))
        for entry in fields(self):
            value = getattr(self, entry.name)
            if entry.name != "method" and (entry.name == "epochs" or value != entry.default):
                plain = value.to_dict() if isinstance(value, Ramp) else value
                data[entry.name] = list(plain) if isinstance(plain, tuple) else plain
        return data


def loop_settings() -> list[str]:
    """Return the names of the settings of training, without ``method``."""
    return [entry.name for entry in fields(Training) if entry.name != "method"]


def _check_whole(name: str, value: object, least: int) -> None:
    whole = isinstance(value, int) and not isinstance(value, bool) and value >= least
    require(whole, name, f"an integer >= {least}", value)


def _check_number(
    name: str, value: Any, least: float, most: float, *, above: bool = False, below: bool = False
) -> None:
    inside = is_number(value) and least <= value <= most
    good = inside and not (above and value == least) and not (below and value == most)
    opening, closing = "(" if above else "[", ")" if below or most == math.inf else "]"
    require(good, name, f"a number in {opening}{least:g}, {most:g}{closing}", value)
