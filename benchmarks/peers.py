"""Other tools that quantize weights on a CPU: the file that each writes, and the values it holds.

``PEERS`` by name. A peer writes a network with its own code into a folder, all of whose files
count, and reads float32 values back from there, so that every network is evaluated in the same
arithmetic. ``embedding`` says what becomes of the embedding and of an output matrix tied to it; the
names that end in "-all" quantize that matrix as well, which the tools leave out on their own.

The packages lie in ``pkgs`` of ``FEWBITS_NETWORKS`` (benchmarks/README.md); those that are absent
raise :class:`AbsentError`.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import peers_gguf
from packaged import AbsentError, library

__all__ = ["GPTQ_ELSEWHERE", "PEERS", "Peer", "fill", "find_tool", "quantized_names"]

Values = dict[str, Tensor]

# Why GPTQ by other tools is missing: no GPU, Python 3.11, torch 2.13, transformers 5.24. Only
# auto-gptq and llmcompressor were imported; the others are told by their source and archive.
GPTQ_ELSEWHERE = {
    "torchao 0.18.0": "its source asserts 'GPTQ only supports CUDA currently'",
    "auto-gptq 0.7.1": "ImportError: cannot import name 'no_init_weights' from "
    "'transformers.modeling_utils'",
    "llmcompressor 0.14.0.1": "requires transformers<=5.17.0, auto-round<=0.15.1, datasets and "
    "nvidia-ml-py; without them ModuleNotFoundError: No module named 'loguru'",
    "gptqmodel 7.7.0": "source archive only; its build and pinned requirements were not tried",
}


@dataclass(frozen=True)
class Peer:
    """A tool with its settings.

    ``write(model, folder)`` writes files; ``model`` has the dtype of the checkpoint and may be
    changed. ``read(model, folder)`` returns float32 values by parameter name from these files
    alone, given the architecture. ``package`` is what must be installed.
    """

    tool: str
    package: str
    embedding: str
    write: Callable[[nn.Module, Path], None]
    read: Callable[[nn.Module, Path], Values]


def find_tool(peer: Peer) -> None:
    """Raise AbsentError unless the peer's package, or program, is there."""
    if peer.package == "zstd":
        if shutil.which("zstd") is None:
            raise AbsentError("the program zstd is not installed")
        return
    module = {"optimum-quanto": "optimum.quanto", "hqq": "hqq.core.quantize"}
    library(module.get(peer.package, peer.package), peer.package)


def fill(model: nn.Module, values: Values) -> nn.Module:
    """Replace every parameter of ``model`` by float32 ``values``; any that lacks is an error."""
    for name, parameter in model.named_parameters():
        parameter.data = values[name].float().reshape(parameter.shape).clone()
    return model


def quantized_names(model: nn.Module, tied: bool) -> list[str]:
    """Return the linear layers; with ``tied``, embeddings of words too, else no output matrix.

    A matrix that an embedding and a linear layer share has the embedding's name.
    """
    embeddings = {
        id(module.weight): name
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding) and module.num_embeddings > 1024
    }
    linear = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and id(module.weight) not in embeddings
    ]
    return linear + (list(embeddings.values()) if tied else [])


def _rest(model: nn.Module, names: list[str]) -> Values:
    """Return the parameters that stay as they are; those of several names once."""
    left = {f"{name}.weight" for name in names}
    return {n: p.detach().contiguous() for n, p in model.named_parameters() if n not in left}


# --- HQQ -----------------------------------------------------------------------------------------


def _hqq_layer(weight: Tensor, bits: int) -> Any:
    kit = library("hqq.core.quantize", "hqq")
    settings = kit.hqq_base_quant_config(nbits=bits, group_size=64, axis=1)
    return kit.HQQLinear.from_weights(
        weight.clone(), None, settings, compute_dtype=torch.float16, device="cpu"
    )


def _write_hqq(model: nn.Module, folder: Path, bits: int, tied: bool) -> None:
    names = quantized_names(model, tied)
    state = _rest(model, names)
    for name in names:
        layer = _hqq_layer(model.get_submodule(name).weight.data, bits)
        told = layer.state_dict()
        state |= {f"{name}.{key}": value.detach().contiguous() for key, value in told.items()}
    save_file(state, folder / "model.safetensors")


