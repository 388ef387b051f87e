"""Shared by the benchmarks that set fewbits beside other tools: one case in one fresh process.

A case is a word. Of fewbits:

- ``METHOD-BITS`` or ``METHOD-BITS-gGROUP``: a method at fixed bits, such as ``gptq-3-g64``;
- ``smallest-slope-S``: the recipe ``smallest`` at a slope; ``smallest-slope-S+T+...`` at several,
  in one process that measures gradients once, as a search does, with a row for each;
- ``smallest-bits-B`` and ``smallest-bytes-N``: the search for a size; B counts all bits of the file
  over all parameters of the network. ``smallest-drop-D``: the search for a drop of a score.

``float`` is the checkpoint, and other words name ``peers.PEERS``. Bytes are those of all files that
a case leaves in a folder; the network that is evaluated is filled from these files alone, and
computes in float32. Memory is the high-water mark of the process, before it evaluates.
"""

from __future__ import annotations

import argparse
import fnmatch
import hashlib
import math
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import fewbits
from fewbits.compression.pipeline import Pipeline
from fewbits.compression.result import CompressionResult
from fewbits.compression.varied import with_slope
from fewbits.engine.network.padding import own_masks
from fewbits.progress import silent
from fewbits.recipe.plan import make_plan
from images import CACHE
from kept import kept_runs
from packaged import AbsentError
from peers import PEERS, fill, find_tool
from record import blank_copy, environment, peak_rss_mb, write

__all__ = [
    "METHODS",
    "Build",
    "add_options",
    "chosen",
    "compare",
    "interpolated",
    "measure",
    "measure_slopes",
    "size_at",
    "spearman",
]

METHODS = {
    "nearest": fewbits.Nearest,
    "gptq": fewbits.GPTQ,
    "qronos": fewbits.Qronos,
    "gpfq": fewbits.GPFQ,
}
EVALUATIONS = 8  # of a search
LARGEST = 1 << 33  # bytes of a network, however small its file
Build = Callable[[torch.dtype], nn.Module]


