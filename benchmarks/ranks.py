"""Time a compression of MiniLM by one process, and by ranks that share its calibration batches.

    python benchmarks/ranks.py            # 1 process against 2 ranks, of one thread each
    python benchmarks/ranks.py --quick    # few sentences, to see that it works

Every process loads the network and the data first; the time is that of ``fewbits.compress`` alone,
of the slowest rank. It only means something where each rank has a core to itself. Two amounts of
data give a model, ``T = serial + shared * sentences / ranks``, from the runs of one process; the
record says what it predicts for the ranks, and what they took. benchmarks/README.md says where the
network comes from.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import distributed as dist

import fewbits
from images import CACHE
from packaged import minilm, minilm_sentences
from record import write

METHODS = {"gpfq": fewbits.GPFQ(bits=4), "gptq": fewbits.GPTQ(bits=4)}
SENTENCES, FEWER, QUICK = 1024, 256, 128


def _indices(coded: fewbits.CodedModel) -> dict[str, np.ndarray[Any, Any]]:
    return {name: t.index for name, t in coded.tensors.items() if hasattr(t, "index")}


def _work(out: Path, sentences: int) -> None:
    """Compress with every method as one of the ranks; the first writes what came of it."""
    torch.set_num_threads(1)
    ranks = int(os.environ["WORLD_SIZE"])
    model, batches = minilm(), minilm_sentences("calibration", sentences)
    if ranks > 1:
        dist.init_process_group("gloo")
    found: dict[str, Any] = {}
    for name, method in METHODS.items():
        fewbits.compress(model, method, batches[:ranks])  # compiles kernels, fills caches
        started, used = time.perf_counter(), time.process_time()
        coded = fewbits.compress(model, method, batches)
        spent = (time.perf_counter() - started, time.process_time() - used)
        every: list[Any] = [spent] * ranks
        if ranks > 1:
            dist.all_gather_object(every, spent)
        found[name] = {"seconds": max(s for s, _ in every), "cpu_seconds": [c for _, c in every]}
        if os.environ["RANK"] == "0":
            found[name]["indices"] = _indices(coded)
            found[name]["data"] = coded.encode("fast", threads=1)
    if os.environ["RANK"] == "0":
        torch.save(found, out)
    if ranks > 1:
        dist.destroy_process_group()


def _run(ranks: int, out: Path, sentences: int) -> dict[str, Any]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    given = {**os.environ, "OMP_NUM_THREADS": "1", "WORLD_SIZE": str(ranks), "MASTER_PORT": port}
    given["MASTER_ADDR"] = "127.0.0.1"
    command = [sys.executable, __file__, "--sentences", str(sentences), "--work", str(out)]
    running = [subprocess.Popen(command, env={**given, "RANK": str(rank)}) for rank in range(ranks)]
    codes = [process.wait() for process in running]
    if any(codes):
        raise SystemExit(1)
    return torch.load(out, weights_only=False)  # type: ignore[no-any-return]


def _compared(one: dict[str, Any], many: dict[str, Any]) -> dict[str, Any]:
    """Return times, and how the two files differ."""
    gaps = [
        np.abs(index.astype(np.int64) - many["indices"][name].astype(np.int64))
        for name, index in one["indices"].items()
    ]
    return {
        "seconds": [round(run["seconds"], 2) for run in (one, many)],
        "cpu_seconds": [[round(s, 2) for s in run["cpu_seconds"]] for run in (one, many)],
        "ratio": round(one["seconds"] / many["seconds"], 3),
        "file_bytes": [len(run["data"]) for run in (one, many)],
        "sha256": [hashlib.sha256(run["data"]).hexdigest()[:16] for run in (one, many)],
        "same_bytes": one["data"] == many["data"],
        "indices": sum(gap.size for gap in gaps),
        "indices_that_differ": sum(int((gap > 0).sum()) for gap in gaps),
        "largest_difference": max(int(gap.max()) for gap in gaps),
    }


def main() -> None:
    """Measure and write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--sentences", type=int, default=SENTENCES)
    parser.add_argument("--quick", action="store_true", help=f"only {QUICK} sentences")
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work is not None:
        _work(options.work, options.sentences)
        return
    many = QUICK if options.quick else options.sentences
    counts = [min(FEWER, many // 2), many]
    rows = [_measured(count, options.ranks) for count in counts]
    models = {name: _model(counts, [row[name] for row in rows], options.ranks) for name in METHODS}
    for name, model in models.items():
        print(name, *(row[name] for row in rows), model, sep="\n    ")
    usual = many == SENTENCES and options.ranks == 2
    write(
        "ranks",
        model="all-MiniLM-L6-v2, float32",
        data=f"WikiText-2 validation, {counts[0]} and {counts[1]} sentences in batches of 32",
        folder=None if usual else CACHE,
        ranks=options.ranks,
        threads_per_rank=1,
        bits=4,
        methods=rows[1],
        less_data=rows[0],
        models=models,
    )


def _measured(sentences: int, ranks: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        one = _run(1, Path(folder) / "one.pt", sentences)
        many = _run(ranks, Path(folder) / "many.pt", sentences)
    return {name: _compared(one[name], many[name]) for name in METHODS}


def _model(counts: list[int], rows: list[dict[str, Any]], ranks: int) -> dict[str, Any]:
    """Fit the time of one process, and predict that of the ranks."""
    few, many = (row["seconds"][0] for row in rows)
    each = (many - few) / (counts[1] - counts[0])
    serial = few - each * counts[0]
    return {
        "serial_seconds": round(serial, 2),
        "seconds_per_sentence": round(each, 5),
        "predicted_seconds": [round(serial + each * count / ranks, 2) for count in counts],
        "measured_seconds": [row["seconds"][1] for row in rows],
    }


if __name__ == "__main__":
    main()
