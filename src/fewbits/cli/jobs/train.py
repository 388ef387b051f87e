"""The work of ``fewbits train``: run the stages, write the file and evaluate it."""

from __future__ import annotations

import math
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...compression.result import CompressionResult
from ...evaluation.metrics import Result
from ...progress import Progress, silent
from ...recipe.recipe import Recipe
from ...report import Page, Table
from ...sources import load_data, selection_of
from ...training.from_recipe import train
from ...training.loop.checkpoint import RunFolder
from ...training.loop.devices import make_fabric, release
from ...training.loop.loop import Fitted
from ..console.outcome import Outcome, note
from .compress import Job, summary
from .run_folder import RunRequest, remove_if_not_begun

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["run_training"]


@dataclass(frozen=True)
class _TrainedFile:
    """A trained and compressed network on disk, and the measurements made along the way."""

    request: RunRequest
    coded: CompressionResult
    fitted: Fitted
    bytes: int
    seconds: float
    dtype: str
    before: Result | None
    after: Result | None
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values; the accuracy is that of the file, loaded back."""
        facts: dict[str, Any] = {
            "file": self.request.out,
            "bytes": self.bytes,
            "seconds": self.seconds,
        }
        if self.before and self.after:
            both = {self.dtype: self.before.to_dict(), "compressed": self.after.to_dict()}
            facts |= {"accuracy": both, "dtype": self.dtype}
        facts["training"] = {
            "folder": self.request.folder,
            "epochs": self.fitted.epochs,
            "steps": self.fitted.steps,
            "epoch": self.fitted.epoch,
            "held_out": self.fitted.score,
            "held_out_before": self.fitted.reference,
            "history": self.fitted.history,
        }
        report = {"size": self.coded.size_report().to_dict(), "plan": self.coded.plan.to_dict()}
        report["quantized"] = self.coded.coverage.to_dict()
        return {**facts, **report, "notes": [*self.notes, *self.coded.notes]}

    def page(self) -> Page:
        """Return the report."""
        known = self.request
        facts = {"network": known.model, "weights": known.weights, "data": known.data}
        facts |= {"start": known.start, "effort": known.effort, "folder": known.folder}
        return self.coded.report_page(
            f"{known.out}: {self.bytes:,} bytes",
            facts=facts,
            notes=(*self.notes, *self.coded.notes),
            dtype=self.dtype,
            history=self.fitted.history,
        )

    def shown(self) -> tuple[Table | str, ...]:
        """Return the output for people."""
        parts = [f"{self.request.out}: {summary(self.coded)} ({self.seconds:.1f} s)"]
        kept = f"epoch {self.fitted.epoch} of {self.fitted.epochs} kept"
        if not self.fitted.epoch:
            kept = f"the start kept, none of {self.fitted.epochs} epochs"
        if not math.isnan(self.fitted.score):
            kept += (
                f": accuracy {self.fitted.score:.2%} on held-out training samples, "
                f"{self.fitted.reference:.2%} before"
            )
        parts.append(f"{kept}; checkpoints and logs in {self.request.folder}")
        if self.before and self.after:
            parts += [f"{self.dtype + ':':11} {self.before}", f"compressed: {self.after}"]
        return tuple(parts)


def run_training(
    request: RunRequest,
    *,
    resume: bool,
    device: str,
    devices: int,
    threads: int,
    progress: Progress,
) -> Outcome:
    """Train and compress as requested; all processes call it, and the first writes the file."""
    fabric = make_fabric(device, devices, request.precision)
    new = fabric.is_global_zero and not resume
    with remove_if_not_begun(Path(request.folder)) if new else nullcontext():
        return _run_training(request, fabric, resume=resume, threads=threads, progress=progress)


def _run_training(
    request: RunRequest, fabric: Fabric, *, resume: bool, threads: int, progress: Progress
) -> Outcome:
    recipe = Recipe.from_dict(request.recipe)
    main = fabric.is_global_zero
    progress = progress if main else silent
    size = 128 if recipe.train is None else recipe.train.batch_size
    job = Job(
        request.model,
        None if request.weights is None else Path(request.weights),
        request.data,
        recipe,
        batch_size=size,
        trains=True,
    )
    if request.evaluate:
        job.check_can_evaluate()
    notes = job.notes if request.start is None else ()
    for text in notes if main else ():
        note(f"note: {text}")
    if main and not resume:
        RunFolder(request.folder).clear()
        request.save()
    before = job.accuracy(progress) if request.evaluate and main else None
    started = time.perf_counter()
    coded, fitted = _trained(job, request, recipe, fabric, resume=resume, progress=progress)
    if coded is None:
        release(fabric)
        return Outcome({}, silent=True)
    coded = coded if request.metadata else coded.without_metadata()
    for text in coded.notes:
        note(f"note: {text}")
    out = Path(request.out)
    coded.save(out, threads=threads)
    seconds = time.perf_counter() - started
    release(fabric)
    after = job.accuracy(progress, out, threads) if request.evaluate else None
    facts = (out.stat().st_size, seconds, job.model.dtype, before, after, notes)
    trained = _TrainedFile(request, coded, fitted, *facts)
    return Outcome(trained.to_dict(), trained.shown(), page=trained.page)


def _trained(
    job: Job,
    request: RunRequest,
    recipe: Recipe,
    fabric: Fabric,
    *,
    resume: bool,
    progress: Progress,
) -> tuple[CompressionResult | None, Fitted]:
    start = None if request.start is None else Path(request.start)
    if recipe.first_stage is not None and start is None:
        start = Path(request.folder) / "start.fewbits"
        if fabric.is_global_zero and not (resume and start.exists()):
            _first_stage(job, request, recipe, progress).save(start)
        fabric.barrier()
    result = train(
        job.model.module,
        recipe,
        load_data(request.data),
        start=start,
        selection=None if request.selection is None else selection_of(load_data(request.selection)),
        folder=request.folder,
        resume=resume,
        save_seconds=request.save_seconds,
        logs=request.logs,
        fabric=fabric,
        effort=request.effort,
        source=job.model.source,
        progress=progress,
    )
    return result.coded, result.fitted


def _first_stage(
    job: Job, request: RunRequest, recipe: Recipe, progress: Progress
) -> CompressionResult:
    job.recipe = recipe.first_stage or recipe
    samples = request.calibration_samples
    return job.compress(samples, None, progress, effort="fast", share=False)
