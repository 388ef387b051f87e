"""One training step: micro-batches, penalty, gradients of all processes, optimizer and tuner."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ...engine.network.distributed import average_gradients
from ...errors import ConfigError, require
from ..data.batches import MicroBatch, TrainingBatches
from ..distillation.joint import JointDistillation
from ..distillation.losses import Distillation, Loss
from .lr_schedules import LRSchedule
from .selection import Selection

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["Stepper", "Tunable"]


_LEAST_NORM = 1e-3  # of a tensor, so that one of zeros can move


class Stepper:
    """Network, tuner and optimizer on their devices.

    Attributes:
        model: the network as wrapped by Fabric; ``tuner.model`` is the user's own.
    """

    def __init__(
        self,
        tuner: Tunable,
        loss: Loss,
        optimizer: Optimizer,
        fabric: Fabric,
        *,
        lr_schedule: LRSchedule,
        clip: float | None,
        relative_clip: float | None = None,
        total: int,
    ) -> None:
        for name, value in (("clip", clip), ("relative_clip", relative_clip)):
            require(value is None or value > 0, name, "a number > 0, or None", value)
        self.relative_clip = relative_clip
        self.tuner, self.loss, self.fabric = tuner, loss, fabric
        self.lr_schedule, self.clip, self.total = lr_schedule, clip, total
        self.stage = tuner.stage
        self.plain = optimizer
        for group in optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])
        _check_device(tuner.model, fabric.device)
        self.model, self.optimizer = fabric.setup(tuner.model, optimizer)
        if isinstance(loss, (Distillation, JointDistillation)):
            fabric.to_device(loss.teacher)
        self.joint = loss if isinstance(loss, JointDistillation) else None
        shared = {id(parameter) for parameter in tuner.model.parameters()}
        self.method_parameters = [p for p in tuner.parameters() if id(p) not in shared]

    @property
    def learning_rate(self) -> float:
        """The learning rate of the first parameter group at the latest step."""
        return float(self.plain.param_groups[0]["lr"])

    def step(self, micros: list[MicroBatch], done: int) -> dict[str, Tensor]:
        """Do one step after ``done`` others; return means over this process's samples."""
        progress = done / self.total
        self.tuner.advance(progress)
        if self.tuner.stage != self.stage:  # momenta belong to another loss
            self.stage = self.tuner.stage
            self.plain.state.clear()
        for group in self.plain.param_groups:
            group["lr"] = group["initial_lr"] * self.lr_schedule(progress)
        metrics: dict[str, Tensor] = {}
        for position, micro in enumerate(micros):
            last = position + 1 == len(micros)
            with self.fabric.no_backward_sync(self.model, enabled=not last):
                total = self._loss(micro, metrics)
                if last:
                    penalty = self.tuner.penalty()
                    metrics["penalty"] = penalty.detach()
                    total = total + penalty
                self.fabric.backward(total)
        average_gradients(self.method_parameters)
        if self.relative_clip is not None:
            self._clip_relatively(self.relative_clip)
        if self.clip is not None:
            self.fabric.clip_gradients(
                self.model, self.optimizer, max_norm=self.clip, error_if_nonfinite=False
            )
        if self._optimize():
            self.tuner.step()
        self.optimizer.zero_grad()
        return metrics

    def state_dict(self) -> dict[str, Any]:
        """Return everything that a step changes."""
        return {
            "model": self.tuner.model.state_dict(),
            "tuner": self.tuner.state_dict(),
            "optimizer": self.plain.state_dict(),
            "precision": self.fabric.strategy.precision.state_dict(),
            "loss": {} if self.joint is None else self.joint.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state returned by :meth:`state_dict`."""
        self.load_network(state)
        if self.joint is not None:
            self.joint.load_state_dict(state["loss"])
        self.plain.load_state_dict(state["optimizer"])
        self.fabric.strategy.precision.load_state_dict(state["precision"])

    def load_network(self, state: dict[str, Any]) -> None:
        """Restore only the network and the tuner."""
        self.tuner.model.load_state_dict(state["model"])
        self.tuner.load_state_dict(state["tuner"])
        self.stage = self.tuner.stage

    def key(self, given: str, epochs: int, batches: TrainingBatches, selection: Selection) -> str:
        """Return a fingerprint of everything that must be the same to resume a run."""
        shapes = [[n, list(t.shape)] for n, t in self.tuner.model.state_dict().items()]
        settings = [
            {k: v for k, v in group.items() if k not in ("params", "lr")}
            for group in self.plain.param_groups
        ]
        facts = {
            "given": given,
            "network": shapes,
            "optimizer": [type(self.plain).__name__, settings],
            "steps": [epochs, batches.steps, batches.batch_size, batches.seed],
            "processes": [batches.sharing.processes, batches.sharing.accumulate],
            "how": [
                _description(x)
                for x in (self.lr_schedule, *self._clips, batches.augment, selection, self.loss)
            ],
            "precision": str(self.fabric.strategy.precision.precision),
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()

    def _loss(self, micro: MicroBatch, metrics: dict[str, Tensor]) -> Tensor:
        batch = self.fabric.to_device(micro.batch)
        with self.fabric.autocast():
            loss, teacher_loss, more = self._losses(batch)
        for name, value in {"loss": loss, **more}.items():
            part = value.detach() * micro.weight
            metrics[name] = metrics[name] + part if name in metrics else part
        return (loss if teacher_loss is None else loss + teacher_loss) * micro.weight

    def _losses(self, batch: Any) -> tuple[Tensor, Tensor | None, Mapping[str, Tensor]]:
        """Return the loss, that of a jointly trained teacher if any, and metrics."""
        if self.joint is not None:
            return self.joint.losses(self.model, batch)
        result = self.loss(self.model, batch)
        return (result[0], None, result[1]) if isinstance(result, tuple) else (result, None, {})

    @property
    def _clips(self) -> tuple[float | None, ...]:
        """What limits gradients; older checkpoints know of one limit only."""
        return (self.clip,) if self.relative_clip is None else (self.clip, self.relative_clip)

    @torch.no_grad()
    def _clip_relatively(self, most: float) -> None:
        """Scale gradients down to ``most`` times the norm of their tensor (Brock et al. 2021).

        Biases are left alone, because many start at zero, and parameters of the method, because
        logarithms of steps do.
        """
        scaler = getattr(self.fabric.strategy.precision, "scaler", None)
        scale = 1.0 if scaler is None else float(scaler.get_scale())  # of the gradients
        own = {id(parameter) for parameter in self.tuner.parameters()}
        for name, parameter in self.tuner.model.named_parameters():
            if parameter.grad is None or "bias" in name or id(parameter) in own:
                continue
            limit = scale * most * parameter.norm().clamp_min(_LEAST_NORM)
            norm = parameter.grad.norm().clamp_min(torch.finfo(parameter.dtype).tiny)
            parameter.grad.mul_((limit / norm).clamp_max(1.0))

    def _optimize(self) -> bool:
        """Step, and return whether it took place: a float16 scaler skips steps that overflow.

        If only the teacher's step overflows, the method also waits for the next step.
        """
        scaler = getattr(self.fabric.strategy.precision, "scaler", None)
        before = 0.0 if scaler is None else scaler.get_scale()
        if self.joint is not None:
            self.joint.step(scaler)  # before the step of the network, which changes the scale
        self.optimizer.step()
        return scaler is None or bool(scaler.get_scale() >= before)


def _check_device(model: nn.Module, device: torch.device) -> None:
    """Refuse a network on another device, because the state of the tuner is there too."""
    current = next((p.device for p in model.parameters()), device)
    if current.type != device.type:
        raise ConfigError(
            f"the network is on {current}, but training runs on {device}. Move it there before "
            "fewbits.prepare: model.to(fabric.device)."
        )


def _description(value: object) -> str:
    """Describe a setting reproducibly: without memory addresses, networks and tensors."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        plain = {k: v for k, v in fields.items() if not isinstance(v, (nn.Module, torch.Tensor))}
        return f"{type(value).__name__} { {k: _description(v) for k, v in plain.items()} }"
    if callable(value):
        return str(getattr(value, "__qualname__", type(value).__name__))
    return repr(value)


@runtime_checkable
class Tunable(Protocol):
    """A network tuned in place, as returned by :func:`fewbits.prepare`.

    Attributes:
        model: the user's network, whose state dict has the keys of the float network.
    """

    model: nn.Module

    @property
    def stage(self) -> int:
        """Number of the current stage of the method; a new stage resets the optimizer state."""
        ...

    def penalty(self) -> Tensor:
        """Return the term to add to the loss, a scalar."""
        ...

    def step(self) -> None:
        """Modify the weights after ``optimizer.step()``, while gradients are still available."""
        ...

    def advance(self, progress: float) -> None:
        """Update schedules to the finished share of the training, in [0, 1]."""
        ...

    def parameters(self) -> Iterable[nn.Parameter]:
        """Return the parameters of the method."""
        ...

    def measures(self) -> Mapping[str, float]:
        """Return metrics for logs, such as ``bits_per_weight``."""
        ...

    def quantized(self) -> AbstractContextManager[Any]:
        """Return a context manager inside of which the weights are quantized."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return everything except the network's own tensors, as plain values."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> Any:
        """Restore the state returned by :meth:`state_dict`."""
        ...
