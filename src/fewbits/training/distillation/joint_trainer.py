"""Joint distillation of several students by one teacher, in a loop of your own."""

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
    """One teacher and several students, in your own loop of one process: :meth:`step` per batch.

    Args:
        teacher: float network, with ``teacher_optimizer``; None for that freezes it.
        students: pairs (tuner, optimizer); each tuner's network is a student.
        teacher_optimizer: over the teacher's parameters.
        weights: of the terms, the same for all students.
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
                f"JointTrainer is for one process, and {process_count()} train together: nobody "
                "would average gradients. Train one student, by fit() with JointDistillation."
            )
        self.teacher, self.students, self.optimizer = teacher, list(students), teacher_optimizer
        self.weights, self.hints, self.forward = weights or JointWeights(), hints, forward
        check_hints(hints, self.weights.hints, teacher)
        for tuner, _ in self.students:
            self._student_maps(tuner.model)

    def step(self, batch: Any) -> tuple[list[float], float]:
        """Do one step of everybody; the teacher's by the students' logits before their steps.

        Advance the tuners yourself: ``tuner.advance(done / total)``.

        Returns:
            The losses of the students, and the teacher's.

        Raises:
            CalibrationError: a batch without labels.
            ConfigError: hints of modules that cannot be compared, or autocast to float16.
        """
        self.teacher.train(self.optimizer is not None)
        names = [theirs for _, theirs in self.hints]
        with (
            torch.set_grad_enabled(self.optimizer is not None),
            FeatureMaps(self.teacher, names, "teacher") as followed,
        ):
            wanted = logits_of(self.forward, self.teacher, batch)
        labels = needed_labels(batch).to(wanted.device)
        before, told = [], []
        for tuner, optimizer in self.students:
            with self._student_maps(tuner.model) as features:
                logits = logits_of(self.forward, tuner.model, batch)
            (loss,), _ = joint_losses(wanted.detach(), [logits], labels, self.weights)
            loss = loss + self.weights.hints * hint_loss(features.outputs, followed.outputs)
            self._learn(tuner, optimizer, loss)
            before.append(logits.detach())
            told.append(float(loss.detach()))
        _, taught = joint_losses(wanted, before, labels, self.weights)
        if self.optimizer is not None:
            self.optimizer.zero_grad()
            with without_autocast(taught.device.type):
                taught.backward()  # type: ignore[no-untyped-call]
                self.optimizer.step()
        return told, float(taught.detach())

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
        """Take what :meth:`state_dict` gave.

        Raises:
            ConfigError: it is of another number of students, or of a teacher that was frozen where
                this one trains, or the other way round.
        """
        kept, own = state["students"], self.students
        if len(kept) != len(own):
            raise ConfigError(
                f"the state is of {len(kept)} students, and this JointTrainer has {len(own)}. Make "
                "it with the same students, in the same order."
            )
        if (state["optimizer"] is None) != (self.optimizer is None):
            was, now = ("frozen", "trains") if self.optimizer else ("trained", "is frozen")
            raise ConfigError(
                f"the teacher of the state was {was}, and this one {now}. Make the JointTrainer "
                "with teacher_optimizer= as it was."
            )
        self.teacher.load_state_dict(state["teacher"])
        if self.optimizer is not None:
            self.optimizer.load_state_dict(state["optimizer"])
        for part, (tuner, optimizer) in zip(kept, own, strict=True):
            tuner.model.load_state_dict(part["model"])
            tuner.load_state_dict(part["tuner"])
            optimizer.load_state_dict(part["optimizer"])

    def _student_maps(self, model: nn.Module) -> FeatureMaps:
        return FeatureMaps(model, [ours for ours, _ in self.hints], "student")

    def _learn(self, tuner: Any, optimizer: Optimizer, loss: Tensor) -> None:
        optimizer.zero_grad()
        with without_autocast(loss.device.type):
            (loss + tuner.penalty()).backward()
            optimizer.step()
            tuner.step()
