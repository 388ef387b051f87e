"""What the coder pays on real indices, tensor by tensor and file by file, beside its peers.

    python benchmarks/coding.py [--networks resnet20 ...] [--bits 2 3 4 5] [--jobs 3] [--out NAME]

Each network of ``zoo.py`` is quantized (one calibration, seed 0). Peers get the indices of one
tensor at a time, as files do: general compressors as int8 bytes, nncodec's coder as integers, in
its own Python (set FEWBITS_NNCODEC_PYTHON; absent, it is left out and named).
"""

from __future__ import annotations

import argparse
import bz2
import json
import lzma
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import fewbits
from fewbits.coded import Contents, SizeRow
from fewbits.coding import EFFORTS, encode_stream, entropy
from fewbits.container import decode, encode, measure
from images import CACHE
from record import write
from zoo import ZOO

METHODS = {"gpfq": fewbits.GPFQ, "gptq": fewbits.GPTQ}
CASES = [("gptq", "resnet20"), ("gptq", "resnet32"), *(("gpfq", name) for name in ZOO)]
NNCODEC = os.environ.get("FEWBITS_NNCODEC_PYTHON")
UNEVEN = 0.3  # spread of row or column magnitudes from which a matrix counts as structured
LARGE = 10_000  # weights
Index = NDArray[np.int32]
Peer = Callable[[bytes], bytes]


def _brotli() -> Peer | None:
    try:
        import brotli  # noqa: PLC0415
    except ImportError:
        return None
    return lambda data: brotli.compress(data, quality=11, lgwin=24)


def _zstd() -> Peer | None:
    tool = shutil.which("zstd")
    if tool is None:
        return None
    command = [tool, "-19", "--no-check", "-c", "-q"]
    return lambda data: subprocess.run(command, input=data, capture_output=True, check=True).stdout


def _xz(data: bytes) -> bytes:
    return lzma.compress(data, lzma.FORMAT_XZ, lzma.CHECK_NONE, 9 | lzma.PRESET_EXTREME)


GENERAL: dict[str, Peer | None] = {
    "zstd -19": _zstd(),
    "xz -9e": _xz,
    "bz2 -9": bz2.compress,
    "brotli 11": _brotli(),
}


def _nncodec(indices: dict[str, Index]) -> dict[str, int]:
    """Return the bytes of nncodec's coder for each matrix; nothing without its Python."""
    if NNCODEC is None:
        return {}
    script = Path(__file__).with_name("nncodec_coder.py")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "matrices.npz"
        np.savez(path, **{str(place): index for place, index in enumerate(indices.values())})
        command = [NNCODEC, str(script), str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    return {name: found[str(place)] for place, name in enumerate(indices)}


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


def _tensor(name: str, index: Index, nncodec: dict[str, int]) -> dict[str, Any]:
    """Bytes of one matrix alone; in a file small ones may share a stream and take fewer."""
    data = index.astype(np.int8 if abs(index).max() < 128 else np.int32).tobytes()
    row: dict[str, Any] = {
        "tensor": name,
        "shape": list(index.shape),
        "unevenness": round(unevenness(index), 3),
        "order-0 entropy": round(entropy(index, 0) * index.size / 8),
    }
    codec, alone = encode_stream(index, "smallest")
    row |= {"smallest": len(alone), "codec": codec}
    row |= {peer: len(use(data)) for peer, use in GENERAL.items() if use}
    return row | ({"nncodec": nncodec[name]} if nncodec else {})


def _total(rows: Iterable[dict[str, Any]], key: str) -> int | None:
    found = [row.get(key) for row in rows]
    return sum(found) if found and None not in found else None


def _file(contents: Contents, effort: str) -> tuple[dict[str, Any], dict[str, SizeRow]]:
    """Return bytes and CPU seconds of a file, and what each of its tensors takes."""
    start = time.process_time()
    data = encode(contents, effort)
    middle = time.process_time()
    decode(data)
    told = {
        "bytes": len(data),
        "encode_seconds": round(middle - start, 3),
        "decode_seconds": round(time.process_time() - middle, 3),
    }
    return told, {row.name: row for row in measure(data).rows}


def _network(method: str, name: str, bits: int) -> dict[str, Any]:
    """One file: every effort's bytes and seconds, and the indices tensor by tensor."""
    torch.set_num_threads(1)
    case = ZOO[name]()
    coded = fewbits.compress(
        case.model, METHODS[method](bits=bits), calibration=case.calibration, seed=0
    )
    indices = {k: t.index for k, t in coded.tensors.items() if hasattr(t, "index")}
    peer = _nncodec(indices)
    files, reports = {}, {}
    for effort in EFFORTS:
        files[effort], reports[effort] = _file(coded.contents, effort)
    tensors = [_tensor(key, index, peer) for key, index in indices.items()]
    rows = reports["fast"].values()
    side = sum(row.bytes - (row.payload if row.name in indices else 0) for row in rows)
    coded_bytes = {e: sum(report[key].payload for key in indices) for e, report in reports.items()}
    keys = ["order-0 entropy", *(k for k, use in GENERAL.items() if use), "nncodec"]
    uneven = [t for t in tensors if t["unevenness"] >= UNEVEN]
    general = [k for k, use in GENERAL.items() if use]
    large = [t for t in tensors if t["shape"][0] * t["shape"][1] > LARGE]
    found = {
        "network": name,
        "told": case.told,
        "method": method,
        "bits": bits,
        "weights": sum(index.size for index in indices.values()),
        "side_bytes": side,
        "files": files,
        "index_bytes": coded_bytes | {key: _total(tensors, key) for key in keys},
        "uneven_index_bytes": {key: _total(uneven, key) for key in ["smallest", *keys]},
        "uneven_tensors": len(uneven),
        "large_tensors": len(large),
        "large_beaten_by_general": sum(t["smallest"] >= min(t[k] for k in general) for t in large),
        "tensors": tensors,
    }
    print(method, name, bits, found["index_bytes"], found["uneven_index_bytes"], flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", choices=list(ZOO))
    parser.add_argument("--bits", nargs="+", type=int, default=[2, 3, 4, 5])
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--out", help="name of the record in .data/")
    options = parser.parse_args()
    names = options.networks or list(ZOO)
    cases = [(m, n, bits) for m, n in CASES if n in names for bits in options.bits]
    with ProcessPoolExecutor(options.jobs, get_context("spawn")) as pool:
        found = list(pool.map(_network, *zip(*cases, strict=True)))
    plain = options.networks is None and options.out is None and options.bits == [2, 3, 4, 5]
    write(
        options.out or "coding",
        folder=None if plain else CACHE,
        model="; ".join(dict.fromkeys(f"{net['network']}: {net['told']}" for net in found)),
        data="1,024 training images calibrate unless said otherwise, seed 0; indices of all layers",
        peers_absent=[name for name, use in GENERAL.items() if use is None]
        + (["nncodec"] if NNCODEC is None else []),
        uneven_from=UNEVEN,
        networks=found,
    )


if __name__ == "__main__":
    main()
