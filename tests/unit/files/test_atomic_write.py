"""Writing: whole or not at all, with the old mode, and never over what is no regular file."""

from __future__ import annotations

import errno
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from torch import nn

import fewbits
from fewbits.errors import ConfigError, SourceError
from fewbits.exporters import export
from fewbits.files.atomic_write import TEMPORARY, check_target, clear_stale, replacing, write
from fewbits.search import Trace
from fewbits.training.loop.checkpoint import RunFolder
from fewbits.training.loop.logs import CSVLog

pytestmark = pytest.mark.skipif(os.name == "nt", reason="special files and modes are POSIX's")
STALE = ".fewbits-0123456789abcdef.tmp"


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def special(tmp_path):
    """A FIFO, a socket, a device, and links to a FIFO and to a device."""
    os.mkfifo(tmp_path / "fifo")
    held = socket.socket(socket.AF_UNIX)
    here = Path.cwd()
    os.chdir(tmp_path)  # the path of a socket must be short
    held.bind("socket")
    os.chdir(here)
    (tmp_path / "link").symlink_to("fifo")
    (tmp_path / "null").symlink_to("/dev/null")
    yield [tmp_path / "fifo", tmp_path / "socket", tmp_path / "link", tmp_path / "null"]
    held.close()


def test_what_is_no_regular_file_is_refused_and_stays(special, tmp_path):
    before = [path.stat() for path in special]
    for path in [*special, Path("/dev/null")]:
        for use in (check_target, lambda p: write(b"x", p)):
            with pytest.raises(
                ConfigError, match=r"is a (FIFO|device|socket), which cannot be replaced"
            ):
                use(path)
    assert [path.stat() for path in special] == before
    assert names(tmp_path) == ["fifo", "link", "null", "socket"]


def test_every_writer_refuses_it(special, tmp_path):
    net = nn.Linear(4, 3)
    coded = fewbits.compress(net, fewbits.Nearest(bits=8))
    rows = [torch.randn(8, 4)]
    budget = {"target_bytes": 400, "calibration": rows, "trace": special[0]}
    for use in (
        lambda: coded.save(special[0]),
        lambda: RunFolder.write(special[0], {}),
        lambda: CSVLog(special[0], None),
        lambda: export(coded, special[0], to="onnx", model=net, inputs=torch.randn(2, 4)),
        lambda: fewbits.compress(net, fewbits.RDOQ(), **budget),
    ):
        with pytest.raises(ConfigError, match="is a FIFO"):
            use()
    assert stat.S_ISFIFO(special[0].stat().st_mode)


def test_a_link_to_nothing_is_filled_and_stays(tmp_path):
    (tmp_path / "link").symlink_to("target")
    write(b"new", tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_bytes() == b"new"
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(OSError, match="symbolic links"):
        write(b"new", tmp_path / "a")


@pytest.mark.parametrize("kept", [0o600, 0o644, 0o640, 0o755, 0o444])
def test_the_mode_of_the_old_file_is_kept(tmp_path, kept):
    path = tmp_path / "net"
    path.write_bytes(b"old")
    path.chmod(kept)
    write(b"new", path)
    assert (path.read_bytes(), mode(path)) == (b"new", kept)


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_a_new_file_follows_the_umask(tmp_path, umask):
    before = os.umask(umask)
    try:
        write(b"new", tmp_path / "net")
    finally:
        os.umask(before)
    assert mode(tmp_path / "net") == 0o666 & ~umask


def test_a_secret_is_never_readable_by_others_while_it_is_written(tmp_path):
    path = tmp_path / "net"
    path.write_bytes(b"old")
    path.chmod(0o600)
    with replacing(path) as file:
        file.write(b"new")
        assert {mode(entry) for entry in tmp_path.iterdir()} == {0o600}


@pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() != 0, reason="needs root")
def test_the_owner_is_kept_where_that_is_allowed(tmp_path):
    path = tmp_path / "net"
    path.write_bytes(b"old")
    os.chown(path, 1234, 4321)
    path.chmod(0o2640)
    write(b"new", path)
    assert (path.stat().st_uid, path.stat().st_gid, mode(path)) == (1234, 4321, 0o2640)


