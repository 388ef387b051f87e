"""Rate control: adjust the price of a bit so that the entropy of the indices meets a target.

Levels minimize squared distance plus price times bits, so a change of the price takes effect at
once, and a proportional update of its logarithm is enough.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any

__all__ = ["RateControl"]


_GAIN = 2.0  # change of the price's logarithm per relative excess of bits
_MOST = 0.2  # largest relative excess that one update responds to
_PRICES = (1e-3, 3.0)  # squared cells per bit: below it has no effect, above all weights are zero


@dataclass
class RateControl:
    """Controls the entropy along a straight line from its initial value to the target.

    Attributes:
        target: target in bits per weight.
        arrival: share of the training at which the target is to be reached.
        price: current price of a bit, in squared cells.
        first: bits per weight at the first update; None before.
    """

    target: float
    arrival: float
    price: float
    first: float | None = None

    def update(self, bits: float, progress: float) -> None:
        """Adjust the price to the current entropy, in bits per weight."""
        if self.first is None:
            self.first = bits
        share = min(1.0, progress / self.arrival) if self.arrival else 1.0
        due = self.first + (self.target - self.first) * share
        excess = max(-_MOST, min(_MOST, bits / due - 1))
        low, high = _PRICES
        price = self.price * math.exp(_GAIN * excess)
        if price > high and self.price < high:
            warnings.warn(
                f"the price of a bit has reached its bound of {high:g} squared cells at {bits:.2f} "
                f"bits per weight; {due:.2f} are due. Start with wider steps (width=), from a "
                "network of fewer bits, or with a lower learning rate.",
                stacklevel=2,
            )
        self.price = max(low, min(high, price))

    def state(self) -> dict[str, Any]:
        """Return the state for :meth:`load_state`."""
        return {"price": self.price, "first": self.first}

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore the state returned by :meth:`state`."""
        self.price, self.first = state["price"], state["first"]
