"""What the coder pays on real indices, tensor by tensor and file by file, beside its peers.

    python benchmarks/coding.py [--networks resnet20 ...] [--bits 2 3 4 5] [--out NAME]

Each network of ``zoo.py`` is quantized (one calibration, seed 0); the result is kept in
``.data/indices``. Seconds are CPU seconds of one thread. Peers get the indices of one tensor at a
time, as files do, and general compressors also those of all tensors at once: what is fewer counts
(``peer_coders.py``, in a Python of its own that FEWBITS_PEERS_PYTHON names; absent, they are left
out and named).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import fewbits
from fewbits.coded import Contents, SizeRow
from fewbits.coding import EFFORTS, entropy
from fewbits.coding import kernels as compiled_kernels
from fewbits.container import decode, encode, measure
from images import CACHE
from record import write
from zoo import ZOO

METHODS = {"gpfq": fewbits.GPFQ, "gptq": fewbits.GPTQ}
CASES = [("gptq", "resnet20"), ("gptq", "resnet32"), *(("gpfq", name) for name in ZOO)]
PEERS = os.environ.get("FEWBITS_PEERS_PYTHON")
UNEVEN = 0.3  # spread of row or column magnitudes from which a matrix counts as structured
Index = NDArray[np.int32]


def quantized(method: str, name: str, bits: int) -> Contents:
    """Return a quantized network, from ``.data`` where it has been quantized before."""
    path = CACHE / "indices" / f"{method}-{name}-{bits}.fewbits"
    if not path.exists():
        case = ZOO[name]()
        coded = fewbits.compress(
            case.model, METHODS[method](bits=bits), calibration=case.calibration, seed=0
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        coded.save(path, "fast")
    return decode(path.read_bytes())


def _peers(indices: dict[str, Index]) -> dict[str, Any]:
    """Return bytes of each matrix, and seconds in all, by peer; nothing without their Python."""
    if PEERS is None:
        return {"bytes": {}, "joined": {}, "seconds": {}}
    script = Path(__file__).with_name("peer_coders.py")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "matrices.npz"
        np.savez(path, **{str(place): index for place, index in enumerate(indices.values())})
        command = [PEERS, str(script), str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def unevenness(index: Index) -> float:
    """Return how much rows or columns differ in mean magnitude, beyond chance (no coder asked).

    The larger of two coefficients of variation, each less what equal rows would show by chance.
    """
    size = np.abs(index - int(np.median(index))).astype(float)
    found = []
    for axis in (0, 1):
        means = size.mean(axis=axis)
        chance = size.var(axis=axis).mean() / size.shape[axis]
        found.append(np.sqrt(max(0.0, means.var() - chance)) / max(size.mean(), 1e-9))
    return float(max(found))


def _tensor(name: str, index: Index, reports: dict[str, dict[str, SizeRow]]) -> dict[str, Any]:
    """Bytes of one matrix in its files."""
    return {
        "tensor": name,
        "shape": list(index.shape),
        "unevenness": round(unevenness(index), 3),
        "order-0 entropy": round(entropy(index, 0) * index.size / 8),
        **{effort: report[name].payload for effort, report in reports.items()},
        "codec": reports["smallest"][name].codecs,
    }


def _total(rows: Iterable[dict[str, Any]], key: str) -> int | None:
    found = [row.get(key) for row in rows]
    return sum(found) if found and None not in found else None


def _file(contents: Contents, effort: str) -> tuple[dict[str, Any], dict[str, SizeRow]]:
    """Return bytes and CPU seconds of a file, and what each of its tensors takes."""
    start = time.process_time()
    data = encode(contents, effort, threads=1)
    middle = time.process_time()
    decode(data, threads=1)
    told = {
        "bytes": len(data),
        "encode_seconds": round(middle - start, 3),
        "decode_seconds": round(time.process_time() - middle, 3),
    }
    return told, {row.name: row for row in measure(data).rows}


def _network(method: str, name: str, bits: int) -> dict[str, Any]:
    """One file: every effort's bytes and seconds, and the indices tensor by tensor."""
    contents = quantized(method, name, bits)
    indices = {k: t.index for k, t in contents.tensors.items() if hasattr(t, "index")}
    peers = _peers(indices)
    files, reports = {}, {}
    for effort in EFFORTS:
        files[effort], reports[effort] = _file(contents, effort)
    tensors = [_tensor(key, index, reports) for key, index in indices.items()]
    for peer, sizes in peers["bytes"].items():
        for row, size in zip(tensors, sizes, strict=True):
            row[peer] = size
    rows = reports["fast"].values()
    side = sum(row.bytes - (row.payload if row.name in indices else 0) for row in rows)
    coded_bytes = {e: sum(report[key].payload for key in indices) for e, report in reports.items()}
    total = {key: _total(tensors, key) for key in ("order-0 entropy", *peers["bytes"])}
    for peer, joined in peers["joined"].items():
        total[peer] = min(total[peer] or joined, joined)
    uneven = [t for t in tensors if t["unevenness"] >= UNEVEN]
    found = {
        "network": name,
        "method": method,
        "bits": bits,
        "weights": sum(index.size for index in indices.values()),
        "side_bytes": side,
        "files": files,
        "index_bytes": coded_bytes | total,
        "peer_seconds": peers["seconds"],
        "uneven_index_bytes": {k: _total(uneven, k) for k in (*EFFORTS, "order-0 entropy")},
        "uneven_tensors": len(uneven),
        "tensors": tensors,
    }
    print(method, name, bits, found["index_bytes"], files, flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", choices=list(ZOO))
    parser.add_argument("--bits", nargs="+", type=int, default=[2, 3, 4, 5])
    parser.add_argument("--out", help="name of the record in .data/")
    options = parser.parse_args()
    names = options.networks or list(ZOO)
    cases = [(m, n, bits) for m, n in CASES if n in names for bits in options.bits]
    torch.set_num_threads(1)
    compiled_kernels.compiled()
    start = time.process_time()
    for effort in EFFORTS:
        encode(quantized("gpfq", "lenet5", 3), effort, threads=1)
    ready = round(time.process_time() - start, 2)
    found = [_network(*case) for case in cases]
    totals = {e: sum(net["index_bytes"][e] for net in found) for e in EFFORTS}
    print(totals, flush=True)
    plain = options.networks is None and options.out is None and options.bits == [2, 3, 4, 5]
    write(
        options.out or "coding",
        folder=None if plain else CACHE,
        model="; ".join(dict.fromkeys(net["network"] for net in found)),
        data="1,024 training images calibrate unless said otherwise, seed 0; indices of all layers",
        peers_absent=[] if PEERS else ["all: FEWBITS_PEERS_PYTHON is not set"],
        seconds_until_compiled_or_loaded=ready,
        uneven_from=UNEVEN,
        index_totals=totals,
        networks=found,
    )


if __name__ == "__main__":
    main()
