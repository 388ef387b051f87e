"""Weights on their levels, with gradients passed straight through: a parametrization."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..ops.codebook import assign
from ..ops.priced import assign_priced
from .alphabets import Alphabet
from .trained import TunedWeight

__all__ = ["Rounding"]


class Rounding(nn.Module):
    """Maps a weight to its levels: the nearest, or those of least squared distance plus bits.

    The gradient passes as if it did nothing (Hubara et al. 2016). Computes in float32, under
    autocast too. While ``active`` is False it does nothing. Nothing of it is in the state dict.
    """

    def __init__(self, weight: TunedWeight, alphabet: Alphabet) -> None:
        super().__init__()
        self.alphabet = alphabet
        self.active = True
        self._weight = weight
        self._lengths: Tensor | None = None
        self._price = 0.0

    def forward(self, weight: Tensor) -> Tensor:
        """Return the levels in the shape and dtype of ``weight``."""
        if not self.active:
            return weight
        view = self._weight.view
        with torch.no_grad(), torch.autocast(weight.device.type, enabled=False):
            units = self.alphabet.units(view.matrix(weight).float())
            chosen = self.alphabet.levels[self.positions(units)]
            values = view.tensor(self.alphabet.matrix(chosen), tuple(weight.shape))
            values = values.to(weight.dtype)
        return values + (weight - weight.detach())  # exactly the values: the difference is zero

    def positions(self, units: Tensor) -> Tensor:
        """Return the position of the level of each unit; that of zero where it is pruned."""
        levels = self.alphabet.levels
        if self._lengths is None or not self._price:
            found = assign(units, levels)
        else:
            found = assign_priced(units, levels, self._lengths, self._price)
        alive = self._weight.alive()
        if alive is None:
            return found
        return found.where(alive.reshape(found.shape), self.alphabet.zero)

    def price(self, lengths: Tensor, price: float) -> None:
        """Set what tuples of levels take, and the squared distance (units) a bit is worth."""
        self._lengths, self._price = lengths, price

    def forget(self) -> None:
        """Go back to the nearest level, until :meth:`price` is called."""
        self._lengths, self._price = None, 0.0

    def law(self) -> dict[str, Any]:
        """Return bits and price, for :meth:`take_law`."""
        return {"lengths": self._lengths, "price": self._price}

    def take_law(self, law: dict[str, Any]) -> None:
        """Take what :meth:`law` gave."""
        lengths = law["lengths"]
        self._lengths = None if lengths is None else lengths.to(self.alphabet.levels.device)
        self._price = law["price"]
