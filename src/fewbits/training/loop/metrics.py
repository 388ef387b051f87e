"""Running means of the metrics of steps, reduced over processes only when a row is due."""

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
    """Means since the last row, and since the start of the epoch.

    Attributes:
        latest: the last row.
        history: one row for each finished epoch.
    """

    def __init__(self, fabric: Fabric) -> None:
        self.fabric = fabric
        self.latest: dict[str, float] = {}
        self.history: list[dict[str, float]] = []
        self._window: dict[str, Tensor] = {}
        self._steps = 0
        self._sums: dict[str, float] = {}
        self._counted = 0

    def add(self, means: Mapping[str, Tensor]) -> None:
        """Add the means of one step, without waiting for the device."""
        for name, value in means.items():
            wide = value.float() if value.device.type == "mps" else value.double()
            self._window[name] = self._window[name] + wide if name in self._window else wide
        self._steps += 1

    def flush(self, step: int, measures: Callable[[], Mapping[str, float]]) -> dict[str, float]:
        """Return the means since the last call over all processes, and the method's own metrics.

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
                    f"the {bad[0]} is {row[bad[0]]} at step {step}: training diverged. Lower the "
                    "learning rate, use warm-up, or clip gradients (relative_clip)."
                )
            self.latest = {**row, **{k: float(v) for k, v in measures().items()}}
        return dict(self.latest)

    def end_epoch(self, epoch: int, score: float) -> dict[str, float]:
        """Return the row of a finished epoch, and start the next."""
        means = {name: value / self._counted for name, value in self._sums.items()}
        others = {k: v for k, v in self.latest.items() if k not in means}
        row = {"epoch": float(epoch), **means, **others}
        if not math.isnan(score):
            row["held_out"] = score
        self.history.append(row)
        self._sums, self._counted = {}, 0
        return row

    def line(self) -> str:
        """Return a summary of the last row."""
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
        """Return plain values; must be called right after :meth:`flush`."""
        return {
            "latest": self.latest,
            "history": self.history,
            "sums": self._sums,
            "counted": self._counted,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state returned by :meth:`state_dict`."""
        self.latest, self.history = dict(state["latest"]), list(state["history"])
        self._sums, self._counted = dict(state["sums"]), int(state["counted"])
