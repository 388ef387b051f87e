"""Values of options that are wrong whatever the files are: wrong usage, exit code 2."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer

from ...errors import ConfigError

__all__ = ["as_usage"]


@contextmanager
def as_usage(option: str = "") -> Iterator[None]:
    """Turn the errors of a block that only looks at options into errors of usage.

    Raises:
        typer.BadParameter: the block raised a :class:`ConfigError`; ``option`` goes before it.
    """
    try:
        yield
    except ConfigError as error:
        raise typer.BadParameter(f"{option}: {error}" if option else str(error)) from None
