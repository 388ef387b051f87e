"""Weights on their levels, with gradients passed straight through: a parametrization."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ....ops.levels.codebook import assign
from ....ops.rate_distortion.entropy_constrained import assign_priced, envelope
from ..base import TunedWeight
from .levels import Levels

__all__ = ["Rounding"]


class Rounding(nn.Module):
    """Maps a weight to its levels: the nearest, or those of least squared distance plus bits.

    The gradient passes as if it did nothing (Hubara et al. 2016). Steps of a grid are trained where
    ``stretch`` is: its exponential multiplies them (as learned steps, Esser et al. 2020, with their
    scale of the gradient). A trained step is rounded to bfloat16, two bytes in a file. Computes in
    float32, under autocast too; while ``active`` is False it does nothing.
    """

    def __init__(self, weight: TunedWeight, levels: Levels, *, trained: bool) -> None:
        super().__init__()
        self.active = True
        self.stretch = None
        if trained and levels.even:
            self.stretch = nn.Parameter(torch.zeros_like(levels.scale))
        self._base = levels
        self._exact = weight.start is not None  # its steps are as they are until they are trained
        self._weight = weight
        self._lengths: Tensor | None = None
        self._price = 0.0
        self._cells: tuple[Tensor, Tensor] | None = None

    def forward(self, weight: Tensor) -> Tensor:
        """Return the levels in the shape and dtype of ``weight``."""
        if not self.active:
            return weight
        view = self._weight.view
        with torch.autocast(weight.device.type, enabled=False):
            levels = replace(self._base, scale=self._scale())
            units = levels.units(view.matrix(weight).float())
            with torch.no_grad():
                chosen = levels.values[self.positions(units)]
            matrix = levels.matrix(chosen + (units - units.detach()))  # the difference is zero
            return view.tensor(matrix, tuple(weight.shape)).to(weight.dtype)

    @property
    def levels(self) -> Levels:
        """The levels, with steps as trained so far."""
        if self.stretch is None:
            return self._base
        return replace(self._base, scale=self._scale().detach())

    @levels.setter
    def levels(self, levels: Levels) -> None:
        self._base = levels
        self.price(None, 0.0)

    def follow(self, units: Tensor, share: float) -> None:
        """Move each step a ``share`` of the way to the one of least squared error."""
        if self.stretch is None:
            return
        at = self._base.values[self.positions(units)] - self._base.offset[:, None]
        off = units - self._base.offset[:, None]
        whole = len(self._base.scale) == 1
        over, under = (off * at).sum(1), at.square().sum(1)
        if whole:
            over, under = over.sum(0, keepdim=True), under.sum(0, keepdim=True)
        best = torch.where((under > 0) & (over > 0), over / under.clamp_min(1e-12), 1.0)
        self._base = replace(self._base, scale=self._base.scale * (1 + share * (best - 1)))
        self._exact = False

    def _scale(self) -> Tensor:
        base, stretch = self._base.scale, self.stretch
        if stretch is None:
            return base
        weights = self._weight.parameter.numel() / len(base)
        damping = 1 / math.sqrt(weights * max(1.0, float(len(self._base.values) // 2)))
        free = base * (stretch.detach() + (stretch - stretch.detach()) * damping).exp()
        short = free.to(torch.bfloat16).to(base.dtype)
        if self._exact:
            short = torch.where(stretch == 0, base, short)
        return short.detach() * (free / free.detach())  # the ratio is one

    def positions(self, units: Tensor) -> Tensor:
        """Return the position of the level of each unit; that of zero where it is pruned."""
        levels = self._base.values
        if self._cells is not None:
            kept, edges = self._cells
            found = kept[torch.searchsorted(edges, units.contiguous())]
        elif self._lengths is not None:
            found = assign_priced(units, levels, self._lengths, self._price)
        else:
            found = assign(units, levels)
        alive = self._weight.alive()
        if alive is None:
            return found
        return found.where(alive.reshape(found.shape), self._base.zero)

    def price(self, lengths: Tensor | None, price: float) -> None:
        """Set what tuples of levels take, and the squared distance (units) that a bit is worth."""
        self._lengths, self._price = (lengths, price) if price else (None, 0.0)
        one_law = self._lengths is not None and self._lengths.dim() == 1
        self._cells = envelope(self._base.values, lengths, price) if one_law else None  # type: ignore[arg-type]

    def state(self) -> dict[str, Any]:
        """Return everything that training changed, for :meth:`take_state`."""
        return {
            "values": self._base.values,
            "scale": self._base.scale,
            "offset": self._base.offset,
            "exact": self._exact,
            "stretch": None if self.stretch is None else self.stretch.detach(),
            "lengths": self._lengths,
            "price": self._price,
        }

    def take_state(self, state: dict[str, Any]) -> None:
        """Take what :meth:`state` gave."""
        device = self._base.scale.device
        parts = {key: state[key].to(device) for key in ("values", "scale", "offset")}
        self._base, self._exact = replace(self._base, **parts), bool(state["exact"])
        if self.stretch is not None:
            with torch.no_grad():
                self.stretch.copy_(state["stretch"])
        lengths = state["lengths"]
        self.price(None if lengths is None else lengths.to(device), state["price"])
