"""Peak memory and time of compressing and loading language models, each in a process of its own.

    python benchmarks/memory.py
    python benchmarks/memory.py --networks llama-110m --methods nearest --weights memory

Networks: a random one of 112 million weights, SmolLM2 (134.5 million) and a random one of 1.1
billion, all bfloat16 (benchmarks/README.md says where they come from; those that are absent are
left out by name). Methods: rounding to nearest and GPTQ, both at 4 bits; GPTQ calibrates on 8 x 256
tokens. Weights: in memory, as ``from_pretrained`` loads them, or read from the folder layer by
layer. Then the written file is loaded, at once and lazily, and runs 64 tokens.

Memory is that of the whole process with Python, torch and transformers: its high-water mark of
resident memory, which counts pages of mapped files, and the peak of its anonymous memory, sampled
every 10 ms from outside. ``formula_mb`` is what reading layer by layer should take (see
docs/large_networks.md): the largest layer, the activations that may be held, and 700 MB for the
rest.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor, nn

import fewbits
from fewbits.coding import kernels as compiled_kernels
from images import CACHE
from packaged import AbsentError, folder_of, smollm2_folder, smollm2_tokens
from record import peak_rss_mb, write

NETWORKS = ("llama-110m", "smollm2", "llama-1b")
METHODS = {"nearest": fewbits.Nearest(bits=4), "gptq": fewbits.GPTQ(bits=4)}
WEIGHTS = ("memory", "folder")
IN_MEMORY = ("llama-110m", "smollm2")  # the networks small enough to be held for comparison
SEQUENCES, LENGTH, FORWARD = 8, 256, 64
INTERVAL = 0.01  # seconds between samples
REST_MB = 700  # Python, torch, transformers and compiled kernels (some 450), pages, scratch
CHECKPOINT = 2  # bytes of a weight in the checkpoint


@dataclass(frozen=True)
class Case:
    """What one process does; ``task``: compress, eager (load and run) or lazy."""

    network: str
    method: str
    weights: str
    task: str
    max_live_mib: int
    effort: str
    file: str = ""


def _folder(network: str) -> Path:
    if network == "smollm2":
        return smollm2_folder()
    command = f'python benchmarks/llama_shards.py {network[6:]} "$FEWBITS_NETWORKS/{network}"'
    return folder_of(network, command)


def _config(network: str) -> Any:
    from transformers import LlamaConfig  # noqa: PLC0415  (only in the processes that measure)

    return LlamaConfig.from_pretrained(_folder(network))


@contextlib.contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Make parameters of ``dtype``; buffers of positions stay float32, as ``.to`` would not do."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _built(network: str, empty: bool) -> nn.Module:
    """Return the architecture: its parameters on the meta device, or of random values."""
    from transformers import LlamaForCausalLM  # noqa: PLC0415

    config = _config(network)
    place = fewbits.empty_weights() if empty else contextlib.nullcontext()  # type: ignore[attr-defined]
    with _default_dtype(config.dtype), place:
        return LlamaForCausalLM(config).eval()


def _tokens(network: str) -> list[Tensor]:
    """Return the calibration data, one sequence to a batch."""
    if network == "smollm2":
        return list(smollm2_tokens("calibration", SEQUENCES, LENGTH, seed=0).split(1))
    generator = torch.Generator().manual_seed(0)
    size = (SEQUENCES, LENGTH)
    tokens = torch.randint(_config(network).vocab_size, size, generator=generator)
    return list(tokens.split(1))


def _forward(model: nn.Module, tokens: Tensor) -> Any:
    return model(input_ids=tokens, use_cache=False).logits


def _status(process: int | str) -> dict[str, float]:
    """Return the memory of a process in MB; nothing where /proc does not tell it."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return {}
    pairs = (line.split(":", 1) for line in lines if line.startswith(("VmHWM", "VmRSS", "Rss")))
    return {key: int(value.split()[0]) * 1024 / 1e6 for key, value in pairs}


def _peak_mb() -> float:
    """Return the high-water mark of this process; that of getrusage counts the parent's too."""
    return _status("self").get("VmHWM") or peak_rss_mb()


class _FailedError(RuntimeError):
    """A process that measures ended with an error; the message has the end of what it said."""


