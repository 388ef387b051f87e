"""Points of a rate-accuracy curve, kept in a file so that the next run can continue it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from typing import Any, TypeAlias

from ..errors import ConfigError, is_number, shorten
from ..files.json_values import read_json

__all__ = ["SCHEMA", "Sweep", "same_point"]

SCHEMA = "fewbits.sweep/1"
Asked: TypeAlias = tuple[Mapping[str, Any], Mapping[str, Any] | None]  # settings, goal
_FIGURES = ("bytes", "score", "bits_per_weight", "seconds", "slope", "levels")


@dataclass(repr=False)
class Sweep:
    """Measurements of one network on one data set; ``docs/budgets.md`` describes the JSON.

    Attributes:
        key: what all points share: model, fingerprint of its weights, data, split, seed, ...
        reference: "bytes" and "score" of the float network.
        points: each with its "settings" and "goal", and the results.
    """

    key: Mapping[str, Any]
    reference: Mapping[str, Any]
    points: list[dict[str, Any]] = field(default_factory=list)

    def has(self, settings: Mapping[str, Any], goal: Mapping[str, Any] | None) -> bool:
        """Return whether this point has been measured."""
        return any(same_point(point, settings, goal) for point in self.points)

    def add(self, point: dict[str, Any], asked: Sequence[Asked]) -> None:
        """Add a result; those of ``asked`` come in its order after all others.

        So a file does not depend on the order in which results arrive.
        """
        self.points = sorted([*self.points, point], key=lambda one: _place(one, asked))

    def to_json(self) -> str:
        """Return JSON text for :meth:`from_json`."""
        return json.dumps(self.to_dict(), indent=1, allow_nan=False)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return {
            "schema": SCHEMA,
            "key": dict(self.key),
            "float": dict(self.reference),
            "points": self.points,
        }

    def report(self, path: str | PathLike[str], title: str = "") -> int:
        """Write the curve and all points as one HTML file; return its length in bytes.

        Raises:
            ConfigError: ``path`` does not end in .html, or names no file that can be written.
            OSError: the system cannot write there.
        """
        from ..report import sweep_report  # noqa: PLC0415  (loading a file needs no Rich)

        return sweep_report(self.to_dict(), title=title).write(path)

    def __repr__(self) -> str:
        return f"<Sweep of {len(self.points)} points: {shorten(dict(self.key))}>"

    def _repr_html_(self) -> str:
        from ..report import sweep_html  # noqa: PLC0415

        return sweep_html(self.to_dict())

    @classmethod
    def from_json(cls, text: str, key: Mapping[str, Any]) -> Sweep:
        """Read a sweep to continue.

        Raises:
            ConfigError: not a sweep, or one with another key; the message names the difference.
        """
        try:
            data = read_json(text)
        except ConfigError as error:
            raise ConfigError(f"a sweep {error}") from None
        if not isinstance(data, dict) or data.get("schema") != SCHEMA:
            raise ConfigError(f"not a sweep: expected the schema {SCHEMA!r}.")
        stored, reference, points = (data.get(name) for name in ("key", "float", "points"))
        sound = isinstance(reference, dict) and all(
            is_number(reference.get(name)) for name in ("bytes", "score")
        )
        if not isinstance(stored, dict) or not isinstance(reference, dict) or not sound:
            raise ConfigError("a sweep must have a key, and bytes and score of the float network.")
        if not isinstance(points, list) or not all(map(_is_point, points)):
            raise ConfigError("a sweep must have a list of points with settings.")
        for name in dict.fromkeys([*key, *stored]):
            if stored.get(name) != key.get(name):
                raise ConfigError(
                    f"made with {name} {shorten(stored.get(name))}, but this run has "
                    f"{shorten(key.get(name))}. "
                    "Name another file, or remove this one."
                )
        return cls(dict(key), reference, points)


def same_point(
    point: Mapping[str, Any], settings: Mapping[str, Any], goal: Mapping[str, Any] | None
) -> bool:
    """Return whether ``point`` has these settings and this goal."""
    return point["settings"] == settings and point.get("goal") == goal


def _place(point: Mapping[str, Any], asked: Sequence[Asked]) -> int:
    found = (place for place, one in enumerate(asked) if same_point(point, *one))
    return next(found, -1)


def _is_point(value: object) -> bool:
    """Return whether a JSON value is a valid point: settings, a goal, and numbers as results."""
    if not isinstance(value, dict) or not isinstance(value.get("settings"), dict):
        return False
    goal, method = value.get("goal"), value["settings"].get("method", "")
    valid_goal = goal is None or (isinstance(goal, dict) and is_number(goal.get("limit")))
    figures = [value[name] for name in _FIGURES if name in value]
    numeric = all(f is None or is_number(f) for f in figures)
    return isinstance(method, str) and valid_goal and numeric
