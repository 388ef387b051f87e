"""What ``train`` does once its options are known: stages, checkpoints, the file, its accuracy."""

from __future__ import annotations

import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...compression.result import CompressionResult
from ...evaluation.metrics import Evaluation
from ...progress import Progress, silent
from ...recipe.recipe import Recipe
from ...report import Table
from ...sources import load_data, selection_of
from ...training.from_recipe import train
from ...training.loop.checkpoint import RunFolder
from ...training.loop.devices import make_fabric, release
from ...training.loop.loop import Fitted
from ..console.outcome import Outcome, note
from .compress import Job, summary
from .run_folder import Order, only_if_begun

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["carry_out"]


@dataclass(frozen=True)
class _Done:
    """A trained and compressed network on disk, and what was measured on the way."""

    order: Order
    coded: CompressionResult
    fitted: Fitted
    bytes: int
    seconds: float
    before: Evaluation | None
    after: Evaluation | None
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values; the accuracy is that of the file, loaded again."""
        found: dict[str, Any] = {
            "file": self.order.out,
            "bytes": self.bytes,
            "seconds": self.seconds,
        }
        if self.before and self.after:
            both = {"float32": self.before.to_dict(), "compressed": self.after.to_dict()}
            found["accuracy"] = both
        found["training"] = {
            "folder": self.order.folder,
            "epochs": self.fitted.epochs,
            "steps": self.fitted.steps,
            "epoch": self.fitted.epoch,
            "held_out": self.fitted.score,
            "held_out_before": self.fitted.reference,
            "history": self.fitted.history,
        }
        report = {"size": self.coded.size_report().to_dict(), "plan": self.coded.plan.to_dict()}
        report["quantized"] = self.coded.coverage.to_dict()
        return {**found, **report, "notes": [*self.notes, *self.coded.notes]}

    def shown(self) -> tuple[Table | str, ...]:
        """Return what people read."""
        parts = [f"{self.order.out}: {summary(self.coded)} ({self.seconds:.1f} s)"]
        kept = f"epoch {self.fitted.epoch} of {self.fitted.epochs} kept"
        if self.fitted.score == self.fitted.score:
            kept += (
                f": accuracy {self.fitted.score:.2%} on held-out training samples, "
                f"{self.fitted.reference:.2%} before"
            )
        parts.append(f"{kept}; checkpoints and logs in {self.order.folder}")
        if self.before and self.after:
            parts += [f"float32:    {self.before}", f"compressed: {self.after}"]
        return tuple(parts)


def carry_out(
    order: Order,
    *,
    resume: bool,
    device: str,
    devices: int,
    threads: int,
    progress: Progress,
) -> Outcome:
    """Train and compress as ordered; all processes call it, and the first one writes and tells."""
    fabric = make_fabric(device, devices, order.precision)
    new = fabric.is_global_zero and not resume
    with only_if_begun(Path(order.folder)) if new else nullcontext():
        return _carried_out(order, fabric, resume=resume, threads=threads, progress=progress)


def _carried_out(
    order: Order, fabric: Fabric, *, resume: bool, threads: int, progress: Progress
) -> Outcome:
    recipe = Recipe.from_dict(order.recipe)
    main = fabric.is_global_zero
    progress = progress if main else silent
    size = 128 if recipe.train is None else recipe.train.batch_size
    job = Job(
        order.model,
        None if order.weights is None else Path(order.weights),
        order.data,
        recipe,
        batch_size=size,
    )
    if order.evaluate:
        job.check_can_judge()
    notes = job.notes if order.start is None else ()
    for text in notes if main else ():
        note(f"note: {text}")
    if main and not resume:
        RunFolder(order.folder).clear()
        order.keep()
    before = job.accuracy(progress) if order.evaluate and main else None
    started = time.perf_counter()
    coded, fitted = _trained(job, order, recipe, fabric, resume=resume, progress=progress)
    if coded is None:
        release(fabric)
        return Outcome({}, silent=True)
    coded = coded if order.metadata else coded.without_metadata()
    for text in coded.notes:
        note(f"note: {text}")
    out = Path(order.out)
    coded.save(out, threads=threads)
    seconds = time.perf_counter() - started
    release(fabric)
    after = job.accuracy(progress, out, threads) if order.evaluate else None
    done = _Done(order, coded, fitted, out.stat().st_size, seconds, before, after, notes)
    return Outcome(done.to_dict(), done.shown())


def _trained(
    job: Job, order: Order, recipe: Recipe, fabric: Fabric, *, resume: bool, progress: Progress
) -> tuple[CompressionResult | None, Fitted]:
    start = None if order.start is None else Path(order.start)
    if recipe.first_stage is not None and start is None:
        start = Path(order.folder) / "start.fewbits"
        if fabric.is_global_zero and not (resume and start.exists()):
            _first_stage(job, order, recipe, progress).save(start)
        fabric.barrier()
    done = train(
        job.model.module,
        recipe,
        load_data(order.data),
        start=start,
        selection=None if order.selection is None else selection_of(load_data(order.selection)),
        folder=order.folder,
        resume=resume,
        save_seconds=order.save_seconds,
        logs=order.logs,
        fabric=fabric,
        effort=order.effort,
        source=job.model.source,
        progress=progress,
    )
    return done.coded, done.fitted


def _first_stage(job: Job, order: Order, recipe: Recipe, progress: Progress) -> CompressionResult:
    job.recipe = recipe.first_stage or recipe
    return job.compress(order.calibration_samples, None, progress, effort="fast")