def test_what_a_dead_writer_left_is_removed_and_nothing_else(tmp_path):
    others = [".fewbits-01.tmp", "x.tmp", f"{STALE}.txt", ".0123456789abcdef.tmp"]
    for name in [STALE, *others]:
        (tmp_path / name).write_bytes(b"left")
    (tmp_path / ".fewbits-00000000000000ff.tmp").mkdir()
    write(b"new", tmp_path / "net")
    assert names(tmp_path) == sorted([*others, "net", ".fewbits-00000000000000ff.tmp"])


def test_what_a_living_writer_holds_stays(tmp_path):
    with replacing(tmp_path / "one") as one:
        one.write(b"1")
        clear_stale(tmp_path)
        write(b"2", tmp_path / "two")
        code = "import sys; from fewbits.files.atomic_write import write; write(b'3', sys.argv[1])"
        subprocess.run([sys.executable, "-c", code, str(tmp_path / "three")], check=True)
        assert len(names(tmp_path)) == 3
    assert names(tmp_path) == ["one", "three", "two"]
    assert (tmp_path / "one").read_bytes() == b"1"


def test_a_killed_writer_leaves_the_old_file_and_the_next_one_clears_up(tmp_path):
    path = tmp_path / "net"
    write(b"old", path)
    code = (
        "import sys, time; from fewbits.files.atomic_write import replacing\n"
        "with replacing(sys.argv[1]) as file: file.write(b'half'); file.flush(); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(path)]) as child:
        until = time.monotonic() + 30
        while len(names(tmp_path)) < 2 and time.monotonic() < until:
            time.sleep(0.01)
        child.send_signal(signal.SIGKILL)
    left = [name for name in names(tmp_path) if name != "net"]
    assert len(left) == 1
    assert TEMPORARY.fullmatch(left[0])
    assert path.read_bytes() == b"old"
    write(b"new", path)
    assert names(tmp_path) == ["net"]


def test_writers_at_once_end_with_one_whole_file(tmp_path):
    path = tmp_path / "net"
    versions = [bytes([k]) * 200_000 for k in range(6)]
    failed = []

    def again(data):
        try:
            for _ in range(15):
                write(data, path)
        except BaseException as error:  # told in the main thread
            failed.append(error)

    threads = [threading.Thread(target=again, args=(data,)) for data in versions]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        if path.exists():
            assert path.read_bytes() in versions
    assert failed == []
    assert names(tmp_path) == ["net"]


def test_an_error_of_the_system_names_the_file_that_was_asked_for(tmp_path, monkeypatch):
    def full(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space") as told:
        write(b"new", tmp_path / "net")
    assert str(told.value) == f"[Errno 28] No space left on device: {str(tmp_path / 'net')!r}"
    assert names(tmp_path) == []


def test_a_full_disk_is_an_error_of_the_system_for_checkpoints_too(tmp_path, monkeypatch):
    class Full:
        def write(self, data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    from fewbits.training.loop import checkpoint

    sealing = checkpoint._Sealing
    monkeypatch.setattr(checkpoint, "_Sealing", lambda file: sealing(Full()))
    with pytest.raises(OSError, match=r"No space left on device: .*last\.pt"):
        RunFolder.write(tmp_path / "last.pt", {"weight": torch.zeros(1000)})
    assert names(tmp_path) == []


def test_a_run_folder_removes_and_reads_regular_files_only(tmp_path):
    run = RunFolder(tmp_path)
    os.mkfifo(run.last)
    with pytest.raises(ConfigError, match="is a FIFO"):
        run.clear()
    with pytest.raises(SourceError, match="cannot be read"):
        run.load("key")
    os.mkfifo(run.epoch_file(1))
    run.last.unlink()
    run.save({"key": "key"}, None)
    assert stat.S_ISFIFO(run.epoch_file(1).stat().st_mode)


@pytest.mark.parametrize("content", [b"step\n\xff", b"step,x\n1," + b"2" * 200_000])
def test_a_log_that_is_none_is_named(tmp_path, content):
    (tmp_path / "metrics.csv").write_bytes(content)
    with pytest.raises(SourceError, match=r"metrics\.csv: is not the log of a run"):
        CSVLog(tmp_path / "metrics.csv", 5)


def test_a_trace_is_written_with_the_mode_it_had(tmp_path):
    path = tmp_path / "trace.json"
    path.write_text(Trace({"kind": "target_bytes"}).to_json())
    path.chmod(0o600)
    write(b"{}", path)
    assert mode(path) == 0o600