class _Clock:
    """Wall and CPU seconds since it was made."""

    def __init__(self) -> None:
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def told(self, stage: str) -> dict[str, float]:
        return {
            f"{stage}_wall_seconds": round(time.perf_counter() - self.wall, 2),
            f"{stage}_cpu_seconds": round(time.process_time() - self.cpu, 2),
        }


def _compress(case: Case) -> dict[str, Any]:
    """Compress and save in this process."""
    from transformers import LlamaForCausalLM  # noqa: PLC0415

    folder, options = _folder(case.network), {}
    if case.weights == "folder":
        model = _built(case.network, empty=True)
        options["weights"] = folder
    else:
        model = LlamaForCausalLM.from_pretrained(folder, dtype="auto").eval()
    if case.method == "gptq":
        options |= {"calibration": _tokens(case.network), "forward": _forward}
    options |= {"max_live_bytes": case.max_live_mib << 20, "seed": 0}
    before, clock = _status("self").get("VmRSS", math.nan), _Clock()
    coded = fewbits.compress(model, METHODS[case.method], **options)
    found = {"rss_before_mb": before, **clock.told("compress"), "compress_peak_mb": _peak_mb()}
    clock = _Clock()
    coded.save(case.file, case.effort, threads=1)
    found |= clock.told("save") | {"peak_mb": _peak_mb()}
    size = Path(case.file).stat().st_size
    notes = [note[:300] for note in coded.notes]
    return found | {
        "file_bytes": size,
        "bits_per_weight": coded.size_report().bits_per_weight,
        "notes": notes,
    }


def _run(case: Case) -> dict[str, Any]:
    """Load the file, at once or lazily, run one batch, and keep what comes out."""
    lazy = case.task == "lazy"
    model = _built(case.network, empty=lazy or case.weights == "folder")
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(_config(case.network).vocab_size, (1, FORWARD), generator=generator)
    before, clock = _status("self").get("VmRSS", math.nan), _Clock()
    model = fewbits.load(case.file, into=model, threads=1, **({"lazy": True} if lazy else {}))
    found = {"rss_before_mb": before, **clock.told("load")}
    clock = _Clock()
    with torch.no_grad():
        logits = _forward(model, tokens)
    found |= clock.told("forward")
    np.save(f"{case.file}.{case.task}.npy", logits.float().numpy())
    return found | {"peak_mb": _peak_mb()}


def _child(case: Case) -> dict[str, Any]:
    from transformers import LlamaForCausalLM  # noqa: F401, PLC0415  (its import is not measured)

    torch.set_num_threads(1)
    compiled_kernels.compiled()
    start = {"start_mb": _status("self").get("VmRSS", math.nan)}
    return start | (_compress(case) if case.task == "compress" else _run(case))


def _alone(case: Case) -> dict[str, Any]:
    """Return what a fresh process measures, and its peak of anonymous and of file-backed memory."""
    with tempfile.TemporaryFile("w+") as told, tempfile.TemporaryFile("w+") as failed:
        command = [sys.executable, __file__, "--child", json.dumps(asdict(case))]
        process = subprocess.Popen(command, stdout=told, stderr=failed, text=True)
        peaks = {"RssAnon": 0.0, "RssFile": 0.0}
        while process.poll() is None:
            found = _status(process.pid)
            peaks = {key: max(found.get(key, 0.0), peak) for key, peak in peaks.items()}
            time.sleep(INTERVAL)
        told.seek(0)
        failed.seek(0)
        if process.returncode:
            raise _FailedError(f"{case} failed:\n{failed.read()[-3000:]}")
        row: dict[str, Any] = json.loads(told.read().splitlines()[-1])
    return row | {"anonymous_peak_mb": peaks["RssAnon"], "file_pages_peak_mb": peaks["RssFile"]}


