"""A fuzzer that looks for what is dear: CPU seconds and bytes of memory, in all and for each byte.

    python benchmarks/fuzz_cost.py [--minutes 20] [--seed 0] [--targets load,inspect] [--size 10000]

An evolutionary search: inputs that cost more than others are kept and changed again. They are read
in a child process with limits; what is neither read nor refused, or beyond the bounds of
docs/robustness.md, is kept in .data/fuzz and fails the run. `fuzz_coverage.py` looks for new paths.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import multiprocessing
import resource
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from numpy.random import Generator

from fuzz_genes import Genome
from fuzz_targets import TARGETS, Target, judge

__all__ = ["Reader", "Search", "bounds", "search"]

HANG = 60  # seconds that a case may take before its process is ended
MEMORY = 8 << 30  # bytes of address space of the child
KEPT = 24  # inputs of each objective
ALIKE = 40  # characters of a reason: one failure of each is kept
OBJECTIVES = ("seconds", "bytes", "seconds_per_byte", "bytes_per_byte")


def bounds(size: int) -> tuple[float, float]:
    """Return the CPU seconds and bytes of memory that an input of ``size`` bytes may take."""
    share = max(0, size - 10_000) / 990_000
    return 2 + 58 * share, 2e8 + 8e8 * share


def _reset_peak() -> int:
    """Forget the highest resident memory of this process, and return what is resident now."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _status(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return 1024 * int(line.split()[1])
    raise OSError(f"no {key} in /proc/self/status")


def _serve(target: Target, pipe: Connection) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    libc = ctypes.CDLL(None)
    libc.mallopt(-3, 1 << 22)  # what is large is mapped, so that freeing it shows
    with tempfile.TemporaryDirectory() as folder:
        while True:
            data = pipe.recv_bytes()
            before, begin = _reset_peak(), time.process_time()
            try:
                outcome = judge(target, data, Path(folder))
            except BaseException as error:  # a panic of a library is no Exception
                outcome = f"{type(error).__name__}: {str(error)[:300]}"
            seconds = time.process_time() - begin
            held = max(0, _status("VmHWM") - before)
            libc.malloc_trim(0)
            pipe.send((outcome, seconds, held))


class Reader:
    """A child process that reads inputs of one target; a new one where it ended."""

    def __init__(self, name: str) -> None:
        self.target = TARGETS[name]
        self._start()

    def _start(self) -> None:
        fork = multiprocessing.get_context("fork")
        self._pipe, there = fork.Pipe()
        self._child = fork.Process(target=_serve, args=(self.target, there), daemon=True)
        self._child.start()
        there.close()

    def read(self, data: bytes) -> tuple[str, float, int]:
        """Return what became of an input, its CPU seconds, and the bytes it held at most."""
        begin = time.monotonic()
        try:
            self._pipe.send_bytes(data)
            if self._pipe.poll(HANG):
                found: tuple[str, float, int] = self._pipe.recv()
                return found
            reason = f"no end within {HANG} seconds"
        except (EOFError, OSError):
            reason = "the process ended"
        self.close()
        self._start()
        return reason, time.monotonic() - begin, 0

    def close(self) -> None:
        self._child.kill()
        self._child.join()
        self._pipe.close()


@dataclass
class Search:
    """What a search found.

    Attributes:
        outcomes: how many inputs were read and refused.
        best: objective to (value, input), the dearest first.
        failures: (reason, input).
    """

    outcomes: Counter[str] = field(default_factory=Counter)
    best: dict[str, list[tuple[float, bytes]]] = field(
        default_factory=lambda: {name: [] for name in OBJECTIVES}
    )
    failures: list[tuple[str, bytes]] = field(default_factory=list)

    def worst(self, objective: str) -> dict[str, Any]:
        """Return the highest value, and the length of its input."""
        value, data = self.best[objective][0] if self.best[objective] else (0.0, b"")
        return {"value": float(f"{value:.6g}"), "input_bytes": len(data)}


