"""What benchmarks/writing.py tries: the writers, and what each must do."""

from __future__ import annotations

import functools
import os
import random
import socket
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from typer.testing import CliRunner

import fewbits
from fewbits.cli.app import app
from fewbits.cli.jobs.run_folder import RunRequest
from fewbits.errors import ConfigError, SourceError
from fewbits.files.atomic_write import TEMPORARY, write
from fewbits.search import Trace
from fewbits.sources.checkpoints.checkpoint import read_state_dict
from fewbits.training.loop.checkpoint import RunFolder
from fewbits.training.loop.logs import CSVLog

__all__ = [
    "WRITERS",
    "Row",
    "changed_bytes",
    "checkpoints",
    "full_disk",
    "modes",
    "saved_files",
    "special_files",
    "umasks",
]


_HELD = tempfile.TemporaryDirectory()


@dataclass
class Row:
    """What was tried, what must come of it, how often it was, and how it went otherwise."""

    what: str
    wanted: str
    times: int = 0
    failures: list[str] = field(default_factory=list)
    note: str = ""
    skipped: str = ""

    def check(self, good: bool, otherwise: str) -> None:
        """Note what is not as it should be."""
        if not good:
            self.failures.append(otherwise)

    def outcome(self) -> str:
        """Return how it went, in a word."""
        if self.skipped:
            return f"skipped: {self.skipped}"
        return f"{len(self.failures)} otherwise ({'; '.join(sorted(set(self.failures)))})"

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return asdict(self) | {"failures": len(self.failures), "kinds": sorted(set(self.failures))}


@functools.cache
def _coded(seed: int, width: int = 512) -> fewbits.CodedModel:
    torch.manual_seed(seed)
    made = fewbits.compress(nn.Linear(width, width), fewbits.Nearest(bits=8))
    made.encode()
    return made


def saved_files(folder: Path) -> tuple[list[Callable[[], Any]], Callable[[], bool]]:
    """Two compressed networks that are saved under one name, and whether it holds one of them."""
    path, both = folder / "net.fewbits", [_coded(0), _coded(1)]
    known = [coded.data for coded in both]
    save = [functools.partial(coded.save, path) for coded in both]
    return save, lambda: path.read_bytes() in known


def checkpoints(folder: Path) -> tuple[list[Callable[[], Any]], Callable[[], bool]]:
    """Two states of a run that are saved as its latest, and whether it loads as one of them."""
    run = RunFolder(folder)
    states = [
        {"key": "k", "best": None, "reference": 0.0, "value": torch.full((100_000,), float(k))}
        for k in range(2)
    ]

    def whole() -> bool:
        value = (run.load("k") or {})["value"]
        return any(torch.equal(value, state["value"]) for state in states)

    return [functools.partial(run.save, state, None) for state in states], whole


def _command(*words: object) -> None:
    """Run the command line in this process; its errors as exceptions."""
    done = CliRunner().invoke(app, [str(word) for word in words])
    text = " ".join(done.output.split())
    if done.exit_code and ("which cannot be replaced atomically" in text):
        raise ConfigError(text)
    if done.exit_code:
        raise OSError(28 if "No space left" in text else 5, text, str(words[-1]))


@functools.cache
def _source() -> Path:
    path = Path(_HELD.name) / "source.fewbits"
    _coded(0, 600).save(path)
    return path


def _order(path: Path) -> None:
    plain: dict[str, Any] = {"model": "m", "weights": None, "data": "d", "selection": None}
    recipe = {"rules": ["x" * 2**20]}
    RunRequest(**plain, start=None, recipe=recipe, out="o", folder=str(path.parent)).save()


def _metrics(path: Path) -> None:
    CSVLog(path, None).write(1, {"x" * 2**20: 1.0})


BIG = {"w": torch.zeros(600, 600)}
WRITERS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "save": ("net.fewbits", lambda path: _coded(0, 1200).save(path)),
    "decode to safetensors": (
        "net.safetensors",
        lambda path: _command("decode", _source(), "--force", "-o", path),
    ),
    "decode to .pt": ("net.pt", lambda path: _command("decode", _source(), "--force", "-o", path)),
    "checkpoint": ("last.pt", lambda path: RunFolder.write(path, BIG)),
    "trace": ("trace.json", lambda path: write(Trace({"a": "x" * 2**20}).to_json().encode(), path)),
    "run.json": ("run.json", _order),
    "metrics.csv": ("metrics.csv", _metrics),
}


def _names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if TEMPORARY.fullmatch(path.name)]


