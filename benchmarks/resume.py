"""Kill a compression of SmolLM2, resume it, and compare the files.

    python benchmarks/resume.py
    python benchmarks/resume.py --kills 40 120

Runs ``fewbits compress FOLDER --method gptq --resume DIR`` on the command line (134.5 million
weights, 8 x 256 tokens of WikiText-2's validation text): once without interruption, and once killed
with SIGKILL each time another number of parts (layers, embeddings) is finished, then resumed.
benchmarks/README.md says where the network comes from.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from images import CACHE
from packaged import smollm2_folder, smollm2_tokens
from record import write

SEQUENCES, LENGTH = 8, 256
HERE = Path(__file__).parent


def batches() -> list[dict[str, Any]]:
    """Return the calibration batches; the command line calls this."""
    return [
        {"input_ids": row[None]} for row in smollm2_tokens("calibration", SEQUENCES, LENGTH, seed=0)
    ]


def _finished(folder: Path) -> int:
    return len(list(folder.glob("*.fewbits"))) if folder.is_dir() else 0


def _compress(out: Path, work: Path, kill_at: int | None = None) -> dict[str, Any]:
    """Run the command; kill it once ``kill_at`` parts are finished."""
    command = [sys.executable, "-m", "fewbits", "compress", str(smollm2_folder())]
    command += ["--method", "gptq", "--bits", "4", "--data", "resume:batches"]
    command += ["--effort", "fast", "--threads", "1", "--resume", str(work), "-o", str(out)]
    paths = [str(HERE), os.environ.get("PYTHONPATH", "")]
    known = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    before, used = _finished(work), resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    with subprocess.Popen(command, env=known, stderr=subprocess.DEVNULL) as process:
        while kill_at is not None and process.poll() is None:
            if _finished(work) >= kill_at:
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.02)
        code = process.wait()
    now = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "parts_before": before,
        "parts_after": _finished(work),
        "exit_code": code,
        "cpu_seconds": round(now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime, 2),
        "seconds": round(time.perf_counter() - started, 2),
    }


def _file(path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    return {"file_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def main() -> None:
    """Measure and write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, nargs="+", default=[60, 150])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        whole = _compress(home / "whole.fewbits", home / "whole")
        runs = [_compress(home / "net.fewbits", home / "work", at) for at in options.kills]
        runs.append(_compress(home / "net.fewbits", home / "work"))
        files = {
            "uninterrupted": _file(home / "whole.fewbits"),
            "resumed": _file(home / "net.fewbits"),
        }
    for run in (whole, *runs):
        print(run)
    same = files["uninterrupted"] == files["resumed"]
    print("same bytes" if same else f"DIFFERENT: {files}")
    usual = options.kills == parser.get_default("kills")
    write(
        "resume",
        model="SmolLM2-135M-Instruct, bfloat16",
        data=f"WikiText-2 validation, {SEQUENCES} x {LENGTH} tokens",
        folder=None if usual else CACHE,
        method="gptq, 4 bits",
        uninterrupted=whole,
        interrupted=runs,
        files=files,
        same_bytes=same,
    )
    if not same:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
