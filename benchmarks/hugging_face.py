"""Folders that ``from_pretrained`` reads: bytes of all files, seconds to load, values that return.

    python benchmarks/hugging_face.py

SmolLM2-135M-Instruct in its own bfloat16: the folder of ``save_pretrained`` after several methods
of fewbits, beside the folders of the network itself and of 4-bit tools. Every file counts; no
folder has a tokenizer. Folders of fewbits and of floats are loaded in fresh processes of one
thread, and every tensor of a folder of fewbits is compared with what ``fewbits.load`` gives here,
bit for bit. Peers whose packages are absent are left out by name.

Nothing here measures quality: ``language_model.py`` does. Calibration is short (``SEQUENCES`` x
``LENGTH`` tokens of the WikiText-2 validation text). The record is written after every folder, and
names those that are ``missing``. ``--layers`` cuts the network, to try the path.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import fewbits
from fewbits.coded import RawTensor
from fewbits.compression.varied import with_slope
from images import ROOT
from packaged import AbsentError, library, smollm2, smollm2_tokens
from peers import PEERS, find_tool
from record import write

SEQUENCES, LENGTH = 8, 256
SLOPE = 2.5e-9
EMBEDDING = "model.embed_tokens.weight"  # which is the output matrix too
GPTQ = fewbits.GPTQ(bits=4, group=64)
METHODS: dict[str, Any] = {
    "gptq-4-g64": GPTQ,
    "lossless": "lossless",
    "smallest": with_slope(fewbits.Recipe.of("smallest"), SLOPE),
}
DENSE = "gptq-4-g64, embedding in bfloat16"  # as the tools leave it: the same file, but for it
OTHERS = ("torchao-int4", "hqq-4", "hqq-4-all", "bitsandbytes-nf4")
CASES = ("bfloat16", "gptq-4-g64", DENSE, *OTHERS, "lossless", "smallest")
LOADS = 2
PACKAGES = ("transformers", "safetensors", "torchao", "hqq", "bitsandbytes")
FRESH = """
import hashlib, json, sys, time
import fewbits, torch
from transformers import AutoModelForCausalLM
torch.set_num_threads(1)
wall, cpu = time.perf_counter(), time.process_time()
network = AutoModelForCausalLM.from_pretrained(sys.argv[1])
wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
found = {}
for name, value in network.state_dict().items():
    data = value.contiguous().view(torch.uint8).numpy()
    found[name] = [str(value.dtype), hashlib.sha256(data).hexdigest()]
print(json.dumps({"wall": wall, "cpu": cpu, "found": found}))
"""


def _digest(value: Tensor) -> list[str]:
    data = value.contiguous().view(torch.uint8).numpy()
    return [str(value.dtype), hashlib.sha256(data).hexdigest()]


def _files(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in sorted(folder.iterdir())}


def _loaded(folder: Path) -> tuple[dict[str, float], dict[str, list[str]]]:
    """Load a folder in fresh processes; return the fewest seconds, and what came back."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
    told = []
    for _ in range(LOADS):
        done = subprocess.run(
            [sys.executable, "-c", FRESH, str(folder)],
            check=True,
            capture_output=True,
            text=True,
            env=environment,
        )
        told.append(json.loads(done.stdout.splitlines()[-1]))
    seconds = {f"load_{key}_seconds": min(t[key] for t in told) for key in ("wall", "cpu")}
    return seconds, told[0]["found"]


@cache
def _compressed(name: str, layers: int) -> tuple[fewbits.CodedModel, float]:
    model, tokens = _network(layers), None
    if name != "lossless":
        tokens = list(smollm2_tokens("calibration", SEQUENCES, LENGTH).split(1))
    cpu = time.process_time()
    coded = fewbits.compress(model, METHODS[name], tokens, forward=_forward)
    return coded, time.process_time() - cpu


def _network(layers: int) -> Any:
    model = smollm2(torch.bfloat16)
    if layers:
        model.model.layers = model.model.layers[:layers]
        model.config.num_hidden_layers = layers
    return model


