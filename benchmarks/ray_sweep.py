"""Sweeps on a local Ray cluster against the serial ones: killed workers, a cluster that goes away.

    python benchmarks/ray_sweep.py          # needs pip install 'fewbits[ray]', and Linux

Twelve points on the network of ``fewbits demo``: rounding, GPFQ, RDOQ at two slopes, and four
searches, two for a size and two within a drop. The command line runs them one after the other; on a
cluster of this machine of which a busy worker is killed by SIGKILL on the way; and on one that is
killed as a whole, after which the same command goes on. So with ``fewbits sensitivity``, without
the killing. Everything but the seconds must be equal; one thread per point throughout.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fewbits.cli.jobs.demo import CHECKPOINT, DATA, SOURCE, train
from fewbits.progress import silent
from record import write

POINTS = ["--methods", "nearest,gpfq,rdoq", "--bits", "2,3,4", "--slopes", "1e-4,1e-3"]
SEARCHES = ["--target-bytes", "4KB,6KB", "--max-drop", "0.5%,2%"]
QUICK = ["--effort", "fast", "--cpus", "1"]
RAY = ["--engine", "ray", "--ray-address", "local"]
LIMIT = 600  # seconds for one command


def _processes(parent: int) -> dict[int, str]:
    """Return the descendants of a process with their command lines."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            above = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        children.setdefault(above, []).append(int(stat.parent.name))
    found, open_ = {}, [parent]
    while open_:
        for child in children.get(open_.pop(), []):
            try:
                found[child] = Path(f"/proc/{child}/cmdline").read_text().replace("\0", " ")
            except OSError:
                continue
            open_.append(child)
    return found


def _kill(process: int, wanted: Callable[[str], bool], count: int) -> int:
    """Kill up to ``count`` descendants whose command lines are wanted; return how many."""
    found = [pid for pid, line in _processes(process).items() if wanted(line)][:count]
    for pid in found:
        os.kill(pid, signal.SIGKILL)
    return len(found)


def _busy_worker(line: str) -> bool:
    return line.startswith("ray::_attempt")


def _cluster(line: str) -> bool:
    return Path(line.split(" ", maxsplit=1)[0]).name in ("raylet", "gcs_server")


def _points(out: Path) -> int:
    return len(json.loads(out.read_text())["points"]) if out.exists() else 0


def _run(
    home: Path,
    arguments: list[str],
    out: Path | None = None,
    wanted: Callable[[str], bool] | None = None,
    count: int = 1,
) -> dict[str, Any]:
    """Run a command; once it has three points, kill processes of its cluster."""
    command = [sys.executable, "-m", "fewbits", *arguments, "--json"]
    killed, started = 0, time.perf_counter()
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, cwd=home, **pipes) as process:
        while out is not None and wanted is not None and process.poll() is None and not killed:
            if _points(out) >= 3:
                killed = _kill(process.pid, wanted, count)
            time.sleep(0.02)
        text = process.communicate(timeout=LIMIT)[0]
    found = {"exit_code": process.returncode, "killed": killed, "found": json.loads(text)}
    return {**found, "seconds": round(time.perf_counter() - started, 1)}


def _plain(points: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in point.items() if k != "seconds"} for point in points]


def _told(run: dict[str, Any]) -> dict[str, Any]:
    """Return what the record says of a run."""
    found = run["found"]
    told = {"points": len(found["points"])} if "points" in found else {}
    told |= {"error": found["error"]["message"]} if "error" in found else {}
    return {**{k: v for k, v in run.items() if k != "found"}, **told}


def _sweeps(home: Path, network: list[str]) -> tuple[dict[str, Any], list[dict[str, Any]], bool]:
    """Run the sweep in every way; return the runs, the points, and whether all is as it should."""
    sweep = ["sweep", *network, *POINTS, *SEARCHES, *QUICK]
    out = {name: home / f"{name}.json" for name in ("serial", "worker", "cluster")}
    serial = _run(home, [*sweep, "-o", out["serial"].name])
    worker = _run(home, [*sweep, "-o", out["worker"].name, *RAY], out["worker"], _busy_worker)
    gone = _run(home, [*sweep, "-o", out["cluster"].name, *RAY], out["cluster"], _cluster, 2)
    kept = _points(out["cluster"])
    resumed = _run(home, [*sweep, "-o", out["cluster"].name, *RAY])
    runs = {
        "serial": _told(serial),
        "worker_killed": _told(worker),
        "cluster_killed": {**_told(gone), "points_kept": kept},
        "resumed": _told(resumed),
    }
    points = _plain(serial["found"]["points"])
    equal = [points == _plain(one["found"].get("points", [])) for one in (worker, resumed)]
    codes = [one["exit_code"] for one in (serial, worker, gone, resumed)]
    as_planned = codes == [0, 0, 1, 0] and worker["killed"] == 1 and gone["killed"] == 2
    return runs, serial["found"]["points"], all(equal) and as_planned and 3 <= kept < len(points)


def main() -> None:
    """Run, compare and write the record; exit 1 if anything is otherwise than it should be."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        train(home, 0, silent)
        network = [SOURCE, "--weights", CHECKPOINT, "--data", DATA]
        runs, points, same = _sweeps(home, network)
        layers = ["sensitivity", *network, "--bits", "2,3,4", "--selection", DATA, *QUICK]
        alone, spread = _run(home, layers), _run(home, [*layers, *RAY])
    equal = alone["found"] == spread["found"] and "error" not in alone["found"]
    runs |= {"sensitivity_serial": _told(alone), "sensitivity_ray": _told(spread)}
    for name, run in runs.items():
        print(name, run)
    print("all equal" if same and equal else f"DIFFERENT: sweeps {same}, sensitivity {equal}")
    write(
        "ray_sweep",
        model="digits-cnn, trained by fewbits demo",
        data="digits",
        ray=version("ray"),
        cpus=os.cpu_count(),
        sweep=runs,
        points=points,
        sensitivity_rows=len(alone["found"].get("rows", [])),
        sweeps_equal=same,
        sensitivity_equal=equal,
    )
    if not (same and equal):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
