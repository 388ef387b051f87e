"""The points of a sweep: which there are, and how one is measured, here or by a worker."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import typer

from ... import __version__
from ...compression.coded_model import CodedModel
from ...compression.storage.fingerprint import fingerprint
from ...engine.network.copying import copied
from ...engine.network.threads import thread_count
from ...errors import BudgetError, ConfigError
from ...evaluation.metrics import evaluate as evaluate_network
from ...methods import METHODS
from ...progress import Progress, silent
from ...recipe.recipe import Recipe
from ...sources import load_data, with_selection
from ..options.budget import BudgetOptions
from ..options.choice import choose_recipe, refuse_training
from .compress import Job

__all__ = ["Bench", "Point", "Survey", "SweepRequest", "measure_elsewhere", "points_of"]

SweepRequest: TypeAlias = Mapping[str, Sequence[Any]]


@dataclass(frozen=True)
class Survey:
    """What all points of a sweep share, in plain values: this is what workers are sent.

    Attributes:
        model: source of the network.
        checkpoint: file or folder with its weights.
        data: source of the data.
        split: split to measure accuracy on.
        batch_size: samples per batch.
        samples: number of samples to calibrate on.
        seed: random seed.
        effort: coding effort.
        cpus: threads; None leaves their number as it is.
        weights: fingerprint of the weights; None if they need not be known ones.
        version: of fewbits.
    """

    model: str
    checkpoint: Path | None
    data: str
    split: str
    batch_size: int | None
    samples: int
    seed: int
    effort: str
    cpus: int | None = None
    weights: str | None = None
    version: str = __version__


@dataclass(frozen=True)
class Point:
    """One network to make: a recipe, and a budget to search for if there is one."""

    recipe: Recipe
    budget: BudgetOptions = field(default_factory=BudgetOptions)

    @property
    def settings(self) -> dict[str, Any]:
        """The method and its settings, as the file of a sweep has them."""
        settings = self.recipe.rules[0].to_dict()
        del settings["match"]
        if self.budget:
            sloped = METHODS[settings["method"]].capabilities.has_slope
            for varied in ("slope",) if sloped else ("levels", "bits"):
                settings.pop(varied, None)
        return settings

    @property
    def goal(self) -> dict[str, Any] | None:
        """The budget, as the file of a sweep has it."""
        known = {k: v for k, v in self.budget.settings().items() if v is not None}
        kinds = [kind for kind in ("target_bytes", "max_drop") if kind in known]
        return {"kind": kinds[0], "limit": float(known[kinds[0]])} if kinds else None


class Bench:
    """A network with its data, ready to measure points."""

    def __init__(self, survey: Survey, points: Sequence[Point]) -> None:
        """Load both; refuse data that do not allow what the points need."""
        self.survey = survey
        source = (survey.model, survey.checkpoint, survey.data)
        self.job = Job(*source, points[0].recipe, batch_size=survey.batch_size)
        if survey.split == "test":
            self.job.check_can_evaluate()
        for point in points:
            if point.budget.needs_evaluation:
                self.job.under(point.budget).check_can_evaluate()
                break
        if survey.split != "test" and self.job.data is not None:
            self.job.data = self.job.calibration = with_selection(self.job.data)

    @cached_property
    def weights(self) -> str:
        """Fingerprint of the network's weights."""
        return fingerprint(self.job.model.module.state_dict().items())

    def measure(self, point: Point, progress: Progress = silent) -> dict[str, Any]:
        """Compress, and return the figures; they say so if no file meets the budget."""
        job = self.job.under(point.budget) if point.budget else copy.copy(self.job)
        job.recipe = point.recipe
        known, started = self.survey, time.perf_counter()
        try:
            coded = job.compress(
                known.samples,
                known.seed,
                progress,
                effort=known.effort,
                threads=known.cpus or 0,
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
            best = coded.trace.best
            facts |= {"slope": best.slope} if best.levels is None else {"levels": best.levels}
        return {**facts, "seconds": seconds}

    def reference(self) -> dict[str, Any]:
        """Return bytes and score of the float network."""
        tied = self.job.plan()["aliases"]
        state = self.job.model.module.state_dict()
        tensors = [tensor for name, tensor in state.items() if name not in tied]
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        return {"bytes": size, "score": self._score(None), "dtype": self.job.model.dtype}

    def _score(self, coded: CodedModel | None) -> float:
        network = self.job.model.module
        if coded is not None:
            network = coded.load_into(copied(network))
        data = self.job.data or load_data(self.survey.data, self.job.home)
        batches = data.batches(self.survey.split, self.survey.batch_size)
        return evaluate_network(network, batches).accuracy


def measure_elsewhere(survey: Survey, point: Point) -> dict[str, Any]:
    """Measure a point in a worker process, which loads the network for its first one.

    Raises:
        ConfigError: the worker has another version of fewbits, or finds other weights.
    """
    if survey.version != __version__:
        raise ConfigError(
            f"the sweep was started by fewbits {survey.version}, but this worker has "
            f"{__version__}. Install the same version."
        )
    with thread_count(survey.cpus):
        return _bench(survey, point).measure(point)


_benches: dict[Survey, Bench] = {}


def _bench(survey: Survey, point: Point) -> Bench:
    """Return the bench of a sweep; a worker keeps that of the last one."""
    if survey not in _benches:
        _benches.clear()
        found = Bench(survey, [point])
        if found.weights != survey.weights:
            raise ConfigError(
                f"{survey.model!r} with the weights {str(survey.checkpoint)!r} is another network "
                "on this worker. The files must be the same on every machine."
            )
        _benches[survey] = found
    return _benches[survey]


def points_of(request: SweepRequest) -> list[Point]:
    """Return every point that is asked for, once.

    Raises:
        typer.BadParameter: the options give no point for a method.
    """
    points: list[Point] = []
    for name in request["methods"]:
        refuse_training(name)
        before, kind = len(points), METHODS[name]
        if "bits" in {entry.name for entry in fields(kind)}:  # type: ignore[arg-type]
            points += [Point(_recipe(name, width)) for width in request["bits"]]
        if kind.capabilities.has_slope:
            points += [Point(_recipe(name, slope=slope)) for slope in request["slopes"]]
        if kind.capabilities.has_slope or kind.capabilities.has_levels:
            budgets = [BudgetOptions(target_bytes=str(size)) for size in request["sizes"]]
            budgets += [BudgetOptions(max_drop=drop) for drop in request["drops"]]
            points += [Point(_recipe(name), budget) for budget in budgets]
        if len(points) == before:
            needs = "--bits"
            if kind.capabilities.has_slope:
                needs = "--slopes"
            if kind.capabilities.has_slope or kind.capabilities.has_levels:
                needs += " or --target-bytes or --max-drop"
            raise typer.BadParameter(f"nothing to measure for {name}: add {needs}.")
    return points


def _recipe(name: str, bits: int | None = None, slope: float | None = None) -> Recipe:
    settings = () if slope is None else (f"slope={slope!r}",)
    return choose_recipe(name, bits, settings, None, True)
