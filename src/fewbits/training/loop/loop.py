"""The ready-made training loop, on Lightning Fabric; your own loop uses a tuner the same way.

Everything in the loop (order of the data, random numbers, learning rate, schedules of the method)
is a function of the position (epoch, step) and the seed. So a checkpoint holds tensors and a
position, and a resumed run ends with the same bytes as an uninterrupted one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from os import PathLike
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.optim import Optimizer

from ...errors import ConfigError, require
from ...progress import Progress, ProgressEvent, silent
from ..data.augment import Augmentation
from ..data.batches import (
    Indexed,
    Sharing,
    TrainingBatches,
    preserved_random_state,
    seed_everything_at,
)
from ..distillation.losses import Loss
from .best_epoch import BestEpoch
from .checkpoint import RunFolder
from .devices import check_fabric, make_fabric
from .logs import open_logs
from .lr_schedules import LRSchedule, constant
from .metrics import Metrics
from .selection import Candidate, Selection
from .stepper import Stepper, Tunable

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["Fitted", "fit"]

_NETWORK = 3  # stream of random numbers for the network; those of the batches come before


@dataclass(frozen=True)
class Fitted:
    """The result of a run, whose tuner and network are left at ``epoch``.

    Attributes:
        epochs: number of epochs trained, including those before a resume.
        steps: number of optimizer steps.
        epoch: the chosen epoch, from 1.
        score: score of its quantized network on the held-out data; NaN without such data.
        reference: score of the network before training; NaN without such data.
        history: metrics of every epoch.
        seconds: duration of this call.
        main: whether this process is the one that writes files.
    """

    epochs: int
    steps: int
    epoch: int
    score: float
    reference: float
    history: tuple[dict[str, float], ...]
    seconds: float
    main: bool = field(default=True, compare=False)


def fit(
    tuner: Tunable,
    loss: Loss,
    data: Indexed | Iterable[Any],
    *,
    epochs: int,
    optimizer: Optimizer,
    batch_size: int = 128,
    accumulate: int = 1,
    lr_schedule: LRSchedule = constant,
    clip: float | None = None,
    relative_clip: float | None = None,
    augment: Augmentation | None = None,
    judge: Callable[[nn.Module], float] | None = None,
    selection: Selection | None = None,
    reference: float | None = None,
    folder: str | PathLike[str] | None = None,
    resume: bool = False,
    save_seconds: float = 300.0,
    logs: tuple[str, ...] = ("csv",),
    log_every: int = 50,
    seed: int = 0,
    key: str = "",
    fabric: Fabric | None = None,
    progress: Progress = silent,
) -> Fitted:
    """Train the network of ``tuner`` in place, and leave it and the tuner at the chosen epoch.

    Args:
        tuner: the tuner, from :func:`fewbits.prepare`. Afterwards, ``tuner.finish()`` returns the
            compressed network.
        loss: ``loss(model, batch)``, the mean over the samples: ``CrossEntropy()``,
            ``Distillation(teacher)`` or your own.
        data: indexed samples (``fewbits.sources``), which are shuffled here; or any re-iterable of
            batches, such as a DataLoader, whose batches and order are kept.
        epochs: passes over ``data``.
        optimizer: optimizer over ``tuner.model.parameters()`` and ``tuner.parameters()``; see
            :func:`make_optimizer`.
        batch_size: samples per step over all processes; ignored for your own loaders.
        accumulate: micro-batches per step and process; more of them take less memory.
        lr_schedule: factor on the learning rates, as a function of the finished share.
        clip: largest norm of all gradients together; None for no clipping.
        relative_clip: largest norm of the gradient of each weight tensor and each gain, as a share
            of the norm of the tensor; None for no clipping.
        augment: random augmentation of the inputs.
        judge: score of a network on *held-out training data*, higher is better, by which the epoch
            is chosen. None keeps the last epoch.
        selection: the rule for choosing an epoch; ``Selection()`` by default.
        reference: score of the float network, relative to which ``selection`` measures a drop; None
            evaluates the network at the start.
        folder: folder for checkpoints and logs; None writes nothing to disk.
        resume: continue from the checkpoint in the folder, with the same arguments as before.
        save_seconds: time between checkpoints within an epoch, written when a row of the log is
            due. A checkpoint is always written after each epoch.
        logs: logs in the folder: "csv" (metrics.csv) and "tensorboard".
        log_every: steps between rows of the log.
        seed: random seed for the order of the data, augmentation and the network. The global random
            state is restored afterwards.
        key: anything else that must be the same to resume, such as a fingerprint of the data.
        fabric: devices and precision; by default one device in float32.
        progress: called after every step with loss, penalty, rate and accuracy.

    Raises:
        ConfigError: an invalid setting, or the run to resume has other settings.
        CalibrationError: invalid data.
        ModelError: the forward pass fails, or the loss is not finite.
        MissingExtraError: Lightning Fabric is not installed.
    """
    require(isinstance(epochs, int) and epochs >= 1, "epochs", "an integer >= 1", epochs)
    require(log_every >= 1, "log_every", "an integer >= 1", log_every)
    require(accumulate >= 1, "accumulate", "an integer >= 1", accumulate)
    if resume and folder is None:
        raise ConfigError("resume= needs folder=, the folder of the run to resume.")
    fabric = fabric or make_fabric()
    check_fabric(fabric)
    selection = selection or Selection()
    sharing = Sharing(fabric.global_rank, fabric.world_size, accumulate)
    with preserved_random_state(fabric.device):
        batches = TrainingBatches(data, batch_size, sharing, seed, augment)
        stepper = Stepper(
            tuner,
            loss,
            optimizer,
            fabric,
            lr_schedule=lr_schedule,
            clip=clip,
            relative_clip=relative_clip,
            total=epochs * batches.steps,
        )
        best_epoch = BestEpoch(
            stepper,
            None if folder is None else RunFolder(folder),
            judge=judge,
            selection=selection,
            key=stepper.key(key, epochs, batches, selection),
            reference=math.nan if reference is None else reference,
        )
        run = _Run(
            stepper,
            batches,
            best_epoch,
            epochs=epochs,
            log_every=log_every,
            save_seconds=save_seconds,
            seed=seed,
            progress=progress,
        )
        return run.run(resume, logs)


class _Run:
    """The position in a run, and the work of every step and epoch."""

    def __init__(
        self,
        stepper: Stepper,
        batches: TrainingBatches,
        best_epoch: BestEpoch,
        *,
        epochs: int,
        log_every: int,
        save_seconds: float,
        seed: int,
        progress: Progress,
    ) -> None:
        self.stepper, self.batches, self.best_epoch, self.epochs = (
            stepper,
            batches,
            best_epoch,
            epochs,
        )
        self.log_every, self.save_seconds, self.seed = log_every, save_seconds, seed
        self.main = stepper.fabric.is_global_zero
        self.progress = progress if self.main else silent
        self.metrics = Metrics(stepper.fabric)
        self.epoch = self.step = 0
        self.saved_at = time.monotonic()

    @property
    def done(self) -> int:
        """Total number of finished steps."""
        return self.epoch * self.batches.steps + self.step

    def run(self, resume: bool, logs: tuple[str, ...]) -> Fitted:
        """Train to the end, from the start or from the checkpoint."""
        started = time.perf_counter()
        state = self.best_epoch.open(resume)
        if state is not None:
            self.epoch, self.step = state["epoch"], state["step"]
            self.metrics.load_state_dict(state["metrics"])
        folder = self.best_epoch.folder
        where = folder.path if folder is not None and self.main else None
        total = self.epochs * self.batches.steps
        self.progress(ProgressEvent("train", self.done, total, self.metrics.line()))
        with open_logs(where, logs, self.done if resume else None) as self.logs:
            while self.epoch < self.epochs:
                self._train_epoch(total)
                self._end_epoch()
        chosen = self.best_epoch.restore(self.epochs)
        return Fitted(
            epochs=self.epochs,
            steps=self.done,
            epoch=chosen.epoch,
            score=chosen.score,
            reference=self.best_epoch.reference,
            history=tuple(self.metrics.history),
            seconds=time.perf_counter() - started,
            main=self.main,
        )

    def _train_epoch(self, total: int) -> None:
        self.stepper.model.train()
        rank = self.stepper.fabric.global_rank
        for micro_batches in self.batches.epoch(self.epoch, self.step):
            seed_everything_at(self.seed, self.epoch, self.step, _NETWORK, rank)
            self.metrics.add(self.stepper.step(micro_batches, self.done))
            self.step += 1
            if self.step % self.log_every == 0 and self.step < self.batches.steps:
                self._log()
                if time.monotonic() - self.saved_at >= self.save_seconds:
                    self._save()
            detail = f"{self.epoch + 1}/{self.epochs} {self.metrics.line()}"
            self.progress(ProgressEvent("train", self.done, total, detail))

    def _end_epoch(self) -> None:
        if self.epoch + 1 == self.epochs:
            self.stepper.tuner.advance(1.0)
        self._log(last_of_epoch=True)
        self.epoch, self.step = self.epoch + 1, 0
        score = self.best_epoch.score()
        rate = self.metrics.latest.get("bits_per_weight", float("nan"))
        self.best_epoch.consider(Candidate(self.epoch, score, rate), self.epochs)
        row = self.metrics.end_epoch(self.epoch, score)
        self.logs.write(self.done, row)
        self._save()

    def _log(self, last_of_epoch: bool = False) -> None:
        row = self.metrics.flush(self.done, self.stepper.tuner.measures)
        row["learning_rate"] = self.stepper.learning_rate
        if not last_of_epoch:
            self.logs.write(self.done, row)

    def _save(self) -> None:
        position = {"epoch": self.epoch, "step": self.step, "metrics": self.metrics.state_dict()}
        self.best_epoch.save(position)
        self.saved_at = time.monotonic()
