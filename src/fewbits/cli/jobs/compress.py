"""The work of ``fewbits compress``: load, calibrate, compress, evaluate."""

from __future__ import annotations

import copy
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ... import api
from ...compression.result import CompressionResult
from ...engine.network.batches import Forward, as_forward
from ...engine.network.distributed import active
from ...errors import SourceError
from ...evaluation.base import Measure, shown
from ...evaluation.metrics import Result, Score, evaluate_by
from ...progress import Progress
from ...recipe.recipe import Recipe
from ...report import Page, Table, trace_table
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
from ..options.budget import BudgetOptions
from ..options.metric import has_own_data, known_metric

__all__ = [
    "CompressedFile",
    "Job",
    "home_of",
    "plan_notes",
    "summary",
    "untrained_notes",
    "with_selection_split",
]


_TOLD = 4  # weights that are named one by one with the same reason


@dataclass(frozen=True)
class CompressedFile:
    """A compressed network on disk, and the measurements made along the way."""

    out: Path
    coded: CompressionResult
    bytes: int
    seconds: float
    metric: Measure
    dtype: str
    before: Result | None = None
    after: Result | None = None
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        coded = self.coded
        facts = {"file": str(self.out), "bytes": self.bytes, "seconds": self.seconds}
        if self.before and self.after:
            both = {self.dtype: self.before.to_dict(), "compressed": self.after.to_dict()}
            facts |= {"accuracy": both, "dtype": self.dtype}
        if coded.trace is not None:
            facts["trace"] = coded.trace.to_dict()
        report = {"size": coded.size_report().to_dict(), "plan": coded.plan.to_dict()}
        report["quantized"] = coded.coverage.to_dict()
        return {**facts, **report, "notes": [*self.notes, *coded.notes]}

    def page(self, facts: Mapping[str, object]) -> Page:
        """Return the report; ``facts`` are the settings of the command."""
        name = self.metric.name
        return self.coded.report_page(
            f"{self.out}: {self.bytes:,} bytes",
            facts=facts,
            notes=(*self.notes, *self.coded.notes),
            dtype=self.dtype,
            score=name if self.metric.higher_is_better else f"{name}, negated",
        )

    def shown(self) -> tuple[Table | str, ...]:
        """Return the output for people: the trace of a search, the size and the accuracies."""
        parts: list[Table | str] = []
        if self.coded.trace is not None:
            parts.append(trace_table(self.coded.trace.to_dict(), dtype=self.dtype))
        parts.append(f"{self.out}: {summary(self.coded)} ({self.seconds:.1f} s)")
        best = None if self.coded.trace is None else self.coded.trace.best
        reference = None if self.coded.trace is None else self.coded.trace.reference
        sign = 1 if self.metric.higher_is_better else -1
        if best is not None and best.score is not None and reference is not None:
            after, before = sign * best.score, sign * reference
            both = f"{shown(self.metric, after)}, {self.dtype} {shown(self.metric, before)}"
            change = _change(self.metric, before, after)
            parts.append(f"selection:  {self.metric.name} {both}: {change}")
        if self.before and self.after:
            parts += [f"{self.dtype + ':':11} {self.before}", f"compressed: {self.after}"]
            before, after = (one.value(self.metric.name) for one in (self.before, self.after))
            if best is not None:
                parts.append(f"test:       {_change(self.metric, before, after)}")
        return tuple(parts)


def _change(metric: Measure, before: float, after: float) -> str:
    """Describe by how much a metric got worse."""
    worse = before - after if metric.higher_is_better else after - before
    word = "drop" if metric.higher_is_better else "rise"
    figure = f"{100 * worse:.2f} points" if metric.unit == "%" else shown(metric, worse)
    return f"a {word} of {figure}"


