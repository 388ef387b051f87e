"""``fewbits.compress`` with a method that trains: the same request plus labelled data."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from ..compression.compress import Request, compress_network
from ..compression.result import CompressionResult
from ..engine.network.copying import copied
from ..errors import CalibrationError, ConfigError, shorten
from ..methods import trains
from ..recipe.recipe import Recipe
from ..sources import DataSource, StreamSplit
from .from_recipe import train

__all__ = ["compress_by_training"]

_SAMPLES = 1024  # training samples that calibrate an earlier compression stage


def compress_by_training(request: Request, data: Iterable[Any] | None) -> CompressionResult:
    """Compress a copy of the network as the recipe says, and train it on ``data``.

    The training begins at the start of the request or at an earlier stage, if there is either.

    Raises:
        ConfigError: no training data, data that can be iterated only once, or a budget.
        CalibrationError: the training data is empty.
    """
    recipe = request.recipe
    data = _check_data(request, data)
    source = data if isinstance(data, DataSource) else _source(data)
    start = request.start
    if recipe.first_stage is not None:
        start = compress_network(_first_stage(request, source, recipe.first_stage))
    result = train(
        copied(request.model),
        recipe,
        source,
        start=start,
        judge=request.budget["evaluate"],
        calibration=request.calibration,
        effort=request.effort,
        source=request.source,
        progress=request.progress,
    )
    if result.coded is None:
        raise ConfigError(
            "fewbits.compress trains in a single process. For several, run 'fewbits train' or "
            "fewbits.training.from_recipe.train under torchrun."
        )
    coded = replace(result.coded, history=result.fitted.history)
    return coded if request.metadata else coded.without_metadata()


def _check_data(request: Request, data: Iterable[Any] | None) -> Iterable[Any]:
    """Return the training data; raise if it is missing or an iterator, or if a budget is set."""
    recipe = request.recipe.training_stage or request.recipe
    method = next(rule.method for rule in recipe.rules if trains(rule.method))
    for name in ("time_budget", "trace"):
        if request.budget[name] is not None:
            raise ConfigError(
                f"{name}= belongs to a search for a budget, and the method {method.name!r} trains: "
                "leave it out. The length of a training is training={'epochs': ...}."
            )
    if request.forward is not None and request.recipe.first_stage is None:
        raise ConfigError(
            f"forward= calls the network on calibration batches; the method {method.name!r} trains "
            "it on batches of (inputs, labels). For other calls use fewbits.prepare in your own "
            "loop."
        )
    if request.goal is not None:
        raise ConfigError(
            f"a budget cannot be combined with the training method {method.name!r}: every "
            "evaluation would take a whole training. Compress to the budget without training, then "
            "train the result with fewbits.prepare(..., start=result)."
        )
    if data is None:
        raise ConfigError(
            f"the method {method.name!r} needs training data: pass train=, labelled data such as a "
            "DataLoader. Or use fewbits.prepare in your own loop, or the command 'fewbits train'."
        )
    if isinstance(data, (str, bytes, Mapping)) or not isinstance(data, (Iterable, DataSource)):
        raise ConfigError(
            "train= takes batches of (inputs, labels), such as a DataLoader or a list, or a data "
            f"source from fewbits.sources.load_data. Got {shorten(data)} instead."
        )
    if isinstance(data, Iterator):
        raise ConfigError(
            "train= is an iterator, which can only be read once, but training reads it in every "
            "epoch. Pass a DataLoader or a list of batches."
        )
    return data


def _source(batches: Iterable[Any]) -> DataSource:
    """Wrap the user's batches in a data source that only has a training split."""
    return DataSource("train=", train=StreamSplit(lambda: batches))


def _first_stage(request: Request, source: DataSource, recipe: Recipe) -> Request:
    """Return the request of the stage before the training, which judges no epochs."""
    budget = {**request.budget, "evaluate": None}
    return replace(request, recipe=recipe, calibration=_calibration(request, source), budget=budget)


def _calibration(request: Request, source: DataSource) -> Iterable[Any] | Tensor:
    """Return calibration data for an earlier compression stage: by default training samples."""
    if request.calibration is not None:
        return request.calibration
    batches = list(source.batches("train", limit=_SAMPLES, seed=request.recipe.seed))
    if not batches:
        raise CalibrationError("the training data is empty: it holds no batch.")
    return batches
