"""Feature maps for hints, which compare layers of a student with layers of a teacher."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...errors import ConfigError, did_you_mean, require

__all__ = ["FeatureMaps", "check_hints", "hint_loss"]


class FeatureMaps:
    """Context manager that records the latest outputs of named modules of a network.

    Args:
        network: the network; if it is wrapped for several devices, names are those inside.
        names: names as in ``network.named_modules()``.
        whose: "student" or "teacher", for errors.

    Raises:
        ConfigError: the network has no module of one of these names.
    """

    def __init__(self, network: nn.Module, names: Sequence[str], whose: str) -> None:
        self.names, self.whose = names, whose
        self.modules = [_module(network, name, whose) for name in names]
        self._kept: dict[int, Any] = {}

    @property
    def outputs(self) -> list[Tensor]:
        """One output for each of ``names``, once the network has run.

        Raises:
            ConfigError: a module did not run, or did not return a tensor.
        """
        for number, name in enumerate(self.names):
            output = self._kept.get(number)
            if not isinstance(output, Tensor):
                what = "no output" if output is None else f"a {type(output).__name__}"
                raise ConfigError(
                    f"hints: module {name!r} of the {self.whose} gave {what} in the forward pass; "
                    "a tensor was expected. Name a module that is called and returns a tensor."
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
    """Refuse hints that would have no effect, or that name no module of the teacher.

    Raises:
        ConfigError: pairs without a weight, a weight without pairs, or an unknown name.
    """
    if pairs and not weight:
        raise ConfigError(
            f"hints has {len(pairs)} pairs of modules, but their weight is 0. Set "
            "JointWeights(hints=...), or leave the pairs out."
        )
    if weight and not pairs:
        raise ConfigError(
            f"JointWeights(hints={weight}) is set, but there is no pair of modules to compare. "
            "Pass hints=[(module of the student, module of the teacher)], or leave the weight at 0."
        )
    for pair in pairs:
        fits = not isinstance(pair, str) and len(pair) == 2
        require(fits, "hints", "pairs of (module of the student, module of the teacher)", pairs)
    FeatureMaps(teacher, [name for _, name in pairs], "teacher")


def hint_loss(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """Return half the mean squared difference, averaged over the pairs; 0 without pairs.

    The feature maps of the teacher are constants.

    Raises:
        ConfigError: the feature maps of a pair have different shapes.
    """
    total = torch.zeros(())
    for number, (own, other) in enumerate(zip(student, teacher, strict=True)):
        if own.shape != other.shape:
            raise ConfigError(
                f"hints[{number}] compares a feature map {tuple(own.shape)} of the student with "
                f"one {tuple(other.shape)} of the teacher. Name modules whose outputs have the "
                "same shape."
            )
        total = total.to(own.device) + F.mse_loss(own.float(), other.detach().float()) / 2
    return total / max(1, len(student))


def _module(network: nn.Module, name: str, whose: str) -> nn.Module:
    inner = getattr(network, "module", None)  # the network inside a wrapper for several devices
    networks = [module for module in (network, inner) if isinstance(module, nn.Module)]
    for module in networks:
        try:
            return module.get_submodule(name)
        except AttributeError:
            continue
    known = [path for path, _ in networks[-1].named_modules() if path]
    raise ConfigError(
        f"hints: the {whose} has no module {name!r}.{did_you_mean(name, known)} "
        "Names are those of named_modules()."
    )
