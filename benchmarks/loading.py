"""Seconds and memory of loading a file of 25 million weights, beside safetensors in the same run.

    python benchmarks/loading.py

Synthetic: the layers of a ResNet-50, index matrices at 4 bits whose rows have scales as trained
layers do (log-normal, 0.35), balanced effort unless said. The best of five, files in the page
cache. Memory is the growth of the process, each kind of loading in a process of its own.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import fewbits
from fewbits.coded import Contents, GridTensor
from fewbits.coding import codec_of
from fewbits.coding import kernels as compiled_kernels
from fewbits.container import encode
from fewbits.container import write as write_file
from fewbits.container.open_file import open_source
from record import write

REPEATS = 5
MIB = 2**20


def layers() -> dict[str, tuple[int, ...]]:
    """Return the weights of a ResNet-50, 25.5 million in all."""
    found: dict[str, tuple[int, ...]] = {"conv1.weight": (64, 3, 7, 7)}
    inputs = 64
    for stage, (blocks, width) in enumerate(((3, 64), (4, 128), (6, 256), (3, 512)), 1):
        for block in range(blocks):
            start = f"layer{stage}.{block}"
            found[f"{start}.conv1.weight"] = (width, inputs, 1, 1)
            found[f"{start}.conv2.weight"] = (width, width, 3, 3)
            found[f"{start}.conv3.weight"] = (4 * width, width, 1, 1)
            if block == 0:
                found[f"{start}.downsample.0.weight"] = (4 * width, inputs, 1, 1)
            inputs = 4 * width
    return found | {"fc.weight": (1000, 2048)}


def contents(seed: int = 0) -> Contents:
    """Return grids of 4 bits, one step to a tensor, rows of log-normal size."""
    rng = np.random.default_rng(seed)
    tensors = {}
    for name, shape in layers().items():
        rows, columns = shape[0], int(np.prod(shape[1:]))
        scale = 2.2 * np.exp(rng.normal(0, 0.35, (rows, 1)))
        index = np.clip(np.rint(rng.normal(size=(rows, columns)) * scale), -8, 7)
        step = np.array([0.02], np.float32)
        tensors[name] = GridTensor(shape, "float32", index.astype(np.int32), step)
    return Contents(tensors)


class Net(nn.Module):
    """A network with just those weights."""

    def __init__(self) -> None:
        super().__init__()
        for name, shape in layers().items():
            module: nn.Module = self
            *path, leaf = name.split(".")
            for part in path:
                if part not in module._modules:
                    module.add_module(part, nn.Module())
                module = module._modules[part]
            module.register_parameter(leaf, nn.Parameter(torch.zeros(shape)))


def _best(use: Callable[[], Any]) -> float:
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        use()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def _rss() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def _peak(process: int | str) -> int:
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024


def growth(kind: str, folder: Path) -> int:
    """Return by how many bytes loading makes this process larger at its peak.

    ``kind``: safetensors, state_dict or into; the last two also with "_by_two" threads.
    """
    from safetensors.torch import load_file  # noqa: PLC0415

    kind, _, several = kind.partition("_by_")
    net = Net() if kind == "into" else None
    fewbits.load(folder / "warm.fewbits")
    compiled_kernels.compiled()
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = _rss()
    if kind == "safetensors":
        found = {k: v.clone() for k, v in load_file(folder / "net.safetensors").items()}
    else:
        found = fewbits.load(folder / "net.fewbits", into=net, threads=2 if several else 1)
    peak = _peak("self")
    del found
    return peak - before


def _growth_alone(kind: str, folder: Path) -> float:
    command = [sys.executable, __file__, "--growth", kind, str(folder)]
    done = subprocess.run(command, capture_output=True, check=True, text=True)
    return float(done.stdout) / MIB


def _by_effort(held: Contents, folder: Path) -> dict[str, Any]:
    """Bytes of the file, and seconds to write and to load it, by effort and number of threads."""
    found: dict[str, Any] = {}
    for effort in ("fast", "balanced", "smallest"):
        row: dict[str, Any] = {"encode_seconds": {}, "load_seconds": {}}
        for threads in (1, 2):
            start = time.perf_counter()
            data = encode(held, effort, threads)
            row["encode_seconds"][str(threads)] = time.perf_counter() - start
            if row.setdefault("file_bytes", len(data)) != len(data):
                raise RuntimeError("the bytes depend on the number of threads")
            path = folder / f"{effort}.fewbits"
            write_file(data, path)
            load = partial(fewbits.load, path, threads=threads)
            row["load_seconds"][str(threads)] = _best(load)
        found[effort] = row
    return found


def _codecs(data: bytes) -> dict[str, dict[str, float]]:
    """Where the seconds go: bodies, symbols and seconds of each codec."""
    opened = open_source(lambda a, b: data[a:b], len(data))
    found: dict[str, dict[str, float]] = {}
    for span in opened.spans:
        start = time.perf_counter()
        size = sum(matrix.size for matrix in opened.decode(span))
        seconds = time.perf_counter() - start
        row = found.setdefault(
            codec_of(span.codec).name, {"bodies": 0, "symbols": 0, "seconds": 0.0}
        )
        row["bodies"] += 1
        row["symbols"] += size
        row["seconds"] += seconds
    return found


def _measure(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file, save_file  # noqa: PLC0415

    path, peer = folder / "net.fewbits", folder / "net.safetensors"
    held = contents()
    compiled_kernels.compiled()
    write_file(encode(held), path)
    tiny = Contents(
        {"w": GridTensor((2, 2), "float32", np.eye(2, dtype=np.int32), np.ones(1, np.float32))}
    )
    write_file(encode(tiny), folder / "warm.fewbits")
    state: dict[str, Tensor] = fewbits.load(path)
    if not all(np.array_equal(state[k].numpy(), t.dequantize()) for k, t in held.tensors.items()):
        raise RuntimeError("the file does not hold the tensors")
    save_file(state, peer)
    net, name = Net(), "layer4.0.conv2.weight"
    seconds = {
        "state_dict": _best(lambda: fewbits.load(path, threads=1)),
        "state_dict_by_two": _best(lambda: fewbits.load(path, threads=2)),
        "into_network": _best(lambda: fewbits.load(path, into=net, threads=1)),
        "into_network_by_two": _best(lambda: fewbits.load(path, into=net, threads=2)),
        "one_tensor": _best(lambda: fewbits.load_tensor(path, name)),
        "some_rows_of_it": _best(lambda: fewbits.load_tensor(path, name, (100, 110))),
        # Mapped files are read on first touch: copying them is the reading.
        "safetensors": _best(lambda: {k: v.clone() for k, v in load_file(peer).items()}),
        "safetensors_untouched": _best(lambda: load_file(peer)),
    }
    peaks = {
        kind: _growth_alone(kind, folder)
        for kind in ("state_dict", "state_dict_by_two", "into", "into_by_two", "safetensors")
    }
    floats = sum(tensor.numel() * 4 for tensor in state.values())
    return {
        "weights": floats // 4,
        "file_bytes": path.stat().st_size,
        "safetensors_bytes": peer.stat().st_size,
        "seconds": seconds,
        "ratio_to_safetensors": seconds["state_dict"] / seconds["safetensors"],
        "ratio_to_safetensors_untouched": seconds["state_dict"] / seconds["safetensors_untouched"],
        "one_tensor_name": name,
        "effort": "balanced",
        "efforts": _by_effort(held, folder),
        "codecs": _codecs(path.read_bytes()),
        "float_mib": floats / MIB,
        "peak_growth_mib": peaks,
    }


def main() -> None:
    torch.set_num_threads(2)
    if sys.argv[1:2] == ["--growth"]:
        print(growth(sys.argv[2], Path(sys.argv[3])))
        return
    with tempfile.TemporaryDirectory() as folder:
        found = _measure(Path(folder))
    print(json.dumps(found, indent=1))
    write(
        "loading",
        model="the weight matrices of a ResNet-50, synthetic",
        data="4-bit indices, normal rows with log-normal scales (0.35), seed 0",
        loading=found,
    )


if __name__ == "__main__":
    main()
