"""Rate control: a price of a bit that holds the entropy of the indices at a wanted rate.

With levels chosen by squared distance plus price times bits, the price acts at once, whatever the
weights have become, so a proportional step on its logarithm at every look is enough.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["RateControl", "priced_loss"]


_GAIN = 2.0  # of the price's logarithm, for the relative excess of bits
_MOST = 0.2  # of relative excess that one look answers
_PRICES = (1e-3, 3.0)  # squared cells for a bit: below nothing changes, above all is zero


@dataclass
class RateControl:
    """Follows a line from the first entropy to the wanted one.

    Attributes:
        wanted: bits per weight.
        arrival: share of the training at which they are to be reached.
        price: squared cells that a bit is worth, as found so far.
        first: bits per weight at the first look; None before.
    """

    wanted: float
    arrival: float
    price: float
    first: float | None = None

    def look(self, bits: float, progress: float) -> None:
        """Take note of the entropy now, in bits per weight, and adapt the price."""
        if self.first is None:
            self.first = bits
        share = min(1.0, progress / self.arrival) if self.arrival else 1.0
        due = self.first + (self.wanted - self.first) * share
        excess = max(-_MOST, min(_MOST, bits / due - 1))
        low, high = _PRICES
        price = self.price * math.exp(_GAIN * excess)
        if price > high and self.price < high:
            warnings.warn(
                f"the price of a bit is at its bound of {high:g} squared cells, at {bits:.2f} bits "
                f"per weight where {due:.2f} are due. Begin with wider steps (width=), a start of "
                "fewer bits, or a lower learning rate.",
                stacklevel=2,
            )
        self.price = max(low, min(high, price))

    def state(self) -> dict[str, Any]:
        """Return what :meth:`take_state` takes."""
        return {"price": self.price, "first": self.first}

    def take_state(self, state: dict[str, Any]) -> None:
        """Go on where :meth:`state` was taken."""
        self.price, self.first = state["price"], state["first"]


def priced_loss(
    slope: float, bits: float, slants: Sequence[Tensor], parameters: Sequence[nn.Parameter]
) -> Tensor:
    """Return ``slope * bits``, a float32 scalar whose gradient is ``slope`` times the ``slants``.

    Args:
        slope: loss that a bit is worth.
        bits: of the network now.
        slants: bits by which a weight's growth costs more, in the shapes of ``parameters``.
        parameters: the weights.
    """
    value: Tensor = _Priced.apply(slope, bits, tuple(slants), *parameters)  # type: ignore[no-untyped-call]
    return value


class _Priced(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, slope: float, bits: float, slants: tuple[Tensor, ...], *parameters: Tensor
    ) -> Tensor:
        ctx.slope, ctx.slants = slope, slants
        ctx.dtypes = [parameter.dtype for parameter in parameters]
        return torch.tensor(slope * bits, device=parameters[0].device)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        scale = gradient * ctx.slope
        parts = zip(ctx.slants, ctx.dtypes, strict=True)
        return (None, None, None, *((slant * scale).to(dtype) for slant, dtype in parts))
