"""Atomic file writes: the whole file or nothing, and only ever over a regular file.

All output of this package is written here. Data goes to a temporary file in the target's folder,
named as in :data:`TEMPORARY` and locked while its writer runs, and then replaces the target in one
step. A killed writer leaves the file behind unlocked; the next writer removes it.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from ..errors import ConfigError

if sys.platform != "win32":
    import fcntl

__all__ = ["TEMPORARY", "check_target", "clear_stale", "replacing", "write"]

TEMPORARY = re.compile(r"\.fewbits-[0-9a-f]{16}\.tmp")
_KINDS = (
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a block device"),
    (stat.S_ISSOCK, "a socket"),
)
_ATTEMPTS = 16


def write(data: bytes, path: str | os.PathLike[str]) -> None:
    """Write ``data`` to ``path`` atomically; see :func:`replacing`."""
    with replacing(path) as file:
        file.write(data)


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a file that replaces ``path`` when the block ends without an error.

    After a crash, ``path`` holds either the old content or the new. Symbolic links are followed
    and kept. The new file takes over the mode of the one it replaces, and its owner where the
    system allows; a file that did not exist gets the umask's default. If two writers race, one of
    them wins with a complete file.

    Raises:
        ConfigError: ``path`` is a device, a FIFO or a socket, which are never replaced.
        OSError: any system error, reported for ``path`` rather than for the temporary file, which
            is removed.
    """
    check_target(path)
    target = Path(os.path.realpath(os.fsdecode(path)))
    clear_stale(target.parent)
    with _report_as(path, target.parent):
        old = target.stat() if target.exists() else None
        temporary, file = _create_temporary(target.parent, 0o666 if old is None else 0o600)
        with file:
            try:
                yield file
                file.flush()
                if old is not None:
                    _copy_ownership(file, old)
                os.fsync(file.fileno())
                if sys.platform == "win32":  # cannot rename open files, and uses no locks
                    file.close()
                temporary.replace(target)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
        _sync_folder(target.parent)


def check_target(path: str | os.PathLike[str]) -> None:
    """Check that ``path`` can be written and may be replaced, without touching it.

    Raises:
        ConfigError: ``path`` is a device, a FIFO or a socket.
        OSError: ``path`` is a folder, or its folder does not exist.
    """
    shown = os.fsdecode(os.fspath(path))
    if shown.endswith(os.sep):
        raise IsADirectoryError(errno.EISDIR, "is a folder. Name a file in it", shown)
    try:
        mode = os.stat(path).st_mode  # noqa: PTH116  (also follows links into /proc/self/fd)
    except FileNotFoundError:
        if not Path(os.path.realpath(path)).parent.is_dir():
            near = Path(shown).parent  # for a dangling link, name the folder of its target
            folder = str(Path(os.path.realpath(shown)).parent if near.is_dir() else near)
            message = f"the folder {folder!r} does not exist. Create it first"
            raise FileNotFoundError(errno.ENOENT, message, shown) from None
        return
    except ValueError as error:  # a NUL character or an unpaired surrogate
        raise ConfigError(
            f"output {shown!r} is not a valid file name: {error}. Choose another name."
        ) from None
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "is a folder. Name a file in it", shown)
    if not stat.S_ISREG(mode):
        kind = next((name for test, name in _KINDS if test(mode)), "not a regular file")
        raise ConfigError(
            f"output {shown!r} is {kind}, which cannot be replaced atomically. Write to a regular "
            "file and copy it there."
        )


def clear_stale(folder: Path) -> None:
    """Remove temporary files that dead writers left in ``folder``."""
    if sys.platform == "win32":
        return
    with suppress(OSError), os.scandir(folder) as entries:
        left = [e.path for e in entries if TEMPORARY.fullmatch(e.name)]
        for path in left:
            _remove_if_abandoned(Path(path))


def _remove_if_abandoned(path: Path) -> None:
    """Remove ``path`` unless its writer holds the lock or the lock cannot be tested."""
    with suppress(OSError):
        handle = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(handle, "rb") as file:
            if stat.S_ISREG(os.fstat(handle).st_mode):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()


def _create_temporary(folder: Path, mode: int) -> tuple[Path, BinaryIO]:
    """Create a temporary file and lock it where the system supports locks.

    Between these two steps another writer may mistake it for a stale file and remove it; retry.
    """
    for _ in range(_ATTEMPTS):
        temporary = folder / f".fewbits-{secrets.token_hex(8)}.tmp"
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0)
        flags |= getattr(os, "O_BINARY", 0)
        file = os.fdopen(os.open(temporary, flags, mode), "w+b")
        if _lock(file):
            return temporary, file
        file.close()
        temporary.unlink(missing_ok=True)
    raise OSError(errno.EBUSY, "temporary files in this folder are removed while being written")


def _lock(file: BinaryIO) -> bool:
    """Lock a file against removal; return False if it has been, or is about to be, removed."""
    if sys.platform == "win32":
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # no locks on this file system, so no writer removes stale files either
        return True
    return os.fstat(file.fileno()).st_nlink > 0


def _copy_ownership(file: BinaryIO, old: os.stat_result) -> None:
    """Give the new file the mode of the old one, and its owner where the system allows."""
    if sys.platform != "win32":
        mode = stat.S_IMODE(old.st_mode)
        try:
            os.fchown(file.fileno(), old.st_uid, old.st_gid)
        except OSError:
            mode &= 0o777  # setuid and setgid bits must not pass to another owner
        os.fchmod(file.fileno(), mode)


def _sync_folder(folder: Path) -> None:
    """Make the rename durable. Not all systems support this, and the file is already in place."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextmanager
def _report_as(path: str | os.PathLike[str], folder: Path) -> Iterator[None]:
    """Re-raise system errors about a temporary file in ``folder`` as errors about ``path``."""
    try:
        yield
    except OSError as error:
        named = "" if error.filename is None else str(error.filename)
        inside = os.path.dirname(named) == str(folder) and TEMPORARY.fullmatch(Path(named).name)  # noqa: PTH120
        if error.errno is not None and (not named or inside):
            raise OSError(error.errno, error.strerror, os.fspath(path)) from error
        raise