def _read_hqq(model: nn.Module, folder: Path, bits: int, tied: bool) -> Values:
    kit = library("hqq.core.quantize", "hqq")
    state = load_file(folder / "model.safetensors")
    names = quantized_names(model, tied)
    values = {name: state[name] for name in _rest(model, names)}
    for name in names:
        layer = kit.HQQLinear(None, None, compute_dtype=torch.float16, device="cpu")
        layer.load_state_dict({k: state[f"{name}.{k}"] for k in _keys(state, name)})
        values[f"{name}.weight"] = layer.dequantize()
    return values


def _keys(state: Values, name: str) -> list[str]:
    return [key[len(name) + 1 :] for key in state if key.startswith(f"{name}.")]


# --- quanto --------------------------------------------------------------------------------------


def _quanto_kit() -> Any:
    """Return quanto, unpacking its bytes in Python instead of C++ that it would compile first."""
    kit = library("optimum.quanto", "optimum-quanto")
    extensions = library("optimum.quanto.library.extensions", "optimum-quanto")
    extensions.get_extension("quanto_cpp")._lib = SimpleNamespace(unpack=_unpack)
    return kit


def _unpack(packed: Tensor, bits: int) -> Tensor:
    """Return the first values of all bytes, from the lowest bits, then the next ones."""
    return torch.cat([packed >> shift & 2**bits - 1 for shift in range(0, 8, bits)])


def _write_quanto(model: nn.Module, folder: Path, kind: str) -> None:
    kit = _quanto_kit()
    kit.quantize(model, weights=getattr(kit, kind), include=quantized_names(model, tied=False))
    kit.freeze(model)
    state, seen = {}, set()
    for name, tensor in model.state_dict().items():
        if tensor.data_ptr() not in seen:
            seen.add(tensor.data_ptr())
            state[name] = tensor.contiguous()
    save_file(state, folder / "model.safetensors")
    told = json.dumps(kit.quantization_map(model))
    (folder / "quanto_qmap.json").write_text(told)


def _read_quanto(model: nn.Module, folder: Path) -> Values:
    kit = _quanto_kit()
    told = json.loads((folder / "quanto_qmap.json").read_text())
    names = [name for name, _ in model.named_parameters()]
    kit.requantize(model, load_file(folder / "model.safetensors"), told)
    found = {name: model.get_parameter(name) for name in names}
    return {
        name: (p.dequantize() if hasattr(p, "dequantize") else p).detach().float()
        for name, p in found.items()
    }


# --- torchao -------------------------------------------------------------------------------------


def _write_torchao(model: nn.Module, folder: Path) -> None:
    library("torchao", "torchao")
    names = set(quantized_names(model, tied=False))
    from torchao.prototype.quantization.int4 import (  # noqa: PLC0415
        PrototypeInt4WeightOnlyConfig,
    )
    from torchao.quantization import quantize_  # noqa: PLC0415

    settings = PrototypeInt4WeightOnlyConfig(group_size=64, set_inductor_config=False)
    quantize_(model, settings, filter_fn=lambda module, name: name in names)
    torch.save(model.state_dict(), folder / "model.pt")


@torch.no_grad()
def _read_torchao(model: nn.Module, folder: Path) -> Values:
    """Its packed weights cannot be dequantized: pass the identity through each layer instead."""
    library("torchao", "torchao")
    names = quantized_names(model, tied=False)
    model.load_state_dict(torch.load(folder / "model.pt", weights_only=False), assign=True)
    values = {name: p for name, p in model.named_parameters() if type(p.data) is Tensor}
    for name in names:
        layer = model.get_submodule(name)
        one = torch.eye(layer.in_features, dtype=torch.bfloat16)
        values[f"{name}.weight"] = nn.functional.linear(one, layer.weight).T.float()
    return values


# --- a plain file of 4 bits, under zstd ----------------------------------------------------------

