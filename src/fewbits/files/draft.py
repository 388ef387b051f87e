"""Files or folders that somebody else writes, put in place when they are complete."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .atomic_write import check_target, replacing

__all__ = ["draft"]


@contextmanager
def draft(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield where to write what takes the place of ``path`` when the block ends without an error.

    It is the same name in a folder of its own beside ``path``, which is removed in any case. What
    is made may be a folder: if ``path`` is one too, its files of other names stay.

    Raises:
        ConfigError: ``path`` is a device, a FIFO or a socket.
        OSError: any system error, reported for ``path``.
    """
    if not Path(os.fsdecode(path)).is_dir():
        check_target(path)
    shown = os.fspath(path)
    place = Path(os.path.realpath(os.fsdecode(path)))
    try:
        with tempfile.TemporaryDirectory(prefix=".fewbits-", dir=place.parent) as folder:
            made = Path(folder) / Path(os.fsdecode(path)).name
            yield made
            if made.is_dir() and place.is_dir():
                for part in made.iterdir():
                    part.replace(place / part.name)
            elif made.is_dir() or not place.exists():
                made.replace(place)
            else:
                with made.open("rb") as written, replacing(path) as file:
                    shutil.copyfileobj(written, file, 1 << 20)
    except OSError as error:
        if error.errno is not None and ".fewbits-" in str(error.filename):
            raise OSError(error.errno, error.strerror, shown) from error
        raise
