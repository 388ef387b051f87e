"""What ``sensitivity`` and ``sweep`` do once their options are known."""

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
from ...engine.network.copying import copied
from ...errors import BudgetError, ConfigError
from ...evaluation.metrics import evaluate as judge
from ...files.atomic_write import write
from ...files.json_values import read_text
from ...methods import METHODS, from_settings
from ...progress import Progress, ProgressEvent
from ...recipe.recipe import Recipe
from ...report import rate_chart, render
from ...search import Sweep
from ...sources import load_data, load_model, with_selection
from ..console.outcome import check_output, note
from ..options.budget import Wanted
from ..options.choice import choose, refuse_training
from .compress import Job, doubts, selecting

__all__ = ["Curve", "layer_rows"]

Source: TypeAlias = tuple[str, Path | None, str]
Asked: TypeAlias = Mapping[str, Sequence[Any]]
Point: TypeAlias = tuple[Recipe, int | None]


def layer_rows(
    source: Source,
    quantizer: tuple[str, Sequence[int]],
    *,
    selection: str | None,
    samples: int,
    batch_size: int,
    seed: int,
    effort: str,
    progress: Progress,
) -> tuple[list[LayerHarm], Coverage]:
    """Return the harm of every layer alone, and how much of the network they are together.

    ``source`` is (model, checkpoint, data).
    """
    name, widths = quantizer
    refuse_training(name)
    network, data = load_model(*source[:2]), load_data(source[2])
    for text in doubts(network):
        note(f"note: {text}")
    score = None
    if selection is not None:
        _, split = selecting(data, selection)
        batches = split.batches(batch_size, None, None)

        def score(model: Any) -> float:
            return judge(model, batches).accuracy

        data = with_selection(data) if selection == data.source else data
    chosen = from_settings({"method": name})
    rows = measure_layers(
        network.module,
        chosen,
        data.batches("calibration", batch_size, samples, seed),
        widths,
        evaluate=score,
        effort=effort,
        seed=seed,
        progress=progress,
    )
    return rows, api.plan(network.module, chosen).coverage


class Curve:
    """Points of accuracy over bytes, of one network on one data set."""

    def __init__(self, source: Source, asked: Asked, split: str, *, batch_size: int) -> None:
        self.source, self.split, self.batch_size = source, split, batch_size
        self.points = _points(asked)
        self.job = Job(*source, self.points[0][0], batch_size=batch_size)
        for text in self.job.notes:
            note(f"note: {text}")
        if split == "test":
            self.job.check_can_judge()
        elif self.job.data is not None:
            self.job.data = with_selection(self.job.data)

    def measure(self, out: Path, means: Mapping[str, Any], progress: Progress) -> Sweep:
        """Measure what the file ``out`` lacks, and write it after every point."""
        sweep = self._begun(out, means)
        progress(ProgressEvent("points", 0, len(self.points)))
        for place, (recipe, size) in enumerate(self.points):
            settings, goal = _asked_of(recipe, size)
            if not sweep.has(settings, goal):
                point = self._point(recipe, size, means, progress)
                sweep.points.append({"settings": settings, "goal": goal, **point})
                write(sweep.to_json().encode(), out)
            progress(ProgressEvent("points", place + 1, len(self.points), recipe_name(recipe)))
        return sweep

    def draw(self, found: Mapping[str, Any], path: Path) -> None:
        """Write the plot."""
        write(render(rate_chart(found), path), path)

    def _begun(self, out: Path, means: Mapping[str, Any]) -> Sweep:
        check_output(out, force=True)
        weights = fingerprint(self.job.model.module.state_dict().items())
        key = {"model": self.source[0], "weights": weights, "data": self.source[2]}
        key |= {"split": self.split, **means}
        if not out.exists():
            return Sweep(key, self._float())
        try:
            return Sweep.from_json(read_text(out), key)
        except ConfigError as error:
            raise ConfigError(f"sweep {str(out)!r}: {error}") from None

    def _point(
        self, recipe: Recipe, size: int | None, means: Mapping[str, Any], progress: Progress
    ) -> dict[str, Any]:
        self.job.recipe = recipe
        self.job.wanted = Wanted(target_bytes=None if size is None else str(size))
        began = time.perf_counter()
        try:
            coded = self.job.compress(
                means["samples"], means["seed"], progress, effort=means["effort"]
            )
        except BudgetError as error:
            return {"bytes": None, "missed": str(error)}
        report = coded.size_report()
        seconds = time.perf_counter() - began
        found: dict[str, Any] = {
            "bytes": report.file_bytes,
            "bits_per_weight": report.bits_per_weight,
        }
        found["quantized"] = coded.coverage.to_dict()
        found["score"] = self._score(coded)
        if coded.trace is not None and coded.trace.best is not None:
            found["slope"] = coded.trace.best.slope
        return {**found, "seconds": seconds}

    def _score(self, coded: CodedModel | None) -> float:
        network = self.job.model.module
        if coded is not None:
            network = coded.load_into(copied(network))
        data = self.job.data or load_data(self.source[2])
        return judge(network, data.batches(self.split, self.batch_size)).accuracy

    def _float(self) -> dict[str, Any]:
        tied = self.job.plan()["aliases"]
        state = self.job.model.module.state_dict()
        tensors = [tensor for name, tensor in state.items() if name not in tied]
        sizes = (t.numel() * (4 if t.is_floating_point() else t.element_size()) for t in tensors)
        return {"bytes": sum(sizes), "score": self._score(None)}


def recipe_name(recipe: Recipe) -> str:
    """Return the method of a recipe that has one."""
    method = recipe.rules[0].method
    return "keep" if method is None else method.name


def _asked_of(recipe: Recipe, size: int | None) -> tuple[dict[str, Any], dict[str, Any] | None]:
    settings = recipe.rules[0].to_dict()
    del settings["match"]
    if size is None:
        return settings, None
    settings.pop("slope", None)
    return settings, {"kind": "target_bytes", "limit": float(size)}


def _points(asked: Asked) -> list[Point]:
    """Return a recipe, and a size to search for or None, for each point.

    Raises:
        typer.BadParameter: a method for which no point is asked.
    """
    points: list[Point] = []
    for name in asked["methods"]:
        refuse_training(name)
        before, kind = len(points), METHODS[name]
        if "bits" in {entry.name for entry in fields(kind)}:  # type: ignore[arg-type]
            points += [(choose(name, width, (), None, True), None) for width in asked["bits"]]
        if kind.capabilities.has_slope:
            slopes = [f"slope={slope!r}" for slope in asked["slopes"]]
            points += [(choose(name, None, (slope,), None, True), None) for slope in slopes]
            points += [(choose(name, None, (), None, True), size) for size in asked["sizes"]]
        if len(points) == before:
            needs = "--slopes or --target-bytes" if kind.capabilities.has_slope else "--bits"
            raise typer.BadParameter(f"no point is asked of {name}: add {needs}.")
    return points