def _dense(coded: fewbits.CodedModel, model: nn.Module) -> fewbits.CodedModel:
    """Put the embedding of the network back."""
    value = model.get_parameter(EMBEDDING).detach()
    data = value.contiguous().view(torch.uint8).numpy().reshape(-1)
    tensors = dict(coded.contents.tensors)
    tensors[EMBEDDING] = RawTensor(tuple(value.shape), "bfloat16", data)
    return fewbits.CodedModel(replace(coded.contents, tensors=tensors))


def _ours(model: nn.Module, folder: Path, name: str, layers: int) -> dict[str, Any]:
    coded, seconds = _compressed("gptq-4-g64" if name == DENSE else name, layers)
    if name == DENSE:
        coded = _dense(coded, model)
    coded.save_pretrained(folder, model)
    wanted = fewbits.load(folder / "fewbits.safetensors")
    loading, found = _loaded(folder)
    expected = {key: _digest(value) for key, value in wanted.items()}
    equal = sum(found.get(key) == value for key, value in expected.items())
    return {
        "compress_cpu_seconds": seconds,
        **loading,
        "tensors": len(found),
        "tensors_equal_to_load": equal if found.keys() == expected.keys() else 0,
    }


def _forward(model: nn.Module, tokens: Tensor) -> Any:
    return model(input_ids=tokens, use_cache=False)


def _floats(model: Any, folder: Path) -> dict[str, Any]:
    model.save_pretrained(folder)
    return _loaded(folder)[0]


def _peer(model: Any, folder: Path, name: str) -> dict[str, Any]:
    find_tool(PEERS[name])
    model.config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    cpu = time.process_time()
    PEERS[name].write(model, folder)
    seconds = time.process_time() - cpu
    return {
        "compress_cpu_seconds": seconds,
        "tool": PEERS[name].tool,
        "embedding": PEERS[name].embedding,
    }


def _nf4(floats: Path, folder: Path) -> dict[str, Any]:
    """NF4 by bitsandbytes, through transformers, which reads and writes folders."""
    library("bitsandbytes", "bitsandbytes")
    kit = importlib.import_module("transformers")
    settings = kit.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
    )
    cpu = time.process_time()
    model = kit.AutoModelForCausalLM.from_pretrained(
        floats, quantization_config=settings, device_map="cpu"
    )
    model.save_pretrained(folder)
    return {
        "compress_cpu_seconds": time.process_time() - cpu,
        "tool": "bitsandbytes, NF4, blocks of 64, through transformers",
        "embedding": "not quantized: stored in the checkpoint's dtype, once",
    }


def _row(name: str, place: Path, layers: int) -> dict[str, Any]:
    folder = place / name.replace(",", "").replace(" ", "-")
    folder.mkdir()
    model = _network(layers)
    weights = sum(parameter.numel() for parameter in model.parameters())
    if name == "bfloat16":
        told = _floats(model, folder)
    elif name in METHODS or name == DENSE:
        told = _ours(model, folder, name, layers)
    elif name == "bitsandbytes-nf4":
        floats = place / "floats"
        model.save_pretrained(floats)
        told = _nf4(floats, folder)
    else:
        told = _peer(model, folder, name)
    files = _files(folder)
    size = sum(files.values())
    row = {"case": name, "bytes": size, "bits_per_weight": 8 * size / weights, "files": files}
    return {**row, **told}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=0, help="of the network; 0 for all")
    layers = parser.parse_args().layers
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    absent: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as temporary:
        for place, name in enumerate(CASES, 1):
            try:
                rows.append(_row(name, Path(temporary), layers))
                print({k: v for k, v in rows[-1].items() if k != "files"}, flush=True)
            except AbsentError as error:
                absent[name] = str(error)
                print(f"{name}: {error}", flush=True)
            write(
                "hugging_face",
                model="SmolLM2-135M-Instruct, bfloat16",
                data=f"calibration: {SEQUENCES} x {LENGTH} tokens of the WikiText-2 validation",
                folder=ROOT / ".data" if layers else None,
                layers=layers or "all",
                slope_of_smallest=SLOPE,
                loads=LOADS,
                packages={package: _version(package) for package in PACKAGES},
                absent=absent,
                missing=list(CASES[place:]),
                folders=rows,
            )


if __name__ == "__main__":
    main()
