"""Meet a budget: compress at a few slopes or levels and keep the best file that fits."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..engine.network.copying import copied
from ..engine.network.distributed import ALONE, Ranks
from ..errors import ConfigError, require
from ..files.atomic_write import check_target, write
from ..files.json_values import read_text
from ..progress import Progress, ProgressEvent
from ..recipe.recipe import Recipe
from ..search import Goal, SlopeSearch, Trace, Trial, as_seconds
from .result import CompressionResult
from .storage.fingerprint import fingerprint, tensors_in, weights_of
from .varied import Varied, varied_in

__all__ = ["Budget", "Evaluate"]

Evaluate = Callable[[nn.Module], float]


@dataclass(frozen=True)
class Budget:
    """A goal, and settings of the search for it; see :func:`fewbits.compress`.

    ``ranks`` search together: the sizes, scores and times of the first decide, which alone encodes
    and writes the trace. ``others`` are fingerprints of other networks that the result depends on.
    """

    goal: Goal
    evaluate: Evaluate | None = None
    evaluations: int = 12
    time_budget: float | str | None = None
    trace: str | PathLike[str] | None = None
    effort: str = "balanced"
    threads: int = 0
    ranks: Ranks = ALONE
    others: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        whole = isinstance(self.evaluations, int) and not isinstance(self.evaluations, bool)
        require(whole and self.evaluations >= 1, "evaluations", "an integer >= 1", self.evaluations)
        _ = self._seconds  # parsed now, so that errors show before any work is done
        if self.evaluate is None and not self.goal.is_size:
            raise ConfigError(
                "max_drop needs evaluate=, a function that takes the network and returns its score "
                "on selection data (higher is better), such as accuracy in [0, 1]. Never use the "
                "data that results are reported on."
            )
        if self.evaluate is not None:
            require(callable(self.evaluate), "evaluate", "a function", self.evaluate)

    @property
    def _seconds(self) -> float | None:
        return None if self.time_budget is None else as_seconds(self.time_budget)

    def _clock(self) -> float:
        return self.ranks.from_first("time of the search", time.monotonic)

    def meet(
        self,
        model: nn.Module,
        recipe: Recipe,
        compress: Callable[[Recipe], CompressionResult],
        calibration: Sequence[Any] | None,
        *,
        settled: Callable[[Recipe], Recipe],
        progress: Progress,
        touch: Callable[[int], None],
    ) -> CompressionResult:
        """Search for slope or levels, and return the best network; ``compress`` runs a recipe.

        ``settled`` returns a recipe with the slopes that the network suggests. ``touch`` is called
        with the size of each weight before it is read.

        Raises:
            ConfigError: no method of the recipe has a slope or levels, or the trace is of another
                search.
            BudgetError: no evaluated network is within the budget.
        """
        varied = varied_in(recipe)
        metric = getattr(self.evaluate, "metric", "accuracy")
        others = [*([] if metric == "accuracy" else [metric]), *self.others]
        fixed = varied.at(recipe, 1.0)
        key = _key(model, fixed, calibration, others, effort=self.effort, touch=touch)
        trace = self.ranks.from_first("trace of the search", lambda: self._trace(key))
        run = _Run(self, model, lambda slope: compress(varied.at(recipe, slope)), varied)
        progress(ProgressEvent("search", len(trace.trials), self.evaluations))

        def record(trial: Trial | None) -> None:
            run.keep_only(trace.best)
            if self.trace is not None and self.ranks.first:
                write(trace.to_json().encode(), self.trace)
            if trial is not None:
                detail = f"{trial.setting}: {trial.bytes:,} bytes"
                detail += "" if trial.score is None else f", score {trial.score:.4f}"
                progress(ProgressEvent("search", len(trace.trials), self.evaluations, detail))

        if trace.reference is None and self.evaluate is not None:
            trace.reference = run.score(None)
        start = trace.trials[0].slope if trace.trials else varied.start(recipe, settled)
        limits = self.evaluations, self._seconds
        search = SlopeSearch(self.goal, start, trace, *limits, record, self._clock, varied.choose)
        best = search.run(run.evaluate)
        return run.result(best, trace)

    def _trace(self, key: str) -> Trace:
        """Load the trace to resume, or start a new one."""
        if self.trace is not None:
            check_target(self.trace)
        if self.trace is None or not Path(self.trace).exists():
            return Trace(self.goal.to_dict(), key)
        where = f"trace {fspath(self.trace)!r}"
        try:
            trace = Trace.from_json(read_text(self.trace))
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from None
        if dict(trace.goal) != self.goal.to_dict() or trace.key != key:
            other = "goal" if trace.key == key else "network, recipe, data, effort or metric"
            raise ConfigError(
                f"{where} belongs to a search with another {other}. Name another file, or remove "
                "this one."
            )
        unscored = any(trial.score is None for trial in trace.trials)
        if self.evaluate is not None and trace.trials and (unscored or trace.reference is None):
            raise ConfigError(f"{where} was recorded without evaluate=. Name another file.")
        return trace


class _Run:
    """The evaluations of one search; only the best network so far is held in memory."""

    def __init__(
        self,
        budget: Budget,
        model: nn.Module,
        compress: Callable[[float], CompressionResult],
        varied: Varied,
    ) -> None:
        self.budget, self.model, self.compress, self.varied = budget, model, compress, varied
        self.held: dict[float, CompressionResult] = {}

    def evaluate(self, slope: float) -> Trial:
        """Compress at a slope, encode and score."""
        started = time.perf_counter()
        coded = self._coded(slope)
        size, bits = self._size(coded)
        score = None if self.budget.evaluate is None else self.score(coded)
        seconds = time.perf_counter() - started
        trial = Trial(slope, size, bits, score, seconds, self.varied.levels(slope))
        return self.budget.ranks.exchange("trial of the search", trial)[0]

    def _coded(self, slope: float) -> CompressionResult:
        coded = self.compress(slope)
        self.held[slope] = coded
        return coded

    def _size(self, coded: CompressionResult) -> tuple[int, float]:
        """Return the bytes of the file and its bits per weight; one rank encodes it."""

        def encoded() -> tuple[int, float]:
            coded.encode(threads=self.budget.threads)
            report = coded.size_report()
            return report.file_bytes, report.bits_per_weight

        return self.budget.ranks.from_first("coding", encoded)

    def keep_only(self, best: Trial | None) -> None:
        """Release every network except that of the best trial."""
        self.held = {s: c for s, c in self.held.items() if best is not None and s == best.slope}

    def score(self, coded: CompressionResult | None) -> float:
        """Return the user's score of a compressed network, or of the float network for None."""
        network = copied(self.model).eval()
        if coded is not None:
            coded.load_into(network)
        if self.budget.evaluate is None:
            return math.nan
        value: Any = self.budget.evaluate(network)
        if isinstance(value, (Tensor, int, float)) or hasattr(value, "__float__"):
            score = self.budget.ranks.exchange("score", float(value))[0]
            if coded is not None or math.isfinite(score):
                return score
        raise ConfigError(
            "evaluate must return a number, finite for the float network (higher is better). Got "
            f"{value!r} instead. For an Evaluation, return its .accuracy."
        )

    def result(self, best: Trial, trace: Trace) -> CompressionResult:
        """Return the network of the best trial; recompute it if it comes from an earlier run."""
        coded = self.held.get(best.slope) or self._coded(best.slope)
        size, _ = self._size(coded)
        if size != best.bytes:
            raise ConfigError(
                f"{best.setting} ({best.slope!r}) gives {size:,} bytes, but the "
                f"trace says {best.bytes:,}: it was recorded with other data, versions or "
                "settings. Remove it."
            )
        return coded.with_trace(trace)


def _key(
    model: nn.Module,
    recipe: Recipe,
    calibration: Sequence[Any] | None,
    others: Sequence[str],
    *,
    effort: str,
    touch: Callable[[int], None],
) -> str:
    """Return a fingerprint of everything a trial depends on, except the slope.

    Covers all weights, the recipe at a fixed slope, the effort, the number of calibration batches
    and the first of them, and what else there is: a metric other than accuracy, a base.
    """
    count = None if calibration is None else len(calibration)
    first = [] if calibration is None else list(tensors_in(calibration[0]))
    tensors = chain(weights_of(model, touch), (("", tensor) for tensor in first))
    return fingerprint(tensors, recipe.to_dict(), effort, count, *others)
