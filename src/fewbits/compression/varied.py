"""What a search for a budget varies in a recipe: slopes, or where there are none, levels."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from ..errors import ConfigError
from ..methods import METHODS, AnyMethod, count_of_levels, slope_of, with_levels
from ..methods import with_slope as at_slope
from ..recipe.recipe import Recipe
from ..search import Goal, Move, Trial, levels_at, nearest_count, next_levels, next_move, slope_at

__all__ = ["Varied", "methods_with_slope", "varied_in", "with_slope"]


def methods_with_slope() -> list[str]:
    """Return the names of the registered methods that have a slope."""
    return [name for name, kind in METHODS.items() if kind.capabilities.has_slope]


def with_slope(recipe: Recipe, slope: float) -> Recipe:
    """Return the recipe with this slope in every rule whose method has one."""
    return _changed(recipe, lambda method: at_slope(method, slope))


@dataclass(frozen=True)
class Varied:
    """What a search varies, as a function of a slope.

    Attributes:
        at: returns a recipe at a slope.
        start: returns the slope where the search of a recipe begins; takes a function that returns
            a recipe with the slopes that the network suggests.
        choose: returns what to try next.
        levels: returns the levels that a slope stands for; None where slopes are varied.
    """

    at: Callable[[Recipe, float], Recipe]
    start: Callable[[Recipe, Callable[[Recipe], Recipe]], float]
    choose: Callable[[Goal, float, Sequence[Trial], float | None], Move]
    levels: Callable[[float], int | None]


def varied_in(recipe: Recipe) -> Varied:
    """Return what a search varies in a recipe.

    Raises:
        ConfigError: its methods have neither a slope nor a number of levels.
    """
    methods = _methods(recipe)
    if any(method.capabilities.has_slope for method in methods):
        return Varied(with_slope, _first_slope, next_move, lambda _: None)
    if any(count_of_levels(method) is not None for method in methods):
        return Varied(_with_levels, _first_levels, next_levels, levels_at)
    names = ", ".join(dict.fromkeys(method.name for method in methods)) or "no method"
    known = ", ".join(map(repr, methods_with_slope())) or "none is registered"
    raise ConfigError(
        "a budget needs a method with the setting 'slope', or with a number of levels, but the "
        f"recipe has {names}. Methods with a slope: {known}."
    )


def _methods(recipe: Recipe) -> list[AnyMethod]:
    return [rule.method for rule in recipe.rules if rule.method is not None]


def _changed(recipe: Recipe, change: Callable[[AnyMethod], AnyMethod]) -> Recipe:
    rules = (replace(rule, method=rule.method and change(rule.method)) for rule in recipe.rules)
    return replace(recipe, rules=tuple(rules))


def _with_levels(recipe: Recipe, slope: float) -> Recipe:
    count = levels_at(slope) or nearest_count(slope**-0.5)
    return _changed(recipe, lambda method: with_levels(method, count))


def _first_slope(recipe: Recipe, settled: Callable[[Recipe], Recipe]) -> float:
    slopes = _slopes(recipe)
    known = _slopes(settled(recipe)) if None in slopes else slopes
    return _mean([slope for slope in known if slope is not None])


def _slopes(recipe: Recipe) -> list[float | None]:
    return [slope_of(m) for m in _methods(recipe) if m.capabilities.has_slope]


def _first_levels(recipe: Recipe, settled: Callable[[Recipe], Recipe]) -> float:
    counts = [count_of_levels(method) for method in _methods(recipe)]
    return slope_at(nearest_count(_mean([float(n) for n in counts if n is not None])))


def _mean(values: Sequence[float]) -> float:
    """Return the geometric mean."""
    return math.exp(sum(map(math.log, values)) / max(1, len(values)))
