"""What the coder pays: bytes of whole files and tensors, peers, sources of known entropy, speed.

    python benchmarks/coding.py [--bits 4] [--methods gpfq] [--quick] [--out NAME]

Indices: ResNet-20, one calibration (1,024 images, seed 0). Peers get the index bytes (int8) of one
tensor at a time, as files do; the payload of a file is compared with the same for all tensors. The
speed is of one process with one thread.
"""

from __future__ import annotations

import argparse
import bz2
import lzma
import shutil
import subprocess
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import fewbits
from fewbits.coding import CODECS, EFFORTS, decode_stream, encode_stream, entropy
from fewbits.container import decode, encode, measure
from images import CACHE
from networks import resnet20
from record import write
from resnet20_cifar10 import calibration_batches

METHODS = {"gpfq": fewbits.GPFQ, "gptq": fewbits.GPTQ}
Index = NDArray[np.int32]


def _brotli() -> Callable[[bytes], bytes] | None:
    try:
        import brotli  # noqa: PLC0415
    except ImportError:
        return None
    return lambda data: brotli.compress(data, quality=11, lgwin=24)


def _zstd() -> Callable[[bytes], bytes] | None:
    tool = shutil.which("zstd")
    if tool is None:
        return None
    command = [tool, "-19", "--no-check", "-c", "-q"]
    return lambda data: subprocess.run(command, input=data, capture_output=True, check=True).stdout


def _xz(data: bytes) -> bytes:
    return lzma.compress(data, lzma.FORMAT_XZ, lzma.CHECK_NONE, 9 | lzma.PRESET_EXTREME)


PEERS = {"zstd -19": _zstd(), "xz -9e": _xz, "bz2 -9": bz2.compress, "brotli 11": _brotli()}


def _peers(index: Index) -> dict[str, int]:
    data = index.astype(np.int8 if abs(index).max() < 128 else np.int32).tobytes()
    return {name: len(peer(data)) for name, peer in PEERS.items() if peer}


def _tensor(name: str, index: Index) -> dict[str, Any]:
    static = CODECS["static"].encode(index)
    efforts = {effort: encode_stream(index, effort) for effort in EFFORTS}
    return {
        "tensor": name,
        "shape": list(index.shape),
        "entropy_bytes": [entropy(index, order) * index.size / 8 for order in (0, 1, 2)],
        "static": None if static is None else len(static),
        "efforts": {effort: {"codec": c, "bytes": len(d)} for effort, (c, d) in efforts.items()},
        "peers": _peers(index),
    }


def _timed(function: Callable[[], Any]) -> tuple[Any, float]:
    start = time.process_time()
    found = function()
    return found, time.process_time() - start


def _network(method: str, bits: int) -> dict[str, Any]:
    """One file: every effort's bytes and seconds, and the indices tensor by tensor."""
    coded = fewbits.compress(
        resnet20(), METHODS[method](bits=bits), calibration=calibration_batches(1024, 0), seed=0
    )
    indices = {k: t.index for k, t in coded.tensors.items() if hasattr(t, "index")}
    tensors = [_tensor(name, index) for name, index in indices.items()]
    files = {}
    for effort in EFFORTS:
        data, seconds = _timed(lambda effort=effort: encode(coded.contents, effort))
        _, back = _timed(lambda data=data: decode(data))
        files[effort] = {"bytes": len(data), "encode_seconds": seconds, "decode_seconds": back}
    rows = measure(encode(coded.contents, "fast")).rows
    side = sum(row.bytes for row in rows if row.name not in indices)
    side += sum(row.side + 4 for row in rows if row.name in indices)  # and a checksum
    zero = sum(row["entropy_bytes"][0] for row in tensors)
    peers = {name: sum(row["peers"][name] for row in tensors) for name in tensors[0]["peers"]}
    found = {
        "method": method,
        "bits": bits,
        "weights": sum(index.size for index in indices.values()),
        "files": files,
        "order_0_plus_side": round(zero + side),
        "order_0_bytes": round(zero),
        "index_bytes": {
            effort: sum(row["efforts"][effort]["bytes"] for row in tensors) for effort in EFFORTS
        },
        "peer_index_bytes": peers,
        "tensors": tensors,
    }
    print(method, bits, {k: found[k] for k in ("order_0_bytes", "index_bytes")}, peers, flush=True)
    return found


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
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--bits", nargs="+", type=int, default=[2, 3, 4, 5])
    parser.add_argument("--quick", action="store_true", help="a tenth of the symbols")
    parser.add_argument("--out", help="name of the record in .data/")
    options = parser.parse_args()
    torch.set_num_threads(1)
    share = 10 if options.quick else 1
    record: dict[str, Any] = {
        "peers_absent": [name for name, peer in PEERS.items() if peer is None] + ["nncodec"],
        "networks": [_network(m, bits) for m in options.methods for bits in options.bits],
        "sources": [
            _source("order 2, 4 symbols", *markov(10**6 // share)),
            _source("pairs of 7 symbols", *pairs(10**6 // share)),
        ],
        "speed": [_speed(*item) for item in speed_matrices(2000 // share).items()],
    }
    plain = not options.quick and options.out is None and options.bits == [2, 3, 4, 5]
    write(
        options.out or "coding",
        folder=None if plain else CACHE,
        model="ResNet-20 (He et al. 2015), 269,722 parameters, all layers quantized",
        data="CIFAR-10: 1,024 training images calibrate, seed 0; indices of all layers",
        **record,
    )


if __name__ == "__main__":
    main()
