"""One JSON schema for every benchmark: what ran, on what, and what came out. No figure is typed."""

from __future__ import annotations

import copy
import json
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import fewbits
from fewbits.container.frame import VERSION
from images import ROOT
from networks import top1

__all__ = [
    "RESULTS",
    "Run",
    "blank_copy",
    "environment",
    "measured",
    "peak_rss_mb",
    "run_once",
    "write",
]

RESULTS = ROOT / "benchmarks" / "results"
SCHEMA = 1


@dataclass(frozen=True)
class Run:
    """One compression: the method, its data, and the file and accuracy it gave.

    ``payload_bytes``, ``side_bytes`` and ``header_bytes`` sum to ``file_bytes``, the length of the
    file on disk. ``accuracy`` is of the network loaded back from that file.
    """

    method: str
    settings: dict[str, Any]
    seed: int
    calibration_images: int
    file_bytes: int
    payload_bytes: int
    side_bytes: int
    header_bytes: int
    bits_per_weight: float
    compression_ratio: float
    accuracy: dict[str, float]
    wall_seconds: float
    cpu_seconds: float
    process_peak_rss_mb: float


def _git(*arguments: str) -> str | None:
    command = ["git", "--no-optional-locks", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def environment() -> dict[str, Any]:
    """Return versions, commit and machine: enough to repeat the run."""
    dirty = _git("status", "--porcelain", "--", "src", "benchmarks", ":!benchmarks/results")
    return {
        "fewbits": fewbits.__version__,
        "format": ".".join(map(str, VERSION)),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu_name(),
        "threads": torch.get_num_threads(),
        "commit": _git("rev-parse", "HEAD"),
        "uncommitted_changes": None if dirty is None else bool(dirty),
    }


def peak_rss_mb() -> float:
    """Return the high-water mark of this process's memory in MB (10**6 bytes)."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def blank_copy(model: nn.Module) -> nn.Module:
    """Copy a network and fill it with NaN, so that only what the file holds can answer."""
    blank = copy.deepcopy(model)
    with torch.no_grad():
        for tensor in blank.state_dict().values():
            tensor.fill_(float("nan") if tensor.is_floating_point() else 0)
    return blank


def _item_bytes(report: Any) -> dict[str, int]:
    tensors = [row for row in report.rows if row.kind != "file"]
    return {
        "payload_bytes": sum(row.payload for row in tensors),
        "side_bytes": sum(row.side for row in tensors),
        "header_bytes": sum(row.bytes for row in report.rows if row.kind == "file"),
    }


def run_once(
    model: nn.Module,
    recipe: Any,
    calibration: list[Tensor] | None,
    evaluation: dict[str, tuple[Tensor, Tensor]],
    *,
    seed: int,
    method: str,
    settings: dict[str, Any],
) -> Run:
    """Compress, save, load the file into a copy, and measure top-1 on each evaluation set."""
    wall, cpu = time.perf_counter(), time.process_time()
    coded = fewbits.compress(model, recipe, calibration=calibration, seed=seed)
    seconds = time.perf_counter() - wall, time.process_time() - cpu
    return measured(
        coded,
        model,
        evaluation,
        seconds=seconds,
        method=method,
        settings=settings,
        seed=seed,
        calibration_images=sum(len(batch) for batch in calibration or ()),
    )


def measured(
    coded: fewbits.CodedModel,
    model: nn.Module,
    evaluation: dict[str, tuple[Tensor, Tensor]],
    *,
    seconds: tuple[float, float],
    method: str,
    settings: dict[str, Any],
    seed: int,
    calibration_images: int,
) -> Run:
    """Save, load the file into a copy of ``model``, and measure top-1 on each evaluation set.

    ``seconds``: wall and CPU time that the compression took.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.fewbits"
        coded.save(path)
        size = path.stat().st_size
        loaded = fewbits.load(path, into=blank_copy(model))
        report = fewbits.inspect(path).report
    if report.file_bytes != size:
        raise RuntimeError(f"the size report says {report.file_bytes} bytes, the file has {size}")
    return Run(
        method=method,
        settings=settings,
        seed=seed,
        calibration_images=calibration_images,
        file_bytes=size,
        **_item_bytes(report),
        bits_per_weight=report.bits_per_weight,
        compression_ratio=report.compression_ratio,
        accuracy={name: top1(loaded, *data) for name, data in evaluation.items()},
        wall_seconds=seconds[0],
        cpu_seconds=seconds[1],
        process_peak_rss_mb=peak_rss_mb(),
    )


def write(
    name: str,
    *,
    model: str,
    data: str,
    runs: Sequence[Run] = (),
    folder: Path | None = None,
    **extra: Any,
) -> Path:
    """Write ``NAME.json`` to results/, or to ``folder`` (explorations), and say where it is."""
    folder = folder or RESULTS
    folder.mkdir(exist_ok=True)
    record = {
        "schema": SCHEMA,
        "benchmark": name,
        "command": " ".join(["python", *sys.argv]),
        "model": model,
        "data": data,
        "environment": environment(),
        **extra,
        "runs": [asdict(run) for run in runs],
    }
    path = folder / f"{name}.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    print(f"wrote {path.relative_to(ROOT)}")
    return path