def search(
    name: str, *, seed: int = 0, cases: int = 1 << 62, minutes: float = 1e9, size: int = 10_000
) -> Search:
    """Search for dear inputs of the target ``name``, of at most ``size`` bytes."""
    rng = np.random.default_rng([seed, *name.encode()])
    found, reader = Search(), Reader(name)
    pools: dict[str, list[tuple[float, Genome]]] = {key: [] for key in OBJECTIVES}
    seeds = TARGETS[name].seeds()
    end = time.monotonic() + 60 * minutes
    for number in range(cases):
        if time.monotonic() > end:
            break
        genome = seeds[number] if number < len(seeds) else _child(pools, seeds, rng)
        data = genome.data()
        if len(data) > size:
            continue
        outcome, seconds, held = reader.read(data)
        wrong = _wrong(outcome, seconds, held, len(data))
        if wrong and all(wrong[:ALIKE] != reason[:ALIKE] for reason, _ in found.failures):
            found.failures.append((wrong, data))
            print(f"{name}: {wrong}", flush=True)
        found.outcomes[outcome if outcome in ("read", "refused") else "failed"] += 1
        values = (seconds, held, seconds / (len(data) + 100), held / (len(data) + 100))
        for key, value in zip(OBJECTIVES, values, strict=True):
            _keep(pools[key], found.best[key], value, genome=genome, data=data)
    reader.close()
    return found


def _wrong(outcome: str, seconds: float, held: int, length: int) -> str:
    most_seconds, most_bytes = bounds(length)
    if outcome not in ("read", "refused"):
        return outcome
    if seconds > most_seconds:
        return f"{seconds:.2f} CPU seconds for {length} bytes"
    return f"{held} bytes of memory for {length} bytes" if held > most_bytes else ""


def _child(
    pools: dict[str, list[tuple[float, Genome]]], seeds: list[Genome], rng: Generator
) -> Genome:
    pool = pools[OBJECTIVES[int(rng.integers(len(OBJECTIVES)))]]
    genome = seeds[int(rng.integers(len(seeds)))]
    if pool and rng.random() < 0.8:
        genome = pool[int(rng.integers(len(pool)))][1]
    for _ in range(int(rng.geometric(0.5))):
        genome = genome.changed(rng)
    return genome


def _keep(
    pool: list[tuple[float, Genome]],
    best: list[tuple[float, bytes]],
    value: float,
    *,
    genome: Genome,
    data: bytes,
) -> None:
    if len(pool) == KEPT and value <= pool[-1][0]:
        return
    pool.append((value, genome))
    pool.sort(key=lambda item: -item[0])
    del pool[KEPT:]
    best.append((value, data))
    best.sort(key=lambda item: -item[0])
    del best[1:]


def _told(name: str, found: Search) -> dict[str, Any]:
    return {
        "target": name,
        "cases": found.outcomes.total(),
        **{key: found.outcomes[key] for key in ("read", "refused", "failed")},
        **{objective: found.worst(objective) for objective in OBJECTIVES},
        "failures": [reason for reason, _ in found.failures[:100]],
    }


def keep_failures(name: str, failures: list[tuple[str, bytes]], folder: Path) -> None:
    """Write inputs that failed to ``folder``, each with its reason."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, (reason, data) in enumerate(failures[:100]):
        (folder / f"{name}-{number}.bin").write_bytes(data)
        (folder / f"{name}-{number}.txt").write_text(reason + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--targets", default=",".join(TARGETS))
    parser.add_argument("--size", type=int, default=10_000, help="bytes of an input at most")
    args = parser.parse_args()
    names = args.targets.split(",")
    from images import CACHE  # noqa: PLC0415
    from record import RESULTS, write  # noqa: PLC0415

    told = []
    for name in names:
        share = args.minutes / len(names)
        found = search(name, seed=args.seed, minutes=share, size=args.size)
        keep_failures(name, found.failures, CACHE / "fuzz")
        told.append(_told(name, found))
        print(json.dumps(told[-1]), flush=True)
    seconds, held = bounds(args.size)
    write(
        "fuzz_cost",
        model="none, the readers of files",
        data="golden files, small files of every kind, recipes, traces, runs, checkpoints",
        folder=RESULTS if vars(args) == vars(parser.parse_args([])) else CACHE,
        seed=args.seed,
        minutes=args.minutes,
        input_bytes=args.size,
        bounds={"cpu_seconds": seconds, "bytes": held},
        targets=told,
    )
    sys.exit(1 if any(row["failures"] for row in told) else 0)


if __name__ == "__main__":
    main()
