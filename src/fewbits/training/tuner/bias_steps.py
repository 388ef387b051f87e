"""Biases that a compressed start has rounded stay multiples of its steps when training ends.

A file does not name the steps (``RDOQ(bias_rounding=True)`` chooses a power of two for each bias,
and the coder saves the zeros behind a value's last bit), so they are read off the values.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ...coded import Contents, RawTensor
from ...engine.layers.pack import to_torch
from ...engine.lockstep.biases import round_to_steps
from ...recipe.plan import Plan

__all__ = ["BiasSteps", "step_of"]

_DIGITS = 53  # of a float64
_FEWEST = 3  # bits of the largest value: fewer may be chance
_MOST = {"float32": 16, "float64": 16, "float16": 12, "bfloat16": 9}  # more are a float in full
_SHARE = 0.25  # of the values may be finer: half of those on one step are odd multiples of it


class BiasSteps:
    """The biases of a network in training that have steps, each with its own.

    Attributes:
        steps: step of each value, float64, by the name of the bias.
    """

    def __init__(self, model: nn.Module, steps: Mapping[str, Tensor]) -> None:
        self.steps = dict(steps)
        self._biases = {name: model.get_parameter(name) for name in self.steps}

    @classmethod
    def of(
        cls, model: nn.Module, start: Contents | None, plan: Plan, norms: Collection[str]
    ) -> BiasSteps:
        """Return the steps of the biases that are rounded in the start and trained as floats.

        Args:
            model: the network with the values of the start.
            start: contents of the compressed network; None for a float network.
            plan: the plan of the training.
            norms: normalizations whose biases have another meaning than in the start.
        """
        if start is None:
            return cls(model, {})
        steps: dict[str, Tensor] = {}
        for name, parameter in model.named_parameters():
            home, _, leaf = name.rpartition(".")
            free = name in plan.kept and name not in plan.exact and home not in norms
            stored = start.tensors.get(start.aliases.get(name, name))
            if not (free and leaf == "bias" and parameter.requires_grad):
                continue
            if isinstance(stored, RawTensor) and stored.stored in _MOST:
                step = step_of(to_torch(stored), _MOST[stored.stored])
                steps.update({} if step is None else {name: step})
        return cls(model, steps)

    def named(self, plan: Plan) -> Plan:
        """Return the plan with a note on every bias that has steps."""
        for name in self.steps:
            plan = plan.kept_after(name, "rounded to the steps that it has in the start")
        return plan

    def notes(self) -> list[str]:
        """Return notes for the report."""
        count = len(self.steps)
        what = f"{count} bias vectors stay" if count > 1 else "1 bias vector stays"
        return [f"{what} on the steps of the start"] if count else []

    def settle(self) -> None:
        """Round the biases in place; values that are not finite stay as they are."""
        for name, bias in self._biases.items():
            round_to_steps(bias, self.steps[name])

    @contextmanager
    def rounded(self) -> Iterator[None]:
        """Round the biases inside the block, as :meth:`settle` will."""
        saved = [bias.detach().clone() for bias in self._biases.values()]
        self.settle()
        try:
            yield
        finally:
            with torch.no_grad():
                for bias, values in zip(self._biases.values(), saved, strict=True):
                    bias.copy_(values)


def step_of(values: Tensor, most: int = 16) -> Tensor | None:
    """Return the step of each value, a power of two, float64, or None if they have none.

    A value is an integer times its own step or a coarser one, so the step of a vector is that which
    three quarters of its values are no finer than; finer ones keep their own. Vectors of zeros have
    none, nor have floats in full, whose steps would be too fine to save anything.

    Args:
        values: (n,), of any float dtype.
        most: bits of the largest value, above which the step is that of the dtype.
    """
    mantissa, exponent = values.double().frexp()
    whole = torch.ldexp(mantissa, torch.tensor(_DIGITS)).long()
    nonzero = whole != 0
    if not bool(nonzero.any()) or not bool(values.isfinite().all()):
        return None
    last = torch.where(nonzero, whole & -whole, 1).double().log2().round()  # bits behind the last 1
    own = (exponent.double() - _DIGITS + last).where(nonzero, math.inf)
    largest = math.log2(float(values.double().abs().max()))
    finest = own.sort().values[int(_SHARE * int(nonzero.sum()))]
    common = min(float(finest), math.floor(largest) - _FEWEST)
    if largest - common > most:
        return None
    return own.clamp(max=common).exp2()
