"""The coder on sources of known entropy: excess over it, and million symbols a second.

    python benchmarks/coding_sources.py [--quick] [--out NAME]

Sources: independent symbols, rows and columns of unlike size, sparse rows and columns, a Markov
chain of order 2, disjoint pairs. Speed is CPU time of one process with one thread.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fewbits.coding import CODECS, EFFORTS, decode_stream, encode_stream, entropy
from images import CACHE
from record import write

Index = NDArray[np.int32]


def _timed(function: Callable[[], Any]) -> tuple[Any, float]:
    start = time.process_time()
    found = function()
    return found, time.process_time() - start


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
    """Bits of every codec that takes the matrix, beside the entropy of order 0."""
    row: dict[str, Any] = {
        "matrix": name,
        "shape": list(index.shape),
        "zeros": float((index == 0).mean()),
        "order_0_bits": entropy(index, 0),
    }
    for codec in ("static", "adaptive"):
        data = CODECS[codec].encode(index)
        row[f"{codec}_bits"] = None if data is None else 8 * len(data) / index.size
    for effort in EFFORTS:
        codec, data = encode_stream(index, effort)
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
    codec, data = encode_stream(index, "smallest")
    got = 8 * len(data) / index.size
    row = {"source": name, "symbols": index.size, "entropy": bits, "codec": codec, "bits": got}
    print(row, flush=True)
    return {**row, "excess_percent": 100 * (got / bits - 1), "within_1_percent": got <= 1.01 * bits}


def _speed(name: str, index: Index) -> dict[str, Any]:
    row: dict[str, Any] = {"matrix": name, "shape": list(index.shape)}
    for effort in EFFORTS:
        (codec, data), seconds = _timed(lambda effort=effort: encode_stream(index, effort))
        back, again = _timed(
            lambda codec=codec, data=data: decode_stream(codec, data, *index.shape)
        )
        if not np.array_equal(back, index):
            raise RuntimeError("decoding gave other symbols")
        row[effort] = {
            "codec": codec,
            "bits": 8 * len(data) / index.size,
            "encode_msymbols_per_second": index.size / seconds / 1e6,
            "decode_msymbols_per_second": index.size / again / 1e6,
        }
    print(row, flush=True)
    return row


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
    write(
        options.out or "coding_sources",
        folder=CACHE if options.quick or options.out else None,
        model="none: synthetic index matrices, seed 0",
        data="the entropy of a source is computed from its law, that of order 0 from the symbols",
        matrices=[_matrix(*item) for item in matrices(2048 if share == 1 else 512).items()],
        sources=[
            _source("order 2, 4 symbols", *markov(10**6 // share)),
            _source("pairs of 7 symbols", *pairs(10**6 // share)),
        ],
        speed=[_speed(*item) for item in speed_matrices(2000 // share).items()],
    )


if __name__ == "__main__":
    main()