GROUP = 128


def _groups(weight: Tensor) -> Tensor:
    """Return (groups, 128): rows are padded with zeros to whole groups."""
    return nn.functional.pad(weight.float(), (0, -weight.shape[1] % GROUP)).view(-1, GROUP)


def _write_plain(model: nn.Module, folder: Path, tied: bool) -> None:
    names = quantized_names(model, tied)
    state = _rest(model, names)
    for name in names:
        weight = model.get_submodule(name).weight.data
        groups = _groups(weight)
        scale = (groups.abs().amax(1, keepdim=True) / 7).clamp_min(1e-30).bfloat16()
        index = (groups / scale.float()).round().clamp(-8, 7).to(torch.int8) + 8
        index = index.view(len(weight), -1)[:, : weight.shape[1]].to(torch.uint8)
        state[f"{name}.scale"] = scale.view(len(weight), -1)
        state[f"{name}.index"] = index[:, ::2] | index[:, 1::2] << 4
    path = folder / "model.safetensors"
    save_file(state, path)
    command = ["zstd", "-19", "-q", "--rm", "-T1", str(path)]
    subprocess.run(command, check=True)


def _read_plain(model: nn.Module, folder: Path, tied: bool) -> Values:
    packed = folder / "model.safetensors.zst"
    subprocess.run(["zstd", "-d", "-q", "-k", str(packed)], check=True)
    state = load_file(folder / "model.safetensors")
    names = quantized_names(model, tied)
    values = {name: state[name] for name in _rest(model, names)}
    for name in names:
        index = state[f"{name}.index"]
        levels = torch.stack([index & 15, index >> 4], 2).flatten(1).float() - 8
        scale = state[f"{name}.scale"].float().repeat_interleave(GROUP, 1)
        values[f"{name}.weight"] = levels * scale[:, : levels.shape[1]]
    return values


# --- all of them ---------------------------------------------------------------------------------

KEPT = "not quantized: stored in the checkpoint's dtype, once"


def _hqq(bits: int, tied: bool) -> Peer:
    told = "quantized like the rest" if tied else KEPT
    settings = {"bits": bits, "tied": tied}
    return Peer(
        f"hqq, {bits} bits, group 64",
        "hqq",
        told,
        partial(_write_hqq, **settings),
        partial(_read_hqq, **settings),
    )


def _quanto(kind: str) -> Peer:
    write = partial(_write_quanto, kind=kind)
    return Peer(f"optimum-quanto, {kind}", "optimum-quanto", KEPT, write, _read_quanto)


def _plain(tied: bool) -> Peer:
    told = "quantized like the rest" if tied else KEPT
    write, read = partial(_write_plain, tied=tied), partial(_read_plain, tied=tied)
    return Peer("rounded to 4 bits, group 128, zstd -19", "zstd", told, write, read)


def _gguf(kind: str, tied: bool) -> Peer:
    told = f"{kind}, like the rest" if tied else "Q8_0, as llama.cpp chooses for these types"
    settings = {"kind": kind, "tied": tied}
    return Peer(
        f"gguf, {kind}",
        "gguf",
        told,
        partial(peers_gguf.write, **settings),
        partial(peers_gguf.read, **settings),
    )


PEERS: dict[str, Peer] = {
    **{f"gguf-{kind}": _gguf(kind, tied=False) for kind in peers_gguf.TYPES},
    **{f"gguf-{kind}-all": _gguf(kind, tied=True) for kind in ("Q4_0", "Q4_1")},
    **{f"hqq-{bits}": _hqq(bits, tied=False) for bits in (4, 3)},
    **{f"hqq-{bits}-all": _hqq(bits, tied=True) for bits in (4, 3, 2)},
    "quanto-int4": _quanto("qint4"),
    "quanto-int8": _quanto("qint8"),
    "torchao-int4": Peer(
        "torchao, int4 weights for CPUs, group 64", "torchao", KEPT, _write_torchao, _read_torchao
    ),
    "int4-zstd": _plain(tied=False),
    "int4-zstd-all": _plain(tied=True),
}
