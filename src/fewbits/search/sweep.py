"""Points of a rate-accuracy curve, kept in a file that the next run goes on with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import ConfigError, is_number, shorten
from ..files.json_values import read_json

__all__ = ["SCHEMA", "Sweep", "same_point"]

SCHEMA = "fewbits.sweep/1"
_FIGURES = ("bytes", "score", "bits_per_weight", "seconds", "slope")


@dataclass
class Sweep:
    """What was measured of one network on one data set; ``docs/budgets.md`` describes the JSON.

    Attributes:
        key: what all points share: model, fingerprint of its weights, data, split, seed, ...
        reference: "bytes" and "score" of the float network.
        points: each with "settings" and "goal" (what was asked), and what came out.
    """

    key: Mapping[str, Any]
    reference: Mapping[str, Any]
    points: list[dict[str, Any]] = field(default_factory=list)

    def has(self, settings: Mapping[str, Any], goal: Mapping[str, Any] | None) -> bool:
        """Tell whether this point is measured."""
        return any(same_point(point, settings, goal) for point in self.points)

    def to_json(self) -> str:
        """Return the text that :meth:`from_json` reads."""
        return json.dumps(self.to_dict(), indent=1, allow_nan=False)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return {
            "schema": SCHEMA,
            "key": dict(self.key),
            "float": dict(self.reference),
            "points": self.points,
        }

    @classmethod
    def from_json(cls, text: str, key: Mapping[str, Any]) -> Sweep:
        """Read a sweep to go on with.

        Raises:
            ConfigError: it is none, or shares something else than ``key``; says what differs.
        """
        try:
            data = read_json(text)
        except ConfigError as error:
            raise ConfigError(f"a sweep {error}") from None
        if not isinstance(data, dict) or data.get("schema") != SCHEMA:
            raise ConfigError(f"not a sweep: expected the schema {SCHEMA!r}.")
        found, reference, points = (data.get(name) for name in ("key", "float", "points"))
        sound = isinstance(reference, dict) and all(
            is_number(reference.get(name)) for name in ("bytes", "score")
        )
        if not isinstance(found, dict) or not isinstance(reference, dict) or not sound:
            raise ConfigError("a sweep must have a key, and bytes and score of the float network.")
        if not isinstance(points, list) or not all(map(_is_point, points)):
            raise ConfigError("a sweep must have a list of points with settings.")
        for name in dict.fromkeys([*key, *found]):
            if found.get(name) != key.get(name):
                raise ConfigError(
                    f"made with {name} {shorten(found.get(name))}, and this run has "
                    f"{shorten(key.get(name))}. "
                    "Name another file, or remove it."
                )
        return cls(dict(key), reference, points)


def same_point(
    point: Mapping[str, Any], settings: Mapping[str, Any], goal: Mapping[str, Any] | None
) -> bool:
    """Tell whether ``point`` answers what settings and goal ask."""
    return point["settings"] == settings and point.get("goal") == goal


def _is_point(value: object) -> bool:
    """Tell whether a value is a point: its settings, its goal, and figures where there are any."""
    if not isinstance(value, dict) or not isinstance(value.get("settings"), dict):
        return False
    goal, method = value.get("goal"), value["settings"].get("method", "")
    aimed = goal is None or (isinstance(goal, dict) and is_number(goal.get("limit")))
    figures = [value[name] for name in _FIGURES if name in value]
    return isinstance(method, str) and aimed and all(f is None or is_number(f) for f in figures)
