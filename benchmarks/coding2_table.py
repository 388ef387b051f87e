"""The new coder on real indices, on sources of known entropy, and its speed beside its peer's.

    python benchmarks/coding2_table.py [--networks resnet20 ...] [--bits 2 3 4 5] [--out NAME]

The indices are those of ``coding.py``; they are kept in ``.data/indices`` and quantized only once.
Seconds are CPU seconds of one thread, but for those with two; ``constriction`` is timed in the
same run.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import constriction
import numpy as np
import torch
from numpy.typing import NDArray

import fewbits
from coding import CASES, METHODS
from coding_sources import markov, matrices, pairs, speed_matrices
from fewbits.coding import CODECS, EFFORTS, Layout, decode_symbols, encode_symbols, encode_together
from fewbits.coding import kernels as compiled_kernels
from images import CACHE
from record import write
from zoo import ZOO

Index = NDArray[np.int32]
PICTURE = {784: 28}  # columns that are pictures of so many columns


def indices(method: str, network: str, bits: int) -> list[tuple[str, Index, Layout]]:
    """Return name, index matrix and layout of every coded layer; quantized once, then kept."""
    path = CACHE / "indices" / f"{method}-{network}-{bits}.npz"
    if not path.exists():
        case = ZOO[network]()
        settings = METHODS[method](bits=bits)
        coded = fewbits.compress(case.model, settings, calibration=case.calibration, seed=0)
        found = {k: t.index for k, t in coded.tensors.items() if hasattr(t, "index")}
        named = dict(case.model.named_parameters())
        shapes = {f"{k}|shape": np.array(named[k].shape) for k in found if k in named}
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(path, **found, **shapes)
    file = np.load(path)
    names = [name for name in file.files if not name.endswith("|shape")]
    return [(name, file[name], _layout(file, name)) for name in names]


def _layout(file: Any, name: str) -> Layout:
    rows, columns = file[name].shape
    shape = file[f"{name}|shape"] if f"{name}|shape" in file.files else (rows, columns)
    if len(shape) == 4 and shape[2] * shape[3] > 1:
        return Layout(rows, columns, int(shape[2] * shape[3]), int(shape[3]))
    return Layout(rows, columns, 1, PICTURE.get(columns, 0))


def _timed(function: Callable[[], Any], clock: Callable[[], float] = time.process_time) -> Any:
    start = clock()
    found = function()
    return found, round(clock() - start, 4)


def _decode_together(streams: list[Any], layouts: list[Layout]) -> list[Index]:
    out: list[Any] = []
    for stream in streams:
        codec, own = CODECS[stream.codec], [layouts[at] for at in stream.members]
        if len(own) > 1:
            out += codec.decode_group(stream.data, own)  # type: ignore[attr-defined]
        else:
            out.append(decode_symbols(codec.number, stream.data, own[0]))
    return out


def _network(method: str, network: str, bits: int) -> dict[str, Any]:
    found = indices(method, network, bits)
    known, layouts = [index for _, index, _ in found], [layout for *_, layout in found]
    row: dict[str, Any] = {"network": network, "method": method, "bits": bits}
    row["weights"] = sum(index.size for index in known)
    for effort in EFFORTS:
        streams, encoding = _timed(lambda effort=effort: encode_together(known, layouts, effort))
        back, decoding = _timed(lambda streams=streams: _decode_together(streams, layouts))
        if not all(np.array_equal(a, b) for a, b in zip(back, known, strict=True)):
            raise RuntimeError("decoding gave other symbols")
        row[effort] = {
            "bytes": sum(len(stream.data) for stream in streams),
            "encode_seconds": encoding,
            "decode_seconds": decoding,
            "codecs": {c: sum(s.codec == c for s in streams) for c in CODECS},
        }
    print(row, flush=True)
    return row


def _source(name: str, index: Index, bits: float | None) -> dict[str, Any]:
    row: dict[str, Any] = {"source": name, "shape": list(index.shape), "entropy": bits}
    for effort in EFFORTS:
        codec, data = encode_symbols(index, Layout(*index.shape), effort)
        row[effort] = {"codec": codec, "bits": 8 * len(data) / index.size}
    print(row, flush=True)
    return row


def _speed(name: str, index: Index, layout: Layout) -> dict[str, Any]:
    """Million symbols a second of both codecs, and of ``constriction`` in the same run."""
    row: dict[str, Any] = {"matrix": name, "shape": list(index.shape)}
    for codec in (CODECS["rans"], CODECS["mix"]):
        repeats = 1 if codec.tier else 3
        data = codec.encode(index, layout)
        for verb, run in (
            ("encode", lambda threads, c=codec: c.encode(index, layout, threads=threads)),
            ("decode", lambda threads, c=codec, d=data: c.decode(d, layout, threads=threads)),
        ):
            one = min(_timed(lambda run=run: run(1))[1] for _ in range(repeats))
            clock = time.perf_counter
            wall = [
                min(_timed(lambda n=n, run=run: run(n), clock)[1] for _ in range(repeats))
                for n in (1, 2)
            ]
            row[f"{codec.name} {verb}"] = round(index.size / one / 1e6, 2)
            row[f"{codec.name} {verb}, two threads over one"] = round(wall[0] / wall[1], 2)
    return row | _constriction(index)


def _constriction(index: Index) -> dict[str, float]:
    flat = (index.reshape(-1)[: 1 << 22] - index.min()).astype(np.int32)
    law = constriction.stream.model.Categorical(np.bincount(flat) / flat.size, perfect=False)
    coder = constriction.stream.stack.AnsCoder()
    _, encoding = _timed(lambda: coder.encode_reverse(flat, law))
    _, decoding = _timed(lambda: coder.decode(law, flat.size))
    speeds = {"encode": flat.size / encoding / 1e6, "decode": flat.size / decoding / 1e6}
    return {f"constriction {verb}": round(speed, 2) for verb, speed in speeds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", choices=list(ZOO), default=list(ZOO))
    parser.add_argument("--bits", nargs="+", type=int, default=[2, 3, 4, 5])
    parser.add_argument("--out", help="name of the record in .data/")
    options = parser.parse_args()
    torch.set_num_threads(1)
    small = np.arange(64).reshape(8, 8) % 5
    compiled_kernels.compiled()
    _, compiling = _timed(lambda: [encode_symbols(small, Layout(8, 8), e) for e in EFFORTS])
    cases = [(m, n, b) for m, n in CASES if n in options.networks for b in options.bits]
    rows = [_network(*case) for case in cases]
    totals = {effort: sum(row[effort]["bytes"] for row in rows) for effort in EFFORTS}
    print(totals, flush=True)
    sources = [_source(name, index, None) for name, index in matrices(1024).items()]
    sources += [_source("order 2, 4 symbols", *markov(10**6))]
    sources += [_source("pairs of 7 symbols", *pairs(10**6))]
    speeds = []
    for name, index in speed_matrices(1000).items():
        kernel = (9, 3) if name.startswith("kernels") else (1, 0)
        speeds.append(_speed(name, index, Layout(*index.shape, *kernel)))
        print(speeds[-1], flush=True)
    plain = options.out is None and set(options.networks) == set(ZOO) and len(options.bits) == 4
    write(
        options.out or "coding2",
        folder=None if plain else CACHE,
        model="; ".join(options.networks),
        data="indices of coding.py; sources of coding_sources.py",
        seconds_to_compile_or_load=compiling,
        totals=totals,
        networks=rows,
        sources=sources,
        speed=speeds,
    )


if __name__ == "__main__":
    main()
