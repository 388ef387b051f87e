"""The coder on sources of known entropy, and its speed beside its peers.

    python benchmarks/coding_sources.py [--quick] [--out NAME]

Sources: independent symbols, rows and columns of unlike size, sparse rows and columns, a Markov
chain of order 2, disjoint pairs. Speeds of one thread are CPU time, those of two threads wall time
over one thread's, of whole files; ``constriction`` and, where FEWBITS_PEERS_PYTHON names a Python
that has it, nncodec are timed on the same symbols in the same run. Compiling is timed in processes
of their own, with an empty cache and with a full one.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import constriction
import numpy as np
import torch
from numpy.typing import NDArray

from fewbits.coded import Contents, GridTensor
from fewbits.coding import CODECS, EFFORTS, Layout, encode_symbols, entropy
from fewbits.coding import kernels as compiled_kernels
from fewbits.container import decode, encode
from images import CACHE
from record import write

PEERS = os.environ.get("FEWBITS_PEERS_PYTHON")
COMPILE = """
import time
import numpy as np
from fewbits.coding import Layout, encode_symbols, kernels
start = time.perf_counter(), time.process_time()
kernels.compiled()
small = np.arange(64, dtype=np.int32).reshape(8, 8) % 5
for effort in ("fast", "smallest"):
    encode_symbols(small, Layout(8, 8), effort)
print(time.perf_counter() - start[0], time.process_time() - start[1])
"""
Index = NDArray[np.int32]


def _timed(
    function: Callable[[], Any], repeats: int, clock: Callable[[], float] = time.process_time
) -> tuple[Any, float]:
    """Return what ``function`` returns, and the fewest seconds that it took."""
    seconds = []
    for _ in range(repeats):
        start = clock()
        found = function()
        seconds.append(clock() - start)
    return found, min(seconds)


def _sizes(count: int, spread: float, rng: np.random.Generator) -> NDArray[np.float64]:
    return np.exp(spread * rng.normal(size=count))


def matrices(side: int, seed: int = 0) -> dict[str, Index]:
    """Return square matrices of weights as a quantizer leaves them, by name.

    Laplacian, 47 % zeros; sparse, 94 %; rows and columns of log-normal (0.5) size; 90 % zeros
    because 40 % of the rows and 60 % of the columns are nearly dead. Scales give the entropies
    (2.18, 0.54, 2.44, 0.67 bits) of published measurements of such sets.
    """
    rng = np.random.default_rng(seed)
    shape = (side, side)
    plain = rng.laplace(0, 0.8, shape)
    sparse = np.where(rng.random(shape) < 0.09, rng.laplace(0, 1.508, shape), 0)
    rows, columns = _sizes(side, 0.5, rng)[:, None], _sizes(side, 0.5, rng)
    uneven = rng.laplace(0, 0.811, shape) * rows * columns
    alive = np.where(rng.random((side, 1)) < 0.4, 0.03, 1) * np.where(
        rng.random(side) < 0.6, 0.03, 1
    )
    dead = rng.laplace(0, 0.537, shape) * alive
    found = {
        "alike": plain,
        "91 % zeros": sparse,
        "rows and columns unlike": uneven,
        "dead rows and columns": dead,
    }
    return {name: np.rint(values).clip(-31, 31).astype(np.int32) for name, values in found.items()}


def _matrix(name: str, index: Index) -> dict[str, Any]:
    """Bits of every effort, beside the entropy of order 0."""
    row: dict[str, Any] = {
        "matrix": name,
        "shape": list(index.shape),
        "zeros": float((index == 0).mean()),
        "order_0_bits": entropy(index, 0),
    }
    for effort in EFFORTS:
        codec, data = encode_symbols(index, Layout(*index.shape), effort)
        row |= {f"{effort}_bits": 8 * len(data) / index.size, f"{effort}_codec": codec}
    print(row, flush=True)
    return row


def markov(size: int, levels: int = 4, seed: int = 0) -> tuple[Index, float]:
    """Return a source of order 2 and its conditional entropy in bits."""
    rng = np.random.default_rng(seed)
    law = rng.dirichlet(np.full(levels, 0.3), size=(levels, levels))
    below, draws = law.cumsum(axis=2), rng.random(size)
    out = np.empty(size, np.int32)
    a = b = 0
    for place in range(size):
        a, b = b, min(int(np.searchsorted(below[a, b], draws[place])), levels - 1)
        out[place] = b
    step = np.zeros((levels**2, levels**2))
    for x in range(levels):
        for y in range(levels):
            step[levels * x + y, levels * y : levels * (y + 1)] = law[x, y]
    share = np.linalg.matrix_power(step, 2000)[0]
    bits = -(law * np.log2(np.maximum(law, 1e-300))).sum(axis=2).reshape(-1)
    return out.reshape(1000, -1), float(share @ bits)


def pairs(size: int, levels: int = 7, seed: int = 0) -> tuple[Index, float]:
    """Return disjoint pairs of one law, and half its joint entropy in bits."""
    rng = np.random.default_rng(seed)
    law = rng.random(levels**2) ** 12
    law /= law.sum()
    cells = rng.choice(levels**2, size // 2, p=law)
    flat = np.stack([cells // levels, cells % levels], axis=1).reshape(1000, -1).astype(np.int32)
    return flat, float(-(law * np.log2(law)).sum()) / 2


def _source(name: str, index: Index, bits: float) -> dict[str, Any]:
    codec, data = encode_symbols(index, Layout(*index.shape), "smallest")
    got = 8 * len(data) / index.size
    row = {"source": name, "symbols": index.size, "entropy": bits, "codec": codec, "bits": got}
    print(row, flush=True)
    return {**row, "excess_percent": 100 * (got / bits - 1), "within_1_percent": got <= 1.01 * bits}


def _speed(name: str, index: Index, kernel: tuple[int, int]) -> dict[str, Any]:
    """Million symbols a second of both codecs, and of peers on the same symbols."""
    row: dict[str, Any] = {"matrix": name, "shape": list(index.shape)}
    layout = Layout(*index.shape, *kernel)
    for codec in (CODECS["rans"], CODECS["mix"]):
        part = index[: len(index) // 8] if codec.tier else index
        own = Layout(*part.shape, *kernel) if codec.tier else layout
        repeats = 1 if codec.tier else 3
        data = codec.encode(part, own)
        if data is None:
            raise RuntimeError(f"{codec.name} does not take {name}")
        back, decoding = _timed(lambda c=codec, d=data, x=own: c.decode(d, x), repeats)
        _, encoding = _timed(lambda c=codec, p=part, x=own: c.encode(p, x), repeats)
        if not np.array_equal(back, part):
            raise RuntimeError("decoding gave other symbols")
        row[codec.name] = _rates(part, 8 * len(data), encoding, decoding)
    row |= _constriction(index[: len(index) // 4]) | _nncodec(index[: len(index) // 4])
    row["two threads over one"] = _threads(index)
    print(row, flush=True)
    return row


def _rates(index: Index, bits: float, encoding: float, decoding: float) -> dict[str, float]:
    million = index.size / 1e6
    return {
        "bits": round(bits / index.size, 4),
        "encode_msymbols_per_second": round(million / encoding, 2),
        "decode_msymbols_per_second": round(million / decoding, 2),
    }


def _constriction(index: Index) -> dict[str, Any]:
    flat = np.ascontiguousarray(index.reshape(-1) - index.min())
    law = constriction.stream.model.Categorical(np.bincount(flat) / flat.size, perfect=False)
    coder = constriction.stream.stack.AnsCoder()
    _, encoding = _timed(lambda: coder.encode_reverse(flat, law), 1)
    bits = float(coder.num_bits())
    _, decoding = _timed(lambda: coder.decode(law, flat.size), 1)
    return {"constriction": _rates(index, bits, encoding, decoding)}


def _nncodec(index: Index) -> dict[str, Any]:
    if PEERS is None:
        return {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "matrix.npz"
        np.savez(path, index=index)
        script = Path(__file__).with_name("peer_coders.py")
        command = [PEERS, str(script), str(path), "nncodec"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    if "nncodec" not in found["bytes"]:
        return {}
    return {
        "nncodec": _rates(index, 8 * found["bytes"]["nncodec"][0], *found["seconds"]["nncodec"])
    }


def _threads(index: Index) -> dict[str, float]:
    """Wall time of one thread over that of two, for whole files."""
    contents = Contents({"w": GridTensor(index.shape, "float32", index, np.ones(1, np.float32))})
    found = {}
    for effort in ("fast", "smallest"):
        data = encode(contents, effort)
        for verb, use in (
            ("encode", lambda n, effort=effort: encode(contents, effort, n)),
            ("decode", lambda n, data=data: decode(data, threads=n)),
        ):
            wall = [_timed(lambda n=n, use=use: use(n), 3, time.perf_counter)[1] for n in (1, 2)]
            found[f"{effort} {verb}"] = round(wall[0] / wall[1], 2)
    return found


def _compiling() -> dict[str, float]:
    """Wall and CPU seconds until the kernels are ready: compiled, and loaded from the cache."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in ("compiled", "loaded"):
            command = [sys.executable, "-c", COMPILE]
            settings = os.environ | {"NUMBA_CACHE_DIR": folder}
            done = subprocess.run(command, capture_output=True, text=True, check=True, env=settings)
            wall, cpu = map(float, done.stdout.split())
            found |= {f"{name}_wall": round(wall, 2), f"{name}_cpu": round(cpu, 2)}
    return found


