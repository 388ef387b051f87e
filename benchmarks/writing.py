"""Files under stress: killed writers, two at once, a full disk, special files, changed bytes.

    python benchmarks/writing.py [--kills 40] [--changes 1000] [--seed 0]

A full disk is a tmpfs of 1 MiB: where mounting is not permitted the row says "skipped". Exit code
1 if anything is otherwise than it should be.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import record
from fewbits.files.atomic_write import TEMPORARY
from images import ROOT
from writing_cases import (
    WRITERS,
    Row,
    changed_bytes,
    checkpoints,
    full_disk,
    modes,
    saved_files,
    special_files,
    umasks,
)

FORK = multiprocessing.get_context("fork")


def _left(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if TEMPORARY.fullmatch(path.name)]


def _forever(steps: list[Callable[[], Any]]) -> None:
    while True:
        for step in steps:
            step()


def killed(what: str, versions: Any, *, kills: int, draw: random.Random) -> Row:
    """Kill a writer at random moments: the file is the old or the new one, and whole."""
    row = Row(what, "the old file or the new one, whole; the next save clears up")
    caught = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save, whole = versions(folder)
        save[0]()
        for _ in range(kills):
            child = FORK.Process(target=_forever, args=(save,))
            child.start()
            time.sleep(draw.uniform(0.005, 0.12))
            os.kill(child.pid or 0, signal.SIGKILL)
            child.join()
            left = len(_left(folder))
            caught += left
            row.check(whole(), "the file is damaged")
            row.check(left <= 1, f"{left} temporary files")
            save[1]()
            row.check(whole() and not _left(folder), "the next save leaves something behind")
            row.times += 1
    row.note = f"{caught} of them while a temporary file was there"
    return row


def at_once(what: str, versions: Any, *, writers: int, seconds: float) -> Row:
    """Let several write one file while it is read: every reading finds one of them, whole."""
    row = Row(what, "every reading finds one version, whole; nothing is left behind")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save, whole = versions(folder)
        save[0]()
        steps = [[save[k % 2]] for k in range(writers)]
        children = [FORK.Process(target=_until, args=(s, time.time() + seconds)) for s in steps]
        for child in children:
            child.start()
        while any(child.is_alive() for child in children):
            row.check(whole(), "a reading finds no whole file")
            row.times += 1
        for child in children:
            child.join()
            row.check(child.exitcode == 0, f"a writer ends with {child.exitcode}")
        row.check(whole() and not _left(folder), "something is left behind")
    row.note = "readings"
    return row


def _until(steps: list[Callable[[], Any]], end: float) -> None:
    while time.time() < end:
        for step in steps:
            step()


def run(kills: int, changes: int, seed: int) -> list[Row]:
    """Return all rows."""
    draw = random.Random(seed)
    return [
        killed("kill -9 during save", saved_files, kills=kills, draw=draw),
        killed("kill -9 during a checkpoint", checkpoints, kills=kills, draw=draw),
        at_once("two save one file", saved_files, writers=2, seconds=5.0),
        at_once("four save one file", saved_files, writers=4, seconds=5.0),
        *full_disk(),
        *special_files(),
        modes(),
        umasks(),
        changed_bytes("checkpoint", changes, draw),
        changed_bytes("weights in .pt", changes, draw),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--changes", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    began = time.perf_counter()
    rows = run(args.kills, args.changes, args.seed)
    for row in rows:
        print(f"{row.what}: {row.times}, {row.outcome()}")
    usual = (args.kills, args.changes, args.seed) == (40, 1000, 0)
    record.write(
        "writing",
        model="none, what is written and read back",
        data=f"{len(WRITERS)} writers: {', '.join(WRITERS)}",
        folder=None if usual else ROOT / ".data",
        wall_seconds=time.perf_counter() - began,
        rows=[row.to_dict() for row in rows],
    )
    if any(row.failures for row in rows):
        sys.exit(1)


if __name__ == "__main__":
    main()
