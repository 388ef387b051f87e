"""The engines by name."""

from __future__ import annotations

from collections.abc import Mapping

from ..errors import ConfigError, did_you_mean, shorten
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
    if engine not in ENGINES:
        raise ConfigError(
            f"engine must be one of {', '.join(ENGINES)}, or one of their classes with settings. "
            f"Got {shorten(engine)}.{did_you_mean(engine, ENGINES)}"
        )
    return ENGINES[engine]()