def speed_matrices(rows: int) -> dict[str, Index]:
    """Return 4-bit matrices of 5,000 columns: rows alike, rows unlike, and smooth kernels."""
    rng = np.random.default_rng(0)
    alike = np.rint(rng.laplace(0, 1.5, (rows, 5000)))
    unlike = np.rint(alike * np.exp(0.5 * rng.normal(size=(rows, 1))))
    smooth = rng.normal(size=(rows, 555, 3, 3))
    smooth[:, :, :, 1:] += 0.6 * smooth[:, :, :, :-1]
    smooth[:, :, 1:] += 0.6 * smooth[:, :, :-1]
    kernels = np.rint(1.5 * smooth).reshape(rows, -1)
    found = {"rows alike": alike, "rows unlike": unlike, "kernels of 3 by 3": kernels}
    return {name: values.clip(-7, 7).astype(np.int32) for name, values in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tenth of the symbols")
    parser.add_argument("--out", help="name of the record in .data/")
    options = parser.parse_args()
    torch.set_num_threads(1)
    share = 10 if options.quick else 1
    seconds = _compiling()
    print(seconds, flush=True)
    compiled_kernels.compiled()
    write(
        options.out or "coding_sources",
        folder=CACHE if options.quick or options.out else None,
        model="none: synthetic index matrices, seed 0",
        data="the entropy of a source is computed from its law, that of order 0 from the symbols",
        kernels_seconds=seconds,
        matrices=[_matrix(*item) for item in matrices(2048 if share == 1 else 512).items()],
        sources=[
            _source("order 2, 4 symbols", *markov(10**6 // share)),
            _source("pairs of 7 symbols", *pairs(10**6 // share)),
        ],
        speed=[
            _speed(name, index, (9, 3) if name.startswith("kernels") else (1, 0))
            for name, index in speed_matrices(2000 // share).items()
        ],
    )


if __name__ == "__main__":
    main()
