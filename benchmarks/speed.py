"""What compressing costs: CPU seconds in forward passes, and memory against calibration images.

    python benchmarks/speed.py

Every figure comes from a fresh process, so that none inherits another's memory. The unit of time
is one float32 pass over the same images in the same process: machines cancel out.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import fewbits
from images import cifar10, normalise
from networks import resnet20
from record import write

BATCH = 128
# Quoted, not measured here: CPU seconds of one thread over those of one float32 pass.
PEER = {
    "tool": "Brevitas 0.13.4, GPFQ, same network, 1,024 images of the same set",
    "float_passes_cpu": [62, 77],
    "source": "the project's survey of peer tools next to torch 2.13.0, on another CPU",
}


# (bound on live activations in MiB, calibration images): the default bound, then a tight one.
CASES = tuple((1024, n) for n in (512, 1024, 2048)) + tuple(
    (256, n) for n in (512, 1024, 2048, 4096)
)


def _batches(count: int) -> list[Tensor]:
    images, _ = cifar10("train")
    rows = np.sort(np.random.default_rng(0).permutation(len(images))[:count])
    return list(normalise(images[rows]).split(BATCH))


def _resident_mb(key: str) -> float:
    """VmRSS or VmHWM of this process in MB; the high-water mark of getrusage elsewhere."""
    status = Path("/proc/self/status")
    if not status.exists():
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
    line = next(line for line in status.read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024 / 1e6


def _reset_high_water() -> None:
    """Forget the high-water mark of start-up (Linux), so that the peak is of what follows."""
    clear = Path("/proc/self/clear_refs")
    if clear.exists():
        clear.write_text("5")


@torch.no_grad()
def _pass_seconds(model: nn.Module, batches: list[Tensor], repeats: int = 3) -> dict[str, float]:
    """CPU and wall seconds of one plain pass: the fastest of a few, after one to warm up."""
    cpu, wall = [], []
    for _ in range(repeats + 1):
        start = time.process_time(), time.perf_counter()
        for batch in batches:
            model(batch)
        cpu.append(time.process_time() - start[0])
        wall.append(time.perf_counter() - start[1])
    return {"cpu_seconds": min(cpu[1:]), "wall_seconds": min(wall[1:])}


def _child(bound: int, count: int) -> dict[str, Any]:
    """Compress once in this process, and measure it."""
    torch.set_num_threads(1)
    model, batches = resnet20(), _batches(count)
    unit = _pass_seconds(model, batches)
    before = _resident_mb("VmRSS")
    _reset_high_water()
    start = time.process_time(), time.perf_counter()
    coded = fewbits.compress(
        model, fewbits.GPFQ(bits=4), calibration=batches, seed=0, max_live_bytes=bound << 20
    )
    cpu, wall = time.process_time() - start[0], time.perf_counter() - start[1]
    peak = _resident_mb("VmHWM")
    start = time.process_time(), time.perf_counter()
    coded.encode()
    return {
        "calibration_images": count,
        "max_live_mib": bound,
        "inputs_mb": sum(batch.nbytes for batch in batches) / 1e6,
        "rss_before_mb": before,
        "rss_peak_mb": peak,
        "rss_growth_mb": peak - before,
        "compress": {"cpu_seconds": cpu, "wall_seconds": wall},
        "encode": {"cpu_seconds": time.process_time() - start[0]},
        "float_pass": unit,
        "float_passes_cpu": cpu / unit["cpu_seconds"],
        "of_both_streams_cpu": cpu / (2 * unit["cpu_seconds"]),
        "notes": list(coded.notes),
    }


def _fresh_process(bound: int, count: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--child", str(bound), str(count)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"measuring {count} images failed:\n{done.stderr}")
    return json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--child", type=int, nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(_child(*options.child)))
        return
    torch.set_num_threads(1)
    measured = []
    for bound, count in CASES:
        row = _fresh_process(bound, count)
        print(
            f"{count:5} images, at most {bound} MiB live: {row['float_passes_cpu']:.1f} float "
            f"passes, peak {row['rss_peak_mb']:.0f} MB, growth {row['rss_growth_mb']:.0f} MB",
            flush=True,
        )
        measured.append(row)
    write(
        "speed",
        model="ResNet-20 (He et al. 2015), 269,722 parameters, all layers, GPFQ(bits=4)",
        data="CIFAR-10 training images, batches of 128, one thread",
        peer=PEER,
        measured=measured,
    )


if __name__ == "__main__":
    main()
