"""Writing a file: wholly or not at all, and never over what is no regular file.

Everything that this package writes goes through here. What is written lies in the target's folder
under a name that :data:`TEMPORARY` fits, locked while its writer lives, and takes the target's
place in one step. Who is killed leaves such a file unlocked; the next writer removes it.
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
    """Write ``data`` to ``path``, wholly or not at all; see :func:`replacing`."""
    with replacing(path) as file:
        file.write(data)


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a file whose content takes the place of ``path`` when the block ends without an error.

    A crash leaves the old file or the new. Links are followed, and stay. A file that is replaced
    gives its mode, and its owner where the system allows that; a new one gets what the umask says.
    Of two who write at once one wins, with a whole file.

    Raises:
        ConfigError: ``path`` is a device, a FIFO or a socket: these are never replaced.
        OSError: as the system gives it, but it names ``path`` and not what is written before it.
            Nothing is left behind then.
    """
    check_target(path)
    target = Path(os.path.realpath(os.fsdecode(path)))
    clear_stale(target.parent)
    with _naming(path, target.parent):
        old = target.stat() if target.exists() else None
        temporary, file = _opened(target.parent, 0o666 if old is None else 0o600)
        with file:
            try:
                yield file
                file.flush()
                if old is not None:
                    _take_over(file, old)
                os.fsync(file.fileno())
                if sys.platform == "win32":  # which renames no open file, and has no lock to keep
                    file.close()
                temporary.replace(target)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
        _sync_folder(target.parent)


def check_target(path: str | os.PathLike[str]) -> None:
    """Refuse what cannot be written or must not be replaced. Touches nothing.

    Raises:
        ConfigError: a device, a FIFO or a socket.
        OSError: a folder, or a file in a folder that does not exist.
    """
    shown = os.fsdecode(os.fspath(path))
    if shown.endswith(os.sep):
        raise IsADirectoryError(errno.EISDIR, "is a folder. Name a file in it", shown)
    try:
        mode = os.stat(path).st_mode  # noqa: PTH116  (of links into /proc/self/fd too)
    except FileNotFoundError:
        if not Path(os.path.realpath(path)).parent.is_dir():
            near = Path(shown).parent  # of a link that leads nowhere, the folder is its target's
            folder = str(Path(os.path.realpath(shown)).parent if near.is_dir() else near)
            told = f"the folder {folder!r} does not exist. Create it first"
            raise FileNotFoundError(errno.ENOENT, told, shown) from None
        return
    except ValueError as error:  # a NUL, or half a character
        raise ConfigError(
            f"output {shown!r} is no name of a file: {error}. Name another."
        ) from None
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "is a folder. Name a file in it", shown)
    if not stat.S_ISREG(mode):
        kind = next((name for test, name in _KINDS if test(mode)), "no regular file")
        raise ConfigError(
            f"output {shown!r} is {kind}, and files are written by replacing the old one. Name a "
            "regular file, and copy that where it is to go."
        )


def clear_stale(folder: Path) -> None:
    """Remove what writers that are no longer alive left in ``folder``."""
    if sys.platform == "win32":
        return
    with suppress(OSError), os.scandir(folder) as entries:
        left = [e.path for e in entries if TEMPORARY.fullmatch(e.name)]
        for path in left:
            _remove_if_abandoned(Path(path))


def _remove_if_abandoned(path: Path) -> None:
    """Remove ``path`` unless its writer holds the lock, or the system cannot tell."""
    with suppress(OSError):
        handle = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(handle, "rb") as file:
            if stat.S_ISREG(os.fstat(handle).st_mode):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()


def _opened(folder: Path, mode: int) -> tuple[Path, BinaryIO]:
    """Create a temporary file, and lock it where the system can.

    Between the two steps another writer may take it for an abandoned one and remove it: then again.
    """
    for _ in range(_ATTEMPTS):
        temporary = folder / f".fewbits-{secrets.token_hex(8)}.tmp"
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0)
        flags |= getattr(os, "O_BINARY", 0)
        file = os.fdopen(os.open(temporary, flags, mode), "w+b")
        if _locked(file):
            return temporary, file
        file.close()
        temporary.unlink(missing_ok=True)
    raise OSError(errno.EBUSY, "temporary files of this folder disappear while they are written")


def _locked(file: BinaryIO) -> bool:
    """Lock a file against removal; False where it is removed already, or about to be."""
    if sys.platform == "win32":
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks, where nobody takes a file for abandoned
        return True
    return os.fstat(file.fileno()).st_nlink > 0


def _take_over(file: BinaryIO, old: os.stat_result) -> None:
    """Give the new file owner and mode of the old one; the owner only where that is allowed."""
    if sys.platform != "win32":
        mode = stat.S_IMODE(old.st_mode)
        try:
            os.fchown(file.fileno(), old.st_uid, old.st_gid)
        except OSError:
            mode &= 0o777  # to run as somebody is meant for the old owner
        os.fchmod(file.fileno(), mode)


def _sync_folder(folder: Path) -> None:
    """Make the new name last; some systems have no such thing, and the file is written already."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextmanager
def _naming(path: str | os.PathLike[str], folder: Path) -> Iterator[None]:
    """Let errors of the system about a temporary file name ``path``."""
    try:
        yield
    except OSError as error:
        named = "" if error.filename is None else str(error.filename)
        inside = os.path.dirname(named) == str(folder) and TEMPORARY.fullmatch(Path(named).name)  # noqa: PTH120
        if error.errno is not None and (not named or inside):
            raise OSError(error.errno, error.strerror, os.fspath(path)) from error
        raise
