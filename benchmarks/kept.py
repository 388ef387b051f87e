"""Runs of a benchmark in worker processes, each kept, so that a benchmark that was stopped goes on.

Results are kept in ``.data/NAME/`` by everything that decides them: the job and the commit, which a
result also names. With uncommitted changes nothing is kept, as nothing tells such results apart.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from images import CACHE
from record import environment

__all__ = ["kept_runs"]


def kept_runs(
    name: str,
    work: Callable[[Any], Any],
    jobs: Sequence[Any],
    *,
    workers: int = 1,
    minutes: float = 1e6,
    fresh: bool = False,
    earlier: Sequence[str] = (),
) -> list[Any]:
    """Return what ``work`` gives for each job; None for those that could not begin in time.

    ``work`` is a function of a module, jobs are dataclasses, results are of JSON. Jobs begin in
    their order, ``workers`` at a time, and none after ``minutes``. With ``fresh``, each has a
    process of its own, so that its memory can be measured, and one that is killed gives
    {"failed": why}. Results with that key are not kept. Where this commit has no result, those of
    the commits ``earlier`` (whole hashes) are taken.
    """
    told = environment()
    folder = CACHE / name
    paths = [_place(folder, job, told["commit"]) for job in jobs]
    known = not told["uncommitted_changes"]
    commits = (told["commit"], *earlier)
    found = [_kept(folder, job, commits) if known else None for job in jobs]
    missing = [number for number, result in enumerate(found) if result is None]
    begin = partial(_in_time, partial(_alone, work) if fresh else work, time.time() + 60 * minutes)
    with ThreadPoolExecutor(workers) if fresh else _processes(workers) as pool:
        asked = {pool.submit(begin, jobs[number]): number for number in missing}
        for done in as_completed(asked):
            number = asked[done]
            found[number] = _named(done.result(), told["commit"])
            if known and _is_whole(found[number]):
                folder.mkdir(parents=True, exist_ok=True)
                paths[number].write_text(json.dumps(found[number]))
    return found


def _place(folder: Path, job: Any, commit: str | None) -> Path:
    told = json.dumps([asdict(job), commit], sort_keys=True)
    return folder / f"{hashlib.sha256(told.encode()).hexdigest()[:16]}.json"


def _kept(folder: Path, job: Any, commits: Sequence[str | None]) -> Any:
    places = [_place(folder, job, commit) for commit in commits]
    return next((json.loads(place.read_text()) for place in places if place.exists()), None)


def _is_whole(result: Any) -> bool:
    return result is not None and not (isinstance(result, dict) and "failed" in result)


def _processes(workers: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(workers, mp_context=get_context("spawn"))


def _alone(work: Callable[[Any], Any], job: Any) -> Any:
    """Run one job in a process that ends with it."""
    try:
        with _processes(1) as pool:
            return pool.submit(work, job).result()
    except BrokenProcessPool:
        return {"failed": "the process was killed, perhaps because memory ran out"}


def _named(result: Any, commit: str | None) -> Any:
    return result | {"commit": commit} if isinstance(result, dict) else result


def _in_time(work: Callable[[Any], Any], until: float, job: Any) -> Any:
    return work(job) if time.time() < until else None
