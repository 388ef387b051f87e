"""Joint distillation: a float teacher and low-bit students trained together (Zhuang et al. 2021).

Each student learns from the labels and the teacher; the teacher learns from the labels and the
students. The outputs that one network learns from are constants to it, so no gradient passes
between networks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.nn import functional as F
from torch.optim import Optimizer

from ...engine.network.batches import Forward, call_model, labels_of
from ...engine.network.distributed import average_gradients, take_from_first
from ...errors import CalibrationError, ConfigError, require
from .features import FeatureMaps, check_hints, hint_loss
from .losses import LossResult, distillation_loss, logits_of

__all__ = ["JointDistillation", "JointWeights", "joint_losses"]


@dataclass(frozen=True, kw_only=True)
class JointWeights:
    """Weights of the terms of the loss; the defaults are the authors' for CIFAR-100.

    Attributes:
        student_labels: weight of the student's cross-entropy.
        student_teacher: weight of T^2 KL(teacher || student), minimized by the student.
        teacher_labels: weight of the teacher's cross-entropy.
        teacher_student: weight of the mean over students of T^2 KL(student || teacher), minimized
            by the teacher.
        hints: weight of half the mean squared difference of feature maps, minimized by the student.
            Set it if and only if pairs of modules are given.
        temperature: T, by which logits are divided.
    """

    student_labels: float = 0.7
    student_teacher: float = 0.7
    teacher_labels: float = 1.0
    teacher_student: float = 0.5
    hints: float = 0.0
    temperature: float = 1.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            require(value >= 0, name, "a number >= 0", value)
        require(self.temperature > 0, "temperature", "a number > 0", self.temperature)


def joint_losses(
    teacher: Tensor, students: Sequence[Tensor], labels: Tensor, weights: JointWeights
) -> tuple[list[Tensor], Tensor]:
    """Return the loss of every student and that of the teacher: means over samples, in nats.

    ``teacher`` and each of ``students`` are logits (n, classes), ``labels`` int64 (n,).
    """
    temperature = weights.temperature
    losses = [
        weights.student_labels * F.cross_entropy(logits.float(), labels)
        + weights.student_teacher * distillation_loss(logits, teacher.detach(), temperature)
        for logits in students
    ]
    from_students = [distillation_loss(teacher, q.detach(), temperature) for q in students]
    from_labels = weights.teacher_labels * F.cross_entropy(teacher.float(), labels)
    return losses, from_labels + weights.teacher_student * torch.stack(from_students).mean()


@dataclass(eq=False)
class JointDistillation:
    """A loss for :func:`fewbits.training.fit` that trains the teacher together with the student.

    In your own loop, a call returns the student's loss, and runs the backward pass and the step of
    the teacher, based on the student's logits before its step. Without gradients it only returns
    the loss. With micro-batches or float16, call :meth:`losses` and :meth:`step` separately, as
    ``fit`` does if this object itself is its loss::

        for batch, weight in micro_batches:
            student, teacher, metrics = joint.losses(model, batch)
            ((student + teacher) * weight).backward()
        optimizer.step()
        joint.step()

    In a ``torch.distributed`` group, the teacher starts with the values of the first process and
    steps by the mean gradient of all; do not wrap it in DistributedDataParallel.

    Attributes:
        teacher: float network for the same task; it may be a copy of the student that shares
            nothing with it.
        optimizer: optimizer of the teacher. None freezes the teacher, which then runs in evaluation
            mode without gradients.
        weights: weights of the terms.
        lr_schedule: factor on the teacher's learning rate as a function of its steps over
            ``total``.
        total: number of steps of the teacher; required with ``lr_schedule``.
        hints: pairs (module of the student, module of the teacher) whose outputs are compared.
        forward: ``forward(model, batch) -> logits (n, classes)``.
    """

    teacher: nn.Module
    optimizer: Optimizer | None = None
    weights: JointWeights = field(default_factory=JointWeights)
    lr_schedule: Callable[[float], float] | None = None
    total: int = 0
    hints: Sequence[tuple[str, str]] = ()
    forward: Forward = call_model
    steps: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        if self.lr_schedule is not None and self.total < 1:
            raise ConfigError("lr_schedule= needs total=, the number of steps of the teacher.")
        check_hints(self.hints, self.weights.hints, self.teacher)
        for group in self.optimizer.param_groups if self.optimizer else ():
            group.setdefault("initial_lr", group["lr"])
        self._begun = False  # not a field, because it must not change the fingerprint of a run

    def __call__(self, model: nn.Module, batch: Any) -> LossResult:
        """Return the student's loss, with "distil", "accuracy" and "teacher_loss".

        Raises:
            CalibrationError: a batch without labels.
            ConfigError: hints of modules that cannot be compared; or the teacher would step by
                unscaled float16 gradients.
        """
        loss, teacher_loss, metrics = self.losses(model, batch)
        if teacher_loss.requires_grad:
            with without_autocast(teacher_loss.device.type):
                teacher_loss.backward()  # type: ignore[no-untyped-call]
                self.step()
        return loss, metrics

    def losses(self, model: nn.Module, batch: Any) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Return the loss of the student, that of the teacher, and metrics, without any step.

        The gradient of the sum gives each network its own gradient; a frozen teacher has none.
        """
        labels = needed_labels(batch)
        with FeatureMaps(self.teacher, [name for _, name in self.hints], "teacher") as teacher_maps:
            target = self._run_teacher(batch)
        with FeatureMaps(model, [name for name, _ in self.hints], "student") as student_maps:
            logits = logits_of(self.forward, model, batch)
        labels = labels.to(logits.device)
        (loss,), teacher_loss = joint_losses(target, [logits], labels, self.weights)
        hint = hint_loss(student_maps.outputs, teacher_maps.outputs)
        distil = distillation_loss(logits.detach(), target.detach(), self.weights.temperature)
        accuracy = (logits.detach().argmax(1) == labels).float().mean()
        metrics = {"distil": distil, "teacher_loss": teacher_loss.detach(), "accuracy": accuracy}
        return loss + self.weights.hints * hint, teacher_loss, metrics

    def step(self, scaler: GradScaler | None = None) -> None:
        """Update the teacher with its gradients and clear them; do nothing if it is frozen.

        If ``scaler`` scaled the losses, call this before ``scaler.update()``.
        """
        optimizer = self.optimizer
        if optimizer is None:
            return
        if self.lr_schedule is not None:
            factor = self.lr_schedule(min(1.0, self.steps / self.total))
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * factor
        average_gradients(p for group in optimizer.param_groups for p in group["params"])
        if scaler is None:
            optimizer.step()
        else:
            scaler.step(optimizer)
        optimizer.zero_grad()
        take_from_first(self.teacher.buffers())  # each process has statistics of its own samples
        self.steps += 1

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs: the teacher, its optimizer and its steps."""
        optimizer = None if self.optimizer is None else self.optimizer.state_dict()
        return {"teacher": self.teacher.state_dict(), "optimizer": optimizer, "steps": self.steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state returned by :meth:`state_dict`."""
        self.teacher.load_state_dict(state["teacher"])
        if self.optimizer is not None:
            self.optimizer.load_state_dict(state["optimizer"])
        self.steps = int(state["steps"])

    def _run_teacher(self, batch: Any) -> Tensor:
        trains = self.optimizer is not None and torch.is_grad_enabled()
        if trains and self.optimizer is not None and not self._begun:
            self.optimizer.zero_grad()  # gradients left by an earlier training
            take_from_first([*self.teacher.parameters(), *self.teacher.buffers()])
            self._begun = True
        self.teacher.train(trains)
        with torch.set_grad_enabled(trains):
            return logits_of(self.forward, self.teacher, batch)


def without_autocast(kind: str) -> AbstractContextManager[Any]:
    """Disable autocast for backward passes and optimizer steps.

    Raises:
        ConfigError: autocast to float16 is on, where small gradients are lost without a scaler.
    """
    if torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) is torch.float16:
        raise ConfigError(
            "this joint step runs under autocast to float16, where gradients need a scaler. Use "
            "bfloat16. Or, with one student, pass JointDistillation itself to fit(), or in your "
            "own loop scale the results of its losses() and call its step(scaler)."
        )
    return torch.autocast(kind, enabled=False)


def needed_labels(batch: Any) -> Tensor:
    """Return the labels (n,) of a batch, or raise a :class:`CalibrationError`."""
    labels = labels_of(batch)
    if labels is None:
        raise CalibrationError(
            "joint distillation needs labels, as (inputs, labels) or a dict with 'labels', but the "
            "batch has none. To distil from a frozen teacher without labels, use "
            "Distillation(weight=1)."
        )
    return labels
