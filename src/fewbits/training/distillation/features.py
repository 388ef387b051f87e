"""Feature maps of a network, for hints: what a student's layers give beside a teacher's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...errors import ConfigError, did_you_mean, require

__all__ = ["FeatureMaps", "check_hints", "hint_loss"]


class FeatureMaps:
    """Inside of this block, the latest outputs of named modules of a network are kept.

    Args:
        network: it may be wrapped for several devices; names are those inside.
        names: as in ``network.named_modules()``.
        whose: "student" or "teacher", for errors.

    Raises:
        ConfigError: the network has no module of such a name.
    """

    def __init__(self, network: nn.Module, names: Sequence[str], whose: str) -> None:
        self.names, self.whose = names, whose
        self.modules = [_module(network, name, whose) for name in names]
        self._kept: dict[int, Any] = {}

    @property
    def outputs(self) -> list[Tensor]:
        """One for each of ``names``, once the network has run.

        Raises:
            ConfigError: a module did not run, or returned something else than a tensor.
        """
        for number, name in enumerate(self.names):
            found = self._kept.get(number)
            if not isinstance(found, Tensor):
                what = "no output" if found is None else f"a {type(found).__name__}"
                raise ConfigError(
                    f"hints: module {name!r} of the {self.whose} gave {what} in the forward pass; "
                    "a tensor was expected. Name a module that is called, and returns one."
                )
        return [self._kept[number] for number in range(len(self.names))]

    def __enter__(self) -> FeatureMaps:
        self._hooks = []
        for number, module in enumerate(self.modules):

            def keep(_m: Any, _a: Any, output: Any, number: int = number) -> None:
                self._kept[number] = output

            self._hooks.append(module.register_forward_hook(keep))
        return self

    def __exit__(self, *error: object) -> None:
        for hook in self._hooks:
            hook.remove()


def check_hints(pairs: Sequence[tuple[str, str]], weight: float, teacher: nn.Module) -> None:
    """Refuse hints that would do nothing, or name no module of the teacher.

    Raises:
        ConfigError: pairs without a weight, a weight without pairs, or an unknown name.
    """
    if pairs and not weight:
        raise ConfigError(
            f"hints names {len(pairs)} pairs of modules, and JointWeights weighs them 0. Set "
            "JointWeights(hints=...), or leave the pairs out."
        )
    if weight and not pairs:
        raise ConfigError(
            f"JointWeights weighs hints {weight}, and there is no pair of modules to compare. Pass "
            "hints=[(module of the student, module of the teacher)], or leave the weight at 0."
        )
    for pair in pairs:
        fits = not isinstance(pair, str) and len(pair) == 2
        require(fits, "hints", "pairs of (module of the student, module of the teacher)", pairs)
    FeatureMaps(teacher, [theirs for _, theirs in pairs], "teacher")


def hint_loss(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> Tensor:
    """Return half the mean squared difference, a mean over the pairs too; no pairs, no loss.

    ``theirs`` are constants.

    Raises:
        ConfigError: ``ours[i]`` and ``theirs[i]`` are of unlike shapes.
    """
    total = torch.zeros(())
    for number, (own, other) in enumerate(zip(ours, theirs, strict=True)):
        if own.shape != other.shape:
            raise ConfigError(
                f"hints[{number}] compares a feature map {tuple(own.shape)} of the student with "
                f"one {tuple(other.shape)} of the teacher. Name modules whose outputs are alike."
            )
        total = total.to(own.device) + F.mse_loss(own.float(), other.detach().float()) / 2
    return total / max(1, len(ours))


def _module(network: nn.Module, name: str, whose: str) -> nn.Module:
    inner = getattr(network, "module", None)  # what a wrapper for several devices holds
    places = [place for place in (network, inner) if isinstance(place, nn.Module)]
    for place in places:
        try:
            return place.get_submodule(name)
        except AttributeError:
            continue
    known = [found for found, _ in places[-1].named_modules() if found]
    raise ConfigError(
        f"hints: the {whose} has no module {name!r}.{did_you_mean(name, known)} "
        "Names are those of named_modules()."
    )