class Job:
    """One network with its data, a recipe and, optionally, a budget."""

    def __init__(
        self,
        model: str,
        weights: Path | None,
        data: str | None,
        recipe: Recipe,
        *,
        batch_size: int | None = None,
        budget: BudgetOptions | None = None,
        scored: bool = True,
        calibration: str | None = None,
        forward: Forward | None = None,
        trains: bool = False,
        base: Path | None = None,
        start: Path | None = None,
    ) -> None:
        """Load the network and its data; ``base`` is what a delta is to be a change of.

        ``start`` is a compressed network whose levels are kept.

        A network that is not ``scored`` as a whole may keep its weights on disk; one that
        ``trains`` has them in float32. ``calibration`` names data for calibration only.
        """
        self.recipe, self.batch_size, self.forward = recipe, batch_size, forward
        self.budget = budget or BudgetOptions()
        self.base, self.start = base, start
        on_disk = not (scored or self.budget.needs_evaluation or base is not None)
        self.metric = known_metric(self.budget.metric or "accuracy")
        self.model = load_model(model, weights, on_disk=on_disk, keep_dtype=not trains)
        self.home = home_of(model, weights)
        self.data = None if data is None else load_data(data, self.home)
        self.calibration = self.data if calibration is None else load_data(calibration, self.home)
        self.selection: Split | None = None
        if self.budget.needs_evaluation:
            self._set_selection(calibration is not None)

    def under(self, budget: BudgetOptions) -> Job:
        """Return a job for the same network and data under a budget of size or accuracy."""
        other = copy.copy(self)
        other.budget = budget
        if budget.needs_evaluation:
            other._set_selection(self.calibration is not self.data)
        return other

    def _set_selection(self, calibrates_elsewhere: bool) -> None:
        """Choose what a search scores on; a metric of one's own may do without."""
        name = self.budget.selection
        if name is None and self.data is None and has_own_data(self.budget.metric):
            return
        divided, self.selection = with_selection_split(self.data, name, self.home, self.calibration)
        self.calibration = self.calibration if calibrates_elsewhere else divided
        self.data = divided

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes to print before the work begins."""
        return untrained_notes(self.model)

    def plan(self) -> dict[str, Any]:
        """Return what compression would do with every tensor, without doing it."""
        on_disk = self.model.on_disk
        plan = api.plan(self.model.module, self.recipe, weights=on_disk, start=self.start)
        return plan.to_dict()

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
        resume: Path | None = None,
        progress: Progress,
    ) -> CompressedFile | None:
        """Compress to the file ``out``; for a budget of accuracy, also evaluate on the test split.

        The search only sees the selection split, so the drop on the test split is worth reporting.
        Of several ranks, only the first evaluates and writes; the others return None.

        Raises:
            SourceError: ``evaluate`` without a test split of its own.
        """
        if evaluate:
            self.check_can_evaluate()
        for text in self.notes:
            note(f"note: {text}")
        has_test = self.data is not None and self.data.test is not None
        if self.budget.max_drop is not None and has_test and not self._is_used:
            evaluate = True
        first = active().first
        before = self.accuracy(progress) if evaluate and first else None
        started = time.perf_counter()
        coded = self.compress(
            samples,
            seed,
            progress,
            effort=effort,
            threads=threads,
            metadata=metadata,
            resume=resume,
        )
        if not first:
            return None
        seconds = time.perf_counter() - started
        size = coded.save(out, threads=threads)
        after = self.accuracy(progress, out, threads) if evaluate else None
        facts = (self.metric, self.model.dtype, before, after, self.notes)
        return CompressedFile(out, coded, size, seconds, *facts)

    def compress(
        self,
        samples: int,
        seed: int | None,
        progress: Progress,
        *,
        effort: str = "balanced",
        threads: int = 0,
        metadata: bool = True,
        resume: Path | None = None,
        share: bool = True,
    ) -> CompressionResult:
        """Compress, calibrated on at most ``samples`` training samples drawn with the seed.

        ``share`` the work with the other processes of a group, or leave them out of it.
        """
        batches = None
        if self.calibration is not None:
            sample_seed = self.recipe.seed if seed is None else seed
            batches = self.calibration.batches("calibration", self.batch_size, samples, sample_seed)
        budget = self.budget.settings()
        if self.budget.needs_evaluation:
            split = self.selection
            chosen = None if split is None else split.batches(self.batch_size, None, None)
            budget["evaluate"] = Score(self.metric, chosen, as_forward(self.forward))
        return api.compress(
            self.model.module,
            self.recipe,
            batches,
            forward=self.forward,
            effort=effort,
            threads=threads,
            seed=seed,
            source=self.model.source,
            metadata=metadata,
            weights=self.model.on_disk,
            resume=resume,
            base=self.base,
            start=self.start,
            share=share,
            progress=progress,
            **budget,
        )

    @property
    def _is_used(self) -> bool:
        """Whether the samples to evaluate on also calibrate, or choose in the search."""
        if self.data is None or not self.data.one_loader:
            return False
        chooses = self.selection is not None and self.budget.selection in (None, self.data.source)
        calibrates = self.calibration is not None and self.data.shares_samples(self.calibration)
        return chooses or calibrates

    def check_can_evaluate(self) -> None:
        """Refuse to evaluate on the samples used for calibration.

        Raises:
            SourceError: the data has no separate test split.
        """
        if self.data is None:
            return
        self.data.split("test")
        if self._is_used and self.data.file is not None:
            raise SourceError(
                f"data {self.data.source!r} is one file, so evaluation would use the samples that "
                "calibrate or choose. Name another file for these, with --calibration and "
                "--selection, or evaluate on another file afterwards."
            )
        if self._is_used:
            raise SourceError(
                f"data {self.data.source!r} is a single loader, so evaluation would use the "
                "calibration samples. Return (train, test), or evaluate on other data afterwards."
            )

    def accuracy(
        self, progress: Progress, file: Path | None = None, threads: int = 0
    ) -> Result | None:
        """Evaluate the network, or the one in ``file``, on the test split; None without data."""
        if self.data is None and not has_own_data(self.metric.name):
            return None
        module = self.model.module
        if file is not None:
            module = api.load(file, into=module, base=self.base, threads=threads)
        batches = None if self.data is None else self.data.batches("test", self.batch_size)
        forward = as_forward(self.forward)
        return evaluate_by(self.metric, module, batches, forward, progress=progress)


def untrained_notes(network: LoadedModel) -> tuple[str, ...]:
    """Return a note if the network has random weights, which makes the results meaningless."""
    loaded = (network.note,) if network.note else ()
    if not network.untrained:
        return loaded
    return (
        f"the network has random initial weights: {network.source} has no trained ones, and no "
        "--weights were given",
        *loaded,
    )


def home_of(model: str, weights: Path | None) -> str:
    """Return where the tokenizer of a network is looked for: with its weights, if in a folder."""
    return str(weights) if weights is not None and weights.is_dir() else model


def with_selection_split(
    data: DataSource | None,
    selection: str | None,
    home: str = "",
    calibration: DataSource | None = None,
) -> tuple[DataSource | None, Split]:
    """Return the data and the split that a search evaluates on.

    The split is that of the source ``selection``, or else is taken from the training split.
    ``home`` is where its tokenizer is, ``calibration`` the data for calibration.

    Raises:
        SourceError: ``selection`` is the one file or loader that calibrates, or that of ``data``.
    """
    if selection is not None and (data is None or selection != data.source):
        chosen = load_data(selection, home)
        for other in (calibration, data):
            if other is not None and chosen.shares_samples(other):
                raise SourceError(
                    f"--selection {selection} has the samples of {other.source!r}, which calibrate "
                    "or are reported on. Name another file."
                )
        return data, selection_of(chosen)
    if data is None:
        raise SourceError(
            "measuring accuracy during a search needs labelled data: add --data or --selection."
        )
    divided = with_selection(data)
    return divided, divided.split("selection")


def summary(coded: CompressionResult) -> str:
    """Return one line with the size and the share that is quantized."""
    return coded.summary


def plan_notes(coded: CompressionResult) -> list[str]:
    """Return the notes of the stages that ran, and why weights deviate from the recipe.

    A reason that many weights share is told once; the plan lists them.
    """
    weights: dict[str, list[str]] = defaultdict(list)
    for entry in coded.plan.entries:
        if entry.reason:
            weights[entry.reason].append(entry.target.name)
    notes = list(coded.notes)
    if coded.plan.recipe.lossless:
        return notes
    for reason, names in weights.items():
        many = [f"{len(names)} weights, {names[0]} to {names[-1]}"]
        notes += [f"{name}: {reason}" for name in (many if len(names) > _TOLD else names)]
    return notes
