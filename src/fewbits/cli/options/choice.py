"""Options that choose how to compress: a method with settings, or a recipe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import typer
import yaml

from ...errors import shorten
from ...files.yaml_text import RefusedError, read_yaml
from .usage import as_usage

if TYPE_CHECKING:
    from ...recipe.recipe import Recipe

__all__ = [
    "choose_recipe",
    "method_class",
    "parse_settings",
    "read_recipe",
    "recipe_for_training",
    "refuse_training",
    "with_activations",
]


def choose_recipe(
    method: str | None,
    bits: int | None,
    settings: Sequence[str],
    recipe: str | None,
    has_data: bool,
    *,
    group: int | None = None,
    searching: bool = False,
) -> Recipe:
    """Build the recipe described by the options; a search uses "smallest" by default.

    Raises:
        typer.BadParameter: options that contradict each other or that the method does not have, or
            ``--data`` is missing.
        ConfigError: the recipe file is invalid.
    """
    from ...methods import METHODS  # noqa: PLC0415
    from ...recipe.recipe import RECIPES  # noqa: PLC0415

    given = {k: v for k, v in (("bits", bits), ("group", group)) if v is not None}
    if recipe is not None:
        if method is not None or given or settings:
            raise typer.BadParameter(
                "--recipe replaces --method, --bits, --group and --set: leave them out."
            )
        chosen = _uniform_recipe(recipe, {}, has_data) if recipe in METHODS else read_recipe(recipe)
    elif method in RECIPES:
        with as_usage():
            values = _joined(given, parse_settings(settings))
            chosen = RECIPES[str(method)].with_settings(**values)
    else:
        values = _joined(given, parse_settings(settings))
        if searching and method is None:
            chosen = _default_budget_recipe(values)
        else:
            chosen = _uniform_recipe(method or "qronos", values, has_data)
    data_users = [
        rule.method.name
        for rule in chosen.rules
        if rule.method and rule.method.capabilities.needs_data
    ]
    data_users += [*chosen.prepare, *chosen.finish]
    if data_users and not has_data:
        raise typer.BadParameter(
            f"{data_users[0]} needs calibration data: add --data, such as --data digits, "
            "or --calibration. The method 'nearest' needs none."
        )
    return chosen


def recipe_for_training(method: str, settings: Sequence[str], start: str | None) -> Recipe:
    """Build the recipe of one training method, with settings as given to ``--set``.

    Args:
        method: its name.
        settings: entries "key=value".
        start: the recipe that comes before it, "float" for none, or a file; None for the usual one.

    Raises:
        typer.BadParameter: unknown method or setting.
    """
    from ...methods import trains as is_training_method  # noqa: PLC0415
    from ...recipe.recipe import RECIPES  # noqa: PLC0415

    recipe = _uniform_recipe(method, parse_settings(settings), True)
    trained = recipe.rules[0].method
    if trained is None or not is_training_method(trained):
        return recipe
    first = trained.starts_from if start is None else start
    return RECIPES[first].then(trained) if first in RECIPES else recipe


def with_activations(recipe: Recipe, bits: int | None, outputs: bool, has_data: bool) -> Recipe:
    """Return the recipe with layer inputs, and optionally outputs, quantized to ``bits``.

    Without ``bits`` the recipe is unchanged.

    Raises:
        typer.BadParameter: ``outputs`` without ``bits``, or no calibration data.
    """
    from ...methods import Activations  # noqa: PLC0415

    if bits is not None:
        recipe = replace(recipe, activations=Activations(bits=bits, outputs=outputs))
    elif outputs:
        raise typer.BadParameter("--outputs needs --activations BITS.")
    if recipe.activations is not None and not has_data:
        raise typer.BadParameter(
            "quantizing activations needs calibration data: add --data or --calibration."
        )
    return recipe


def method_class(name: str) -> Any:
    """Return the class of the method called ``name``.

    Raises:
        typer.BadParameter: unknown method; the message lists all of them.
    """
    from ...methods import METHODS  # noqa: PLC0415

    with as_usage():
        return METHODS[name]


def read_recipe(name: str) -> Recipe:
    """Return the recipe, or that of the method, with this name or in this file.

    Raises:
        typer.BadParameter: unknown name.
        ConfigError, SourceError: the file is invalid, or cannot be read.
    """
    from ...recipe.recipe import Recipe, check_name  # noqa: PLC0415

    with as_usage("--recipe"):
        check_name(name)
    return Recipe.of(name)


def refuse_training(name: str) -> None:
    """Refuse a training method in a command that does not train.

    Raises:
        typer.BadParameter: ``name`` is a training method, or none.
    """
    method_class(name)
    from ...methods import post_training_methods, training_methods  # noqa: PLC0415

    if name in training_methods():
        raise typer.BadParameter(
            f"{name} needs training, which this command does not do: use 'fewbits train', or a "
            f"method that needs no training: {', '.join(post_training_methods())}."
        )


def parse_settings(pairs: Sequence[str]) -> dict[str, Any]:
    """Parse ``--set key=value`` options, whose values are YAML.

    Raises:
        typer.BadParameter: an option is not of this form, or a key is given twice.
    """
    values: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not key or not equals:
            raise typer.BadParameter(f"--set takes key=value. Got {shorten(pair)}.")
        if key == "method" or key in values:
            raise typer.BadParameter(
                f"--set: {shorten(key)} is given twice, or has an option of its own."
            )
        try:
            values[key] = read_yaml(value)
        except RefusedError as error:
            raise typer.BadParameter(f"--set {shorten(key)}: {error}") from None
        except yaml.YAMLError:
            raise typer.BadParameter(
                f"--set {shorten(key)}: {shorten(value)} is not a YAML value."
            ) from None
    return values


def _joined(given: dict[str, int], values: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of both: of options of their own, and of --set."""
    for name in given:
        if name in values:
            verb = "are" if name == "bits" else "is"
            raise typer.BadParameter(
                f"{name} {verb} given twice, by --{name} and by --set: drop one."
            )
    return values | given


def _default_budget_recipe(values: dict[str, Any]) -> Recipe:
    """Return the recipe that searches use by default, with other settings of its method."""
    from ...recipe.recipe import RECIPES  # noqa: PLC0415

    if "bits" in values:
        raise typer.BadParameter(
            "a budget replaces --bits: leave it out. 'smallest', the default recipe of a search, "
            "has no such setting; choose another with --method."
        )
    try:
        with as_usage():
            return RECIPES["smallest"].with_settings(**values)
    except typer.BadParameter as error:
        raise typer.BadParameter(
            f"{error} ('smallest' is the default recipe of a search; choose another with --method.)"
        ) from None


def _uniform_recipe(name: str, values: dict[str, Any], has_data: bool) -> Recipe:
    """Build a recipe that uses one method for all weights."""
    from ...methods import METHODS, from_settings  # noqa: PLC0415
    from ...methods import trains as is_training_method  # noqa: PLC0415
    from ...recipe.meant import meant  # noqa: PLC0415
    from ...recipe.recipe import RECIPES, Recipe, Rule  # noqa: PLC0415

    if name not in METHODS and (other := meant(name)) is not None:
        raise typer.BadParameter(
            f"unknown method or recipe {shorten(name)}. Methods: {', '.join(METHODS)}. Recipes: "
            f"{', '.join(RECIPES)}.{other.options}"
        )
    with as_usage():
        method = from_settings({**values, "method": name})
        if is_training_method(method):
            return Recipe((Rule("*", method),), raw_dtype="float16")
        return Recipe.of(method, calibrated=has_data)
