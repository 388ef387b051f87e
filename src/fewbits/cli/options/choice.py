"""The options that say how to compress: a method with settings, or a recipe file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
import yaml

from ...errors import ConfigError, shorten
from ...files.yaml_text import RefusedError, read_yaml

if TYPE_CHECKING:
    from ...recipe.recipe import Recipe

__all__ = [
    "choose",
    "for_training",
    "kind_of",
    "refuse_training",
    "settings_of",
    "with_activations",
]


def choose(
    method: str | None,
    bits: int | None,
    settings: Sequence[str],
    recipe: Path | None,
    has_data: bool,
    *,
    searching: bool = False,
) -> Recipe:
    """Return the recipe that the options mean; a search takes the recipe "smallest" by default.

    Raises:
        typer.BadParameter: options that contradict each other, that no method takes, or
            ``--data`` missing.
        ConfigError: a recipe file that is not acceptable.
    """
    from ...recipe.recipe import RECIPES, Recipe  # noqa: PLC0415

    if recipe is not None:
        if method is not None or bits is not None or settings:
            raise typer.BadParameter("--recipe says it all: leave out --method, --bits and --set.")
        chosen = Recipe.of(str(recipe))
    elif method in RECIPES:
        if bits is not None or settings:
            raise typer.BadParameter(f"{method!r} is a recipe: leave out --bits and --set.")
        chosen = RECIPES[str(method)]
    elif searching and method is None and bits is None and not settings:
        chosen = RECIPES["smallest"]
    else:
        values = settings_of(settings)
        if bits is not None:
            if "bits" in values:
                raise typer.BadParameter("bits are given twice: by --bits and by --set.")
            values["bits"] = bits
        if searching and method is None:
            chosen = _for_budget(values, has_data)
        else:
            chosen = _for_all(method or "gpfq", values, has_data)
    needing = [
        rule.method.name
        for rule in chosen.rules
        if rule.method and rule.method.capabilities.needs_data
    ]
    needing += [*chosen.prepare, *chosen.finish]
    if needing and not has_data:
        raise typer.BadParameter(
            f"{needing[0]} looks at activations: add --data, such as --data digits. "
            "The method 'nearest' needs none."
        )
    return chosen


def for_training(method: str, settings: Sequence[str]) -> Recipe:
    """Return the recipe of one method that trains, and settings as of ``--set``.

    Raises:
        typer.BadParameter: no such method, or no such setting.
    """
    return _for_all(method, settings_of(settings), True)


def with_activations(recipe: Recipe, bits: int | None, outputs: bool, has_data: bool) -> Recipe:
    """Return the recipe with inputs of layers on ``bits``, and outputs too; None: as it is."""
    from ...methods import Activations  # noqa: PLC0415

    if bits is not None:
        recipe = replace(recipe, activations=Activations(bits=bits, outputs=outputs))
    elif outputs:
        raise typer.BadParameter("--outputs goes with --activations BITS.")
    if recipe.activations is not None and not has_data:
        raise typer.BadParameter("activations are quantized by calibration data: add --data.")
    return recipe


def kind_of(name: str) -> Any:
    """Return the method of this name.

    Raises:
        ConfigError: there is none; lists all that there are.
    """
    from ...methods import METHODS  # noqa: PLC0415

    return METHODS[name]


def refuse_training(name: str) -> None:
    """Refuse a method that trains where nothing is trained.

    Raises:
        typer.BadParameter: it trains.
    """
    from ...methods import post_training_methods, training_methods  # noqa: PLC0415

    if name in training_methods():
        raise typer.BadParameter(
            f"{name} trains, which this command does not: see 'fewbits train'. Methods that do "
            f"not train: {', '.join(post_training_methods())}."
        )


def settings_of(pairs: Sequence[str]) -> dict[str, Any]:
    """Read ``--set key=value`` options; a value is written as in YAML.

    Raises:
        typer.BadParameter: not of this form, or a key given twice.
    """
    values: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not key or not equals:
            raise typer.BadParameter(f"--set takes key=value. Got {shorten(pair)}.")
        if key == "method" or key in values:
            raise typer.BadParameter(f"--set: {shorten(key)} is given twice or has its own option.")
        try:
            values[key] = read_yaml(value)
        except RefusedError as error:
            raise typer.BadParameter(f"--set {shorten(key)}: {error}") from None
        except yaml.YAMLError:
            told = f"--set {shorten(key)}: {shorten(value)} is no value."
            raise typer.BadParameter(told) from None
    return values


def _for_budget(values: dict[str, Any], has_data: bool) -> Recipe:
    """Return the recipe of the default method of budgets."""
    name = "rdoq"
    if "bits" in values:
        raise typer.BadParameter(
            f"a budget replaces --bits: leave it out. The default method of budgets, {name!r}, "
            "has none; --method names another."
        )
    try:
        return _for_all(name, values, has_data)
    except typer.BadParameter as error:
        raise typer.BadParameter(
            f"{error} ({name!r} is the default method of budgets; --method names another.)"
        ) from None


def _for_all(name: str, values: dict[str, Any], has_data: bool) -> Recipe:
    """Return the recipe of one method for all weights."""
    from ...methods import from_settings  # noqa: PLC0415
    from ...methods import trains as does_train  # noqa: PLC0415
    from ...recipe.recipe import Recipe, Rule  # noqa: PLC0415

    described = {**values, "method": name}
    try:
        method = from_settings(described)
        if does_train(method):
            return Recipe((Rule("*", method),), raw_dtype="float16")
        return Recipe.of(method, calibrated=has_data)
    except ConfigError as error:
        raise typer.BadParameter(str(error)) from None
