"""The options that say how to compress: a method with settings, or a recipe file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
import yaml

from ..errors import ConfigError
from ..yaml_text import read_yaml

if TYPE_CHECKING:
    from ..recipe import Recipe

__all__ = ["choose"]


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
    from ..methods import from_settings  # noqa: PLC0415
    from ..recipe import RECIPES, Recipe  # noqa: PLC0415

    if recipe is not None:
        if method is not None or bits is not None or settings:
            raise typer.BadParameter("--recipe says it all: leave out --method, --bits and --set.")
        chosen = Recipe.from_file(recipe)
    elif searching and method is None and bits is None and not settings:
        chosen = RECIPES["smallest"]
    else:
        values = _settings(settings)
        if bits is not None:
            if "bits" in values:
                raise typer.BadParameter("bits are given twice: by --bits and by --set.")
            values["bits"] = bits
        try:
            named = from_settings({**values, "method": method or ("rdoq" if searching else "gpfq")})
        except ConfigError as error:
            raise typer.BadParameter(str(error)) from None
        chosen = Recipe.of(named, calibrated=has_data)
    needing = [
        rule.method.name
        for rule in chosen.rules
        if rule.method and getattr(rule.method, "needs", "nothing") != "nothing"
    ]
    needing += [*chosen.prepare, *chosen.finish]
    if needing and not has_data:
        raise typer.BadParameter(
            f"{needing[0]} looks at activations: add --data, such as --data digits. "
            "The method 'nearest' needs none."
        )
    return chosen


def _settings(pairs: Sequence[str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not key or not equals:
            raise typer.BadParameter(f"--set takes key=value. Got {pair!r}.")
        if key == "method" or key in values:
            raise typer.BadParameter(f"--set: {key!r} is given twice or has its own option.")
        try:
            values[key] = read_yaml(value)
        except yaml.YAMLError:
            raise typer.BadParameter(f"--set {key}: {value!r} is no value.") from None
    return values
