"""Our own training loop on Lightning Fabric; a person's own loop does with a tuner the same.

Whatever the loop decides is a function of the position in it (epoch, step) and of the seed: the
order of the data, random numbers, learning rate and the method's schedules. A checkpoint therefore
holds tensors and a position, and a run that was killed ends with the bytes of an unbroken one.
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
from ..data.batches import Indexed, Sharing, TrainingBatches, kept_random_state, seed_everything_at
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

_NETWORK = 3  # stream of random numbers of the network, beside those of the batches


@dataclass(frozen=True)
class Fitted:
    """What a run found; the tuner and its network are those of ``epoch``.

    Attributes:
        epochs: epochs trained, those before a resume included.
        steps: optimizer steps.
        epoch: the chosen one, from 1.
        score: of its quantized network on the held-out data; NaN without such data.
        reference: score of the network before; NaN without such data.
        history: figures of every epoch.
        seconds: that this call took.
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
        tuner: from :func:`fewbits.prepare`; ``tuner.finish()`` afterwards makes the file.
        loss: ``loss(model, batch)``, the mean over the samples: ``CrossEntropy()``,
            ``Distillation(teacher)`` or your own.
        data: samples that can be indexed (``fewbits.sources``), shuffled here; or any re-iterable
            of batches, such as a DataLoader, whose batches and order stay.
        epochs: passes over ``data``.
        optimizer: over ``tuner.model.parameters()`` and ``tuner.parameters()``; see
            :func:`make_optimizer`.
        batch_size: samples of one step, of all processes together; ignored by your own loaders.
        accumulate: micro-batches in which a process takes its share of a batch, to save memory.
        lr_schedule: factor on the optimizer's learning rates, a function of the share that is done.
        clip: largest norm of all gradients together; None leaves them.
        augment: random changes of the inputs.
        judge: score of a network on *held-out training data*, higher is better; the epoch is
            chosen by it. None keeps the last epoch.
        selection: the rule of choice; ``Selection()`` by default.
        reference: score of the float network, from which ``selection`` counts a drop; None has the
            network judged as it is at the start.
        folder: for checkpoints and logs; None keeps nothing on disk.
        resume: go on from the folder's checkpoint, with the same arguments as before.
        save_seconds: a checkpoint is written after every epoch, and within it when a row of the
            log is due and this time has passed.
        logs: in the folder: "csv" (metrics.csv) and "tensorboard".
        log_every: steps between rows of the log.
        seed: of the data's order, augmentation and the network's own random numbers. The global
            random state is left as it was.
        key: what else must be the same to resume, such as a fingerprint of the data.
        fabric: devices and precision; one device in float32 by default.
        progress: told after every step: loss, penalty, rate and accuracy.

    Raises:
        ConfigError: a setting, or a run of other settings to be resumed.
        CalibrationError: the data; ModelError: the forward pass, or a loss that is not finite.
        MissingExtraError: Lightning Fabric is not installed.
    """
    require(isinstance(epochs, int) and epochs >= 1, "epochs", "an integer >= 1", epochs)
    require(log_every >= 1, "log_every", "an integer >= 1", log_every)
    require(accumulate >= 1, "accumulate", "an integer >= 1", accumulate)
    if resume and folder is None:
        raise ConfigError("resume= needs folder=, that of the run to go on with.")
    fabric = fabric or make_fabric()
    check_fabric(fabric)
    selection = selection or Selection()
    sharing = Sharing(fabric.global_rank, fabric.world_size, accumulate)
    with kept_random_state(fabric.device):
        batches = TrainingBatches(data, batch_size, sharing, seed, augment)
        stepper = Stepper(
            tuner,
            loss,
            optimizer,
            fabric,
            lr_schedule=lr_schedule,
            clip=clip,
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
    """The position in a run, and what happens at every step and epoch."""

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
        """Steps done in all."""
        return self.epoch * self.batches.steps + self.step

    def run(self, resume: bool, logs: tuple[str, ...]) -> Fitted:
        """Train from the start or the checkpoint to the end."""
        began = time.perf_counter()
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
            seconds=time.perf_counter() - began,
            main=self.main,
        )

    def _train_epoch(self, total: int) -> None:
        self.stepper.model.train()
        rank = self.stepper.fabric.global_rank
        for micros in self.batches.epoch(self.epoch, self.step):
            seed_everything_at(self.seed, self.epoch, self.step, _NETWORK, rank)
            self.metrics.add(self.stepper.step(micros, self.done))
            self.step += 1
            if self.step % self.log_every == 0 and self.step < self.batches.steps:
                self._log()
                if time.monotonic() - self.saved_at >= self.save_seconds:
                    self._save()
            told = f"{self.epoch + 1}/{self.epochs} {self.metrics.line()}"
            self.progress(ProgressEvent("train", self.done, total, told))

    def _end_epoch(self) -> None:
        if self.epoch + 1 == self.epochs:
            self.stepper.tuner.advance(1.0)
        self._log(last_of_epoch=True)
        self.epoch, self.step = self.epoch + 1, 0
        score = self.best_epoch.judged()
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
