"""The engines by name."""

from __future__ import annotations

from collections.abc import Mapping

from ..errors import did_you_mean, require
from .cluster import Ray
from .engine import Engine, Serial

__all__ = ["ENGINES", "as_engine"]

ENGINES: Mapping[str, type[Serial | Ray]] = {"serial": Serial, "ray": Ray}


def as_engine(engine: Engine | str) -> Engine:
    """Return an engine, or the one that a name stands for, with its defaults.

    Raises:
        ConfigError: unknown name; the message lists the valid ones.
    """
    if not isinstance(engine, str):
        return engine
    expected = f"an engine or one of {', '.join(ENGINES)}{did_you_mean(engine, ENGINES)}"
    require(engine in ENGINES, "engine", expected, engine)
    return ENGINES[engine]()
