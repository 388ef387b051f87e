"""What ``compress`` does once its options are known: load, calibrate, compress, judge."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ... import api
from ...compression.result import CompressionResult
from ...errors import SourceError
from ...evaluation import METRICS
from ...evaluation.base import shown
from ...evaluation.metrics import Evaluation, Score
from ...evaluation.metrics import evaluate as judge
from ...progress import Progress
from ...recipe.recipe import Recipe
from ...report import Table, trace_table
from ...sources import (
    DataSource,
    LoadedModel,
    Split,
    load_data,
    load_model,
    selection_of,
    with_selection,
)
from ..console.outcome import note
from ..options.budget import Wanted

__all__ = ["Done", "Job", "doubts", "remarks", "selecting", "summary"]


@dataclass(frozen=True)
class Done:
    """A compressed network on disk, and what was measured on the way."""

    out: Path
    coded: CompressionResult
    bytes: int
    seconds: float
    before: Evaluation | None = None
    after: Evaluation | None = None
    notes: tuple[str, ...] = ()
    metric: str = "accuracy"

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        coded = self.coded
        found = {"file": str(self.out), "bytes": self.bytes, "seconds": self.seconds}
        if self.before and self.after:
            both = {"float32": self.before.to_dict(), "compressed": self.after.to_dict()}
            found["accuracy"] = both
        if coded.trace is not None:
            found["trace"] = coded.trace.to_dict()
        report = {"size": coded.size_report().to_dict(), "plan": coded.plan.to_dict()}
        report["quantized"] = coded.coverage.to_dict()
        return {**found, **report, "notes": [*self.notes, *coded.notes]}

    def shown(self) -> tuple[Table | str, ...]:
        """Return what people read: the trace of a search, the size, the accuracies."""
        parts: list[Table | str] = []
        if self.coded.trace is not None:
            parts.append(trace_table(self.coded.trace.to_dict()))
        parts.append(f"{self.out}: {summary(self.coded)} ({self.seconds:.1f} s)")
        best = None if self.coded.trace is None else self.coded.trace.best
        reference = None if self.coded.trace is None else self.coded.trace.reference
        sign = 1 if METRICS[self.metric].higher_is_better else -1
        if best is not None and best.score is not None and reference is not None:
            after, before = sign * best.score, sign * reference
            both = f"{shown(self.metric, after)}, float32 {shown(self.metric, before)}"
            parts.append(f"selection:  {self.metric} {both}: {_change(self.metric, before, after)}")
        if self.before and self.after:
            parts += [f"float32:    {self.before}", f"compressed: {self.after}"]
            before, after = (found.value(self.metric) for found in (self.before, self.after))
            told = f"test:       {_change(self.metric, before, after)}"
            parts += [told] * (best is not None)
        return tuple(parts)


def _change(metric: str, before: float, after: float) -> str:
    """Return by how much a metric got worse."""
    kind = METRICS[metric]
    worse = before - after if kind.higher_is_better else after - before
    word = "drop" if kind.higher_is_better else "rise"
    figure = f"{100 * worse:.2f} points" if kind.unit == "%" else shown(metric, worse)
    return f"a {word} of {figure}"


class Job:
    """One network, its data, a recipe, and a budget perhaps."""

    def __init__(
        self,
        model: str,
        weights: Path | None,
        data: str | None,
        recipe: Recipe,
        *,
        batch_size: int = 128,
        wanted: Wanted | None = None,
    ) -> None:
        self.recipe, self.batch_size = recipe, batch_size
        self.wanted = wanted or Wanted()
        self.metric = self.wanted.metric or "accuracy"
        self.model = load_model(model, weights)
        self.data: DataSource | None = None if data is None else load_data(data)
        self.selection: Split | None = None
        if self.wanted.judges:
            self.data, self.selection = selecting(self.data, self.wanted.selection)

    @property
    def notes(self) -> tuple[str, ...]:
        """What is worth a word before the work begins."""
        return doubts(self.model)

    def plan(self) -> dict[str, Any]:
        """Return what would happen to every tensor."""
        return api.plan(self.model.module, self.recipe).to_dict()

    def run(
        self,
        out: Path,
        *,
        samples: int,
        seed: int | None,
        effort: str,
        threads: int,
        evaluate: bool,
        metadata: bool,
        progress: Progress,
    ) -> Done:
        """Compress to the file ``out``; with a drop as budget, the test tells its own drop too."""
        for text in self.notes:
            note(f"note: {text}")
        can_judge = self.data is not None and self.data.test is not None
        told = self.wanted.max_drop is not None and can_judge and not self._one_loader
        before = self.accuracy(progress) if evaluate or told else None
        started = time.perf_counter()
        coded = self.compress(
            samples, seed, progress, effort=effort, threads=threads, metadata=metadata
        )
        seconds = time.perf_counter() - started
        size = coded.save(out, threads=threads)
        after = self.accuracy(progress, out, threads) if evaluate or told else None
        return Done(out, coded, size, seconds, before, after, self.notes, self.metric)

    def compress(
        self,
        samples: int,
        seed: int | None,
        progress: Progress,
        *,
        effort: str = "balanced",
        threads: int = 0,
        metadata: bool = True,
    ) -> CompressionResult:
        """Compress, calibrating on at most ``samples`` training samples drawn by the seed."""
        batches = None
        if self.data is not None:
            draw = self.recipe.seed if seed is None else seed
            batches = self.data.batches("calibration", self.batch_size, samples, draw)
        budget = self.wanted.settings()
        if self.selection is not None:
            chosen = self.selection.batches(self.batch_size, None, None)
            budget["evaluate"] = Score(self.metric, chosen)
        return api.compress(
            self.model.module,
            self.recipe,
            batches,
            effort=effort,
            threads=threads,
            seed=seed,
            source=self.model.source,
            metadata=metadata,
            progress=progress,
            **budget,
        )

    @property
    def _one_loader(self) -> bool:
        return self.data is not None and self.data.one_loader

    def check_can_judge(self) -> None:
        """Refuse to judge on the samples that calibrate.

        Raises:
            SourceError: the data has no test split of its own.
        """
        if self.data is not None:
            self.data.split("test")
        if self.data is not None and self._one_loader:
            raise SourceError(
                f"data {self.data.source!r} is one loader, so that evaluating would use the "
                "calibration samples. Return (train, test), or evaluate on other data afterwards."
            )

    def accuracy(
        self, progress: Progress, file: Path | None = None, threads: int = 0
    ) -> Evaluation | None:
        """Evaluate the network, or what ``file`` holds, on the test split; None without data."""
        if self.data is None:
            return None
        module = self.model.module
        if file is not None:
            module = api.load(file, into=module, threads=threads)
        batches = self.data.batches("test", self.batch_size)
        return judge(module, batches, metrics=(self.metric,), progress=progress)


def doubts(network: LoadedModel) -> tuple[str, ...]:
    """Return why the results may not be worth much."""
    if not network.untrained:
        return ()
    return (
        f"the network has its random initial weights: {network.source} brings no others, and no "
        "--weights is given",
    )


def selecting(data: DataSource | None, named: str | None) -> tuple[DataSource | None, Split]:
    """Return the data, and the split that a search judges on: of ``named``, or cut off the data."""
    if named is not None and (data is None or named != data.source):
        return data, selection_of(load_data(named))
    if data is None:
        raise SourceError("a search that judges needs labelled data: add --data or --selection.")
    divided = with_selection(data)
    return divided, divided.split("selection")


def summary(coded: CompressionResult) -> str:
    """Return the size, and how much is quantized, in one line."""
    return coded.size_report().summary


def remarks(coded: CompressionResult) -> list[str]:
    """Return what deserves a word: stages that ran, and weights with another fate than asked."""
    fates = [(e.target.name, e.reason) for e in coded.plan.entries if e.reason]
    return [*coded.notes, *(f"{name}: {reason}" for name, reason in fates)]
