"""Joint distillation: a float teacher and low-bit students trained together (Zhuang et al. 2021).

Each student follows the labels and the teacher; the teacher follows the labels and the students.
What one follows of another is a constant to it: nobody's gradient reaches anybody else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from ..engine.batches import Forward, call_model, labels_of
from ..errors import CalibrationError, ConfigError, require
from .losses import Told, distillation_loss, logits_of

__all__ = ["JointDistillation", "JointTrainer", "JointWeights", "joint_losses"]


@dataclass(frozen=True, kw_only=True)
class JointWeights:
    """Weights of the terms; the defaults are the authors' for CIFAR-100.

    Attributes:
        student_labels: of the student's cross-entropy.
        student_teacher: of T^2 KL(teacher || student), followed by the student.
        teacher_labels: of the teacher's cross-entropy.
        teacher_student: of the mean over students of T^2 KL(student || teacher), followed by the
            teacher.
        hints: of half the mean squared difference of feature maps, followed by the student.
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

    Called while training, it also does the teacher's backward pass and step, by the student's
    logits before its own step. Called without gradients it only tells the loss.

    Attributes:
        teacher: float network of the student's task; it may be a copy of it, sharing nothing.
        optimizer: of the teacher; None freezes it: it runs in evaluation mode, without gradients.
        weights: of the terms.
        rate: factor on the teacher's learning rate as a function of its own steps over ``total``.
        total: steps that the teacher will do; needed with ``rate``.
        hints: pairs (module of the student, module of the teacher) whose outputs are compared.
        forward: ``forward(model, batch) -> logits (n, classes)``.
    """

    teacher: nn.Module
    optimizer: Optimizer | None = None
    weights: JointWeights = field(default_factory=JointWeights)
    rate: Callable[[float], float] | None = None
    total: int = 0
    hints: Sequence[tuple[str, str]] = ()
    forward: Forward = call_model
    steps: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        if self.rate is not None and self.total < 1:
            raise ConfigError("rate= of the teacher needs total=, the number of its steps.")
        for group in self.optimizer.param_groups if self.optimizer else ():
            group.setdefault("initial_lr", group["lr"])

    def __call__(self, model: nn.Module, batch: Any) -> Told:
        """Return the student's loss, with "distil", "accuracy" and "teacher_loss"."""
        labels = _labels(batch)
        learning = torch.is_grad_enabled()
        with _Features(model, self.teacher, self.hints) as features:
            wanted = self._teach(batch, learning)
            logits = logits_of(self.forward, model, batch)
            labels = labels.to(logits.device)
            (loss,), taught = joint_losses(wanted, [logits], labels, self.weights)
            hint = features.distance()
        if learning and self.optimizer is not None:
            self._step(taught)
        distil = distillation_loss(logits.detach(), wanted.detach(), self.weights.temperature)
        right = (logits.detach().argmax(1) == labels).float().mean()
        told = {"distil": distil, "teacher_loss": taught.detach(), "accuracy": right}
        return loss + self.weights.hints * hint, told

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

    def _teach(self, batch: Any, learning: bool) -> Tensor:
        trains = learning and self.optimizer is not None
        self.teacher.train(trains)
        with torch.set_grad_enabled(trains):
            return logits_of(self.forward, self.teacher, batch)

    def _step(self, loss: Tensor) -> None:
        optimizer = self.optimizer
        if optimizer is None:
            return
        if self.rate is not None:
            factor = self.rate(min(1.0, self.steps / self.total))
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * factor
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        self.steps += 1


class JointTrainer:
    """One teacher and several students, in your own loop: :meth:`step` per batch.

    Args:
        teacher: float network, with ``teacher_optimizer``; None for that freezes it.
        students: pairs (tuner, optimizer); each tuner's network is a student.
        teacher_optimizer: over the teacher's parameters.
        weights: of the terms, the same for all students.
        forward: ``forward(model, batch) -> logits``.
    """

    def __init__(
        self,
        teacher: nn.Module,
        students: Sequence[tuple[Any, Optimizer]],
        teacher_optimizer: Optimizer | None = None,
        *,
        weights: JointWeights | None = None,
        forward: Forward = call_model,
    ) -> None:
        require(len(students) > 0, "students", "at least one (tuner, optimizer)", students)
        self.teacher, self.students, self.optimizer = teacher, list(students), teacher_optimizer
        self.weights, self.forward = weights or JointWeights(), forward

    def step(self, batch: Any) -> tuple[list[float], float]:
        """Do one step of everybody; the teacher's by the students' logits before their steps.

        Advance the tuners yourself: ``tuner.advance(done / total)``.

        Returns:
            The losses of the students, and the teacher's.
        """
        self.teacher.train(self.optimizer is not None)
        with torch.set_grad_enabled(self.optimizer is not None):
            wanted = logits_of(self.forward, self.teacher, batch)
        labels = _labels(batch).to(wanted.device)
        before, told = [], []
        for tuner, optimizer in self.students:
            logits = logits_of(self.forward, tuner.model, batch)
            (loss,), _ = joint_losses(wanted.detach(), [logits], labels, self.weights)
            optimizer.zero_grad()
            (loss + tuner.penalty()).backward()
            optimizer.step()
            tuner.step()
            before.append(logits.detach())
            told.append(float(loss.detach()))
        _, taught = joint_losses(wanted, before, labels, self.weights)
        if self.optimizer is not None:
            self.optimizer.zero_grad()
            taught.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
        return told, float(taught.detach())


class _Features:
    """Outputs of pairs of modules, while both networks run."""

    def __init__(
        self, model: nn.Module, teacher: nn.Module, pairs: Sequence[tuple[str, str]]
    ) -> None:
        self.pairs, self.outputs = pairs, {}  # type: ignore[var-annotated]
        inner = getattr(model, "module", model) if pairs else model
        self.modules = [
            (inner.get_submodule(ours), teacher.get_submodule(theirs)) for ours, theirs in pairs
        ]

    def __enter__(self) -> _Features:
        self.handles = []
        for number, pair in enumerate(self.modules):
            for side, module in enumerate(pair):

                def keep(_m: Any, _a: Any, output: Tensor, key: Any = (number, side)) -> None:
                    self.outputs[key] = output

                self.handles.append(module.register_forward_hook(keep))
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self.handles:
            handle.remove()

    def distance(self) -> Tensor:
        """Return half the mean squared difference, over the pairs; the teacher is a constant."""
        total = torch.zeros(())
        for number in range(len(self.modules)):
            ours, theirs = self.outputs[number, 0], self.outputs[number, 1].detach()
            total = total.to(ours.device) + F.mse_loss(ours.float(), theirs.float()) / 2
        return total / max(1, len(self.modules))


def _labels(batch: Any) -> Tensor:
    labels = labels_of(batch)
    if labels is None:
        raise CalibrationError(
            "joint distillation needs labels, (inputs, labels) or a dict with 'labels'; the batch "
            "has none. With a frozen teacher and no labels use Distillation(weight=1)."
        )
    return labels