@contextmanager
def _small_disk() -> Iterator[Path]:
    """Mount a file system of 1 MiB.

    Raises:
        PermissionError: that is not permitted here.
    """
    with tempfile.TemporaryDirectory() as name:
        words = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", name]
        try:
            subprocess.run(words, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise PermissionError("mounting a tmpfs is not permitted") from error
        try:
            yield Path(name)
        finally:
            subprocess.run(["umount", name], check=True)


def full_disk() -> Iterator[Row]:
    """Every writer on a disk that is full: the old file stays, the error names the new one."""
    for title, (name, use) in WRITERS.items():
        row = Row(f"disk full: {title}", "an OSError that names the file; the old one stays")
        try:
            with _small_disk() as folder:
                old = b"step\n"  # metrics.csv begins with its header, and the row is too much
                (folder / name).write_bytes(old)
                row.times += 1
                try:
                    use(folder / name)
                    row.check(False, "no error")
                except OSError as error:
                    row.check("No space left" in str(error), f"another error: {error}")
                    row.check(str(folder / name) in str(error), "the error does not name it")
                except Exception as error:
                    row.check(False, f"{type(error).__name__}")
                row.check((folder / name).read_bytes() == old, "the old file is gone")
                row.check(not _names(folder), "something is left behind")
        except PermissionError as error:
            row.skipped = str(error)
        yield row


def _special(kind: str, path: Path) -> None:
    if kind == "FIFO":
        os.mkfifo(path)
    elif kind == "link to a FIFO":
        os.mkfifo(path.with_name("fifo"))
        path.symlink_to("fifo")
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(str(path))
    elif kind == "device":  # /dev/null in a folder of ours
        os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    elif kind == "block device":  # of a number that no driver has
        os.mknod(path, 0o666 | stat.S_IFBLK, os.makedev(240, 77))
    else:
        path.symlink_to("/dev/null")


def special_files() -> Iterator[Row]:
    """Every writer on every kind of special file: a ConfigError, and the file is what it was."""
    kinds = ("FIFO", "link to a FIFO", "socket", "device", "block device", "link to /dev/null")
    for kind in kinds:
        row = Row(f"{kind} as output", "a ConfigError; it stays what it is")
        for title, (name, use) in WRITERS.items():
            with tempfile.TemporaryDirectory() as made:
                path = Path(made) / name
                try:
                    _special(kind, path)
                except PermissionError:
                    row.skipped = "making a device is not permitted"
                    break
                before = path.lstat(), path.stat()
                row.times += 1
                try:
                    use(path)
                    row.check(False, f"{title}: no error")
                except ConfigError:
                    pass
                except Exception as error:
                    row.check(False, f"{title}: {type(error).__name__}")
                row.check((path.lstat(), path.stat()) == before, f"{title}: it is replaced")
                row.check(not _names(Path(made)), f"{title}: something is left behind")
        yield row


def modes() -> Row:
    """Every writer over files of several modes and of another owner: all of that is kept."""
    row = Row("modes and owner of a replaced file", "are kept")
    for title, (name, use) in WRITERS.items():
        for mode in (0o600, 0o640, 0o644, 0o664, 0o755):
            with tempfile.TemporaryDirectory() as made:
                path = Path(made) / name
                path.write_bytes(b"old")
                if os.getuid() == 0:
                    os.chown(path, 1234, 4321)
                path.chmod(mode)
                before = path.stat()
                use(path)
                after = path.stat()
                row.times += 1
                row.check(after.st_size > 3, f"{title}: it is not replaced")
                same = (after.st_mode, after.st_uid) == (before.st_mode, before.st_uid)
                row.check(same and after.st_gid == before.st_gid, f"{title}: they differ")
    return row


def umasks() -> Row:
    """Every writer of a new file: its mode is what the umask leaves."""
    row = Row("mode of a new file", "is what the umask leaves")
    for title, (name, use) in WRITERS.items():
        for mask in (0o022, 0o002, 0o077):
            with tempfile.TemporaryDirectory() as made:
                before = os.umask(mask)
                try:
                    use(Path(made) / name)
                finally:
                    os.umask(before)
                found = stat.S_IMODE((Path(made) / name).stat().st_mode)
                row.times += 1
                row.check(found == 0o666 & ~mask, f"{title}: {found:o} under {mask:03o}")
    return row


def changed_bytes(what: str, count: int, draw: random.Random) -> Row:
    """Change one byte at random: refused with a SourceError, or the same content."""
    row = Row(f"one byte of a {what}" if what == "checkpoint" else f"one byte of {what}", "")
    row.wanted = "a SourceError, or the same content"
    state = {"key": "k", "best": None, "reference": 0.0, "w": torch.linspace(-1, 1, 400)}
    weights, same = {"w": state["w"]}, 0
    with tempfile.TemporaryDirectory() as made:
        run = RunFolder(made)
        run.save(state, None)
        if what != "checkpoint":
            torch.save(weights, run.last)
        sound = run.last.read_bytes()
        for _ in range(count):
            place = draw.randrange(len(sound))
            changed = bytes([sound[place] ^ draw.randrange(1, 256)])
            run.last.write_bytes(sound[:place] + changed + sound[place + 1 :])
            row.times += 1
            try:
                found: Any = run.load("k") if what == "checkpoint" else read_state_dict(run.last)
            except SourceError:
                continue
            except Exception as error:
                row.check(False, f"another error: {type(error).__name__}")
                continue
            same += 1
            want = state if what == "checkpoint" else weights
            good = found.keys() == want.keys() and torch.equal(found["w"], state["w"])
            row.check(good, "other content")
    row.note = f"{len(sound):,} bytes; {same} load, with the same content"
    return row
