"""Feature maps of a network, for hints: what a student's layers give beside a teacher's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["FeatureMaps", "hint_loss"]


class FeatureMaps:
    """Inside of this block, the latest outputs of named modules of a network are kept."""

    def __init__(self, network: nn.Module, names: Sequence[str]) -> None:
        inner = getattr(network, "module", network) if names else network
        self.modules = [inner.get_submodule(name) for name in names]
        self._kept: dict[int, Tensor] = {}

    @property
    def outputs(self) -> list[Tensor]:
        """One for each of ``names``, once the network has run."""
        return [self._kept[number] for number in range(len(self.modules))]

    def __enter__(self) -> FeatureMaps:
        self._hooks = []
        for number, module in enumerate(self.modules):

            def keep(_m: Any, _a: Any, output: Tensor, number: int = number) -> None:
                self._kept[number] = output

            self._hooks.append(module.register_forward_hook(keep))
        return self

    def __exit__(self, *error: object) -> None:
        for hook in self._hooks:
            hook.remove()


def hint_loss(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> Tensor:
    """Return half the mean squared difference, a mean over the pairs too; no pairs, no loss.

    ``ours[i]`` and ``theirs[i]`` have one shape, of any rank; ``theirs`` are constants.
    """
    total = torch.zeros(())
    for own, other in zip(ours, theirs, strict=True):
        total = total.to(own.device) + F.mse_loss(own.float(), other.detach().float()) / 2
    return total / max(1, len(ours))
