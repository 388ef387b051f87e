"""What compressing costs: CPU seconds in forward passes, and memory against calibration images.

    python benchmarks/speed.py [--images 512 1024 ...]

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
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import fewbits
from fewbits.engine.memory import map_large_tensors
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


class Stream:
    """Calibration batches made when asked for, so that the images themselves cost no memory."""

    def __init__(self, count: int) -> None:
        self.images, _ = cifar10("train")
        self.rows = np.sort(np.random.default_rng(0).permutation(len(self.images))[:count])

    def __iter__(self) -> Iterator[Tensor]:
        for start in range(0, len(self.rows), BATCH):
            yield normalise(self.images[self.rows[start : start + BATCH]])


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


def _child(count: int, streamed: bool) -> dict[str, Any]:
    """Compress once in this process, and measure it."""
    torch.set_num_threads(1)
    model = resnet20()
    stream = Stream(count)
    batches = stream if streamed else list(stream)
    inputs = 0 if streamed else sum(batch.nbytes for batch in batches)
    unit = _pass_seconds(model, batches)
    map_large_tensors()  # as the command line does; after the unit, which it would slow down
    before = _resident_mb("VmRSS")
    _reset_high_water()
    start = time.process_time(), time.perf_counter()
    fewbits.compress(model, fewbits.GPFQ(bits=4), calibration=batches, seed=0)
    cpu, wall = time.process_time() - start[0], time.perf_counter() - start[1]
    peak = _resident_mb("VmHWM")
    return {
        "calibration_images": count,
        "inputs": "streamed" if streamed else "list of tensors",
        "inputs_mb": inputs / 1e6,
        "rss_before_mb": before,
        "rss_peak_mb": peak,
        "rss_growth_mb": peak - before,
        "compress": {"cpu_seconds": cpu, "wall_seconds": wall},
        "float_pass": unit,
        "float_passes_cpu": cpu / unit["cpu_seconds"],
        "of_both_streams_cpu": cpu / (2 * unit["cpu_seconds"]),
    }


def _fresh_process(count: int, streamed: bool) -> dict[str, Any]:
    command = [sys.executable, __file__, "--child", str(count)] + ["--streamed"] * streamed
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"measuring {count} images failed:\n{done.stderr}")
    return json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", nargs="+", type=int, default=[512, 1024, 2048, 4096, 8192])
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--streamed", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(_child(options.child, options.streamed)))
        return
    torch.set_num_threads(1)
    measured = []
    for streamed in (False, True):
        for count in options.images:
            row = _fresh_process(count, streamed)
            print(
                f"{count:5} images, {row['inputs']:15}: "
                f"{row['float_passes_cpu']:.1f} float passes, "
                f"peak {row['rss_peak_mb']:.0f} MB, growth {row['rss_growth_mb']:.0f} MB",
                flush=True,
            )
            measured.append(row)
    write(
        "speed",
        model="ResNet-20 (He et al. 2015), 269,722 parameters, all layers, GPFQ(bits=4)",
        data="CIFAR-10 training images, batches of 128",
        peer=PEER,
        measured=measured,
    )


if __name__ == "__main__":
    main()
