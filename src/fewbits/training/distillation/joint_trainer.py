"""Joint distillation of several students and one teacher, in your own loop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ...engine.network.batches import Forward, call_model
from ...engine.network.distributed import process_count
from ...errors import ConfigError, require
from .features import FeatureMaps, check_hints, hint_loss
from .joint import JointWeights, joint_losses, needed_labels, without_autocast
from .losses import logits_of

__all__ = ["JointTrainer"]


class JointTrainer:
    """Trains one teacher and several students in your own loop: call :meth:`step` per batch.

    Args:
        teacher: the float network.
        students: pairs (tuner, optimizer); the network of each tuner is a student.
        teacher_optimizer: optimizer over the teacher's parameters; None freezes the teacher.
        weights: weights of the terms, the same for all students.
        hints: pairs (module of every student, module of the teacher) whose outputs are compared.
        forward: ``forward(model, batch) -> logits``.

    Raises:
        ConfigError: no student, several processes, or hints that name no module or have no weight.
    """

    def __init__(
        self,
        teacher: nn.Module,
        students: Sequence[tuple[Any, Optimizer]],
        teacher_optimizer: Optimizer | None = None,
        *,
        weights: JointWeights | None = None,
        hints: Sequence[tuple[str, str]] = (),
        forward: Forward = call_model,
    ) -> None:
        require(len(students) > 0, "students", "at least one (tuner, optimizer)", students)
        if process_count() > 1:
            raise ConfigError(
                f"JointTrainer supports one process only, because it does not average gradients. "
                f"Got {process_count()}. Train one student by fit() with JointDistillation instead."
            )
        self.teacher, self.students, self.optimizer = teacher, list(students), teacher_optimizer
        self.weights, self.hints, self.forward = weights or JointWeights(), hints, forward
        check_hints(hints, self.weights.hints, teacher)
        for tuner, _ in self.students:
            self._student_maps(tuner.model)

    def step(self, batch: Any) -> tuple[list[float], float]:
        """Update all networks; the teacher learns from the students' logits before their steps.

        Advance the tuners yourself: ``tuner.advance(done / total)``.

        Returns:
            The losses of the students, and that of the teacher.

        Raises:
            CalibrationError: a batch without labels.
            ConfigError: hints of modules that cannot be compared, or autocast to float16.
        """
        self.teacher.train(self.optimizer is not None)
        names = [name for _, name in self.hints]
        with (
            torch.set_grad_enabled(self.optimizer is not None),
            FeatureMaps(self.teacher, names, "teacher") as teacher_maps,
        ):
            target = logits_of(self.forward, self.teacher, batch)
        labels = needed_labels(batch).to(target.device)
        student_logits, losses = [], []
        for tuner, optimizer in self.students:
            with self._student_maps(tuner.model) as maps:
                logits = logits_of(self.forward, tuner.model, batch)
            (loss,), _ = joint_losses(target.detach(), [logits], labels, self.weights)
            loss = loss + self.weights.hints * hint_loss(maps.outputs, teacher_maps.outputs)
            self._update_student(tuner, optimizer, loss)
            student_logits.append(logits.detach())
            losses.append(float(loss.detach()))
        _, teacher_loss = joint_losses(target, student_logits, labels, self.weights)
        if self.optimizer is not None:
            self.optimizer.zero_grad()
            with without_autocast(teacher_loss.device.type):
                teacher_loss.backward()  # type: ignore[no-untyped-call]
                self.optimizer.step()
        return losses, float(teacher_loss.detach())

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs: all networks, tuners and optimizers."""
        return {
            "teacher": self.teacher.state_dict(),
            "optimizer": None if self.optimizer is None else self.optimizer.state_dict(),
            "students": [
                {
                    "model": tuner.model.state_dict(),
                    "tuner": tuner.state_dict(),
                    "optimizer": optimizer.state_dict(),
                }
                for tuner, optimizer in self.students
            ],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state returned by :meth:`state_dict`.

        Raises:
            ConfigError: the state has another number of students, or its teacher was frozen and
                this one is not, or vice versa.
        """
        stored, own = state["students"], self.students
        if len(stored) != len(own):
            raise ConfigError(
                f"the state has {len(stored)} students, but this JointTrainer has {len(own)}. "
                "Create it with the same students in the same order."
            )
        if (state["optimizer"] is None) != (self.optimizer is None):
            was, now = ("frozen", "is trained") if self.optimizer else ("trained", "is frozen")
            raise ConfigError(
                f"the teacher of the state was {was}, but this one {now}. Create the JointTrainer "
                "with teacher_optimizer= as it was."
            )
        self.teacher.load_state_dict(state["teacher"])
        if self.optimizer is not None:
            self.optimizer.load_state_dict(state["optimizer"])
        for part, (tuner, optimizer) in zip(stored, own, strict=True):
            tuner.model.load_state_dict(part["model"])
            tuner.load_state_dict(part["tuner"])
            optimizer.load_state_dict(part["optimizer"])

    def _student_maps(self, model: nn.Module) -> FeatureMaps:
        return FeatureMaps(model, [name for name, _ in self.hints], "student")

    def _update_student(self, tuner: Any, optimizer: Optimizer, loss: Tensor) -> None:
        optimizer.zero_grad()
        with without_autocast(loss.device.type):
            (loss + tuner.penalty()).backward()
            optimizer.step()
            tuner.step()