def _peak_mb() -> float:
    """Return the high-water mark of this process; that of getrusage counts the parent's too."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    found = [int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("VmHWM")]
    return found[0] if found else peak_rss_mb()


def _recipe(case: str, raw_dtype: str, start: float) -> tuple[fewbits.Recipe, dict[str, Any]]:
    """Return the recipe of a case of fewbits, and the budget for ``fewbits.compress``.

    ``raw_dtype``: of tensors that are not quantized; ``start``: the slope a search begins with.
    """
    name, *rest = case.split("-")
    if name != "smallest":
        group = {"group": int(rest[1][1:])} if len(rest) > 1 else {}
        recipe = fewbits.Recipe.of(METHODS[name](bits=int(rest[0]), **group))
        return replace(recipe, raw_dtype=raw_dtype), {}
    recipe, kind = fewbits.Recipe.of("smallest"), rest[0]
    value = float("-".join(rest[1:]))
    if kind == "slope":
        return with_slope(recipe, value), {}
    goal = "max_drop" if kind == "drop" else f"target_{kind}"
    return with_slope(recipe, start), {goal: value, "evaluations": EVALUATIONS}


def _ours(
    job: Any,
    model: nn.Module,
    calibration: Sequence[Any],
    folder: Path,
    settings: dict[str, Any],
) -> dict[str, Any]:
    """Compress and save in this process."""
    told = environment()
    recipe, budget = _recipe(job.case, settings["raw_dtype"], settings["start"])
    if "target_bits" in budget:
        count = sum(p.numel() for p in model.parameters())
        budget["target_bytes"] = int(budget.pop("target_bits") * count / 8)
    if "max_drop" in budget:
        budget["evaluate"] = settings["score"]
    if budget and not told["uncommitted_changes"]:
        key = hashlib.sha256(f"{job} {told['commit']}".encode()).hexdigest()[:16]
        budget["trace"] = CACHE / settings["name"] / f"{key}.trace.json"
        budget["trace"].parent.mkdir(parents=True, exist_ok=True)
    cpu = time.process_time()
    coded = fewbits.compress(
        model,
        recipe,
        calibration=calibration,
        forward=settings.get("forward"),
        effort=job.effort,
        threads=1,
        seed=job.seed,
        **budget,
    )
    seconds, cpu = time.process_time() - cpu, time.process_time()
    coded.save(folder / "net.fewbits", effort=job.effort, threads=1)
    more = {"slopes": [[t.slope, t.bytes] for t in coded.trace.trials]} if coded.trace else {}
    return more | {
        "compress_cpu_seconds": round(seconds, 1),
        "save_cpu_seconds": round(time.process_time() - cpu, 1),
        "notes": len(coded.notes),
        "first_notes": [note[:300] for note in coded.notes[:5]],
    }


def _slopes(
    job: Any, model: nn.Module, calibration: Sequence[Any], settings: dict[str, Any]
) -> Iterator[tuple[dict[str, Any], CompressionResult]]:
    """Compress at one slope after the other; stages that no slope changes run once."""
    memory: dict[str, Any] = {}
    for slope in map(float, job.case.removeprefix("smallest-slope-").split("+")):
        recipe = replace(with_slope(fewbits.Recipe.of("smallest"), slope), seed=job.seed)
        cpu = time.process_time()
        pipeline = Pipeline(
            make_plan(model, recipe),
            calibration,
            settings.get("forward"),
            own_masks,
            1 << 30,
            silent,
            memory,
        )
        coded = pipeline.run(model, "")
        seconds = round(time.process_time() - cpu, 1)
        yield {"case": f"smallest-slope-{slope:g}", "compress_cpu_seconds": seconds}, coded


def measure_slopes(
    job: Any,
    build: Build,
    calibration: Callable[[], Sequence[Any]],
    evaluate: Callable[[nn.Module], dict[str, Any]],
    report: Callable[[dict[str, Any]], None],
    **settings: Any,
) -> dict[str, Any]:
    """Run a case of several slopes in this process; return its rows as ``points``."""
    torch.set_num_threads(1)
    model, points = build(torch.float32), []
    count = sum(p.numel() for p in model.parameters())
    for told, coded in _slopes(job, model, calibration(), settings):
        with tempfile.TemporaryDirectory() as text:
            path, cpu = Path(text) / "net.fewbits", time.process_time()
            coded.save(path, effort=job.effort, threads=1)
            seconds = round(time.process_time() - cpu, 1)
            size, loaded = (
                path.stat().st_size,
                fewbits.load(path, into=blank_copy(model), max_decoded_bytes=LARGEST),
            )
        row = told | {"save_cpu_seconds": seconds, "notes": len(coded.notes)}
        row |= {"peak_mb": _peak_mb(), "file_bytes": size, "bits_per_parameter": 8 * size / count}
        cpu = time.process_time()
        row |= evaluate(loaded.eval())
        row["evaluate_cpu_seconds"] = round(time.process_time() - cpu, 1)
        report(row)
        points.append(row)
    return {"case": job.case, "points": points}


def measure(
    job: Any,
    build: Build,
    dtype: torch.dtype,
    calibration: Callable[[], Sequence[Any]],
    evaluate: Callable[[nn.Module], dict[str, Any]],
    **settings: Any,
) -> dict[str, Any]:
    """Run one case in this process and return its row.

    ``build(dtype)`` makes the network; ``dtype`` is that of the checkpoint, which peers get, while
    fewbits gets the same values in float32. ``job``: a dataclass with ``case``, ``seed``,
    ``effort`` and what else decides the row. ``settings``: name, raw_dtype, start, forward, score
    (of searches for a drop), and ``float_bytes`` of the checkpoint.
    """
    case = job.case
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        row: dict[str, Any] = {"case": case}
        if case == "float":
            model, size = build(torch.float32), settings["float_bytes"]
        elif case in PEERS:
            peer, start = PEERS[case], build(dtype)
            find_tool(peer)  # its import is not measured
            cpu = time.process_time()
            peer.write(start, folder)
            row["compress_cpu_seconds"] = round(time.process_time() - cpu, 1)
            row |= {"tool": peer.tool, "embedding": peer.embedding, "peak_mb": _peak_mb()}
            size = _bytes(folder)
            model = fill(build(torch.float32), peer.read(build(dtype), folder))
        else:
            model, batches = build(torch.float32), calibration()
            row |= _ours(job, model, batches, folder, settings)
            row["peak_mb"] = _peak_mb()
            size = _bytes(folder)
            model = fewbits.load(
                folder / "net.fewbits", into=blank_copy(model), max_decoded_bytes=LARGEST
            )
        count = sum(p.numel() for p in model.parameters())
        row |= {"file_bytes": size, "bits_per_parameter": 8 * size / count}
        cpu = time.process_time()
        row |= evaluate(model.eval())
        return row | {"evaluate_cpu_seconds": round(time.process_time() - cpu, 1)}


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def _guarded(work: Callable[[Any], dict[str, Any]], job: Any) -> dict[str, Any]:
    """Return what ``work`` gives, or the error it ends with, so that other cases go on."""
    try:
        return work(job)
    except Exception:
        return {"failed": traceback.format_exc()[-2000:]}


def chosen(cases: Iterable[str], patterns: str) -> list[str]:
    """Return the cases that match one of the patterns, and patterns that are new words of ours."""
    cases, found = list(cases), []
    for pattern in patterns.split(","):
        matching = fnmatch.filter(cases, pattern)
        ours = pattern.split("-")[0] in (*METHODS, "smallest") and "*" not in pattern
        if not matching and not ours:
            raise SystemExit(f"--cases: {pattern!r} is none of {', '.join(cases)}")
        found += matching or [pattern]
    return list(dict.fromkeys(found))


def compare(
    name: str,
    work: Callable[[Any], dict[str, Any]],
    jobs: Sequence[Any],
    options: argparse.Namespace,
    *,
    usual: Any,
    more: Callable[[list[dict[str, Any]]], dict[str, Any]],
    **told: Any,
) -> None:
    """Run each job in a fresh process and write the record.

    The record is the committed one only for all cases with the settings of the job ``usual``.
    ``more`` makes further fields from the rows that were measured; ``told`` are fields as they are.
    """
    found = _run(name, partial(_guarded, work), jobs, options)
    as_usual = all(job == replace(usual, case=job.case) for job in jobs)
    write(
        name,
        folder=None if as_usual and options.cases == "*" else CACHE,
        seed=options.seed,
        effort=options.effort,
        **told,
        **more(found["measured"]),
        **found,
    )


def _run(
    name: str,
    work: Callable[[Any], dict[str, Any]],
    jobs: Sequence[Any],
    options: argparse.Namespace,
) -> dict[str, Any]:
    """Return ``measured``, ``absent``, ``failed`` and ``missing``."""
    absent, there = {}, []
    for job in jobs:
        try:
            if job.case in PEERS:
                find_tool(PEERS[job.case])
            there.append(job)
        except AbsentError as error:
            absent[job.case] = str(error)
    rows = kept_runs(
        name,
        work,
        there,
        workers=options.jobs,
        minutes=options.minutes,
        fresh=True,
        earlier=options.earlier,
    )
    done = [(job.case, row) for job, row in zip(there, rows, strict=True) if row is not None]
    failed = {case: row["failed"] for case, row in done if "failed" in row}
    for case, why in (absent | failed).items():
        print(f"{case}: {why}", flush=True)
    whole = [row for _, row in done if "failed" not in row]
    return {
        "measured": [
            point | {"commit": row["commit"]} for row in whole for point in row.get("points", [row])
        ],
        "absent": absent,
        "failed": failed,
        "missing": len(rows) - len(done),
    }


def _steps(rows: Sequence[dict[str, Any]], metric: str) -> list[Any]:
    """Return pairs of neighbours among the cases of slopes, as (bytes, metric)."""
    points = [(r["file_bytes"], r[metric]) for r in rows if r["case"].startswith("smallest-slope")]
    return list(pairwise(sorted(points)))


def interpolated(
    rows: Sequence[dict[str, Any]], metric: str, sizes: Sequence[float]
) -> list[dict[str, Any]]:
    """Return ``metric`` of ``smallest`` at given sizes (bytes), linear between cases of slopes.

    Nothing is said outside of the sizes that were measured.
    """
    found = []
    for size in sizes:
        for (low, left), (high, right) in _steps(rows, metric):
            if low <= size <= high:
                share = (size - low) / max(high - low, 1)
                value = left + share * (right - left)
                found.append({"bytes": int(size), metric: value, "between": [low, high]})
                break
    return found


def size_at(rows: Sequence[dict[str, Any]], metric: str, value: float) -> float | None:
    """Return the bytes at which ``smallest`` reaches a metric, linear between cases of slopes."""
    for (low, left), (high, right) in _steps(rows, metric):
        if left < value <= right:
            return low + (high - low) * (value - left) / (right - left)
    return None


def spearman(left: Tensor, right: Tensor) -> float:
    """Return the rank correlation of two vectors; ties are broken by position."""
    ranks = [x.argsort(stable=True).argsort(stable=True).double() for x in (left, right)]
    return float(torch.corrcoef(torch.stack(ranks))[0, 1])


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add what the scripts share."""
    parser.add_argument("--cases", default="*", help="names or patterns, with commas between")
    parser.add_argument("--seed", type=int, default=0, help="of the calibration data")
    parser.add_argument("--jobs", type=int, default=1, help="processes of one thread")
    parser.add_argument("--effort", default="balanced", help="of fewbits' coding")
    parser.add_argument(
        "--earlier", nargs="*", default=[], help="hashes of commits whose cases are taken too"
    )
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin no case after")
    parser.add_argument("--quick", action="store_true", help="little data, to try the whole path")
