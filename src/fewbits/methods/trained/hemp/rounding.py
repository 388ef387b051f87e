"""A parametrization that rounds a weight to its levels, with straight-through gradients."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ....coding.trellis import transitions
from ....ops.levels.codebook import assign
from ....ops.rate_distortion.entropy_constrained import assign_priced, envelope
from ....ops.rate_distortion.trellis_paths import nearest_paths
from ..base import TunedWeight
from .levels import Levels

__all__ = ["Rounding"]


class Rounding(nn.Module):
    """Rounds a weight to its levels: the nearest, or those with least squared distance plus bits.

    Columns that start as paths of a trellis are rounded to the nearest paths.

    The gradient passes straight through (Hubara et al. 2016). If ``stretch`` is not None, the steps
    of a grid are trained: they are multiplied by its exponential, with the gradient scale of
    learned steps (Esser et al. 2020). A trained step is rounded to bfloat16, two bytes in a file.
    If ``basis`` is not None, the basis of coefficients is trained too, on its own fixed grid.
    Computes in float32 even under autocast; does nothing while ``active`` is False.
    """

    def __init__(
        self, weight: TunedWeight, levels: Levels, *, trained: bool, basis: bool = False
    ) -> None:
        super().__init__()
        self.active = True
        self.stretch = self.basis = None
        if trained and levels.even:
            self.stretch = nn.Parameter(torch.zeros_like(levels.scale))
        if basis and levels.basis is not None:
            self.basis = nn.Parameter(levels.basis.clone())
        self._base = levels
        self._exact = weight.start is not None  # initial steps are kept exactly until trained
        self._weight = weight
        self._lengths: Tensor | None = None
        self._price = 0.0
        self._cells: tuple[Tensor, Tensor] | None = None

    def forward(self, weight: Tensor) -> Tensor:
        """Round to the levels, in the shape and dtype of ``weight``."""
        if not self.active:
            return weight
        view = self._weight.view
        with torch.autocast(weight.device.type, enabled=False):
            levels = replace(self._base, scale=self._scale(), basis=self._basis())
            units = levels.units(view.matrix(weight).float())
            with torch.no_grad():
                chosen = levels.values[self.positions(units)]
            matrix = levels.matrix(chosen + (units - units.detach()))  # adds zero with a gradient
            return view.tensor(matrix, tuple(weight.shape)).to(weight.dtype)

    @property
    def levels(self) -> Levels:
        """The levels, with steps as trained so far."""
        if self.stretch is None and self.basis is None:
            return self._base
        with torch.no_grad():
            return replace(self._base, scale=self._scale(), basis=self._basis())

    @levels.setter
    def levels(self, levels: Levels) -> None:
        self._base = levels
        self.set_price(None, 0.0)

    def follow(self, units: Tensor, share: float) -> None:
        """Move each step a ``share`` of the way to the step with the least squared error."""
        if self.stretch is None:
            return
        levels = self._base.values[self.positions(units)] - self._base.offset[:, None]
        centred = units - self._base.offset[:, None]
        product, energy = (centred * levels).sum(1), levels.square().sum(1)
        if len(self._base.scale) == 1:
            product, energy = product.sum(0, keepdim=True), energy.sum(0, keepdim=True)
        valid = (energy > 0) & (product > 0)
        best = torch.where(valid, product / energy.clamp_min(1e-12), 1.0)
        self._base = replace(self._base, scale=self._base.scale * (1 + share * (best - 1)))
        self._exact = False

    def _scale(self) -> Tensor:
        base, stretch = self._base.scale, self.stretch
        if stretch is None:
            return base
        weights = self._weight.parameter.numel() / len(base)
        damping = 1 / math.sqrt(weights * max(1.0, float(len(self._base.values) // 2)))
        trained = base * (stretch.detach() + (stretch - stretch.detach()) * damping).exp()
        rounded = trained.to(torch.bfloat16).to(base.dtype)
        if self._exact:
            rounded = torch.where(stretch == 0, base, rounded)
        return rounded.detach() * (trained / trained.detach())  # the ratio is one with a gradient

    def _basis(self) -> Tensor | None:
        """Return the basis on its grid, with the gradient passing straight through."""
        if self.basis is None:
            return self._base.basis
        rounded = self._base.on_basis_grid(self.basis.detach())
        return rounded + (self.basis - self.basis.detach())

    def positions(self, units: Tensor) -> Tensor:
        """Return the position of the level of each unit; that of zero for pruned weights."""
        levels = self._base.values
        if self._weight.paths:
            low, high = (int(level) for level in levels[[0, -1]])
            return (nearest_paths(units, low, high, transitions()) - low).long()
        if self._cells is not None:
            used, edges = self._cells
            positions = used[torch.searchsorted(edges, units.contiguous())]
        elif self._lengths is not None:
            positions = assign_priced(units, levels, self._lengths, self._price)
        else:
            positions = assign(units, levels)
        alive = self._weight.alive()
        if alive is None:
            return positions
        return positions.where(alive.reshape(positions.shape), self._base.zero)

    def set_price(self, lengths: Tensor | None, price: float) -> None:
        """Set the code lengths of tuples of levels, and the price of a bit in squared units."""
        self._lengths, self._price = (lengths, price) if price else (None, 0.0)
        order_one = self._lengths is not None and self._lengths.dim() == 1
        self._cells = envelope(self._base.values, lengths, price) if order_one else None  # type: ignore[arg-type]

    def state(self) -> dict[str, Any]:
        """Return everything that training changed, for :meth:`load_state`."""
        return {
            "values": self._base.values,
            "scale": self._base.scale,
            "offset": self._base.offset,
            "exact": self._exact,
            "stretch": None if self.stretch is None else self.stretch.detach(),
            "basis": None if self.basis is None else self.basis.detach(),
            "lengths": self._lengths,
            "price": self._price,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore the state returned by :meth:`state`."""
        device = self._base.scale.device
        parts = {key: state[key].to(device) for key in ("values", "scale", "offset")}
        self._base, self._exact = replace(self._base, **parts), bool(state["exact"])
        if self.stretch is not None:
            with torch.no_grad():
                self.stretch.copy_(state["stretch"])
        if self.basis is not None:
            with torch.no_grad():
                self.basis.copy_(state["basis"])
        lengths = state["lengths"]
        self.set_price(None if lengths is None else lengths.to(device), state["price"])
