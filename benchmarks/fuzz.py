"""A mutational fuzzer of the reader: corrupt files, forged headers, forged streams.

    python benchmarks/fuzz.py [--minutes 20] [--seed 0]

Cases run one after the other in a child process with a limit of memory and of time per case. What
is neither a CorruptFileError nor contents is kept in .data/fuzz and fails the run.
"""

from __future__ import annotations

import argparse
import json
import mmap
import multiprocessing
import resource
import struct
import sys
import time
from collections import Counter
from multiprocessing.connection import Connection
from typing import Any

from fuzz_cases import MODES, Seed, judge, make_case, seeds

BATCH = 3000  # cases of one child
SECONDS = 60  # of one case: beyond is a hang
MEMORY = 3 << 30  # bytes of address space of a child
STATE = struct.Struct("<qd")  # the case being read, and since when


def _rss_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def _child(
    pool: list[Seed], seed: int, *, first: int, stop: float, state: mmap.mmap, out: Connection
) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    told: dict[str, Any] = {
        "outcomes": Counter(),
        "hidden": Counter(),
        "seconds": Counter(),
        "slowest": (0.0, -1),
        "peak_case": -1,
        "failure": None,
    }
    peak, number = _rss_mb(), first
    for number in range(first, first + BATCH):
        case = make_case(pool, seed, number)
        begin = time.monotonic()
        state[: STATE.size] = STATE.pack(number, begin)
        try:
            outcome, hidden = judge(case)
        except BaseException as error:  # a panic of a library is no Exception
            told["failure"] = f"{type(error).__name__}: {error}"
            break
        seconds = time.monotonic() - begin
        told["outcomes"][f"{case.mode}/{outcome}"] += 1
        told["hidden"].update(hidden)
        told["seconds"][case.mode] += seconds
        told["slowest"] = max(told["slowest"], (seconds, number))
        if _rss_mb() > peak:
            peak, told["peak_case"] = _rss_mb(), number
        if time.monotonic() > stop:
            break
    out.send({**told, "peak": peak, "next": number + 1})


def _batch(pool: list[Seed], seed: int, first: int, stop: float) -> dict[str, Any]:
    """Run cases from ``first`` on in one child; a crash or a hang is told as a failure."""
    state = mmap.mmap(-1, STATE.size)
    state[:] = STATE.pack(first, time.monotonic())
    fork = multiprocessing.get_context("fork")
    here, there = fork.Pipe(duplex=False)
    job = {"first": first, "stop": stop, "state": state, "out": there}
    child = fork.Process(target=_child, args=(pool, seed), kwargs=job)
    child.start()
    there.close()
    reason = ""
    while not here.poll(1.0):
        if time.monotonic() - STATE.unpack(state[:])[1] > SECONDS:
            child.kill()
            reason = f"no end within {SECONDS} seconds"
            break
    try:
        told: dict[str, Any] = {} if reason else here.recv()
    except EOFError:
        told = {}
    child.join()
    number = STATE.unpack(state[:])[0]
    if not told:
        told = {"failure": reason or f"the process ended with {child.exitcode}", "next": number + 1}
    return {**told, "at": number}


def _keep(pool: list[Seed], seed: int, number: int, reason: str) -> dict[str, Any]:
    from images import CACHE  # noqa: PLC0415 - it imports torch, which the children do without

    case = make_case(pool, seed, number)
    folder = CACHE / "fuzz"
    folder.mkdir(parents=True, exist_ok=True)
    found = {"case": number, "mode": case.mode, "from": case.seed.name, "reason": reason[:500]}
    (folder / f"{seed}-{number}.fewbits").write_bytes(case.data)
    (folder / f"{seed}-{number}.json").write_text(json.dumps(found, indent=1) + "\n")
    print("FAILED", found, flush=True)
    return found


def fuzz(pool: list[Seed], seed: int, minutes: float) -> dict[str, Any]:
    """Read mutated files for so many minutes and count what became of them."""
    outcomes: Counter[str] = Counter()
    hidden: Counter[str] = Counter()
    seconds: Counter[str] = Counter()
    slowest, peak = (0.0, -1), (0.0, -1)
    failed: list[tuple[int, str]] = []
    begin, number = time.monotonic(), 0
    while time.monotonic() < begin + 60 * minutes:
        told = _batch(pool, seed, number, begin + 60 * minutes)
        outcomes.update(told.get("outcomes", {}))
        hidden.update(told.get("hidden", {}))
        seconds.update(told.get("seconds", {}))
        slowest = max(slowest, told.get("slowest", slowest))
        peak = max(peak, (told.get("peak", 0.0), told.get("peak_case", -1)))
        if told["failure"]:
            failed.append((told["at"], told["failure"]))
            print("case", *failed[-1], flush=True)
        number = told["next"]
    wall = time.monotonic() - begin
    return {
        "seed": seed,
        "wall_seconds": round(wall, 1),
        "cases": sum(outcomes.values()) + len(failed),
        "modes": [_mode(mode, outcomes, seconds) for mode in MODES],
        "slowest": _told(pool, seed, slowest[1]) | {"seconds": round(slowest[0], 3)},
        "peak": _told(pool, seed, peak[1]) | {"rss_mb": round(peak[0], 1)},
        "errors_turned_into_refusals": dict(sorted(hidden.items())),
        "failures": [_keep(pool, seed, at, reason) for at, reason in failed],
    }


def _mode(mode: str, outcomes: Counter[str], seconds: Counter[str]) -> dict[str, Any]:
    counts = {kind: outcomes[f"{mode}/{kind}"] for kind in ("refused", "same", "different")}
    return {"mode": mode, "cases": sum(counts.values()), **counts, "seconds": round(seconds[mode])}


def _told(pool: list[Seed], seed: int, number: int) -> dict[str, Any]:
    if number < 0:
        return {"case": number}
    case = make_case(pool, seed, number)
    return {"case": number, "mode": case.mode, "from": case.seed.name, "limit": case.limit}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    pool = seeds()
    found = fuzz(pool, args.seed, args.minutes)
    from images import CACHE  # noqa: PLC0415
    from record import RESULTS, write  # noqa: PLC0415

    limits = {"seconds_per_case": SECONDS, "address_space_bytes": MEMORY}
    settings = {"minutes": args.minutes, "limits": limits, "seeds": [seed.name for seed in pool]}
    path = write(
        "fuzz",
        model="none, the reader of files",
        data="the golden files, and small files of every kind, effort and codec",
        folder=RESULTS if vars(args) == vars(parser.parse_args([])) else CACHE,
        **settings,
        **found,
    )
    print(json.dumps({k: v for k, v in found.items() if k != "failures"}, indent=1), path.name)
    sys.exit(1 if found["failures"] else 0)


if __name__ == "__main__":
    main()
