"""The work of ``fewbits sensitivity`` and ``fewbits sweep``."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeAlias

import typer

from ... import api
from ...coded import Coverage
from ...compression.coded_model import CodedModel
from ...compression.fingerprint import fingerprint
from ...compression.sensitivity import LayerHarm
from ...compression.sensitivity import sensitivity as measure_layers
from ...engine.network.batches import Forward, as_forward
from ...engine.network.copying import copied
from ...errors import BudgetError, ConfigError
from ...evaluation.metrics import evaluate as evaluate_network
from ...files.atomic_write import write
from ...files.json_values import read_text
from ...methods import METHODS, from_settings
from ...progress import Progress, ProgressEvent
from ...recipe.recipe import Recipe
from ...report import rate_chart, render
from ...search import Sweep
from ...sources import load_data, load_model, with_selection
from ..console.outcome import check_output, note
from ..options.budget import BudgetOptions
from ..options.choice import choose_recipe, refuse_training
from .compress import Job, home_of, untrained_notes, with_selection_split

__all__ = ["Curve", "layer_rows"]

Source: TypeAlias = tuple[str, Path | None, str]
SweepRequest: TypeAlias = Mapping[str, Sequence[Any]]
Point: TypeAlias = tuple[Recipe, int | None]


def layer_rows(
    source: Source,
    quantizer: tuple[str, Sequence[int]],
    *,
    selection: str | None,
    samples: int,
    batch_size: int | None,
    seed: int,
    effort: str,
    forward: Forward | None = None,
    progress: Progress,
) -> tuple[list[LayerHarm], Coverage]:
    """Quantize each layer alone; return the rows and the share of the network that they cover.

    ``source`` is (model, checkpoint, data), ``quantizer`` is (method, widths).
    """
    name, widths = quantizer
    refuse_training(name)
    network, home = load_model(*source[:2]), home_of(*source[:2])
    data = load_data(source[2], home)
    for text in untrained_notes(network):
        note(f"note: {text}")
    score = None
    if selection is not None:
        _, split = with_selection_split(data, selection, home)
        batches = split.batches(batch_size, None, None)

        def score(model: Any) -> float:
            return evaluate_network(model, batches, as_forward(forward)).accuracy

        data = with_selection(data) if selection == data.source else data
    chosen = from_settings({"method": name})
    rows = measure_layers(
        network.module,
        chosen,
        data.batches("calibration", batch_size, samples, seed),
        widths,
        forward,
        evaluate=score,
        effort=effort,
        seed=seed,
        progress=progress,
    )
    return rows, api.plan(network.module, chosen).coverage


class Curve:
    """Accuracy over bytes of one network on one data set, point by point."""

    def __init__(
        self, source: Source, request: SweepRequest, split: str, *, batch_size: int | None
    ) -> None:
        self.source, self.split, self.batch_size = source, split, batch_size
        self.points = _points(request)
        self.job = Job(*source, self.points[0][0], batch_size=batch_size)
        for text in self.job.notes:
            note(f"note: {text}")
        if split == "test":
            self.job.check_can_evaluate()
        elif self.job.data is not None:
            self.job.data = self.job.calibration = with_selection(self.job.data)

    def measure(self, out: Path, options: Mapping[str, Any], progress: Progress) -> Sweep:
        """Measure the points missing from the file ``out``, which is written after each of them."""
        sweep = self._open_sweep(out, options)
        progress(ProgressEvent("points", 0, len(self.points)))
        for place, (recipe, size) in enumerate(self.points):
            settings, goal = _settings_and_goal(recipe, size)
            if not sweep.has(settings, goal):
                point = self._point(recipe, size, options, progress)
                sweep.points.append({"settings": settings, "goal": goal, **point})
                write(sweep.to_json().encode(), out)
            progress(ProgressEvent("points", place + 1, len(self.points), recipe_name(recipe)))
        return sweep

    def draw(self, points: Mapping[str, Any], path: Path) -> None:
        """Write the plot."""
        write(render(rate_chart(points), path), path)

    def _open_sweep(self, out: Path, options: Mapping[str, Any]) -> Sweep:
        check_output(out, force=True)
        weights = fingerprint(self.job.model.module.state_dict().items())
        key = {"model": self.source[0], "weights": weights, "data": self.source[2]}
        key |= {"split": self.split, **options}
        if not out.exists():
            return Sweep(key, self._float())
        try:
            return Sweep.from_json(read_text(out), key)
        except ConfigError as error:
            raise ConfigError(f"sweep {str(out)!r}: {error}") from None

    def _point(
        self, recipe: Recipe, size: int | None, options: Mapping[str, Any], progress: Progress
    ) -> dict[str, Any]:
        self.job.recipe = recipe
        self.job.budget = BudgetOptions(target_bytes=None if size is None else str(size))
        started = time.perf_counter()
        try:
            coded = self.job.compress(
                options["samples"], options["seed"], progress, effort=options["effort"]
            )
        except BudgetError as error:
            return {"bytes": None, "missed": str(error)}
        report = coded.size_report()
        seconds = time.perf_counter() - started
        facts: dict[str, Any] = {
            "bytes": report.file_bytes,
            "bits_per_weight": report.bits_per_weight,
        }
        facts["quantized"] = coded.coverage.to_dict()
        facts["score"] = self._score(coded)
        if coded.trace is not None and coded.trace.best is not None:
            facts["slope"] = coded.trace.best.slope
        return {**facts, "seconds": seconds}

    def _score(self, coded: CodedModel | None) -> float:
        network = self.job.model.module
        if coded is not None:
            network = coded.load_into(copied(network))
        data = self.job.data or load_data(self.source[2], self.job.home)
        return evaluate_network(network, data.batches(self.split, self.batch_size)).accuracy

    def _float(self) -> dict[str, Any]:
        tied = self.job.plan()["aliases"]
        state = self.job.model.module.state_dict()
        tensors = [tensor for name, tensor in state.items() if name not in tied]
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        return {"bytes": size, "score": self._score(None), "dtype": self.job.model.dtype}


def recipe_name(recipe: Recipe) -> str:
    """Return the name of the method of the recipe's first rule."""
    method = recipe.rules[0].method
    return "keep" if method is None else method.name


def _settings_and_goal(
    recipe: Recipe, size: int | None
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    settings = recipe.rules[0].to_dict()
    del settings["match"]
    if size is None:
        return settings, None
    settings.pop("slope", None)
    return settings, {"kind": "target_bytes", "limit": float(size)}


def _points(request: SweepRequest) -> list[Point]:
    """Return the recipe of each point, with the size to search for if there is one.

    Raises:
        typer.BadParameter: the options give no point for a method.
    """
    points: list[Point] = []
    for name in request["methods"]:
        refuse_training(name)
        before, kind = len(points), METHODS[name]
        if "bits" in {entry.name for entry in fields(kind)}:  # type: ignore[arg-type]
            points += [
                (choose_recipe(name, width, (), None, True), None) for width in request["bits"]
            ]
        if kind.capabilities.has_slope:
            slopes = [f"slope={slope!r}" for slope in request["slopes"]]
            points += [(choose_recipe(name, None, (slope,), None, True), None) for slope in slopes]
            points += [
                (choose_recipe(name, None, (), None, True), size) for size in request["sizes"]
            ]
        if len(points) == before:
            needs = "--slopes or --target-bytes" if kind.capabilities.has_slope else "--bits"
            raise typer.BadParameter(f"nothing to measure for {name}: add {needs}.")
    return points
