"""The trials of a search: a table for people, JSON for the next run."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from ..coded import shortened
from ..errors import ConfigError, is_number, shorten
from ..files.json_values import read_json
from .level_counts import levels_at

__all__ = ["SCHEMA", "Trace", "Trial"]

SCHEMA = "fewbits.trace/1"
_NOT_FINITE = {str(value): value for value in (math.nan, math.inf, -math.inf)}


@dataclass(frozen=True)
class Trial:
    """One evaluation: the network compressed at one slope, or with one number of levels.

    Attributes:
        slope: squared output error that one bit is worth; ``levels ** -2`` where levels are varied.
        bytes: of the file, everything counted.
        bits_per_weight: all bits of the file per quantized weight.
        score: what the caller's ``evaluate`` returned; None if there was none.
        seconds: duration of the evaluation.
        levels: number of levels of every grid; None where slopes are varied.
    """

    slope: float
    bytes: int
    bits_per_weight: float
    score: float | None = None
    seconds: float = 0.0
    levels: int | None = None

    @property
    def setting(self) -> str:
        """What was varied, in words."""
        return f"slope {self.slope:.3g}" if self.levels is None else f"{self.levels} levels"

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values; ``levels`` is left out where slopes are varied."""
        return {name: value for name, value in asdict(self).items() if name != "levels" or value}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Trial:
        """Return a trial from its JSON values.

        Raises:
            ConfigError: not the values of a trial.
        """
        score = data.get("score", "")
        score = _NOT_FINITE.get(score, score) if isinstance(score, str) else score
        scored = score is None or isinstance(score, float) or is_number(score)
        size, seconds = data.get("bytes"), data.get("seconds")
        whole = isinstance(size, int) and not isinstance(size, bool) and 0 < size < 2**63
        sound = whole and scored and is_number(seconds) and seconds >= 0
        slope, bits = data.get("slope"), data.get("bits_per_weight")
        levels = data.get("levels")
        if not (
            sound
            and (levels is None or levels_at(slope) == levels)
            and is_number(slope)
            and 1e-150 < slope < 1e150
            and is_number(bits)
            and 1e-12 < bits < 1e12
        ):
            raise ConfigError(
                "not a trial of a search: bytes > 0, slope in (1e-150, 1e150), bits_per_weight in "
                "(1e-12, 1e12), seconds >= 0, score a number or null. "
                f"Got {shorten(data)} instead."
            )
        number = None if score is None else float(score)
        return cls(float(slope), int(size or 0), float(bits), number, float(seconds or 0), levels)


@dataclass
class Trace:
    """The trials of one search, in order.

    Attributes:
        goal: ``Goal.to_dict()`` of the budget.
        key: fingerprint of network, recipe and data; only a trace with the same key is resumed.
        reference: score of the float network; None if nothing is scored.
        trials: evaluated slopes, each once.
        chosen: index of the best trial within the budget, or None.
        ended: why the search stopped; empty while it runs.
    """

    goal: Mapping[str, Any]
    key: str = ""
    reference: float | None = None
    trials: list[Trial] = field(default_factory=list)
    chosen: int | None = None
    ended: str = ""

    @property
    def best(self) -> Trial | None:
        """The chosen trial."""
        return None if self.chosen is None else self.trials[self.chosen]

    def find(self, slope: float) -> Trial | None:
        """Return the trial of a slope that was evaluated before, or None."""
        return next((trial for trial in self.trials if trial.slope == slope), None)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values; ``docs/budgets.md`` describes them."""
        trials = [t.to_dict() | {"chosen": k == self.chosen} for k, t in enumerate(self.trials)]
        return {
            "schema": SCHEMA,
            "key": self.key,
            "goal": dict(self.goal),
            "reference": self.reference,
            "ended": self.ended,
            "trials": trials,
        }

    def to_json(self) -> str:
        """Return JSON text for :meth:`from_json`."""
        values = self.to_dict()
        for trial in values["trials"]:
            if trial["score"] is not None and not math.isfinite(trial["score"]):
                trial["score"] = str(trial["score"])  # JSON cannot express these numbers
        return json.dumps(values, indent=1, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Trace:
        """Parse a trace.

        Raises:
            ConfigError: not a trace.
        """
        try:
            data = read_json(text)
        except ConfigError as error:
            raise ConfigError(f"a trace {error}") from None
        if not isinstance(data, dict) or data.get("schema") != SCHEMA:
            raise ConfigError(f"not a trace of a search: expected the schema {SCHEMA!r}.")
        goal, trials, reference = data.get("goal"), data.get("trials"), data.get("reference")
        number = reference is None or is_number(reference)
        listed = isinstance(trials, list) and all(isinstance(t, dict) for t in trials)
        if not isinstance(goal, dict) or not isinstance(trials, list) or not (number and listed):
            raise ConfigError("a trace must have a goal, a list of trials and a reference.")
        key, ended = (data.get(name) for name in ("key", "ended"))
        marks = [trial.get("chosen", False) for trial in trials]
        marked = all(isinstance(mark, bool) for mark in marks) and sum(marks) <= 1
        if not isinstance(key, str) or not isinstance(ended, str) or not marked:
            raise ConfigError("a trace must have strings 'key' and 'ended', and one chosen trial.")
        chosen = marks.index(True) if any(marks) else None
        parsed = [Trial.from_dict(trial) for trial in trials]
        if len({math.log2(trial.slope) for trial in parsed}) < len(parsed):
            raise ConfigError("a trace must have every slope once.")
        return cls(goal, key, reference, parsed, chosen, ended)

    def __repr__(self) -> str:
        goal = ", ".join(f"{key}={value}" for key, value in self.goal.items())
        best = "none within the budget yet" if self.best is None else f"best {self.best}"
        ended = f"; {shortened(self.ended, 200)}" if self.ended else ""
        return f"<Trace of {len(self.trials)} trials ({shortened(goal, 100)}): {best}{ended}>"

    def _repr_html_(self) -> str:
        from ..report import trace_html  # noqa: PLC0415  (loading a file needs no Rich)

        return trace_html(self.to_dict())

    def _rows(self) -> list[tuple[str, ...]]:
        varied = "slope" if all(trial.levels is None for trial in self.trials) else "levels"
        rows: list[tuple[str, ...]] = [("", varied, "bytes", "bits/weight", "score", "seconds")]
        for place, trial in enumerate(self.trials):
            score = "-" if trial.score is None else f"{trial.score:.4f}"
            mark = "*" if place == self.chosen else ""
            size = (f"{trial.bytes:,}", f"{trial.bits_per_weight:.3f}")
            setting = f"{trial.slope:.3e}" if trial.levels is None else str(trial.levels)
            rows.append((mark, setting, *size, score, f"{trial.seconds:.1f}"))
        return rows

    def __str__(self) -> str:
        rows = self._rows()
        widths = [max(len(row[k]) for row in rows) for k in range(6)]
        lines = ["  ".join(c.rjust(w) for c, w in zip(r, widths, strict=True)) for r in rows]
        return "\n".join([*lines, *([self.ended] if self.ended else [])])