def _shapes(folder: Path) -> dict[str, list[int]]:
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            found |= {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    return found


def _formula(case: Case) -> dict[str, Any]:
    """Return the memory that compressing layer by layer should take, in MB, and its largest layer.

    A layer: weights in float32 and in the checkpoint's dtype, and their codes in int32; for GPTQ
    the weights in units of the step and three matrices of 8 bytes an entry for the moments as well.
    An embedding has no inputs.
    """
    layers = {}
    for name, shape in _shapes(_folder(case.network)).items():
        if len(shape) == 2:
            moments = case.method == "gptq" and "embed" not in name
            weights = ((12 if moments else 8) + CHECKPOINT) * math.prod(shape)
            layers[name] = weights + (24 * shape[1] ** 2 if moments else 0)
    largest = max(layers, key=lambda name: layers[name])
    live = case.max_live_mib * 2**20 if case.method == "gptq" else 0
    return {
        "largest_layer": largest,
        "largest_layer_mb": layers[largest] / 1e6,
        "formula_mb": (layers[largest] + live) / 1e6 + REST_MB,
    }


def _loaded(case: Case) -> dict[str, Any]:
    """Load the file at once and, where this version can, lazily; both must compute the same."""
    found: dict[str, Any] = {"eager": _alone(replace(case, task="eager"))}
    if hasattr(fewbits, "empty_weights"):
        found["lazy"] = _alone(replace(case, task="lazy"))
        eager, lazy = (np.load(f"{case.file}.{task}.npy") for task in ("eager", "lazy"))
        found["lazy"]["identical"] = bool(np.array_equal(eager, lazy))
        found["lazy"]["largest_difference"] = float(np.abs(eager - lazy).max())
    return found


def _measured(case: Case) -> dict[str, Any]:
    row = {"network": case.network, "method": case.method, "weights": case.weights}
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        case = replace(case, file=f"{folder}/net.fewbits")
        row |= _formula(case) | {"compress": _alone(case)} | _loaded(case)
    told = row["compress"]
    print(
        f"{case.network} {case.method}, weights in {case.weights}: peak {told['peak_mb']:.0f} MB "
        f"(anonymous {told['anonymous_peak_mb']:.0f}), formula {row['formula_mb']:.0f}; "
        f"{told['compress_cpu_seconds']:.0f} + {told['save_cpu_seconds']:.0f} CPU s, "
        f"{told['file_bytes']:,} bytes",
        flush=True,
    )
    for task in ("eager", "lazy"):
        if task in row:
            peak, cpu = row[task]["peak_mb"], row[task]["load_cpu_seconds"]
            same = row[task].get("identical", "")
            print(f"  {task}: peak {peak:.0f} MB, load {cpu:.1f} CPU s {same}", flush=True)
    return row


def _cases(options: argparse.Namespace) -> Iterator[Case]:
    for network in options.networks:
        for weights in options.weights:
            if weights == "memory" and network not in (options.force or IN_MEMORY):
                continue
            for method in options.methods:
                yield Case(
                    network, method, weights, "compress", options.max_live_mib, options.effort
                )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=NETWORKS)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=tuple(METHODS))
    parser.add_argument("--weights", nargs="+", choices=WEIGHTS, default=WEIGHTS)
    parser.add_argument("--force", action="store_const", const=NETWORKS, help="all in memory too")
    parser.add_argument("--max-live-mib", type=int, default=256)
    parser.add_argument("--effort", default="fast")
    parser.add_argument("--out", help="name of the record in .data/")
    return parser.parse_args()


def main() -> None:
    options = _options()
    if options.child:
        print(json.dumps(_child(Case(**json.loads(options.child)))))
        return
    CACHE.mkdir(exist_ok=True)
    if not hasattr(fewbits, "empty_weights"):
        options.weights = ["memory"]
    rows, absent, failures = [], {}, []
    for case in _cases(options):
        try:
            _folder(case.network)
            rows.append(_measured(case))
        except AbsentError as error:
            print(f"left out: {error}")
            absent[case.network] = str(error)
        except _FailedError as error:
            print(error, file=sys.stderr)
            failures.append(str(error))
    write(
        options.out or "memory",
        folder=CACHE if options.out or len(sys.argv) > 1 else None,
        model="SmolLM2-135M-Instruct and random networks in the shape of a Llama, bfloat16",
        data=f"GPTQ: {SEQUENCES} x {LENGTH} tokens, of the WikiText-2 validation text for SmolLM2 "
        "and random ones for random networks; one thread",
        max_live_mib=options.max_live_mib,
        effort=options.effort,
        absent=absent,
        measured=rows,
        failures=failures,
    )
    if failures:
        sys.exit(1)


if __name__ == "__main__":
    main()
