"""Joint distillation: a float teacher and low-bit students trained together (Zhuang et al. 2021).

Each student follows the labels and the teacher; the teacher follows the labels and the students.
What one follows of another is a constant to it: nobody's gradient reaches anybody else.
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
from .losses import Told, distillation_loss, logits_of

__all__ = ["JointDistillation", "JointWeights", "joint_losses"]


@dataclass(frozen=True, kw_only=True)
class JointWeights:
    """Weights of the terms; the defaults are the authors' for CIFAR-100.

    Attributes:
        student_labels: of the student's cross-entropy.
        student_teacher: of T^2 KL(teacher || student), followed by the student.
        teacher_labels: of the teacher's cross-entropy.
        teacher_student: of the mean over students of T^2 KL(student || teacher), followed by the
            teacher.
        hints: of half the mean squared difference of feature maps, followed by the student; to be
            set where pairs of modules are named, and only there.
        temperature: T, which divides the logits.
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
    """Return the loss of every student, and the teacher's: means over samples, in nats.

    ``teacher`` and each of ``students`` are logits (n, classes), ``labels`` int64 (n,).
    """
    heat = weights.temperature
    losses = [
        weights.student_labels * F.cross_entropy(logits.float(), labels)
        + weights.student_teacher * distillation_loss(logits, teacher.detach(), heat)
        for logits in students
    ]
    followed = [distillation_loss(teacher, logits.detach(), heat) for logits in students]
    own = weights.teacher_labels * F.cross_entropy(teacher.float(), labels)
    return losses, own + weights.teacher_student * torch.stack(followed).mean()


@dataclass(eq=False)
class JointDistillation:
    """A loss for :func:`fewbits.training.fit` that trains the teacher along with the student.

    In your own loop, a call returns the student's loss and does the teacher's backward pass and
    step, by the student's logits before its own step. Called without gradients it only tells the
    loss. With micro-batches or float16, take :meth:`losses` and :meth:`step` apart, as ``fit``
    does where it is given this loss itself and no function around it::

        for batch, weight in micro_batches:
            student, teacher, told = joint.losses(model, batch)
            ((student + teacher) * weight).backward()
        optimizer.step()
        joint.step()

    In a ``torch.distributed`` group the teacher starts as the first process's, and steps by the
    mean gradient of all; it needs no DistributedDataParallel around it.

    Attributes:
        teacher: float network of the student's task; it may be a copy of it, sharing nothing.
        optimizer: of the teacher; None freezes it: it runs in evaluation mode, without gradients.
        weights: of the terms.
        rate: factor on the teacher's learning rate as a function of its own steps over ``total``.
        total: steps that the teacher will do; needed with ``lr_schedule``.
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
            raise ConfigError("lr_schedule= of the teacher needs total=, the number of its steps.")
        check_hints(self.hints, self.weights.hints, self.teacher)
        for group in self.optimizer.param_groups if self.optimizer else ():
            group.setdefault("initial_lr", group["lr"])
        self._begun = False  # no field: a run is the same whether its teacher has begun or not

    def __call__(self, model: nn.Module, batch: Any) -> Told:
        """Return the student's loss, with "distil", "accuracy" and "teacher_loss".

        Raises:
            CalibrationError: a batch without labels.
            ConfigError: hints of modules that cannot be compared; or the teacher would step by
                gradients of float16 that nobody has scaled.
        """
        loss, taught, told = self.losses(model, batch)
        if taught.requires_grad:
            with without_autocast(taught.device.type):
                taught.backward()  # type: ignore[no-untyped-call]
                self.step()
        return loss, told

    def losses(self, model: nn.Module, batch: Any) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Return the student's loss, the teacher's, and figures to be shown; nobody steps.

        The gradient of their sum is everybody's own; a frozen teacher's has none.
        """
        labels = needed_labels(batch)
        with FeatureMaps(self.teacher, [theirs for _, theirs in self.hints], "teacher") as followed:
            wanted = self._teach(batch)
        with FeatureMaps(model, [ours for ours, _ in self.hints], "student") as features:
            logits = logits_of(self.forward, model, batch)
        labels = labels.to(logits.device)
        (loss,), taught = joint_losses(wanted, [logits], labels, self.weights)
        hint = hint_loss(features.outputs, followed.outputs)
        distil = distillation_loss(logits.detach(), wanted.detach(), self.weights.temperature)
        right = (logits.detach().argmax(1) == labels).float().mean()
        told = {"distil": distil, "teacher_loss": taught.detach(), "accuracy": right}
        return loss + self.weights.hints * hint, taught, told

    def step(self, scaler: GradScaler | None = None) -> None:
        """Let the teacher step by the gradients that it has, and clear them; frozen, do nothing.

        With ``scaler``, which scaled the losses, call this before ``scaler.update()``.
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
        take_from_first(self.teacher.buffers())  # statistics are of a process's own samples
        self.steps += 1

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs: teacher, its optimizer, its steps."""
        optimizer = None if self.optimizer is None else self.optimizer.state_dict()
        return {"teacher": self.teacher.state_dict(), "optimizer": optimizer, "steps": self.steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take what :meth:`state_dict` gave."""
        self.teacher.load_state_dict(state["teacher"])
        if self.optimizer is not None:
            self.optimizer.load_state_dict(state["optimizer"])
        self.steps = int(state["steps"])

    def _teach(self, batch: Any) -> Tensor:
        trains = self.optimizer is not None and torch.is_grad_enabled()
        if trains and self.optimizer is not None and not self._begun:
            self.optimizer.zero_grad()  # what an earlier training has left
            take_from_first([*self.teacher.parameters(), *self.teacher.buffers()])
            self._begun = True
        self.teacher.train(trains)
        with torch.set_grad_enabled(trains):
            return logits_of(self.forward, self.teacher, batch)


def without_autocast(kind: str) -> AbstractContextManager[Any]:
    """Return a block for backward passes and steps, which run as their forward passes did.

    Raises:
        ConfigError: autocast to float16 is on, and small gradients would be lost without a scaler.
    """
    if torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) is torch.float16:
        raise ConfigError(
            "a joint step was asked for under autocast to float16, where gradients need a scaler. "
            "Take bfloat16. Or, with one student, give JointDistillation itself to fit(); in your "
            "own loop scale what its losses() returns, and call its step(scaler)."
        )
    return torch.autocast(kind, enabled=False)


def needed_labels(batch: Any) -> Tensor:
    """Return the labels (n,) of a batch, or raise a :class:`CalibrationError`."""
    labels = labels_of(batch)
    if labels is None:
        raise CalibrationError(
            "joint distillation needs labels, (inputs, labels) or a dict with 'labels'; the batch "
            "has none. With a frozen teacher and no labels use Distillation(weight=1)."
        )
    return labels
