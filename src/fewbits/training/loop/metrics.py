"""Running means of what steps tell: reduced over the processes, and only when a row is due."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...errors import ModelError

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["Metrics"]


class Metrics:
    """Means since the last row, and since the epoch began.

    Attributes:
        latest: the last row.
        history: one row for each epoch that is done.
    """

    def __init__(self, fabric: Fabric) -> None:
        self.fabric = fabric
        self.latest: dict[str, float] = {}
        self.history: list[dict[str, float]] = []
        self._window: dict[str, Tensor] = {}
        self._steps = 0
        self._sums: dict[str, float] = {}
        self._counted = 0

    def add(self, told: Mapping[str, Tensor]) -> None:
        """Take in the means of one step, without waiting for the device."""
        for name, value in told.items():
            wide = value.float() if value.device.type == "mps" else value.double()
            self._window[name] = self._window[name] + wide if name in self._window else wide
        self._steps += 1

    def flush(self, step: int, measures: Callable[[], Mapping[str, float]]) -> dict[str, float]:
        """Return the means since the last call over all processes, and the method's own figures.

        Raises:
            ModelError: the loss is not finite.
        """
        if self._steps:
            names = list(self._window)
            means = torch.stack([self._window[name] for name in names]) / self._steps
            if self.fabric.world_size > 1:
                self.fabric.all_reduce(means, reduce_op="mean")
            row = dict(zip(names, means.tolist(), strict=True))
            for name, value in row.items():
                self._sums[name] = self._sums.get(name, 0.0) + value * self._steps
            self._counted += self._steps
            self._window, self._steps = {}, 0
            bad = [name for name in ("loss", "penalty") if not math.isfinite(row.get(name, 0.0))]
            if bad:
                raise ModelError(
                    f"the {bad[0]} is {row[bad[0]]} in step {step}: training diverged. Lower the "
                    "learning rate, warm up, or clip gradients."
                )
            self.latest = {**row, **{k: float(v) for k, v in measures().items()}}
        return dict(self.latest)

    def end_epoch(self, epoch: int, score: float) -> dict[str, float]:
        """Return the row of an epoch that is done, and begin the next."""
        means = {name: value / self._counted for name, value in self._sums.items()}
        figures = {k: v for k, v in self.latest.items() if k not in means}
        row = {"epoch": float(epoch), **means, **figures}
        if not math.isnan(score):
            row["held_out"] = score
        self.history.append(row)
        self._sums, self._counted = {}, 0
        return row

    def line(self) -> str:
        """Return the last row in a few words."""
        parts = []
        for name, shown, form in (
            ("loss", "loss", ".3f"),
            ("bits_per_weight", "bits per weight", ".2f"),
            ("accuracy", "accuracy", ".1%"),
            ("penalty", "penalty", ".4f"),
        ):
            if name in self.latest and (name != "penalty" or self.latest[name]):
                parts.append(f"{shown} {self.latest[name]:{form}}")
        if self.history and "held_out" in self.history[-1]:
            parts.append(f"held out {self.history[-1]['held_out']:.4g}")
        return " ".join(parts)

    def state_dict(self) -> dict[str, Any]:
        """Return plain values; nothing since the last row, as it is empty when a state is saved."""
        return {
            "latest": self.latest,
            "history": self.history,
            "sums": self._sums,
            "counted": self._counted,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what :meth:`state_dict` returned."""
        self.latest, self.history = dict(state["latest"]), list(state["history"])
        self._sums, self._counted = dict(state["sums"]), int(state["counted"])
