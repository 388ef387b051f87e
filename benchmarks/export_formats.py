"""Bytes and read-back values of one compressed network in every format without a graph.

    python benchmarks/export_formats.py

SmolLM2-135M in its own bfloat16, rounded to 4 bits with a step for each 32 inputs. Each export is
read by the package of its format (compressed-tensors through transformers, gguf, safetensors with
the reader of docs/export.md), and compared with what ``fewbits.load`` gives, weight by weight.
benchmarks/README.md says where the network comes from. No file holds a tokenizer, but for the last
comparison, of the tokens that transformers reads from a GGUF file.
"""

from __future__ import annotations

import argparse
import importlib
import re
import tempfile
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import fewbits
from fewbits.coded import GridTensor
from images import ROOT, data_folder
from packaged import TEXTS, library, smollm2, smollm2_folder
from record import write

METHOD = fewbits.Nearest(bits=4, group=32)
PRE = "smollm"  # llama.cpp's name of the tokenizer's rules for words
CHARACTERS = 20_000
PACKAGES = ("compressed-tensors", "gguf", "transformers", "safetensors")


def _transformers() -> Any:
    return importlib.import_module("transformers")


def _read_folder(folder: Path, model: nn.Module) -> dict[str, Tensor]:
    library("compressed_tensors", "compressed-tensors")
    found = _transformers().AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        found(torch.arange(4)[None])  # unpacks all weights
    return dict(found.state_dict())


def _read_gguf(path: Path, model: nn.Module) -> dict[str, Tensor]:
    """Return values by the network's names, rows of queries and keys put back."""
    kit, config = library("gguf", "gguf"), model.config
    table = kit.get_tensor_name_map(kit.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    names = {table.get_name(name, (".weight",)): name for name, _ in model.named_parameters()}
    found = {}
    for tensor in kit.GGUFReader(path).tensors:
        values = torch.from_numpy(kit.dequantize(tensor.data, tensor.tensor_type).copy())
        part = tensor.name.split(".")[-2]
        heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
        if part in heads:
            pairs = values.reshape(heads[part], -1, 2, values.shape[1])
            values = pairs.transpose(1, 2).reshape(values.shape)
        found[names[tensor.name]] = values
    return found


def _read_codes(path: Path, model: nn.Module) -> dict[str, Tensor]:
    text = (ROOT / "docs" / "export.md").read_text(encoding="utf-8")
    part = text.partition("## safetensors with codes")[2]
    names: dict[str, Any] = {}
    exec(re.search(r"```python\n(.*?)```", part, re.DOTALL)[1], names)  # type: ignore[index]
    return {name: torch.from_numpy(value) for name, value in names["read"](path).items()}


def _difference(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Any]:
    """Compare what the reader gives with every tensor that is known."""
    missing = [name for name in wanted if name not in found]
    if missing:
        raise RuntimeError(f"not read back: {missing[:3]}")
    worst = {
        n: float((found[n].float() - value.float()).abs().max()) for n, value in wanted.items()
    }
    return {
        "max_abs_difference": max(worst.values()),
        "tensors": len(worst),
        "tensors_equal": sum(value == 0 for value in worst.values()),
    }


def _size(path: Path) -> int:
    files = [path] if path.is_file() else list(path.iterdir())
    return sum(file.stat().st_size for file in files)


def _same_tokens(coded: fewbits.CodedModel, model: nn.Module, folder: Path) -> dict[str, Any]:
    """Compare tokens of a text by the tokenizer of the folder and by that of a GGUF file."""
    path = folder / "words.gguf"
    fewbits.export(coded, path, model=model, tokenizer=str(smollm2_folder()), pre=PRE)
    automatic = _transformers().AutoTokenizer.from_pretrained
    text = (data_folder("text") / TEXTS["evaluation"]).read_text(encoding="utf-8")[:CHARACTERS]
    ours = automatic(folder, gguf_file=path.name)(text)["input_ids"]
    theirs = automatic(smollm2_folder())(text)["input_ids"]
    return {"bytes": _size(path), "tokens": len(theirs), "same": ours == theirs}


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    torch.set_num_threads(1)
    model = smollm2(torch.bfloat16)
    coded = fewbits.compress(model, METHOD)
    loaded = coded.state_dict()
    wanted = {name: loaded[name] for name in coded.tensors}
    products = {
        name: torch.from_numpy(tensor.dequantize()) if isinstance(tensor, GridTensor) else value
        for (name, tensor), value in zip(coded.tensors.items(), wanted.values(), strict=True)
    }
    readers: dict[str, tuple[str, Callable[[Path, nn.Module], dict[str, Tensor]]]] = {
        "compressed-tensors": ("folder", _read_folder),
        "gguf": ("net.gguf", _read_gguf),
        "safetensors": ("net.safetensors", _read_codes),
    }
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        rows.append({"format": "bfloat16", "bytes": _size(smollm2_folder() / "model.safetensors")})
        rows.append({"format": "fewbits", "bytes": coded.save(folder / "net.fewbits")})
        for name, (file, read) in readers.items():
            told = fewbits.export(coded, folder / file, to=name, model=model)
            found = read(folder / file, model)
            row = {"format": name, "bytes": _size(folder / file), **_difference(found, wanted)}
            row["from_products"] = _difference(found, products)
            rows.append({**row, "integers": len(told.weights), "notes": list(told.notes)})
            print(rows[-1])
        tokens = _same_tokens(coded, model, folder)
    weights = sum(value.numel() for value in wanted.values())
    for row in rows:
        row["bits_per_weight"] = 8 * row["bytes"] / weights
        print(f"{row['format']:20} {row['bytes']:>12,} {row['bits_per_weight']:.3f}")
    print(tokens)
    write(
        "export_formats",
        model="SmolLM2-135M-Instruct, bfloat16",
        data="none",
        method={"name": "nearest", "bits": 4, "group": 32},
        weights=weights,
        packages={name: version(name) for name in PACKAGES},
        formats=rows,
        tokenizer_in_gguf=tokens,
    )


if __name__ == "__main__":
    main()
